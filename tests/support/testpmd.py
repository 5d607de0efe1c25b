"""DPDK's testpmd at the other end of vhost-user: a program that is not ours, as a front end or as a back end."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from pathlib import Path
from typing import Final

import pytest

from vbnet.load.bench.peers.testpmd import PortStatistics, parse_port_statistics
from vbnet.load.bench.program import Program

__all__ = ["TestPmd"]

_PROGRAM: Final = "dpdk-testpmd"
_PROMPT: Final = r"testpmd> "
_READY: Final = r"Configuring Port 0[^>]*testpmd> "
_STOPPED: Final = r"Done\.\s+testpmd> "
_STATISTICS: Final = r"Tx-pps:\s+\d+.*\n\s+#{20,}\s+testpmd> "
_START_SECONDS: Final = 40.0
_ANSWER_SECONDS: Final = 20.0
_NUMBERS: Final = itertools.count(1)


class TestPmd(Program):
    """One testpmd with a virtio-user card, or one that serves somebody else's card; forwards once it is told to.

    Args:
        socket: of the port.
        mac: of its card; empty: it is a back end.
        mode: of forwarding, as testpmd calls it.
        card: further arguments of the card, such as ``packed_vq=1``.
        arguments: further arguments of the program.
    """

    __test__ = False

    def __init__(self, socket: Path, mac: str, mode: str, card: str = "", arguments: tuple[str, ...] = ()) -> None:
        if shutil.which(_PROGRAM) is None:
            pytest.skip(f"{_PROGRAM} is not installed (Debian: dpdk-dev librte-net-virtio23 librte-net-vhost23)")
        core = min(os.sched_getaffinity(0))
        own = f"vbnet-{os.getpid()}-{next(_NUMBERS)}"
        vdev = f"net_virtio_user0,path={socket},mac={mac},queue_size=256" if mac else f"net_vhost0,iface={socket}"
        vdev += f",{card}" if card else ""
        command = [_PROGRAM, "--lcores", f"0@{core},1@{core}", "--no-pci", "--no-telemetry", "--file-prefix", own]
        command += ["-m", "128", "--no-huge", "--no-shconf", "--single-file-segments", "--vdev", vdev]
        command += ["--", "--interactive", "--nb-cores=1", f"--forward-mode={mode}", "--total-num-mbufs=8192"]
        super().__init__([*command, *arguments], core, {"RUNTIME_DIRECTORY": str(socket.parent)})
        try:
            self.hear(_READY, _START_SECONDS)
        except BaseException:
            self.close()
            raise

    def command(self, line: str) -> str:
        """Type a command and return what it said."""
        return self.ask(line, _PROMPT, _ANSWER_SECONDS)

    def stop(self) -> None:
        """Forward no more."""
        self.ask("stop", _STOPPED, _ANSWER_SECONDS)

    def statistics(self) -> PortStatistics:
        """What its card counted."""
        return parse_port_statistics(self.ask("show port stats all", _STATISTICS, _ANSWER_SECONDS))[0]

    def queue_rx_packets(self, queue: int) -> int:
        """What came in by one queue."""
        said = self.command("show port xstats 0")
        found = re.search(rf"rx_q{queue}_packets: (\d+)", said)
        assert found is not None, said
        return int(found[1])
