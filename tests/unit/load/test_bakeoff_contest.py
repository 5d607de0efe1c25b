"""The file of a bake-off: what may be left out, and every mistake at its line."""

import pytest

from vbnet.cluster.source import TopologyError
from vbnet.cluster.topology import parse_topology
from vbnet.load.bakeoff.arena import lab_text
from vbnet.load.bakeoff.contest import ELSEWHERE, QUICK, parse_contest
from vbnet.load.bakeoff.subjects import MECHANISMS, models, subjects
from vbnet.load.bakeoff.workloads import ROLES, WORKLOADS


def test_everything_is_measured_where_the_file_says_nothing() -> None:
    """All models, workloads, mechanisms and peers."""
    contest = parse_contest("{}")

    assert models() == contest.models
    assert list(WORKLOADS) == contest.workloads
    assert list(MECHANISMS) == contest.without
    assert list(ELSEWHERE) == contest.elsewhere


def test_what_quick_sets_goes_before_the_file() -> None:
    """And leaves alone what it says nothing of."""
    contest = parse_contest("{repeats: 50, for: 10s, models: [venet]}", QUICK)

    assert (3, 0.3, ["venet"]) == (contest.repeats, contest.seconds, contest.models)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modles: [venet]", "1: unknown key `modles`; did you mean `models`?"),
        ("models: [venet, virtio]", "1: `virtio` is none of the models"),
        ("models: [venet, venet]", "1: `venet` is there twice; remove one"),
        ("models: [e1000]", "1: `venet` is missing in models; add it: the others are held against it"),
        ("\nworkloads: []", "2: "),
        ("workloads: [flod]", "1: `flod` is none of the workloads; did you mean `flood`?"),
        ("without: [speed]", "1: `speed` is none of the without; known: mitigation"),
        ("repeats: 0", "1: "),
        ("for: 1h", "1: `for` is 1h; give 0.05 to 60 s; repeats are free"),
        ("for: soon", "1: `for` is "),
        ("trap-cost: dear", "1: `trap-cost` is "),
        ("idle-devices: 5000", "1: "),
        ("seed: -1", "1: "),
        ("elsewhere: [dpdk]", "1: `dpdk` is none of the elsewhere"),
    ],
)
def test_mistakes_are_told_at_their_line(text: str, said: str) -> None:
    """With what to do about them, and nothing is started."""
    with pytest.raises(TopologyError) as refused:
        parse_contest(text)

    assert f"bakeoff.yaml:{said}" in str(refused.value)


def test_every_mistake_is_told_at_once() -> None:
    """Whoever wrote three mends three."""
    with pytest.raises(TopologyError) as refused:
        parse_contest("models: [venet, x]\nworkloads: [y]\nfor: 0s")

    assert 3 == str(refused.value).count("bakeoff.yaml:")


def test_mechanisms_are_switched_off_on_venet_alone() -> None:
    """Others have none of them; what is no part of a frame's way is measured aside."""
    found = subjects(["venet", "e1000"], ["batching", "interrupt-controller", "parking"])

    assert ["venet", "e1000", "venet without batching", "venet without parking"] == [one.name for one in found]


def test_lab_has_two_pairs_and_idle_cards_of_each_model() -> None:
    """Each on a switch of its model's name."""
    contest = parse_contest("{models: [venet], idle-devices: 3}")

    plain = parse_topology(lab_text(contest, name="b", has_idle=False)).topology
    crowded = parse_topology(lab_text(contest, name="b", has_idle=True)).topology

    assert [f"venet-{role}" for role in ROLES] == list(plain.guests)
    assert ({"venet"}, 3) == (set(plain.switches), crowded.guests["venet-idle"].count)
