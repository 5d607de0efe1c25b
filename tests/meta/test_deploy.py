"""Everything under deploy/ is what its reader expects: judged by each format's own schema or tool.

No container engine, no Kubernetes and no running systemd is needed or used. What runs vbnet (the lab, the commands, the
paths that one file says and another relies on) is compared with vbnet itself.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.meta import tree
from vbnet.cluster.topology import parse_topology
from vbnet.telemetry.shipped import DEPLOY

FOLDER = tree.ROOT / "deploy"
PROGRAMS = Path(sys.executable).parent
UNITS = sorted((FOLDER / "systemd").glob("*.service"))
MANIFESTS = sorted((FOLDER / "kubernetes").glob("*.yaml"))
EXPOSURE_MAX = 15
"""Of what `systemd-analyze security` calls exposure, in tenths: below 2.0 is "OK", what sandboxing can reach."""


def check(*command: str | Path) -> str:
    """Run a judge, which must be content, and return what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout + done.stderr


def read(name: str) -> Any:
    """Read a YAML file of deploy/."""
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


# ---- compose -------------------------------------------------------------------------------------------------------


def test_compose_file_is_one_by_the_compose_specification() -> None:
    """Keys, types and forms, by the schema of the specification."""
    check(PROGRAMS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", FOLDER / "compose.yaml")


def test_files_that_the_compose_file_mounts_are_there() -> None:
    """A container engine would make an empty folder of a path that is not there, and say nothing."""
    compose = read("compose.yaml")
    mounts = [volume for service in compose["services"].values() for volume in service.get("volumes", [])]
    paths = [mount.split(":")[0] for mount in mounts] + [config["file"] for config in compose["configs"].values()]

    missing = [path for path in paths if path not in compose["volumes"] and not (FOLDER / path).exists()]

    assert [] == missing


def test_everything_in_the_compose_file_is_reached_from_this_machine_only() -> None:
    """No port is published on an outer address, no container has privileges or capabilities."""
    services = read("compose.yaml")["services"]

    published = [port for service in services.values() for port in service.get("ports", [])]
    with_capabilities = [name for name, service in services.items() if service.get("cap_drop") != ["ALL"]]

    assert [] == [port for port in published if not port.startswith("127.0.0.1:")]
    assert [] == with_capabilities


def test_health_check_asks_where_the_lab_serves_metrics() -> None:
    """The address in the check is the one in the lab file."""
    lab = parse_topology((FOLDER / "lab.yaml").read_text(encoding="utf-8"), "lab.yaml", {}).topology
    command = read("compose.yaml")["services"]["lab"]["healthcheck"]["test"]

    assert lab.metrics is not None
    assert f"http://{lab.metrics.listen}/readyz" == command[-1]


def test_dockerfile_has_no_fault_that_its_linter_knows() -> None:
    """Hadolint, with each exception written beside the line that needs it."""
    assert "" == check(PROGRAMS / "hadolint", FOLDER / "Dockerfile")


def test_links_lead_to_the_files_that_are_in_the_wheel() -> None:
    """What containers mount is what the command line loads."""
    assert [DEPLOY / name for name in ("grafana", "prometheus")] == [
        (FOLDER / name).resolve() for name in ("grafana", "prometheus")
    ]


# ---- systemd -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_unit_is_understood_by_systemd(unit: Path, program: Callable[[str], str]) -> None:
    """Verified as it is, but for the program, which need not be installed where the tests run."""
    text = unit.read_text(encoding="utf-8").replace("ExecStart=/usr/local/bin/vbnet", f"ExecStart={sys.executable}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / unit.name
        copy.write_text(text, encoding="utf-8")

        said = check(program("systemd-analyze"), "verify", "--man=no", copy)

    assert "" == said


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_unit_is_hardened(unit: Path, program: Callable[[str], str]) -> None:
    """What a unit may not do leaves little: the exposure that systemd computes stays low."""
    check(program("systemd-analyze"), "security", "--offline=yes", "--no-pager", f"--threshold={EXPOSURE_MAX}", unit)


def test_units_run_vbnet_as_the_user_that_is_made_for_them() -> None:
    """The exporter reads run directories, which only their owner can, so all are one user's."""
    made = [line.split()[1] for line in (FOLDER / "systemd" / "vbnet.conf").read_text().splitlines() if line[0] == "u"]
    users = {line for unit in UNITS for line in unit.read_text().splitlines() if line.startswith("User=")}
    folders = {line for unit in UNITS for line in unit.read_text().splitlines() if "VBNET_RUN_DIR" in line}

    assert {f"User={name}" for name in made} == users
    assert 1 == len(folders)


# ---- Kubernetes ----------------------------------------------------------------------------------------------------


def test_manifests_are_valid_for_kubernetes() -> None:
    """By the schemas of Kubernetes itself, with every key known. Its operator's own kind is checked below."""
    own = [path for path in MANIFESTS if path.name not in {"servicemonitor.yaml", "kustomization.yaml"}]

    said = check(PROGRAMS / "kubernetes-validate", "--strict", *own)

    assert len(own) == said.count(" passed for resource ")


def test_service_monitor_finds_the_service_its_port_and_its_pods() -> None:
    """Labels select, names lead on: from the monitor to the service, from there to the pod, and to its port."""
    monitor, service, pods = (read(f"kubernetes/{name}.yaml") for name in ("servicemonitor", "service", "statefulset"))
    [endpoint] = monitor["spec"]["endpoints"]
    [container] = pods["spec"]["template"]["spec"]["containers"]

    assert ("monitoring.coreos.com/v1", "ServiceMonitor") == (monitor["apiVersion"], monitor["kind"])
    assert {"selector", "targetLabels", "endpoints"} == set(monitor["spec"])
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert set(monitor["spec"]["targetLabels"]) <= set(service["metadata"]["labels"])
    assert [endpoint["port"]] == [port["name"] for port in service["spec"]["ports"]]
    assert service["spec"]["selector"].items() <= pods["spec"]["template"]["metadata"]["labels"].items()
    assert [port["targetPort"] for port in service["spec"]["ports"]] == [port["name"] for port in container["ports"]]


def test_service_monitor_has_only_fields_of_its_kind() -> None:
    """A strict look, since no schema of the operator is at hand: exactly these, with values of these types."""
    [endpoint] = read("kubernetes/servicemonitor.yaml")["spec"]["endpoints"]
    secret_key = {"name": str, "key": str}
    expected = {
        "port": str,
        "path": str,
        "scheme": str,
        "interval": str,
        "scrapeTimeout": str,
        "tlsConfig": {"serverName": str, "ca": {"secret": secret_key}},
        "basicAuth": {"username": secret_key, "password": secret_key},
    }

    assert expected == shape(endpoint)
    assert "https" == endpoint["scheme"]


def shape(value: Any) -> Any:
    """The same with types instead of values."""
    return {key: shape(item) for key, item in value.items()} if isinstance(value, dict) else type(value)


def test_pod_has_a_lab_that_vbnet_takes_and_is_probed_where_it_serves() -> None:
    """The lab in the config map is valid, serves beyond the pod with TLS, at the port that pod and probes name."""
    text = read("kubernetes/configmap.yaml")["data"]["lab.yaml"]
    lab = parse_topology(text, "lab.yaml", {}).topology
    [container] = read("kubernetes/statefulset.yaml")["spec"]["template"]["spec"]["containers"]
    [port] = [port["containerPort"] for port in container["ports"]]
    probes = {name: probe["exec"]["command"][-1] for name, probe in container.items() if name.endswith("Probe")}

    assert lab.metrics is not None
    assert f"0.0.0.0:{port}" == lab.metrics.listen
    assert lab.metrics.web_config is not None
    assert {
        "startupProbe": f"https://vbnet:{port}/readyz",
        "readinessProbe": f"https://vbnet:{port}/readyz",
        "livenessProbe": f"https://vbnet:{port}/healthz",
    } == probes


def test_pod_runs_without_privileges() -> None:
    """Nobody's root, nothing writable but the two folders, no capability, limits on everything."""
    pod = read("kubernetes/statefulset.yaml")["spec"]["template"]["spec"]
    [container] = pod["containers"]

    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    assert {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    } == container["securityContext"]
    assert {"cpu", "memory"} == set(container["resources"]["limits"])
    [run] = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "run"]
    assert {"medium": "Memory", "sizeLimit": "128Mi"} == run
