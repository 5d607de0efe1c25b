"""How an operator's process takes captures: the operate socket, without asyncio.

The connection is held for as long as the captures are wanted: its hang-up, by ``close`` or by the death of this
process, is how the host learns that nobody looks any more. Packets: docs/wire/attach.md; what is in the memory that
comes: docs/wire/capture.md.
"""

from __future__ import annotations

import os
import select
import time
from dataclasses import dataclass
from typing import Final

from vbnet.bus import fdpass
from vbnet.bus.closing import Closing
from vbnet.bus.limits import REQUEST_DEADLINE_S
from vbnet.bus.rundir import RunDir
from vbnet.errors import DeadlineError, PeerFault, PeerGone, ResourceError, error_from_refusal

__all__ = ["DEFAULT_RING_BYTES", "SNAP_BYTES", "CaptureEnds", "CaptureLink"]

DEFAULT_RING_BYTES: Final = 4 << 20
"""Some three thousand frames of full size, or fifty thousand short ones, between two looks of the reader."""
SNAP_BYTES: Final = 65535 + 18
"""The longest frame there is: nothing is cut."""


@dataclass(frozen=True, slots=True)
class CaptureEnds:
    """One capture: its number, and the descriptors of its ring and of the doorbell that wakes its reader."""

    capture: int
    ring_fd: int
    bell_fd: int


class CaptureLink(Closing):
    """A connection that captures hang on; a context manager.

    Args:
        run_dir: of the host node.
        deadline_s: how long each request may take.

    Raises:
        NotFoundError: no host node runs there. DeadlineError: it lets nobody in.
    """

    def __init__(self, run_dir: RunDir, deadline_s: float = REQUEST_DEADLINE_S) -> None:
        self._run_dir = run_dir
        self._deadline_s = deadline_s
        self._sock = fdpass.connect_fds(run_dir, run_dir.operate_socket, deadline_s)
        self._seq = 0
        self._ends: list[CaptureEnds] = []

    def fileno(self) -> int:
        """Readable when the host has hung up: nothing else comes unasked."""
        return self._sock.fileno()

    def capture(
        self,
        port: str,
        program: bytes = b"",
        *,
        snap_bytes: int = SNAP_BYTES,
        ring_bytes: int = DEFAULT_RING_BYTES,
        trace_frames: int = 0,
    ) -> CaptureEnds:
        """Look at a port from now on; the descriptors stay this object's.

        Raises:
            NotFoundError: there is no such port. UsageError: the program fails the host's check, or a size cannot be.
            BusyError, ResourceError: too many captures. PeerGone: the host ended. DeadlineError: no answer.
        """
        self._seq += 1
        body = fdpass.Capture(port, program, snap_bytes, ring_bytes, trace_frames)
        try:
            self._sock.send(fdpass.encode_packet(self._seq, body))
        except OSError as error:
            raise self._gone(str(error.strerror)) from error
        reply, fds = self._answer()
        if isinstance(reply, fdpass.FdRefused):
            _close_all(fds)
            raise error_from_refusal(reply.code, reply.message, reply.detail)
        if not isinstance(reply, fdpass.Captured):
            _close_all(fds)
            raise PeerFault(f"the host answered Capture with {type(reply).__name__}", rule="same verb")
        if len(fds) != 2:  # noqa: PLR2004 - ring and doorbell
            _close_all(fds)
            raise ResourceError("the capture's descriptors did not arrive; this process has no room for them")
        ends = CaptureEnds(reply.capture, *fds)
        self._ends.append(ends)
        return ends

    def hang_up(self) -> None:
        """End the captures; what is in their rings can still be read."""
        self._sock.close()

    def close(self) -> None:
        """End the captures and close their descriptors; harmless when closed already."""
        self.hang_up()
        while self._ends:
            ends = self._ends.pop()
            _close_all([ends.ring_fd, ends.bell_fd])

    def _answer(self) -> tuple[fdpass.AttachReply, list[int]]:
        ends_at = time.monotonic() + self._deadline_s
        while True:
            readable, _, _ = select.select([self._sock], [], [], max(0.0, ends_at - time.monotonic()))
            if not readable:
                raise DeadlineError(
                    f"the host node in {self._run_dir.path} does not answer", deadline_s=self._deadline_s
                )
            try:
                data, fds, _is_cut = fdpass.receive_packet(self._sock)
            except OSError as error:
                raise self._gone(str(error.strerror)) from error
            if not data:
                _close_all(fds)
                raise self._gone("it hung up")
            seq, reply = fdpass.decode_attach_reply(data)
            if seq == self._seq:
                return reply, fds
            _close_all(fds)

    def _gone(self, reason: str) -> PeerGone:
        return PeerGone(f"the host node in {self._run_dir.path} ended: {reason}", reason=reason)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
