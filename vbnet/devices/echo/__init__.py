"""echo: the smallest useful kind, and the example for authors of devices.

It shows two interfaces on each bus: ``echo0`` gives back what it is sent, to any number of openers at once, also on
other machines; ``cell0`` copies between regions of its one opener's memory when it is kicked. ``echo-loud`` is
another class with the same ABI, so the same driver serves it.
"""

from vbnet.bus.kinds import Kind

KIND = Kind(
    name="echo",
    classes={
        "echo": "vbnet.devices.echo.device:EchoClass",
        "echo-loud": "vbnet.devices.echo.device:LoudEchoClass",
    },
    drivers={
        "echo": "vbnet.devices.echo.driver:EchoDriver",
        "echo-cell": "vbnet.devices.echo.driver:CellDriver",
    },
    metrics="vbnet.devices.echo.metrics:BLOCKS",
)
