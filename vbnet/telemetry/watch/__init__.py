"""Watching a host node over time: what it counts a second, in tables, now and in the last minutes.

``look``     one moment of a node, read from its run directory    ``history``  the last minutes, to go back to
``rates``    two looks: how much a second, never below nothing    ``table``    what a table is: order, filter, text
``tabs``     tables of guests, ports, signals and so on           ``details``  tables of one guest, device or block
``reading``  two looks, by the writers' names                     ``sheets``   a table by the path that leads to it
``viewer``   where one is, in which order, of which moment

The node is never asked, so all of this works on one that hangs, is stopped or was killed. Nothing here knows a screen.
"""
