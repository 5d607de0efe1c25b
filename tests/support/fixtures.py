"""Fixtures for tests with a host process: ``lab`` serves a module, ``net`` one test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.lab import Lab, Net

__all__ = ["lab", "lab_root", "net", "own_lab"]


@pytest.fixture(scope="module")
def lab_root() -> Iterator[Path]:
    """Give a module a folder for run directories, with a path short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="vb-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def lab(lab_root: Path) -> Iterator[Lab]:
    """Give a module a host process."""
    with Lab(lab_root / "shared") as lab:
        yield lab


@pytest.fixture
def net(lab: Lab) -> Iterator[Net]:
    """Give a test a switch of its own, on the module's host."""
    with lab.net() as net:
        yield net


@pytest.fixture
def own_lab() -> Iterator[Lab]:
    """Give a test a host process of its own, which it may kill."""
    path = Path(tempfile.mkdtemp(prefix="vb-"))
    with Lab(path / "own") as lab:
        yield lab
    shutil.rmtree(path, ignore_errors=True)
