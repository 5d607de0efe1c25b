"""Bytes of the bus, against an encoder that shares nothing with ours."""

from typing import Any

import pytest

from vbnet.bus import messages
from vbnet.bus.messages import MessageFault
from vbnet.testing.wire import pack, unpack

GUEST_BODIES = [
    (messages.Hello("web-0", "lan", 4711, "python", 1, 1), [1, "web-0", "lan", 4711, "python", 1, 1]),
    (messages.Hello("web-0", None, 4711, "python", 1, 1), [1, "web-0", None, 4711, "python", 1, 1]),
    (messages.Ready(), [2]),
    (messages.Open(3, 1), [3, 3, 1]),
    (messages.Close(1 << 40), [4, 1 << 40]),
    (messages.Call(1 << 40, 7, b"\x00data", 0), [5, 1 << 40, 7, b"\x00data", 0]),
    (messages.Shm(9, 1, 4096, 65536, 0, 128, 7, 1 << 63), [6, 9, 1, 4096, 65536, 0, 128, 7, 1 << 63]),
    (messages.Shm(9, 1, 4096, 65536, 0, -1, 0, 0), [6, 9, 1, 4096, 65536, 0, -1, 0, 0]),
    (messages.Signal(77), [7, 77]),
    (messages.Negotiate(0xBF53EEF5, 1), [8, 0xBF53EEF5, 1]),
    (messages.Alive(), [9]),
    (messages.Bye(), [10]),
    (messages.List(), [11]),
]
HOST_BODIES = [
    (messages.Welcome(b"t" * 32, "/run/x", 5000, "lan"), [64, b"t" * 32, "/run/x", 5000, "lan"]),
    (messages.Answer(None), [65, None]),
    (messages.Answer(5), [65, 5]),
    (messages.Answer(b"x"), [65, b"x"]),
    (messages.Answer((messages.Listed(1, "echo", "echo0"),)), [65, [[1, "echo", "echo0"]]]),
    (messages.Refused("EBUSY", "no", {"limit": 1}), [66, "EBUSY", "no", {"limit": 1}]),
    (messages.DevAdd(1, "echo", "echo0"), [67, 1, "echo", "echo0"]),
    (messages.DevDrop(1), [68, 1]),
    (messages.ShmClose(1 << 63), [69, 1 << 63]),
    (messages.LinkState(2, is_up=True), [70, 2, True]),
    (messages.Probe(), [71]),
]


def _ids(value: object) -> str:
    return type(value).__name__


@pytest.mark.parametrize(("body", "fields"), GUEST_BODIES + HOST_BODIES, ids=_ids)
def test_bytes_are_as_documented(body: messages.Body, fields: list[Any]) -> None:
    """Each body has exactly the bytes the table gives it."""
    assert pack([1, 7, 42, fields]) == messages.encode(7, 42, body)


@pytest.mark.parametrize(("body", "fields"), GUEST_BODIES, ids=_ids)
def test_guest_bodies_are_read_back(body: messages.Body, fields: list[Any]) -> None:
    """The host reads what a stranger wrote from the table alone."""
    envelope = messages.decode_envelope(pack([1, 7, 42, fields]))

    assert (7, 42, body) == (envelope.sid, envelope.seq, messages.decode_guest_body(envelope))


@pytest.mark.parametrize(("body", "fields"), HOST_BODIES, ids=_ids)
def test_host_bodies_are_read_back(body: messages.Body, fields: list[Any]) -> None:
    """The guest reads what a stranger wrote from the table alone."""
    envelope = messages.decode_envelope(pack([1, 7, 42, fields]))

    assert body == messages.decode_host_body(envelope)


MALFORMED_ENVELOPES = [
    b"", b"\xc1", b"\x90", pack(7), pack([1, 2, 3]), pack([1, 2, 3, [2], 5]), pack([1, -1, 3, [2]]),
    pack([1, 1 << 32, 3, [2]]), pack([1, 2, 1 << 32, [2]]), pack(["1", 2, 3, [2]]), pack([1, 2, 3, [2]])[:-1],
    pack([1, 2, 3, [2]]) + b"\x00", b"\x91" * 60_000,
]  # fmt: skip


@pytest.mark.parametrize("data", MALFORMED_ENVELOPES, ids=range(len(MALFORMED_ENVELOPES)))
def test_a_malformed_envelope_is_a_fault(data: bytes) -> None:
    """Whatever is not an envelope is refused by name, never by a crash."""
    with pytest.raises(MessageFault):
        messages.decode_envelope(data)


def test_another_version_is_refused_with_its_numbers() -> None:
    """The other side can be told which of its requests was refused, and why."""
    with pytest.raises(MessageFault) as caught:
        messages.decode_envelope(pack([2, 7, 42, ["from the future"]]))

    assert (caught.value.sid, caught.value.seq, caught.value.fields["got"]) == (7, 42, 2)


MALFORMED_BODIES = [
    [], [0], [12], [64, b"", "", 0, "b"], ["Ready"], [2, 1], [3, 1], [3, -1, 1], [3, 1, 1 << 32], [3, 1 << 63, 1],
    [1, "", None, 1, "python", 1, 1], [1, "a b", None, 1, "python", 1, 1], [1, "../x", None, 1, "python", 1, 1],
    [1, "x" * 97, None, 1, "python", 1, 1], [1, "a", None, 1, "Python!", 1, 1], [1, "a\n", None, 1, "python", 1, 1],
    [1, "a", "b/c", 1, "python", 1, 1], [1, "a", None, 1, "python", 1 << 16, 1], [5, 1, 2, "text", 0],
    [5, 1, 2, b"", 0, 0], [6, 9, 1, 4096, 0, 0, -1, 0, 0], [6, 9, 1, -1, 1, 0, -1, 0, 0],
    [6, 9, 1, 0, 1, 0, -2, 0, 0], [6, 9, 1, 0, 1, 0, -1, 8, 0], [6, 9, 1, 0, 1, 0, -1, 0, -1], [7, None], [9, 0],
]  # fmt: skip


@pytest.mark.parametrize("fields", MALFORMED_BODIES, ids=str)
def test_a_malformed_body_is_a_fault_that_names_its_request(fields: list[Any]) -> None:
    """Wrong tags, types, lengths, ranges and names are refused under the request's own number."""
    envelope = messages.decode_envelope(pack([1, 7, 42, fields]))

    with pytest.raises(MessageFault) as caught:
        messages.decode_guest_body(envelope)

    assert (caught.value.sid, caught.value.seq) == (7, 42)


def test_our_own_encoder_for_tests_reads_itself() -> None:
    """The independent encoder is one: what it packs it unpacks."""
    value = [
        None,
        True,
        False,
        0,
        127,
        128,
        65536,
        -1,
        -33,
        -40_000,
        1 << 63,
        "é",
        "x" * 300,
        b"y" * 70_000,
        {"a": [1.5]},
    ]

    assert value == unpack(pack(value))
