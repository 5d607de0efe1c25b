"""virtio: devices of the virtio specification, with this bus as one more transport.

Class ``virtio-blk`` is a disk: an open file of the operator's. What each device is, its ABI type says by virtio's own
number: ``virtio:2`` is a disk.
"""

from vbnet.bus.kinds import Kind

KIND = Kind(
    name="virtio",
    classes={"virtio-blk": "vbnet.devices.virtio.device:BlkClass"},
    drivers={"virtio:2": "vbnet.devices.virtio.driver:DiskDriver"},
    metrics="vbnet.devices.virtio.metrics:BLOCKS",
)
"""Named by its parts, so that no guest loads host code."""
