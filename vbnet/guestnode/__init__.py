"""The guest node: a process with one or many guests on the bus of a host node.

``node``    GuestNode (the process), GuestSession (one guest)     ``driver``  what a driver author implements
``proxy``   ProxyDevice, OpenDevice: devices as a guest has them  ``memory``  who uses which part of the guest's memory
``sync``    Guest: all of it for plain functions
"""

from vbnet.guestnode.driver import Driver, DriverInstance
from vbnet.guestnode.node import GuestNode, GuestSession
from vbnet.guestnode.proxy import OpenDevice, ProxyDevice, SharedSignal

__all__ = ["Driver", "DriverInstance", "GuestNode", "GuestSession", "OpenDevice", "ProxyDevice", "SharedSignal"]
