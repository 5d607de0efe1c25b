"""The switch fabric as the rest of the host sees it.

The real one is native (``vbnet._native.Fabric``): worker threads that move frames between ports without the
interpreter. Admin verbs and the venet device speak to it through this protocol only; ``vbnet.testing.FakeFabric`` is
another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from vbnet.sharedmem import Ram

__all__ = ["Fabric"]


class Fabric(Protocol):
    """Switches and their ports. Unknown names raise NotFoundError, taken ones ExistsError."""

    @property
    def counters(self) -> Any:  # noqa: ANN401 - the native counter file, not known to this layer
        """The file it counts into, where others of this host may count too; None: it counts nowhere."""

    def switch_create(self, name: str, ageing_s: float = 300) -> None:
        """Make a learning switch that forgets an address after ``ageing_s`` seconds without a frame from it."""

    def switch_delete(self, name: str) -> None:
        """Remove a switch without ports; BusyError while it has some."""

    def switches(self) -> Sequence[str]:
        """Names of all switches."""

    def macs(self, switch: str) -> Sequence[Mapping[str, Any]]:
        """What a switch learned: ``mac``, ``port`` and ``age_s`` of each address."""

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
        mtu: int = ...,
        tx_mitigation: int = ...,
        burst_threshold_us: int = ...,
        budget: int = ...,
        priority: int = ...,
        signals: Any = ...,  # noqa: ANN401 - the native signal table
        lines: tuple[int, int] | None = ...,
        guest: str = ...,
        grant: Any = ...,  # noqa: ANN401 - the native grant
    ) -> int:
        """Join a guest's rings to a switch, or to themselves when ``switch`` is empty; gives the port's id.

        Args:
            switch: name of the switch.
            name: of the port, unique.
            ram: the guest's memory.
            tx: byte offset and length of the ring of frames from the guest.
            rx: byte offset and length of the ring of buffers for the guest.
            bells: TX kick, TX call, RX kick, RX call; duplicated.
            mac: of the guest's end; the switch sends its frames here from the start.
            mtu: largest packet, bytes.
            tx_mitigation: frames sent per completion signal; 0: one a batch.
            burst_threshold_us: how long the port is polled after its last frame, at most.
            budget: frames taken at a turn.
            priority: 0..7; a more urgent port gets a turn before each turn of one that is less.
            signals: the host's native signal table, with ``lines``.
            lines: of the table, what to raise for TX and RX; None rings the call doorbells themselves.
            guest: whose rings these are, for counters.
            grant: what was agreed on with the driver beyond plain frames; None: nothing.

        Raises:
            PeerFault: the rings are not what they should be (the guest's fault).
        """

    def port_add_nic(
        self,
        switch: str,
        name: str,
        card: Any,  # noqa: ANN401 - the native card, not known to this layer
        signals: Any,  # noqa: ANN401 - the native signal table
        line: int,
        *,
        mac: str,
        mtu: int = ...,
        burst_threshold_us: int = ...,
        budget: int = ...,
        guest: str = ...,
    ) -> int:
        """Join an emulated card to a switch; gives the port's id.

        Args:
            switch: name of the switch.
            name: of the port, unique.
            card: what answers its driver's traps.
            signals: the host's native signal table.
            line: of the table, what the card interrupts by.
            mac: of the guest's end; the switch sends its frames here from the start.
            mtu: largest packet, bytes.
            burst_threshold_us: how long the port is polled after its last frame, at most.
            budget: frames taken at a turn.
            guest: whose card it is, for counters.
        """

    def port_flush_rx(self, port: int, /) -> int:
        """Give every posted buffer back empty; how many there were."""

    def port_add_tap(self, switch: str, name: str, fd: int, mtu: int, *, guest: str = ...) -> int:
        """Join a TAP by its descriptor, which the fabric duplicates; gives the port's id.

        Args:
            switch: to join.
            name: of the port.
            fd: of the TAP.
            mtu: longest IP packet, in bytes.
            guest: whose it is, for its counters; "": the machine's own.
        """

    def port_add_vhost_user(
        self,
        switch: str,
        name: str,
        socket: Path,
        *,
        mac: str = ...,
        mtu: int = ...,
        does_connect: bool = ...,
        is_front_end: bool = ...,
    ) -> int:
        """Listen on a socket for front ends of vhost-user, whose network card is a port; gives the port's id.

        Args:
            switch: name of the switch.
            name: of the port, unique.
            socket: absolute path, at most 107 bytes; made for its owner only, removed with the port.
            mac: of the card, told to front ends and known to the switch from the start; zeroes for none.
            mtu: largest packet, bytes.
            does_connect: connect to the socket instead, where front ends listen, and again whenever nobody is there.
            is_front_end: the port is the front end itself, and whoever is at the other end serves its queues.

        Raises:
            ExistsError: the name is taken, or something is at the path that is no socket, or that is listened on.
        """

    def port_add_virtio_net(
        self,
        switch: str,
        name: str,
        *,
        mac: str,
        mtu: int = ...,
        burst_threshold_us: int = ...,
        budget: int = ...,
        priority: int = ...,
        guest: str = ...,
    ) -> Any:  # noqa: ANN401 - the native port, which a native device takes
        """Make a port for a virtio network card, which gets its queues from the card's driver; gives it, ``id`` in it.

        Args:
            switch: name of the switch.
            name: of the port, unique.
            mac: of the guest's end; the switch sends its frames here from the start.
            mtu: largest packet, bytes.
            burst_threshold_us: how long the port is polled after its last frame, at most.
            budget: frames taken at a turn.
            priority: 0..7; a more urgent port gets a turn before each turn of one that is less.
            guest: whose it is, for its counters.
        """

    def port_remove(self, port: int, /) -> None:
        """Take a port off its switch; when this returns no worker touches its memory or descriptors."""

    def port_set(self, port: int, key: str, value: str, /) -> None:
        """Change a port while it runs."""

    def ports(self) -> Sequence[Mapping[str, Any]]:
        """Every port: ``id``, ``name``, ``switch``, ``kind``, and its state and counts."""

    def watch_add(
        self, port: str, program: bytes, *, snap_bytes: int = ..., ring_bytes: int = ..., trace_frames: int | None = ...
    ) -> tuple[int, int, int]:
        """Show what passes a port: a number, and the descriptors of ring and doorbell, which are the caller's.

        Args:
            port: its name. When it is removed, the watch goes on with the next port of that name.
            program: instructions of a filter, 8 bytes each; none = everything.
            snap_bytes: most bytes kept of a frame.
            ring_bytes: room for records, a power of two.
            trace_frames: follow so many frames that come out of the guest, instead of keeping all.

        Raises:
            UsageError: the filter is no program, or a size cannot be.
            BusyError: the port, or the fabric, is watched too often.
        """

    def watch_remove(self, watch: int, /) -> None:
        """Show it no more."""

    def fault_fd(self) -> int:
        """Readable while ``take_faults`` has something; the fabric's own."""

    def take_faults(self) -> Sequence[Mapping[str, Any]]:
        """Quarantines since the last call: ``port``, ``name``, ``rule`` and whatever values belong to it."""

    def close(self) -> None:
        """Stop the workers."""
