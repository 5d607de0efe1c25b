"""The lab file: what it may say, and every way in which it can be wrong.

:class:`Topology` is the schema; it is also published as JSON Schema (``vbnet validate --schema``), so editors
complete and check lab files. :func:`load_topology` reads a file and answers either a topology that makes sense as a
whole, or one :class:`TopologyError` that lists every problem as ``file:line: what, value; what to do``. Nothing is
started here and nothing on the machine is looked at: see ``privileges.py`` for what this machine allows.

The same file with the same environment always means the same lab: addresses count up from the file's, and a MAC
address that the file leaves out is derived from the names of lab, guest and NIC.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import ipaddress
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from vbnet.bus.kinds import NicModel, discover
from vbnet.cluster.parts import NAME_PATTERN, SERIAL_PATTERN, TAP_PATTERN, PartReader, said
from vbnet.cluster.quantity import duration_s, length_bytes, rate_per_second
from vbnet.cluster.source import Place, Problem, Source, TopologyError, load_source, parse_source
from vbnet.errors import did_you_mean

SCHEMA_ID = "https://vbnet.dev/schema/lab.schema.json"
GUESTS_MAX = 10_000
RESERVED = frozenset({"host"})
"""Names of processes that every lab has."""

AUTO = "auto"
"""A socket whose path the host node chooses."""

TAP_CLASS = "tap"
"""The device class of a namespace's interfaces, which the host reads and writes itself."""

TRAP_COST_MAX_S = 1e-3
NICS_MAX = 8
DISKS_MAX = 8
PAIRS_MAX = 8
SOCKET_PATH_MAX_BYTES = 107
MTU_MIN, MTU_MAX = 68, 65535
TAP_MTU_MAX = MTU_MAX - 14
"""What Linux takes for a TAP: packet and Ethernet header have room for 65535 bytes together."""
RAM_MIN_BYTES, RAM_MAX_BYTES = 64 << 10, 4 << 30

IPV6_MTU_MIN = 1280
"""What IPv6 demands of a link (RFC 8200)."""
LOOPBACK_NAME = "lo"
"""The interface that every namespace has."""

Name = Annotated[str, Meta(pattern=NAME_PATTERN, description="Lower-case letters, digits and hyphens; at most 31.")]
Mtu = Annotated[int, Meta(ge=MTU_MIN, le=MTU_MAX, description="Largest IP packet in bytes.")]
TapMtu = Annotated[int, Meta(ge=MTU_MIN, le=TAP_MTU_MAX, description="Largest IP packet in bytes.")]
Address = Annotated[str, Meta(description="An IP address with its prefix length, such as 10.10.0.10/24.")]
Offloads = Annotated[
    bool,
    Meta(description="Checksums and segments may be left to the switch and taken from it, by a kernel or a driver."),
]
_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")
Amount = str | int
Restart = Literal["no", "on-failure", "always"]
Environment = dict[str, str | int | float | bool]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A part of the lab file: immutable, and strict about its keys."""


class Switch(_Part, frozen=True):
    """A learning Ethernet switch inside the host node."""

    ageing: Annotated[
        int, Meta(ge=1, le=86400, description="Seconds after which a silent MAC address is forgotten.")
    ] = 300


class Host(_Part, frozen=True):
    """The host node that serves the lab."""

    workers: Annotated[int, Meta(ge=1, le=64, description="Native threads that move frames.")] = 1


class Metrics(_Part, frozen=True, kw_only=True):
    """An exporter for Prometheus beside the lab, which ends with it."""

    listen: Annotated[
        str,
        Meta(
            pattern=r"^.*:[0-9]{1,5}$",
            description="ADDRESS:PORT, such as 127.0.0.1:9617; beyond this machine only with TLS and users.",
        ),
    ]
    web_config: (
        Annotated[str, Meta(description="File with TLS and users (from the lab file's folder); none when left out.")]
        | None
    ) = None


class Nic(_Part, frozen=True):
    """One network interface of a guest, plugged into a switch."""

    switch: Annotated[str, Meta(description="Name of a switch of this lab.")]
    name: Annotated[str, Meta(pattern=TAP_PATTERN, description="eth0, eth1, ... in order when left out.")] | None = None
    model: (
        Annotated[
            str,
            Meta(description="What card it is, such as `venet` (when left out); a netns guest's is the kernel's own."),
        ]
        | None
    ) = None
    trap_cost: (
        Annotated[Amount, Meta(description="What each trap of a trapping model costs the guest on top, such as 2us.")]
        | None
    ) = msgspec.field(default=None, name="trap-cost")
    pairs: (
        Annotated[
            int,
            Meta(ge=1, le=PAIRS_MAX, description="Pairs of queues that a virtio card offers; one when left out."),
        ]
        | None
    ) = None
    ip: Address | None = None
    mac: Annotated[str, Meta(description="Derived from the names of lab, guest and NIC when left out.")] | None = None
    mtu: Mtu = 1500
    offloads: Offloads = True
    gateway: Annotated[str, Meta(description="Default route: an address inside the NIC's network.")] | None = None
    routes: Annotated[dict[str, str], Meta(description="Further routes, `10.20.0.0/16: 10.10.0.1`.")] = {}


class Disk(_Part, frozen=True):
    """A disk of a guest: a file that the lab opens and hands to the host node."""

    image: Annotated[
        str, Meta(min_length=1, description="A file or block device that is there (from the lab file's folder).")
    ]
    name: Annotated[str, Meta(pattern=TAP_PATTERN, description="disk0, disk1, ... in order when left out.")] | None = (
        None
    )
    readonly: Annotated[bool, Meta(description="Writes are refused; needed for a file that all of `count` use.")] = (
        False
    )
    serial: (
        Annotated[
            str,
            Meta(pattern=SERIAL_PATTERN, description="Serial number that the guest reads; its name when left out."),
        ]
        | None
    ) = None
    transport: Annotated[
        Literal["vbus", "mmio", "pci"], Meta(description="How the driver reaches registers; the others trap.")
    ] = "vbus"


class Send(_Part, frozen=True):
    """What a traffic guest sends; without it, the guest is a sink."""

    to: Annotated[str, Meta(description="Name of the guest that receives.")]
    size: Annotated[int, Meta(ge=60, le=65535)] | Literal["imix"] = 64
    rate: (
        Annotated[Amount, Meta(description="Frames a second, such as 10k or 1.5M; as fast as possible when left out.")]
        | None
    ) = None
    for_: Annotated[str | int | float, Meta(description="How long, such as 30s; without end when left out.")] | None = (
        msgspec.field(default=None, name="for")
    )


class _Guest(_Part, frozen=True, tag_field="kind"):
    """Keys that every guest has."""

    count: (
        Annotated[int, Meta(ge=1, le=GUESTS_MAX, description="Make NAME-0, NAME-1, ... with counting addresses.")]
        | None
    ) = None
    nics: Annotated[list[Nic], Meta(max_length=NICS_MAX)] = []
    restart: Annotated[Restart, Meta(description="What to do when the guest's process ends.")] = "no"
    ram: Annotated[Amount, Meta(description="Guest memory shared with the host, such as 16MiB.")] | None = None
    bus: (
        Annotated[str, Meta(pattern=NAME_PATTERN, description="The guest's bus; its own name when left out.")] | None
    ) = None


class StackGuest(_Guest, frozen=True, tag="stack"):
    """A small IP host: answers ARP and ping, TCP and UDP echo, and a web page with its own statistics."""

    packed: Annotated[bool, Meta(description="All of `count` in one process (the default), or a process each.")] = True


class PythonGuest(_Guest, frozen=True, tag="python", kw_only=True):
    """The user's own function, given a guest with NICs and disks."""

    run: Annotated[
        str, Meta(description="`path/to/file.py:function` (from the lab file's folder) or `module:function`.")
    ]
    disks: Annotated[list[Disk], Meta(max_length=DISKS_MAX)] = []
    env: Environment = {}


class NetnsGuest(_Guest, frozen=True, tag="netns"):
    """A real Linux network namespace whose interfaces are fed by vbnet; any program runs in it."""

    run: Annotated[
        str | list[str] | None,
        Meta(description="A command to run inside; without it the namespace waits for `vbnet exec`."),
    ] = None
    env: Environment = {}


class TrafficGuest(_Guest, frozen=True, tag="traffic"):
    """A native generator (with `send`) or sink (without), with latency histograms."""

    send: Send | None = None


Guest = StackGuest | PythonGuest | NetnsGuest | TrafficGuest

GUEST_CLASSES: dict[str, type[Guest]] = {
    "stack": StackGuest,
    "python": PythonGuest,
    "netns": NetnsGuest,
    "traffic": TrafficGuest,
}


class Uplink(_Part, frozen=True):
    """A TAP device of this machine as a port of a switch: the lab's way out."""

    switch: Annotated[str, Meta(description="Name of a switch of this lab.")]
    tap: Annotated[str, Meta(pattern=TAP_PATTERN, description="Name of the TAP device; made if it is not there.")]
    ip: Address | None = None
    mtu: TapMtu = 1500
    offloads: Offloads = True


class VhostUser(_Part, frozen=True):
    """A socket where a virtual machine or a DPDK application connects its network card to a switch, or serves one."""

    switch: Annotated[str, Meta(description="Name of a switch of this lab.")]
    socket: Annotated[
        str,
        Meta(
            min_length=1,
            description="`auto`: in the lab's run directory, or a path (from the lab file's folder).",
        ),
    ] = AUTO
    connect: (
        Annotated[
            bool,
            Meta(
                description="The other end listens on `socket`, and the port connects to it, again and again. As "
                "`front-end` is, when left out."
            ),
        ]
        | None
    ) = None
    front_end: Annotated[
        bool, Meta(description="The port is the front end of a device that somebody else serves: DPDK, VPP, vbnet.")
    ] = msgspec.field(default=False, name="front-end")
    mac: Annotated[str, Meta(description="Address of the card; its own choice when left out.")] | None = None
    mtu: Mtu = 1500

    @property
    def does_connect(self) -> bool:
        """Whether the port connects to the socket, rather than listens on it."""
        return self.front_end if self.connect is None else self.connect


class LabDevice(_Part, frozen=True):
    """A device other than a NIC, put on the buses of Python guests."""

    type: Annotated[str, Meta(description="Device class, as `vbnet device classes` lists them.")]
    attributes: Annotated[dict[str, str | int | float | bool], Meta(description="Set in this order.")] = {}
    guests: (
        Annotated[list[str], Meta(description="Python guests that get it; all of the lab when left out.")] | None
    ) = None


class Topology(_Part, frozen=True):
    """A lab: switches, guests on them, devices they use, uplinks to the machine's own network, sockets for others."""

    name: Name
    switches: dict[str, Switch | None] = {}
    guests: dict[str, Guest] = {}
    devices: dict[str, LabDevice] = {}
    uplinks: list[Uplink] = []
    vhost_user: dict[str, VhostUser] = msgspec.field(default_factory=dict, name="vhost-user")
    host: Host = Host()
    metrics: Metrics | None = None


class LabFile(msgspec.Struct, frozen=True):
    """A checked topology and where it came from (for messages about this machine, which need lines too)."""

    topology: Topology
    source: Source

    @property
    def folder(self) -> Path:
        """The lab file's folder, from which its relative paths count."""
        return Path(self.source.file).resolve().parent


def load_topology(path: Path, environment: Mapping[str, str] | None = None) -> LabFile:
    """Read and check a lab file.

    Raises:
        TopologyError: every problem of the file, with lines (its author's mistake).
    """
    return _checked(load_source(path, environment))


def parse_topology(text: str, file: str = "lab.yaml", environment: Mapping[str, str] | None = None) -> LabFile:
    """Like :func:`load_topology`, for text already in memory."""
    return _checked(parse_source(text, file, environment))


def json_schema() -> dict[str, Any]:
    """Return the lab file's JSON Schema (2020-12), as ``lab.schema.json`` holds it."""
    schema = msgspec.json.schema(Topology)
    components = schema.pop("$defs")
    top = components.pop("Topology")
    for part in ("switches", "guests", "devices", "vhost-user"):
        top["properties"][part]["propertyNames"] = {"pattern": NAME_PATTERN}
    top["patternProperties"] = {"^x-": {"description": "Ignored: a place for anchors and notes."}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        **_with_variables(top),
        "title": "vbnet lab file",
        "$defs": _with_variables(components),
    }


def _with_variables(schema: Any) -> Any:  # noqa: ANN401 -- JSON
    """Let ``${NAME:-3}`` stand wherever a whole number may, as it does before the file is checked."""
    if isinstance(schema, list):
        return [_with_variables(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: _with_variables(value) for key, value in schema.items()}
    if changed.get("type") != "integer":
        return changed
    about = {key: changed.pop(key) for key in ("description", "default") if key in changed}
    return {**about, "anyOf": [changed, {"type": "string", "pattern": r"^\$\{.*\}$"}]}


def socket_path(source: Source, port: VhostUser) -> Path:
    """Return where a socket is that is not ``auto``: its path counts from the lab file's folder."""
    return Path(source.file).resolve().parent / port.socket


def image_path(source: Source, disk: Disk) -> Path:
    """Return where a disk's file is: its path counts from the lab file's folder."""
    return Path(source.file).resolve().parent / disk.image


def guest_names(name: str, guest: Guest) -> list[str]:
    """Return the names one entry of ``guests`` stands for: itself, or with ``count`` NAME-0, NAME-1, ..."""
    return [name] if guest.count is None else [f"{name}-{index}" for index in range(guest.count)]


def device_guests(topology: Topology, device: LabDevice) -> list[str]:
    """Return the full names of the guests that get a device; an entry with ``count`` stands for all of its guests."""
    python = {name: guest for name, guest in topology.guests.items() if isinstance(guest, PythonGuest)}
    wanted = set(python if device.guests is None else device.guests)
    return [
        full for name, guest in python.items() for full in guest_names(name, guest) if name in wanted or full in wanted
    ]


def attribute_text(value: str | float | bool) -> str:
    """Return an attribute's value as operators write it: 1 and 0 for true and false."""
    return str(int(value)) if isinstance(value, bool) else str(value)


def nic_names(guest: Guest) -> list[str]:
    """Return the interface names of a guest, eth<position> where the file gives none."""
    return [nic.name or f"eth{index}" for index, nic in enumerate(guest.nics)]


def disk_names(guest: Guest) -> list[str]:
    """Return the names of a guest's disks, disk<position> where the file gives none."""
    disks = guest.disks if isinstance(guest, PythonGuest) else []
    return [disk.name or f"disk{index}" for index, disk in enumerate(disks)]


@functools.cache
def nic_models() -> Mapping[str, NicModel]:
    """Models of network card by their names, of every device kind there is."""
    return discover().nics


def nic_classes() -> frozenset[str]:
    """Device classes that join a guest to a switch, which a lab file has under `nics`."""
    return frozenset({TAP_CLASS, *(model.device_class for model in nic_models().values())})


def derive_mac(lab: str, guest: str, nic: str) -> str:
    """Return a locally administered unicast address that is always the same for the same three names."""
    octets = bytearray(hashlib.sha256(f"{lab}/{guest}/{nic}".encode()).digest()[:6])
    octets[0] = (octets[0] & 0xFC) | 0x02
    return octets.hex(":")


def address_at(ip: str, index: int) -> str:
    """Return the address ``index`` places after ``ip`` (``10.0.0.10/24``, 2 gives ``10.0.0.12/24``)."""
    interface = ipaddress.ip_interface(ip)
    return f"{interface.ip + index}/{interface.network.prefixlen}"


def _what_no_card_has(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str | None:
    """Return what an address is that is none of a card's, with its article; None: it may be one's."""
    if address.is_multicast:
        return "a multicast"
    if address.is_loopback:
        return "a loopback"
    if address.is_unspecified or (address.version == 4 and address in _THIS_NETWORK):  # noqa: PLR2004 -- IPv4
        return "an unspecified"
    return "a reserved" if address.version == 4 and address.is_reserved else None  # noqa: PLR2004 -- IPv4


def _listed(value: object) -> list[tuple[int, object]]:
    return list(enumerate(value)) if isinstance(value, list) else []


def _named(value: object) -> list[tuple[str, object]]:
    return [(str(name), part) for name, part in value.items()] if isinstance(value, dict) else []


def _unknown_switch(switch: str, known: Iterable[str]) -> tuple[str, str]:
    """Return what is wrong, and what to do."""
    otherwise = f"declare it: `switches: {{{switch}: {{}}}}`"
    return f"unknown switch `{switch}`", did_you_mean(switch, known, otherwise=otherwise)


def _names_made(tree: ast.Module) -> set[str] | None:
    """Return all names that a program makes anywhere, by what it says; None: it may make others as it runs."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name.partition(".")[0] for alias in aliases}
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Name(id="globals" | "exec" | "setattr" | "vars"):
                return None
            case _:
                pass
    return None if names & {"*", "__getattr__"} else names


def _checked(source: Source) -> LabFile:
    topology, problems = _Reader(source).read()
    if topology is not None:
        problems += _Checker(source, topology).problems()
    if topology is None or problems:
        raise TopologyError(source.file, problems)
    return LabFile(topology, source)


class _Reader(PartReader):
    """Turns data into the schema's structs."""

    def read(self) -> tuple[Topology | None, list[Problem]]:
        data = {key: value for key, value in self.source.data.items() if not key.startswith("x-")}
        self.keys((), data, Topology)
        parts: dict[str, Any] = {}
        if "name" not in data:
            self.add((), "the lab has no `name`", "add `name: my-lab` at the top")
        else:
            parts["name"] = self.convert(("name",), data["name"], Name)
        parts["switches"] = {
            name: self.named("switch", ("switches", name), name, {} if value is None else value, Switch)
            for name, value in self.mapping("switches", data)
        }
        parts["guests"] = {name: self._guest(name, value) for name, value in self.mapping("guests", data)}
        parts["devices"] = {
            name: self.named("device", ("devices", name), name, value, LabDevice)
            for name, value in self.mapping("devices", data)
        }
        parts["vhost_user"] = {
            name: self.named("vhost-user", ("vhost-user", name), name, value, VhostUser)
            for name, value in self.mapping("vhost-user", data)
        }
        uplinks = data.get("uplinks") or []
        if isinstance(uplinks, list):
            parts["uplinks"] = [self.part(("uplinks", index), value, Uplink) for index, value in enumerate(uplinks)]
        else:
            self.add(("uplinks",), "`uplinks` is not a list", "write `- {switch: ..., tap: ...}` entries")
        if data.get("host") is not None:
            parts["host"] = self.part(("host",), data["host"], Host)
        if data.get("metrics") is not None:
            parts["metrics"] = self.part(("metrics",), data["metrics"], Metrics)
        if self.found:
            self._switches(data)
        return (None if self.found else Topology(**parts)), self.found

    def _switches(self, data: Mapping[str, Any]) -> None:
        """Say which switches are not there also where other mistakes keep the file from being checked as a whole."""
        known = data.get("switches") or {}
        if not isinstance(known, dict):
            return
        places: list[tuple[Place, object]] = [(("uplinks", at), part) for at, part in _listed(data.get("uplinks"))]
        places += [(("vhost-user", name), part) for name, part in _named(data.get("vhost-user"))]
        for name, guest in _named(data.get("guests")):
            nics = guest.get("nics") if isinstance(guest, dict) else None
            places += [(("guests", name, "nics", at), nic) for at, nic in _listed(nics)]
        for place, part in places:
            if isinstance(part, dict) and isinstance(switch := part.get("switch"), str) and switch not in known:
                self.add((*place, "switch"), *_unknown_switch(switch, known))

    def _guest(self, name: str, value: object) -> Guest | None:
        place: Place = ("guests", name)
        kind = value.get("kind") if isinstance(value, dict) else None
        part = GUEST_CLASSES.get(kind) if isinstance(kind, str) else None
        if isinstance(value, dict) and part is None:
            known = ", ".join(GUEST_CLASSES)
            if "kind" not in value:
                self.add(place, f"guest `{name}` has no `kind`", f"add `kind:` with one of {known}")
            else:
                fix = did_you_mean(str(kind), GUEST_CLASSES, otherwise=f"use one of {known}")
                self.add((*place, "kind"), f"unknown kind {said(kind)}", fix)
        before = len(self.found)
        if isinstance(value, dict):
            for index, nic in enumerate(value["nics"] if isinstance(value.get("nics"), list) else []):
                self.part((*place, "nics", index), nic, Nic)
            if part is PythonGuest:
                for index, disk in enumerate(value["disks"] if isinstance(value.get("disks"), list) else []):
                    self.part((*place, "disks", index), disk, Disk)
            if part is TrafficGuest and value.get("send") is not None:
                self.part((*place, "send"), value["send"], Send)
        if len(self.found) > before:
            self.keys(place, value if isinstance(value, dict) else {}, part or StackGuest) if part else None
            return None
        guest: Guest | None = (
            self.named("guest", place, name, value, part or StackGuest) if part or not isinstance(value, dict) else None
        )
        return guest


class _Checker(PartReader):
    """What a schema cannot say: names that must exist, addresses that must not meet."""

    def __init__(self, source: Source, topology: Topology) -> None:
        super().__init__(source)
        self.topology = topology
        self.addresses: dict[tuple[str, str], tuple[str, int]] = {}
        self.macs: dict[str, tuple[str, int]] = {}
        self.expanded: dict[str, str] = {}
        self.images: dict[Path, tuple[int, bool]] = {}

    def problems(self) -> list[Problem]:
        total = sum(guest.count or 1 for guest in self.topology.guests.values())
        if total > GUESTS_MAX:
            self.add(("guests",), f"{total} guests are more than {GUESTS_MAX}", "lower the counts")
            return self.found
        for name, guest in self.topology.guests.items():
            self._guest_names(name, guest)
        for name, guest in self.topology.guests.items():
            self._guest(name, guest)
        for name, device in self.topology.devices.items():
            self._device(("devices", name), name, device)
        taps: dict[str, int] = {}
        for index, uplink in enumerate(self.topology.uplinks):
            place: Place = ("uplinks", index)
            self._switch((*place, "switch"), uplink.switch)
            line = self.source.line_of((*place, "tap"))
            if uplink.tap in taps:
                self.add(
                    (*place, "tap"),
                    f"duplicate TAP `{uplink.tap}`, first on line {taps[uplink.tap]}",
                    "use another name",
                )
            taps.setdefault(uplink.tap, line)
            if uplink.ip is not None:
                self._address((*place, "ip"), uplink.ip, [f"uplink {uplink.tap}"], uplink.switch)
                self._mtu_of_ipv6((*place, "mtu"), uplink.ip, uplink.mtu)
        sockets: dict[Path, int] = {}
        for name, port in self.topology.vhost_user.items():
            self._vhost_user(("vhost-user", name), name, port, sockets)
        return self.found

    def _guest_names(self, name: str, guest: Guest) -> None:
        if name in RESERVED:
            self.add(("guests", name), f"the guest name `{name}` is taken by the lab itself", "use another name")
        for full in guest_names(name, guest):
            if full in self.expanded:
                other = self.source.line_of(("guests", self.expanded[full]))
                self.add(
                    ("guests", name),
                    f"duplicate guest name `{full}`, also made on line {other}",
                    "rename one of the two",
                )
                return
            self.expanded[full] = name

    def _guest(self, name: str, guest: Guest) -> None:
        place: Place = ("guests", name)
        if guest.ram is not None:
            ram = self.amount((*place, "ram"), guest.ram, length_bytes)
            if ram is not None and not RAM_MIN_BYTES <= ram <= RAM_MAX_BYTES:
                self.add((*place, "ram"), f"`ram` is {guest.ram}", "use 64KiB to 4GiB")
        if guest.bus is not None and (guest.count or 1) > 1:
            self.add((*place, "bus"), f"`bus: {guest.bus}` would be shared by {guest.count} guests", "leave `bus` out")
        if not guest.nics and not isinstance(guest, PythonGuest):
            self.add(place, f"guest `{name}` has no NIC", "add `nics: [{switch: ...}]`")
        if isinstance(guest, StackGuest | TrafficGuest) and len(guest.nics) > 1:
            self.add((*place, "nics"), f"guest `{name}` has {len(guest.nics)} NICs", "this kind has exactly one")
        if isinstance(guest, PythonGuest):
            self._entry(place, guest)
            self._disks(place, name, guest)
        self._nics(place, name, guest)
        if isinstance(guest, TrafficGuest) and guest.send is not None:
            self._send((*place, "send"), name, guest, guest.send)

    def _disks(self, place: Place, name: str, guest: PythonGuest) -> None:
        taken = set(nic_names(guest))
        for index, (disk, disk_name) in enumerate(zip(guest.disks, disk_names(guest), strict=True)):
            at: Place = (*place, "disks", index)
            if disk_name in taken:
                self.add((*at, "name"), f"duplicate name `{disk_name}` in `{name}`", "name each disk differently")
            taken.add(disk_name)
            image = image_path(self.source, disk)
            other, is_other_readonly = self.images.get(image, (0, True))
            self.images.setdefault(image, (self.source.line_of((*at, "image")), disk.readonly))
            if other and not (disk.readonly and is_other_readonly):
                self.add(
                    (*at, "image"),
                    f"`{disk.image}` is a disk on line {other} too, and one of the two is written to",
                    "use another file, or `readonly: true` for both",
                )
            if (guest.count or 1) > 1 and not disk.readonly:
                self.add(
                    (*at, "image"),
                    f"`{disk.image}` would be written to by {guest.count} guests",
                    "add `readonly: true`, or leave `count` out",
                )

    def _vhost_user(self, place: Place, name: str, port: VhostUser, sockets: dict[Path, int]) -> None:
        self._switch((*place, "switch"), port.switch)
        taken = {uplink.tap: ("uplinks", index) for index, uplink in enumerate(self.topology.uplinks)}
        other = ("guests", self.expanded[name]) if name in self.expanded else taken.get(name)
        if other is not None:
            line = self.source.line_of(other)
            self.add(place, f"duplicate name `{name}`, also on line {line}", "rename one of the two")
        if port.mac is not None and self._is_station((*place, "mac"), port.mac):
            self._claim_mac((*place, "mac"), port.mac.lower(), name)
        if port.front_end and port.mac is not None:
            what = "a front end has the addresses of those behind it, and none of its own"
            self.add((*place, "mac"), what, "leave `mac` out")
        if port.socket == AUTO:
            if port.does_connect:
                key = "connect" if port.connect else "front-end"
                self.add((*place, key), f"`{key}` without a path", "say where the other end listens: `socket`")
            return
        socket, line = socket_path(self.source, port), self.source.line_of((*place, "socket"))
        if len(os.fsencode(socket)) > SOCKET_PATH_MAX_BYTES:
            what = f"the path {socket} is longer than {SOCKET_PATH_MAX_BYTES} bytes"
            self.add((*place, "socket"), what, "use a shorter one, or `auto`")
        if socket in sockets:
            what = f"duplicate socket `{port.socket}`, first on line {sockets[socket]}"
            self.add((*place, "socket"), what, "use another path, or `auto`")
        sockets.setdefault(socket, line)

    def _device(self, place: Place, name: str, device: LabDevice) -> None:
        for index, wanted in enumerate(device.guests or []):
            at: Place = (*place, "guests", index)
            guest = self.topology.guests.get(wanted) or self.topology.guests.get(self.expanded.get(wanted, ""))
            if guest is None:
                self.add(
                    at,
                    f"unknown guest `{wanted}`",
                    did_you_mean(wanted, [*self.topology.guests, *self.expanded], otherwise="add it"),
                )
            elif not isinstance(guest, PythonGuest):
                self.add(at, f"guest `{wanted}` uses no devices but its NICs", "name python guests only")
        from vbnet.cluster.devices import check_device  # noqa: PLC0415 -- host code, for labs that name devices only

        for inner, what, fix in check_device(name, device.type, device.attributes):
            self.add((*place, *inner), what, fix)

    def _entry(self, place: Place, guest: PythonGuest) -> None:
        path, colon, function = guest.run.rpartition(":")
        if not colon or not path or not function.isidentifier():
            self.add((*place, "run"), f"`run` is `{guest.run}`", "write `file.py:function` or `module:function`")
        elif path.endswith(".py") or "/" in path:
            file = Path(self.source.file).resolve().parent / path
            if not file.is_file():
                self.add(
                    (*place, "run"),
                    f"there is no file `{path}`",
                    f"paths count from the lab file's folder ({file.parent})",
                )
            else:
                self._function((*place, "run"), path, file, function)

    def _function(self, place: Place, path: str, file: Path, function: str) -> None:
        """Check that a file of Python may have a function, without running it."""
        try:
            tree = ast.parse(file.read_bytes(), path)
        except OSError as error:
            self.add(place, f"`{path}` cannot be read ({error.strerror})", "let this user read it")
        except (SyntaxError, ValueError) as error:
            line = f" (its line {error.lineno})" if isinstance(error, SyntaxError) else ""
            self.add(place, f"`{path}` is no Python: {getattr(error, 'msg', error)}{line}", "mend it")
        else:
            names = _names_made(tree)
            if names is not None and function not in names:
                self.add(
                    place,
                    f"`{path}` has no function `{function}`",
                    did_you_mean(function, sorted(names), otherwise="name one that it has"),
                )

    def _nics(self, place: Place, name: str, guest: Guest) -> None:
        names: dict[str, int] = {}
        for index, (nic, nic_name) in enumerate(zip(guest.nics, nic_names(guest), strict=True)):
            at: Place = (*place, "nics", index)
            if nic_name in names:
                self.add((*at, "name"), f"duplicate NIC name `{nic_name}` in `{name}`", "name each NIC differently")
                continue
            names[nic_name] = index
            self._switch((*at, "switch"), nic.switch)
            self._model(at, name, guest, nic)
            if isinstance(guest, NetnsGuest) and nic.mtu > TAP_MTU_MAX:
                what = f"`mtu` is {nic.mtu} in netns guest `{name}`, whose interfaces are TAPs"
                self.add((*at, "mtu"), what, f"use {TAP_MTU_MAX} at most")
            if isinstance(guest, NetnsGuest) and nic_name == LOOPBACK_NAME:
                self.add((*at, "name"), f"the NIC name `{nic_name}` is taken by every namespace", "use another name")
            self._mac(at, name, guest, nic, nic_name)
            if nic.ip is not None:
                self._address((*at, "ip"), nic.ip, guest_names(name, guest), nic.switch)
                self._only_ipv4((*at, "ip"), guest, nic.ip)
                self._mtu_of_ipv6((*at, "mtu"), nic.ip, nic.mtu)
            elif isinstance(guest, StackGuest):
                self.add(at, f"guest `{name}` has no `ip`", "a stack guest needs one, such as `ip: 10.10.0.10/24`")
            self._routes(at, nic)

    def _model(self, at: Place, name: str, guest: Guest, nic: Nic) -> None:
        known = nic_models()
        trapping = [model for model, about in known.items() if about.has_traps]
        if nic.trap_cost is not None:
            cost_s = self.amount((*at, "trap-cost"), nic.trap_cost, duration_s)
            if cost_s is not None and cost_s > TRAP_COST_MAX_S:
                self.add((*at, "trap-cost"), f"`trap-cost` is {nic.trap_cost}", "use 1ms at most")
            if nic.model not in trapping and (nic.model is None or nic.model in known):
                what = f"`trap-cost` with a card without traps, `{nic.model or 'venet'}`"
                self.add((*at, "trap-cost"), what, f"leave it out, or use a model that traps: {', '.join(trapping)}")
        able = [model for model, about in known.items() if about.has_pairs]
        if nic.pairs is not None and nic.model not in able and (nic.model is None or nic.model in known):
            what = f"`pairs` with a card of one pair of queues, `{nic.model or 'venet'}`"
            self.add((*at, "pairs"), what, f"leave it out, or use a model that has several: {', '.join(able)}")
        if nic.model is None:
            return
        if nic.model not in known:
            hint = did_you_mean(nic.model, known, otherwise=f"there are: {', '.join(known)}")
            self.add((*at, "model"), f"unknown model `{nic.model}`", hint)
        elif isinstance(guest, NetnsGuest):
            what = f"`model: {nic.model}` in netns guest `{name}`, whose interfaces are the kernel's own"
            self.add((*at, "model"), what, "leave `model` out")
        elif nic.mtu > (most := known[nic.model].mtu_max):
            self.add((*at, "mtu"), f"`mtu` is {nic.mtu} with the model `{nic.model}`", f"use {most} at most")

    def _only_ipv4(self, place: Place, guest: Guest, ip: str) -> None:
        if isinstance(guest, StackGuest) and ":" in ip:
            self.add(place, f"`{ip}` is IPv6", "stack guests speak IPv4; use a netns guest for IPv6")

    def _mtu_of_ipv6(self, place: Place, ip: str, mtu: int) -> None:
        if ":" in ip and mtu < IPV6_MTU_MIN:
            self.add(place, f"`mtu` is {mtu} with the IPv6 address `{ip}`", f"use {IPV6_MTU_MIN} at least")

    def _routes(self, at: Place, nic: Nic) -> None:
        if nic.gateway is not None:
            self._next_hop((*at, "gateway"), nic, nic.gateway)
        for target, hop in nic.routes.items():
            try:
                ipaddress.ip_network(target)
            except ValueError as error:
                self.add(
                    (*at, "routes", target), f"impossible network `{target}` ({error})", "write it as 10.20.0.0/16"
                )
            self._next_hop((*at, "routes", target), nic, hop)

    def _next_hop(self, place: Place, nic: Nic, hop: str) -> None:
        try:
            address = ipaddress.ip_address(hop)
        except ValueError:
            self.add(place, f"impossible address `{hop}`", "write an address without prefix, such as 10.10.0.1")
            return
        try:
            network = ipaddress.ip_interface(nic.ip or "").network
        except ValueError:
            if nic.ip is None:
                self.add(place, f"a route through `{hop}` on a NIC without `ip`", "give the NIC an `ip`")
            return
        if address not in network:
            self.add(place, f"`{hop}` is not inside the NIC's network {network}", "use a neighbour on that network")

    def _switch(self, place: Place, switch: str) -> None:
        if switch not in self.topology.switches:
            self.add(place, *_unknown_switch(switch, self.topology.switches))

    def _is_station(self, at: Place, mac: str) -> bool:
        """Check that an address can be one card's."""
        if not re.match(r"^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$", mac):
            self.add(at, f"impossible MAC address `{mac}`", "write it as 02:00:00:00:00:0a")
            return False
        if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
            self.add(at, f"`{mac}` is not a station's address", "use an even first octet, such as 02")
            return False
        return True

    def _claim_mac(self, at: Place, mac: str, owner: str) -> None:
        line = self.source.line_of(at)
        if mac in self.macs:
            other, other_line = self.macs[mac]
            self.add(at, f"`{mac}` is also the MAC of `{other}` on line {other_line}", "change one of the two")
        self.macs.setdefault(mac, (owner, line))

    def _mac(self, at: Place, name: str, guest: Guest, nic: Nic, nic_name: str) -> None:
        if nic.mac is not None:
            if not self._is_station((*at, "mac"), nic.mac):
                return
            if (guest.count or 1) > 1:
                self.add(
                    (*at, "mac"),
                    f"`{nic.mac}` would be given to {guest.count} guests",
                    "leave `mac` out to derive them",
                )
                return
        for full in guest_names(name, guest):
            mac = nic.mac.lower() if nic.mac is not None else derive_mac(self.topology.name, full, nic_name)
            self._claim_mac((*at, "mac"), mac, full)

    def _address(self, place: Place, ip: str, owners: Sequence[str], switch: str) -> None:
        """Check the range that begins at ``ip``, one address for each owner, and claim it on its switch."""
        try:
            interface = ipaddress.ip_interface(ip)
        except ValueError as error:
            self.add(place, f"impossible address `{ip}` ({error})", "write it as 10.10.0.10/24")
            return
        if "/" not in ip:
            self.add(place, f"`{ip}` has no prefix length", f"write `{ip}/24` or what your network has")
            return
        network = interface.network
        noun = _what_no_card_has(interface.ip)
        if noun is not None:
            self.add(place, f"`{ip}` is {noun} address", "use one that a single card may have, such as 10.10.0.10/24")
            return
        count = len(owners)
        last = int(interface.ip) + count - 1
        has_ends = network.version == 4 and network.prefixlen < 31  # noqa: PLR2004 -- RFC 3021: /31 has no broadcast
        if has_ends and interface.ip in {network.network_address, network.broadcast_address}:
            self.add(place, f"`{ip}` is the network's own or broadcast address", f"use a host address inside {network}")
            return
        if last > int(network.broadcast_address) - has_ends:
            room = int(network.broadcast_address) - has_ends - int(interface.ip) + 1
            fix = "lower `count`, start lower, or widen the prefix"
            self.add(place, f"{count} addresses from `{ip}` do not fit, there is room for {room}", fix)
            return
        line = self.source.line_of(place)
        for index, owner in enumerate(owners):
            key = (switch, str(interface.ip + index))
            if key in self.addresses:
                other, other_line = self.addresses[key]
                what = f"{key[1]} of `{owner}` is also the address of `{other}` on line {other_line}"
                self.add(place, what, "move one range")
                return
            self.addresses[key] = (owner, line)

    def _send(self, place: Place, name: str, guest: Guest, send: Send) -> None:
        if send.rate is not None:
            self.amount((*place, "rate"), send.rate, rate_per_second)
        if send.for_ is not None:
            self.amount((*place, "for"), send.for_, duration_s)
        target = self.topology.guests.get(self.expanded.get(send.to, ""))
        if target is None:
            self.add(
                (*place, "to"), f"unknown guest `{send.to}`", did_you_mean(send.to, self.expanded, otherwise="add it")
            )
        elif send.to in guest_names(name, guest):
            self.add((*place, "to"), f"`{send.to}` would send to itself", "name another guest")
        elif not {nic.switch for nic in guest.nics} & {nic.switch for nic in target.nics}:
            self.add((*place, "to"), f"`{send.to}` is on no switch of `{name}`", "give both a NIC on the same switch")
