"""The topology of a lab or a host node as a graph: from a lab file that is not running, or from what a node says.

    Facts (switches, guests, devices, …)  ── make_graph() ──>  Graph (nodes, edges)  ── draw.py ──>  DOT, Mermaid, SVG

Pure: whoever asks a host node or reads a lab file fills in the facts. A network card is no node but the edge between
its guest and its switch; a bus is a node only where it has not exactly one guest. Guests that differ in nothing but the
number at the end of their name, such as those packed into one process, are one node when there are many.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vbnet.cluster.plan import Plan

__all__ = [
    "Card",
    "Device",
    "Edge",
    "Facts",
    "Graph",
    "Guest",
    "Node",
    "Rates",
    "Signal",
    "facts_of_plan",
    "make_graph",
]

MANY = 16
"""So many guests that differ in their number only are drawn as one."""

_NUMBER = re.compile(r"[-.]?[0-9]+\Z")
_SI = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, slots=True)
class Rates:
    """What passes a port, both ways together: frames and bytes a second."""

    packets: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Rates) -> Rates:
        return Rates(self.packets + other.packets, self.bytes + other.bytes)

    def text(self) -> str:
        """The rates, short."""
        return f"{_short(self.packets)}pkt/s {_short(self.bytes)}B/s"


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest: the bus it is on, what kind it is, and how it is."""

    name: str
    bus: str
    kind: str = ""
    state: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """What joins a bus, or this machine itself, to a switch.

    Attributes:
        name: of the device or, for an uplink, of the TAP.
        bus: whose card it is; None: an uplink.
        faults: rules for which queues of it were quarantined, each with its direction.
    """

    name: str
    switch: str
    bus: str | None
    address: str = ""
    is_up: bool = True
    faults: tuple[str, ...] = ()
    rates: Rates | None = None

    @property
    def state(self) -> str:
        """``fault``, ``down`` or ``ok``."""
        return "fault" if self.faults else "ok" if self.is_up else "down"


@dataclass(frozen=True, slots=True)
class Device:
    """A device that is no card, and the buses it is on."""

    name: str
    type: str
    buses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal that leads to a guest: who may raise it, a device or guests or operators."""

    name: str
    to: str
    priority: int
    device: str = ""
    raisers: tuple[str, ...] = ()
    is_blocked: bool = False


@dataclass(slots=True)
class Facts:
    """What there is."""

    name: str
    switches: list[str] = field(default_factory=list)
    buses: list[str] = field(default_factory=list)
    guests: list[Guest] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Node:
    """Something drawn as a box.

    Attributes:
        id: unique, ``kind:name``.
        kind: uplink, switch, bus, guest, device or operator.
        lines: more about it, each a line below its label.
        state: ok, down or fault, as it is coloured.
    """

    id: str
    kind: str
    label: str
    lines: tuple[str, ...] = ()
    state: str = "ok"


@dataclass(frozen=True, slots=True)
class Edge:
    """A line between two nodes. ``kind``: link, plug, member or signal; only a signal has a direction."""

    source: str
    target: str
    kind: str
    lines: tuple[str, ...] = ()
    state: str = "ok"
    rates: Rates | None = None

    @property
    def label(self) -> tuple[str, ...]:
        """Everything that is written beside it, a line each."""
        return (*self.lines, *((self.rates.text(),) if self.rates is not None else ()))


@dataclass(frozen=True, slots=True)
class Graph:
    """What is drawn."""

    name: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


def facts_of_plan(plan: Plan) -> Facts:
    """Return what a lab would have, were it up."""
    from vbnet.cluster.topology import nic_classes  # noqa: PLC0415 -- whoever has a plan has loaded it already

    facts = Facts(plan.lab)
    addresses = {nic.device: nic.ip or "" for guest in plan.guests for nic in guest.nics}
    devices: dict[str, Device] = {}
    cards: dict[str, Card] = {}
    for request in plan.requests:
        name, args = request.args["name"], request.args
        match request.verb:
            case "switch.create":
                facts.switches.append(name)
            case "bus.create":
                facts.buses.append(name)
            case "device.create" if args["type"] in nic_classes():
                cards[name] = Card(name, args["attributes"]["switch"], "", addresses.get(name, ""))
            case "port.listen":
                cards[name] = Card(name, args["switch"], None)
            case "device.create":
                devices[name] = Device(name, args["type"])
            case "device.plug" if name in cards:
                cards[name] = replace(cards[name], bus=args["bus"])
            case "device.plug":
                devices[name] = replace(devices[name], buses=(*devices[name].buses, args["bus"]))
            case _:
                pass
    facts.guests = [
        Guest(guest.name, guest.bus, process.kind) for process in plan.processes for guest in process.guests
    ]
    facts.devices = list(devices.values())
    facts.cards = [*cards.values(), *(Card(up.tap, up.switch, None, up.ip or "") for up in plan.uplinks)]
    return facts


def make_graph(facts: Facts, *, show_all: bool = False) -> Graph:
    """Return the graph of some facts.

    Args:
        facts: what there is.
        show_all: each guest a node of its own, however many there are.
    """
    groups = _groups(facts, show_all=show_all)
    drawing = _Drawing(facts, groups)
    return Graph(facts.name, tuple(drawing.nodes()), tuple(_merged(drawing.edges())))


class _Drawing:
    """Which node stands for what."""

    def __init__(self, facts: Facts, groups: Mapping[str, str]) -> None:
        self._facts, self._groups = facts, groups
        self._members: dict[str, list[Guest]] = {}
        for guest in facts.guests:
            self._members.setdefault(guest.bus, []).append(guest)

    def nodes(self) -> Iterator[Node]:
        facts = self._facts
        yield from (
            Node(f"uplink:{card.name}", "uplink", card.name, _some(card.address), card.state)
            for card in facts.cards
            if card.bus is None
        )
        yield from (Node(f"switch:{name}", "switch", name) for name in facts.switches)
        yield from (Node(f"bus:{name}", "bus", name, ("bus",)) for name in facts.buses if self._is_shared(name))
        together: dict[str, list[Guest]] = {}
        for guest in facts.guests:
            together.setdefault(self._groups[guest.name], []).append(guest)
        yield from (_guest_node(name, guests) for name, guests in together.items())
        yield from (Node(f"device:{device.name}", "device", device.name, (device.type,)) for device in facts.devices)
        if any(not signal.raisers and not signal.device for signal in facts.signals):
            yield Node("operator:", "operator", "operators")

    def edges(self) -> Iterator[Edge]:
        facts = self._facts
        for card in facts.cards:
            near = f"uplink:{card.name}" if card.bus is None else self._place(card.bus)
            if near and card.switch in facts.switches:
                label = card.name.rpartition(".")[2] if card.bus is not None else ""
                about = f"{label} {card.address if card.bus is not None else ''}".strip()
                how = {"ok": "", "down": "down", "fault": "quarantined"}[card.state]
                lines = (*_some(about), *_some(how), *card.faults)
                yield Edge(f"switch:{card.switch}", near, "link", lines, card.state, card.rates)
        for guest in facts.guests:
            if self._is_shared(guest.bus):
                yield Edge(f"bus:{guest.bus}", self._guest(guest.name), "member")
        for device in facts.devices:
            yield from (
                Edge(place, f"device:{device.name}", "plug") for place in map(self._place, device.buses) if place
            )
        for signal in facts.signals:
            yield from self._signal_edges(signal)

    def _signal_edges(self, signal: Signal) -> Iterator[Edge]:
        if signal.to not in self._groups:
            return
        devices = {device.name for device in self._facts.devices}
        raisers = [self._guest(name) for name in signal.raisers if name in self._groups]
        if signal.device in devices:
            raisers.append(f"device:{signal.device}")
        elif not signal.raisers and not signal.device:
            raisers.append("operator:")
        state = "fault" if signal.is_blocked else "ok"
        for raiser in raisers:
            yield Edge(raiser, self._guest(signal.to), "signal", (f"{signal.name} p{signal.priority}",), state)

    def _guest(self, name: str) -> str:
        return f"guest:{self._groups[name]}"

    def _is_shared(self, bus: str) -> bool:
        return bus in self._facts.buses and len(self._members.get(bus, ())) != 1

    def _place(self, bus: str) -> str:
        """The node that a bus is drawn as: its only guest, or itself; "" for a bus that is not there."""
        if self._is_shared(bus):
            return f"bus:{bus}"
        members = self._members.get(bus)
        return self._guest(members[0].name) if members else ""


def _groups(facts: Facts, *, show_all: bool) -> dict[str, str]:
    """Which node each guest is in, by name: its own, or ``stem-…`` with many that are like it."""
    if show_all:
        return {guest.name: guest.name for guest in facts.guests}
    alone = Counter(guest.bus for guest in facts.guests)
    joined: dict[str, set[str]] = {}
    for card in facts.cards:
        if card.bus is not None:
            joined.setdefault(card.bus, set()).add(card.switch)
    alike: dict[tuple[str, str, str, frozenset[str]], list[str]] = {}
    for guest in facts.guests:
        stem = _NUMBER.sub("", guest.name)
        bus = guest.bus if alone[guest.bus] > 1 else ""
        key = stem, guest.kind, bus, frozenset(joined.get(guest.bus, ()))
        alike.setdefault(key, []).append(guest.name)
    found: dict[str, str] = {}
    for (stem, *_), names in alike.items():
        label = f"{stem}-…" if len(names) >= MANY else None
        while label is not None and label in found.values():  # alike in name, not in where they are
            label = f"{label}…"
        found |= {name: label or name for name in names}
    return {guest.name: found[guest.name] for guest in facts.guests}


def _guest_node(name: str, guests: list[Guest]) -> Node:
    states = Counter(guest.state for guest in guests if guest.state)
    bad = any(state in {"stuck", "wedged", "failed", "given-up", "dead"} for state in states)
    kind = guests[0].kind
    if len(guests) == 1:
        return Node(f"guest:{name}", "guest", name, (*_some(kind), *_some(guests[0].state)), "fault" if bad else "ok")
    counted = ", ".join(f"{count} {state}" for state, count in states.most_common())
    return Node(
        f"guest:{name}",
        "guest",
        f"{name} ×{len(guests)}",  # noqa: RUF001 -- times
        (*_some(kind), *_some(counted)),
        "fault" if bad else "ok",
    )


def _merged(edges: Iterable[Edge]) -> Iterator[Edge]:
    """Many edges between the same two nodes become one, which says how many and how many of them are not well."""
    together: dict[tuple[str, str, str], list[Edge]] = {}
    for edge in edges:
        together.setdefault((edge.source, edge.target, edge.kind), []).append(edge)
    for (source, target, kind), same in together.items():
        if len(same) < MANY:
            yield from same
            continue
        states = Counter(edge.state for edge in same)
        bad = [
            f"{states[state]} {word}" for state, word in (("down", "down"), ("fault", "quarantined")) if states[state]
        ]
        worst = "fault" if states["fault"] else "down" if states["down"] == len(same) else "ok"
        rates = [edge.rates for edge in same if edge.rates is not None]
        total = sum(rates, Rates()) if rates else None
        yield Edge(source, target, kind, (f"{len(same)} {kind}s", *bad), worst, total)


def _some(text: str) -> tuple[str, ...]:
    return (text,) if text else ()


def _short(value: float) -> str:
    """A number with three digits and what it is multiplied by."""
    for factor, letter in _SI:
        if value >= factor:
            return f"{value / factor:.3g} {letter}"
    return f"{value:.3g} "
