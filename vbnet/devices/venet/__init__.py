"""venet: virtual Ethernet over two rings in the guest's memory.

Class ``venet`` joins a guest to a switch of the host; ``venet-loopback`` gives a guest its own frames back. Both show
the ABI ``virtual-ethernet``, so one driver serves them.
"""

from vbnet.bus.kinds import Kind, NicModel

KIND = Kind(
    name="venet",
    classes={
        "venet": "vbnet.devices.venet.device:VenetClass",
        "venet-loopback": "vbnet.devices.venet.device:LoopbackClass",
    },
    drivers={"virtual-ethernet": "vbnet.devices.venet.driver:VenetDriver"},
    metrics="vbnet.devices.venet.metrics:BLOCKS",
    nics={"venet": NicModel(device_class="venet", abi_type="virtual-ethernet")},
)
