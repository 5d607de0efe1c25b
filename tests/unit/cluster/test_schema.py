"""The published JSON Schema is the schema that is checked, and agrees with the checker on real files."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from vbnet.cluster.source import TopologyError
from vbnet.cluster.topology import json_schema, parse_topology

ROOT = Path(__file__).parents[3]
OTHERS = (ROOT / "vbnet" / "telemetry" / "deploy", ROOT / "vbnet" / "load")
"""Grafana's files, and profiles of load and soaks."""

LABS = sorted(
    {
        ROOT / "deploy" / "lab.yaml",
        *ROOT.glob("examples/*/*.yaml"),
        *(
            path
            for path in (ROOT / "vbnet").glob("**/*.yaml")
            if not any(path.is_relative_to(other) for other in OTHERS)
        ),
    }
)
COMMITTED = files("vbnet.cluster") / "lab.schema.json"


def violations(document: Any) -> list[str]:
    """Return what the schema has against a document."""
    return [error.message for error in jsonschema.Draft202012Validator(json_schema()).iter_errors(document)]


def test_the_committed_schema_is_fresh() -> None:
    """Regenerate it with: vbnet validate --schema > vbnet/cluster/lab.schema.json."""
    assert json_schema() == json.loads(COMMITTED.read_text(encoding="utf-8"))


def test_the_schema_is_a_lawful_schema() -> None:
    """Editors refuse to use one that is not."""
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", LABS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_lab_of_the_repository_satisfies_it(path: Path) -> None:
    """What runs here is not underlined in red in an editor."""
    assert violations(yaml.safe_load(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "text",
    [
        "name: T\n",
        "switches: {}\n",
        "name: t\nbogus: 1\n",
        "name: t\nswitches: {Lan: {}}\n",
        "name: t\nguests: {a: {kind: stak}}\n",
        "name: t\nguests: {a: {kind: traffic, nics: [{switch: lan, mtu: 20}]}}\n",
        "name: t\nguests: {a: {kind: python}}\n",
        "name: t\ndevices: {irq: {attributes: {}}}\n",
        "name: t\ndevices: {IRQ: {type: intc}}\n",
    ],
)
def test_what_the_schema_refuses_the_checker_refuses_too(text: str) -> None:
    """An editor and `vbnet validate` never contradict each other in this direction."""
    with pytest.raises(TopologyError):
        parse_topology(text)

    assert violations(yaml.safe_load(text)) != []
