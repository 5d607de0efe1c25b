"""What somebody sees who goes through tables and through time, without a screen."""

import shutil
from pathlib import Path

import pytest

from tests.support.counted_node import CountedNode
from vbnet.errors import NotFoundError
from vbnet.hostnode.rows import Row
from vbnet.telemetry.watch.look import State
from vbnet.telemetry.watch.sheets import title
from vbnet.telemetry.watch.tabs import TABS
from vbnet.telemetry.watch.viewer import Viewer


@pytest.fixture
def node(tmp_path: Path) -> CountedNode:
    """A node that only has a run directory."""
    return CountedNode(tmp_path / "run")


@pytest.fixture
def port(node: CountedNode) -> Row:
    """The port of its one guest."""
    return node.guest("web")


@pytest.fixture
def viewer(node: CountedNode, port: Row) -> Viewer:
    """Somebody who has looked six times, each a second and ten frames after the other."""
    viewer = Viewer(node.watcher, now_s=lambda: node.now_s)
    for number in range(1, 6):
        port.add("receive_frames", 10 * number)
        later(node, viewer)
    return viewer


def later(node: CountedNode, viewer: Viewer) -> None:
    """Let a second pass, and look."""
    node.now_s += 1
    node.beat()
    viewer.tick()


def rate(viewer: Viewer) -> object:
    """Frames a second of the guest, as shown."""
    return viewer.view().rows[0].cells[2]


def test_going_back_shows_what_was_and_how_long_ago(node: CountedNode, viewer: Viewer) -> None:
    """The picture stands still while the node is looked at further."""
    live = rate(viewer), viewer.time_text()
    viewer.go(-2)
    back = rate(viewer), viewer.time_text()
    for _ in range(40):
        later(node, viewer)

    assert (50.0, "live") == live
    assert (30.0, "paused, 2 s ago") == back
    assert (30.0, "paused, 42 s ago") == (rate(viewer), viewer.time_text())


def test_going_forward_beyond_the_newest_is_the_present_again(viewer: Viewer) -> None:
    """And back no further than the oldest, where no rate is known."""
    viewer.go_far(-1)
    oldest = rate(viewer), viewer.shown_number
    viewer.go_far(1)
    newest = rate(viewer), viewer.time_text()
    viewer.go(1)

    assert (None, 0) == oldest
    assert (50.0, "paused, 0 s ago") == newest
    assert "live" == viewer.time_text()


def test_pause_stays_until_it_is_pressed_again(node: CountedNode, viewer: Viewer) -> None:
    """Then the newest is shown at once."""
    viewer.pause()
    later(node, viewer)
    stays = rate(viewer)
    viewer.pause()

    assert (50.0, 0.0) == (stays, rate(viewer))


def test_picture_that_grew_too_old_makes_room_for_the_oldest_there_is(node: CountedNode, viewer: Viewer) -> None:
    """A pause of more than ten minutes."""
    viewer.go_far(-1)
    for _ in range(4):
        node.now_s += 300
        viewer.tick()

    assert viewer.history.numbers.start == viewer.shown_number > 0
    assert "paused, 600 s ago" == viewer.time_text()


def test_lab_that_ends_leaves_its_last_picture(node: CountedNode, viewer: Viewer) -> None:
    """It says so; one can still go back, and when the lab comes again it is live."""
    kept = node.run_dir.path.with_name("kept")
    shutil.move(node.run_dir.path, kept)
    later_s = node.now_s + 7
    node.now_s = later_s
    viewer.tick()
    ended = viewer.condition(), viewer.time_text(), rate(viewer)
    viewer.go(-1)
    before = viewer.condition().state, rate(viewer)
    viewer.pause()
    shutil.move(kept, node.run_dir.path)
    later(node, viewer)

    assert (State.ended, "last picture, 7 s ago", 50.0) == (ended[0].state, *ended[1:])
    assert "last seen at" in ended[0].text
    assert (State.up, 40.0) == before
    assert (State.up, "live") == (viewer.condition().state, viewer.time_text())


def test_nobody_can_look_at_a_node_that_never_was(node: CountedNode) -> None:
    """That is told before there is a screen."""
    shutil.rmtree(node.run_dir.path)

    with pytest.raises(NotFoundError):
        Viewer(node.watcher)


def test_way_in_and_back(viewer: Viewer) -> None:
    """From a guest into its device, and back; at a tab there is nothing to go back to."""
    assert viewer.open(viewer.view().rows[0])
    assert viewer.open(viewer.view().rows[0])
    inside = title(viewer.path)
    assert not viewer.open(viewer.view().rows[0])

    assert "guests > guest web > device web.eth0" == inside
    assert [True, True, False] == [viewer.back() for _ in range(3)]
    assert "guests" == title(viewer.path)


def test_back_drops_the_filter_first(viewer: Viewer) -> None:
    """Then it leaves the place."""
    viewer.open(viewer.view().rows[0])
    viewer.words = "nothing like it"
    filtered = viewer.view().rows

    assert [] == filtered
    assert viewer.back()
    assert "guests > guest web" == title(viewer.path)
    assert viewer.view().rows


def test_tabs_go_round(viewer: Viewer) -> None:
    """Forward from the last is the first, and the other way."""
    seen = []
    for _ in TABS:
        seen.append(viewer.path[0].to)
        viewer.turn(1)
    viewer.turn(-1)

    assert list(TABS) == seen
    assert "errors" == viewer.path[0].to


def test_each_table_keeps_its_order(viewer: Viewer, node: CountedNode) -> None:
    """Sorting one table leaves the others; by the same column again it turns round."""
    node.guest("app")
    later(node, viewer)
    viewer.sort_by("guest")
    up = [row.key[0] for row in viewer.view().rows]
    viewer.sort_by("guest")
    down = [row.key[0] for row in viewer.view().rows]
    viewer.choose("ports")

    assert (["app", "web"], ["web", "app"]) == (up, down)
    assert "receive_packets_per_second" == viewer.view().sort


def test_next_column_goes_through_all_but_the_sparkline(viewer: Viewer) -> None:
    """And begins again; reversing stays with the column."""
    count = len(viewer.view().sheet.columns) - 1
    seen = []
    for _ in range(count):
        viewer.sort_next()
        seen.append(viewer.view().sort)
    viewer.reverse()

    assert count == len(set(seen))
    assert "line" not in seen
    assert (seen[-1], True) == (viewer.view().sort, viewer.view().is_reversed)
