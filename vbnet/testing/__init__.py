"""What tests of vbnet, and of devices for it, are made of: time moved by hand, and both sides of the bus faked.

``ManualClock`` moves when told. ``HostBench`` runs the host half of a device without a host; ``GuestBench`` joins it
to a driver without processes or sockets. ``FakeFabric`` remembers switches and ports.
"""

from vbnet.testing.bench import FakeOpener, GuestBench, HostBench
from vbnet.testing.clock import ManualClock
from vbnet.testing.fabric import FakeFabric
from vbnet.testing.log import ListLog

__all__ = ["FakeFabric", "FakeOpener", "GuestBench", "HostBench", "ListLog", "ManualClock"]
