"""A switch fabric that moves nothing and remembers everything."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbnet.errors import BusyError, ExistsError, NotFoundError, PeerFault

if TYPE_CHECKING:
    from vbnet._native import NicGrant
    from vbnet.sharedmem import Ram

__all__ = ["FakeFabric"]


@dataclass(frozen=True, slots=True)
class FakePort:
    """A port that takes no queues."""

    id: int


class FakeFabric:
    """Stands in for the native fabric; ``fault`` makes it report a quarantine."""

    def __init__(self) -> None:
        self.is_closed = False
        self.watches: dict[int, dict[str, Any]] = {}
        self._switches: dict[str, float] = {}
        self._ports: dict[int, dict[str, Any]] = {}
        self._ids = itertools.count(1)
        self._faults: list[dict[str, Any]] = []
        self._fault_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    @property
    def counters(self) -> None:
        """It counts nowhere."""

    def switch_create(self, name: str, ageing_s: float = 300) -> None:
        """Remember a switch."""
        if name in self._switches:
            raise ExistsError(f"switch {name!r} exists already", switch=name)
        self._switches[name] = ageing_s

    def switch_delete(self, name: str) -> None:
        """Forget a switch without ports."""
        self._need(name)
        if any(port["switch"] == name for port in self._ports.values()):
            raise BusyError(f"switch {name!r} has ports", switch=name)
        del self._switches[name]

    def switches(self) -> Sequence[str]:
        """Names of all switches."""
        return list(self._switches)

    def macs(self, switch: str) -> Sequence[Mapping[str, Any]]:
        """It learns nothing."""
        self._need(switch)
        return []

    def port_add_venet(  # noqa: PLR0917 - the native fabric's signature
        self,
        switch: str,
        name: str,
        ram: Ram,
        tx: tuple[int, int],
        rx: tuple[int, int],
        bells: tuple[int, int, int, int],
        *,
        mac: str,
        signals: object = None,
        lines: tuple[int, int] | None = None,
        guest: str = "",
        grant: NicGrant | None = None,
        **settings: int,
    ) -> int:
        """Remember a venet port; rings that leave the memory are the guest's fault."""
        for offset, length in (tx, rx):
            if offset + length > ram.size:
                raise PeerFault(rule="ring within memory", got=offset + length, limit=ram.size)
        del signals, lines, guest
        for bell in bells:
            os.fstat(bell)
        return self.add_port(switch, name, "venet", mac=mac, grant=grant, **settings)

    def port_add_nic(
        self,
        switch: str,
        name: str,
        card: object,
        signals: object,
        line: int,
        *,
        mac: str,
        guest: str = "",
        **settings: int,
    ) -> int:
        """Remember an emulated card."""
        del card, signals, line, guest
        return self.add_port(switch, name, "nic", mac=mac, **settings)

    def port_flush_rx(self, port: int, /) -> int:
        """No buffer was ever posted."""
        if port not in self._ports:
            raise NotFoundError(f"there is no port {port}", port=port)
        return 0

    def port_add_tap(self, switch: str, name: str, fd: int, mtu: int, *, guest: str = "") -> int:
        """Remember a TAP port."""
        del guest
        os.fstat(fd)
        return self.add_port(switch, name, "tap", mtu=mtu, offloads=[])

    def port_add_vhost_user(
        self,
        switch: str,
        name: str,
        socket: Path,
        *,
        mac: str = "00:00:00:00:00:00",
        mtu: int = 1500,
        does_connect: bool = False,
        is_front_end: bool = False,
    ) -> int:
        """Remember a port that waits for whoever is at the other end; nobody listens, and nobody is connected to."""
        kind = "front-end" if is_front_end else "vhost-user"
        return self.add_port(
            switch,
            name,
            kind,
            mac=mac,
            mtu=mtu,
            device=str(socket),
            does_connect=does_connect,
            is_served=False,
            has_waiting=False,
        )

    def port_add_virtio_net(self, switch: str, name: str, *, mac: str, guest: str = "", **settings: int) -> FakePort:
        """Remember a port for queues that nobody serves."""
        del guest
        return FakePort(self.add_port(switch, name, "virtio-net", mac=mac, is_served=False, **settings))

    def add_port(self, switch: str, name: str, kind: str, **facts: object) -> int:
        """Remember a port of any kind."""
        if switch:
            self._need(switch)
        port = next(self._ids)
        self._ports[port] = {"id": port, "switch": switch, "name": name, "kind": kind, **facts}
        return port

    def port_remove(self, port: int, /) -> None:
        """Forget a port."""
        if self._ports.pop(port, None) is None:
            raise NotFoundError(f"there is no port {port}", port=port)

    def port_set(self, port: int, key: str, value: str, /) -> None:
        """Remember a setting."""
        self._ports[port][key] = value

    def ports(self) -> Sequence[Mapping[str, Any]]:
        """Every port."""
        return list(self._ports.values())

    def watch_add(
        self,
        port: str,
        program: bytes,
        *,
        snap_bytes: int = 65535,
        ring_bytes: int = 1 << 22,
        trace_frames: int | None = None,
    ) -> tuple[int, int, int]:
        """Remember who looks at a port; nothing ever comes."""
        watch = next(self._ids)
        self.watches[watch] = {
            "port": port,
            "program": program,
            "snap_bytes": snap_bytes,
            "ring_bytes": ring_bytes,
            "trace_frames": trace_frames,
        }
        bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return watch, os.memfd_create("fake-capture", os.MFD_CLOEXEC), bell

    def watch_remove(self, watch: int, /) -> None:
        """Forget who looks."""
        if self.watches.pop(watch, None) is None:
            raise NotFoundError(f"there is no capture {watch}", watch=watch)

    def fault(self, **facts: object) -> None:
        """Have a port be quarantined."""
        self._faults.append(facts)
        os.eventfd_write(self._fault_fd, 1)

    def fault_fd(self) -> int:
        """Readable while there are faults."""
        return self._fault_fd

    def take_faults(self) -> Sequence[Mapping[str, Any]]:
        """Every fault since the last call."""
        os.eventfd_read(self._fault_fd)
        faults, self._faults = self._faults, []
        return faults

    def close(self) -> None:
        """Forget everything."""
        if not self.is_closed:
            self.is_closed = True
            os.close(self._fault_fd)

    def _need(self, switch: str) -> None:
        if switch not in self._switches:
            raise NotFoundError(f"there is no switch {switch!r}", switch=switch)
