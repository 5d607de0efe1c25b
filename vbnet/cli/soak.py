"""`vbnet soak`: load for hours with faults in between, and say what drifted, broke or was left behind."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vbnet.cli import measuring, output
from vbnet.cli.output import Format, FormatOption

if TYPE_CHECKING:
    from vbnet.load.soak.profile import SoakPlan
    from vbnet.load.soak.result import Mark, SoakResult, SoakSample, Window
    from vbnet.load.soak.run import Past
    from vbnet.load.soak.store import SoakStore

app = output.application(
    "Put guests under load for hours, do them the faults that a profile names as a seed draws them, and say what "
    "drifted, broke or was left behind.\n\nExit code 0: it ran to its end and everything holds. 1: something does not, "
    "or the lab broke. 2: the profile is wrong. 130: Ctrl-C; the report is of what was measured until then, and "
    "`--resume` goes on from there, as it does after a power cut.",
    [
        ("vbnet soak list", "profiles that come with vbnet"),
        ("vbnet soak short --plan", "which faults it would do, and when"),
        ("vbnet soak soak --for 8h --seed 7 -o results", "eight hours; everything is written there as it happens"),
        ("vbnet soak --resume results", "go on from where it stopped, with the same seed and schedule"),
    ],
)


def complete_profile(incomplete: str) -> list[str]:
    """Return shipped profiles, and files in this folder, that begin so."""
    from vbnet.load.soak.profile import SHIPPED  # noqa: PLC0415 - only who completes pays for it

    files = [path.name for path in sorted(Path().glob("*.y*ml"))]
    return [name for name in ("list", *SHIPPED, *files) if name.startswith(incomplete)]


@app.command()
def soak(
    profile: Annotated[
        str | None,
        typer.Argument(
            metavar="list|PROFILE",
            help="A profile (YAML), or one that `list` lists.",
            autocompletion=complete_profile,
            show_default=False,
        ),
    ] = None,
    length: Annotated[
        str | None, typer.Option("--for", help="How long in all, such as 8h, instead of what the profile says.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="What faults and random arrivals follow from.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="New folder for samples, windows, result and reports.", show_default=False),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Folder of a soak that stopped: go on with it.", show_default=False)
    ] = None,
    *,
    plan: Annotated[bool, typer.Option("--plan", help="Print the schedule of faults; start nothing.")] = False,
    how: FormatOption = Format.table,
) -> None:
    """Put a lab under load and faults for a long time."""
    if resume is None and profile in (None, "list"):
        _list(how)
        return
    chosen, store, past = _prepared(profile, {"for": length, "seed": seed}, out, resume, is_plan=plan)
    if plan:
        _print_plan(chosen, how)
        return
    sys.exit(_run(chosen, store, past, how))


def _list(how: Format) -> None:
    from vbnet.load.soak.profile import SHIPPED, shipped_text  # noqa: PLC0415 - native code stays out of `--help`

    rows = [{"profile": name, "what": shipped_text(name).splitlines()[0].lstrip("# ")} for name in SHIPPED]
    output.print_rows(rows, ["profile", "what"], how)


def _prepared(
    profile: str | None, over: dict[str, Any], out: Path | None, resume: Path | None, *, is_plan: bool
) -> tuple[SoakPlan, SoakStore | None, Past | None]:
    """Read the profile, and open the folder that is written into."""
    from vbnet.errors import UsageError  # noqa: PLC0415 - with the rest
    from vbnet.load.soak.profile import load_soak  # noqa: PLC0415 - native code stays out of `--help`
    from vbnet.load.soak.store import Asked, SoakStore, read_asked, read_past  # noqa: PLC0415 - same

    if resume is None:
        assert profile is not None  # noqa: S101 -- else it is listed what there is
        chosen = load_soak(Path(profile), over=over)
        place = str(Path(profile).resolve()) if Path(profile).exists() else profile
        began = datetime.now(UTC).isoformat(timespec="seconds")
        asked = Asked(profile=place, settings=chosen.settings(), began=began, schedule=chosen.schedule)
        return chosen, None if out is None or is_plan else SoakStore(out, chosen, asked), None
    if out is not None:
        raise UsageError("--resume goes on in its folder; leave out --out")
    asked = read_asked(resume)
    said = {key: asked.settings[key] for key, value in over.items() if value is None and key in asked.settings}
    chosen = load_soak(Path(profile or asked.profile), over={**over, **said})
    asked.refuse_other(chosen, resume)
    past = read_past(resume, asked)
    return chosen, None if is_plan else SoakStore(resume, chosen, asked, past), past


def _print_plan(plan: SoakPlan, how: Format) -> None:
    from vbnet.load.soak.report import say_length  # noqa: PLC0415 - with the rest

    rows = [
        {
            "fault": fault.number,
            "at": fault.at_s if how is Format.json else f"{fault.at_s:.2f} s",
            "kind": fault.kind,
            "target": fault.target,
            "for": fault.for_s if how is Format.json else f"{fault.for_s:g} s",
        }
        for fault in plan.schedule
    ]
    output.print_rows(rows, ["fault", "at", "kind", "target", "for"], how, empty="no fault")
    if how is Format.table:
        output.note(f"{len(rows)} faults in {say_length(plan.total_s)}, drawn from seed {plan.seed}")


def _run(plan: SoakPlan, store: SoakStore | None, past: Past | None, how: Format) -> int:
    from vbnet.cluster.privileges import check_privileges  # noqa: PLC0415 - with the rest

    check_privileges(plan.load.lab)
    result = asyncio.run(_measure(plan, store, past, how))
    if store is not None:
        store.finish(result)
    if how is Format.json:
        output.print_json(result)
    else:
        _print(result)
    return measuring.outcome(
        store,
        how,
        "samples, windows and reports",
        is_interrupted=result.outcome.state == "interrupted",
        is_good=result.is_good,
    )


async def _measure(plan: SoakPlan, store: SoakStore | None, past: Past | None, how: Format) -> SoakResult:
    from vbnet.load.soak.run import SoakRun  # noqa: PLC0415 - loads native code

    with _Shown(how, plan, store) as watch:
        return await measuring.until_stopped(lambda stop: SoakRun(plan, watch=watch, past=past, stop=stop))


class _Shown(measuring.Shown):
    """Shows a soak as it goes, and writes it down."""

    def __init__(self, how: Format, plan: SoakPlan, store: SoakStore | None) -> None:
        super().__init__(how, store, "the soak", {"stopping", "restarting"})
        self._plan, self._store = plan, store
        self._line: Any = None
        self._findings = 0

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        if self._line is not None:
            self._line.stop()

    def sample(self, sample: SoakSample) -> None:
        from vbnet.load.figures import say_rate, say_time  # noqa: PLC0415 - with the run
        from vbnet.load.soak.report import say_length  # noqa: PLC0415 - same

        self.progress.close()
        if self._store is not None:
            self._store.sample(sample)
        self.tell_problem()
        if not self.is_shown or not sys.stderr.isatty() or sample.seconds <= 0:
            return
        if self._line is None:
            from rich.console import Console  # noqa: PLC0415 - only a terminal pays for it

            self._line = Console(stderr=True).status("", spinner="dots")
            self._line.start()
        p50, p99 = (say_time(sample.latency_ns.get(name)) for name in ("p50", "p99"))
        self._line.update(
            f"{say_length(sample.at_s)} of {say_length(self._plan.total_s)}  received "
            f"{say_rate(sample.received / sample.seconds)}  p50 {p50}  p99 {p99}  found {self._findings}"
        )

    def fault(self, mark: Mark) -> None:
        fault = mark.fault
        lasting = f" for {fault.for_s:g} s" if fault.for_s else ""
        self.note(f"{mark.at_s:8.1f} s  fault {fault.number}: {fault.kind} of {fault.target}{lasting}")

    def window(self, window: Window) -> None:
        from vbnet.load.figures import say_count, say_time  # noqa: PLC0415 - with the run

        if self._store is not None:
            self._store.window(window)
        self._findings += len(window.findings)
        p99 = say_time(window.figures.get("p99"))
        over = ""
        if window.mark is not None and window.mark.after_s is not None:
            over = f", over after {window.mark.after_s:.2f} s"
        self.note(
            f"{window.end_s:8.1f} s  {window.kind}: sent {say_count(window.counts.sent)}, lost "
            f"{say_count(window.lost)}, p99 {p99}{over}"
        )
        for finding in window.findings:
            self.note(f"{finding.at_s:8.1f} s  FOUND {finding.what}: {finding.detail}")
        self.tell_problem()

    def note(self, text: str) -> None:
        if self._line is not None:  # above the line that is drawn again and again
            self._line.console.print(text, markup=False, highlight=False)
        elif self.is_shown:
            output.note(text)


def _print(result: SoakResult) -> None:
    from vbnet.load.soak.report import headline, sections  # noqa: PLC0415 - with the run

    for title, head, rows in sections(result):
        if title == "Every fault":
            continue
        output.say(f"\n{title}")
        output.print_rows([dict(zip(head, row, strict=True)) for row in rows], list(head), Format.table)
    output.say(f"\n{headline(result)}")
