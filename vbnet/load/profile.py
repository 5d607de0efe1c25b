"""A profile of load: who sends what to whom, when, for how long, and what counts as good enough.

.. code-block:: yaml

    name: mixed            # the file's name when left out
    guests: 4              # a lab of its own: so many traffic guests on one switch; or `lab: lab.yaml`
    for: 10s
    flows:
      - {pattern: pairs, size: imix, poisson: 50k}
    thresholds: ["p99 < 100us", "loss <= 0.1%"]

:func:`load_profile` answers either a profile that makes sense as a whole, or one error that lists every problem as
``file:line: what, value; what to do``. Nothing is started here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from vbnet.cluster.parts import NAME_PATTERN, PartReader, dotted
from vbnet.cluster.quantity import duration_s, rate_per_second
from vbnet.cluster.source import Place, Problem, Source, TopologyError, load_source, parse_source
from vbnet.cluster.topology import (
    MTU_MAX,
    MTU_MIN,
    LabFile,
    Restart,
    TrafficGuest,
    guest_names,
    load_topology,
    parse_topology,
)
from vbnet.errors import did_you_mean
from vbnet.load.thresholds import Threshold, parse_share, parse_threshold

__all__ = ["PATTERNS", "SHIPPED", "Ask", "Burst", "FindLimit", "Flow", "OnOff", "Profile", "Ramp", "load_profile",
           "parse_profile"]  # fmt: skip

GUESTS_MAX: Final = 256
"""Streams that one sink tells apart."""

WINDOW_MAX: Final = 4096
SIZE_MIN, SIZE_MAX = 60, 65549
SWITCH: Final = "load"
GUEST: Final = "load"
SHIPPED: Final = ("flood", "imix", "latency", "limit", "many-to-one", "requests")
"""Profiles that come with vbnet, by name."""

PATTERNS: Final[Mapping[str, str]] = {
    "pairs": "the first to the second, the third to the fourth, ...",
    "ring": "each to the next, the last to the first",
    "many-to-one": "all others to the first",
    "one-to-many": "the first to all others in turn",
    "all-to-all": "each to all others in turn",
}

Pattern = Literal["pairs", "ring", "many-to-one", "one-to-many", "all-to-all"]
Rate = Annotated[str | int, Meta(description="Frames a second of each sender, such as 10k or 1.5M.")]
Time = Annotated[str | int | float, Meta(description="A time, such as 30s, 200ms or 5m.")]
_SCHEDULES: Final = ("rate", "poisson", "ramp", "burst", "on_off", "replay", "ask")


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """A part of a profile."""


class Ramp(_Part, frozen=True):
    """A rate that goes from one to another in a straight line and stays there."""

    from_: Rate = msgspec.field(name="from")
    to: Rate
    over: Time


class Burst(_Part, frozen=True):
    """Many frames at once, every so often."""

    frames: Annotated[int, Meta(ge=1, le=1 << 20)]
    every: Time


class OnOff(_Part, frozen=True):
    """An even rate for a while, nothing for a while, and so on."""

    rate: Rate
    on: Time
    off: Time


class Replay(_Part, frozen=True):
    """Frames of a capture with their own gaps, over and over, between the addresses of this profile."""

    file: Annotated[str, Meta(min_length=1, description="A pcap or pcapng file (from the profile's folder).")]
    speed: Annotated[float, Meta(gt=0, le=1e6, description="2 halves every gap.")] = 1.0


class Ask(_Part, frozen=True):
    """A closed loop: so many requests under way, the next when one has come back."""

    window: Annotated[int, Meta(ge=1, le=WINDOW_MAX)] = 1
    timeout: Time = "1s"


class Flow(_Part, frozen=True):
    """One kind of traffic: who sends it to whom, what, and when.

    Without any of ``rate``, ``poisson``, ``ramp``, ``burst``, ``on-off``, ``replay`` and ``ask``, frames are sent as
    fast as there is room for.
    """

    pattern: Pattern | None = None
    from_: Annotated[str | list[str], Meta(description="Guests that send.")] | None = msgspec.field(
        default=None, name="from"
    )
    to: Annotated[str | list[str] | None, Meta(description="Guests that receive, each sender's in turn.")] = None
    size: Annotated[int, Meta(ge=SIZE_MIN, le=SIZE_MAX)] | list[int] | Literal["imix"] = 64
    rate: Rate | None = None
    poisson: Rate | None = None
    ramp: Ramp | None = None
    burst: Burst | None = None
    on_off: OnOff | None = None
    replay: Replay | None = None
    ask: Ask | None = None
    reply: Annotated[bool, Meta(description="Receivers send each frame back; latency is the round trip.")] = False

    @property
    def has_replies(self) -> bool:
        """Whether receivers send back instead of counting."""
        return self.reply or self.ask is not None


class FindLimit(_Part, frozen=True):
    """A search for the highest rate at which no more than a share is lost, and every threshold holds."""

    loss: Annotated[str | float | int, Meta(description="Share that may be lost, such as 0.1%.")] = 0
    from_: Rate = msgspec.field(default="10k", name="from")
    to: Rate = "10M"
    for_: Time = msgspec.field(default="2s", name="for")
    precision: Annotated[str | float | int, Meta(description="Where the search ends, such as 2%.")] = "2%"


class Profile(_Part, frozen=True):
    """A checked profile, and the lab it is for."""

    name: Annotated[str, Meta(pattern=NAME_PATTERN)] = ""
    lab: Annotated[str | None, Meta(description="A lab file (from the profile's folder).")] = None
    guests: Annotated[int, Meta(ge=2, le=GUESTS_MAX)] | None = None
    mtu: Annotated[int, Meta(ge=MTU_MIN, le=MTU_MAX)] = 1500
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    seed: Annotated[int, Meta(ge=0)] = 1
    for_: Time = msgspec.field(default="10s", name="for")
    warm_up: Time = "1s"
    interval: Time = "1s"
    flows: list[Flow] = []
    thresholds: list[str] = []
    find_limit: FindLimit | None = None


class LoadPlan(msgspec.Struct, frozen=True):
    """A profile with everything it names.

    Attributes:
        profile: what the file says.
        lab: the lab that it runs in.
        senders: of each sending guest its flow and those it sends to.
        thresholds: what must hold.
        folder: from where the profile's paths count.
    """

    profile: Profile
    lab: LabFile
    senders: dict[str, Sender]
    thresholds: tuple[Threshold, ...]
    folder: Path

    @property
    def reflectors(self) -> set[str]:
        """Guests that send back what they get."""
        return {name for sender in self.senders.values() if sender.flow.has_replies for name in sender.to}

    @property
    def receivers(self) -> set[str]:
        """Guests that count what arrives: of a flow with replies those that asked."""
        return {
            name
            for guest, sender in self.senders.items()
            for name in ([guest] if sender.flow.has_replies else sender.to)
        }


class Sender(msgspec.Struct, frozen=True):
    """One guest that sends."""

    flow: Flow
    to: tuple[str, ...]


class OwnLab(msgspec.Struct, frozen=True):
    """How the lab is made that a profile does not name.

    Attributes:
        prefix: how its name begins.
        restart: what becomes of a guest that ends.
    """

    prefix: str = "load"
    restart: Restart = "no"


def load_profile(
    path: Path, environment: Mapping[str, str] | None = None, over: Mapping[str, object] | None = None
) -> LoadPlan:
    """Read and check a profile: a file, or the name of one that comes with vbnet.

    Args:
        path: the file, or one of :data:`SHIPPED`.
        environment: where ``${NAME}`` is looked up; the process environment by default.
        over: keys of the profile to set instead of what the file says; None leaves one as it is.

    Raises:
        TopologyError: every problem of the file, with lines (its author's mistake).
    """
    source, name, folder = profile_source(path, environment)
    return _checked(source, name, folder, over or {})


def shipped_text(name: str) -> str:
    """Return the text of a profile that comes with vbnet; its first line says what it is."""
    return resources.files("vbnet.load").joinpath("profiles", f"{name}.yaml").read_text()


def parse_profile(text: str, file: str = "profile.yaml", environment: Mapping[str, str] | None = None) -> LoadPlan:
    """Like :func:`load_profile`, for text already in memory."""
    return _checked(parse_source(text, file, environment), Path(file).stem, Path(file).resolve().parent, {})


def _checked(source: Source, name: str, folder: Path, over: Mapping[str, object]) -> LoadPlan:
    source.data.update({key: value for key, value in over.items() if value is not None})
    plan, found = read_plan(source, name, folder)
    if plan is None:
        raise TopologyError(source.file, found)
    return plan


def read_plan(
    source: Source, name: str, folder: Path, own: OwnLab | None = None
) -> tuple[LoadPlan | None, list[Problem]]:
    """Return the plan of a profile that is data already, or None and every problem.

    Args:
        source: the data with its lines.
        name: of the profile, if it does not say one.
        folder: from where its paths count.
        own: how its lab is made when it names none.
    """
    reader = _Reader(source, name, folder, own or OwnLab())
    plan = reader.read()
    return (None if reader.found else plan), reader.found


def profile_source(path: Path, environment: Mapping[str, str] | None = None) -> tuple[Source, str, Path]:
    """Return a load profile's data, its name, and the folder its paths count from: a file, or one of :data:`SHIPPED`.

    Raises:
        TopologyError: it is no YAML. NotFoundError: there is no such file.
    """
    name = str(path)
    if name in SHIPPED and not path.exists():
        return parse_source(shipped_text(name), f"{name}.yaml", environment), name, Path.cwd()
    return load_source(path, environment), path.stem, path.resolve().parent


class _Reader(PartReader):
    """Turns data into a profile, and checks what a schema cannot say."""

    def __init__(self, source: Source, name: str, folder: Path, own: OwnLab) -> None:
        super().__init__(source)
        self._name = name
        self._folder = folder
        self._own = own

    def read(self) -> LoadPlan | None:
        """Return the plan, or None: ``found`` says why."""
        data = {key: value for key, value in self.source.data.items() if not key.startswith("x-")}
        self.keys((), data, Profile)
        data.setdefault("name", as_name(self._name))
        flows = data.get("flows")
        if not isinstance(flows, list) or not flows:
            self.add(("flows",), "there are no flows", "write `flows:` and below it `- {pattern: pairs, rate: 10k}`")
        else:
            for index, value in enumerate(flows):
                self._flow(("flows", index), value)
        if data.get("find-limit") is not None:
            self.part(("find-limit",), data["find-limit"], FindLimit)
        profile: Profile | None = None if self.found else self.convert((), data, Profile)
        if profile is None:
            return None
        self._amounts(profile)
        thresholds = self._thresholds(profile)
        lab = self._lab(profile)
        if lab is None or self.found:
            return None
        senders = self._senders(profile, lab)
        return LoadPlan(profile, lab, senders, thresholds, self._folder)

    def _flow(self, place: Place, value: object) -> None:
        if not isinstance(value, dict):
            self.part(place, value, Flow)
            return
        before = len(self.found)
        for key, part in (("ramp", Ramp), ("burst", Burst), ("on-off", OnOff), ("replay", Replay), ("ask", Ask)):
            if value.get(key) is not None:
                self.part((*place, key), value[key], part)
        if len(self.found) == before:
            self.part(place, value, Flow)

    def _amounts(self, profile: Profile) -> None:
        for key, text in (("for", profile.for_), ("warm-up", profile.warm_up), ("interval", profile.interval)):
            self.amount((key,), text, duration_s)
        for index, flow in enumerate(profile.flows):
            self._flow_amounts(("flows", index), flow)
        limit = profile.find_limit
        if limit is None:
            return
        self.amount(("find-limit", "loss"), limit.loss, parse_share)
        share = self.amount(("find-limit", "precision"), limit.precision, parse_share)
        if share is not None and not share > 0:
            self.add(("find-limit", "precision"), "a precision of 0 is never reached", "write 2% or so")
        self.amount(("find-limit", "for"), limit.for_, duration_s)
        first = self.amount(("find-limit", "from"), limit.from_, _rate)
        last = self.amount(("find-limit", "to"), limit.to, _rate)
        if first is not None and last is not None and first >= last:
            self.add(("find-limit", "to"), f"`to` is {limit.to}, not above `from`", "give the higher rate to `to`")
        for index, flow in enumerate(profile.flows):
            if flow.rate is None and flow.poisson is None:
                self.add(
                    ("flows", index), "a limit is searched for in rates, this flow has none", "add `rate` or `poisson`"
                )

    def _flow_amounts(self, place: Place, flow: Flow) -> None:
        said = [name for name in _SCHEDULES if getattr(flow, name) is not None]
        if len(said) > 1:
            names = " and ".join(f"`{name.replace('_', '-')}`" for name in said)
            self.add(place, f"{dotted(place)} has {names}", "keep one: it says when frames are sent")
        for keys, text, read in _amounts(flow):
            if text is not None:
                self.amount((*place, *keys), text, read)
        if flow.replay is not None and flow.reply:
            self.add((*place, "reply"), "replayed frames are not sent back", "remove `reply`")
        if isinstance(flow.size, list):
            for index, size in enumerate(flow.size):
                if not SIZE_MIN <= size <= SIZE_MAX:
                    self.add((*place, "size", index), f"`size` is {size}", f"a frame is {SIZE_MIN} to {SIZE_MAX} bytes")
            if not flow.size:
                self.add((*place, "size"), "`size` is an empty list", "give a size, a list of sizes, or imix")

    def _thresholds(self, profile: Profile) -> tuple[Threshold, ...]:
        found = []
        for index, text in enumerate(profile.thresholds):
            try:
                found.append(parse_threshold(text))
            except ValueError as error:
                self.add(("thresholds", index), f"`{text}` is no threshold", str(error))
        return tuple(found)

    def _lab(self, profile: Profile) -> LabFile | None:
        if profile.lab is not None:
            if profile.guests is not None:
                self.add(("guests",), "`guests` makes a lab, `lab` names one", "keep one of them")
                return None
            try:
                return load_topology(self._folder / profile.lab)
            except TopologyError as error:
                self.add(("lab",), f"the lab file is wrong: {error}", "mend it first; `vbnet validate` checks it")
                return None
        text = (
            f"name: {self._own.prefix}-{profile.name}"[:37]
            + f"\nhost: {{workers: {profile.workers}}}\nswitches: {{{SWITCH}: {{}}}}\n"
            f"guests: {{{GUEST}: {{kind: traffic, count: {profile.guests or 2}, restart: {self._own.restart}, "
            f"nics: [{{switch: {SWITCH}, mtu: {profile.mtu}}}]}}}}\n"
        )
        return parse_topology(text, self.source.file)

    def _senders(self, profile: Profile, lab: LabFile) -> dict[str, Sender]:
        known = [
            name
            for entry, guest in lab.topology.guests.items()
            if isinstance(guest, TrafficGuest) and guest.send is None
            for name in guest_names(entry, guest)
        ]
        senders: dict[str, Sender] = {}
        for index, flow in enumerate(profile.flows):
            for name, to in self._routes(("flows", index), flow, known).items():
                if name in senders:
                    self.add(("flows", index), f"`{name}` sends in two flows", "give each flow senders of its own")
                senders[name] = Sender(flow, to)
        for index, flow in enumerate(profile.flows):
            if flow.has_replies:
                self._replies(("flows", index), flow, senders)
        return senders

    def _replies(self, place: Place, flow: Flow, senders: Mapping[str, Sender]) -> None:
        of_flow = [sender for sender in senders.values() if sender.flow is flow]
        both = sorted({name for sender in of_flow for name in sender.to} & set(senders))
        if both:
            self.add(
                place,
                f"`{both[0]}` would send and reply",
                "one that replies does nothing else: use `pairs` or `many-to-one`, or other guests",
            )
        if flow.ask is not None and any(len(sender.to) > 1 for sender in of_flow):
            self.add(place, "a closed loop asks one receiver", "use `pairs` or `many-to-one`")

    def _routes(self, place: Place, flow: Flow, known: list[str]) -> dict[str, tuple[str, ...]]:
        """Whom each sender of a flow sends to."""
        if (flow.pattern is None) == (flow.from_ is None):
            self.add(place, f"{dotted(place)} does not say who sends", "give `pattern`, or `from` and `to`")
            return {}
        if flow.pattern is None:
            return self._named_routes(place, flow, known)
        if flow.to is not None:
            self.add((*place, "to"), "`to` goes with `from`; a pattern says both", "remove one")
        if len(known) < 2:  # noqa: PLR2004 - a sender and a receiver
            self.add(place, f"the lab has {len(known)} traffic guests without `send`", "it needs two at least")
            return {}
        return pattern_routes(flow.pattern, known)

    def _named_routes(self, place: Place, flow: Flow, known: list[str]) -> dict[str, tuple[str, ...]]:
        senders, receivers = _names(flow.from_ or []), _names(flow.to or [])
        if not receivers:
            self.add(place, f"{dotted(place)} does not say who receives", "add `to`")
        for key, names in (("from", senders), ("to", receivers)):
            for name in names:
                if name not in known:
                    fix = did_you_mean(name, known, otherwise="name a traffic guest of the lab without `send`")
                    self.add((*place, key), f"`{name}` is no guest that this profile can use", fix)
        routes = {name: tuple(to for to in receivers if to != name) for name in senders}
        for name, to in routes.items():
            if receivers and not to:
                self.add((*place, "to"), f"`{name}` would send to itself only", "name another guest")
        return routes


def pattern_routes(pattern: Pattern, guests: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return whom each sender of a pattern sends to, of two guests or more in their order."""
    first, others = guests[0], tuple(guests[1:])
    match pattern:
        case "pairs":
            return {name: (to,) for name, to in zip(guests[::2], guests[1::2], strict=False)}
        case "ring":
            return {name: (to,) for name, to in zip(guests, (*others, first), strict=True)}
        case "many-to-one":
            return dict.fromkeys(others, (first,))
        case "one-to-many":
            return {first: others}
        case "all-to-all":
            return {name: tuple(to for to in guests if to != name) for name in guests}


def _amounts(flow: Flow) -> Iterator[tuple[tuple[str, ...], Any, Callable[[Any], float]]]:
    """Yield every amount of a flow: its keys, what they say, and how that is read."""
    yield ("rate",), flow.rate, _rate
    yield ("poisson",), flow.poisson, _rate
    if flow.ramp is not None:
        yield ("ramp", "from"), flow.ramp.from_, _rate
        yield ("ramp", "to"), flow.ramp.to, _rate
        yield ("ramp", "over"), flow.ramp.over, duration_s
    if flow.burst is not None:
        yield ("burst", "every"), flow.burst.every, duration_s
    if flow.on_off is not None:
        yield ("on-off", "rate"), flow.on_off.rate, _rate
        yield ("on-off", "on"), flow.on_off.on, duration_s
        yield ("on-off", "off"), flow.on_off.off, duration_s
    if flow.ask is not None:
        yield ("ask", "timeout"), flow.ask.timeout, duration_s


def _rate(text: str | int) -> float:
    rate = rate_per_second(text)
    if not 1 <= rate <= 1e9:  # noqa: PLR2004 -- what a generator can be asked for
        raise ValueError("expected 1 to 1000M frames a second")
    return rate


def _names(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def as_name(text: str) -> str:
    cleaned = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in text.lower()).strip("-")
    return cleaned[:26] if cleaned[:1].isalpha() else f"p-{cleaned}"[:26].rstrip("-")


def settings(profile: Profile) -> dict[str, Any]:
    """What a report says of a profile: every key that is not left out."""
    said: dict[str, Any] = msgspec.to_builtins(profile)
    return {key: value for key, value in said.items() if value not in (None, [], {})}
