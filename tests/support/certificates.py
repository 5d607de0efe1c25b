"""Certificates that an `openssl` makes for a test, and their renewal."""

import ssl
import subprocess
from pathlib import Path


class Certificate:
    """A self-signed certificate for ``localhost`` and 127.0.0.1, with its key.

    Args:
        openssl: the program.
        folder: gets ``NAME.crt`` and ``NAME.key``.
        name: of the files.
    """

    def __init__(self, openssl: str, folder: Path, name: str) -> None:
        self.file, self.key = folder / f"{name}.crt", folder / f"{name}.key"
        kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
        names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
        command = (openssl, "req", "-x509", *kind, *names, "-keyout", str(self.key), "-out", str(self.file))
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        self.trusting = ssl.create_default_context(cafile=str(self.file))

    def install(self, folder: Path) -> None:
        """Put both into use as ``node.crt`` and ``node.key``, as a renewing program does: each at one stroke."""
        self.install_file(folder)
        self.key.rename(folder / "node.key")

    def install_file(self, folder: Path) -> None:
        """Put the certificate into use without its key."""
        self.file.rename(folder / "node.crt")
