"""What nodes count, read from outside: from counters files in a run directory, without asking the node.

``counted``    counters by name                       ``catalogue``   what every kind of block means
``collector``  a collector for prometheus_client      ``exposition``  what Prometheus reads, rendered natively
"""

from typing import TYPE_CHECKING

from vbnet.telemetry.counted import Counted, read_counted

if TYPE_CHECKING:
    from vbnet.telemetry.collector import Collector
    from vbnet.telemetry.exposition import Exposition, Format

__all__ = ["Collector", "Counted", "Exposition", "Format", "read_counted"]


def __getattr__(name: str) -> object:
    """Load what needs ``prometheus_client`` when it is used."""
    if name == "Collector":
        from vbnet.telemetry.collector import Collector  # noqa: PLC0415

        return Collector
    if name in {"Exposition", "Format"}:
        from vbnet.telemetry import exposition  # noqa: PLC0415

        return getattr(exposition, name)
    raise AttributeError(name)
