"""How `vbnet signal list` shows a signal to a person."""

import itertools

import pytest

from vbnet.cli import output
from vbnet.cli.output import Format
from vbnet.cli.signal import ALL_COLUMNS, COLUMNS, shown_row

COUNTERS = (
    "raises",
    "coalesced_signal",
    "coalesced_device",
    "coalesced_across",
    "wakeups",
    "spurious",
    "masked",
    "masked_by_guest",
    "unrouted",
    "blocked",
)


def row(count: int = 0, **said: object) -> dict[str, object]:
    """Return a row as a host node sends it, every counter at ``count``."""
    route = {"route": "vector", "to": "web", "vcpu": 1, "vector": 4095}
    flags = {"is_masked": False, "is_latched": False, "is_blocked": False}
    names = {"id": 7, "name": "tick", "guest": "web", "device": "signal", "priority": 5, "granted": [], "sources": 0}
    return names | route | flags | dict.fromkeys(COUNTERS, count) | said


def test_a_table_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Long names, a far vCPU and counters of six digits are within 120 columns."""
    long = row(999_999, name="telemetry.rx", guest="collector-10", vcpu=63, is_masked=True)

    output.print_rows([shown_row(long)], COLUMNS, Format.table)

    assert all(len(line) <= 120 for line in capsys.readouterr().out.splitlines())


def test_every_counter_is_in_the_wide_table() -> None:
    """What the short table leaves out or puts together is a column of its own there."""
    assert set(COUNTERS) <= set(ALL_COLUMNS)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, "web 1:4095"),
        ({"route": "eventfd", "to": None, "vcpu": None, "vector": None}, "eventfd"),
        ({"route": "nowhere", "to": None, "vcpu": None, "vector": None}, "nowhere"),
    ],
)
def test_a_route_is_a_few_words(said: dict[str, object], expected: str) -> None:
    """Whose vector it is, or that it is none."""
    assert expected == shown_row(row() | said)["leads_to"]


def test_a_state_names_all_that_keeps_raises_back() -> None:
    """Masked, latched and blocked in this order; open when nothing does."""
    words = ("masked", "latched", "blocked")
    found = {
        chosen: shown_row(row() | {f"is_{word}": word in chosen for word in words})["state"]
        for count in range(4)
        for chosen in itertools.combinations(words, count)
    }

    assert {chosen: "+".join(chosen) or "open" for chosen in found} == found


def test_an_operators_signal_has_no_guest_in_its_name() -> None:
    """It is shown as it is written in other commands."""
    assert ["web/tick", "alarm"] == [shown_row(each)["signal"] for each in (row(), row(name="alarm", guest=""))]
