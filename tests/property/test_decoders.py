"""No bytes whatsoever get more than a fault out of a decoder."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vbnet.bus import admin, fdpass, messages
from vbnet.bus.messages import MessageFault
from vbnet.testing.wire import pack


def _guest(data: bytes) -> object:
    return messages.decode_guest_body(messages.decode_envelope(data))


def _host(data: bytes) -> object:
    return messages.decode_host_body(messages.decode_envelope(data))


def _verb(data: bytes) -> object:
    return admin.decode_verb(admin.decode_request(data)[1])


DECODERS = [_guest, _host, _verb, fdpass.decode_attach, fdpass.decode_attach_reply, admin.decode_reply]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text(max_size=8) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=20,
)
SIGNALS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256)
BODIES = st.lists(st.integers(0, 80) | VALUES, max_size=10)


@pytest.mark.parametrize("decode", DECODERS)
@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200))
def test_random_bytes(decode: Callable[[bytes], object], data: bytes) -> None:
    """Noise is a fault, or by chance lawful; never anything else."""
    try:
        decode(data)
    except MessageFault:
        return


@pytest.mark.parametrize("decode", DECODERS)
@settings(max_examples=150, deadline=None)
@given(version=st.integers(0, 2), sid=VALUES, seq=st.integers(0, 9), body=BODIES)
def test_almost_lawful_messages(
    decode: Callable[[bytes], object], version: int, sid: Any, seq: int, body: list[Any]
) -> None:
    """Well-formed MessagePack of the wrong shape is a fault too."""
    for data in (pack([version, sid, seq, body]), pack([version, seq, body])):
        try:
            decode(data)
        except MessageFault:
            continue


@settings(max_examples=150, deadline=None)
@given(seq=st.integers(1, (1 << 32) - 1), signal=SIGNALS, keep=st.booleans())
def test_any_name_of_a_signal_travels_whole_and_fits_a_packet(seq: int, signal: str, keep: bool) -> None:
    """What operators hand over is read as it was meant, whatever characters are in the name."""
    data = [pack([1, seq, [3, signal]]), pack([1, seq, [4, signal, keep]])]

    assert [(seq, fdpass.Export(signal)), (seq, fdpass.Drive(signal, keep))] == [*map(fdpass.decode_attach, data)]
    assert max(map(len, data)) <= fdpass.MAX_PACKET_BYTES


U32 = st.integers(0, (1 << 32) - 1)


@settings(max_examples=100, deadline=None)
@given(
    seq=st.integers(1, (1 << 32) - 1),
    program=st.binary(max_size=fdpass.PROGRAM_BYTES),
    numbers=st.tuples(U32, U32, U32),
)
def test_a_capture_travels_whole_and_fits_a_packet(seq: int, program: bytes, numbers: tuple[int, int, int]) -> None:
    """Also with the longest filter and the longest name."""
    port = "p" * 96
    data = pack([1, seq, [5, port, program, *numbers]])

    assert (seq, fdpass.Capture(port, program, *numbers)) == fdpass.decode_attach(data)
    assert len(data) <= fdpass.MAX_PACKET_BYTES
