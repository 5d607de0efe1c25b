"""Every verb and noun of the command line, with the one line that `vbnet --help` shows.

The table is written out so that help and completion need no imports: a verb's module is loaded when the verb is used.
"""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """One verb or noun: the module under ``vbnet.cli`` whose ``app`` it is, and its line of help."""

    module: str
    help: str


SECTIONS: dict[str, dict[str, Entry]] = {
    "Labs": {
        "demo": Entry("demo", "Watch a small lab come up, talk and go away (no arguments, 20 seconds)."),
        "up": Entry("up", "Bring up the lab of a file."),
        "down": Entry("down", "End a lab and remove every trace of it."),
        "link": Entry("link", "Join virtual machines by a network of their own, in one command."),
        "ps": Entry("ps", "List the guests of running labs."),
        "exec": Entry("exec_", "Run a program inside a guest's network namespace."),
        "logs": Entry("logs", "Show what guests and the host node printed."),
        "validate": Entry("validate", "Check a lab file; or print its JSON Schema."),
    },
    "Host node": {
        "host": Entry("host", "Run, inspect and stop a host node by itself."),
        "bus": Entry("bus", "List, create and delete buses."),
        "device": Entry("device", "List, create, set, fill, plug, unplug and delete devices."),
        "console": Entry("console", "Attach to a guest's console."),
        "guest": Entry("guest", "List, reset and run guests."),
        "switch": Entry("switch", "List switches and the MAC addresses they learned."),
        "port": Entry("port", "List, add and remove switch ports."),
        "graph": Entry("graph", "Draw switches, guests and devices with what passes between them."),
        "signal": Entry("signal", "List, make, route, raise, grant, export and drive signals."),
        "state": Entry("state", "List state devices and show their latest values."),
        "sched": Entry("sched", "Show what a scheduler coordinator gives guests' threads."),
        "top": Entry("top", "Watch guests, ports, queues, signals, timers and workers live."),
        "metrics": Entry("metrics", "Print what a host node counts, for Prometheus; serve it over HTTP."),
        "capture": Entry("capture", "Show or keep what passes ports, for Wireshark and others."),
        "trace": Entry("trace", "Follow frames on their way through the switch, with time stamps."),
        "monitor": Entry("monitor", "Start Prometheus and Grafana for what runs here, until Ctrl-C."),
        "events": Entry("events", "Follow what happens on a host node, or show what has happened."),
        "errors": Entry("errors", "Show the distinct errors of a host node, also of one that hangs or is dead."),
        "keys": Entry("keys", "Make, show and allow keys for other machines."),
    },
    "Measuring": {
        "load": Entry("load", "Put guests under load as a profile says, and say how it held."),
        "soak": Entry("soak", "Put guests under load and faults for hours, and say what drifted, broke or was left."),
        "bench": Entry("bench", "Measure vbnet beside its baselines."),
        "bakeoff": Entry("bakeoff", "Hold every model of network card against every other, and each mechanism."),
    },
    "This machine": {
        "doctor": Entry("doctor", "Check that this machine has what vbnet needs."),
        "clean": Entry("clean", "Remove what killed labs and host nodes left."),
    },
}

ENTRIES: dict[str, Entry] = {name: entry for section in SECTIONS.values() for name, entry in section.items()}
