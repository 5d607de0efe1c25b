"""virtio-net: a network card of the virtio specification as a port of a switch.

Class ``virtio-net`` shows the ABI ``virtio:1``. Its registers are bus calls, or traps as behind virtio-mmio and
virtio-pci; the three are models of a lab's NICs, and the same program runs on each, and on venet.
"""

from vbnet.bus.kinds import Kind, NicModel

_ABI_TYPE = "virtio:1"

KIND = Kind(
    name="virtio_net",
    classes={"virtio-net": "vbnet.devices.virtio_net.device:VirtioNetClass"},
    drivers={_ABI_TYPE: "vbnet.devices.virtio_net.driver:VirtioNetDriver"},
    nics={
        "virtio-net": NicModel("virtio-net", _ABI_TYPE, {"transport": "vbus"}, has_pairs=True),
        "virtio-net-mmio": NicModel("virtio-net", _ABI_TYPE, {"transport": "mmio"}, has_traps=True, has_pairs=True),
        "virtio-net-pci": NicModel("virtio-net", _ABI_TYPE, {"transport": "pci"}, has_traps=True, has_pairs=True),
    },
)
