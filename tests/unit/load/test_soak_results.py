"""What a soak says: drift, invariants, thresholds, reports, and how it is gone on with."""

import errno
from pathlib import Path
from typing import Any

import msgspec
import pytest

from vbnet.errors import ExistsError, NotFoundError, ResourceError, UsageError
from vbnet.load.bench.machine import describe
from vbnet.load.counting import Counts
from vbnet.load.result import Outcome
from vbnet.load.soak import verdicts
from vbnet.load.soak.figures import ProcessFigures
from vbnet.load.soak.profile import SoakPlan, parse_soak
from vbnet.load.soak.report import headline, html_page, markdown
from vbnet.load.soak.result import Finding, Mark, SoakResult, SoakSample, Window
from vbnet.load.soak.schedule import Fault
from vbnet.load.soak.store import Asked, SoakStore, read_asked, read_past
from vbnet.load.thresholds import parse_threshold

MIB = 1 << 20
PROFILE = (
    "load: {guests: 2, flows: [{pattern: pairs, rate: 100}]}\nfor: 10m\nwarm-up: 30s\n"
    "faults: {every: 20s, kinds: {kill: {}, stop: {}}}"
)
PLAN = parse_soak(PROFILE)
KILL = Fault(number=0, at_s=40, kind="kill", target="load-0", for_s=0)


def window(number: int = 0, **over: Any) -> Window:
    """A calm window in which all went well."""
    fields: dict[str, Any] = {
        "part": 0,
        "number": number,
        "kind": "calm",
        "begin_s": 10.0 * number,
        "end_s": 10.0 * number + 10,
        "seconds": 9.0,
        "counts": Counts(sent=100, received=100),
        "lost": 0,
        "figures": {"p50": 1000.0, "p99": 2000.0},
    }
    return Window(**{**fields, **over})


def killed(number: int, **over: Any) -> Window:
    """A window with a fault."""
    return window(number, kind="fault", lost=7, mark=Mark(fault=KILL, at_s=41, clock="now", after_s=0.5), **over)


def sample(at_s: float, window: int = 0, **over: Any) -> SoakSample:
    """An interval of a second, and what the host node held."""
    held = {"resident_bytes": 50 * MIB, "descriptors": 80, "threads": 5, "pid": 1, "start": 1}
    held |= {key: over.pop(key) for key in list(over) if key in held}
    host = ProcessFigures(**held, proportional_bytes=0, shared_bytes=0)
    fields: dict[str, Any] = {
        "at_s": at_s,
        "seconds": 1.0,
        "sent": 100,
        "received": 100,
        "received_bytes": 6400,
        "under_way": 0,
        "reordered": 0,
        "corrupted": 0,
        "latency_ns": {"p50": 1000, "p99": 2000},
        "part": 0,
        "window": window,
        "kind": "calm",
        "processes": {"host": host},
    }
    return SoakSample(**{**fields, **over})


def found(samples: list[SoakSample], what: str, plan: SoakPlan = PLAN) -> Any:
    """The verdict on one thing of the host node, or of the lab."""
    [verdict] = [one for one in verdicts.drifts(plan, samples, [(0, 0), (1, 0)]) if one.what == what]
    return verdict


def result(**over: Any) -> SoakResult:
    """What became of a soak that went well."""
    samples = [sample(float(second)) for second in range(1, 200)]
    fields: dict[str, Any] = {
        "profile": {"name": "small"},
        "seed": 7,
        "began": "2026-01-01T00:00:00+00:00",
        "ended": "2026-01-01T00:10:00+00:00",
        "vbnet": "1",
        "machine": describe(),
        "outcome": Outcome(state="finished"),
        "parts": 1,
        "planned_s": 600,
        "elapsed_s": 600,
        "planned_faults": 1,
        "invariants": verdicts.invariants([]),
        "drifts": verdicts.drifts(PLAN, samples, [(0, 0)]),
        "thresholds": [],
        "findings": [],
        "windows": [window(0, unjudged={"lan": "ports came or went"}), killed(1)],
        "samples": samples,
    }
    return SoakResult(**{**fields, **over})


def test_what_stays_level_does_not_drift() -> None:
    """Whatever noise there is."""
    samples = [sample(second, resident_bytes=(50 + second % 3) * MIB) for second in range(200)]

    verdict = found(samples, "resident")

    assert (True, 51 * MIB) == (verdict.holds, verdict.level)


def test_a_leak_of_descriptors_is_found() -> None:
    """One every ten seconds, with some noise: 360 an hour."""
    samples = [sample(second, descriptors=80 + second // 10 + second % 2) for second in range(200)]

    verdict = found(samples, "descriptors")

    assert verdict.holds is False
    assert 300 < verdict.low <= verdict.per_hour <= verdict.high < 420
    assert 14 < verdict.growth < 20


def test_a_leak_that_is_tolerated_holds() -> None:
    """The profile says how much."""
    plan = parse_soak(PROFILE + "\ndrift: {descriptors: {per-hour: 500}}")
    samples = [sample(second, descriptors=80 + second // 10) for second in range(200)]

    assert found(samples, "descriptors", plan).holds is True


def test_growth_during_the_warm_up_is_not_looked_at() -> None:
    """Nor that of the next part's."""
    growing = [sample(second, threads=second) for second in range(25)]
    level = [sample(second, threads=30) for second in range(40, 80)]
    again = [sample(100 + second, part=1, threads=second, pid=2) for second in range(25)]

    assert found([*growing, *level, *again], "threads").holds is True


def test_a_process_that_began_anew_is_compared_with_itself() -> None:
    """Less memory than its forerunner is no fall, more is no growth."""
    first = [sample(second) for second in range(100)]
    second = [sample(second, resident_bytes=500 * MIB, pid=2) for second in range(100, 200)]

    assert found([*first, *second], "resident").holds is True


def test_a_falling_rate_and_a_rising_latency_drift() -> None:
    """Throughput is bad when it falls, latency when it rises."""
    samples = [
        sample(second, received=1000 - second, latency_ns={"p50": 1000 + 20 * second, "p99": 2000 + 40 * second})
        for second in range(200)
    ]

    assert [False, False] == [found(samples, what).holds for what in ("rate", "p99")]


def test_samples_with_a_fault_or_of_a_window_that_was_cut_off_say_nothing_of_latency() -> None:
    """And with nothing left there is too little to say."""
    samples = [sample(second, kind="fault") for second in range(100)]
    samples += [sample(second, window=9) for second in range(100)]

    verdict = found(samples, "p99")

    assert (None, None, 0) == (verdict.holds, verdict.level, verdict.points)


def test_an_invariant_is_broken_by_its_findings() -> None:
    """The first one is told."""
    findings = [Finding(what="lost", detail=f"number {number}", at_s=1) for number in range(3)]

    by_name = {one.what: one for one in verdicts.invariants(findings)}

    assert (3, "number 0", False) == (by_name["lost"].broken, by_name["lost"].first, by_name["lost"].holds)
    assert by_name["corrupted"].holds


def test_a_threshold_must_hold_in_every_calm_window() -> None:
    """Not in those with a fault; the worst is told."""
    windows = [window(0), window(1, figures={"p99": 5000.0}), killed(2, figures={"p99": 9e9})]

    [high, low] = verdicts.thresholds([parse_threshold("p99 < 4us"), parse_threshold("p99 < 6us")], windows)

    assert ((False, 5000), True) == ((high.holds, high.measured), low.holds)


def test_reports_say_what_does_not_hold() -> None:
    """In one line first, then in tables; the page has everything inside, and marks the faults."""
    findings = [Finding(what="conservation", detail="switch lan: <one> too few", at_s=12)]
    bad = result(invariants=verdicts.invariants(findings), findings=findings)

    page = html_page(bad)
    inside = page[page.index('id="result">') + 12 : page.rindex("</script>")]

    assert "finished after 10 min of 10 min, 1 of 1 faults done, seed 7; does not hold: conservation (1)" == headline(
        bad
    )
    assert "| conservation |" in markdown(bad)
    assert "**no**" in markdown(bad)
    assert "switch lan: &lt;one&gt; too few" in page
    assert "<title>kill of load-0</title>" in page
    assert bad == msgspec.json.decode(inside.replace("<\\/", "</"), type=SoakResult)


def test_a_soak_is_good_when_it_ended_and_everything_holds() -> None:
    """One that was interrupted is not, whatever it found."""
    assert result().is_good
    assert not result(outcome=Outcome(state="interrupted")).is_good
    assert "everything holds" in headline(result())


def asked(plan: SoakPlan = PLAN) -> Asked:
    """What was asked for."""
    return Asked(profile="p", settings=plan.settings(), began="then", schedule=plan.schedule)


def test_a_soak_is_read_as_far_as_it_was_written(tmp_path: Path) -> None:
    """A line that was cut short by a death is left out, and what is added later does not stick to it."""
    store = SoakStore(tmp_path, PLAN, asked())
    store.sample(sample(1))
    store.window(window(0))
    store.window(killed(1))
    store.close()
    for name in ("samples", "windows"):
        with (tmp_path / f"{name}.jsonl").open("ab") as file:
            file.write(b'{"part": 0, "num')

    past = read_past(tmp_path, read_asked(tmp_path))
    again = SoakStore(tmp_path, PLAN, asked(), past)
    again.window(window(0, part=1, begin_s=20, end_s=30))
    again.close()

    assert (1, 20.0, 1, "then") == (past.parts, past.elapsed_s, past.faults_done, past.began)
    assert [0, 0, 1] == [one.part for one in read_past(tmp_path, asked()).windows]
    summary = msgspec.json.decode((tmp_path / "summary.json").read_bytes())
    assert (30, 1, 7, 0) == tuple(summary[key] for key in ("elapsed_s", "faults", "lost_to_faults", "lost_otherwise"))


def test_a_fault_in_a_window_that_was_cut_is_done_again(tmp_path: Path) -> None:
    """It is not known what it would have done."""
    store = SoakStore(tmp_path, PLAN, asked())
    store.window(killed(0))
    store.window(killed(1, is_cut=True))
    store.close()

    assert 1 == read_past(tmp_path, asked()).faults_done


def test_another_profile_does_not_go_on_with_a_soak(tmp_path: Path) -> None:
    """What is different is named."""
    other = parse_soak(PROFILE.replace("10m", "20m"))

    with pytest.raises(UsageError, match=r"has a soak of another profile \(different: for\)"):
        asked().refuse_other(other, tmp_path)
    asked().refuse_other(parse_soak(PROFILE), tmp_path)


def test_a_folder_without_a_soak_is_refused(tmp_path: Path) -> None:
    """Nothing to go on with; and nothing is overwritten."""
    (tmp_path / "file").touch()

    with pytest.raises(NotFoundError, match=r"no soak was begun there; begin one with `vbnet soak PROFILE --out"):
        read_asked(tmp_path)
    with pytest.raises(ExistsError, match="is not empty"):
        SoakStore(tmp_path, PLAN, asked())


def test_a_line_that_makes_no_sense_is_named(tmp_path: Path) -> None:
    """Somebody else wrote it."""
    (tmp_path / "windows.jsonl").write_bytes(b"{}\n")

    with pytest.raises(ResourceError, match=r"windows\.jsonl:1 cannot be read"):
        read_past(tmp_path, asked())


def test_a_full_disk_ends_the_writing_and_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What went wrong is told; the summary is the last whole one."""
    store = SoakStore(tmp_path, PLAN, asked())
    store.window(window(0))

    def full(_path: Path, _content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    store.window(window(1))
    store.window(window(2))
    monkeypatch.undo()
    store.finish(result())

    assert "No space left on device" in str(store.problem)
    assert [0, 1] == [one.number for one in read_past(tmp_path, asked()).windows]
    assert 10 == msgspec.json.decode((tmp_path / "summary.json").read_bytes())["elapsed_s"]
    assert not (tmp_path / "result.json").exists()
