"""A profile of a soak: the load, the faults, and what may drift by how much.

.. code-block:: yaml

    load: {guests: 4, flows: [{pattern: ring, size: imix, rate: 500}]}    # or the name of a load profile, or a file
    for: 8h
    faults:
      every: 30s
      kinds: {kill: {}, stop: {for: 2s}, unplug: {weight: 2, guests: [load-0]}}
    drift: {resident: {per-hour: 16MiB, least: 8MiB}}

As with profiles of load, every mistake is told at once with its line, and nothing is started here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from vbnet.cluster.parts import NAME_PATTERN, PartReader
from vbnet.cluster.plan import make_plan
from vbnet.cluster.quantity import duration_s, length_bytes
from vbnet.cluster.source import Place, Source, TopologyError, load_source, parse_source
from vbnet.errors import NotFoundError, did_you_mean
from vbnet.load.profile import LoadPlan, OwnLab, as_name, profile_source, read_plan, settings
from vbnet.load.soak.faults import KINDS, REFUSED, Need, has_rings
from vbnet.load.soak.schedule import Fault, Kind, draw
from vbnet.load.thresholds import parse_share

__all__ = ["DRIFTS", "SHIPPED", "Drift", "SoakPlan", "SoakProfile", "Tolerance", "load_soak", "parse_soak"]

SHIPPED: Final = ("soak", "short")
"""Profiles that come with vbnet, by name."""

OWN_LAB: Final = OwnLab(prefix="soak", restart="always")
_DEFAULT_FOR_S: Final = 2.0

Time = Annotated[str | int | float, Meta(description="A time, such as 30s, 200ms or 5m.")]
Amount = Annotated[str | int | float, Meta(description="In the unit of what drifts: 16MiB, 1, 20%.")]
DriftKind = Literal["bytes", "count", "share"]


class Drift(msgspec.Struct, frozen=True):
    """Something that must not drift.

    Attributes:
        meaning: what it is.
        kind: its unit: bytes, a count, or a share of its own median.
        per_hour, least: what is tolerated when the profile says nothing.
        is_of_processes: there is one series for each process, else one for the whole lab.
        is_bad_falling: it is falling that is bad, not growth.
    """

    meaning: str
    kind: DriftKind
    per_hour: float
    least: float
    is_of_processes: bool = True
    is_bad_falling: bool = False


_MIB: Final = 1 << 20
DRIFTS: Final[Mapping[str, Drift]] = {
    "resident": Drift("resident memory of a process (RSS)", "bytes", 8 * _MIB, 4 * _MIB),
    "proportional": Drift("proportional memory of a process (PSS)", "bytes", 8 * _MIB, 4 * _MIB),
    "shared": Drift("shared memory that a process has mapped", "bytes", 4 * _MIB, 2 * _MIB),
    "descriptors": Drift("open descriptors of a process", "count", 2, 4),
    "threads": Drift("threads of a process", "count", 1, 2),
    "p50": Drift("median latency", "share", 0.2, 0.5, is_of_processes=False),
    "p99": Drift("latency below which 99 of 100 frames lie", "share", 0.5, 1.0, is_of_processes=False),
    "rate": Drift("frames received a second", "share", 0.05, 0.1, is_of_processes=False, is_bad_falling=True),
}
"""What is looked at, by name."""


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """A part of a profile."""


class Tolerance(_Part, frozen=True):
    """How much something may drift: a verdict fails when both are exceeded.

    Attributes:
        per_hour: growth an hour, of which the lower bound of the slope must not exceed it.
        least: growth over the whole run, below which nothing is said.
    """

    per_hour: Amount | None = None
    least: Amount | None = None


class FaultPart(_Part, frozen=True):
    """One kind of fault."""

    weight: Annotated[int, Meta(ge=1, le=100, description="How often in each round of faults.")] = 1
    for_: Annotated[Time, Meta(description="How long on average.")] = msgspec.field(default=_DEFAULT_FOR_S, name="for")
    guests: Annotated[list[str] | None, Meta(description="Whom it may hit; those under load by default.")] = None


class Faults(_Part, frozen=True):
    """What is done, and how often."""

    every: Annotated[Time, Meta(description="Mean time from one fault to the next.")] = "30s"
    recover: Annotated[Time, Meta(description="How long a guest may take to work again.")] = "30s"
    kinds: dict[str, FaultPart | None] = {}


class SoakProfile(_Part, frozen=True, kw_only=True):
    """A checked profile."""

    name: Annotated[str, Meta(pattern=NAME_PATTERN)] = ""
    load: str | dict[str, Any]
    for_: Time = msgspec.field(default="8h", name="for")
    seed: Annotated[int, Meta(ge=0)] = 1
    warm_up: Annotated[Time, Meta(description="Not looked at for drift, and without faults.")] = "30s"
    interval: Time = "1s"
    rest: Annotated[Time, Meta(description="How often the load rests, so that everything can be counted.")] = "30s"
    loss: Annotated[str | float | int, Meta(description="Share that may be lost while there is no fault.")] = 0
    faults: Faults = Faults()
    drift: dict[str, Tolerance | None] = {}


class SoakPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A profile with everything it names, in base units.

    Attributes:
        profile: what the file says.
        load: the load, with the lab.
        total_s, warm_up_s, interval_s, rest_s, recover_s: times.
        seed: of the schedule and of the load.
        loss: share that may be lost while there is no fault.
        tolerances: by name of :data:`DRIFTS`, growth an hour and in all.
        schedule: every fault.
    """

    profile: SoakProfile
    load: LoadPlan
    total_s: float
    warm_up_s: float
    interval_s: float
    rest_s: float
    recover_s: float
    seed: int
    loss: float
    tolerances: dict[str, tuple[float, float]]
    schedule: list[Fault]

    def settings(self) -> dict[str, Any]:
        """What a report says of the profile, and what a run that goes on must have in common with it."""
        said: dict[str, Any] = msgspec.to_builtins(self.profile)
        said["load"] = settings(self.load.profile)
        return {key: value for key, value in said.items() if value not in (None, [], {})}


def load_soak(
    path: Path, environment: Mapping[str, str] | None = None, over: Mapping[str, object] | None = None
) -> SoakPlan:
    """Read and check a profile: a file, or the name of one that comes with vbnet.

    Args:
        path: the file, or one of :data:`SHIPPED`.
        environment: where ``${NAME}`` is looked up; the process environment by default.
        over: keys of the profile to set instead of what the file says; None leaves one as it is.

    Raises:
        TopologyError: every problem of the file, with lines (its author's mistake).
    """
    name = str(path)
    if name in SHIPPED and not path.exists():
        return _checked(parse_source(shipped_text(name), f"{name}.yaml", environment), name, Path.cwd(), over or {})
    return _checked(load_source(path, environment), path.stem, path.resolve().parent, over or {})


def shipped_text(name: str) -> str:
    """Return the text of a profile that comes with vbnet; its first line says what it is."""
    return resources.files("vbnet.load.soak").joinpath("profiles", f"{name}.yaml").read_text()


def parse_soak(text: str, file: str = "soak.yaml", over: Mapping[str, object] | None = None) -> SoakPlan:
    """Like :func:`load_soak`, for text already in memory."""
    return _checked(parse_source(text, file), Path(file).stem, Path(file).resolve().parent, over or {})


def _checked(source: Source, name: str, folder: Path, over: Mapping[str, object]) -> SoakPlan:
    source.data.update({key: value for key, value in over.items() if value is not None})
    reader = _Reader(source, name, folder)
    plan = reader.read()
    if plan is None or reader.found:
        raise TopologyError(source.file, reader.found)
    return plan


class _Reader(PartReader):
    """Turns data into a plan, and checks what a schema cannot say."""

    def __init__(self, source: Source, name: str, folder: Path) -> None:
        super().__init__(source)
        self._name, self._folder = name, folder

    def read(self) -> SoakPlan | None:
        """Return the plan, or None: ``found`` says why."""
        data = {key: value for key, value in self.source.data.items() if not key.startswith("x-")}
        data.setdefault("name", as_name(self._name))
        self.keys((), data, SoakProfile)
        if "load" not in data:
            self.add(
                ("load",), "there is no load", "write `load: latency`, or the keys of a load profile below `load:`"
            )
        self._parts(data)
        profile: SoakProfile | None = None if self.found else self.convert((), data, SoakProfile)
        if profile is None:
            return None
        times = {
            key: self.amount((key,), text, duration_s)
            for key, text in (
                ("for", profile.for_),
                ("warm-up", profile.warm_up),
                ("interval", profile.interval),
                ("rest", profile.rest),
            )
        }
        every_s = self.amount(("faults", "every"), profile.faults.every, duration_s)
        recover_s = self.amount(("faults", "recover"), profile.faults.recover, duration_s)
        loss = self.amount(("loss",), profile.loss, parse_share)
        tolerances = self._tolerances(profile)
        load = self._load(profile)
        kinds = self._kinds(profile, load) if load is not None else []
        if load is None or self.found:
            return None
        read = {key: value for key, value in times.items() if value is not None}
        return SoakPlan(
            profile=profile,
            load=load,
            total_s=read["for"],
            warm_up_s=read["warm-up"],
            interval_s=read["interval"],
            rest_s=read["rest"],
            recover_s=recover_s or 0.0,
            seed=profile.seed,
            loss=loss or 0.0,
            tolerances=tolerances,
            schedule=draw(
                kinds, every_s=every_s or 0.0, first_s=read["warm-up"], total_s=read["for"], seed=profile.seed
            ),
        )

    def _parts(self, data: Mapping[str, Any]) -> None:
        """Convert what is nested piece by piece, so that each mistake has its own line."""
        faults = data.get("faults")
        if isinstance(faults, dict):
            self.keys(("faults",), faults, Faults)
            for name, value in (faults.get("kinds") or {}).items() if isinstance(faults.get("kinds"), dict) else ():
                place: Place = ("faults", "kinds", name)
                if name in REFUSED:
                    self.add(place, f"`{name}` cannot be done: {REFUSED[name]}", "leave it out")
                elif name not in KINDS:
                    self.add(place, f"`{name}` is no kind of fault", _known(name, KINDS))
                elif value is not None:
                    self.part(place, value, FaultPart)
        for name, value in data["drift"].items() if isinstance(data.get("drift"), dict) else ():
            if name not in DRIFTS:
                self.add(("drift", name), f"`{name}` is nothing that drifts", _known(name, DRIFTS))
            elif value is not None:
                self.part(("drift", name), value, Tolerance)

    def _tolerances(self, profile: SoakProfile) -> dict[str, tuple[float, float]]:
        found = {}
        for name, drift in DRIFTS.items():
            said = profile.drift.get(name) or Tolerance()
            read = _READERS[drift.kind]
            amounts = []
            for key, text, default in (
                ("per-hour", said.per_hour, drift.per_hour),
                ("least", said.least, drift.least),
            ):
                amounts.append(default if text is None else self.amount(("drift", name, key), text, read) or 0.0)
            found[name] = (amounts[0], amounts[1])
        return found

    def _load(self, profile: SoakProfile) -> LoadPlan | None:
        place: Place = ("load",)
        if isinstance(profile.load, dict):
            lines = {key[1:]: line for key, line in self.source.lines.items() if key[:1] == ("load",)}
            source = Source(self.source.file, dict(profile.load), lines)
            name, folder = profile.name, self._folder
        else:
            try:
                source, name, folder = profile_source(self._place_of(profile.load))
            except (TopologyError, NotFoundError) as error:
                self.add(place, f"there is no such load profile: {error}", "see `vbnet load list`, or name a file")
                return None
        source.data["seed"] = profile.seed
        plan, found = read_plan(source, name, folder, OWN_LAB)
        if source.file == self.source.file:
            self.found += found
        elif found:
            said = "; ".join(problem.render(source.file) for problem in sorted(found))
            self.add(place, f"the load profile is wrong: {said}", "mend it first; `vbnet load --check` checks it")
        if plan is not None:
            self._soakable(plan)
        return plan

    def _place_of(self, load: str) -> Path:
        beside = self._folder / load
        return beside if beside.exists() else Path(load)

    def _soakable(self, plan: LoadPlan) -> None:
        if plan.profile.find_limit is not None:
            self.add(("load",), "a soak searches for no limit", "leave out `find-limit`")
        if any(sender.flow.replay is not None for sender in plan.senders.values()):
            self.add(("load",), "frames of a capture have no numbers, so nobody could say which of them are missing",
                     "use a rate instead of `replay`")  # fmt: skip

    def _kinds(self, profile: SoakProfile, load: LoadPlan) -> list[Kind]:
        return [
            Kind(name=name, weight=part.weight, targets=targets, for_s=for_s)
            for name, said in profile.faults.kinds.items()
            for part in [said or FaultPart()]
            if (for_s := self._for_s(name, part)) is not None and (targets := self._targets(name, part, load))
        ]

    def _for_s(self, name: str, part: FaultPart) -> float | None:
        seconds = self.amount(("faults", "kinds", name, "for"), part.for_, duration_s)
        return seconds if KINDS[name].lasts else 0.0

    def _targets(self, name: str, part: FaultPart, load: LoadPlan) -> list[str]:
        """Whom a kind of fault may hit; what is wrong with those that the profile names is noted."""
        need = KINDS[name].need
        if need is Need.NO_GUEST:
            return ["signal"]
        lab = make_plan(load.lab)
        fit = {
            guest.name: _why_not(
                need, process.restart, has_nics=any(has_rings(process.kind, nic) for nic in guest.nics)
            )
            for process in lab.processes
            for guest in process.guests
        }
        used = {*load.senders, *load.reflectors, *load.receivers}
        place: Place = ("faults", "kinds", name)
        chosen = part.guests if part.guests is not None else sorted(used)
        for guest in chosen:
            if guest not in fit:
                self.add((*place, "guests"), f"`{guest}` is no guest of the lab", _known(guest, fit))
            elif why_not := fit[guest]:
                self.add(place, f"`{name}` cannot be done to `{guest}`: {why_not[0]}", why_not[1])
        if not chosen:
            self.add((*place, "guests"), "nobody is named", "name a guest, or leave `guests` out")
        return list(chosen)


def _why_not(need: str, restart: str, *, has_nics: bool) -> tuple[str, str] | None:
    if need is Need.RESTARTS_ON_FAILURE and restart == "no":
        return "its lab would not start it again", "give it `restart: on-failure` or `restart: always` in the lab file"
    if need is Need.RESTARTS_ALWAYS and restart != "always":
        return "its lab would not start it again when it ends well", "give it `restart: always` in the lab file"
    if need is Need.RINGS and not has_nics:
        return "it has no interface with rings", "name other guests"
    return None


def _amount(read: Callable[[Any], float]) -> Callable[[Any], float]:
    """Like ``read``, and 0 is allowed."""
    return lambda text: 0.0 if str(text).strip() in {"0", "0.0"} else float(read(text))


def _count(text: str | float) -> float:
    try:
        count = float(text)
    except ValueError:
        count = -1.0
    if not 0 <= count < float("inf"):
        raise ValueError("expected a number such as 2 or 0.5")
    return count


def _growth(text: str | float) -> float:
    """A share that may be more than all."""
    words = str(text).strip()
    return _count(words.removesuffix("%").strip()) / (100 if words.endswith("%") else 1)


_READERS: Final[Mapping[DriftKind, Callable[[Any], float]]] = {
    "bytes": _amount(length_bytes),
    "count": _count,
    "share": _growth,
}


def _known(name: str, known: Mapping[str, object]) -> str:
    return did_you_mean(name, known, otherwise=f"known here: {', '.join(known)}")
