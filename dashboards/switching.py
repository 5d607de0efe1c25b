"""Switches and their ports: what passes, what is lost and why, how full rings are, who is woken."""

from __future__ import annotations

from typing import Final

from dashboards.chosen import marks, scope, variables
from dashboards.panels import Dashboard, Kind, Panel, Query, Row
from dashboards.promql import whole
from vbnet.devices.venet.metrics import LATENCY, PORT
from vbnet.hostnode.metrics import CAPTURE, SWITCH, VHOST_USER

__all__ = ["SWITCHING"]

HERE: Final = scope("switch", "guest", "device")
_PORT: Final = "{{lab}} {{device}}"
_CAPTURE: Final = "{{lab}} {{device}} {{purpose}}"
_CAPTURED: Final = ("lab", "device", "purpose")
_LISTENS: Final = "a port waits for front ends (`vbnet port add --vhost-user`)"
_STARTED: Final = "`vbnet capture` or `vbnet trace` runs"
_LOST_IN: Final = whole(PORT.values["receive_drop_no_room"])
_LOST_OUT: Final = whole(PORT.values["transmit_drop_oversize"])
_OFFLOADED: Final = whole(PORT.values["receive_offloads"])
_REJECTED: Final = whole(PORT.values["fault_tail_out_of_range"])
_SLOTS: Final = whole(PORT.values["transmit_slots"])
_USED: Final = whole(PORT.values["transmit_slots_used"])
_RESIDENCE: Final = whole(LATENCY.values["transmit_residence"])
_WAKEUP: Final = whole(LATENCY.values["host_wakeup"])
_SERVICE: Final = LATENCY.values["service"]
_UNBELIEVED: Final = whole(LATENCY.values["impossible"])
_PARTS: Final = ((0.5, "half"), (0.99, "99 %"))

_taken: Final = HERE.rate(PORT.values["transmit_frames"])
_given: Final = HERE.rate(PORT.values["receive_frames"])
_lost: Final = HERE.rate(_LOST_IN)

_GLANCE: Final = Row(
    "Overview",
    [
        Panel(
            "Ports",
            [Query(HERE.total(SWITCH.values["ports"]), "ports")],
            "Ports of the chosen switches.",
            "Fewer than NICs: `vbnet port list` shows which are plugged.",
            Kind.NUMBER,
            4,
        ),
        Panel(
            "Stations known",
            [Query(HERE.total(SWITCH.values["stations"]), "stations")],
            "Addresses in the switches' tables.",
            "Far more than guests: somebody makes addresses up; see addresses below.",
            Kind.NUMBER,
            4,
        ),
        Panel(
            "Frames from guests",
            [Query(_taken, "taken")],
            "Frames taken from guests and TAPs, a second.",
            "Nothing: no guest sends, or links are down (`vbnet port list`).",
            Kind.NUMBER,
            4,
        ),
        Panel(
            "Frames to guests",
            [Query(_given, "given")],
            "Frames given to guests and TAPs, a second; one to every port counts for each.",
            "Much less than from guests: see the losses.",
            Kind.NUMBER,
            4,
        ),
        Panel(
            "Lost on the way to guests",
            [Query(_lost / (_given + _lost), "lost")],
            "Share of the frames for guests that were not given to them.",
            "See the reasons below; runbook vbnet-receive-drops.",
            Kind.NUMBER,
            4,
            limits=(0.001, 0.01),
        ),
        Panel(
            "Queues quarantined",
            [Query(HERE.total(_REJECTED), "ended")],
            "Queues that were ended because the guest broke a rule, of devices that are here now.",
            "`vbnet errors` says which rule, with values; the guest has to open its device again.",
            Kind.NUMBER,
            4,
            limits=(1, 1),
        ),
    ],
)

_PORTS: Final = Row(
    "Ports",
    [
        Panel(
            "Frames to guests",
            [Query(HERE.rate(PORT.values["receive_frames"], "lab", "guest", "device"), _PORT)],
            "Frames given to each port's guest.",
            "One port without any: is it on the switch that its sender is on?",
        ),
        Panel(
            "Frames from guests",
            [Query(HERE.rate(PORT.values["transmit_frames"], "lab", "guest", "device"), _PORT)],
            "Frames taken from each port's guest.",
            "One that should be quiet: `vbnet port stats` says more of it.",
        ),
        Panel(
            "Bytes to guests",
            [Query(HERE.rate(PORT.values["receive_bytes"], "lab", "guest", "device"), _PORT)],
            "The same in bytes of frames.",
            "Bytes by frames is the mean length; small frames cost most for each byte.",
        ),
        Panel(
            "Bytes from guests",
            [Query(HERE.rate(PORT.values["transmit_bytes"], "lab", "guest", "device"), _PORT)],
            "The same in bytes of frames.",
            "Bytes by frames is the mean length.",
        ),
        Panel(
            "Offloads taken from guests",
            [Query(HERE.rate(PORT.values["transmit_offloads"], "lab", "guest", "device"), _PORT)],
            "Frames that came with a checksum to complete or segments to cut, a second.",
            "Nothing from a namespace that sends TCP: `vbnet port list` shows which ports have offloads.",
        ),
        Panel(
            "Offloads given to guests, by how",
            [Query(HERE.rate(_OFFLOADED, "lab", "device", "how"), "{{lab}} {{device}}: {{how}}")],
            "Such frames for a guest: left to it as a whole, or done for it by the switch.",
            "`segmented`, `completed`: the guest cannot do it, and the worker does; it costs the worker's time.",
            is_stacked=True,
        ),
        Panel(
            "Frames from guests in several pieces",
            [Query(HERE.rate(PORT.values["gathered_frames"], "lab", "guest", "device"), _PORT)],
            "Frames that a driver of venet left where their pieces lay, a second; the worker put them together.",
            "Nothing by itself. Each is copied twice: a driver that copies small ones itself spares the worker's time.",
        ),
        Panel(
            "Buffers for frames longer than one",
            [Query(HERE.rate(PORT.values["merged_buffers"], "lab", "guest", "device"), _PORT)],
            "Buffers that took a part of a frame each, a second: the frame was longer than those that were posted.",
            "Many more than frames: a driver that posts longer buffers spares both sides time.",
        ),
        Panel(
            "Frames to guests in several buffers",
            [Query(HERE.rate(PORT.values["merged_frames"], "lab", "guest", "device"), _PORT)],
            "Those frames, a second.",
            "None although long frames come (offloads, `whole`): they fit the buffers, or their guest is a kernel.",
        ),
    ],
)

_LOSSES: Final = Row(
    "Losses",
    [
        Panel(
            "Senders held up, by receiver",
            [Query(HERE.rate(PORT.values["receive_held_nanoseconds"], "lab", "guest", "device"), _PORT)],
            "The share of time for which frames for a guest waited in their senders' rings, as it had no room.",
            "Nothing by itself: without it they were lost. Much of it: that guest is slower than its senders, and "
            "frames for others wait behind its own; `vbnet device set DEVICE hold=0` drops them instead.",
        ),
        Panel(
            "Holds, by receiver",
            [Query(HERE.rate(PORT.values["receive_holds"], "lab", "guest", "device"), _PORT)],
            "How often senders began to wait for a guest, a second.",
            "Nothing by itself. Many short ones: the guest is nearly fast enough, and a longer ring would spare them.",
        ),
        Panel(
            "Not given to guests, by reason",
            [Query(HERE.rate(_LOST_IN, "lab", "device", "reason"), "{{lab}} {{device}}: {{reason}}")],
            "Frames for a guest that it did not get.",
            "`no_room`: it is slower than its senders, or posts too few buffers. `buffer_too_small`, `oversize`: the "
            "MTUs of sender and receiver differ. `quarantined`: its queue was ended, see `vbnet errors`.",
            is_stacked=True,
        ),
        Panel(
            "Not taken from guests, by reason",
            [Query(HERE.rate(_LOST_OUT, "lab", "device", "reason"), "{{lab}} {{device}}: {{reason}}")],
            "Frames of a guest that went no further than its port.",
            "`forged_source`: it sends under another port's address. `runt`, `oversize`: it makes bad frames; "
            "`offload_…`: it asks for what cannot be done. `same_port`: the addressee is behind the sender's own port.",
            is_stacked=True,
        ),
        Panel(
            "Queues ended, by reason",
            [Query(HERE.total(_REJECTED, "lab", "guest", "device", "reason") > 0, "{{lab}} {{device}}: {{reason}}")],
            "Which rule a guest broke so that its queue is quarantined.",
            "`vbnet errors` has the values. A guest of vbnet's own that does this has a bug: please report it.",
            limits=(1, 1),
            empty_until="a guest breaks a rule of its rings",
        ),
        Panel(
            "Turns that ended with more waiting",
            [Query(HERE.rate(PORT.values["budget_exhausted"], "lab", "device"), _PORT)],
            "How often a port had more frames waiting than one turn takes, so that others had theirs first.",
            "Normal for whoever sends as fast as it can; on every port at once the workers are at their limit.",
        ),
    ],
)

_RINGS: Final = Row(
    "Rings and doorbells",
    [
        Panel(
            "Rings, how full",
            [
                Query(
                    HERE.total(_USED, "lab", "device", "queue") / HERE.total(_SLOTS, "lab", "device", "queue"),
                    "{{lab}} {{device}} {{queue}}",
                )
            ],
            "Transmit: share of the ring that holds frames. Receive: share that holds buffers for frames to come.",
            "A transmit ring that stays full: the host cannot keep up. A receive ring that stays empty: the guest "
            "does not post buffers, and frames are lost with `no_room`.",
            top=1,
        ),
        Panel(
            "Doorbells spared",
            [
                Query(
                    HERE.rate(PORT.values["calls_suppressed"], "lab", "device")
                    / (
                        HERE.rate(PORT.values["calls_suppressed"], "lab", "device")
                        + HERE.rate(PORT.values["calls_rung"], "lab", "device")
                    ),
                    _PORT,
                )
            ],
            "Share of the times that a guest had something to hear of and was awake, so that no system call was made.",
            "Low at high rates: the guest sleeps too eagerly, and each frame costs a wake-up.",
            top=1,
            empty_until="a guest is told of frames",
        ),
        Panel(
            "Doorbells",
            [
                Query(HERE.rate(PORT.values["kicks"], "lab", "device"), "{{lab}} {{device}} heard from it"),
                Query(HERE.rate(PORT.values["calls_rung"], "lab", "device"), "{{lab}} {{device}} rung for it"),
            ],
            "Doorbells heard from each guest, and rung for it.",
            "Thousands a second without frames: a guest rings for nothing.",
        ),
        Panel(
            "Ports falling asleep and waking",
            [
                Query(HERE.rate(PORT.values["parks"], "lab", "device"), "{{lab}} {{device}} falls asleep"),
                Query(HERE.rate(PORT.values["wakeups"], "lab", "device"), "{{lab}} {{device}} wakes"),
            ],
            "How often the host stops polling a port, and begins again when its doorbell rings.",
            "Both high at a steady rate: traffic comes just too slowly to stay awake; harmless, but it costs system "
            "calls.",
        ),
    ],
)

_LATENCIES: Final = Row(
    "Latencies, by samples",
    [
        Panel(
            "Time in rings",
            [
                Query(HERE.quantile(part, _RESIDENCE, "lab", "queue"), f"{{{{lab}}}} {{{{queue}}}} {words}")
                for part, words in _PARTS
            ],
            "How long frames lay in rings: of guests until a worker took them (transmit), for guests until they were "
            "taken (receive).",
            "Transmit: the workers are busy, or sleep; see doorbells. Receive: the guest is slow to look.",
            width=8,
            empty_until="frames pass a port",
        ),
        Panel(
            "Turns",
            [
                Query(HERE.quantile(part, _SERVICE, "lab", "switch"), f"{{{{lab}}}} {{{{switch}}}} {words}")
                for part, words in _PARTS
            ],
            "How long workers' turns with frames took, until the receivers were told: what vbnet itself adds at most, "
            "also for TAPs and virtual machines, whose own queues bear no stamps.",
            "Long with TAPs: each frame is a system call. Long without: a worker lost its processor in the middle.",
            width=8,
            empty_until="frames pass a port",
        ),
        Panel(
            "Wake-ups",
            [
                Query(HERE.quantile(part, _WAKEUP, "lab", "woken"), f"{{{{lab}}}} {{{{woken}}}} {words}")
                for part, words in _PARTS
            ],
            "From the ring of a doorbell to the first look of who slept: a worker of the host, or the guest.",
            "Milliseconds: something else has the processor; `vbnet sched` helps guests that must be woken in time.",
            width=8,
            empty_until="a worker or a guest is woken",
        ),
        Panel(
            "Stamps not believed",
            [Query(HERE.rate(_UNBELIEVED, "lab", "device", "reason"), "{{lab}} {{device}}: {{reason}}")],
            "Times that a guest said and that cannot be; they are in no other panel.",
            "A guest in a time namespace of its own, or one that was stopped for long: harmless. Otherwise it lies.",
            width=8,
        ),
    ],
)

_ADDRESSES: Final = Row(
    "Addresses",
    [
        Panel(
            "Stations",
            [Query(HERE.total(SWITCH.values["stations"], "lab", "switch"), "{{lab}} {{switch}}")],
            "Addresses in each switch's table.",
            "Growing without end: a guest makes addresses up.",
            width=8,
        ),
        Panel(
            "Stations learned, moved, refused",
            [
                Query(HERE.rate(SWITCH.values["learned_stations"], "lab", "switch"), "{{lab}} {{switch}} learned"),
                Query(HERE.rate(SWITCH.values["moved_stations"], "lab", "switch"), "{{lab}} {{switch}} moved"),
                Query(
                    HERE.rate(whole(SWITCH.values["table_full"]), "lab", "switch", "reason"),
                    "{{lab}} {{switch}} refused: {{reason}}",
                ),
            ],
            "Changes of the table.",
            "Steady moves: two ports use one address, or there is a loop. Refused: runbook vbnet-switch-table-full.",
            width=8,
        ),
        Panel(
            "Frames to every port, and forged ones",
            [
                Query(HERE.rate(SWITCH.values["flooded_frames"], "lab", "switch"), "{{lab}} {{switch}} flooded"),
                Query(HERE.rate(SWITCH.values["forged_sources"], "lab", "switch"), "{{lab}} {{switch}} forged"),
            ],
            "Frames sent to every port because nobody knows the addressee, or everybody is one; and frames under "
            "another port's address, which go nowhere.",
            "Flooding at high rates: the addressee never answers. Forged: runbook vbnet-forged-sources.",
            width=8,
        ),
    ],
)

_FRONT_ENDS: Final = Row(
    "Virtual machines and DPDK applications",
    [
        Panel(
            "Front ends connected",
            [Query(HERE.total(VHOST_USER.values["is_connected"], "lab", "device"), _PORT)],
            "1 for each port of kind vhost-user or front-end whose other end is connected.",
            "0: its virtual machine does not run, or connects elsewhere; `vbnet port list` has the socket.",
            width=8,
            empty_until=_LISTENS,
        ),
        Panel(
            "Connections and messages",
            [
                Query(HERE.rate(VHOST_USER.values["connections"], "lab", "device"), f"{_PORT} connected"),
                Query(HERE.rate(VHOST_USER.values["messages"], "lab", "device").also_in("cps"), f"{_PORT} messages"),
            ],
            "Front ends that connected, and messages by which they set their queues up.",
            "Steady connections: a front end begins anew again and again; see what was refused.",
            width=8,
            empty_until=_LISTENS,
        ),
        Panel(
            "Front ends refused, by reason",
            [
                Query(
                    HERE.rate(whole(VHOST_USER.values["refused_message"]), "lab", "device", "reason"),
                    f"{_PORT}: {{{{reason}}}}",
                )
            ],
            "Connections that were ended, as a front end said what cannot be, or went in the middle of it.",
            "`vbnet errors` says what it said. `machine`: this host lacks memory or descriptors.",
            width=8,
            empty_until=_LISTENS,
        ),
    ],
)

_CAPTURES: Final = Row(
    "Captures and traces",
    [
        Panel(
            "Frames captured",
            [
                Query(HERE.rate(CAPTURE.values["captured_frames"], *_CAPTURED), f"{_CAPTURE} taken"),
                Query(HERE.rate(CAPTURE.values["filtered_frames"], *_CAPTURED), f"{_CAPTURE} not wanted"),
            ],
            "Frames given to captures and traces, and those that their filters did not want.",
            "Nothing taken: does the filter want what passes there?",
            width=8,
            empty_until=_STARTED,
        ),
        Panel(
            "Frames lost to captures",
            [
                Query(
                    HERE.rate(whole(CAPTURE.values["drop_no_room"]), *_CAPTURED, "reason"),
                    f"{_CAPTURE}: {{{{reason}}}}",
                ),
                Query(HERE.total(CAPTURE.values["is_blocked"], *_CAPTURED).also_in("pps"), f"{_CAPTURE} ended"),
            ],
            "Frames that a capture wanted and lost, as its reader was too slow; and 1 for one that ended as its reader "
            "made the doorbell block. The frames themselves went their way.",
            "Keep less of each frame (`--snaplen`), filter, or write to a faster disk.",
            width=8,
            limits=(1, 1),
            empty_until=_STARTED,
        ),
        Panel(
            "Bytes captured",
            [Query(HERE.rate(CAPTURE.values["captured_bytes"], *_CAPTURED), _CAPTURE)],
            "Bytes of captured frames, as far as they are kept.",
            "It is what the file grows by.",
            width=4,
            empty_until=_STARTED,
        ),
        Panel(
            "Readers woken",
            [Query(HERE.rate(CAPTURE.values["calls_rung"], *_CAPTURED), _CAPTURE)],
            "How often a capture's reader was woken.",
            "As often as frames: the reader keeps up, and sleeps in between.",
            width=4,
            empty_until=_STARTED,
        ),
    ],
)

SWITCHING: Final = Dashboard(
    "vbnet-switching",
    "vbnet / Switches and ports",
    "What passes each port, what is lost and why, how full rings are.",
    variables("switch", "guest", "device"),
    [_GLANCE, _PORTS, _LOSSES, _RINGS, _LATENCIES, _ADDRESSES, _FRONT_ENDS, _CAPTURES],
    marks(scope()),
)
