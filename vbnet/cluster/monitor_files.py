"""What Prometheus and Grafana are told when `vbnet monitor` starts them: the files that ship, fitted to one run.

Prometheus' configuration is the one in `deploy/prometheus`, with this run's exporter and the rules by their full names.
Grafana reads `deploy/grafana/provisioning` as it is; an ini file has the rest.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from vbnet.telemetry import shipped

__all__ = ["LOOPBACK", "grafana_command", "grafana_configuration", "prometheus_configuration"]

LOOPBACK: Final = "127.0.0.1"
_GRAFANA_HOMES: Final = (Path("/usr/share/grafana"),)


def prometheus_configuration(exporter: str, labs: Sequence[str]) -> dict[str, Any]:
    """Return what ships, with the exporter's address, the rules where they are, and only the labs that are wanted."""
    import yaml  # noqa: PLC0415 -- only when Prometheus is started

    whole: dict[str, Any] = yaml.safe_load(shipped.PROMETHEUS_CONFIGURATION.read_text(encoding="utf-8"))
    whole["rule_files"] = [str(path) for path in shipped.rule_files()]
    [job] = whole["scrape_configs"]
    [discovery] = job["http_sd_configs"]
    discovery["url"] = f"http://{exporter}/sd"
    if labs:
        # Names of labs have letters, digits, dots and hyphens.
        names = "|".join(name.replace(".", r"\.") for name in labs)
        job["relabel_configs"] = [{"source_labels": ["lab"], "regex": names, "action": "keep"}]
    return whole


def grafana_configuration(home: Path, port: int) -> str:
    """Return an ini file: everybody on this machine may look, nobody may change, nothing is sent anywhere."""
    sections: dict[str, dict[str, object]] = {
        "paths": {
            "data": home / "data",
            "logs": home / "logs",
            "plugins": home / "plugins",
            "provisioning": shipped.DEPLOY / "grafana" / "provisioning",
        },
        "server": {"protocol": "http", "http_addr": LOOPBACK, "http_port": port},
        "auth": {"disable_login_form": "true"},
        "auth.anonymous": {"enabled": "true", "org_role": "Viewer"},
        "auth.basic": {"enabled": "false"},
        "security": {"admin_password": secrets.token_urlsafe(24), "disable_gravatar": "true"},
        "users": {"allow_sign_up": "false"},
        "snapshots": {"external_enabled": "false"},
        "analytics": {"reporting_enabled": "false", "check_for_updates": "false", "check_for_plugin_updates": "false"},
        "plugins": {"preinstall_disabled": "true"},
        "news": {"news_feed_enabled": "false"},
        "log": {"mode": "console", "level": "warn"},
        "dashboards": {"default_home_dashboard_path": shipped.home_dashboard()},
    }
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in values.items())
        for name, values in sections.items()
    )


def grafana_command() -> list[str] | None:
    """Return how Grafana is started here, with its own files; None: there is none."""
    for name, verb in (("grafana", ["server"]), ("grafana-server", [])):
        if (found := shutil.which(name)) is not None:
            homes = (Path(found).resolve().parent.parent, *_GRAFANA_HOMES)
            home = next((folder for folder in homes if (folder / "conf" / "defaults.ini").is_file()), homes[-1])
            return [found, *verb, f"--homepath={home}"]
    return None
