"""The probe of the Kubernetes pod, asked here: with the secrets that the script makes, of a real exporter."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.support.lab import Lab
from tests.support.waiting import PATIENCE
from vbnet.telemetry.serve import ExporterProcess

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"


def probes(web: Path, port: str) -> dict[str, list[str]]:
    """The commands of the pod's probes, with its folder and port being those of the test."""
    config = web / "probe.curl"
    config.write_text(config.read_text().replace("/etc/vbnet/web", str(web)).replace("9617", port))
    whole = yaml.safe_load((FOLDER / "statefulset.yaml").read_text())
    [container] = whole["spec"]["template"]["spec"]["containers"]
    return {
        name: [part.replace("/etc/vbnet/web", str(web)).replace("9617", port) for part in probe["exec"]["command"]]
        for name, probe in container.items()
        if name.endswith("Probe")
    }


@pytest.mark.slow
def test_probes_are_let_in_and_say_when_the_node_is_dead(
    own_lab: Lab, tmp_path: Path, program: Callable[[str], str]
) -> None:
    """Alive and ready; without a password neither; alive but not ready when the host node was killed."""
    program("openssl")
    program("curl")
    subprocess.run(
        [FOLDER / "secrets.sh"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable},
        check=True,
        timeout=PATIENCE,
    )
    web, root = tmp_path / "web", own_lab.run_dir.path.parent

    with ExporterProcess(
        "127.0.0.1:0", web_config=web / "web.yaml", node=None, root=root, log=tmp_path / "exporter.log"
    ) as exporter:
        commands = probes(web, exporter.address.rpartition(":")[2])
        before = {name: subprocess.run(command, check=False).returncode for name, command in commands.items()}
        stranger = subprocess.run([*commands["livenessProbe"], "--user", "probe:guess"], check=False).returncode
        own_lab.host.kill()
        after = {name: subprocess.run(command, check=False).returncode for name, command in commands.items()}

    refused = 22
    assert {"startupProbe": 0, "readinessProbe": 0, "livenessProbe": 0} == before
    assert refused == stranger
    assert {"startupProbe": refused, "readinessProbe": refused, "livenessProbe": 0} == after
