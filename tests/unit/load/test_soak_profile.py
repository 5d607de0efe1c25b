"""Profiles of soaks: what they mean, and every way in which one can be wrong."""

from pathlib import Path

import pytest

from vbnet.cluster.source import TopologyError
from vbnet.load.soak.faults import KINDS
from vbnet.load.soak.profile import DRIFTS, SHIPPED, load_soak, parse_soak
from vbnet.load.soak.verdicts import INVARIANTS
from vbnet.telemetry.runs import FAULT_KINDS
from vbnet.telemetry.runs import INVARIANTS as COUNTED

LOAD = "load: {guests: 2, flows: [{pattern: pairs, rate: 100}]}\n"
LAB = """
name: office
switches: {lan: {}}
guests:
  a: {kind: traffic, restart: on-failure, nics: [{switch: lan}]}
  b: {kind: traffic, nics: [{switch: lan}]}
  ns: {kind: netns, restart: always, nics: [{switch: lan}]}
"""


def problems(text: str, folder: Path = Path()) -> str:
    """What is said about a profile."""
    with pytest.raises(TopologyError) as caught:
        parse_soak(text, str(folder / "p.yaml"))
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_profile_makes_sense_and_does_every_kind_of_fault(name: str) -> None:
    """As `vbnet soak list` shows them."""
    plan = load_soak(Path(name))

    assert name == plan.profile.name
    assert set(KINDS) == {fault.kind for fault in plan.schedule}


def test_a_profile_becomes_amounts_in_base_units() -> None:
    """Times in seconds, memory in bytes, what is not said as it usually is."""
    plan = parse_soak(
        LOAD + "for: 2m\nwarm-up: 5s\nloss: 1%\nfaults: {every: 10s, kinds: {kill: {}, stop: {for: 2s}}}\n"
        "drift: {resident: {per-hour: 1MiB, least: 0}, p99: {per-hour: 10%}}"
    )

    assert (120, 5, 0.01, 30) == (plan.total_s, plan.warm_up_s, plan.loss, plan.recover_s)
    assert (1 << 20, 0) == plan.tolerances["resident"]
    assert (0.1, DRIFTS["p99"].least) == plan.tolerances["p99"]
    assert {0} == {fault.for_s for fault in plan.schedule if fault.kind == "kill"}
    assert all(1 <= fault.for_s <= 3 for fault in plan.schedule if fault.kind == "stop")


def test_what_is_counted_of_a_run_is_what_a_soak_does_and_finds() -> None:
    """Kinds of fault and invariants are named where they are exported as well."""
    assert tuple(KINDS) == FAULT_KINDS
    assert tuple(INVARIANTS) == COUNTED


def test_guests_of_an_own_lab_come_back() -> None:
    """Whatever ends them: else the first fault would be the last."""
    plan = parse_soak(LOAD)

    assert {"always"} == {guest.restart for guest in plan.load.lab.topology.guests.values()}


def test_load_may_be_a_profile_by_name_or_by_file(tmp_path: Path) -> None:
    """One of those that come with vbnet, or one beside this file."""
    (tmp_path / "mine.yaml").write_text("guests: 3\nflows: [{pattern: ring, rate: 5}]")

    shipped = parse_soak("load: latency")
    mine = parse_soak("load: mine.yaml", str(tmp_path / "p.yaml"))

    assert ("latency", "mine", 3) == (
        shipped.load.profile.name,
        mine.load.profile.name,
        len(mine.load.senders),
    )


def test_the_seed_is_that_of_the_load_as_well() -> None:
    """Random arrivals follow from it."""
    plan = parse_soak(LOAD, over={"seed": 9, "for": "1m"})

    assert (9, 9, 60) == (plan.seed, plan.load.profile.seed, plan.total_s)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("for: 1h", "there is no load"),
        (LOAD + "fro: 1h", "did you mean `for`?"),
        (LOAD + "for: soon", "p.yaml:2: `for` is `soon`; expected a duration"),
        (LOAD + "faults:\n  kinds:\n    kil: {}", "p.yaml:4: `kil` is no kind of fault; did you mean `kill`?"),
        (LOAD + "faults:\n  kinds: {host-restart: {}}", "p.yaml:3: `host-restart` cannot be done: a lab ends when"),
        (LOAD + "faults: {kinds: {stop: {for: x}}}", "`for` is `x`"),
        (LOAD + "faults: {kinds: {stop: {guests: [load-9]}}}", "did you mean `load-"),
        (LOAD + "faults: {kinds: {stop: {guests: []}}}", "nobody is named"),
        (LOAD + "faults: {kinds: {stop: {weight: 0}}}", "weight"),
        (LOAD + "drift: {residnet: {}}", "did you mean `resident`?"),
        (LOAD + "drift: {resident: {least: much}}", "expected a size"),
        (LOAD + "drift: {threads: {least: -1}}", "expected a number"),
        (LOAD + "loss: 200%", "expected a share"),
        ("load: nowhere.yaml", "there is no such load profile"),
        ("load: limit", "a soak searches for no limit"),
        ("load:\n  guests: 2\n  flows: [{pattern: pears}]", "p.yaml:3: "),
        ("load: {flows: [{pattern: pairs, replay: {file: a.pcap}}]}", "frames of a capture have no numbers"),
    ],
)
def test_what_is_wrong_is_told_with_what_to_do(text: str, said: str) -> None:
    """Most with the line of the mistake."""
    assert said in problems(text)


def test_faults_that_a_guest_would_not_survive_are_refused(tmp_path: Path) -> None:
    """A guest that its lab does not start again, one that ends well, one without rings."""
    (tmp_path / "lab.yaml").write_text(LAB)
    load = "load: {lab: lab.yaml, flows: [{from: a, to: b, rate: 5}]}\n"

    said = problems(load + "faults: {kinds: {kill: {}, restart: {guests: [a]}, unplug: {guests: [ns]}}}", tmp_path)

    assert "`kill` cannot be done to `b`: its lab would not start it again; give it `restart: on-failure`" in said
    assert "`restart` cannot be done to `a`: its lab would not start it again when it ends well" in said
    assert "`unplug` cannot be done to `ns`: it has no interface with rings" in said
    assert "`kill` cannot be done to `a`" not in said
