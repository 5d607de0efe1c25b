"""What can happen, by topic: the one list that the host node, the lab, operators and docs/wire/admin.md share.

A topic and its fields are a promise to programs that listen: neither is renamed. A topic whose meaning names a culprit
also says under which of its fields it counts as one distinct error (see ``errorlog.py``).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

__all__ = ["BY_LABS", "TOPICS", "Severity", "Topic"]

BY_LABS: Final = ("lab.", "load.", "soak.", "bakeoff.")
"""How the topics begin that lab supervisors publish, through their host node: of the lab, and of runs in it."""


class Severity(enum.StrEnum):
    """How much an event asks of whoever reads it."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """Greater is more severe."""
        return list(Severity).index(self)


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic.

    Attributes:
        meaning: one clause for people.
        fields: what each of its events has besides ``topic``, ``seq``, ``time`` and ``severity``.
        severity: of all its events.
        whose: the field that names who did it; "" for what nobody did wrong.
        code: the field that tells one kind of error of theirs from another.
        has_more: whether an event may have further fields: the values of the rule that was broken.
    """

    meaning: str
    fields: tuple[str, ...]
    severity: Severity = Severity.INFO
    whose: str = ""
    code: str = ""
    has_more: bool = False


_WARNING, _ERROR = Severity.WARNING, Severity.ERROR
_OF_PROCESS = ("lab", "process", "guests", "count")
_OF_FAULT = ("lab", "profile", "number", "kind", "target")

TOPICS: Final[Mapping[str, Topic]] = MappingProxyType(
    {
        "node.starting": Topic("this host node begins", ("node", "pid", "vbnet")),
        "node.ready": Topic("this host node lets guests and operators in", ("node", "endpoints")),
        "node.left_out": Topic(
            "count events of a topic were too many of one guest to be kept", ("of", "whose", "count"), Severity.WARNING
        ),
        "node.stopping": Topic("this host node ends", ("node",)),
        "bus.created": Topic("a bus was made", ("bus", "is_private")),
        "bus.deleted": Topic("a bus was removed", ("bus",)),
        "device.created": Topic("a device was made", ("device",)),
        "device.set": Topic("an attribute was set", ("device", "attribute", "value")),
        "device.plugged": Topic("a device was put on a bus", ("device", "bus", "dev_ids")),
        "device.unplugged": Topic("a device was taken off a bus", ("device", "bus", "dev_ids")),
        "device.deleted": Topic("a device was removed", ("device",)),
        "device.failed": Topic(
            "a bug in a device's code was contained", ("device", "method", "error"), _ERROR, "device", "error"
        ),
        "guest.joined": Topic("a guest said hello: its session begins", ("guest", "bus", "pid", "kind", "is_remote")),
        "guest.ready": Topic("a guest takes events and can open devices", ("guest", "bus", "pid")),
        "guest.stuck": Topic("a guest process missed its heartbeats, but lives", ("guest", "bus", "pid"), _WARNING),
        "guest.recovered": Topic("a stuck guest process was heard again", ("guest", "bus", "pid")),
        "guest.reset": Topic("an operator reset a guest", ("guest", "bus")),
        "guest.wedged": Topic(
            "a handler of a guest has not returned for more than a second",
            ("guest", "vcpu", "priority", "vector", "since_s", "pending"),
            _WARNING,
            "guest",
            "vector",
        ),
        "guest.unwedged": Topic("a wedged handler returned", ("guest", "vcpu", "priority")),
        "guest.refused": Topic(
            "a guest is refused again and again: count refusals since the last such event, the latest with this code",
            ("guest", "code", "count", "text"),
            _WARNING,
        ),
        "guest.fault": Topic(
            "a guest broke a rule", ("guest", "device", "rule", "text"), _ERROR, "guest", "rule", has_more=True
        ),
        "guest.gone": Topic("a guest's session ended; cause says how", ("guest", "bus", "pid", "cause")),
        "link.changed": Topic("the carrier of a guest's device went up or down", ("guest", "bus", "dev_id", "is_up")),
        "port.set": Topic("an attribute of a port was set", ("port", "name", "attribute", "value")),
        "port.fault": Topic(
            "a port was quarantined, or the queue that part names, or its front end sent away; rule says why",
            ("port", "name", "part", "rule", "text"),
            _ERROR,
            "name",
            "rule",
        ),
        "sched.created": Topic(
            "a scheduler coordinator was made; cannot says what this host lacks", ("device", "cannot")
        ),
        "signal.blocked": Topic(
            "a guest made the doorbell behind a signal block; it is not rung any more",
            ("signal", "guest", "rule", "text"),
            _ERROR,
            "guest",
            "rule",
        ),
        "signal.source_gone": Topic(
            "what drove a signal from outside hung up", ("signal", "source"), _WARNING, "signal"
        ),
        "lab.started": Topic("a lab started a guest process", (*_OF_PROCESS, "pid")),
        "lab.ready": Topic("all guests of a process can pass traffic", _OF_PROCESS),
        "lab.exited": Topic("a guest process ended; detail says how", (*_OF_PROCESS, "exit_code", "detail")),
        "lab.restarting": Topic(
            "a guest process will be started again after delay_s", (*_OF_PROCESS, "restarts", "delay_s"), _WARNING
        ),
        "lab.failed": Topic(
            "a guest process ended badly and is not started again", (*_OF_PROCESS, "detail"), _ERROR, "process"
        ),
        "lab.given_up": Topic(
            "a guest process failed too often and is not started again", (*_OF_PROCESS, "detail"), _ERROR, "process"
        ),
        "lab.up": Topic("every guest of the lab is ready", ("lab", "count")),
        "lab.stopping": Topic("the lab is being taken down", ("lab",)),
        "load.began": Topic("a load run begins to send in this lab", ("lab", "profile")),
        "load.ended": Topic("a load run has ended; outcome says how", ("lab", "profile", "outcome")),
        "soak.began": Topic(
            "a soak run begins, or goes on, in this lab; planned_s and faults are of all of it",
            ("lab", "profile", "seed", "elapsed_s", "planned_s", "faults"),
        ),
        "soak.fault": Topic("a soak run does fault number on target, for so long", (*_OF_FAULT, "for_s")),
        "soak.recovered": Topic("what that fault had broken works again", (*_OF_FAULT, "after_s")),
        "soak.finding": Topic(
            "a soak run found something that must not be", ("lab", "profile", "what", "detail"), _WARNING
        ),
        "soak.ended": Topic(
            "a soak run has ended; outcome says how, findings how many", ("lab", "profile", "outcome", "findings")
        ),
        "bakeoff.began": Topic("a bake-off begins to measure in this lab; planned is how often", ("lab", "planned")),
        "bakeoff.missing": Topic(
            "a subject of a bake-off cannot go on; the others do", ("lab", "subject", "detail"), _WARNING
        ),
        "bakeoff.ended": Topic("a bake-off has ended in this lab", ("lab", "readings")),
    }
)
"""Every topic of a host node, in the order of docs/wire/admin.md."""
