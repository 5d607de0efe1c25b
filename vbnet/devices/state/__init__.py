"""state: records of which only the latest value counts, published by one guest each and sampled by any number.

On each bus it shows ``publish0``, where an opener claims records, and ``sample0``. All buses it is plugged into share
the same records. Guests of this machine publish and sample in memory that the host lends them; from other machines, or
with ``memory`` off, by calls.
"""

from vbnet.bus.kinds import Kind

KIND = Kind(
    name="state",
    classes={"state": "vbnet.devices.state.device:StateClass"},
    drivers={
        "state-sample": "vbnet.devices.state.driver:StateSampleDriver",
        "state-publish": "vbnet.devices.state.driver:StatePublishDriver",
    },
    metrics="vbnet.devices.state.metrics:BLOCKS",
)
