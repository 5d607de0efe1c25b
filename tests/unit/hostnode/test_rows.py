"""What the host node counts from Python: in shared memory, under labels whose number is bounded."""

from pathlib import Path

import pytest

from vbnet._native import CounterFile
from vbnet.hostnode import metrics
from vbnet.hostnode.metrics import GUEST, GUEST_STATES, HOST, GuestRows, Tally
from vbnet.hostnode.rows import open_row
from vbnet.sharedmem import BlockSnapshot, read_blocks


def shown(path: Path, kind: str) -> dict[str, BlockSnapshot]:
    """Blocks of a kind, by guest."""
    return {block.labels.get("guest", ""): block for block in read_blocks(path) if block.kind == kind}


def test_counts_are_seen_from_outside_until_the_row_is_closed(tmp_path: Path) -> None:
    """Each word is where the declaration says; closing frees the block, and counting goes on unseen."""
    path = tmp_path / "host.counters"
    row = open_row(GUEST, {"guest": "a,b"}, CounterFile.create(path))
    row.add("requests", 3)
    row.set("handles", 7)
    row.shift("handles", -2)

    before = shown(path, "guest")
    row.close()
    row.add("requests")

    assert [3, 5] == [before["a,b"].values[GUEST.index(name)] for name in ("requests", "handles")]
    assert {} == shown(path, "guest")
    assert 1 == row.value("requests")


def test_row_counts_in_its_own_memory_when_the_file_is_full(tmp_path: Path) -> None:
    """A host with too many guests goes on; what finds no room is not shown."""
    path = tmp_path / "host.counters"
    file = CounterFile.create(path, 4096)
    rows = [open_row(GUEST, {"guest": str(number)}, file) for number in range(20)]

    for row in rows:
        row.add("faults")

    assert [1] * 20 == [row.value("faults") for row in rows]
    assert 0 < len(shown(path, "guest")) < 20


def test_name_that_is_not_declared_is_the_callers_mistake() -> None:
    """No value is made up."""
    with pytest.raises(KeyError):
        open_row(HOST, {}).add("nothing")


def test_values_that_no_list_has_are_counted_together() -> None:
    """However many there are, they make one series."""
    tally = Tally()
    for cause in ("bye", "attach-EINVAL", "whatever\n", ""):
        tally.add(metrics.ENDED, cause)

    assert (1, 3) == (tally.value(metrics.ENDED, "bye"), tally.value(metrics.ENDED, "other"))
    assert {'vbnet_guest_ended_total{cause="bye"}', 'vbnet_guest_ended_total{cause="other"}'} <= set(tally.snapshot())


def test_guests_that_ended_are_kept_up_to_a_bound(tmp_path: Path) -> None:
    """The last 64 are shown as ended; guests with ever new names do not fill the file."""
    path = tmp_path / "host.counters"
    rows = GuestRows(CounterFile.create(path))
    for number in range(200):
        rows.enter(str(number), handles_limit=1, memory_limit=1)
        rows.leave(str(number))

    found = shown(path, "guest")

    assert {str(number) for number in range(136, 200)} == set(found)
    assert {GUEST_STATES.index("ended")} == {block.values[GUEST.index("state")] for block in found.values()}


def test_guest_that_comes_again_has_the_row_that_it_had() -> None:
    """Its counts go on, and coming again is counted."""
    rows = GuestRows()
    rows.enter("web", handles_limit=1, memory_limit=1).add("requests", 5)
    rows.leave("web")

    row = rows.enter("web", handles_limit=1, memory_limit=1)

    assert (5, 1) == (row.value("requests"), row.value("reconnects"))
    assert GUEST_STATES.index("starting") == row.value("state")
