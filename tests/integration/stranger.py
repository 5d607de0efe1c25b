"""A guest made from docs/wire alone: no vbnet in it, only struct, mmap, sockets, ZeroMQ and a MessagePack of its own.

Usage: ``stranger.py RUN_DIR BUS DESTINATION``. It joins the bus, brings the first virtual Ethernet device up, prints
its address in hexadecimal, sends one frame saying ``hello`` to DESTINATION, sleeps until a frame comes, prints that,
answers its sender with ``bye``, and leaves. A proof that the documents suffice, and a model for other languages.
"""

import array
import fcntl
import mmap
import os
import select
import socket
import struct
import sys
import threading
from typing import Any

import zmq

SLOTS, RING_BYTES, BUFFER_BYTES = 8, 0x400 + 8 * 8, 2048
TX, RX, SEND_AREA, BUFFERS, RAM_BYTES = 0x1000, 0x2000, 0x4000, 0x8000, 0x10000
TAIL, HEAD, SLOT = 0x80, 0x100, 0x400
KICK = {"enabled": 0x200, "dirty": 0x280, "pending": 0x284}
CALL = {"enabled": 0x300, "dirty": 0x380, "pending": 0x384}
PATIENCE_MS = 10_000
NUMBERS = dict(zip(range(0xCA, 0xD4), "fdBHIQbhiq", strict=True))
LENGTHS = {0xC4: "B", 0xC5: "H", 0xC6: "I", 0xD9: "B", 0xDA: "H", 0xDB: "I"}
LENGTHS |= {0xDC: "H", 0xDD: "I", 0xDE: "H", 0xDF: "I"}
LOCK = threading.Lock()


def pack(value: Any) -> bytes:
    """MessagePack of what the bus needs: nil, booleans, integers, text, bytes and arrays."""
    match value:
        case None | bool():
            return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
        case int():
            return struct.pack(">Bq", 0xD3, value) if value < 0 else struct.pack(">BQ", 0xCF, value)
        case str():
            return struct.pack(">BH", 0xDA, len(value.encode())) + value.encode()
        case bytes():
            return struct.pack(">BH", 0xC5, len(value)) + value
        case _:
            return struct.pack(">BH", 0xDC, len(value)) + b"".join(map(pack, value))


class Reader:
    """Reads MessagePack, any value of it that a host sends."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, form: str) -> Any:
        """Read a big-endian number."""
        (value,) = struct.unpack_from(">" + form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def value(self) -> Any:
        """Read whatever comes."""
        code = self.number("B")
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 0x100
        if code in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        if code in NUMBERS:
            return self.number(NUMBERS[code])
        if code < 0xC0:
            length, kind = (code & 0x1F, 0xD9) if code >= 0xA0 else (code & 0xF, 0xDE if code < 0x90 else 0xDC)
        else:
            length, kind = self.number(LENGTHS[code]), code
        if kind >= 0xDE:
            return {self.value(): self.value() for _ in range(length)}
        if kind >= 0xDC:
            return [self.value() for _ in range(length)]
        body = self.data[self.at : self.at + length]
        self.at += length
        return body if kind < 0xC7 else body.decode()


class Host:
    """The two sockets to the host node, and the requests made through them."""

    HELLO, READY, OPEN, CALL, SHM, BYE = 1, 2, 3, 5, 6, 10
    WELCOME, ANSWER, DEV_ADD = 64, 65, 67

    def __init__(self, run_dir: str) -> None:
        self.attach = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.attach.settimeout(PATIENCE_MS / 1000)
        self.attach.connect(f"{run_dir}/attach.sock")
        self.bus = zmq.Context[zmq.Socket[bytes]]().socket(zmq.DEALER)
        self.bus.setsockopt(zmq.LINGER, 1000)
        self.bus.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
        self.bus.connect(f"ipc://{run_dir}/bus.sock")
        self.seq = 0
        self.devices: list[list[Any]] = []

    def tell(self, *body: Any) -> None:
        """Send a message of session 1."""
        self.seq += 1
        self.bus.send(pack([1, 1, self.seq, body]))

    def ask(self, *body: Any) -> Any:
        """Send a request; give the fields of its reply, taking note of devices that are told of meanwhile."""
        self.tell(*body)
        while True:
            _version, _sid, seq, [tag, *fields] = Reader(self.bus.recv()).value()
            if tag == self.DEV_ADD:
                self.devices.append(fields)
            elif seq == self.seq:
                assert tag in (self.WELCOME, self.ANSWER), fields
                return fields if tag == self.WELCOME else fields[0]

    def hand_over(self, token: bytes, memory: int) -> None:
        """Prove who we are, and give the host our memory."""
        socket.send_fds(self.attach, [pack([1, 1, [1, token, True]])], [memory])
        assert Reader(self.attach.recv(4096)).value()[2][0] == 64

    def take_signal(self, handle: int) -> list[int]:
        """Take kick and call of a signal."""
        data, ancillary, _flags, _address = self.attach.recvmsg(4096, socket.CMSG_SPACE(8))
        assert Reader(data).value() == [1, 0, [66, 1, handle]]
        return list(array.array("i", ancillary[0][2]))


def new_ram() -> tuple[int, mmap.mmap]:
    """Make the guest's memory, as docs/wire/ram.md tells."""
    ram = os.memfd_create("stranger", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(ram, RAM_BYTES)
    os.posix_fallocate(ram, 0, RAM_BYTES)
    fcntl.fcntl(ram, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    memory = mmap.mmap(ram, RAM_BYTES)
    struct.pack_into("<8sIIQ", memory, 0, b"VBNETRAM", 1, 4096, RAM_BYTES)
    return ram, memory


def fence() -> None:
    """Order a store before the loads that follow: any lock of Python's is a locked instruction, which is one."""
    with LOCK:
        pass


class Ring:
    """A ring in our memory, of which we are the producer."""

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        self.memory, self.offset = memory, offset
        struct.pack_into("<4sII", memory, offset, b"vRNG", 2, SLOTS)
        struct.pack_into("<4sI", memory, offset + 0x180, b"vSIG", 2)
        self.fds: list[int] = []
        self.injected = self.rung = self.arming = 0

    def word(self, at: int) -> int:
        """Read a word."""
        return int.from_bytes(self.memory[self.offset + at : self.offset + at + 4], "little")

    def put(self, at: int, value: int) -> None:
        """Write a word."""
        struct.pack_into("<I", self.memory, self.offset + at, value & 0xFFFF_FFFF)

    def publish(self, offset: int, length: int) -> None:
        """Put a descriptor into the next slot, show it, and ring if the host sleeps."""
        tail = self.word(TAIL)
        struct.pack_into("<Q", self.memory, self.offset + SLOT + 8 * (tail % SLOTS), offset | length << 32)
        self.put(TAIL, tail + 1)
        self.injected += 1
        self.put(KICK["dirty"], self.injected)
        fence()
        if self.fds and (enabled := self.word(KICK["enabled"])) not in (0, self.rung):
            self.rung = enabled
            self.put(KICK["pending"], enabled)
            os.write(self.fds[0], struct.pack("=Q", 1))

    def wait_returned(self, slots: int) -> None:
        """Sleep until the host has returned so many slots in all."""
        while self.word(HEAD) < slots:
            seen = self.word(CALL["dirty"])
            if self.word(HEAD) >= slots:
                break
            self.arming += 1
            self.put(CALL["enabled"], self.arming)
            fence()
            if self.word(CALL["dirty"]) == seen:
                assert select.select([self.fds[1]], [], [], PATIENCE_MS / 1000)[0], "nothing came"
                os.read(self.fds[1], 8)
            self.put(CALL["enabled"], 0)

    def answer(self, slot: int) -> tuple[int, int]:
        """Offset and length that the host left in a slot."""
        (word,) = struct.unpack_from("<Q", self.memory, self.offset + SLOT + 8 * (slot % SLOTS))
        return word & 0xFFFF_FFFF, word >> 32 & 0xFF_FFFF


def main(run_dir: str, bus: str, destination: str) -> None:
    """Live one guest's life."""
    host = Host(run_dir)
    ram, memory = new_ram()
    token, _path, _heartbeat_ms, _bus = host.ask(Host.HELLO, "stranger", bus, os.getpid(), "stranger", 1, 1)
    host.hand_over(token, ram)
    host.ask(Host.READY)
    [dev_id] = [dev_id for dev_id, abi_type, _name in host.devices if abi_type == "virtual-ethernet"]

    handle = host.ask(Host.OPEN, dev_id, 1)
    mac = host.ask(Host.CALL, handle, 2, b"", 0)
    tx, rx = Ring(memory, TX), Ring(memory, RX)
    for slot in range(SLOTS):
        rx.publish(BUFFERS + BUFFER_BYTES * slot, BUFFER_BYTES)
    for ring, number in ((tx, 1), (rx, 0)):
        signal = host.ask(Host.SHM, handle, number, ring.offset, RING_BYTES, 0, 0x180, 0, 77 + number)
        ring.fds = host.take_signal(signal)
    host.ask(Host.CALL, handle, 0, b"", 0)
    print(mac.hex(), flush=True)  # noqa: T201 - its answer

    hello = bytes.fromhex(destination) + mac + b"\x88\xb5hello"
    memory[SEND_AREA : SEND_AREA + len(hello)] = hello
    tx.publish(SEND_AREA, len(hello))
    rx.wait_returned(1)
    offset, length = rx.answer(0)
    frame = memory[offset : offset + length]
    print(frame.hex(), flush=True)  # noqa: T201 - its answer

    tx.wait_returned(1)
    bye = frame[6:12] + mac + b"\x88\xb5bye"
    memory[SEND_AREA : SEND_AREA + len(bye)] = bye
    tx.publish(SEND_AREA, len(bye))
    tx.wait_returned(2)
    host.tell(Host.BYE)
    host.bus.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
    assert not any(name.partition(".")[0] == "vbnet" for name in sys.modules), "a stranger knows no vbnet"
