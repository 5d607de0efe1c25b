"""Guests and devices: who is how, what they ask of the host node, and what other devices than NICs do."""

from __future__ import annotations

from typing import Final

from dashboards.chosen import GUEST_WORDS, guest_state, marks, scope, variables
from dashboards.panels import Dashboard, Kind, Panel, Query, Row
from dashboards.promql import any_of, whole
from vbnet.devices.card.metrics import CARD
from vbnet.devices.echo.metrics import ECHO
from vbnet.devices.fastcall.metrics import SLOT
from vbnet.devices.sched.metrics import SCHED
from vbnet.devices.state.metrics import STATE
from vbnet.devices.venet.metrics import STACK
from vbnet.devices.virtio.metrics import BLK, CONSOLE, RNG, VIRTIO
from vbnet.hostnode import metrics as host
from vbnet.metric import MetricKind
from vbnet.telemetry.own import PROGRAMS

__all__ = ["GUESTS"]

HERE: Final = scope("guest")
_GUEST: Final = "{{lab}} {{guest}}"
_DEVICE: Final = "{{lab}} {{device}}"
_STATE: Final = host.GUEST.values["state"]
_STACK: Final = "a lab has stack guests"


def _guest(name: str, how: str = "sum") -> Query:
    return Query(HERE.rate(host.GUEST.values[name], "lab", "guest", how=how), _GUEST)


def _share(used: str, limit: str) -> Query:
    values = host.GUEST.values
    return Query(HERE.total(values[used], "lab", "guest") / HERE.total(values[limit], "lab", "guest"), _GUEST)


_GLANCE: Final = Row(
    "Overview",
    [
        Panel(
            "Guests",
            [Query(HERE.total(host.HOST.values["guests"]), "guests")],
            "Guests on the chosen labs' host nodes.",
            "Fewer than the lab file has: `vbnet ps` shows which process ended.",
            Kind.NUMBER,
            4,
        ),
        Panel(
            "Not well",
            [Query(HERE.total(_STATE, state=any_of("wedged", "stuck")), "not well")],
            "Guests with a handler that hangs (wedged), or silent too long (stuck).",
            "`vbnet guest list` names them; runbook vbnet-guest-wedged.",
            Kind.NUMBER,
            4,
            limits=(1, 1),
        ),
        Panel(
            "Ended",
            [Query(HERE.total(_STATE, state=any_of("ended")), "ended")],
            "Of the last 64 guests that ended, those that did not come back.",
            "`vbnet events --last 20` says why each ended.",
            Kind.NUMBER,
            4,
        ),
        Panel(
            "Devices",
            [Query(HERE.total(host.DEVICES), "devices")],
            "Devices of the host nodes, plugged or not.",
            "`vbnet device list` has them all.",
            Kind.NUMBER,
            4,
        ),
        Panel(
            "Buses",
            [Query(HERE.total(host.HOST.values["buses"]), "buses")],
            "Buses of the host nodes, private ones included.",
            "`vbnet bus list` has them all.",
            Kind.NUMBER,
            4,
        ),
        Panel(
            "Rules broken",
            [Query(HERE.total(host.FAULTS), "faults")],
            "Rules broken by guests since the host nodes began.",
            "`vbnet errors` has each with its values.",
            Kind.NUMBER,
            4,
            limits=(1, 1),
        ),
    ],
)

_EACH: Final = Row(
    "Guests",
    [
        Panel(
            "States",
            [Query(guest_state(HERE), _GUEST)],
            "What each guest is, over time.",
            "wedged: a handler hangs, `vbnet logs GUEST` shows where. stuck: it does not answer at all.",
            Kind.STATES,
            24,
            words=GUEST_WORDS,
        ),
        Panel(
            "Requests",
            [_guest("requests")],
            "Requests of each guest to the host node.",
            "One far above the others asks in a loop; its requests cost the host's event loop.",
        ),
        Panel(
            "Coming again, and rules broken",
            [
                Query(HERE.increase(host.GUEST.values["reconnects"], "lab", "guest"), f"{_GUEST} came again"),
                Query(HERE.increase(host.GUEST.values["faults"], "lab", "guest"), f"{_GUEST} broke a rule"),
            ],
            "How often each guest came again under its name, and broke a rule.",
            "Coming again and again: it crashes and is restarted, runbook vbnet-guest-restarting.",
            limits=(1, 3),
        ),
        Panel(
            "Memory shared, of what is allowed",
            [_share("memory", "memory_limit")],
            "Memory that each guest shares with the host, as a share of its limit.",
            "At 1 further regions are refused with ENOSPC: give the guest less to share, or the host higher limits.",
            limits=(0.8, 0.95),
            top=1,
        ),
        Panel(
            "Devices open, of what is allowed",
            [_share("handles", "handles_limit")],
            "Devices that each guest has open, as a share of its limit.",
            "At 1 opening is refused: the guest forgets to close.",
            limits=(0.8, 0.95),
            top=1,
        ),
    ],
)

_PROGRAMS: Final = Row(
    "Guests' own programs",
    [
        Panel(
            "Counted by programs",
            [Query(HERE.programs(MetricKind.COUNTER), f"{_GUEST} {{{{metric}}}}")],
            "Counters that guests' programs declare (`guest.counters`), a second, over all their labels.",
            "What they mean is in the program; each is exported as `vbnet_guest_program_NAME_total`.",
            width=8,
            empty_until="a guest's program counts",
        ),
        Panel(
            "Gauges of programs",
            [Query(HERE.programs(MetricKind.GAUGE), f"{_GUEST} {{{{metric}}}}")],
            "Gauges that guests' programs declare, as they are.",
            "What they mean is in the program; each is exported as `vbnet_guest_program_NAME`.",
            width=8,
            empty_until="a guest's program has a gauge",
        ),
        Panel(
            "Left out of what programs count",
            [Query(HERE.rate(PROGRAMS, "lab", "reason"), "{{lab}}: {{reason}}")],
            "What a guest's program wrote into its counters file and the exporter does not believe, at each scrape.",
            "`conflict`: two guests declare one name differently. The others: the file is not written by "
            "`guest.counters`, or its writer has a bug.",
            width=8,
        ),
    ],
)

_STACKS: Final = Row(
    "Small IP hosts",
    [
        Panel(
            "Answered",
            [
                Query(HERE.rate(STACK.values[name], "lab", "guest").also_in("cps"), f"{_GUEST} {words}")
                for name, words in (
                    ("pings_answered", "pings"),
                    ("http_requests", "HTTP"),
                    ("udp_datagrams", "UDP"),
                    ("tcp_connections", "TCP"),
                )
            ],
            "Echo requests, HTTP requests, UDP datagrams and TCP connections that stack guests answered, a second.",
            "None while others ask: is the guest's link up, and is its address the one that is asked?",
            width=8,
            empty_until=_STACK,
        ),
        Panel(
            "Frames of small IP hosts",
            [
                Query(HERE.rate(STACK.values["rx_frames"], "lab", "guest"), f"{_GUEST} received"),
                Query(HERE.rate(STACK.values["tx_frames"], "lab", "guest"), f"{_GUEST} sent"),
            ],
            "Frames that stack guests took and sent, as they count them themselves.",
            "Less received than its port was given: the guests' thread does not keep up.",
            width=8,
            empty_until=_STACK,
        ),
        Panel(
            "Bytes of small IP hosts",
            [
                Query(HERE.rate(STACK.values["rx_bytes"], "lab", "guest"), f"{_GUEST} received"),
                Query(HERE.rate(STACK.values["tx_bytes"], "lab", "guest"), f"{_GUEST} sent"),
                Query(HERE.rate(STACK.values["tcp_bytes"], "lab", "guest"), f"{_GUEST} by TCP services"),
            ],
            "Bytes of those frames, and bytes that TCP services echoed, discarded or sunk.",
            "By frames it is the mean length.",
            width=8,
            empty_until=_STACK,
        ),
        Panel(
            "TCP connections open",
            [Query(HERE.total(STACK.values["tcp_open"], "lab", "guest"), _GUEST)],
            "TCP connections that stack guests have now.",
            "Growing without end: a client opens and does not close.",
            empty_until=_STACK,
        ),
        Panel(
            "Refused and not sent, by reason",
            [
                Query(
                    HERE.rate(whole(STACK.values["tcp_refused"]), "lab", "guest", "reason").also_in("cps"),
                    f"{_GUEST} TCP: {{{{reason}}}}",
                ),
                Query(
                    HERE.rate(whole(STACK.values["tx_drops_no_room"]), "lab", "guest", "reason").also_in("cps"),
                    f"{_GUEST} frames: {{{{reason}}}}",
                ),
            ],
            "TCP connections that stack guests refused, and frames that they could not send.",
            "too_many: spread the clients over more hosts. no_room: the switch's worker does not keep up.",
            limits=(0.01, 0.01),
            empty_until=_STACK,
        ),
    ],
)

_BUS: Final = Row(
    "Bus",
    [
        Panel(
            "Requests, by verb",
            [Query(HERE.rate(whole(host.REQUESTS), "lab", "verb"), "{{lab}} {{verb}}")],
            "What guests ask for.",
            "Many Hello: guests come and go. Many Call: a device is used over the bus that should be used by memory.",
            width=8,
            is_stacked=True,
        ),
        Panel(
            "Requests refused, by error",
            [
                Query(HERE.rate(whole(host.REFUSED), "lab", "code"), "{{lab}} {{code}}"),
                Query(HERE.rate(host.SILENCED, "lab").also_in("reqps"), "{{lab}} not even answered"),
            ],
            "What the host node refused, by errno name; and refusals that were not sent, as that peer earned too many.",
            "`vbnet errors` names the guest and the rule.",
            width=8,
            is_stacked=True,
        ),
        Panel(
            "Events, by kind",
            [Query(HERE.rate(whole(host.EVENTS), "lab", "event"), "{{lab}} {{event}}")],
            "What the host node tells guests.",
            "Many LinkState: somebody sets links up and down.",
            width=8,
            is_stacked=True,
        ),
        Panel(
            "Sessions ended, by cause",
            [
                Query(HERE.increase(host.SESSIONS, "lab"), "{{lab}} opened"),
                Query(HERE.increase(whole(host.ENDED), "lab", "cause"), "{{lab}} ended: {{cause}}"),
            ],
            "Sessions opened and ended.",
            "Causes but `bye`, `exited`, `hung-up`, `bus-deleted` and `host-stopped` are misbehaviour: "
            "`vbnet events --last 20`.",
            width=8,
        ),
        Panel(
            "Descriptors at the attach socket",
            [
                Query(HERE.rate(host.LENDS, "lab"), "{{lab}} lent"),
                Query(HERE.rate(host.LENDS_REFUSED, "lab"), "{{lab}} not lent"),
                Query(HERE.rate(host.SURPLUS_FDS, "lab"), "{{lab}} uninvited"),
            ],
            "Descriptors of devices lent to guests, refused, and those that guests sent uninvited.",
            "Not lent: the guest does not read, or the host has none left. Uninvited: a guest tries something.",
            width=8,
        ),
        Panel(
            "Guests and interfaces of buses",
            [
                Query(HERE.total(host.BUS.values["guests"], "lab", "bus"), "{{lab}} {{bus}} guests"),
                Query(HERE.total(host.BUS.values["interfaces"], "lab", "bus"), "{{lab}} {{bus}} interfaces"),
            ],
            "Who is on each bus that has a name of its own, and what it shows.",
            "A bus without guests: is its guest up?",
            width=8,
        ),
    ],
)

_DEVICES: Final = Row(
    "Devices",
    [
        Panel(
            "Handles, by type",
            [Query(HERE.total(host.DEVICE.values["openers"], "lab", "type"), "{{lab}} {{type}}")],
            "Handles that guests have on devices.",
            "None on a type that should be used: `vbnet device list`.",
            width=8,
        ),
        Panel(
            "Calls over the bus, by type",
            [Query(HERE.rate(host.DEVICE.values["calls"], "lab", "type"), "{{lab}} {{type}}")],
            "Calls of devices over the bus, refused ones too.",
            "High rates belong on fastcalls or in shared memory.",
            width=8,
        ),
        Panel(
            "Opens, by type",
            [Query(HERE.rate(host.DEVICE.values["opens"], "lab", "type"), "{{lab}} {{type}}")],
            "How often guests opened devices.",
            "A steady rate: a guest opens and closes in a loop.",
            width=8,
        ),
        Panel(
            "Bugs in device code, doorbells lost, eventfds of operators",
            [
                Query(HERE.total(host.DEVICE_FAILURES, "lab"), "{{lab}} bugs contained"),
                Query(HERE.total(host.LOST_RINGS, "lab"), "{{lab}} doorbells lost"),
                Query(HERE.total(host.DRIVES, "lab"), "{{lab}} eventfds of operators"),
            ],
            "Failures of device code that were contained, doorbells of guests that were lost as too many waited, and "
            "eventfds by which operators raise signals.",
            "A bug: `vbnet errors` has where; please report it. Doorbells lost: guests ring without end.",
            width=8,
        ),
        Panel(
            "State devices: records",
            [
                Query(HERE.total(STATE.values["records"], "lab", "device"), f"{_DEVICE} records"),
                Query(HERE.total(STATE.values["claimed"], "lab", "device"), f"{_DEVICE} claimed"),
            ],
            "Records of state devices, and those that somebody publishes.",
            "Claimed falls: a publisher died; its record keeps the last value.",
            width=8,
        ),
        Panel(
            "State devices: use",
            [
                Query(HERE.rate(STATE.values["claims"], "lab", "device"), f"{_DEVICE} claims"),
                Query(HERE.rate(STATE.values["calls"], "lab", "device").also_in("cps"), f"{_DEVICE} calls"),
                Query(HERE.rate(STATE.values["busy"], "lab", "device"), f"{_DEVICE} found changing"),
                Query(HERE.rate(STATE.values["faults"], "lab", "device"), f"{_DEVICE} claims ended"),
            ],
            "Claims and calls; calls that found a record changing at every look, and claims that were ended as the "
            "guest kept its page from being frozen.",
            "Found changing: a writer does not stop. Claims ended: `vbnet errors` names the guest.",
            width=8,
        ),
    ],
)

_CALLS: Final = Row(
    "Fastcalls and coordinators",
    [
        Panel(
            "Fastcalls",
            [Query(HERE.rate(SLOT.values["calls"], "lab", "guest"), _GUEST)],
            "Calls through slots, answered by a handler in shared memory.",
            "None although a device has a fast handler: see those sent the ordinary way.",
            width=8,
        ),
        Panel(
            "Bytes of fastcalls",
            [Query(HERE.rate(SLOT.values["bytes"], "lab", "guest"), _GUEST)],
            "Bytes of the data and the answers of fastcalls.",
            "By calls it is the mean length; long ones are better kept in regions.",
            width=8,
        ),
        Panel(
            "Fastcalls that failed or went the ordinary way",
            [
                Query(HERE.rate(whole(SLOT.values["refused"]), "lab", "guest", "reason"), f"{_GUEST}: {{{{reason}}}}"),
                Query(
                    HERE.rate(whole(SLOT.values["unserved_no_handler"]), "lab", "guest", "reason"),
                    f"{_GUEST} unserved: {{{{reason}}}}",
                ),
                Query(HERE.rate(SLOT.values["faults"], "lab", "guest"), f"{_GUEST} slot ended"),
            ],
            "Calls that did not do what they were made for, those sent over the bus instead, and slots that ended as "
            "the guest broke a rule.",
            "`failed` is a handler's bug: `vbnet errors`. `no_handler`: the device answers over the bus only.",
            width=8,
        ),
        Panel(
            "Fastcalls: doorbells and sleep",
            [
                Query(HERE.rate(SLOT.values["kicks"], "lab", "guest"), f"{_GUEST} heard"),
                Query(HERE.rate(SLOT.values["calls_rung"], "lab", "guest"), f"{_GUEST} rung"),
                Query(HERE.rate(SLOT.values["calls_suppressed"], "lab", "guest"), f"{_GUEST} spared"),
                Query(HERE.rate(SLOT.values["wakeups"], "lab", "guest"), f"{_GUEST} wakes"),
                Query(HERE.rate(SLOT.values["parks"], "lab", "guest"), f"{_GUEST} falls asleep"),
            ],
            "System calls that fastcalls still cost, and those they did not.",
            "As many rung as calls: the guest sleeps between calls; let it wait longer before it does.",
            width=8,
        ),
        Panel(
            "Coordinators: threads",
            [
                Query(HERE.total(SCHED.values["guests"], "lab", "device"), f"{_DEVICE} guests"),
                Query(HERE.total(SCHED.values["threads"], "lab", "device"), f"{_DEVICE} threads"),
            ],
            "Guests that take part in scheduling, and their threads in hand.",
            "Fewer threads than guests have: see the refusals.",
            width=8,
            empty_until="guests use a coordinator",
        ),
        Panel(
            "Coordinators: changes",
            [
                Query(HERE.rate(SCHED.values[name], "lab", "device"), f"{_DEVICE} {words}")
                for name, words in (
                    ("kicks", "doorbells"),
                    ("samples", "records copied"),
                    ("no_ops", "nothing to change"),
                    ("applied", "applied"),
                    ("put_back", "put back"),
                    ("weighed", "groups weighed"),
                    ("boosts", "boosts"),
                )
            ],
            "What the coordinator does for guests' threads.",
            "Many applied at a steady load: guests change their minds; each change is a system call.",
            width=8,
            empty_until="guests use a coordinator",
        ),
        Panel(
            "Coordinators: refused and failed",
            [
                Query(
                    HERE.rate(whole(SCHED.values["refused_forged_thread"]), "lab", "device", "reason"),
                    f"{_DEVICE}: {{{{reason}}}}",
                ),
                Query(HERE.rate(SCHED.values["put_back_failed"], "lab", "device"), f"{_DEVICE} not put back"),
                Query(HERE.rate(SCHED.values["weigh_failed"], "lab", "device"), f"{_DEVICE} not weighed"),
                Query(HERE.rate(SCHED.values["muted"], "lab", "device"), f"{_DEVICE} muted"),
            ],
            "Threads that did not get what they want, those that could not be put back, groups that could not be "
            "weighed, and guests not heard because they rang without end.",
            "`vbnet sched show` has each thread's refusal; not put back: runbook vbnet-thread-not-put-back.",
            empty_until="guests use a coordinator",
        ),
        Panel(
            "Echo devices",
            [Query(HERE.rate(ECHO.values["calls"], "lab", "device"), _DEVICE)],
            "Calls that echo devices answered.",
            "They exist for tests and examples; use them to see that a guest's bus works.",
        ),
    ],
)

_UNTIL_DISKS: Final = "guests have disks"
_UNTIL_CARDS: Final = "guests have emulated cards"
_WHOSE: Final = "{{lab}} {{guest}} {{device}}"

_DISKS: Final = Row(
    "Virtio: disks, consoles, entropy",
    [
        Panel(
            "Requests",
            [Query(HERE.rate(whole(BLK.values["reads"]), "lab", "guest", "device", "kind"), f"{_WHOSE}: {{{{kind}}}}")],
            "Requests of guests' disks, done.",
            "None where a guest should be at work: see errors and latency, then the guest's own log.",
            width=8,
            empty_until=_UNTIL_DISKS,
        ),
        Panel(
            "Bytes",
            [
                Query(
                    HERE.rate(whole(BLK.values["read_bytes"]), "lab", "guest", "device", "kind"),
                    f"{_WHOSE}: {{{{kind}}}}",
                )
            ],
            "Bytes read from and written to disks.",
            "By requests it is their mean size; many small ones cost a wake-up each.",
            width=8,
            empty_until=_UNTIL_DISKS,
        ),
        Panel(
            "Errors",
            [Query(HERE.rate(whole(BLK.values["error_io"]), "lab", "guest", "reason"), f"{_GUEST}: {{{{reason}}}}")],
            "Requests that were not done, by reason.",
            "`io`: the file beneath failed, look at the machine's own log. Any other: the guest's driver is wrong.",
            width=8,
            empty_until=_UNTIL_DISKS,
        ),
        Panel(
            "Latency",
            [
                Query(
                    HERE.quantile(0.99, whole(BLK.values["read_latency"]), "lab", "guest", "kind"),
                    f"{_GUEST} {{{{kind}}}} 99 %",
                )
            ],
            "From when a disk's thread takes a request to when it is done.",
            "The file beneath is slow; other devices' threads do not wait for it.",
            width=8,
            empty_until=_UNTIL_DISKS,
        ),
        Panel(
            "Consoles",
            [
                Query(HERE.rate(CONSOLE.values["transmit_bytes"], "lab", "guest", "device"), f"{_WHOSE} said"),
                Query(HERE.rate(CONSOLE.values["receive_bytes"], "lab", "guest", "device"), f"{_WHOSE} typed"),
                Query(
                    HERE.rate(whole(CONSOLE.values["unread_bytes"]), "lab", "guest", "reason"),
                    f"{_GUEST} let go of: {{{{reason}}}}",
                ),
            ],
            "Bytes of guests' consoles, and those that were let go of.",
            "`unread`: nobody is attached, which is well if there is a log. `unlogged`: the log's file system is full.",
            width=8,
            empty_until="guests have consoles",
        ),
        Panel(
            "Entropy",
            [
                Query(HERE.rate(RNG.values["requests"], "lab", "guest", "device"), f"{_WHOSE} requests"),
                Query(HERE.rate(RNG.values["errors"], "lab", "guest", "device"), f"{_WHOSE} without an answer"),
            ],
            "Requests of guests for the machine's random numbers.",
            "A high steady rate: a guest should seed a generator of its own.",
            width=8,
            empty_until="guests have entropy devices",
        ),
        Panel(
            "Bytes of entropy",
            [Query(HERE.rate(RNG.values["bytes"], "lab", "guest", "device"), _WHOSE)],
            "Random bytes given to guests.",
            "A high steady rate: a guest should seed a generator of its own.",
            width=8,
            empty_until="guests have entropy devices",
        ),
        Panel(
            "Virtio: chains, doorbells and sleep",
            [
                Query(HERE.rate(VIRTIO.values[name], "lab", "guest", "device"), f"{_WHOSE} {words}")
                for name, words in (
                    ("chains", "chains"),
                    ("kicks", "kicks heard"),
                    ("calls_rung", "rung"),
                    ("calls_suppressed", "spared"),
                    ("parks", "falls asleep"),
                    ("wakeups", "wakes"),
                )
            ],
            "Chains that virtio devices completed, and the system calls that they cost or did not.",
            "As many rung as chains: the guest sleeps between requests; have more of them under way.",
            width=8,
            empty_until=_UNTIL_DISKS,
        ),
        Panel(
            "Virtio: registers and faults",
            [
                Query(HERE.rate(VIRTIO.values["registers"], "lab", "guest", "device"), f"{_WHOSE} registers"),
                Query(HERE.rate(VIRTIO.values["traps"], "lab", "guest", "device"), f"{_WHOSE} of these, traps"),
                Query(HERE.rate(VIRTIO.values["refused"], "lab", "guest", "device"), f"{_WHOSE} refused"),
                Query(HERE.rate(VIRTIO.values["resets"], "lab", "guest", "device"), f"{_WHOSE} resets"),
                Query(HERE.rate(VIRTIO.values["put_off"], "lab", "guest", "device"), f"{_WHOSE} resets put off"),
                Query(
                    HERE.rate(whole(VIRTIO.values["fault_tail_out_of_range"]), "lab", "guest", "reason"),
                    f"{_GUEST} ended: {{{{reason}}}}",
                ),
            ],
            "Register accesses; those trapped or refused; resets, done and put off; queues that broke a rule.",
            "Faults: the driver is wrong; `vbnet errors` names the rule. Many traps: use the transport `vbus`.",
            width=8,
            empty_until=_UNTIL_DISKS,
        ),
    ],
)

_CARDS: Final = Row(
    "Emulated network cards",
    [
        Panel(
            "Traps",
            [
                Query(
                    HERE.rate(whole(CARD.values["reads"]), "lab", "guest", "device", "access"),
                    f"{_WHOSE}: {{{{access}}}}",
                )
            ],
            "Times that drivers of emulated cards left their guests, by what for.",
            "By frames it is what a frame costs: an rtl8139 takes several, an e1000 one for a batch.",
            empty_until=_UNTIL_CARDS,
        ),
        Panel(
            "Interrupts, resets, calls refused",
            [
                Query(HERE.rate(CARD.values[name], "lab", "guest", "device"), f"{_WHOSE} {words}")
                for name, words in (
                    ("interrupts", "interrupts"),
                    ("throttled", "of these, throttled"),
                    ("resets", "resets"),
                    ("refused", "calls refused"),
                )
            ],
            "Interrupts of emulated cards, and how many waited for the throttle; resets, and calls that are none.",
            "Resets at a steady rate: the driver does not get its card to work. Refused: it is broken, or hostile.",
            empty_until=_UNTIL_CARDS,
        ),
    ],
)

GUESTS: Final = Dashboard(
    "vbnet-guests",
    "vbnet / Guests and devices",
    "How each guest is, what it asks of the host node, and what its devices do.",
    variables("guest"),
    [_GLANCE, _EACH, _PROGRAMS, _STACKS, _BUS, _DEVICES, _CALLS, _DISKS, _CARDS],
    marks(scope()),
)
