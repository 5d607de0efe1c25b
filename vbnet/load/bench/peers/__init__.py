"""What others use for the same work, measured in turn with vbnet when it is installed.

Nothing here is needed to run vbnet: a peer that is missing leaves its rows out and says how to install it.
"""
