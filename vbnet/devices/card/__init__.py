"""card: network cards as hypervisors emulate them, on a switch of the host.

Class ``e1000`` is Intel's 82540EM, ``rtl8139`` Realtek's RTL8139C: their registers, descriptors and interrupts, each
access to a register a trap. They carry the same frames as ``venet``, so that what a trap costs is measured beside it.
"""

from vbnet.bus.kinds import Kind, NicModel

KIND = Kind(
    name="card",
    classes={
        "e1000": "vbnet.devices.card.device:E1000Class",
        "rtl8139": "vbnet.devices.card.device:Rtl8139Class",
    },
    drivers={
        "e1000": "vbnet.devices.card.driver:E1000Driver",
        "rtl8139": "vbnet.devices.card.driver:Rtl8139Driver",
    },
    metrics="vbnet.devices.card.metrics:BLOCKS",
    nics={
        "e1000": NicModel("e1000", abi_type="e1000", has_traps=True, has_slots=True, mtu_max=16_106),
        "rtl8139": NicModel("rtl8139", abi_type="rtl8139", has_traps=True, has_slots=True, mtu_max=1500),
    },
)
