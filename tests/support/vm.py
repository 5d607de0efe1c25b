"""Virtual machines for tests: QEMU with Debian's cloud kernel and nothing but BusyBox in it, driven by a console.

```text
   target/vm (tools/vm-programs.sh)          test                                   QEMU
   kernel, modules, busybox  ──► initramfs in a file of its own ──► -kernel -initrd, up in 1 s (KVM) or 5 s (TCG)
                                 run("ping …")  ──► a line on the second serial port ──► sh -c "ping …"
                                                ◄── its output, then a mark with the exit code
                                 qmp("stop")    ──► QEMU itself, by a socket
```

The first serial port is the kernel's, and goes to a file that a failure shows. Every wait has a deadline. A machine
ends with its test, and with the test's process whatever happens to that.
The danger: ``/dev/kvm`` may open and yet not run a kernel that does not know where it runs, so it is tried once, with a
deadline; where it fails, machines are emulated.
"""

from __future__ import annotations

import functools
import gzip
import lzma
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from tests.support.waiting import eventually
from vbnet.cluster.qemu import ASSUMED, card_arguments, memory_arguments, qemu_version
from vbnet.errors import DeadlineError, PeerGone
from vbnet.load.bench.program import Program

__all__ = ["VirtualMachine", "emulator", "initramfs", "qemu_card"]

PROGRAMS: Final = Path(__file__).resolve().parents[2] / "target" / "vm"
_MODULES: Final = (
    *("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci"),
    *("failover", "net_failover", "virtio_net"),
)
"""In an order in which each finds what it needs."""
_BOOT_SECONDS: Final = 60.0
_PROBE_SECONDS: Final = 8.0
_ANSWER_SECONDS: Final = 30.0
_MOVE_SECONDS: Final = 60.0
_MEMORY: Final = "128M"
_LOG_CHARS: Final = 1500
_READY: Final = r"--ready--\n"
_DONE: Final = r"--done (\d+)--\n"

_INIT: Final = f"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs tmp /tmp
/bin/busybox --install -s /bin
export PATH=/bin
cd /tmp
for module in {" ".join(_MODULES)}; do insmod /modules/$module.ko; done
ip link set lo up
exec </dev/ttyS1 >/dev/ttyS1 2>&1
stty raw -echo
echo --ready--
while read -r line; do
    sh -c "$line"
    echo "--done $?--"
done
"""
"""What the machine does: loads the driver, then runs each line from its second serial port."""


def initramfs(files: Sequence[tuple[str, int, bytes]]) -> bytes:
    """A file system in the format that the kernel unpacks at its start.

    Args:
        files: path, mode with the kind of file, and content of each; folders before what is in them. Files that are
            devices are the console.

    Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst (``070701``).
    """
    image = bytearray()
    console = (5, 1)
    for inode, (path, mode, content) in enumerate([*files, ("TRAILER!!!", 0, b"")], start=1):
        name = path.encode() + b"\0"
        device = console if mode & 0o170000 == 0o020000 else (0, 0)
        fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0)
        image += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        image += bytes(-len(image) % 4) + content
        image += bytes(-len(image) % 4)
    return bytes(image)


def _module(name: str) -> bytes:
    """A module as it is loaded; newer packages hold them compressed."""
    found = next(iter(sorted((PROGRAMS / "modules").glob(f"{name}.ko*"))), None)
    if found is None:
        return b""  # built in
    content = found.read_bytes()
    return lzma.decompress(content) if found.suffix == ".xz" else content


def _image() -> bytes:
    """The file system of every machine."""
    files = [(folder, 0o040755, b"") for folder in ("bin", "dev", "modules")]
    files += [("dev/console", 0o020600, b""), ("init", 0o100755, _INIT.encode())]
    files += [("bin/busybox", 0o100755, (PROGRAMS / "busybox").read_bytes())]
    files += [(f"modules/{name}.ko", 0o100644, content) for name in _MODULES if (content := _module(name))]
    return gzip.compress(initramfs(files), 1)


@functools.cache
def _started_as() -> tuple[tuple[str, ...], dict[str, str]]:
    """QEMU as it is started, and the variables it needs: the one that is installed, or the one that was fetched."""
    if not (PROGRAMS / "kernel").is_file():
        pytest.skip(f"there is no kernel in {PROGRAMS} (tools/vm-programs.sh fetches it)")
    installed = shutil.which("qemu-system-x86_64")
    if installed is not None:
        return (installed,), {}
    root = PROGRAMS / "root"
    libraries = os.pathsep.join(str(root) + folder for folder in ("/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu"))
    data = [word for name in ("qemu", "seabios") for word in ("-L", str(root / "usr/share" / name))]
    return (str(root / "usr/bin/qemu-system-x86_64"), *data), {"LD_LIBRARY_PATH": libraries}


def emulator() -> tuple[str, dict[str, str]]:
    """QEMU's path, and the environment in which it starts."""
    (program, *_), variables = _started_as()
    return program, {**os.environ, **variables}


@functools.cache
def _accelerator() -> str:
    """``kvm`` where a machine comes up with it, else ``tcg``. What was found is kept until the machine boots again."""
    _started_as()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    known = PROGRAMS / "accelerator"
    with suppress(OSError, ValueError):
        found, of = known.read_text(encoding="ascii").split()
        if of == boot:
            return found
    found = "tcg"
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        with suppress(DeadlineError, PeerGone), VirtualMachine("probe", accelerator="kvm") as machine:
            machine.wait_up(_PROBE_SECONDS)
            found = "kvm"
    known.write_text(f"{found} {boot}\n", encoding="ascii")
    return found


def qemu_card(socket: Path, *, mac: str | None = None, queues: int = 1, packed: bool = False) -> list[str]:
    """Arguments that give a machine shared memory and a network card whose other end is a port.

    Args:
        socket: of the port.
        mac: of the card.
        queues: pairs of queues.
        packed: the driver is offered packed ones.
    """
    version = qemu_version(*emulator()) or ASSUMED
    *arguments, card = card_arguments(socket, mac=mac, queues=queues, version=version)
    return [*memory_arguments(_MEMORY), *arguments, f"{card},packed=on" if packed else card]


class VirtualMachine(Program):
    """A virtual machine that comes up; a context manager that leaves nothing of it.

    Several come up at the same time when they are made one after the other. All are made by a thread that outlives
    them: the kernel ends them with it.

    Args:
        name: for messages.
        arguments: further arguments of QEMU, such as network cards (:func:`qemu_card`). It has 128 MiB of its own
            unless they are about memory.
        processors: it has.
        accelerator: ``kvm`` or ``tcg``; what works here by default.
        incoming: a socket by which another machine comes here while it runs, see :meth:`move`.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str] = (),
        *,
        processors: int = 1,
        accelerator: str | None = None,
        incoming: Path | None = None,
    ) -> None:
        begin, variables = _started_as()
        chosen = accelerator or _accelerator()
        self.name = name
        self._folder = Path(tempfile.mkdtemp(prefix="vb-vm-"))
        self._log = self._folder / "kernel.log"
        self._qmp: socket.socket | None = None
        # One that comes from elsewhere is up there already.
        self._is_up = incoming is not None
        (self._folder / "initrd").write_bytes(_image())
        command = [*begin, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
        command += ["-name", f"vbnet-test-{name}", "-machine", "q35", "-smp", str(processors)]
        command += [] if "-object" in arguments else ["-m", _MEMORY]
        command += ["-accel", chosen, "-cpu", "host" if chosen == "kvm" else "max"]
        command += ["-kernel", str(PROGRAMS / "kernel"), "-initrd", str(self._folder / "initrd")]
        command += ["-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on net.ifnames=0"]
        command += ["-serial", f"file:{self._log}", "-serial", "stdio"]
        command += ["-qmp", f"unix:{self._folder / 'qmp'},server=on,wait=off", *arguments]
        command += [] if incoming is None else ["-incoming", f"unix:{incoming}"]
        try:
            super().__init__(command, None, variables)
        except BaseException:
            shutil.rmtree(self._folder)
            raise

    def wait_up(self, patience: float = _BOOT_SECONDS) -> None:
        """Wait until it takes commands; the first command waits by itself.

        Raises:
            DeadlineError: it was not up in time. PeerGone: QEMU ended; both show what was said last.
        """
        if self._is_up:
            return
        try:
            self.hear(_READY, patience)
        except (DeadlineError, PeerGone) as error:
            error.add_note(f"the kernel of {self.name} said last: {self.kernel_log()[-_LOG_CHARS:]}")
            raise
        self._is_up = True

    def run(self, line: str, code: int = 0, patience: float = _ANSWER_SECONDS) -> str:
        """Run a line of shell in the machine, expect its exit code, and return what it printed."""
        said, found = self.attempt(line, patience)
        assert code == found, f"{self.name}: {line}: exit code {found}: {said}"
        return said

    def attempt(self, line: str, patience: float = _ANSWER_SECONDS) -> tuple[str, int]:
        """Run a line of shell in the machine: what it printed, and its exit code."""
        self.wait_up()
        heard = self.ask(line, _DONE, patience)
        mark = re.search(_DONE, heard)
        assert mark is not None, heard
        return heard[: mark.start()], int(mark[1])

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Have QEMU itself do something; what it answered."""
        if self._qmp is None:
            self._qmp = socket.socket(socket.AF_UNIX)
            self._qmp.settimeout(_ANSWER_SECONDS)
            self._qmp.connect(str(self._folder / "qmp"))
            self._replies = self._qmp.makefile("rb")
            self._replies.readline()  # its greeting
            self.qmp("qmp_capabilities")
        self._qmp.sendall(msgspec.json.encode({"execute": command, "arguments": arguments}))
        while True:
            reply = msgspec.json.decode(self._replies.readline(), type=dict[str, Any])
            if "event" not in reply:
                assert "return" in reply, f"{self.name}: {command}: {reply}"
                return reply["return"]

    def move(self, incoming: Path) -> None:
        """Go to the machine that waits at a socket, while running; returns when it is there."""
        self.qmp("migrate", uri=f"unix:{incoming}")
        how: dict[str, Any] = {}

        def has_ended() -> bool:
            how.update(self.qmp("query-migrate"))
            return how["status"] in {"completed", "failed", "cancelled"}

        eventually(has_ended, f"{self.name} has moved", _MOVE_SECONDS)
        assert how["status"] == "completed", f"{self.name}: {how}"

    def kernel_log(self) -> str:
        """What its kernel said so far."""
        with suppress(OSError):
            return self._log.read_text(encoding="utf-8", errors="replace")
        return ""

    def kill(self) -> None:
        """``kill -9``; returns when it is dead."""
        self._process.kill()
        self._process.wait()

    def close(self, farewell: str = "") -> None:
        """End it. Nothing inside needs to be asked: it has no disk."""
        if self._qmp is not None:
            self._replies.close()
            self._qmp.close()
            self._qmp = None
        self._process.kill()
        super().close(farewell)
        shutil.rmtree(self._folder, ignore_errors=True)
