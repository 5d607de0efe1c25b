"""The tables that one can choose from: guests, devices, ports, queues, signals, timers, workers and so on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from vbnet.telemetry.watch.look import Block, printable
from vbnet.telemetry.watch.reading import (
    DROPS,
    LINE,
    Reading,
    Sum,
    Traffic,
    counted,
    guest_state,
    host_note,
    marked,
    traffic_by,
    whose_block,
)
from vbnet.telemetry.watch.table import Column, Mark, Row, Sheet, Show, Step, Value
from vbnet.units import SECOND_NS

__all__ = ["TABS"]

_SIGNALS: Final = "spared: raises that needed no wake-up; priority 7 is most urgent"
_WORKERS: Final = "busy rounds moved frames, idle ones only looked; active ports are polled"
_SWITCHES: Final = "taken from guests, given to guests; a flooded frame goes to every port"


def _guests(read: Reading) -> Sheet:
    traffic = traffic_by(read, "guest")
    raises: dict[str, Sum] = {}
    for signal in read.blocks("signal"):
        raises.setdefault(signal.labels.get("guest", ""), Sum()).add(read.rate(signal, "raises"))
    nothing = Traffic()
    rows = []
    for guest in read.blocks("guest"):
        name, state = guest.labels.get("guest", ""), guest_state(read, guest)
        moved = traffic.get(name, nothing)
        breaks = read.total(guest, "faults")
        mark = Mark.bad if state in {"wedged", "stuck"} or breaks else moved.mark
        cells = (
            name, state, moved.received.value, moved.transmitted.value, moved.bytes.value, moved.drops.value,
            raises[name].value if name in raises else None, read.rate(guest, "requests"), moved.ports, moved.lost,
            breaks, read.total(guest, "memory"), read.total(guest, "reconnects"), None,
        )  # fmt: skip
        rows.append(Row((name,), cells, mark, guest.key, Step("guest", (name,))))
    columns = (
        Column("guest", "GUEST", Show.text),
        Column("state", "STATE", Show.text),
        Column("receive_packets_per_second", "RX/S"),
        Column("transmit_packets_per_second", "TX/S"),
        Column("bytes_per_second", "BYTES/S", Show.bytes, 2),
        Column("drops_per_second", "DROPS/S", Show.rate, 1),
        Column("raises_per_second", "SIGNAL/S", Show.rate, 3),
        Column("requests_per_second", "REQ/S", Show.rate, 8),
        Column("ports", "PORTS", Show.number, 9),
        Column("drops", "DROPS", Show.number, 7),
        Column("rule_breaks", "BREAKS", Show.number, 6),
        Column("memory_bytes", "MEMORY", Show.bytes, 8),
        Column("reconnects", "AGAIN", Show.number, 10),
        LINE,
    )
    note = host_note(read)
    return Sheet(columns, tuple(rows), "receive_packets_per_second", note)


def _devices(read: Reading) -> Sheet:
    """Every device, whoever has it: also those that no guest's row leads to, as a scheduler coordinator."""
    types = {block.labels.get("device", ""): block for block in read.blocks("device")}
    kinds: dict[str, Counter[str]] = {}
    for part in read.pair.now.layout.blocks:
        if (name := part.labels.get("device")) and part.kind != "device":
            kinds.setdefault(name, Counter())[part.kind] += 1
    traffic = traffic_by(read, "device")
    nothing = Traffic()
    rows = []
    for name in dict.fromkeys((*types, *kinds)):
        block, moved = types.get(name), traffic.get(name, nothing)
        cells = (
            name, block.labels.get("type", "") if block else "", counted(kinds.get(name, {})),
            read.total(block, "openers") if block else None, read.rate(block, "calls") if block else None,
            moved.received.value, moved.transmitted.value, moved.drops.value, moved.lost, moved.faults,
        )  # fmt: skip
        rows.append(Row((name,), cells, moved.mark, None, Step("device", (name,))))
    columns = (
        Column("device", "DEVICE", Show.text),
        Column("type", "TYPE", Show.text),
        Column("has", "HAS", Show.text, 3),
        Column("openers", "OPENERS", Show.number, 1),
        Column("calls_per_second", "CALLS/S", Show.rate, 2),
        Column("receive_packets_per_second", "RX/S"),
        Column("transmit_packets_per_second", "TX/S"),
        Column("drops_per_second", "DROPS/S"),
        Column("drops", "DROPS", Show.number, 4),
        Column("faults", "FAULTS", Show.number, 5),
    )
    return Sheet(columns, tuple(rows), "device", "of every kind; calls are those over the bus")


def _port_step(port: Block) -> Step:
    return Step("device", (port.labels.get("guest", ""), port.labels.get("device", "")))


def _ports(read: Reading) -> Sheet:
    rows = []
    for port in read.blocks("port"):
        guest, device, switch = (port.labels.get(name, "") for name in ("guest", "device", "switch"))
        drops, faults = read.rate(port, *DROPS), read.total(port, "fault_*")
        cells = (
            device, guest, read.rate(port, "receive_frames"), read.rate(port, "transmit_frames"),
            read.rate(port, "receive_bytes"), read.rate(port, "transmit_bytes"), drops, read.total(port, *DROPS),
            _fill(read, port, "transmit"), _fill(read, port, "receive"), faults,
            read.rate(port, "kicks"), read.rate(port, "calls_rung"), switch, None,
        )  # fmt: skip
        rows.append(Row((guest, device), cells, marked(faults, drops), port.key, _port_step(port)))
    columns = (
        Column("device", "DEVICE", Show.text),
        Column("guest", "GUEST", Show.text, 3),
        Column("receive_packets_per_second", "RX/S"),
        Column("transmit_packets_per_second", "TX/S"),
        Column("receive_bytes_per_second", "RX B/S", Show.bytes, 4),
        Column("transmit_bytes_per_second", "TX B/S", Show.bytes, 4),
        Column("drops_per_second", "DROPS/S"),
        Column("drops", "DROPS", Show.number, 1),
        Column("transmit_waiting", "TX RING", Show.share, 2),
        Column("receive_posted", "RX RING", Show.share, 2),
        Column("faults", "FAULTS", Show.number, 6),
        Column("kicks_per_second", "KICKS/S", Show.rate, 7),
        Column("signals_sent_per_second", "RUNG/S", Show.rate, 7),
        Column("switch", "SWITCH", Show.text, 8),
        LINE,
    )
    return Sheet(columns, tuple(rows), "receive_packets_per_second", "rings: frames waiting (TX), buffers posted (RX)")


def _fill(read: Reading, port: Block, queue: str) -> float | None:
    slots = read.total(port, f"{queue}_slots")
    return min(1.0, read.total(port, f"{queue}_slots_used") / slots) if slots else None


def _queues(read: Reading) -> Sheet:
    rows = []
    for port in read.blocks("port"):
        guest, device = port.labels.get("guest", ""), port.labels.get("device", "")
        faults = read.total(port, "fault_*")
        for queue, holds in (("transmit", "frames"), ("receive", "buffers")):
            if not read.total(port, f"{queue}_slots"):
                continue
            drops = read.rate(port, f"{queue}_drop_*")
            cells = (
                device, queue, read.total(port, f"{queue}_slots_used"), read.total(port, f"{queue}_slots"),
                _fill(read, port, queue), holds, read.rate(port, f"{queue}_frames"), drops,
                read.total(port, f"{queue}_drop_*"), guest,
            )  # fmt: skip
            rows.append(Row((guest, device, queue), cells, marked(faults, drops), None, _port_step(port)))
    columns = (
        Column("device", "DEVICE", Show.text),
        Column("queue", "QUEUE", Show.text),
        Column("used_slots", "USED", Show.number),
        Column("slots", "SLOTS", Show.number, 1),
        Column("fill", "FILL", Show.share),
        Column("holds", "HOLDS", Show.text, 3),
        Column("packets_per_second", "PACKETS/S"),
        Column("drops_per_second", "DROPS/S"),
        Column("drops", "DROPS", Show.number, 2),
        Column("guest", "GUEST", Show.text, 4),
    )
    return Sheet(columns, tuple(rows), "packets_per_second", "a receive queue without buffers drops what comes")


def _signals(read: Reading) -> Sheet:
    rows = []
    for signal in read.blocks("signal"):
        guest, device, name = (signal.labels.get(label, "") for label in ("guest", "device", "signal"))
        drops = read.total(signal, "blocked")
        cells = (
            name, guest, device, read.total(signal, "priority"), read.rate(signal, "raises"),
            read.rate(signal, "wakeups"), read.rate(signal, "coalesced_*"),
            read.rate(signal, "masked", "masked_by_guest", "unrouted"), drops, read.rate(signal, "spurious"),
            read.total(signal, "raises"), None,
        )  # fmt: skip
        step = Step("device", (guest, device)) if device else Step("block", signal.key[:2])
        rows.append(Row((guest, device, name), cells, marked(drops, None), signal.key, step))
    columns = (
        Column("signal", "SIGNAL", Show.text),
        Column("guest", "GUEST", Show.text, 2),
        Column("device", "DEVICE", Show.text, 4),
        Column("priority", "PRIO", Show.number),
        Column("raises_per_second", "RAISES/S"),
        Column("wakeups_per_second", "WAKES/S"),
        Column("coalesced_per_second", "SPARED/S", Show.rate, 1),
        Column("kept_per_second", "KEPT/S", Show.rate, 3),
        Column("drops", "DROPS", Show.number, 3),
        Column("spurious_wakeups_per_second", "SPURIOUS", Show.rate, 7),
        Column("raises", "RAISES", Show.number, 8),
        LINE,
    )
    return Sheet(columns, tuple(rows), "raises_per_second", _SIGNALS)


def _timers(read: Reading) -> Sheet:
    rows = []
    for timer in read.blocks("timer"):
        guest, device = timer.labels.get("guest", ""), timer.labels.get("device", "")
        rejected = read.total(timer, "forged_slots", "forged_controls", "refused_periods")
        missed = read.rate(timer, "missed")
        cells = (
            guest, device, read.total(timer, "armed"), read.rate(timer, "expiries"), missed, read.rate(timer, "arms"),
            read.rate(timer, "cancels"), rejected, read.rate(timer, "rings"), None,
        )  # fmt: skip
        step = Step("device", (guest, device))
        rows.append(Row((guest, device), cells, marked(rejected, missed), timer.key, step))
    columns = (
        Column("guest", "GUEST", Show.text),
        Column("device", "DEVICE", Show.text),
        Column("armed", "ARMED", Show.number),
        Column("expiries_per_second", "TOLD/S"),
        Column("missed_per_second", "MISSED/S"),
        Column("arms_per_second", "ARMS/S", Show.rate, 1),
        Column("cancels_per_second", "CANCEL/S", Show.rate, 3),
        Column("rejected", "REFUSED", Show.number, 2),
        Column("rings_per_second", "RUNG/S", Show.rate, 4),
        LINE,
    )
    return Sheet(columns, tuple(rows), "expiries_per_second", _lateness(read))


def _lateness(read: Reading) -> str:
    for keeper in read.blocks("timekeeper"):
        (place,) = read.places.of("timekeeper", "late")
        half, most = (read.pair.quantile(keeper, place, quantile) for quantile in (0.5, 0.99))
        if half is not None and most is not None:
            return f"told late, of all so far: half within {half / 1000:.0f} µs, 99 % within {most / 1000:.0f} µs"
    return "no timer was told yet"


def _workers(read: Reading) -> Sheet:
    rows = []
    for worker in read.blocks("worker"):
        name = worker.labels.get("worker", "")
        awake = _awake(read, worker)
        cells = (
            name, awake, read.rate(worker, "busy_rounds"), read.rate(worker, "idle_rounds"),
            read.rate(worker, "sleeps"), read.total(worker, "ports"), read.total(worker, "active_ports"),
            read.rate(worker, "commands"), None,
        )  # fmt: skip
        rows.append(Row((name,), cells, Mark.fine, worker.key, Step("block", worker.key[:2])))
    columns = (
        Column("worker", "WORKER", Show.text),
        Column("awake", "AWAKE", Show.share),
        Column("busy_rounds_per_second", "BUSY/S"),
        Column("idle_rounds_per_second", "IDLE/S"),
        Column("sleeps_per_second", "SLEEPS/S"),
        Column("ports", "PORTS", Show.number),
        Column("active_ports", "ACTIVE", Show.number),
        Column("commands_per_second", "CMDS/S", Show.rate, 2),
        LINE,
    )
    return Sheet(columns, tuple(rows), "worker", _WORKERS)


def _awake(read: Reading, worker: Block) -> float | None:
    """Which part of the time a worker did not sleep, 0 to 1."""
    asleep_ns = read.rate(worker, "asleep_nanoseconds")
    return None if asleep_ns is None else min(1.0, max(0.0, 1 - asleep_ns / SECOND_NS))


def _switches(read: Reading) -> Sheet:
    traffic = traffic_by(read, "switch")
    nothing = Traffic()
    rows = []
    for switch in read.blocks("switch"):
        name = switch.labels.get("switch", "")
        moved, forged = traffic.get(name, nothing), read.total(switch, "forged_sources")
        cells = (
            name, read.total(switch, "ports"), moved.transmitted.value, moved.received.value, moved.drops.value,
            moved.lost, read.rate(switch, "flooded_frames"), read.total(switch, "stations"),
            read.total(switch, "moved_stations"), forged, read.total(switch, "table_full"), None,
        )  # fmt: skip
        mark = max(moved.mark, marked(0, forged))
        rows.append(Row((name,), cells, mark, switch.key, Step("block", switch.key[:2])))
    columns = (
        Column("switch", "SWITCH", Show.text),
        Column("ports", "PORTS", Show.number),
        Column("taken_packets_per_second", "TAKEN/S"),
        Column("given_packets_per_second", "GIVEN/S"),
        Column("drops_per_second", "DROPS/S"),
        Column("drops", "DROPS", Show.number, 2),
        Column("flooded_packets_per_second", "FLOOD/S", Show.rate, 1),
        Column("stations", "STATIONS", Show.number),
        Column("moved_stations", "MOVED", Show.number, 4),
        Column("forged_sources", "FORGED", Show.number, 3),
        Column("stations_not_learned", "UNLEARNT", Show.number, 5),
        LINE,
    )
    return Sheet(columns, tuple(rows), "switch", _SWITCHES)


def _buses(read: Reading) -> Sheet:
    rows = [
        Row(
            (bus.labels.get("bus", ""),),
            (bus.labels.get("bus", ""), read.total(bus, "guests"), read.total(bus, "interfaces")),
            opens=Step("block", bus.key[:2]),
        )
        for bus in read.blocks("bus")
    ]
    columns = (
        Column("bus", "BUS", Show.text),
        Column("guests", "GUESTS", Show.number),
        Column("interfaces", "INTERFACES", Show.number),
    )
    note = f"{host_note(read)} on this host; private buses have no row"
    return Sheet(columns, tuple(rows), "bus", note)


def _telling(block: Block, labels: Sequence[str]) -> list[str]:
    """Those labels that tell a block from others; many a device's name begins with its guest's, which says enough."""
    is_named_so = block.labels.get("device", "").startswith(block.labels.get("guest", ""))
    left_out = {"switch", "type", *(["guest"] if is_named_so else [])} if "device" in labels else set()
    return [label for label in labels if label not in left_out]


def _errors(read: Reading) -> Sheet:
    rows = []
    for block in read.pair.now.layout.blocks:
        declared = read.places.metrics.blocks.get(block.kind)
        for place, metric in read.wrong(block.kind):
            count = read.pair.total(block, (place,))
            if not count or declared is None:
                continue
            whose = whose_block(block, _telling(block, declared.labels))
            what = metric.name.removeprefix("vbnet_").removesuffix("_total").replace("_", " ")
            reason = " ".join(metric.fixed.values())
            rate = read.pair.rate(block, (place,))
            cells: tuple[Value, ...] = (what, whose, reason, count, rate, None, metric.detail or metric.help)
            mark = Mark.notice if rate else Mark.fine
            rows.append(Row((what, *block.key[:2], reason), cells, mark, None, Step("block", block.key[:2])))
    for error in read.pair.now.errors:
        whose, code = printable(error.whose), printable(error.code)
        cells = (error.what, whose, code, error.count, None, error.last_s, printable(error.message))
        rows.append(Row(("log", error.what, whose, code), cells, Mark.bad))
    columns = (
        Column("what", "WHAT", Show.text),
        Column("whose", "WHOSE", Show.text),
        Column("reason", "REASON", Show.text),
        Column("count", "COUNT", Show.number),
        Column("per_second", "PER S", Show.rate),
        Column("last", "LAST", Show.moment, 2),
        Column("message", "MEANING", Show.prose, 1),
    )
    note = "counters of drops and faults that are not 0, and the node's distinct errors (!), as in `vbnet errors`"
    return Sheet(columns, tuple(rows), "per_second", note)


TABS: Final[dict[str, Callable[[Reading], Sheet]]] = {
    "guests": _guests,
    "devices": _devices,
    "ports": _ports,
    "queues": _queues,
    "signals": _signals,
    "timers": _timers,
    "workers": _workers,
    "switches": _switches,
    "buses": _buses,
    "errors": _errors,
}
"""The tables one can choose from, in order."""
