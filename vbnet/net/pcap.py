"""Filters in the language of tcpdump, compiled by libpcap, which is loaded when the first one is asked for.

The result is a classic BPF program for Ethernet, 8 little-endian bytes an instruction. Whoever runs it checks it
again: nothing here is trusted. Source: pcap_compile(3PCAP), pcap-filter(7).
"""

from __future__ import annotations

import ctypes
import functools
import struct
from typing import Final

from vbnet.errors import ResourceError, UnsupportedError, UsageError

__all__ = ["compile_filter"]

_LIBRARIES: Final = ("libpcap.so.1", "libpcap.so.0.8", "libpcap.so")
_ETHERNET: Final = 1
_LONGEST: Final = 262_144
_NETMASK_UNKNOWN: Final = 0xFFFF_FFFF
_INSTRUCTION: Final = struct.Struct("<HBBI")


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.POINTER(_Instruction)))


def compile_filter(text: str) -> bytes:
    """Compile a filter such as ``udp port 53 and host 10.0.0.2``.

    Args:
        text: the filter; blank means every frame.

    Returns:
        its instructions; none for every frame.

    Raises:
        UsageError: libpcap does not understand it; its own words say why.
        UnsupportedError: there is no libpcap on this machine.
    """
    if not text.strip():
        return b""
    library = _libpcap()
    handle = library.pcap_open_dead(_ETHERNET, _LONGEST)
    if not handle:
        raise ResourceError("libpcap could not be set up: out of memory")
    program = _Program()
    try:
        if library.pcap_compile(handle, ctypes.byref(program), text.encode(), 1, _NETMASK_UNKNOWN) != 0:
            why = library.pcap_geterr(handle).decode(errors="replace")
            raise UsageError(f"the filter {text!r} does not compile: {why}; `man pcap-filter` explains the language")
        found = [program.instructions[index] for index in range(program.length)]
        compiled = b"".join(_INSTRUCTION.pack(one.code, one.jt, one.jf, one.k) for one in found)
        library.pcap_freecode(ctypes.byref(program))
    finally:
        library.pcap_close(handle)
    return compiled


@functools.cache
def _libpcap() -> ctypes.CDLL:
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.pcap_open_dead.restype = ctypes.c_void_p
        library.pcap_open_dead.argtypes = (ctypes.c_int, ctypes.c_int)
        library.pcap_compile.argtypes = (
            ctypes.c_void_p,
            ctypes.POINTER(_Program),
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_uint32,
        )
        library.pcap_geterr.restype = ctypes.c_char_p
        library.pcap_geterr.argtypes = (ctypes.c_void_p,)
        library.pcap_freecode.argtypes = (ctypes.POINTER(_Program),)
        library.pcap_close.argtypes = (ctypes.c_void_p,)
        return library
    raise UnsupportedError(
        "a filter needs libpcap to compile it, and this machine has none: install it (Debian: libpcap0.8), "
        "or capture everything and filter when reading"
    )
