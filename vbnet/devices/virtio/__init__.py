"""virtio: devices of the virtio specification, with this bus as one more transport.

Class ``virtio-blk`` is a disk: an open file of the operator's. ``virtio-console`` is a console on a pseudo terminal,
``virtio-rng`` the machine's entropy. What each device is, its ABI type says by virtio's own number.
"""

from vbnet.bus.kinds import Kind

KIND = Kind(
    name="virtio",
    classes={
        "virtio-blk": "vbnet.devices.virtio.device:BlkClass",
        "virtio-console": "vbnet.devices.virtio.device:ConsoleClass",
        "virtio-rng": "vbnet.devices.virtio.device:RngClass",
    },
    drivers={
        "virtio:2": "vbnet.devices.virtio.driver:DiskDriver",
        "virtio:3": "vbnet.devices.virtio.driver:ConsoleDriver",
        "virtio:4": "vbnet.devices.virtio.driver:EntropyDriver",
    },
    metrics="vbnet.devices.virtio.metrics:BLOCKS",
)
"""Named by its parts, so that no guest loads host code."""
