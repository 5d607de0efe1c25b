"""The kernel's own Ethernet: a TAP whose descriptor a guest gives to the host, which reads and writes its frames.

This is how a network namespace gets its interfaces: the guest process makes the TAP inside, the host's workers serve
it. No frame passes through the guest process.
"""

from __future__ import annotations

from vbnet.bus.kinds import Kind
from vbnet.devices.tap.wire import ABI_TYPE

KIND = Kind(
    name="tap",
    classes={"tap": "vbnet.devices.tap.device:TapClass"},
    drivers={ABI_TYPE: "vbnet.devices.tap.driver:TapDriver"},
)
