"""Filters as people write them become programs, or a message that helps."""

import struct

import pytest

from vbnet.errors import UnsupportedError, UsageError
from vbnet.net import pcap


def test_a_filter_becomes_instructions_of_eight_bytes() -> None:
    """One for a type is a load at 12, a comparison, and two ways to end."""
    program = pcap.compile_filter("ether proto 0x88b5")

    instructions = list(struct.iter_unpack("<HBBI", program))
    assert [(0x28, 0, 0, 12), (0x15, 0, 1, 0x88B5)] == instructions[:2]
    assert [0x06, 0x06] == [code for code, *_ in instructions[2:]]
    assert 0 == instructions[-1][3]


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_a_blank_filter_is_none(blank: str) -> None:
    """Every frame, without a program, and without libpcap."""
    assert b"" == pcap.compile_filter(blank)


def test_what_does_not_compile_is_refused_in_the_words_of_libpcap() -> None:
    """The message has the filter and the reason."""
    with pytest.raises(UsageError, match=r"'udp and' does not compile: .*syntax error"):
        pcap.compile_filter("udp and")


def test_a_machine_without_libpcap_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the filter is refused."""
    monkeypatch.setattr(pcap, "_LIBRARIES", ("libnowhere.so.1",))
    pcap._libpcap.cache_clear()

    with pytest.raises(UnsupportedError, match="libpcap"):
        pcap.compile_filter("udp")

    pcap._libpcap.cache_clear()
