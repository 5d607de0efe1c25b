"""A real Prometheus and the exporter it scrapes, as children of a test, with everything below a folder of its own."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from dashboards import rules
from dashboards.files import yaml_text
from tests.support import vbnet_program
from tests.support.waiting import PATIENCE, eventually
from vbnet.telemetry.shipped import DEPLOY

__all__ = ["WINDOW", "Prometheus", "exporter", "filled"]

WINDOW = "10s"
"""Over which tests take rates: ten scrapes."""
_ADDRESS = re.compile(r"127\.0\.0\.1:[0-9]+")
_ANSWER_S = 10.0


def filled(query: str) -> str:
    """Return a panel's query as Grafana asks it when everything is chosen."""
    return re.sub(r'"\$\w+"', '".*"', query.replace("$__rate_interval", WINDOW))


@contextmanager
def exporter(root: Path) -> Iterator[str]:
    """Serve every host node below ``root``; gives the address."""
    command = [*vbnet_program.COMMAND, "metrics", "serve", "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        command, env={**os.environ, "VBNET_RUN_DIR": str(root)}, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        told = _ADDRESS.search(process.stderr.readline())
        assert told is not None
        yield told[0]
    finally:
        process.kill()
        process.communicate()


class Prometheus:
    """Prometheus with the shipped configuration and rules, hurried: scrapes each second, rates over ``WINDOW``.

    Args:
        program: the binary.
        folder: for its configuration and data.
        exporter: address of the exporter whose ``/sd`` it asks.
        features: those it is to have beside the usual ones.
    """

    def __init__(self, program: str, folder: Path, exporter: str, features: Sequence[str] = ()) -> None:
        configuration: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        [scrape] = configuration["scrape_configs"]
        scrape["http_sd_configs"] = [{"url": f"http://{exporter}/sd", "refresh_interval": "1s"}]
        self.configuration = folder / "prometheus.yml"
        self.configuration.write_text(yaml.safe_dump(configuration))
        (folder / "rules.yml").write_text(yaml_text(rules.recording(WINDOW)))
        (folder / "alerts.yml").write_text(yaml_text(rules.alerting(WINDOW, lasting="1s")))
        self._folder = folder
        self._command = [program, f"--config.file={self.configuration}", f"--storage.tsdb.path={folder / 'data'}"]
        self._command += [f"--enable-feature={feature}" for feature in features]

    @contextmanager
    def running(self) -> Iterator[Prometheus]:
        """Run it; ready when this yields."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._address = "{}:{}".format(*free.getsockname())
        with (self._folder / "log").open("w") as log:
            command = [*self._command, f"--web.listen-address={self._address}", "--log.level=warn"]
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            eventually(lambda: self._is_ready(process), "Prometheus is ready")
            yield self
        finally:
            process.kill()
            process.wait(PATIENCE)

    def _is_ready(self, process: subprocess.Popen[bytes]) -> bool:
        assert process.poll() is None, (self._folder / "log").read_text()
        try:
            with urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=_ANSWER_S) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def ask(self, path: str, **parameters: str) -> Any:
        """Ask its HTTP API, and return the data; a query that it does not take fails with its words."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"http://{self._address}/api/v1/{path}?{query}", timeout=_ANSWER_S) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Return the series that a query gives now."""
        result: list[dict[str, Any]] = self.ask("query", query=expr)["result"]
        return result

    def label_values(self, query: str) -> list[str]:
        """Return what Grafana offers for a variable ``label_values(series, label)``."""
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
        assert found is not None, query
        values: list[str] = self.ask(f"label/{found[2]}/values", **{"match[]": found[1]})
        return values

    def firing(self, name: str, **labels: str) -> list[Mapping[str, Any]]:
        """Return the alerts of a name that fire with these labels."""
        return [
            alert
            for alert in self.ask("alerts")["alerts"]
            if alert["state"] == "firing"
            and alert["labels"]["alertname"] == name
            and labels.items() <= alert["labels"].items()
        ]

    def wait_firing(self, name: str, patience: float = PATIENCE, **labels: str) -> Mapping[str, Any]:
        """Return the alert as soon as it fires."""
        return eventually(lambda: self.firing(name, **labels), f"{name} fires", patience)[0]
