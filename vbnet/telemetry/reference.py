"""docs/metrics.md, made from the declarations themselves.

    python -m vbnet.telemetry.reference > docs/metrics.md

Nothing in that page is written by hand but its head, so it cannot disagree with what is exported; a test compares them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

from vbnet.bus.kinds import discover
from vbnet.metric import Metric, MetricBlock, MetricKind
from vbnet.sharedmem.programs import METRICS_MAX, SERIES_MAX
from vbnet.telemetry.catalogue import known
from vbnet.telemetry.families import bucket_edges
from vbnet.telemetry.node import FILE_ERRORS
from vbnet.telemetry.own import CHANGE_RESULTS, DROP_REASONS, OWN
from vbnet.telemetry.programs import GUESTS_MAX, PROGRAM_DROPS
from vbnet.telemetry.server import CONNECTIONS_MAX, EXCHANGE_DEADLINE_S

__all__ = ["render"]

_OWNERS = {
    "host": "the host node; one",
    "guest": "a guest, by name; those on the host, and the last 64 that ended",
    "bus": "a bus with a name of its own",
    "device": "a device of any type",
    "worker": "a thread that moves frames; at most 64",
    "switch": "a switch",
    "vhost_user": "a socket for front ends",
    "capture": "a port that is captured, or traced; at most 64 captures and traces at once",
    "port": "a port of a switch, or a loopback; a TAP of the machine itself has no guest",
    "port_latency": "a port, while three quarters of the counters file have room; samples",
    "signal": "a signal of the host: two a network card, and what guests and operators make",
    "signal_latency": "a guest's interrupt controller",
    "outbox": "a guest's outbox; one for each guest that raises others' signals",
    "outbox_latency": "a guest's outbox, while three quarters of the counters file have room",
    "stack": "a small IP host, in a file of its own process",
    "traffic_source": "a traffic guest, in a file of its own process",
    "traffic_sink": "a traffic guest, in a file of its own process",
    "run": "a load or soak run in this lab; one",
    "timer": "a guest's timers on one device",
    "timekeeper": "the host's timekeeper; one",
    "sched": "a scheduler coordinator",
    "state": "a state device",
    "echo": "an echo device",
    "nic": "an emulated network card that a guest has open",
    "virtio": "a virtio device that a guest has open",
    "virtio_blk": "a disk that a guest has open",
    "virtio_console": "a console that a guest has open",
    "virtio_rng": "an entropy device that a guest has open",
    "fastcall": "a slot through which one thread of a guest calls",
    "fastcall_service": "the thread that serves fastcalls; one",
}

_HEAD = """# Metrics

Everything that vbnet exports to Prometheus. `python -m vbnet.telemetry.reference` makes this page from the
declarations that the writers of the counters use themselves ([decision
0006](decisions/0006-counters-in-shared-memory.md)); a test keeps it fresh.

`vbnet metrics` prints all of it for one host node, in Prometheus' text format, in OpenMetrics, or as JSON. It reads
shared memory and `/proc`, and asks the node nothing: a node that hangs, is stopped or was killed is read like any
other.

- **Counters start at 0 with their owner.** Coming back, a device counts from 0 again, which Prometheus takes for a
  reset. A guest goes on counting where it was.
- **What is gone vanishes** with its device, guest or switch. The counters of a node that was killed remain until its
  run directory is cleaned (`vbnet clean`, `vbnet down`), with `vbnet_node_up 0`.
- **A node that hangs** is up, and its `vbnet_node_heartbeat_timestamp_seconds` stands still: `time() -
  vbnet_node_heartbeat_timestamp_seconds > 3 * vbnet_node_heartbeat_interval_seconds`.
- **Labels are names** that people chose, and words from lists on this page; never a number of a session or process.
  How many series there are is so bounded by how many owners there are at once, said at each kind of block. A name
  longer than fits (about 170 bytes for all labels of a block together) is shortened to its beginning and a hash.
- **Sums mean something.** Reasons are labels of one family: `sum(rate(vbnet_device_receive_drop_total[1m]))` is all
  frames dropped. A limit is a metric of its own beside the usage, with the same labels.
- **Histograms** have {edges} buckets, at powers of two from {low:g} to {high:g} seconds, above 17 ms at every
  other. One that has seen no value has no series yet. A Prometheus that takes native histograms
  (`--enable-feature=native-histograms`, or `scrape_native_histograms` from 3.8 on) asks for protocol buffers, and is
  given one series each with buckets that grow by 2^(1/8) instead, of which only those that count something are told.
  Values are then off by their own width in shared memory, 1/32, at most. Dashboards and rules ask for either form.
- **Waits are timed where both moments are known** ([decision 0019](decisions/0019-one-word-stamps.md)). venet's rings,
  the levels of interrupt controllers and outboxes have words for stamps; of an emulated controller the host sees both
  ends. The queue of a TAP in the kernel and the rings of a vhost-user front end say nothing of when a frame came, or
  of when their other side was woken, and the kernel does not say when it began to wake a worker. Neither is guessed:
  such ports have `vbnet_device_service_seconds` alone, from the beginning of a worker's turn that found frames until
  their receivers were told, which every port has.
- Kinds of device from other packages bring their own declarations. A block that nobody declared is left out.
- There are no `_created` samples: a block knows its generation, not its moment.

## Serving them

`vbnet metrics serve` answers Prometheus for every host node of this user on this machine, or for one with `--node`.
`vbnet host run --metrics ADDRESS:PORT` and `metrics: {{listen: ADDRESS:PORT}}` in a lab file start the same as a
child, which is started again when it dies, and ends with its parent however that ends.

| path | answer |
| --- | --- |
| `/metrics` | the node that is served, or the only one there is; `/metrics?node=NAME` one of several |
| `/sd` | every node as a target, with the label `lab`, for `http_sd_configs` |
| `/healthz` | 200: this exporter answers |
| `/readyz` | 200: the nodes it serves are up; else 503, with which are not |
| `/` | links to these |

```yaml
scrape_configs:
  - job_name: vbnet
    http_sd_configs:
      - url: http://127.0.0.1:9617/sd
```

Who reaches the port reads the names of guests and what they do. So the rule: an address that only this machine
reaches (127.0.0.0/8, ::1, localhost) needs nothing; any other needs both TLS and users, or the exporter does not
start. Both come from `--web-config FILE` (`web_config` in a lab file), in the form that Prometheus' own exporters
use; a key that is not understood is refused with its line.

```yaml
tls_server_config:
  cert_file: node.crt        # relative to this file
  key_file: node.key
  min_version: TLS13         # or TLS12, which is the default
basic_auth_users:
  prometheus: $2y$10$...     # bcrypt, as `htpasswd -nB prometheus` prints it
```

A file that changes, or a certificate or key that does, is used from the next connection on, without a restart. One
that is not usable, or would let others read without TLS and users, is refused: a line says why, on the terminal or in
the log `_metrics.log`; it is counted; and what was used before stays in use.

At most {connections} clients are served at once, one request a connection, and each is cut off after {seconds:g} s.
Exit codes: 2 for a wrong address or web configuration, 3 for a node that is not there, 4 for an address that is
refused, 5 for a port that is taken.
"""


_PROGRAMS = """## Guests' own programs

A program in a guest declares what it counts and gives it a name; nothing has to be known of it here.

```python
from vbnet import Guest


def main(guest: Guest) -> None:
    orders = guest.counters.counter("orders", help="Orders taken.")
    left = guest.counters.counter("refused", unit="orders", help="Not taken.", fixed={{"reason": "sold_out"}})
    stock = guest.counters.gauge("stock", unit="pieces", help="Pieces on the shelf.")
    orders.add()
    left.add(2)
    stock.set(40)
```

They are exported as `vbnet_guest_program_orders_total`, `vbnet_guest_program_refused_total` with `reason`, and
`vbnet_guest_program_stock`, with the guest's name in `guest`, and are seen on the dashboard "Guests and devices". An
asynchronous guest (`GuestSession`) has the same `counters`. Counting is a store into a file of the guest's own,
`counters/programs/GUEST.counters` in the node's run directory; it is no call, and any thread may do it. The file goes
with the guest, however that ends. A guest on another machine than the host, or in a sandbox without that folder,
counts for itself alone.

A program in another language writes that file as [docs/wire/counters.md](wire/counters.md#programs) says.

- **Bounds.** A guest has at most {metrics} metrics, {series} numbers together, and {guests} guests are read: a label
  whose values grow (an address, a user) is refused by `ResourceError` when it is too much.
- **Names** are lower case, without Prometheus' endings (`_total`, `_sum`, ...). All begin with `vbnet_guest_program_`,
  so none can be one of vbnet's own. Labels `guest`, `lab`, `node`, `job`, `instance`, `le` and `quantile` are not
  theirs.
- **A file is believed in nothing but its numbers.** The guest's name is the file's. What is half-written, too large,
  malformed, there twice, or declared otherwise by a guest that is before it in the alphabet is left out, and counted in
  `vbnet_exporter_program_drop_total`. Numbers are whole words of 64 bits, so none is NaN.

"""


def render() -> str:
    """Return the page."""
    edges = [edge for edge, _ in bucket_edges()]
    second = 1_000_000_000
    lines = [
        _HEAD.format(
            edges=len(edges),
            low=edges[0] / second,
            high=edges[-1] / second,
            connections=CONNECTIONS_MAX,
            seconds=EXCHANGE_DEADLINE_S,
        )
    ]
    lines += _own()
    lines.append(_PROGRAMS.format(metrics=METRICS_MAX, series=SERIES_MAX, guests=GUESTS_MAX).rstrip() + "\n")
    for block in known(discover(with_entry_points=False)).metrics.blocks.values():
        lines += _block(block)
    return "\n".join(lines).rstrip() + "\n"


def _own() -> Iterator[str]:
    yield "## The node and its files"
    yield ""
    yield "Made at each read. Beside them, the node's process under the names that every client of Prometheus uses:"
    yield "`process_cpu_seconds_total`, `process_resident_memory_bytes`, `process_virtual_memory_bytes`,"
    yield "`process_open_fds` with `process_max_fds`, `process_start_time_seconds`; while it is there."
    yield ""
    yield from _table((metric, labels) for metric, labels in OWN.items())
    yield from _reasons("Why a file is skipped:", FILE_ERRORS)
    yield from _reasons("Why a part of what a guest's program counts is left out:", PROGRAM_DROPS)
    yield from _reasons("Why a client of the exporter is not served:", DROP_REASONS)
    yield from _reasons("What became of a changed web configuration:", CHANGE_RESULTS, "result")


def _reasons(title: str, reasons: Mapping[str, str], label: str = "reason") -> Iterator[str]:
    yield title
    yield ""
    yield f"| {label} | meaning |"
    yield "| --- | --- |"
    yield from (f"| `{reason}` | {meaning} |" for reason, meaning in reasons.items())
    yield ""


def _block(block: MetricBlock) -> Iterator[str]:
    yield f"## Block `{block.kind}`"
    yield ""
    owner = _OWNERS.get(block.kind, "")
    labels = ", ".join(f"`{label}`" for label in block.labels)
    yield f"{owner[:1].upper()}{owner[1:]}. Labels: {labels or 'none'}."
    yield ""
    families: dict[str, list[Metric]] = {}
    for metric in block.values.values():
        families.setdefault(metric.name, []).append(metric)
    yield from _table((members[0], members[0].own_labels) for members in families.values())
    for name, members in families.items():
        yield from _members(name, members)


def _table(rows: Iterator[tuple[Metric, tuple[str, ...]]]) -> Iterator[str]:
    yield "| metric | kind | unit | own labels | meaning |"
    yield "| --- | --- | --- | --- | --- |"
    for metric, labels in rows:
        own = ", ".join(f"`{label}`" for label in labels) or "-"
        yield f"| `{metric.name}` | {metric.kind} | {metric.unit} | {own} | {metric.help} |"
    yield ""


def _members(name: str, members: list[Metric]) -> Iterator[str]:
    first = members[0]
    if first.kind is MetricKind.STATE:
        yield f"`{name}` has `{first.shown_as}` {', '.join(f'`{state}`' for state in first.states)}."
        yield ""
    for label in first.fixed:
        values = ", ".join(
            f"`{member.fixed[label]}`" + (f" ({member.detail})" if member.detail else "") for member in members
        )
        yield f"`{name}` has `{label}` {values}."
        yield ""


if __name__ == "__main__":
    sys.stdout.write(render())
