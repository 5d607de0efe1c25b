"""From a topology to what has to be done: pure, so that a dry run and the real run cannot differ.

A plan has four parts, done in this order: *requests* to the host node (switches first, then buses, devices, plugs,
sockets), *disks*, *uplinks*, and *processes*. A process holds one guest, or many when they are packed. Everything a
guest process needs to know is in its part of the plan; it never reads the lab file.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from vbnet.bus.kinds import NicModel
from vbnet.cluster import topology as lab_file
from vbnet.cluster.quantity import duration_s, length_bytes, rate_per_second
from vbnet.cluster.topology import Guest, LabFile, NetnsGuest, PythonGuest, Restart, StackGuest, TrafficGuest

DISK_CLASS = "virtio-blk"
"""The device class that serves disks."""

PACKED_MAX = 1000
"""Guests in one packed process, at most; a larger `count` becomes several processes."""


class _Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A part of a plan."""


class Request(_Part, frozen=True):
    """One administrative request to the host node: a verb of its admin socket and its arguments."""

    verb: str
    args: dict[str, Any]

    def describe(self) -> str:
        """Return the request as one readable line."""
        return f"{self.verb} " + " ".join(
            f"{key}={value}" for key, value in self.args.items() if value not in ({}, None)
        )


class NicPlan(_Part, frozen=True):
    """One interface of one guest, every address settled."""

    name: str
    device: str
    switch: str
    mac: str
    mtu: int
    ip: str | None = None
    gateway: str | None = None
    routes: dict[str, str] = {}
    offloads: bool = True
    model: str | None = None
    trap_cost_ns: int = 0
    pairs: int | None = None


class DiskPlan(_Part, frozen=True):
    """One file that becomes a disk."""

    device: str
    image: str
    is_read_only: bool = False


class SendPlan(_Part, frozen=True):
    """What a generator sends, in base units, and to which MAC (and IP, when the receiver has one)."""

    to: str
    mac: str
    ip: str | None = None
    size: int | str = 64
    rate_per_second: float | None = None
    duration_s: float | None = None


class GuestPlan(_Part, frozen=True):
    """One guest: its name on the bus and its interfaces."""

    name: str
    bus: str
    nics: tuple[NicPlan, ...] = ()
    ram_bytes: int | None = None
    run: list[str] | str | None = None
    env: dict[str, str] = {}
    send: SendPlan | None = None


class ProcessPlan(_Part, frozen=True):
    """One guest process."""

    name: str
    kind: str
    guests: tuple[GuestPlan, ...]
    restart: Restart = "no"
    folder: str = "."


class UplinkPlan(_Part, frozen=True):
    """One TAP of this machine on a switch."""

    switch: str
    tap: str
    mtu: int
    ip: str | None = None
    offloads: bool = True


class MetricsPlan(_Part, frozen=True):
    """An exporter: where it listens, and the file with TLS and users."""

    listen: str
    web_config: str | None


class Plan(_Part, frozen=True):
    """Everything one lab needs, in the order in which it is done."""

    lab: str
    file: str
    workers: int
    requests: tuple[Request, ...]
    uplinks: tuple[UplinkPlan, ...]
    processes: tuple[ProcessPlan, ...]
    metrics: MetricsPlan | None = None
    disks: tuple[DiskPlan, ...] = ()

    @property
    def guests(self) -> Iterator[GuestPlan]:
        """Every guest of every process."""
        for process in self.processes:
            yield from process.guests

    def describe(self) -> Iterator[str]:
        """Yield the plan as lines for a reader, in order."""
        yield f"start host node `{self.lab}` with {self.workers} worker{'s' * (self.workers > 1)}"
        if self.metrics is not None:
            yield f"serve metrics at {self.metrics.listen}"
        for request in self.requests:
            yield request.describe()
        for disk in self.disks:
            yield f"insert {disk.image} into {disk.device}" + (", only to be read" if disk.is_read_only else "")
        for uplink in self.uplinks:
            yield f"uplink {uplink.tap} on {uplink.switch}" + (f" with {uplink.ip}" if uplink.ip else "")
        for process in self.processes:
            many = f" ({len(process.guests)} guests)" if len(process.guests) > 1 else ""
            yield f"launch {process.kind} process {process.name}{many}, restart {process.restart}"


def make_plan(lab: LabFile) -> Plan:
    """Return the plan of a checked topology."""
    topology = lab.topology
    by_name: dict[str, GuestPlan] = {}
    processes: list[ProcessPlan] = []
    for name, guest in topology.guests.items():
        guests = [
            _guest_plan(topology.name, full, index, guest)
            for index, full in enumerate(lab_file.guest_names(name, guest))
        ]
        by_name |= {plan.name: plan for plan in guests}
        for process_name, members in _grouped(name, guest, guests):
            kind = str(guest.__struct_config__.tag)
            processes.append(
                ProcessPlan(
                    name=process_name, kind=kind, guests=tuple(members), restart=guest.restart, folder=str(lab.folder)
                )
            )
    processes = [_with_targets(process, topology.guests, by_name) for process in processes]
    requests = [
        Request(verb="switch.create", args={"name": name, "ageing_s": (switch or lab_file.Switch()).ageing})
        for name, switch in topology.switches.items()
    ]
    buses = dict.fromkeys(plan.bus for process in processes for plan in process.guests)
    requests += [Request(verb="bus.create", args={"name": bus}) for bus in buses]
    for process in processes:
        for plan in process.guests:
            requests += _trap_requests(process.kind, plan)
            requests += _nic_requests(process.kind, plan)
    disks: list[DiskPlan] = []
    for name, guest in topology.guests.items():
        for full in lab_file.guest_names(name, guest):
            requests += _disk_requests(full, by_name[full].bus, guest)
            disks += _disk_plans(lab, full, guest)
    for name, device in topology.devices.items():
        plugged = dict.fromkeys(by_name[full].bus for full in lab_file.device_guests(topology, device))
        requests += _device_requests(name, device, plugged)
    requests += [_listen_request(lab, name, port) for name, port in topology.vhost_user.items()]
    uplinks = tuple(
        UplinkPlan(switch=up.switch, tap=up.tap, mtu=up.mtu, ip=up.ip, offloads=up.offloads) for up in topology.uplinks
    )
    return Plan(
        lab=topology.name,
        file=lab.source.file,
        workers=topology.host.workers,
        requests=tuple(requests),
        uplinks=uplinks,
        processes=tuple(processes),
        metrics=_metrics_plan(lab),
        disks=tuple(disks),
    )


def _metrics_plan(lab: LabFile) -> MetricsPlan | None:
    metrics = lab.topology.metrics
    if metrics is None:
        return None
    return MetricsPlan(
        listen=metrics.listen, web_config=None if metrics.web_config is None else str(lab.folder / metrics.web_config)
    )


FASTCALL_CLASS = "fastcall"
"""The device class through which registers trap."""
_WITH_OFFLOADS = frozenset({"venet", "virtio-net"})
"""Device classes whose drivers may ask for any."""
NIC_MODEL = "venet"
"""What a network card is when nobody says."""


def nic_model(nic: NicPlan) -> NicModel:
    """Return the model of a guest's network card."""
    return lab_file.nic_models()[nic.model or NIC_MODEL]


def _nic_requests(kind: str, plan: GuestPlan) -> Iterator[Request]:
    for nic in plan.nics:
        attributes = {"switch": nic.switch, "mac": nic.mac, "mtu": str(nic.mtu)}
        class_name = lab_file.TAP_CLASS
        if kind != "netns":
            model = nic_model(nic)
            class_name = model.device_class
            attributes |= model.attributes
            if nic.trap_cost_ns:
                attributes["trap_cost_ns"] = str(nic.trap_cost_ns)
            if nic.pairs is not None:
                attributes["pairs"] = str(nic.pairs)
            if not nic.offloads and class_name in _WITH_OFFLOADS:
                attributes["offloads"] = "0"
        args = {"name": nic.device, "type": class_name, "attributes": attributes}
        yield Request(verb="device.create", args=args)
        yield Request(verb="device.plug", args={"name": nic.device, "bus": plan.bus})


def _trap_requests(kind: str, plan: GuestPlan) -> Iterator[Request]:
    """Give a guest whose cards trap what traps go through, before its cards."""
    if kind != "netns" and any(_needs_fastcalls(nic_model(nic)) for nic in plan.nics):
        name = f"{plan.name}.{FASTCALL_CLASS}"
        yield Request(verb="device.create", args={"name": name, "type": FASTCALL_CLASS, "attributes": {}})
        yield Request(verb="device.plug", args={"name": name, "bus": plan.bus})


def _needs_fastcalls(model: NicModel) -> bool:
    return model.has_traps and not model.has_slots


def _disk_requests(full: str, bus: str, guest: Guest) -> Iterator[Request]:
    disks = guest.disks if isinstance(guest, PythonGuest) else []
    for disk, name in zip(disks, lab_file.disk_names(guest), strict=True):
        attributes: dict[str, str] = {"transport": disk.transport}
        if disk.serial is not None:
            attributes["serial"] = disk.serial
        yield Request(
            verb="device.create", args={"name": f"{full}.{name}", "type": DISK_CLASS, "attributes": attributes}
        )
        yield Request(verb="device.plug", args={"name": f"{full}.{name}", "bus": bus})


def _disk_plans(lab: LabFile, full: str, guest: Guest) -> Iterator[DiskPlan]:
    disks = guest.disks if isinstance(guest, PythonGuest) else []
    for disk, name in zip(disks, lab_file.disk_names(guest), strict=True):
        image = str(lab_file.image_path(lab.source, disk))
        yield DiskPlan(device=f"{full}.{name}", image=image, is_read_only=disk.readonly)


def _device_requests(name: str, device: lab_file.LabDevice, buses: Iterable[str]) -> Iterator[Request]:
    attributes = {key: lab_file.attribute_text(value) for key, value in device.attributes.items()}
    yield Request(verb="device.create", args={"name": name, "type": device.type, "attributes": attributes})
    for bus in buses:
        yield Request(verb="device.plug", args={"name": name, "bus": bus})


def _listen_request(lab: LabFile, name: str, port: lab_file.VhostUser) -> Request:
    socket = None if port.socket == lab_file.AUTO else str(lab_file.socket_path(lab.source, port))
    mac = None if port.mac is None else port.mac.lower()
    args = {"switch": port.switch, "name": name, "socket": socket, "mac": mac, "mtu": port.mtu}
    if port.does_connect:
        args["connect"] = True
    if port.front_end:
        args["front_end"] = True
    return Request(verb="port.listen", args=args)


def _guest_plan(lab: str, full: str, index: int, guest: Guest) -> GuestPlan:
    nics = tuple(
        NicPlan(
            name=nic_name,
            device=f"{full}.{nic_name}",
            switch=nic.switch,
            mac=nic.mac.lower() if nic.mac is not None else lab_file.derive_mac(lab, full, nic_name),
            mtu=nic.mtu,
            ip=None if nic.ip is None else lab_file.address_at(nic.ip, index),
            gateway=nic.gateway,
            routes=nic.routes,
            offloads=nic.offloads,
            model=nic.model,
            trap_cost_ns=0 if nic.trap_cost is None else round(duration_s(nic.trap_cost) * 1e9),
            pairs=nic.pairs,
        )
        for nic, nic_name in zip(guest.nics, lab_file.nic_names(guest), strict=True)
    )
    run: list[str] | str | None = None
    env: dict[str, str] = {}
    if isinstance(guest, PythonGuest):
        run, env = guest.run, _text(guest.env)
    elif isinstance(guest, NetnsGuest):
        run, env = _command(guest.run), _text(guest.env)
    ram = None if guest.ram is None else length_bytes(guest.ram)
    return GuestPlan(name=full, bus=guest.bus or full, nics=nics, ram_bytes=ram, run=run, env=env)


def _grouped(name: str, guest: Guest, guests: list[GuestPlan]) -> Iterator[tuple[str, list[GuestPlan]]]:
    """Yield the processes of one entry: one each, or packed by the thousand."""
    if not (isinstance(guest, StackGuest) and guest.packed):
        for plan in guests:
            yield plan.name, [plan]
        return
    starts = range(0, len(guests), PACKED_MAX)
    for number, start in enumerate(starts):
        yield (f"{name}.{number}" if len(starts) > 1 else name), guests[start : start + PACKED_MAX]


def _with_targets(process: ProcessPlan, guests: dict[str, Guest], plans: dict[str, GuestPlan]) -> ProcessPlan:
    """Fill in what a generator sends, once every address is known."""
    members = []
    for plan in process.guests:
        guest = guests.get(plan.name) or guests.get(plan.name.rpartition("-")[0])
        if not isinstance(guest, TrafficGuest) or guest.send is None:
            members.append(plan)
            continue
        send = guest.send
        target = next(nic for nic in plans[send.to].nics if nic.switch == plan.nics[0].switch)
        sending = SendPlan(
            to=send.to,
            mac=target.mac,
            ip=None if target.ip is None else target.ip.partition("/")[0],
            size=send.size,
            rate_per_second=None if send.rate is None else rate_per_second(send.rate),
            duration_s=None if send.for_ is None else duration_s(send.for_),
        )
        members.append(msgspec.structs.replace(plan, send=sending))
    return msgspec.structs.replace(process, guests=tuple(members))


def _command(run: str | list[str] | None) -> list[str] | None:
    return shlex.split(run) if isinstance(run, str) else run


def _text(env: lab_file.Environment) -> dict[str, str]:
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in env.items()}
