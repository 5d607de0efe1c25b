"""`vbnet load`: put a lab under load as a profile says, and say how it held."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vbnet.cli import measuring, output
from vbnet.cli.output import Format, FormatOption

if TYPE_CHECKING:
    from vbnet.load.profile import LoadPlan
    from vbnet.load.result import Result, Sample, Trial
    from vbnet.load.store import Store

app = output.application(
    "Put guests under load as a profile says: at even, random or changing rates, in bursts, from a capture, or "
    "request by request; and say what arrived, how late, and whether the profile's thresholds hold.\n\nIt brings up a "
    "lab of its own (or the profile's), and takes it down. Exit code 1 when a threshold does not hold; after Ctrl-C "
    "the result is of what was measured until then.",
    [
        ("vbnet load list", "profiles that come with vbnet"),
        ("vbnet load latency --for 30s", "one of them"),
        ("vbnet load my.yaml -o results", "your own; samples and reports go there"),
        ("vbnet load limit --format json", "the highest rate without loss, for a program"),
    ],
)


def complete_profile(incomplete: str) -> list[str]:
    """Return shipped profiles, and files in this folder, that begin so."""
    from vbnet.load.profile import SHIPPED  # noqa: PLC0415 - only who completes pays for it

    files = [path.name for path in sorted(Path().glob("*.y*ml"))]
    return [name for name in ("list", *SHIPPED, *files) if name.startswith(incomplete)]


@app.command()
def load(
    profile: Annotated[
        str,
        typer.Argument(
            metavar="list|PROFILE", help="A profile (YAML), or one that `list` lists.", autocompletion=complete_profile
        ),
    ] = "list",
    length: Annotated[str | None, typer.Option("--for", help="How long, instead of what the profile says.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="What random arrivals follow from.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New folder for samples, result and reports.", show_default=False)
    ] = None,
    *,
    check: Annotated[bool, typer.Option("--check", help="Check the profile and print it; start nothing.")] = False,
    how: FormatOption = Format.table,
) -> None:
    """Put a lab under load."""
    if profile == "list":
        _list(how)
        return
    from vbnet.load.profile import load_profile, settings  # noqa: PLC0415 - not for `list`

    plan = load_profile(Path(profile), over={"for": length, "seed": seed})
    if check:
        output.print_record(settings(plan.profile), how)
        return
    sys.exit(_run(plan, out, how))


def _list(how: Format) -> None:
    from vbnet.load.profile import SHIPPED, shipped_text  # noqa: PLC0415 - native code stays out of `--help`

    rows = [{"profile": name, "what": shipped_text(name).splitlines()[0].lstrip("# ")} for name in SHIPPED]
    output.print_rows(rows, ["profile", "what"], how)


def _run(plan: LoadPlan, out: Path | None, how: Format) -> int:
    from vbnet.cluster.privileges import check_privileges  # noqa: PLC0415 - as above
    from vbnet.load.store import Store  # noqa: PLC0415

    check_privileges(plan.lab)
    store = Store(out) if out is not None else None
    result = asyncio.run(_measure(plan, store, how))
    if store is not None:
        store.finish(result)
    if how is Format.json:
        output.print_json(result)
    else:
        _print(result)
    return measuring.outcome(
        store,
        how,
        "samples and reports",
        is_interrupted=result.outcome.state == "interrupted",
        is_good=result.is_good,
    )


async def _measure(plan: LoadPlan, store: Store | None, how: Format) -> Result:
    from vbnet.load.run import LoadRun  # noqa: PLC0415 - loads native code

    with _Shown(how, store) as watch:
        return await measuring.until_stopped(lambda stop: LoadRun(plan, watch=watch, stop=stop))


class _Shown(measuring.Shown):
    """Shows a run as it goes, and writes it down."""

    def __init__(self, how: Format, store: Store | None) -> None:
        super().__init__(how, store, "the run")
        self._store = store

    def sample(self, sample: Sample) -> None:
        from vbnet.load.figures import say_count, say_rate, say_time  # noqa: PLC0415 - with the run

        self.progress.close()
        if self._store is not None:
            self._store.sample(sample)
        p50, p99 = (say_time(sample.latency_ns.get(name)) for name in ("p50", "p99"))
        self.note(
            f"{sample.at_s:7.1f} s  sent {say_rate(sample.sent / sample.seconds):>8}  "
            f"received {say_rate(sample.received / sample.seconds):>8}  p50 {p50:>7}  p99 {p99:>7}  "
            f"under way {say_count(sample.under_way)}"
        )

    def trial(self, trial: Trial) -> None:
        from vbnet.load.figures import say_rate, say_time  # noqa: PLC0415 - with the run

        self.progress.close()
        if self._store is not None:
            self._store.trial(trial)
        p99 = say_time(trial.figures.get("p99"))
        self.note(f"{say_rate(trial.rate):>10}  p99 {p99:>7}  {'passes' if trial.passes else trial.why_not}")


def _print(result: Result) -> None:
    from vbnet.load.figures import say, say_figure, say_rate  # noqa: PLC0415 - with the run

    rows: list[dict[str, Any]] = [
        {"figure": say(name), "measured": say_figure(name, value)} for name, value in result.figures.items()
    ]
    output.print_rows(rows, ["figure", "measured"], Format.table)
    for verdict in result.verdicts:
        measured = say_figure(verdict.threshold.split()[0], verdict.measured)
        output.say(f"{'holds' if verdict.holds else 'FAILS'}  {verdict.threshold}  (measured {measured})")
    if result.limit is not None:
        output.say(f"limit of each sender: {say_rate(result.limit) if result.limit else 'below the lowest rate tried'}")
    if result.outcome.state != "finished":
        output.note(f"vbnet: {result.outcome.state} after {result.seconds:g} s: {result.outcome.detail}")
