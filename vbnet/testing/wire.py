"""The bus spoken by hand: an encoder made from docs/wire alone, and a peer that may say anything.

Nothing here uses ``vbnet.bus``, so that a mistake there cannot hide behind itself. ``RawPeer`` is a guest process
reduced to its two sockets: it sends the bytes it is told, lawful or not, and shows what comes back.
"""

# ruff: noqa: PLR2004 - MessagePack is a table of numbers

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import zmq

__all__ = ["RawPeer", "pack", "unpack"]

_PATIENCE_MS = 5000


def pack(value: Any) -> bytes:  # noqa: ANN401, PLR0911 - one branch a type
    """MessagePack of None, bool, int, float, str, bytes, list and dict, in the shortest form."""
    match value:
        case None:
            return b"\xc0"
        case bool():
            return b"\xc3" if value else b"\xc2"
        case int():
            return _pack_int(value)
        case float():
            return b"\xcb" + struct.pack(">d", value)
        case str():
            data = value.encode()
            return _head(len(data), (0xA0, 31), 0xD9, 0xDA, 0xDB) + data
        case bytes():
            return _head(len(value), None, 0xC4, 0xC5, 0xC6) + value
        case list() | tuple():
            return _head(len(value), (0x90, 15), None, 0xDC, 0xDD) + b"".join(map(pack, value))
        case dict():
            items = b"".join(pack(key) + pack(item) for key, item in value.items())
            return _head(len(value), (0x80, 15), None, 0xDE, 0xDF) + items
        case _:
            raise TypeError(type(value).__name__)


def _pack_int(value: int) -> bytes:
    if 0 <= value <= 0x7F:
        return bytes([value])
    if -32 <= value < 0:
        return struct.pack("b", value)
    forms = [(0xCC, ">B"), (0xCD, ">H"), (0xCE, ">I"), (0xCF, ">Q")] if value >= 0 else []
    forms += [(0xD0, ">b"), (0xD1, ">h"), (0xD2, ">i"), (0xD3, ">q")] if value < 0 else []
    for code, form in forms:
        try:
            return bytes([code]) + struct.pack(form, value)
        except struct.error:
            continue
    raise OverflowError(value)


def _head(length: int, fix: tuple[int, int] | None, short: int | None, middle: int, wide: int) -> bytes:
    if fix is not None and length <= fix[1]:
        return bytes([fix[0] | length])
    if short is not None and length <= 0xFF:
        return bytes([short, length])
    if length <= 0xFFFF:
        return struct.pack(">BH", middle, length)
    return struct.pack(">BI", wide, length)


def unpack(data: bytes) -> Any:  # noqa: ANN401 - whatever was packed
    """Read one MessagePack value; raises ValueError if bytes are left over."""
    value, end = _unpack(data, 0)
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes left over")
    return value


def _unpack(data: bytes, at: int) -> tuple[Any, int]:
    code = data[at]
    if code <= 0x7F:
        return code, at + 1
    if code >= 0xE0:
        return code - 0x100, at + 1
    for low, high, mask, kind in _SHORT:
        if low <= code <= high:
            return _unpack_body(data, at + 1, code & mask, kind)
    if code in _CONSTANTS:
        return _CONSTANTS[code], at + 1
    if code in _NUMBERS:
        form = _NUMBERS[code]
        return struct.unpack_from(form, data, at + 1)[0], at + 1 + struct.calcsize(form)
    form, kind = _LENGTHS[code]
    length = struct.unpack_from(form, data, at + 1)[0]
    return _unpack_body(data, at + 1 + struct.calcsize(form), length, kind)


_SHORT = ((0x80, 0x8F, 15, "map"), (0x90, 0x9F, 15, "list"), (0xA0, 0xBF, 31, "str"))
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = dict(zip(range(0xCA, 0xD4), (">f", ">d", ">B", ">H", ">I", ">Q", ">b", ">h", ">i", ">q"), strict=True))
_LENGTHS = {
    0xC4: (">B", "bytes"), 0xC5: (">H", "bytes"), 0xC6: (">I", "bytes"), 0xD9: (">B", "str"), 0xDA: (">H", "str"),
    0xDB: (">I", "str"), 0xDC: (">H", "list"), 0xDD: (">I", "list"), 0xDE: (">H", "map"), 0xDF: (">I", "map"),
}  # fmt: skip


def _unpack_body(data: bytes, at: int, length: int, kind: str) -> tuple[Any, int]:
    if kind in ("bytes", "str"):
        body = data[at : at + length]
        return (body.decode() if kind == "str" else body), at + length
    items = []
    for _ in range(length * (2 if kind == "map" else 1)):
        item, at = _unpack(data, at)
        items.append(item)
    return (dict(zip(items[::2], items[1::2], strict=True)) if kind == "map" else items), at


class RawPeer:
    """A process on the bus that may say anything; a context manager, for plain (not asyncio) tests.

    Args:
        run_dir: the host node's run directory.
        packets: name of the socket for descriptors; operators have ``operate.sock``.
    """

    HELLO, READY, OPEN, CLOSE, CALL, SHM, SIGNAL, NEGOTIATE, ALIVE, BYE, LIST = range(1, 12)
    WELCOME, ANSWER, REFUSED, DEV_ADD, DEV_DROP, SHM_CLOSE, LINK_STATE, PROBE = range(64, 72)

    def __init__(self, run_dir: Path, packets: str = "attach.sock") -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.bus = self._context.socket(zmq.DEALER)
        self.bus.setsockopt(zmq.LINGER, 0)
        self.bus.connect(f"ipc://{run_dir}/bus.sock")
        self.attach_socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.attach_socket.settimeout(_PATIENCE_MS / 1000)
        self.attach_socket.connect(f"{run_dir}/{packets}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self.attach_socket.close()
        self.bus.close(0)
        self._context.term()

    def send(self, sid: int, seq: int, body: Sequence[Any], *, version: int = 1) -> None:
        """Send one message, lawful or not."""
        self.bus.send(pack([version, sid, seq, list(body)]))

    def receive(self) -> list[Any]:
        """The next message, whole.

        Raises:
            TimeoutError: none came.
        """
        if not self.bus.poll(_PATIENCE_MS):
            raise TimeoutError("the host said nothing")
        message: list[Any] = unpack(self.bus.recv())
        return message

    def ask(self, sid: int, seq: int, body: Sequence[Any]) -> list[Any]:
        """Send a request and give the body of its reply, skipping events."""
        self.send(sid, seq, body)
        while (message := self.receive())[2] != seq:
            pass
        reply: list[Any] = message[3]
        return reply

    def hello(self, sid: int, name: str, bus: str | None = None, *, pid: int | None = None) -> list[Any]:
        """Say hello lawfully; gives the reply's body."""
        return self.ask(sid, 1, [self.HELLO, name, bus, os.getpid() if pid is None else pid, "raw", 1, 1])

    def packet(self, seq: int, body: Sequence[Any], fds: Sequence[int] = (), *, version: int = 1) -> None:
        """Send one packet with descriptors, lawful or not."""
        socket.send_fds(self.attach_socket, [pack([version, seq, list(body)])], list(fds))

    def receive_packet(self) -> tuple[list[Any], list[int]]:
        """The next packet, whole, with its descriptors."""
        data, ancillary, _flags, _address = self.attach_socket.recvmsg(4096, socket.CMSG_SPACE(16))
        if not data:
            raise ConnectionResetError("the host hung up")
        fds = array.array("i")
        for _level, _kind, payload in ancillary:
            fds.frombytes(payload)
        return unpack(data), list(fds)

    def join(self, sid: int, name: str, bus: str | None = None, ram_fd: int | None = None) -> list[Any]:
        """Hello, attach, ready; gives the bodies of the events that were replayed."""
        welcome = self.hello(sid, name, bus)
        if welcome[0] != self.WELCOME:
            raise ConnectionRefusedError(str(welcome))
        self.packet(1, [1, welcome[1], ram_fd is not None], [] if ram_fd is None else [ram_fd])
        reply, _ = self.receive_packet()
        if reply[2][0] != 64:  # Attached
            raise ConnectionRefusedError(str(reply))
        self.send(sid, 2, [self.READY])
        events = []
        while (message := self.receive())[2] != 2:  # the answer to Ready
            events.append(message[3])
        return events
