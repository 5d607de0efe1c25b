"""The files that are made of all this, by their path in the repository."""

from __future__ import annotations

import json
from typing import Any

import yaml

from dashboards import rules
from dashboards.every import DASHBOARDS
from dashboards.panels import grafana

__all__ = ["files", "yaml_text"]

_DEPLOY = "vbnet/telemetry/deploy"
_HEAD = "# Made by tools/make_dashboards.py of dashboards/rules.py; edit there, and run `make dashboards`.\n"


def files() -> dict[str, str]:
    """Return the text of every file."""
    made = {
        f"{_DEPLOY}/grafana/dashboards/{dashboard.uid}.json": json.dumps(grafana(dashboard), indent=1, sort_keys=True)
        + "\n"
        for dashboard in DASHBOARDS
    }
    made[f"{_DEPLOY}/prometheus/rules.yml"] = yaml_text(rules.recording())
    made[f"{_DEPLOY}/prometheus/alerts.yml"] = yaml_text(rules.alerting())
    return made


def yaml_text(document: dict[str, Any]) -> str:
    """Return a document of rules as Prometheus reads it."""
    return _HEAD + yaml.safe_dump(document, sort_keys=False, width=118, allow_unicode=True)
