"""Fixtures of this folder."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vbnet.testing.pytest_hooks import pytest_pyfunc_call

__all__ = ["pytest_pyfunc_call"]


@pytest.fixture
def run_root() -> Iterator[Path]:
    """A folder for run directories, with a path short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="vbnet-"))
    yield path
    shutil.rmtree(path)
