"""The two sides of a bench with a switch: a host process with a worker, and a guest process with many guests in it.

```text
   guest process (near core)                        host process (far core)
   Guests.join(n)     RAM by SCM_RIGHTS, layout ──►  Host.attach(n): fabric port behind the switch
                      ◄── four doorbells a guest
   generator and sink in one thread                 one worker thread
```

The data path is the real one: native driver halves, fabric, worker. What is left out is the bus: who may join is not
what is measured here. One channel between the two, made by the parent, carries memory and doorbells.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import msgspec

from vbnet._native import (
    CAPTURE_RING_MAX,
    BenchExchange,
    BenchWindows,
    CounterFile,
    Fabric,
    NicGrant,
    Ram,
    Venet,
    VenetLayout,
)
from vbnet.devices.venet.wire import OFFLOADS, REQUEST, RequestFlag, RequestKind
from vbnet.errors import PeerGone, UsageError
from vbnet.load.bench.machine import Cores
from vbnet.load.bench.side import Side

__all__ = ["Guests", "Host", "Stage", "guest_mac"]

_SWITCH: Final = "bench"
_CALL_SECONDS: Final = 60.0
_MESSAGE_BYTES: Final = 4096
_BELLS: Final = 4
_COUNTER_BYTES: Final = 64 << 20
_ETHERTYPE: Final = b"\x88\xb5"
"""For local experiments (IEEE 802)."""
RARE_ETHERTYPE: Final = b"\x88\xb6"
"""The other one for local experiments."""
_TURN_FRAMES: Final = 64
"""Frames sent between two decisions whether there is room for more under way."""
_TURNS_A_LOOK: Final = 16
_LOST_AFTER_SECONDS: Final = 0.02
"""How long nothing may come back before what is under way counts as lost."""
_GONE_AFTER_SECONDS: Final = 5.0
"""How long nothing may come back before nothing will."""
_EVERYTHING: Final = NicGrant(list(OFFLOADS.values()), list(OFFLOADS.values()), is_scattered=True, is_merged=True)
_HEADERS: Final = 54
_PLAIN_BYTES: Final = 1514
_PLAIN_FRAMES: Final = 44
"""Plain frames at a time, about the payload of a long one."""
_LONG_PAYLOAD: Final = 44 * (_PLAIN_BYTES - _HEADERS)
_LONG_UNDER_WAY: Final = 4
_OWN_BYTES: Final = 1 << 16
_SENDER: Final = 0
_RECEIVER: Final = 1


def guest_mac(number: int) -> str:
    """Address of guest ``number``: locally administered, different for each of the first 2^32."""
    return ":".join(f"{byte:02x}" for byte in (0x02, 0xBE, *number.to_bytes(4, "big")))


def _raise_descriptor_limit() -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Offer(msgspec.Struct):
    """What a guest says about the memory it hands over."""

    number: int
    mtu: int
    tx: tuple[int, int]
    rx: tuple[int, int]
    has_offloads: bool


class Host:
    """The host's side: a fabric with one worker (runs in a process of its own).

    Args:
        channel: descriptor of the channel to the guest's side.
        is_loop: each guest's frames come back to itself, without a switch.
        burst_threshold_us: how long a port is polled after its last frame; 0: the worker sleeps at once.
        does_count: the worker counts and times what it moves, as anywhere but in a bench.
    """

    def __init__(
        self, channel: int, burst_threshold_us: int, *, is_loop: bool = False, does_count: bool = True
    ) -> None:
        _raise_descriptor_limit()
        self._channel = socket.socket(fileno=channel)
        self._counters = CounterFile.create(None, _COUNTER_BYTES)
        self._fabric = Fabric(self._counters, 1, does_count=does_count)
        self._switch = "" if is_loop else _SWITCH
        if self._switch:
            self._fabric.switch_create(_SWITCH)
        self._burst_threshold_us = burst_threshold_us

    def attach(self, count: int) -> None:
        """Attach the next ``count`` guests that offer themselves."""
        for _ in range(count):
            message, fds, _flags, _address = socket.recv_fds(self._channel, _MESSAGE_BYTES, 1)
            if not message or len(fds) != 1:
                raise PeerGone("the guest's side ended while joining")
            offer = msgspec.json.decode(message, type=_Offer)
            bells = tuple(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(_BELLS))
            ram = Ram.open(fds[0])
            try:
                self._fabric.port_add_venet(
                    self._switch,
                    f"guest{offer.number}",
                    ram,
                    offer.tx,
                    offer.rx,
                    (bells[0], bells[1], bells[2], bells[3]),
                    mac=guest_mac(offer.number),
                    mtu=offer.mtu,
                    burst_threshold_us=self._burst_threshold_us,
                    grant=_EVERYTHING if offer.has_offloads else None,
                )
                socket.send_fds(self._channel, [b"bells"], bells)
            finally:
                ram.close()
                for fd in (*fds, *bells):
                    os.close(fd)

    def capture(self, program: str) -> int:
        """Begin to capture at the first guest's port what a filter, in hexadecimal, wants; nobody reads it."""
        capture, ring, bell = self._fabric.watch_add(
            f"guest{_SENDER}", bytes.fromhex(program), ring_bytes=CAPTURE_RING_MAX
        )
        os.close(ring)
        os.close(bell)
        return capture

    def uncapture(self, capture: int) -> None:
        """End a capture."""
        self._fabric.watch_remove(capture)

    def dropped(self) -> int:
        """Frames any port of the fabric dropped so far, whatever the reason."""
        return sum(
            value for port in self._fabric.ports() for name, value in _counters_of(port).items() if "drop" in name
        )

    def close(self) -> None:
        """End the worker."""
        self._fabric.close()
        self._channel.close()


def _counters_of(port: dict[str, Any]) -> dict[str, int]:
    counters = port.get("counters", {})
    return counters if isinstance(counters, dict) else {}


class Guests:
    """The guest's side: any number of guests in one process (runs in a process of its own).

    Args:
        channel: descriptor of the channel to the host's side.
    """

    def __init__(self, channel: int) -> None:
        _raise_descriptor_limit()
        self._channel = socket.socket(fileno=channel)
        self._devices: list[Venet] = []
        self._rams: list[Ram] = []
        self._exchange: BenchExchange | None = None

    def join(self, count: int, mtu: int, slots: int, offloads: int = 0) -> None:
        """Make ``count`` guests with rings of ``slots`` slots each and join them to the host.

        The first ``offloads`` of all are granted everything, and have room for a long frame behind their device.
        """
        for _ in range(count):
            number = len(self._devices)
            has_offloads = number < offloads
            grant = _EVERYTHING if has_offloads else None
            layout = VenetLayout(mtu=mtu, tx_slots=slots, rx_slots=slots, grant=grant)
            ram = Ram.create(layout.ram_bytes + (_OWN_BYTES if has_offloads else 0))
            device = Venet(ram, mtu=mtu, tx_slots=slots, rx_slots=slots, grant=grant)
            offer = _Offer(
                number, mtu, (layout.tx_offset, layout.tx_length), (layout.rx_offset, layout.rx_length), has_offloads
            )
            socket.send_fds(self._channel, [msgspec.json.encode(offer)], [ram.fileno()])
            _message, bells, _flags, _address = socket.recv_fds(self._channel, _MESSAGE_BYTES, _BELLS)
            if len(bells) != _BELLS:
                raise PeerGone("the host's side ended while joining")
            device.connect(*bells)
            for fd in bells:
                os.close(fd)
            self._devices.append(device)
            self._rams.append(ram)

    def go_native(self, *, is_loop: bool = False, does_stamp: bool = True) -> None:
        """Hand the first two guests to the native generator and sink; with a loop, the first is both."""
        sending = self._devices[_SENDER]
        receiving = sending if is_loop else self._devices[_RECEIVER]
        self._exchange = BenchExchange(sending, receiving, does_stamp=does_stamp)

    def frames_per_second(
        self,
        frame_bytes: int,
        batch: int,
        under_way: int,
        windows: tuple[float, float, int],
        *,
        has_rare: bool = False,
    ) -> list[float]:
        """Frames a second through the switch, one sample a window; with ``has_rare`` one in a thousand is rare."""
        return self._native.frames_per_second(
            frame(frame_bytes),
            BenchWindows(*windows),
            batch=batch,
            under_way=under_way,
            rare=frame(frame_bytes, RARE_ETHERTYPE) if has_rare else None,
        )

    def round_trip_ns(self, frame_bytes: int, windows: tuple[float, float, int], *, is_asleep: bool) -> list[float]:
        """Nanoseconds of one frame from guest to guest, one sample a window."""
        return self._native.round_trip_ns(frame(frame_bytes), BenchWindows(*windows), is_asleep=is_asleep)

    def objects_per_second(
        self, frame_bytes: int, batch: int, under_way: int, windows: tuple[float, float, int]
    ) -> list[float]:
        """``bytes`` objects a second from Python through ``send`` and back into Python through ``recv``."""
        return _objects_per_second(
            (self._devices[_SENDER], self._devices[_RECEIVER]), frame(frame_bytes), batch, under_way, windows
        )

    def payload_per_second(self, *, is_long: bool, windows: tuple[float, float, int]) -> list[float]:
        """Bits of payload a second from Python through the switch and back, in long frames or in plain ones."""
        pair = (self._devices[_SENDER], self._devices[_RECEIVER])
        if not is_long:
            turn = _turn_by_batch(*pair, frame(_PLAIN_BYTES), _PLAIN_FRAMES)
            rates = _rates(turn, _PLAIN_FRAMES, 4 * _PLAIN_FRAMES, windows)
            return [rate * (_PLAIN_BYTES - _HEADERS) * 8 for rate in rates]
        ram = self._rams[_SENDER]
        own = memoryview(ram.view(ram.size - _OWN_BYTES, _LONG_PAYLOAD))
        turn = _turn_by_long(*pair, _long_head(), own)
        return [rate * 8 for rate in _rates(turn, _LONG_PAYLOAD, _LONG_UNDER_WAY * _LONG_PAYLOAD, windows)]

    def close(self) -> None:
        """Let go of the channel; memory and devices end with the process."""
        self._channel.close()

    @property
    def _native(self) -> BenchExchange:
        if self._exchange is None:
            raise UsageError("call go_native first: these guests still belong to Python")
        return self._exchange


def frame(frame_bytes: int, ethertype: bytes = _ETHERTYPE) -> bytes:
    """An Ethernet frame of so many bytes from the first guest to the second."""
    mac = [bytes.fromhex(guest_mac(number).replace(":", "")) for number in (_RECEIVER, _SENDER)]
    return (mac[0] + mac[1] + ethertype).ljust(frame_bytes, b"\xa5")


def _objects_per_second(
    pair: tuple[Venet, Venet], content: bytes, batch: int, under_way: int, windows: tuple[float, float, int]
) -> list[float]:
    """Send and receive in turn in one thread, as a Python program would."""
    sender, receiver = pair
    turn = _turn_by_one(sender, receiver, content) if batch == 1 else _turn_by_batch(sender, receiver, content, batch)
    return _rates(turn, _TURN_FRAMES if batch == 1 else batch, under_way, windows)


def _rates(turn: Callable[[bool], int], size: int, under_way: int, windows: tuple[float, float, int]) -> list[float]:
    """What turns receive a second, each of which may send ``size``; the clock is read once in a while.

    What does not come back for a while is lost, and other objects are sent in its place: a receiver without room loses
    what was cut for it. On a busy machine the host may not run for longer than a window, which lasts until something
    came.
    """
    warm_up_seconds, window_seconds, count = windows
    outstanding = received = total = total_before = 0
    rates: list[float] = []
    begun = heard = arrived = time.perf_counter()
    end = begun + warm_up_seconds
    is_warm = False
    while len(rates) < count:
        for _ in range(_TURNS_A_LOOK):
            is_sending = outstanding + size <= under_way
            got = turn(is_sending)
            outstanding += size - got if is_sending else -got
            received += got
            total += got
        now = time.perf_counter()
        if total != total_before:
            heard, arrived, total_before = now, now, total
        elif now - heard > _LOST_AFTER_SECONDS:
            if now - arrived > _GONE_AFTER_SECONDS:
                raise PeerGone("no object came back")
            heard, outstanding = now, 0
        # Of what was given up some may come late.
        outstanding = max(outstanding, 0)
        if now >= end and (received != 0 or not is_warm):
            if is_warm:
                rates.append(received / (now - begun))
            is_warm = True
            begun, end, received = now, now + window_seconds, 0
    return rates


def _turn_by_batch(sender: Venet, receiver: Venet, content: bytes, batch: int) -> Callable[[bool], int]:
    """``send`` a list, ``recv`` a list."""
    frames = [content] * batch
    send, recv = sender.send, receiver.recv

    def turn(is_sending: bool) -> int:
        if is_sending:
            send(frames)
        return len(recv(batch, 0.0))

    return turn


def _turn_by_long(sender: Venet, receiver: Venet, head: bytes, payload: memoryview) -> Callable[[bool], int]:
    """One long frame from the guest's own memory, to be cut unless the receiver takes it whole."""
    pieces = (head, payload)
    request = REQUEST.pack(RequestFlag.NEEDS_CSUM, RequestKind.TCP4, _HEADERS, _PLAIN_BYTES - _HEADERS, 34, 16)
    send, recv = sender.send_pieces, receiver.recv

    def turn(is_sending: bool) -> int:
        if is_sending:
            send(pieces, request)
        return sum(len(frame) - _HEADERS for frame in recv(_TURN_FRAMES, 0.0))

    return turn


def _long_head() -> bytes:
    """Headers of Ethernet, IPv4 and TCP from the first guest to the second; what no switch looks at is left 0."""
    length = 20 + _LONG_PAYLOAD
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + length, 0, 0x4000, 64, 6, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
    tcp = struct.pack(">HHIIBBHHH", 1, 2, 0, 0, 0x50, 0x10, 0, 0, 0)
    return frame(14, b"\x08\0") + ip + tcp


def _turn_by_one(sender: Venet, receiver: Venet, content: bytes) -> Callable[[bool], int]:
    """``send_frame`` one, ``recv_frame`` one, and so on."""
    send, recv = sender.send_frame, receiver.recv_frame
    turns = range(_TURN_FRAMES)

    def turn(is_sending: bool) -> int:
        got = 0
        if is_sending:
            for _ in turns:
                send(content)
                if recv(0.0):
                    got += 1
        else:
            for _ in turns:
                if recv(0.0):
                    got += 1
        return got

    return turn


@dataclass(slots=True)
class Stage:
    """Host and guests, up and joined.

    Args:
        host: the host's process.
        guests: the guests' process.
    """

    host: Side
    guests: Side

    @classmethod
    @contextlib.contextmanager
    def up(
        cls,
        cores: Cores,
        *,
        mtu: int = 1500,
        slots: int = 1024,
        burst_threshold_us: int = 50,
        is_loop: bool = False,
        does_count: bool = True,
        offloads: int = 0,
    ) -> Iterator[Self]:
        """Start both sides, guests on the near core and host on the far one, and join the two active guests.

        The first ``offloads`` guests are granted everything beyond plain frames.
        """
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as stack:
            for end in ends:
                stack.enter_context(end)
            fds = [end.fileno() for end in ends]
            params = {
                "channel": fds[0],
                "burst_threshold_us": burst_threshold_us,
                "is_loop": is_loop,
                "does_count": does_count,
            }
            host = stack.enter_context(Side(f"{__name__}:Host", cores.far, params, [fds[0]]))
            guests = stack.enter_context(Side(f"{__name__}:Guests", cores.near, {"channel": fds[1]}, [fds[1]]))
            found = cls(host, guests)
            found.join(1 if is_loop else 2, mtu=mtu, slots=slots, offloads=offloads)
            yield found

    def join(self, count: int, *, mtu: int, slots: int, offloads: int = 0) -> None:
        """Join ``count`` more guests; of all, the first ``offloads`` are granted everything."""
        self.guests.begin("join", count=count, mtu=mtu, slots=slots, offloads=offloads)
        self.host.call("attach", _CALL_SECONDS, count=count)
        self.guests.finish(_CALL_SECONDS)

    @property
    def pids(self) -> Sequence[int]:
        """Both processes."""
        return (self.host.pid, self.guests.pid)
