"""intc: a guest's interrupt controller, and its hand on signals.

With it a guest serves signals at eight priorities on threads of its own, names signals that others raise, raises those
that it was granted, and hands signals to other programs as eventfds. Where none is plugged, or while it is switched
off, every device signal is an eventfd of its own, as without it.
"""

from vbnet.bus.kinds import Kind

KIND = Kind(
    name="intc",
    classes={"intc": "vbnet.devices.intc.device:IntcClass"},
    drivers={"interrupt-controller": "vbnet.devices.intc.driver:IntcDriver"},
    metrics="vbnet.devices.intc.metrics:METRICS",
)
