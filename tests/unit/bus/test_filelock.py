"""A lock file: held by one, told to all, and let go of by the kernel."""

import os
from pathlib import Path

import pytest

from vbnet.bus.filelock import hold, is_held


def test_one_holds_and_others_see_it(tmp_path: Path) -> None:
    """Also another descriptor of the same process is another; closed, it is free again."""
    path = tmp_path / "lock"
    before = is_held(path)
    first = hold(path)
    assert first is not None

    second, while_held = hold(path), is_held(path)
    os.close(first)

    assert (None, None, True) == (before, second, while_held)
    assert is_held(path) is False


def test_link_is_never_followed(tmp_path: Path) -> None:
    """Whoever puts one there makes nobody open, or make, another file."""
    path = tmp_path / "lock"
    path.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match=r"lock"):
        hold(path)

    assert is_held(path) is None
    assert not (tmp_path / "elsewhere").exists()
