"""Profiles of load: what they mean, and every way in which one can be wrong."""

from pathlib import Path

import pytest

from vbnet.cluster.source import TopologyError
from vbnet.load.orders import Schedule, schedule_of
from vbnet.load.profile import SHIPPED, load_profile, parse_profile, pattern_routes

LAB = """
name: office
switches: {lan: {}}
guests:
  a: {kind: traffic, nics: [{switch: lan}]}
  b: {kind: traffic, count: 2, nics: [{switch: lan}]}
  web: {kind: stack, nics: [{switch: lan, ip: 10.0.0.1/24}]}
  old: {kind: traffic, nics: [{switch: lan}], send: {to: a}}
"""


def problems(text: str, folder: Path | None = None) -> str:
    """What is said about a profile."""
    with pytest.raises(TopologyError) as caught:
        parse_profile(text, str((folder or Path()) / "p.yaml"))
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_profile_makes_sense(name: str) -> None:
    """As `vbnet load list` shows them."""
    plan = load_profile(Path(name))

    assert (name, True) == (plan.profile.name, bool(plan.senders))


@pytest.mark.parametrize(
    ("pattern", "routes"),
    [
        ("pairs", {"a": ("b",), "c": ("d",)}),
        ("ring", {"a": ("b",), "b": ("c",), "c": ("d",), "d": ("e",), "e": ("a",)}),
        ("many-to-one", {"b": ("a",), "c": ("a",), "d": ("a",), "e": ("a",)}),
        ("one-to-many", {"a": ("b", "c", "d", "e")}),
    ],
)
def test_a_pattern_says_who_sends_to_whom(pattern: str, routes: dict[str, tuple[str, ...]]) -> None:
    """Of five guests; who is left over stays quiet."""
    assert routes == pattern_routes(pattern, list("abcde"))  # type: ignore[arg-type]


def test_all_to_all_leaves_nobody_out() -> None:
    """Nobody sends to itself."""
    routes = pattern_routes("all-to-all", list("abc"))

    assert {"a": ("b", "c"), "b": ("a", "c"), "c": ("a", "b")} == routes


@pytest.mark.parametrize(
    ("flow", "schedule"),
    [
        ("", Schedule("flood")),
        ("rate: 1.5M", Schedule("constant", (1.5e6,))),
        ("poisson: 10k", Schedule("poisson", (1e4, 7))),
        ("ramp: {from: 1k, to: 2k, over: 5s}", Schedule("ramp", (1e3, 2e3, 5.0))),
        ("burst: {frames: 32, every: 1ms}", Schedule("burst", (32, 1e-3))),
        ("on-off: {rate: 1k, on: 10ms, off: 1s}", Schedule("on_off", (1e3, 1e-2, 1.0))),
    ],
)
def test_a_flow_says_when_its_frames_are_due(flow: str, schedule: Schedule) -> None:
    """In base units."""
    plan = parse_profile(f"flows: [{{pattern: pairs{', ' if flow else ''}{flow}}}]")

    assert schedule == schedule_of(plan.profile.flows[0], seed=7)


def test_a_search_sets_the_rate_of_even_and_of_random_flows() -> None:
    """Instead of what the profile says."""
    for key in ("rate", "poisson"):
        plan = parse_profile(f"flows: [{{pattern: pairs, {key}: 1k}}]")
        assert schedule_of(plan.profile.flows[0], 1, rate=5000).numbers[0] == 5000


def test_guests_of_a_lab_are_named(tmp_path: Path) -> None:
    """Those that the lab gives something to send, and those that are no traffic guests, are left alone."""
    (tmp_path / "lab.yaml").write_text(LAB)
    text = "lab: lab.yaml\nflows: [{from: a, to: [b-0, b-1], rate: 1k, reply: true}]"

    plan = parse_profile(text, str(tmp_path / "p.yaml"))

    assert ({"b-0", "b-1"}, {"a"}, ("b-0", "b-1")) == (plan.reflectors, plan.receivers, plan.senders["a"].to)
    assert "`web` is no guest that this profile can use" in problems(
        "lab: lab.yaml\nflows: [{from: web, to: old, rate: 1k}]", tmp_path
    )


def test_what_the_command_line_says_counts_more(tmp_path: Path) -> None:
    """What it does not say is left as it is."""
    file = tmp_path / "My Load 2.yaml"
    file.write_text("for: 10s\nseed: 4\nflows: [{pattern: pairs}]")

    plan = load_profile(file, over={"for": "3s", "seed": None})

    assert ("my-load-2", "3s", 4) == (plan.profile.name, plan.profile.for_, plan.profile.seed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flowz: []\nflows: [{pattern: pairs}]", "p.yaml:1: unknown key `flowz`; did you mean `flows`?"),
        ("name: x", "p.yaml:1: there are no flows; write `flows:`"),
        ("flows: {}", "p.yaml:1: there are no flows"),
        ("flows: [{}]", "`flows[0]` does not say who sends; give `pattern`, or `from` and `to`"),
        ("flows: [5]", "`flows[0]` is `5`, not a mapping"),
        ("flows: [{pattern: pears}]", "`flows[0].pattern` is `pears`"),
        ("flows: [{pattern: pairs, from: load-0}]", "`flows[0]` does not say who sends"),
        ("flows: [{pattern: pairs, to: load-0}]", "`to` goes with `from`"),
        ("flows: [{from: load-0}]", "`flows[0]` does not say who receives"),
        ("flows: [{from: load-0, to: load-0}]", "`load-0` would send to itself only"),
        ("flows: [{from: load-0, to: load-7}]", "`load-7` is no guest that this profile can use; did you mean"),
        ("flows: [{pattern: pairs, rate: 0}]", "`rate` is `0`; expected a rate such as 10k"),
        ("flows: [{pattern: pairs, rate: 2000M}]", "`rate` is `2000M`; expected 1 to 1000M frames a second"),
        ("flows: [{pattern: pairs, rate: -5}]", "`rate` is `-5`"),
        ("flows: [{pattern: pairs, rate: 1k, poisson: 1k}]", "`flows[0]` has `rate` and `poisson`; keep one"),
        ("flows: [{pattern: pairs, burst: {frames: 0, every: 1s}}]", "`flows[0].burst.frames` is `0`"),
        ("flows: [{pattern: pairs, burst: {every: 1s}}]", "`frames` is missing in `flows[0].burst`"),
        ("flows: [{pattern: pairs, on-off: {rate: 1k, on: 0s, off: 1s}}]", "`on` is `0s`; expected a duration"),
        ("flows: [{pattern: pairs, ramp: {from: 1k, to: 0, over: 1s}}]", "`to` is `0`"),
        ("flows: [{pattern: pairs, ask: {window: 5000}}]", "`flows[0].ask.window` is `5000`"),
        ("flows: [{pattern: pairs, size: 59}]", "`flows[0].size` is `59`"),
        ("flows: [{pattern: pairs, size: [60, 20]}]", "`size` is 20; a frame is 60 to 65549 bytes"),
        ("flows: [{pattern: pairs, size: []}]", "`size` is an empty list"),
        ("flows: [{pattern: all-to-all, reply: true}]", "`load-0` would send and reply"),
        ("guests: 3\nflows: [{pattern: one-to-many, ask: {}}]", "a closed loop asks one receiver"),
        ("flows: [{pattern: pairs}, {pattern: pairs}]", "`load-0` sends in two flows"),
        ("flows: [{pattern: pairs, replay: {file: x.pcap}, reply: true}]", "replayed frames are not sent back"),
        ("guests: 1\nflows: [{pattern: pairs}]", "`guests` is `1`"),
        ("guests: 257\nflows: [{pattern: pairs}]", "`guests` is `257`"),
        ("for: soon\nflows: [{pattern: pairs}]", "`for` is `soon`; expected a duration"),
        ("lab: no.yaml\nflows: [{pattern: pairs}]", "p.yaml:1: the lab file is wrong"),
        ("lab: x.yaml\nguests: 2\nflows: [{pattern: pairs}]", "`guests` makes a lab, `lab` names one"),
        ("thresholds: [p98 < 1us]\nflows: [{pattern: pairs}]", "`p98` is no figure; use one of p50"),
        ("thresholds: [p99 near 1us]\nflows: [{pattern: pairs}]", "write a figure, a comparison and an amount"),
        ("thresholds: [p99 < 1k]\nflows: [{pattern: pairs}]", "`p99` is given in ns us µs ms s"),
        ("find-limit: {}\nflows: [{pattern: pairs}]", "this flow has none; add `rate` or `poisson`"),
        ("find-limit: {from: 2M, to: 1M}\nflows: [{pattern: pairs, rate: 1}]", "`to` is 1M, not above `from`"),
        ("find-limit: {loss: 120%}\nflows: [{pattern: pairs, rate: 1}]", "`loss` is `120%`; expected a share"),
        ("find-limit: {precision: 0}\nflows: [{pattern: pairs, rate: 1}]", "a precision of 0 is never reached"),
    ],
)
def test_a_wrong_profile_is_told_with_its_line_and_what_to_do(text: str, message: str) -> None:
    """The value is repeated."""
    assert message in problems(text)


def test_all_problems_are_told_at_once() -> None:
    """One of each part of the file."""
    text = "for: soon\nflows:\n  - {pattern: pairs, rate: 0}\nthresholds: [p98 < 1us]"

    assert [1, 3, 4] == [int(line.split(":")[1]) for line in problems(text).splitlines()]
