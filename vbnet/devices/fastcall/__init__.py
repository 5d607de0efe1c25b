"""fastcall: synchronous calls of devices through shared memory: no message, and no system call while both are awake.

A guest opens ``fastcall0`` once and shows it one slot for each thread that calls; through a slot it calls whichever of
its open devices have a fast handler. ``OpenDevice.fastcall`` does all of it, and makes the ordinary call where there is
none.
"""

from vbnet.bus.kinds import Kind

KIND = Kind(
    name="fastcall",
    classes={"fastcall": "vbnet.devices.fastcall.device:FastcallClass"},
    drivers={"fastcall": "vbnet.devices.fastcall.driver:FastcallDriver"},
    metrics="vbnet.devices.fastcall.metrics:BLOCKS",
)
