"""Every dashboard there is."""

from __future__ import annotations

from typing import Final

from dashboards.guests import GUESTS
from dashboards.overview import OVERVIEW
from dashboards.run import RUN
from dashboards.signals import SIGNALS
from dashboards.switching import SWITCHING
from dashboards.workers import WORKERS

__all__ = ["DASHBOARDS"]

DASHBOARDS: Final = (OVERVIEW, SWITCHING, GUESTS, SIGNALS, WORKERS, RUN)
