"""A log that cannot be flooded, one write a line, without anybody's secrets."""

import json
from io import BytesIO
from typing import Any

from vbnet.hostnode.log import Allowances, LimitedLog, json_log
from vbnet.testing import ListLog, ManualClock


class CountingFile(BytesIO):
    """A file that remembers each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: Any) -> int:
        """Remember it."""
        self.writes.append(bytes(data))
        return super().write(data)


def test_a_flood_is_cut_and_counted() -> None:
    """A burst passes, the rest is left out, and the next line that passes says how many were."""
    kept, clock = ListLog(), ManualClock()
    log = LimitedLog(kept, clock)

    for _ in range(120):
        log.warning("guest_fault", guest="a")
    log.warning("other")
    clock.advance(1)
    log.warning("guest_fault", guest="a")

    assert (len(kept.lines), kept.lines[-1][2]) == (22, {"guest": "a", "left_out": 100})


def test_a_flood_of_one_guest_hides_no_other() -> None:
    """Each guest has an allowance of its own for each event."""
    kept = ListLog()
    log = LimitedLog(kept, ManualClock())
    for _ in range(500):
        log.warning("guest_fault", guest="loud")

    log.warning("guest_fault", guest="quiet")
    log.warning("guest_gone", guest="loud")

    assert [("guest_fault", "quiet"), ("guest_gone", "loud")] == [
        (event, fields["guest"]) for _, event, fields in kept.lines[-2:]
    ]


def test_guests_of_ever_new_names_cannot_flood_it_together() -> None:
    """An event has an allowance too, and what is remembered is bounded; nothing left out goes uncounted."""
    kept, clock = ListLog(), ManualClock()
    log = LimitedLog(kept, clock)

    for number in range(5000):
        log.warning("guest_fault", guest=f"guest-{number}")
    clock.advance(60)
    log.say_left_out()

    passed = [fields for _, event, fields in kept.lines if event == "guest_fault"]
    said = [fields["left_out"] for _, event, fields in kept.lines if event == "left_out"]
    assert (200, 4800) == (len(passed), sum(said))


def test_what_no_later_line_told_is_said_by_itself() -> None:
    """A flood that ends leaves its count all the same, once."""
    kept, clock = ListLog(), ManualClock()
    log = LimitedLog(kept, clock)
    for _ in range(30):
        log.error("device_failed", device="echo")

    log.say_left_out()
    clock.advance(5)
    log.say_left_out()
    log.say_left_out()

    assert [("warning", "left_out", {"of": "device_failed", "whose": "echo", "left_out": 10})] == kept.lines[20:]


def test_a_forgotten_key_leaves_its_count() -> None:
    """Memory is bounded, the sum is right."""
    allowances: Allowances[int] = Allowances(ManualClock(), burst=1, keys=2)
    for key in (1, 1, 1, 2, 3):
        allowances.spend(key)

    forgotten = allowances.take_forgotten(), allowances.take_forgotten()

    assert (2, 0) == forgotten
    assert allowances.spend(1) == 0


def test_a_line_is_one_write_of_one_json_object() -> None:
    """Processes that share a log never cut each other's lines, however long one is."""
    file = CountingFile()
    log = json_log(file)

    log.warning("guest_fault", guest="a", text="two\nlines", odd=1j)
    log.info("long", text="x" * 100_000)
    log.debug("not this")

    lines = [json.loads(data) for data in file.writes]
    assert ["guest_fault", "long"] == [line["event"] for line in lines]
    assert {"guest": "a", "level": "warning", "text": "two\nlines", "odd": "1j"}.items() <= lines[0].items()
    assert all(data.count(b"\n") == 1 and data.endswith(b"\n") for data in file.writes)


def test_a_traceback_has_no_values_of_variables() -> None:
    """What a device's code was holding when it failed, such as a guest's data or a token, stays out."""
    file = CountingFile()
    log = json_log(file)

    def fail(data: bytes, token: str) -> None:
        raise KeyError(len(data) + len(token))

    try:
        fail(b"PLANTED", "PLANTED")
    except KeyError:
        log.exception("device_failed", device="d")

    [line] = file.writes
    assert (True, False) == (b'"name":"fail"' in line, b"PLANTED" in line)
