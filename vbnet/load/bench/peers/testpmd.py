"""DPDK's testpmd as a peer: the vhost loop (guest → host → guest), the same with two cards, and memif one way.

```text
   vhost loop   core near                    core far
                testpmd, virtio-user, io  ⇄  testpmd, net_vhost, io     packets go round: sent first, then forwarded
   vhost pair   testpmd, two cards, io    ⇄  testpmd, two net_vhost, io, or vbnet: in by one card, out by the other
   memif        testpmd, txonly           →  testpmd, rxonly            zero-copy: the receiver copies out
```

Both programs are started once, forward only during their turn, and sleep between. Each has its main thread and its
one forwarding thread on its one core. The rate is the program's own (``Rx-pps`` since the last time it was asked),
read from the interactive prompt. In the vhost loop the forwarding guest is generator and sink in one and touches no
payload: the best case of that peer. With huge pages free (``vm.nr_hugepages``) both use them; without, they run with
``--no-huge``. Two pairs up at once, as in the vhost loop, need twice as many. Install: Debian packages ``dpdk-dev``
(testpmd), ``librte-net-vhost23``, ``librte-net-virtio23``, ``librte-net-memif23``.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vbnet.errors import DeadlineError, PeerGone, UnsupportedError
from vbnet.load.bench.machine import Cores, free_huge_pages
from vbnet.load.bench.pace import Pace
from vbnet.load.bench.program import Program

__all__ = ["Memif", "PortStatistics", "VhostLoop", "VhostPair", "parse_port_statistics", "why_not_installed"]

_PROGRAM: Final = "dpdk-testpmd"
_LIBRARIES: Final = ("librte_net_vhost.so", "librte_net_virtio.so", "librte_net_memif.so")
_LIBRARY_FOLDERS: Final = ("/usr/lib", "/usr/local/lib", "/usr/lib64")
_MEGABYTES: Final = 256
_PAGES_NEEDED: Final = 2 * _MEGABYTES // 2 + 16
"""Huge pages of 2 MiB for two programs, and a few to spare."""
_PROMPT: Final = r"testpmd> "
_STARTED: Final = r"Configuring Port 0[^>]*testpmd> "
_STOPPED: Final = r"Done\.\s+testpmd> "
_STATISTICS_END: Final = r"Tx-pps:\s+\d+.*\n\s+#{20,}\s+testpmd> "
_START_SECONDS: Final = 30.0
_ANSWER_SECONDS: Final = 10.0
_LEAST_WINDOW_SECONDS: Final = 0.25
_LEAST_WARM_UP_SECONDS: Final = 0.1
_CARD_MACS: Final = ("02:be:00:00:00:0a", "02:be:00:00:00:0b")
_BURST: Final = 32
_BURSTS_FIRST: Final = 16
"""Bursts that each of two cards sends first: some thousand frames go round from then on."""
_DRAIN_SECONDS: Final = 10.0
_FIELD: Final = re.compile(r"(RX-packets|TX-packets|RX-missed|TX-errors|Rx-pps|Tx-pps):\s+(\d+)")
_FIELDS: Final = 6
_PORT: Final = re.compile(r"NIC statistics for port (\d+)")


@dataclass(frozen=True, slots=True)
class PortStatistics:
    """What ``show port stats`` says of one port; rates are since the last time it was asked."""

    port: int
    rx_packets: int
    tx_packets: int
    rx_missed: int
    tx_errors: int
    rx_pps: int
    tx_pps: int


def parse_port_statistics(text: str) -> list[PortStatistics]:
    """Read the answer of ``show port stats all``, port by port; what is told incompletely is left out."""
    found = []
    headings = list(_PORT.finditer(text))
    for index, heading in enumerate(headings):
        end = headings[index + 1].start() if index + 1 < len(headings) else len(text)
        values = {name: int(value) for name, value in _FIELD.findall(text[heading.end() : end])}
        if len(values) == _FIELDS:
            found.append(
                PortStatistics(
                    port=int(heading[1]),
                    rx_packets=values["RX-packets"],
                    tx_packets=values["TX-packets"],
                    rx_missed=values["RX-missed"],
                    tx_errors=values["TX-errors"],
                    rx_pps=values["Rx-pps"],
                    tx_pps=values["Tx-pps"],
                )
            )
    return found


def why_not_installed() -> str | None:
    """Tell what to install to have this peer; ``None``: it is there."""
    packages = "Debian: dpdk-dev librte-net-vhost23 librte-net-virtio23 librte-net-memif23"
    if shutil.which(_PROGRAM) is None:
        return f"{_PROGRAM} is not installed ({packages})"
    missing = [name for name in _LIBRARIES if not _has_library(name)]
    return f"DPDK lacks {', '.join(missing)} ({packages})" if missing else None


def _has_library(name: str) -> bool:
    return any(
        next(Path(folder).glob(f"{between}{name}*"), None) is not None
        for folder in _LIBRARY_FOLDERS
        for between in ("", "*/", "dpdk/pmds-*/", "*/dpdk/pmds-*/")
    )


class _Pair:
    """Two testpmd programs in a folder of their own; the ``far`` one is started first and serves the socket."""

    label = ""

    def __init__(self, cores: Cores) -> None:
        missing = why_not_installed()
        if missing is not None:
            raise UnsupportedError(missing)
        self._stack = ExitStack()
        self._cores = cores
        self.is_huge = free_huge_pages() >= _PAGES_NEEDED
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vbnet-bench-")))
        self.pids: Sequence[int] = ()

    def _program(
        self, name: str, core: int, *vdevs: str, mode: str, frame_bytes: int, arguments: Sequence[str] = ()
    ) -> Program:
        memory = ("--in-memory",) if self.is_huge else ("--no-huge", "--no-shconf")
        program = Program(
            [
                _PROGRAM,
                "--lcores",
                f"0@{core},1@{core}",
                "--no-pci",
                "--no-telemetry",
                "--file-prefix",
                f"{self._folder.name}-{name}",
                "-m",
                str(_MEGABYTES),
                "--single-file-segments",
                *memory,
                *(part for vdev in vdevs for part in ("--vdev", vdev)),
                "--",
                "--interactive",
                "--nb-cores=1",
                f"--forward-mode={mode}",
                "--total-num-mbufs=16384",
                "--rxd=1024",
                "--txd=1024",
                f"--txpkts={frame_bytes}",
                *arguments,
            ],
            core,
            # What it leaves behind, it leaves in our folder.
            {"RUNTIME_DIRECTORY": str(self._folder)},
        )
        self._stack.push(program)
        program.hear(_STARTED, _START_SECONDS)
        return program

    def _rates(
        self,
        counted: Program,
        pace: Pace,
        rate: Callable[[Sequence[PortStatistics]], float] = lambda ports: float(ports[0].rx_pps),
    ) -> list[float]:
        """Ask for the rate once a window; the first answer only starts the first window."""
        time.sleep(max(pace.warm_up_seconds, _LEAST_WARM_UP_SECONDS))
        self._statistics(counted)
        rates = []
        for _ in range(pace.windows):
            time.sleep(max(pace.window_seconds, _LEAST_WINDOW_SECONDS))
            rates.append(rate(self._statistics(counted)))
        if not any(rates):
            raise PeerGone(f"{self.label}: not a packet arrived", rates=rates)
        return rates

    @staticmethod
    def _statistics(program: Program) -> list[PortStatistics]:
        text = program.ask("show port stats all", _STATISTICS_END, _ANSWER_SECONDS)
        found = parse_port_statistics(text)
        if not found:
            raise DeadlineError(f"{_PROGRAM} told no statistics: {text[-200:]!r}")
        return found

    def close(self) -> None:
        """End both programs and remove their folder."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class VhostLoop(_Pair):
    """Packets between a virtio-user guest on the near core and a vhost host on the far one, round and round.

    Args:
        cores: near: generator and sink; far: the host.
        frame_bytes: 64 to 2048.
        is_packed: packed instead of split rings.

    Raises:
        UnsupportedError: DPDK is not installed. DeadlineError, PeerGone: a program did not come up.
    """

    def __init__(self, cores: Cores, frame_bytes: int, *, is_packed: bool) -> None:
        super().__init__(cores)
        self.label = f"DPDK vhost loop, {'packed' if is_packed else 'split'}{', huge pages' if self.is_huge else ''}"
        socket = self._folder / "vhost.sock"
        options = f"queues=1,queue_size=1024,packed_vq={int(is_packed)},mrg_rxbuf=0,in_order=1"
        try:
            self._host = self._program(
                "host", cores.far, f"net_vhost0,iface={socket},queues=1", mode="io", frame_bytes=frame_bytes
            )
            self._guest = self._program(
                "guest", cores.near, f"net_virtio_user0,path={socket},{options}", mode="io", frame_bytes=frame_bytes
            )
        except BaseException:
            self.close()
            raise
        self.pids = (self._host.pid, self._guest.pid)

    def frames_per_second(self, pace: Pace) -> list[float]:
        """Frames a second that came back to the guest, one sample a window."""
        self._host.ask("start", _PROMPT, _ANSWER_SECONDS)
        self._guest.ask("start tx_first 32", _PROMPT, _ANSWER_SECONDS)
        try:
            return self._rates(self._guest, pace)
        finally:
            self._guest.ask("stop", _STOPPED, _ANSWER_SECONDS)
            self._host.ask("stop", _STOPPED, _ANSWER_SECONDS)


class VhostPair(_Pair):
    """A guest with two virtio-user cards on the near core: what comes in by one goes out by the other, round and round.

    Args:
        cores: near: the guest; far: the host.
        frame_bytes: 64 to 2048.
        is_packed: packed instead of split rings.
        sockets: where a host listens already, one for each card; ``None``: testpmd is the host, with vhost in io mode.

    Raises:
        UnsupportedError: DPDK is not installed. DeadlineError, PeerGone: a program did not come up.
    """

    def __init__(
        self, cores: Cores, frame_bytes: int, *, is_packed: bool, sockets: tuple[Path, Path] | None = None
    ) -> None:
        super().__init__(cores)
        kind = "packed" if is_packed else "split"
        self.label = (
            f"DPDK vhost io-forward, {kind}{', huge pages' if self.is_huge else ''}" if sockets is None else "vbnet"
        )
        self._host: Program | None = None
        pids = []
        options = f"queues=1,queue_size=1024,packed_vq={int(is_packed)},mrg_rxbuf=0,in_order=1"
        peers = [f"--eth-peer={card},{mac}" for card, mac in enumerate(reversed(_CARD_MACS))]
        try:
            if sockets is None:
                sockets = (self._folder / "vhost0.sock", self._folder / "vhost1.sock")
                vdevs = [f"net_vhost{card},iface={socket},queues=1" for card, socket in enumerate(sockets)]
                self._host = self._program("host", cores.far, *vdevs, mode="io", frame_bytes=frame_bytes)
                pids.append(self._host.pid)
            vdevs = [
                f"net_virtio_user{card},path={socket},mac={mac},{options}"
                for card, (socket, mac) in enumerate(zip(sockets, _CARD_MACS, strict=True))
            ]
            self._guest = self._program(
                "guest", cores.near, *vdevs, mode="io", frame_bytes=frame_bytes, arguments=peers
            )
        except BaseException:
            self.close()
            raise
        self.pids = (*pids, self._guest.pid)

    def frames_per_second(self, pace: Pace) -> list[float]:
        """Frames a second that came back to the guest by both cards, one sample a window."""
        return self._round(pace, _BURST, _BURSTS_FIRST, lambda ports: float(sum(port.rx_pps for port in ports)))

    def round_trip_ns(self, pace: Pace) -> list[float]:
        """Nanoseconds of one frame out by one card and in by the other; one goes each way. One sample a window."""
        return self._round(pace, 1, 1, lambda ports: 1e9 / ports[0].rx_pps if ports[0].rx_pps else 0.0)

    def _round(
        self, pace: Pace, burst: int, bursts: int, rate: Callable[[Sequence[PortStatistics]], float]
    ) -> list[float]:
        if self._host is not None:
            self._host.ask("start", _PROMPT, _ANSWER_SECONDS)
        try:
            self._drain()
            self._guest.ask(f"set burst {burst}", _PROMPT, _ANSWER_SECONDS)
            self._guest.ask(f"start tx_first {bursts}", _PROMPT, _ANSWER_SECONDS)
            try:
                return self._rates(self._guest, pace, rate)
            finally:
                self._guest.ask("stop", _STOPPED, _ANSWER_SECONDS)
        finally:
            if self._host is not None:
                self._host.ask("stop", _STOPPED, _ANSWER_SECONDS)

    def _drain(self) -> None:
        """Take what the last turn left in rings, until nothing more comes."""
        self._guest.ask("set fwd rxonly", _PROMPT, _ANSWER_SECONDS)
        self._guest.ask("start", _PROMPT, _ANSWER_SECONDS)
        deadline = time.monotonic() + _DRAIN_SECONDS
        before, now = -1, 0
        while before != now and time.monotonic() < deadline:
            time.sleep(_LEAST_WARM_UP_SECONDS)
            before, now = now, sum(port.rx_packets for port in self._statistics(self._guest))
        self._guest.ask("stop", _STOPPED, _ANSWER_SECONDS)
        self._guest.ask("set fwd io", _PROMPT, _ANSWER_SECONDS)


class Memif(_Pair):
    """Packets from a memif client on the near core to a memif server on the far one, zero-copy on the sending side.

    Args:
        cores: near: the sender; far: the receiver.
        frame_bytes: 64 to 2048.

    Raises:
        UnsupportedError: DPDK is not installed. DeadlineError, PeerGone: a program did not come up.
    """

    def __init__(self, cores: Cores, frame_bytes: int) -> None:
        super().__init__(cores)
        self.label = f"DPDK memif zero-copy{', huge pages' if self.is_huge else ''}"
        common = f"id=0,socket={self._folder / 'memif.sock'},socket-abstract=no,rsize=10,bsize=2048"
        try:
            self._host = self._program(
                "host", cores.far, f"net_memif0,role=server,{common}", mode="rxonly", frame_bytes=frame_bytes
            )
            self._guest = self._program(
                "guest",
                cores.near,
                f"net_memif0,role=client,{common},zero-copy=yes",
                mode="txonly",
                frame_bytes=frame_bytes,
            )
        except BaseException:
            self.close()
            raise
        self.pids = (self._host.pid, self._guest.pid)

    def frames_per_second(self, pace: Pace) -> list[float]:
        """Frames a second that arrived, one sample a window."""
        self._host.ask("start", _PROMPT, _ANSWER_SECONDS)
        self._guest.ask("start", _PROMPT, _ANSWER_SECONDS)
        try:
            return self._rates(self._host, pace)
        finally:
            self._guest.ask("stop", _STOPPED, _ANSWER_SECONDS)
            self._host.ask("stop", _STOPPED, _ANSWER_SECONDS)
