"""A node over time: rates, states, the way back in time, and what tables say."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from tests.support.counted_node import CountedNode
from tests.support.waiting import eventually
from vbnet.bus.errorlog import ErrorLog
from vbnet.errors import NotFoundError
from vbnet.telemetry.catalogue import installed
from vbnet.telemetry.watch.history import History
from vbnet.telemetry.watch.look import State, condition
from vbnet.telemetry.watch.rates import Pair, Places
from vbnet.telemetry.watch.sheets import sheet, title
from vbnet.telemetry.watch.table import (
    Column,
    Mark,
    Row,
    Sheet,
    Show,
    Step,
    arranged,
    plain_lines,
    records,
    shown,
    spark,
)
from vbnet.telemetry.watch.tabs import TABS

PLACES = Places(installed().metrics)


@pytest.fixture
def node(tmp_path: Path) -> CountedNode:
    """A node that only has a run directory."""
    return CountedNode(tmp_path / "run")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits until its input ends."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as made:
        yield made
        made.kill()


def cells(made: Sheet, *key: str) -> dict[str, object]:
    """A row's values by the columns' names."""
    (row,) = [row for row in made.rows if row.key == key]
    return {column.name: cell for column, cell in zip(made.columns, row.cells, strict=True)}


def tab(name: str, pair: Pair) -> Sheet:
    """One of the tables."""
    return sheet(pair, PLACES, [Step(name)])


# --- rates --------------------------------------------------------------------------------------------------------


def test_rate_is_what_was_counted_in_the_time_between(node: CountedNode) -> None:
    """Two seconds apart, half of what was counted is a second's."""
    port = node.guest("web")
    port.add("receive_frames", 100)
    before = node.after(1)
    port.add("receive_frames", 50)

    shown_ = cells(tab("guests", Pair(before, node.after(2))), "web")

    assert 25.0 == shown_["receive_packets_per_second"]
    assert 0.0 == shown_["transmit_packets_per_second"]


def test_there_are_no_rates_without_a_look_before_or_time_between(node: CountedNode) -> None:
    """Not known is not 0."""
    node.guest("web")
    look = node.after(1)

    for pair in (Pair(None, look), Pair(look, look)):
        assert cells(tab("guests", pair), "web")["receive_packets_per_second"] is None


def test_block_that_was_given_to_another_counts_from_nothing(node: CountedNode) -> None:
    """The same name in another generation: what it shows was all counted since."""
    port = node.guest("web")
    port.add("receive_frames", 1_000_000)
    before = node.after(1)
    port.close()
    again = node.block("port", guest="web", device="web.eth0", switch="lan")
    again.add("receive_frames", 7)
    now = node.after(1)

    old, new = (look.layout.of_kind["port"][0] for look in (before, now))
    assert old.generation != new.generation
    assert 7.0 == Pair(before, now).rate(new, PLACES.of("port", "receive_frames"))


def test_node_that_was_started_anew_counts_from_nothing(node: CountedNode) -> None:
    """Its blocks may be the first ones again and have counted more by now; no rate is made of two lives."""
    node.guest("web").add("receive_frames", 10)
    before = node.after(1)
    other = before.facts.record
    assert other is not None
    earlier = replace(before, facts=replace(before.facts, record=msgspec.structs.replace(other, start_ticks=1)))
    port = before.layout.of_kind["port"][0]

    frames = PLACES.of("port", "receive_frames")
    assert 0.0 == Pair(before, node.after(1)).rate(port, frames)
    assert 5.0 == Pair(earlier, node.after(1)).rate(port, frames)


def test_block_that_was_not_there_has_no_rate_yet(node: CountedNode) -> None:
    """Nobody knows since when it counts."""
    before = node.after(1)
    node.guest("web").add("receive_frames", 5)

    pair = Pair(before, node.after(1))

    assert cells(tab("ports", pair), "web", "web.eth0")["receive_packets_per_second"] is None


def test_names_that_nobody_declared_are_a_mistake_and_kinds_are_not() -> None:
    """A table that asks for a value with a wrong name does not show 0; one of a package that is not there is empty."""
    for name in ("receive_frame", "recieve_*"):
        with pytest.raises(KeyError):
            PLACES.of("port", name)
    assert () == PLACES.of("turbine", "turns")


# --- how the node is ----------------------------------------------------------------------------------------------


def test_node_is_up_until_its_heartbeat_is_three_late(node: CountedNode) -> None:
    """Late by two is a busy machine; later it hangs."""
    node.beat(interval_s=1.0)
    node.now_s += 2.9
    busy = condition(node.watcher.look())
    node.now_s += 0.2
    late = condition(node.watcher.look())

    assert (State.up, State.hangs) == (busy.state, late.state)
    assert "no heartbeat for 3 s" in late.text


def test_stopped_process_is_told_from_a_dead_one(node: CountedNode, sleeper: subprocess.Popen[bytes]) -> None:
    """By the kernel's word, at once."""
    node.record(sleeper.pid)
    sleeper.send_signal(signal.SIGSTOP)
    eventually(lambda: node.watcher.look().is_paused, "the kernel has stopped it")
    stopped = condition(node.watcher.look())
    sleeper.kill()
    sleeper.wait()
    dead = condition(node.watcher.look())

    assert (State.paused, State.dead) == (stopped.state, dead.state)


def test_node_that_said_goodbye_has_ended(node: CountedNode) -> None:
    """Its record is gone, its counters are not."""
    node.run_dir.host_file.unlink()

    assert State.ended is condition(node.watcher.look()).state


def test_file_that_is_none_is_named_and_the_rest_is_read(node: CountedNode) -> None:
    """What is in the folder is input."""
    node.guest("web")
    (node.run_dir.counters / "evil.counters").write_bytes(b"nonsense")
    node.run_dir.errors_file.write_bytes(b"short")

    look = node.watcher.look()

    assert any("evil.counters: its size" in problem for problem in look.problems)
    assert any("errors.log" in problem for problem in look.problems)
    assert 1 == len(look.layout.of_kind["guest"])


def test_names_that_would_move_the_cursor_are_made_harmless(node: CountedNode) -> None:
    """A guest's name is input, too."""
    node.guest("e\x1b[2Jvil")

    pair = Pair(None, node.watcher.look())

    assert "e?[2Jvil" == tab("guests", pair).rows[0].cells[0]


# --- tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABS)
def test_every_table_is_made_of_an_empty_node_and_of_a_full_one(node: CountedNode, name: str) -> None:
    """As many cells as columns, the sorting column is there, and every row is another one."""
    empty = tab(name, Pair(None, node.watcher.look()))
    for kind, block in installed().metrics.blocks.items():
        for number in ("1", "2"):
            node.block(kind, **{label: f"{label}{number}" for label in block.labels})
    full = tab(name, Pair(node.after(1), node.after(1)))

    for made in (empty, full):
        assert not made.sort or made.column(made.sort) is not None
        assert {len(made.columns)} >= {len(row.cells) for row in made.rows}
        assert len(made.rows) == len({row.key for row in made.rows})


def test_guest_that_loses_frames_is_marked_and_so_is_one_that_broke_a_rule(node: CountedNode) -> None:
    """A loss just now is a notice; a broken rule or a stuck guest is bad, and stays."""
    port = node.guest("loses")
    broken, _ = node.guest("breaks"), node.guest("hangs", state="stuck")
    node.guest("fine")
    before = node.after(1)
    port.add("receive_drop_no_room", 3)
    broken.add("fault_zero_length")
    made = tab("guests", Pair(before, node.after(1)))

    marks = {row.key[0]: row.mark for row in made.rows}
    assert {"loses": Mark.notice, "breaks": Mark.bad, "hangs": Mark.bad, "fine": Mark.fine} == marks


def test_queue_says_how_full_it_is(node: CountedNode) -> None:
    """Used of all slots, for both queues of a port."""
    node.guest("web").set("receive_slots_used", 16)

    made = tab("queues", Pair(None, node.watcher.look()))

    assert 0.25 == cells(made, "web", "web.eth0", "receive")["fill"]
    assert 0.0 == cells(made, "web", "web.eth0", "transmit")["fill"]


def test_worker_that_slept_half_the_time_was_awake_half(node: CountedNode) -> None:
    """From the time that it counts as asleep; never below 0, and 1 when it hangs in a round."""
    worker = node.block("worker", worker="0")
    looks = [node.after(1)]
    for rounds, asleep_s in ((5, 1), (5, 9), (0, 0)):
        worker.add("idle_rounds", rounds)
        worker.add("asleep_nanoseconds", asleep_s * 1_000_000_000)
        looks.append(node.after(2))

    awake = [cells(tab("workers", Pair(*pair)), "0")["awake"] for pair in itertools.pairwise(looks)]

    assert [0.5, 0.0, 1.0] == awake


def test_errors_are_counters_that_are_not_nothing_and_the_nodes_own_errors(node: CountedNode) -> None:
    """Each with its reason; what a message contains cannot move the cursor."""
    node.guest("web").add("receive_drop_no_room", 3)
    log = ErrorLog(node.run_dir, lambda: node.now_s)
    log.note("guest.fault", "web", "zero_length", "it broke a rule")
    log.close()

    made = tab("errors", Pair(None, node.watcher.look()))

    assert {3, 1} == {row.cells[3] for row in made.rows}
    assert cells(made, "log", "guest.fault", "web", "zero_length")["last"] == node.now_s
    (drop,) = [row for row in made.rows if row.cells[0] == "device receive drop"]
    assert ("web.eth0", "no_room", 3) == drop.cells[1:4]


def test_errors_of_a_shared_device_say_whose_they_are(node: CountedNode) -> None:
    """Two guests on one device are told apart by their names."""
    for guest in ("one", "two"):
        node.block("timer", guest=guest, device="clock").add("forged_slots", 2)

    made = tab("errors", Pair(None, node.watcher.look()))

    assert {"one clock", "two clock"} == {row.cells[1] for row in made.rows}


def test_way_leads_from_a_guest_over_its_device_to_every_counter(node: CountedNode) -> None:
    """The last table has both queues, every reason for a drop, and what each means."""
    node.guest("web").add("receive_drop_link_down", 2)
    pair = Pair(None, node.watcher.look())
    path = [Step("guests")]

    (guest,) = sheet(pair, PLACES, path).rows
    assert guest.opens is not None
    path.append(guest.opens)
    devices = sheet(pair, PLACES, path)
    (device,) = [row for row in devices.rows if row.key == ("web.eth0",)]
    assert device.opens is not None
    path.append(device.opens)
    values = sheet(pair, PLACES, path)

    assert "guests > guest web > device web.eth0" == title(path)
    assert {"1 port", "2 signals"} == set(str(cells(devices, "web.eth0")["has"]).split(", "))
    by_name = {(row.cells[0], row.cells[1]): row for row in values.rows}
    drop = by_name["port", "receive drop link down"]
    assert (2, "the port's link was down") == (drop.cells[2], drop.cells[5])
    assert ("port", "transmit slots used") in by_name
    assert ("signal eth0/1", "raises") in by_name


def test_device_of_nobody_is_reached_over_the_devices(node: CountedNode) -> None:
    """What a device counts for all its guests has no guest's row; its table has every guest's part, too."""
    node.block("device", device="clock", type="timer")
    for guest in ("one", "two"):
        node.block("timer", guest=guest, device="clock")
    pair = Pair(None, node.watcher.look())

    devices = tab("devices", pair)
    (row,) = devices.rows
    assert row.opens is not None
    values = sheet(pair, PLACES, [Step("devices"), row.opens])

    assert ("clock", "timer", "2 timers") == row.cells[:3]
    assert {"timer one", "timer two", "device"} == {cell.cells[0] for cell in values.rows}


def test_what_is_gone_is_an_empty_table_that_says_so(node: CountedNode) -> None:
    """A device that was opened on the screen and is unplugged then."""
    pair = Pair(None, node.watcher.look())

    made = sheet(pair, PLACES, [Step("ports"), Step("device", ("web", "web.eth0"))])

    assert ((), "not there now") == (made.rows, made.note)


# --- order and text -----------------------------------------------------------------------------------------------


def rows_of(*pairs: tuple[str, float | None]) -> Sheet:
    """A table of names and rates."""
    columns = (Column("name", "NAME", Show.text), Column("rate", "RATE"))
    return Sheet(columns, tuple(Row((name,), (name, rate)) for name, rate in pairs), "rate")


@pytest.mark.parametrize(
    ("sort", "is_reversed", "expected"),
    [
        ("", False, ["c", "a2", "a10", "b"]),
        ("rate", True, ["a2", "a10", "c", "b"]),
        ("name", False, ["a2", "a10", "b", "c"]),
        ("name", True, ["c", "b", "a10", "a2"]),
        ("gone", False, ["c", "a2", "a10", "b"]),
    ],
)
def test_rows_are_sorted_numbers_down_and_names_up(sort: str, is_reversed: bool, expected: list[str]) -> None:
    """Equals by name, with numbers in names as numbers; what is not known comes last, either way."""
    made = rows_of(("b", None), ("a10", 1.0), ("c", 5.0), ("a2", 1.0))

    assert expected == [row.key[0] for row in arranged(made, sort=sort, is_reversed=is_reversed)]


def test_filter_wants_every_word_in_whatever_case() -> None:
    """Words in any order, in any text of the row."""
    made = rows_of(("Web lan", 1.0), ("web wan", 1.0))

    assert ["Web lan"] == [row.key[0] for row in arranged(made, words="LAN web")]
    assert [] == arranged(made, words="nothing")


@pytest.mark.parametrize(
    ("value", "show", "expected"),
    [
        (None, Show.rate, "-"), ("", Show.text, "-"), (0, Show.rate, "0"), (0.984, Show.rate, "0.98"),
        (999.4, Show.rate, "999"), (999.6, Show.rate, "1.00k"), (20_123.0, Show.rate, "20.1k"),
        (1.5e9, Show.bytes, "1.50G"), (1 << 64, Show.number, "18.4E"), (9_999_999, Show.number, "9999999"),
        (0.254, Show.share, "25 %"), (90.0, Show.seconds, "90 s"), (300.0, Show.seconds, "5 min"),
        (1e300, Show.moment, "?"),
    ],
)  # fmt: skip
def test_values_are_short(value: float | None, show: Show, expected: str) -> None:
    """Three digits and a letter."""
    assert expected == shown(value, show)


def test_sparkline_is_as_high_as_the_greatest() -> None:
    """Eight heights; what is not known, or nothing, is empty."""
    assert " ▁▄█ " == spark([None, 1.0, 4.0, 8.0, 0.0])
    assert "  " == spark([None, 0.0])


def test_table_for_a_pipe_is_aligned_and_has_the_sign_of_what_is_wrong() -> None:
    """No colour is needed to see it; programs get plain values."""
    made = rows_of(("a", 1.0), ("long-name", 20_000.0))
    made = replace(made, rows=(replace(made.rows[0], mark=Mark.bad), made.rows[1]))

    assert ["NAME        RATE", "long-name  20.0k", "a              1  !"] == plain_lines(made)
    assert [{"name": "a", "rate": 1.0}] == records(made, made.rows[:1])


# --- back in time -------------------------------------------------------------------------------------------------


def test_history_gives_back_every_look_as_it_was(node: CountedNode) -> None:
    """Also those that are packed by now, with their errors and their blocks."""
    history = History(PLACES)
    log = ErrorLog(node.run_dir, lambda: node.now_s)
    port = node.guest("web")
    looks = []
    for number in range(8):
        port.add("receive_frames", number)
        log.note("guest.fault", "web", f"rule {number}", "broken")
        if number == 4:
            node.guest("late")
        looks.append(node.after(1))
        history.append(looks[-1])
    log.close()

    assert looks == [history.look(number) for number in history.numbers]
    assert 7.0 == history.pair(7).rate(history.look(7).layout.of_kind["port"][0], PLACES.of("port", "receive_frames"))
    with pytest.raises(IndexError):
        history.look(8)


def test_history_is_bounded_in_time_and_in_bytes(node: CountedNode) -> None:
    """The oldest looks go; numbers go on. The newest stays, whatever it costs."""
    node.guest("web")
    short, small = History(PLACES, seconds=10), History(PLACES, bytes_max=1)
    for _ in range(30):
        look = node.after(1)
        short.append(look)
        small.append(look)

    assert range(19, 30) == short.numbers
    assert range(29, 30) == small.numbers
    assert 0 < small.bytes < 100_000


def test_history_counts_a_layout_once_for_all_that_share_it(node: CountedNode) -> None:
    """Also when the look that brought it has gone."""
    for number in range(50):
        node.guest(f"web-{number}")
    history = History(PLACES, seconds=5)
    sizes = []
    for _ in range(20):
        history.append(node.after(1))
        sizes.append(history.bytes)

    assert sizes[0] < sizes[-1] < 3 * sizes[0]
    assert sizes[-1] == pytest.approx(sizes[-5], rel=0.05)


def test_sparkline_of_a_guest_is_the_sum_of_its_ports(node: CountedNode) -> None:
    """And a switch's of all its ports; before a block was there, nothing is known."""
    history = History(PLACES)
    history.append(node.after(1))
    switch = node.block("switch", switch="lan")
    one, two = node.guest("one"), node.guest("two")
    history.append(node.after(1))
    one.add("receive_frames", 10)
    two.add("transmit_frames", 5)
    history.append(node.after(1))

    layout = history.look(2).layout
    lines = {
        block.labels.get("guest", "lan"): history.line(block.key, 2, 4)
        for kind in ("guest", "switch")
        for block in layout.of_kind[kind]
    }
    assert {"one": [None, None, None, 10.0], "two": [None, None, None, 5.0], "lan": [None, None, None, 15.0]} == lines
    assert switch.value("ports") == 0


def test_node_whose_folder_was_cleaned_is_not_found(node: CountedNode) -> None:
    """Whoever watches is told, and decides what to show."""
    shutil.rmtree(node.run_dir.path)

    with pytest.raises(NotFoundError):
        node.watcher.look()


def test_own_process_is_not_said_to_be_stopped(node: CountedNode) -> None:
    """The record names this process, which runs."""
    node.record(os.getpid())

    assert not node.watcher.look().is_paused
