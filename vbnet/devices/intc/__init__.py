"""intc: a guest's interrupt controller, and its hand on signals.

With it a guest serves signals at eight priorities on threads of its own, names signals that others raise, raises those
that it was granted, and hands signals to other programs as eventfds. Where none is plugged, or while it is switched
off, every device signal is an eventfd of its own, as without it. ``intc-apic`` is the baseline to compare with: the
same interface, whose acknowledge and end of interrupt are synchronous calls to the host.
"""

from vbnet.bus.kinds import Kind

KIND = Kind(
    name="intc",
    classes={
        "intc": "vbnet.devices.intc.device:IntcClass",
        "intc-apic": "vbnet.devices.intc.device:ApicClass",
    },
    drivers={"interrupt-controller": "vbnet.devices.intc.driver:IntcDriver"},
    metrics="vbnet.devices.intc.metrics:BLOCKS",
)
