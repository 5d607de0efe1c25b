"""How an operator gives a host node descriptors and takes them: the operate socket.

ZeroMQ carries no descriptors, so these requests travel beside the others. The connection is made when one is asked,
and kept while the host holds something that is to end with it: then its hang-up, by ``close`` or by the death of this
process, is how the host learns that nobody drives those signals any more. Packets: docs/wire/attach.md.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import TypeVar

from vbnet.bus import fdpass
from vbnet.bus.fdpass import FdChannel
from vbnet.bus.link import Requests
from vbnet.bus.messages import MessageFault
from vbnet.bus.rundir import RunDir
from vbnet.clock import Clock
from vbnet.errors import (
    ClosedError,
    NotFoundError,
    PeerFault,
    PeerGone,
    ResourceError,
    UsageError,
    VbnetError,
    error_from_refusal,
)

__all__ = ["Handover"]

_ReplyT = TypeVar("_ReplyT", fdpass.Exported, fdpass.Driven, fdpass.Inserted)
_log = logging.getLogger("vbnet.operator")


class Handover:
    """One operator's way to hand descriptors over, on the running loop.

    Args:
        run_dir: of the host node.
        clock: for deadlines.
        deadline_s: how long each request may take.
    """

    def __init__(self, run_dir: RunDir, clock: Clock, deadline_s: float) -> None:
        self._run_dir = run_dir
        self._clock = clock
        self._deadline_s = deadline_s
        self._channel: FdChannel | None = None
        self._requests: Requests[tuple[fdpass.AttachReply, list[int]]] = Requests(clock)
        self._drives: dict[int, asyncio.Future[VbnetError | None]] = {}
        self._is_closed = False

    async def export(self, signal: str) -> int:
        """An eventfd to which a signal leads from now on; it is the caller's."""
        try:
            _, [fd] = await self._ask(fdpass.Export(signal), (), fdpass.Exported)
            return fd
        finally:
            self._hang_up_if_idle()

    async def drive(self, signal: str, fd: int, *, keep: bool) -> int:
        """Let an eventfd, which stays the caller's, raise a signal; gives the number of this drive.

        Raises:
            UsageError: the descriptor is not open, or no eventfd.
        """
        _check_open(fd)
        try:
            reply, _ = await self._ask(fdpass.Drive(signal, keep), (fd,), fdpass.Driven)
            if keep:
                del self._drives[reply.source]  # the host will never tell of it
            return reply.source
        finally:
            self._hang_up_if_idle()

    async def insert(self, device: str, fd: int, name: str, *, is_read_only: bool) -> None:
        """Put an open file, which stays the caller's, into a device.

        Raises:
            UsageError: the descriptor is not open, or the device has no use for such a file.
        """
        _check_open(fd)
        try:
            await self._ask(fdpass.Insert(device, name, is_read_only), (fd,), fdpass.Inserted)
        finally:
            self._hang_up_if_idle()

    async def ended(self, source: int) -> None:
        """Return when a drive is over because its signal was destroyed; what else ended it is raised.

        Raises:
            NotFoundError: no such drive, or it was told already that it is over.
        """
        future = self._drives.get(source)
        if future is None:
            raise NotFoundError(f"this operator has no drive {source} that ends with it", source=source)
        error = await asyncio.shield(future)
        self._drives.pop(source, None)
        if error is not None:
            raise error

    def close(self) -> None:
        """Hang up: what was driven from here, and not to be kept, ends."""
        self._is_closed = True
        if self._channel is not None:
            self._channel.close()
        self._fail(ClosedError("this operator is closed"))

    # ---- inside ----------------------------------------------------------------------------------------------------

    async def _ask(
        self, body: fdpass.Export | fdpass.Drive | fdpass.Insert, fds: Sequence[int], wanted: type[_ReplyT]
    ) -> tuple[_ReplyT, list[int]]:
        channel = self._connected()
        seq, future = self._requests.begin(type(body).__name__.lower(), self._deadline_s)
        channel.send(fdpass.encode_packet(seq, body), fds)
        try:
            reply, came = await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                _close_all(future.result()[1])  # it came while the caller was being cancelled
            raise
        if not isinstance(reply, wanted):
            _close_all(came)
            raise PeerFault(f"the host answered {type(body).__name__} with {type(reply).__name__}", rule="same verb")
        return reply, came

    def _connected(self) -> FdChannel:
        if self._is_closed:
            raise ClosedError("this operator is closed")
        if self._channel is None or not self._channel.is_open:
            sock = fdpass.connect_fds(self._run_dir, self._run_dir.operate_socket, self._deadline_s)
            self._requests = Requests(self._clock)
            self._channel = FdChannel(sock, on_packet=self._packet, on_closed=self._hung_up)
        return self._channel

    def _hang_up_if_idle(self) -> None:
        is_held = len(self._requests) or not all(future.done() for future in self._drives.values())
        if self._channel is not None and not is_held:
            self._channel.close()

    def _hung_up(self, reason: str) -> None:
        self._fail(
            PeerGone(
                f"the host node in {self._run_dir.path} ended, or takes no more connections: {reason}", reason=reason
            )
        )

    def _fail(self, error: VbnetError) -> None:
        self._requests.fail_all(error)
        for future in self._drives.values():
            if not future.done():
                future.set_result(error)

    def _packet(self, data: bytes, fds: list[int], is_cut: bool) -> None:
        try:
            seq, body = fdpass.decode_attach_reply(data)
        except MessageFault as fault:
            _close_all(fds)
            _log.warning("the host sent a malformed packet: %s", fault)
            return
        if is_cut or len(fds) != isinstance(body, fdpass.Exported):
            _close_all(fds)
            error = ResourceError("the eventfd did not arrive; this process has no room for another descriptor")
            self._requests.refuse(seq, error)
        elif isinstance(body, fdpass.FdRefused):
            self._requests.refuse(seq, error_from_refusal(body.code, body.message, body.detail))
        elif isinstance(body, fdpass.DriveEnded):
            future = self._drives.get(body.source)
            if future is not None and not future.done():
                future.set_result(None)
            self._hang_up_if_idle()
        else:
            if isinstance(body, fdpass.Driven):
                self._drives[body.source] = asyncio.get_running_loop().create_future()
            if not self._requests.answer(seq, (body, fds)):
                _close_all(fds)


def _check_open(fd: int) -> None:
    """Raise UsageError unless this process has that descriptor."""
    try:
        os.fstat(fd)
    except (OSError, OverflowError) as error:
        raise UsageError(f"descriptor {fd} is not open in this process", fd=fd) from error


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
