"""The host node: buses, devices and the guests on them, in one process of its own.

``node``      HostNode: sockets, timers, life and death       ``device``    what a device author implements (host half)
``verbs``     what guests may ask                             ``registry``  device classes, discovered
``sessions``  what a guest holds on the host                  ``fabric``    the native switch, as others see it
``plugboard`` devices and where they are plugged              ``admin``     what operators may ask
``attach``    descriptors and identities                      ``process``   the process: log, signals, readiness
"""
