"""The files for Prometheus and Grafana that come with vbnet: rules, alerts, dashboards.

They are data of this package, so an installed wheel has them; `deploy/prometheus` and `deploy/grafana` in the
repository are links to the same files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["DEPLOY", "PROMETHEUS_CONFIGURATION", "dashboard_files", "home_dashboard", "rule_files"]

DEPLOY: Final = Path(__file__).resolve().parent / "deploy"
"""The folder that holds ``prometheus/`` and ``grafana/``."""

PROMETHEUS_CONFIGURATION: Final = DEPLOY / "prometheus" / "prometheus.yml"
"""It finds host nodes by an exporter's ``/sd``; its paths of rules count from its folder."""

_HOME: Final = "vbnet-overview.json"


def rule_files() -> list[Path]:
    """Return the files of recording rules and alerts, sorted by name."""
    return [path for path in sorted((DEPLOY / "prometheus").glob("*.yml")) if path != PROMETHEUS_CONFIGURATION]


def dashboard_files() -> list[Path]:
    """Return the dashboards, sorted by name."""
    return sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))


def home_dashboard() -> Path:
    """Return the dashboard to begin with."""
    [home] = [path for path in dashboard_files() if path.name == _HOME]
    return home
