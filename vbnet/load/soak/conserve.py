"""What goes in comes out, or is dropped for a reason: the counters of switches and ports, compared at rest.

At rest nothing is under way, so between two rests with the same ports, for each switch

    taken - not taken on + flooded x (ports - 2) = given + not given

as a flooded frame is given to every port but its own, any other to one. Behind each port of a guest that counts
itself, what it sent was taken, and what was given has arrived. Left out, and told so, is a switch that cut frames into
segments (it makes several of one), that has ports which are no guests' rings (their drops are counted before a frame is
taken), or whose ports came or went in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from vbnet.bus.rundir import RunDir
from vbnet.devices.venet.metrics import PORT
from vbnet.hostnode.metrics import SWITCH
from vbnet.load.counting import Counts
from vbnet.sharedmem import BlockSnapshot
from vbnet.telemetry.node import counters_files, read_files

__all__ = ["Balance", "Rest", "balance", "rest_in", "rest_of", "senders"]

_PORT_NAMES: Final = tuple(PORT.values)
_SWITCH_NAMES: Final = tuple(SWITCH.values)
_OFFLOADS: Final = ("transmit_offloads", "segmented_frames")


@dataclass(frozen=True, slots=True)
class Rest:
    """Every counter of a host node's ports and switches at one moment.

    Attributes:
        ports: of each port its counters, by switch, guest, device, and the life of its block.
        switches: of each switch its counters.
    """

    ports: Mapping[tuple[str, str, str, int], Mapping[str, int]] = field(default_factory=dict)
    switches: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(slots=True)
class Balance:
    """What two rests say.

    Attributes:
        broken: what does not add up, one sentence each.
        dropped: frames not taken on or not given, by direction and reason.
        flooded: copies that flooding can have made.
        unjudged: switches that could not be compared, and why.
    """

    broken: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    flooded: int = 0
    unjudged: dict[str, str] = field(default_factory=dict)


def rest_of(run_dir: RunDir) -> Rest:
    """Read the counters of a host node as they are now."""
    blocks, _ = read_files(path for path in counters_files(run_dir) if not path.name.startswith("process-"))
    return rest_in(blocks)


def rest_in(blocks: Iterable[BlockSnapshot]) -> Rest:
    """Sort out ports and switches."""
    ports: dict[tuple[str, str, str, int], Mapping[str, int]] = {}
    switches: dict[str, Mapping[str, int]] = {}
    for block in blocks:
        labels = block.labels
        if block.kind == PORT.kind and "switch" in labels:
            key = (labels["switch"], labels.get("guest", ""), labels.get("device", ""), block.generation)
            ports[key] = dict(zip(_PORT_NAMES, block.values, strict=False))
        elif block.kind == SWITCH.kind:
            switches[labels.get("switch", "")] = dict(zip(_SWITCH_NAMES, block.values, strict=False))
    return Rest(ports, switches)


def senders(before: Rest, after: Rest) -> set[str]:
    """Return the switches on which frames were taken in between."""
    return {
        key[0]
        for key, port in after.ports.items()
        if port["transmit_frames"] != before.ports.get(key, {}).get("transmit_frames", 0)
    }


def balance(before: Rest, after: Rest, guests: Mapping[str, tuple[Counts | None, Counts | None]]) -> Balance:
    """Compare two rests.

    Args:
        before: at rest.
        after: at rest again.
        guests: what guests counted themselves in between, as sender and as receiver; None: it does not count that.
    """
    found = Balance()
    for switch in after.switches:
        was = {key: counters for key, counters in before.ports.items() if key[0] == switch}
        now = {key: counters for key, counters in after.ports.items() if key[0] == switch}
        steps = {key: _step(was.get(key, {}), counters) for key, counters in now.items()}
        for step in steps.values():
            for name, count in step.items():
                if "_drop_" in name and count > 0:
                    found.dropped[name] = found.dropped.get(name, 0) + count
        flooded = after.switches[switch]["flooded_frames"] - before.switches.get(switch, {}).get("flooded_frames", 0)
        found.flooded += flooded * max(0, max(len(was), len(now)) - 1)
        if was.keys() != now.keys():
            found.unjudged[switch] = "ports came or went"
        elif any(step[name] for step in steps.values() for name in _OFFLOADS):
            found.unjudged[switch] = "frames were cut into segments"
        elif any(not key[1] or port["transmit_slots"] == 0 for key, port in now.items()):
            found.unjudged[switch] = "it has ports that are no guests' rings"
        else:
            found.broken += _of_switch(switch, flooded, steps)
            found.broken += [said for key, step in steps.items() for said in _of_port(key, step, guests)]
    return found


def _step(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    return {name: value - before.get(name, 0) for name, value in after.items()}


def _sum(steps: Iterable[Mapping[str, int]], start: str) -> int:
    return sum(count for step in steps for name, count in step.items() if name.startswith(start))


def _of_switch(switch: str, flooded: int, steps: Mapping[tuple[str, str, str, int], Mapping[str, int]]) -> list[str]:
    ports: Sequence[Mapping[str, int]] = list(steps.values())
    taken = sum(step["transmit_frames"] for step in ports)
    not_taken = _sum(ports, "transmit_drop_")
    given = sum(step["receive_frames"] for step in ports)
    not_given = _sum(ports, "receive_drop_")
    came = taken - not_taken + flooded * (len(ports) - 2)
    if came == given + not_given:
        return []
    said = (
        f"switch {switch}: {taken} frames taken, {not_taken} of them dropped, {flooded} flooded to "
        f"{len(ports) - 1} ports: {came} were to be given; {given} were, and {not_given} dropped"
    )
    return [said]


def _of_port(
    key: tuple[str, str, str, int],
    step: Mapping[str, int],
    guests: Mapping[str, tuple[Counts | None, Counts | None]],
) -> Iterable[str]:
    sent, received = guests.get(key[1], (None, None))
    if sent is not None and sent.sent != step["transmit_frames"]:
        yield f"port {key[2]}: guest {key[1]} sent {sent.sent} frames, {step['transmit_frames']} were taken"
    if received is not None:
        arrived = (
            received.received + received.duplicates + received.corrupted + received.foreign + received.misdelivered
        )
        if arrived != step["receive_frames"]:
            yield f"port {key[2]}: {step['receive_frames']} frames were given, {arrived} arrived at guest {key[1]}"
