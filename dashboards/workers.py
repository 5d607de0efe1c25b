"""The host node's own: threads that move frames, its process, its event loop, and how it is exported."""

from __future__ import annotations

from typing import Final

from dashboards.chosen import marks, scope, variables
from dashboards.panels import BAD, GOOD, Dashboard, Kind, Panel, Query, Row
from dashboards.promql import PROCESS, SCRAPE, UP, whole
from dashboards.threads import awake, busy, service_awake
from vbnet.devices.fastcall.metrics import SERVICE
from vbnet.hostnode import metrics as host
from vbnet.telemetry import own

__all__ = ["WORKERS"]

HERE: Final = scope("worker")
_WORKER: Final = "{{lab}} {{worker}}"
_ROUNDS: Final = whole(host.WORKER.values["busy_rounds"])


_GLANCE: Final = Row(
    "Overview",
    [
        Panel(
            "Host nodes",
            [Query(HERE.total(own.UP, "lab", how="min"), "{{lab}}")],
            "Whether each host node's process is there.",
            "Runbook vbnet-node-down.",
            Kind.NUMBER,
            4,
            words=((0, "down", BAD), (1, "up", GOOD)),
        ),
        Panel(
            "Up for",
            [Query(HERE.age(PROCESS["start_seconds"], on_scrape=False).smallest("lab"), "{{lab}}")],
            "How long ago each host node started.",
            "Shorter than expected: it was restarted; `vbnet logs host` has its last words.",
            Kind.NUMBER,
            4,
        ),
        Panel(
            "Scrapes that work",
            [Query(HERE.total(UP, "lab", how="min"), "{{lab}}")],
            "Whether Prometheus reached the exporter at its last try.",
            "Runbook vbnet-scrape-failing.",
            Kind.NUMBER,
            4,
            words=((0, "failing", BAD), (1, "working", GOOD)),
        ),
        Panel(
            "Descriptors open, of what is allowed",
            [Query(HERE.total(PROCESS["open_fds"], "lab") / HERE.total(PROCESS["max_fds"], "lab"), "{{lab}}")],
            "Descriptors of the host node's process, as a share of its limit.",
            "At 1 no guest can attach: runbook vbnet-descriptors-short.",
            Kind.NUMBER,
            4,
            limits=(0.6, 0.8),
        ),
        Panel(
            "Counters file, how full",
            [Query((HERE.total(own.FILE_USED, "lab") / HERE.total(own.FILE_BYTES, "lab")), "{{lab}}")],
            "Share of the counters files that has blocks.",
            "When full, new devices work uncounted: runbook vbnet-counters-file-full.",
            Kind.NUMBER,
            4,
            limits=(0.8, 0.9),
        ),
        Panel(
            "Workers",
            [Query(HERE.total(host.WORKER.values["ports"], how="count"), "workers")],
            "Threads that move frames.",
            "More than processors do not help: `host: {workers: N}` in the lab file.",
            Kind.NUMBER,
            4,
        ),
    ],
)

_WORKERS: Final = Row(
    "Workers",
    [
        Panel(
            "Awake",
            [Query(awake(HERE, "lab"), _WORKER)],
            "Share of its time that each worker does not sleep.",
            "Near 1 together with busy rounds near 1: it is at its limit, runbook vbnet-worker-saturated. Near 1 and "
            "no rounds at all: it hangs.",
            limits=(0.9, 0.98),
            top=1,
            width=8,
        ),
        Panel(
            "Rounds that moved frames",
            [Query(busy(HERE, "lab"), _WORKER)],
            "Share of the rounds over the active ports in which frames were moved; the others polled for nothing.",
            "Low and awake: it polls, and could sleep. High and awake: it is at its limit.",
            top=1,
            width=8,
            empty_until="a worker is awake",
        ),
        Panel(
            "Rounds",
            [Query(HERE.rate(_ROUNDS, "lab", "worker", "result"), f"{_WORKER} {{{{result}}}}")],
            "Rounds a second, by whether they moved frames.",
            "Few and busy: rounds are long; frames wait for as long.",
            width=8,
        ),
        Panel(
            "Falling asleep",
            [Query(HERE.rate(host.WORKER.values["sleeps"], "lab", "worker"), _WORKER)],
            "How often a worker goes to sleep. Each costs a system call, and the wake-up some microseconds.",
            "Thousands at a steady rate: traffic comes just too slowly to stay awake.",
            width=8,
        ),
        Panel(
            "Ports",
            [
                Query(HERE.total(host.WORKER.values["ports"], "lab", "worker"), f"{_WORKER} ports"),
                Query(HERE.total(host.WORKER.values["active_ports"], "lab", "worker"), f"{_WORKER} polled"),
            ],
            "Ports of each worker, and those it polls now.",
            "Very uneven: few switches are shared by the workers.",
            width=8,
        ),
        Panel(
            "Commands",
            [Query(HERE.rate(host.WORKER.values["commands"], "lab", "worker"), _WORKER)],
            "What the event loop asks of workers: ports that come and go, links, settings.",
            "A steady rate: somebody plugs and unplugs.",
            width=8,
        ),
    ],
)

_SERVICE: Final = Row(
    "Fastcalls' thread",
    [
        Panel(
            "Awake",
            [Query(service_awake(HERE, "lab"), "{{lab}}")],
            "Share of its time that the thread which serves fastcalls does not sleep.",
            "Near 1 without calls: a guest rings for nothing.",
            top=1,
            width=8,
            empty_until="a guest makes fastcalls",
        ),
        Panel(
            "Rounds and sleeps",
            [
                Query(
                    HERE.rate(whole(SERVICE.values["busy_rounds"]), "lab", "result"),
                    "{{lab}} {{result}} rounds",
                ),
                Query(HERE.rate(SERVICE.values["sleeps"], "lab"), "{{lab}} sleeps"),
                Query(HERE.rate(SERVICE.values["commands"], "lab"), "{{lab}} commands"),
            ],
            "Rounds of that thread, how often it sleeps, and what the event loop asks of it.",
            "Mostly idle rounds: it polls for calls that do not come.",
            width=8,
            empty_until="a guest makes fastcalls",
        ),
        Panel(
            "Slots and handlers",
            [
                Query(HERE.total(SERVICE.values["slots"], "lab"), "{{lab}} slots"),
                Query(HERE.total(SERVICE.values["active_slots"], "lab"), "{{lab}} polled"),
                Query(HERE.total(SERVICE.values["handlers"], "lab"), "{{lab}} handlers"),
            ],
            "Slots of guests' threads, and handlers of devices.",
            "Slots grow without end: a guest makes threads and forgets them.",
            width=8,
            empty_until="a guest makes fastcalls",
        ),
    ],
)

_PROCESS: Final = Row(
    "The host node's process",
    [
        Panel(
            "Heartbeat age",
            [
                Query(HERE.age(host.HEARTBEAT).largest("lab"), "{{lab}}"),
                Query(HERE.total(host.HEARTBEAT_INTERVAL, "lab", how="max"), "{{lab}} interval"),
            ],
            "How old the event loop's last heartbeat was at the scrape, beside how often it should beat.",
            "Above three intervals: runbook vbnet-node-hung.",
            width=8,
        ),
        Panel(
            "Processor time",
            [Query(HERE.rate(PROCESS["cpu_seconds"], "lab"), "{{lab}}")],
            "In processors: 1 is one whole processor.",
            "High without traffic: a guest asks or rings without end.",
            width=8,
            unit="short",
        ),
        Panel(
            "Memory",
            [Query(HERE.total(PROCESS["resident_bytes"], "lab"), "{{lab}}")],
            "Resident memory, guests' mapped memory included as far as it was touched.",
            "Growing without end at a steady load: please report it.",
            width=8,
        ),
    ],
)

_EXPORT: Final = Row(
    "Export",
    [
        Panel(
            "Counters files, how full",
            [
                Query(
                    HERE.total(own.FILE_USED, "lab", "file") / HERE.total(own.FILE_BYTES, "lab", "file"),
                    "{{lab}} {{file}}",
                )
            ],
            "Share of each counters file that has blocks.",
            "Runbook vbnet-counters-file-full.",
            limits=(0.8, 0.9),
            top=1,
            width=8,
        ),
        Panel(
            "Files and declarations that could not be read",
            [
                Query(HERE.increase(own.ERRORS, "lab", "reason"), "{{lab}} {{reason}}"),
                Query(HERE.total(own.DECLARATIONS, "lab"), "{{lab}} kinds of device"),
            ],
            "Counters files that the exporter skipped, and kinds of device whose metrics it could not load.",
            "Runbook vbnet-counters-unread.",
            limits=(1, 1),
            width=8,
        ),
        Panel(
            "Duration of scrapes",
            [Query(HERE.total(SCRAPE["seconds"], "lab", how="max"), "{{lab}}")],
            "How long the exporter takes to answer. It reads memory only.",
            "Near the scrape's timeout: fewer names, or a longer interval.",
            width=8,
        ),
        Panel(
            "Clients of the exporter that were not served",
            [Query(HERE.increase(own.DROPS, "lab", "reason"), "{{lab}} {{reason}}")],
            "Connections that were refused or cut off.",
            "too_many, too_slow: somebody keeps connections open. unauthorized: a password is wrong, or guessed.",
            width=8,
        ),
        Panel(
            "Changes of the exporter's web configuration",
            [Query(HERE.increase(own.CHANGES, "lab", "result"), "{{lab}} {{result}}")],
            "A new certificate, key or list of users was taken into use without a restart, or refused.",
            "refused: the exporter's log (`_metrics.log`) says why; the old certificate may run out meanwhile.",
            width=8,
        ),
        Panel(
            "Versions",
            [Query(HERE.total(own.BUILD, "lab", "version", how="count"), "{{lab}} {{version}}")],
            "Which version of vbnet each host node runs.",
            "Several at once: an upgrade is not over, and counters files may have different layouts.",
            Kind.BARS,
            width=8,
        ),
    ],
)

WORKERS: Final = Dashboard(
    "vbnet-workers",
    "vbnet / Host workers",
    "The host node's threads, its process, and how it is exported.",
    variables("worker"),
    [_GLANCE, _WORKERS, _SERVICE, _PROCESS, _EXPORT],
    marks(scope()),
)
