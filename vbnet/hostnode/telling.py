"""Telling what happens: to whoever listens now, to whoever looks later, and each distinct error once.

    devices, desks ── publish(topic, …) ──> Teller ──> subscribers (PUB: drops for a slow one)
                                                  ──> events.jsonl (the last ones, an allowance for each guest)
                                                  ──> errors.log   (topics that name a culprit; and refusals)

All of it happens on the host's event loop, and none of it waits. What a guest causes is bounded here: it cannot push
others' events out of the history, nor make the host write without end.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import zmq

from vbnet.bus.errorlog import ErrorLog
from vbnet.bus.history import EventHistory, encode_event
from vbnet.bus.rundir import RunDir
from vbnet.bus.topics import TOPICS, Topic
from vbnet.clock import Clock
from vbnet.errors import PeerFault, VbnetError, refusal_name
from vbnet.hostnode.log import Allowances

__all__ = ["Refusals", "Teller"]

_TEXT_CHARACTERS = 200
_OFTEN = 16
_GUESTS = 1024
_UNKNOWN = Topic("", ())


class Teller:
    """Where everything that happens on a host node is told.

    Args:
        clock: for the allowances of guests' events in the history.
    """

    def __init__(self, clock: Clock) -> None:
        self.sockets: list[zmq.Socket[bytes]] = []
        self._seq = 0
        self._allowances: Allowances[tuple[str, str]] = Allowances(clock)
        self._history: EventHistory | None = None
        self._errors: ErrorLog | None = None

    def open(self, run_dir: RunDir) -> None:
        """Keep events and errors in a run directory from now on.

        Raises:
            ResourceError: the file system refused.
        """
        self._history = EventHistory(run_dir)
        self._errors = ErrorLog(run_dir, time.time)

    def close(self) -> None:
        """Keep nothing more; the files stay."""
        if self._history is not None:
            self._history.close()
        if self._errors is not None:
            self._errors.close()

    def publish(self, topic: str, **fields: object) -> None:
        """Tell what happened.

        Args:
            topic: one of ``vbnet.bus.topics.TOPICS``, or a topic of a device from outside.
            fields: what belongs to it; plain values.
        """
        declared = TOPICS.get(topic, _UNKNOWN)
        self._seq += 1
        head = {"topic": topic, "seq": self._seq, "time": time.time(), "severity": str(declared.severity)}
        data = encode_event({**head, **fields, **head})
        name = topic.encode()
        for socket in self.sockets:  # PUB never blocks: it drops for a slow subscriber, whom seq shows the gap
            socket.send_multipart((name, data), zmq.NOBLOCK)
        self._keep(topic, declared, fields, head, data)
        if declared.whose:
            whose, code = fields.get(declared.whose), fields.get(declared.code, "")
            text = fields.get("text") or fields.get("detail") or declared.meaning
            self.note(topic, str(whose), str(code), str(text))

    def tell_left_out(self) -> None:
        """Tell what was left out of the history and had no later event to say so; called once a heartbeat."""
        for (topic, whose), count in self._allowances.due():
            self.publish("node.left_out", of=topic, whose=whose, count=count)
        if forgotten := self._allowances.take_forgotten():
            self.publish("node.left_out", of="", whose="", count=forgotten)

    def note(self, what: str, whose: str, code: str, message: str) -> None:
        """Count a distinct error."""
        if self._errors is not None:
            self._errors.note(what, whose, code, message)

    def _keep(
        self, topic: str, declared: Topic, fields: dict[str, object], head: dict[str, object], data: bytes
    ) -> None:
        if self._history is None:
            return
        whose = fields.get("guest") or (fields.get(declared.whose) if declared.whose else None)
        if whose is not None:
            left_out = self._allowances.spend((topic, str(whose)))
            if left_out is None:
                return
            if left_out:
                data = encode_event({**head, **fields, **head, "left_out": left_out})
        self._history.append(data)


class Refusals:
    """Requests and packets that were refused: each a distinct error, and a guest that earns many of them is told of.

    Args:
        publish: tells of an event.
        note: counts a distinct error.
    """

    def __init__(self, publish: Callable[..., None], note: Callable[[str, str, str, str], None]) -> None:
        self._publish, self._note = publish, note
        self._counts: dict[str, tuple[int, str, str]] = {}

    def add(self, what: str, whose: str, error: Exception) -> None:
        """Take note of a refusal.

        Args:
            what: which door refused: ``bus.refused``, ``attach.refused`` or ``admin.refused``.
            whose: the guest, or who else asked.
            error: why.
        """
        code = refusal_name(error)
        text = str(error) if isinstance(error, VbnetError) else f"a bug of the host: {type(error).__name__}"
        text = text[:_TEXT_CHARACTERS]
        rule = error.fields.get("rule") if isinstance(error, PeerFault) else None
        self._note(what, whose, f"{code} {rule}" if rule else code, text)
        if whose in self._counts or len(self._counts) < _GUESTS:
            self._counts[whose] = self._counts.get(whose, (0, "", ""))[0] + 1, code, text

    def tell(self) -> None:
        """Publish who was refused often since the last time; called once a heartbeat."""
        counts, self._counts = self._counts, {}
        for guest, (count, code, text) in counts.items():
            if count >= _OFTEN:
                self._publish("guest.refused", guest=guest, code=code, count=count, text=text)
