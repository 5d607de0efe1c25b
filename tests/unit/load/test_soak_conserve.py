"""Counters of switches and ports at rest: what adds up, what does not, and what cannot be compared."""

from typing import Any

import pytest

from vbnet.devices.venet.metrics import PORT
from vbnet.hostnode.metrics import SWITCH
from vbnet.load.counting import Counts
from vbnet.load.soak.conserve import Rest, balance, rest_in, senders
from vbnet.sharedmem import BlockSnapshot


def port(guest: str, generation: int = 1, **counts: int) -> BlockSnapshot:
    """Counters of a guest's port on switch `lan`."""
    counts = {"transmit_slots": 256, **counts}
    labels = {"switch": "lan", "guest": guest, "device": f"{guest}.eth0"}
    return BlockSnapshot("port", labels, generation, tuple(counts.get(name, 0) for name in PORT.values))


def rest(*ports: BlockSnapshot, flooded: int = 0) -> Rest:
    """Everything of one host node."""
    counts = tuple(flooded if name == "flooded_frames" else 0 for name in SWITCH.values)
    return rest_in([*ports, BlockSnapshot("switch", {"switch": "lan"}, 1, counts)])


START = rest(port("a"), port("b"), port("c"))


def test_what_comes_in_goes_out_or_is_dropped_for_a_reason() -> None:
    """Ten of a's frames for b: seven given, two had no room, one was too long."""
    after = rest(
        port("a", transmit_frames=10, transmit_drop_oversize=1),
        port("b", receive_frames=7, receive_drop_no_room=2),
        port("c"),
    )

    found = balance(START, after, {"a": (Counts(sent=10), None), "b": (None, Counts(received=7))})

    assert ([], {}) == (found.broken, found.unjudged)
    assert {"transmit_drop_oversize": 1, "receive_drop_no_room": 2} == found.dropped


def test_a_flooded_frame_goes_to_every_port_but_its_own() -> None:
    """One frame in, two out, of three ports; both copies are allowed for."""
    after = rest(port("a", transmit_frames=1), port("b", receive_frames=1), port("c", receive_frames=1), flooded=1)

    found = balance(START, after, {})

    assert ([], 2) == (found.broken, found.flooded)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"receive_frames": 9}, "10 were to be given; 9 were, and 0 dropped"),
        ({"receive_frames": 10, "receive_drop_no_room": 1}, "10 were to be given; 10 were, and 1 dropped"),
    ],
)
def test_a_frame_too_few_or_too_many_is_found(given: dict[str, int], said: str) -> None:
    """Nothing is lost without a reason, and nothing is counted twice."""
    found = balance(START, rest(port("a", transmit_frames=10), port("b", **given), port("c")), {})

    assert said in found.broken[0]


def test_what_a_guest_counts_is_what_its_port_counts() -> None:
    """Frames that a guest sent and nobody took; frames that were given and never arrived."""
    after = rest(port("a", transmit_frames=10), port("b", receive_frames=10), port("c"))
    arrived = Counts(received=5, duplicates=1, corrupted=1, foreign=1, misdelivered=1)

    found = balance(START, after, {"a": (Counts(sent=11), None), "b": (None, arrived)})

    assert [
        "port a.eth0: guest a sent 11 frames, 10 were taken",
        "port b.eth0: 10 frames were given, 9 arrived at guest b",
    ] == found.broken


def test_who_sends_at_rest_is_noticed() -> None:
    """By what a port took; what lies in a ring and is read late is no sending."""
    assert {"lan"} == senders(START, rest(port("a"), port("b", transmit_frames=1), port("c")))
    assert set() == senders(START, rest(port("a"), port("b", receive_frames=1, wakeups=1), port("c")))


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (rest(port("a", transmit_frames=9), port("b"), port("c", 2)), "ports came or went"),
        (rest(port("a", transmit_frames=9), port("b")), "ports came or went"),
        (rest(port("a", transmit_frames=9, transmit_offloads=1), port("b"), port("c")), "frames were cut"),
        (rest(port("a", transmit_frames=9), port("b"), port("c", transmit_slots=0)), "no guests' rings"),
    ],
)
def test_what_cannot_be_compared_is_told_and_not_judged(after: Rest, why: str) -> None:
    """Each would make several frames of one, or take counters away."""
    found: Any = balance(START, after, {})

    assert [] == found.broken
    assert why in found.unjudged["lan"]
