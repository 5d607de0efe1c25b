"""sched: guests' threads say what they need of the processor, and the host gives it to the Linux threads behind them.

One device serves any number of guests of this machine. Each shows one page of its memory, a record for each thread.
"""

from vbnet.bus.kinds import Kind

KIND = Kind(
    name="sched",
    classes={"sched": "vbnet.devices.sched.device:SchedClass"},
    drivers={"sched": "vbnet.devices.sched.driver:SchedDriver"},
    metrics="vbnet.devices.sched.metrics:BLOCKS",
)
