"""Tables of one thing: what a guest has, and every counter of a device or of a block with its meaning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vbnet.metric import Metric, MetricKind
from vbnet.telemetry.watch.look import Block
from vbnet.telemetry.watch.reading import LINE, WRONG, Reading, Sum, Traffic, counted, guest_state, whose_block
from vbnet.telemetry.watch.table import Column, Mark, Row, Sheet, Show, Step, Value

__all__ = ["block_sheet", "device_sheet", "guest_sheet"]


def guest_sheet(read: Reading, guest: str) -> Sheet:
    """The devices of a guest, and what it counts itself."""
    types = {block.labels.get("device", ""): block.labels.get("type", "") for block in read.blocks("device")}
    traffic: dict[str, Traffic] = {}
    raises: dict[str, Sum] = {}
    parts: dict[str, dict[str, int]] = {}
    lines = {}
    own = []
    for block in read.pair.now.layout.blocks:
        if block.labels.get("guest") != guest:
            continue
        device = block.labels.get("device", "")
        if not device:
            own.append(block)
            continue
        kinds = parts.setdefault(device, {})
        kinds[block.kind] = kinds.get(block.kind, 0) + 1
        if block.kind == "port":
            traffic.setdefault(device, Traffic()).add(read, block)
            lines[device] = block.key
        elif block.kind == "signal":
            raises.setdefault(device, Sum()).add(read.rate(block, "raises"))
    rows = []
    for device, kinds in parts.items():
        moved = traffic.get(device, Traffic())
        cells: tuple[Value, ...] = (
            device, types.get(device, ""), counted(kinds), moved.received.value, moved.transmitted.value,
            moved.drops.value, moved.lost, raises[device].value if device in raises else None, moved.faults, None,
        )  # fmt: skip
        rows.append(Row((device,), cells, moved.mark, lines.get(device), Step("device", (guest, device))))
    for block in own:
        name = f"({block.kind})" if len(block.labels) == 1 else f"({block.kind} {whose_block(block, block.labels)})"
        cells = (name, "", "its own counters", *[None] * 7)
        rows.append(Row((name,), cells, opens=Step("block", block.key[:2])))
    columns = (
        Column("device", "DEVICE", Show.text),
        Column("type", "TYPE", Show.text, 2),
        Column("has", "HAS", Show.text, 3),
        Column("receive_packets_per_second", "RX/S"),
        Column("transmit_packets_per_second", "TX/S"),
        Column("drops_per_second", "DROPS/S"),
        Column("drops", "DROPS", Show.number, 1),
        Column("raises_per_second", "SIGNAL/S", Show.rate, 1),
        Column("faults", "FAULTS", Show.number, 4),
        LINE,
    )
    note = next((guest_state(read, block) for block in own if block.kind == "guest"), "not there now")
    return Sheet(columns, tuple(rows), "", note)


def device_sheet(read: Reading, device: str, guest: str | None = None) -> Sheet:
    """Every value of a device: its queues with their drops by reason, its signals, its timers; of one guest, or all."""
    blocks = [
        block
        for block in read.pair.now.layout.blocks
        if block.labels.get("device") == device and (guest is None or block.labels.get("guest", guest) == guest)
    ]
    # What moves and loses frames is what one looks for; what was done with the device once comes last.
    blocks.sort(key=lambda block: (block.kind != "port", block.kind == "device", block.kind))
    return _values(read, blocks)


def block_sheet(read: Reading, kind: str, text: str) -> Sheet:
    """Every value of the blocks of a kind whose labels are written ``text``."""
    return _values(read, [block for block in read.blocks(kind) if block.key[:2] == (kind, text)])


def _values(read: Reading, blocks: Sequence[Block]) -> Sheet:
    """Every value of these blocks; what is not 0 is told from the rest by its mark only where it is a loss."""
    names_guests = len({block.labels.get("guest", "") for block in blocks} - {""}) > 1
    rows = [row for block in blocks for row in _values_of(read, block, names_guests=names_guests)]
    columns = (
        Column("of", "OF", Show.text, 1),
        Column("value", "VALUE", Show.text),
        Column("now", "NOW", Show.number),
        Column("per_second", "PER S"),
        Column("unit", "UNIT", Show.text, 3),
        Column("meaning", "MEANING", Show.prose, 2),
    )
    return Sheet(columns, tuple(rows), "", "" if rows else "not there now")


def _values_of(read: Reading, block: Block, *, names_guests: bool) -> Iterator[Row]:
    declared = read.places.metrics.blocks.get(block.kind)
    wanted = ("signal", "slot", "guest") if names_guests else ("signal", "slot")
    of = " ".join(filter(None, [block.kind, *map(block.labels.get, wanted)]))
    if declared is None:
        for place in range(block.words):
            value = read.pair.total(block, (place,))
            yield Row((*block.key[:2], str(place)), (of, f"word {place}", value, None, "", "not declared here"))
        return
    for place, name, metric in declared.places():
        if place + metric.words > block.words:
            continue
        now, unit = _value(read, block, place, metric)
        rate = read.pair.rate(block, (place,)) if metric.kind is MetricKind.COUNTER else None
        rate = rate / metric.per_unit if rate is not None else None
        lost = metric.name.endswith(WRONG) and bool(now)
        mark = Mark.notice if lost and rate else Mark.bad if lost and "rejected" in metric.name else Mark.fine
        meaning = metric.detail or metric.help
        yield Row((*block.key[:2], name), (of, name.replace("_", " "), now, rate, unit, meaning), mark)


def _value(read: Reading, block: Block, place: int, metric: Metric) -> tuple[Value, str]:
    word = read.pair.total(block, (place,))
    match metric.kind:
        case MetricKind.STATE:
            return (metric.states[word] if word < len(metric.states) else "?"), ""
        case MetricKind.HISTOGRAM:
            half = read.pair.quantile(block, place, 0.5)
            return (None if half is None else half / metric.per_unit), f"{metric.unit}, half below"
        case _:
            return (word if metric.per_unit == 1 else word / metric.per_unit), metric.unit
