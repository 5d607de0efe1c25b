"""timer: deadlines that a guest writes into its own memory, and that one thread of the host keeps for all guests.

Arming, moving and cancelling are stores; the host is told only when a new deadline is earlier than the one it already
waits for. Expiry is a signal with a priority. A device may be on many buses and has any number of openers.
"""

from vbnet.bus.kinds import Kind

KIND = Kind(
    name="timer",
    classes={"timer": "vbnet.devices.timer.device:TimerClass"},
    drivers={"timer": "vbnet.devices.timer.driver:TimerDriver"},
    metrics="vbnet.devices.timer.metrics:BLOCKS",
)
