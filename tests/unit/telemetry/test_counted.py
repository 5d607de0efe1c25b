"""Counters by name, from files that somebody else writes."""

from pathlib import Path

import pytest

from vbnet._native import PORT_COUNTERS, CounterFile
from vbnet.errors import NotFoundError, PeerFault
from vbnet.telemetry import Counted, read_counted


def test_counters_of_a_port_are_found_by_name(tmp_path: Path) -> None:
    """What the owner adds to value n is read under the n-th name, with the owner's labels."""
    block = CounterFile.create(tmp_path / "host.counters").allocate("port", "device=a,switch=lan", len(PORT_COUNTERS))
    block.add(PORT_COUNTERS.index("receive_drop_no_room"), 3)

    (found,) = read_counted(tmp_path, "port")

    assert {"device": "a", "switch": "lan"} == found.labels
    assert 3 == found.values["receive_drop_no_room"]
    assert 3 == sum(found.values.values())


def test_kind_that_is_not_known_shows_its_values_by_number(tmp_path: Path) -> None:
    """A newer node's counters are shown, not hidden."""
    file = CounterFile.create(tmp_path / "x.counters")
    block = file.allocate("novelty", "", 2)
    block.set(1, 7)

    assert [Counted("novelty", {}, {"0": 0, "1": 7})] == read_counted(tmp_path)


def test_only_the_wanted_kind_is_read(tmp_path: Path) -> None:
    """Blocks of other kinds are left out."""
    file = CounterFile.create(tmp_path / "x.counters")
    blocks = [file.allocate(kind, "", 1) for kind in ("port", "worker")]

    assert ["worker"] == [counted.kind for counted in read_counted(tmp_path, "worker")]
    assert 2 == len(blocks)


def test_folder_where_no_node_ran_is_told(tmp_path: Path) -> None:
    """The error names the folder and what to do."""
    with pytest.raises(NotFoundError, match="no node counts in"):
        read_counted(tmp_path / "nowhere")


def test_file_that_is_no_counters_file_is_a_fault(tmp_path: Path) -> None:
    """Nonsense is refused by its first word."""
    (tmp_path / "x.counters").write_bytes(b"nonsense" * 64)

    with pytest.raises(PeerFault, match="counters magic"):
        read_counted(tmp_path)
