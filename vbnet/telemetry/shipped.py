"""The files for Prometheus and Grafana that come with vbnet: rules, alerts, dashboards.

They are data of this package, so an installed wheel has them; `deploy/prometheus` and `deploy/grafana` in the
repository are links to the same files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["DEPLOY", "dashboard_files", "rule_files"]

DEPLOY: Final = Path(__file__).resolve().parent / "deploy"
"""The folder that holds ``prometheus/`` and ``grafana/``."""

_CONFIGURATION: Final = "prometheus.yml"


def rule_files() -> list[Path]:
    """Return the files of recording rules and alerts, sorted by name."""
    return [path for path in sorted((DEPLOY / "prometheus").glob("*.yml")) if path.name != _CONFIGURATION]


def dashboard_files() -> list[Path]:
    """Return the dashboards, sorted by name."""
    return sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
