"""A plan says everything that will be done, in order, and depends on nothing but the lab file."""

import msgspec
import pytest

from vbnet.cluster.plan import PACKED_MAX, Plan, make_plan
from vbnet.cluster.topology import derive_mac, parse_topology

HEAD = "name: t\nswitches: {lan: {ageing: 60}}\nguests:\n"


def planned(guests: str) -> Plan:
    """Return the plan of a lab with these guests."""
    return make_plan(parse_topology(HEAD + guests, "/labs/lab.yaml", {}))


def test_requests_come_switch_bus_device_plug() -> None:
    """Nothing is named before it is there."""
    plan = planned("  a: {kind: stack, nics: [{switch: lan, ip: 10.0.0.1/24}]}\n")

    assert [item.verb for item in plan.requests] == ["switch.create", "bus.create", "device.create", "device.plug"]
    assert plan.requests[0].args == {"name": "lan", "ageing_s": 60}
    assert {
        "name": "a.eth0",
        "type": "venet",
        "attributes": {"switch": "lan", "mac": derive_mac("t", "a", "eth0"), "mtu": "1500"},
    } == plan.requests[2].args
    assert plan.requests[3].args == {"name": "a.eth0", "bus": "a"}


def test_packed_guests_share_a_process_and_others_do_not() -> None:
    """Packing is what lets a thousand guests start in seconds."""
    nic = "nics: [{switch: lan, ip: 10.0.%d.1/16}]"
    plan = planned(
        f"  a: {{kind: stack, count: 3, {nic % 0}}}\n  b: {{kind: stack, count: 2, packed: false, {nic % 1}}}\n"
    )

    assert [(item.name, len(item.guests)) for item in plan.processes] == [("a", 3), ("b-0", 1), ("b-1", 1)]


def test_more_guests_than_fit_one_process_become_several() -> None:
    """A process has a bound; a lab has not."""
    plan = planned(f"  a: {{kind: stack, count: {PACKED_MAX + 1}, nics: [{{switch: lan, ip: 10.0.0.1/16}}]}}\n")

    assert [(item.name, len(item.guests)) for item in plan.processes] == [("a.0", PACKED_MAX), ("a.1", 1)]


def test_counted_guests_have_counted_addresses_and_their_own_macs() -> None:
    """Each guest can be told from the next by both addresses."""
    plan = planned("  a: {kind: stack, count: 2, nics: [{switch: lan, ip: 10.0.0.9/24}]}\n")

    nics = [guest.nics[0] for guest in plan.guests]

    assert [nic.ip for nic in nics] == ["10.0.0.9/24", "10.0.0.10/24"]
    assert [derive_mac("t", "a-0", "eth0"), derive_mac("t", "a-1", "eth0")] == [nic.mac for nic in nics]


def test_a_card_that_traps_comes_with_what_it_traps_through() -> None:
    """The model says class and transport; traps and their cost are part of the plan."""
    nic = "{switch: lan, ip: 10.0.0.1/24, model: virtio-net-mmio, trap-cost: 2us}"
    plan = planned(f"  a: {{kind: stack, nics: [{nic}]}}\n")

    made = [(item.args["name"], item.args["type"]) for item in plan.requests if item.verb == "device.create"]

    assert [("a.fastcall", "fastcall"), ("a.eth0", "virtio-net")] == made
    attributes = next(item.args["attributes"] for item in plan.requests if item.args["name"] == "a.eth0")
    assert ("mmio", "2000", "lan") == tuple(attributes[key] for key in ("transport", "trap_cost_ns", "switch"))


def test_a_namespace_gets_a_tap_device() -> None:
    """The kernel drives its own interface; the host serves the TAP behind it."""
    plan = planned("  n: {kind: netns, nics: [{switch: lan}], run: 'ping -c 1 \"a b\"'}\n")

    assert plan.requests[2].args["type"] == "tap"
    assert plan.processes[0].guests[0].run == ["ping", "-c", "1", "a b"]


def test_a_generator_knows_where_it_sends() -> None:
    """Amounts are in base units, and the receiver's addresses are settled."""
    plan = planned(
        "  gen: {kind: traffic, nics: [{switch: lan}], send: {to: sink, size: imix, rate: 10k, for: 200ms}}\n"
        "  sink: {kind: traffic, nics: [{switch: lan, ip: 10.0.0.2/24}]}\n"
    )

    send = plan.processes[0].guests[0].send

    assert send is not None
    assert (derive_mac("t", "sink", "eth0"), "10.0.0.2", "imix") == (send.mac, send.ip, send.size)
    assert (send.rate_per_second, send.duration_s) == (10_000.0, 0.2)


def test_a_plan_survives_being_sent_to_another_process() -> None:
    """Guest processes get their part of the plan as bytes."""
    plan = planned(
        "  p: {kind: python, run: 'os:getpid', env: {A: 1, B: true}, nics: [{switch: lan}], restart: always, "
        "ram: 1MiB}\n"
    )

    assert plan == msgspec.json.decode(msgspec.json.encode(plan), type=Plan)
    assert plan.processes[0].guests[0].env == {"A": "1", "B": "true"}
    assert plan.processes[0].guests[0].ram_bytes == 1 << 20


def test_a_plan_reads_as_a_list_of_steps() -> None:
    """A dry run is for people: one line a step, in order."""
    lines = list(planned("  a: {kind: stack, count: 2, nics: [{switch: lan, ip: 10.0.0.1/24}]}\n").describe())

    assert lines[0] == "start host node `t` with 1 worker"
    assert lines[-1] == "launch stack process a (2 guests), restart no"


def test_devices_are_made_once_and_plugged_into_each_guests_bus() -> None:
    """After the buses they go into; booleans are written as the host node reads them."""
    plan = planned(
        "  a: {kind: python, run: 'os:getpid', count: 2}\n"
        "  b: {kind: python, run: 'os:getpid'}\n"
        "devices: {irq: {type: intc, attributes: {enabled: false, vcpus: 2}}}\n"
    )

    made = [(item.verb, item.args) for item in plan.requests[-4:]]

    assert [
        ("device.create", {"name": "irq", "type": "intc", "attributes": {"enabled": "0", "vcpus": "2"}}),
        ("device.plug", {"name": "irq", "bus": "a-0"}),
        ("device.plug", {"name": "irq", "bus": "a-1"}),
        ("device.plug", {"name": "irq", "bus": "b"}),
    ] == made


def test_a_bus_that_guests_share_is_made_once() -> None:
    """Two guests may name one bus; a device for both is plugged there once."""
    plan = planned(
        "  a: {kind: python, run: 'os:getpid', bus: both}\n"
        "  b: {kind: python, run: 'os:getpid', bus: both}\n"
        "devices: {irq: {type: intc}}\n"
    )

    assert ["switch.create", "bus.create", "device.create", "device.plug"] == [item.verb for item in plan.requests]


def test_a_socket_for_front_ends_is_a_request_behind_all_others() -> None:
    """Auto leaves the path to the host node; another counts from the lab file's folder."""
    text = (
        "name: t\nswitches: {lan: }\nvhost-user:\n  vm: {switch: lan}\n"
        "  far: {switch: lan, socket: run/far.sock, mac: '02:00:00:00:00:0A', mtu: 9000}\n"
    )

    requests = make_plan(parse_topology(text, "/labs/lab.yaml", {})).requests

    assert [item.verb for item in requests] == ["switch.create", "port.listen", "port.listen"]
    assert {"switch": "lan", "name": "vm", "socket": None, "mac": None, "mtu": 1500} == requests[1].args
    assert {
        "switch": "lan",
        "name": "far",
        "socket": "/labs/run/far.sock",
        "mac": "02:00:00:00:00:0a",
        "mtu": 9000,
    } == requests[2].args


def test_disks_are_made_plugged_and_then_filled() -> None:
    """A device for each disk of each guest; its file is opened from the lab file's folder, later."""
    disks = "disks: [{image: base.img, readonly: true, transport: pci}]"
    plan = planned(f"  app: {{kind: python, count: 2, run: 'os:getpid', {disks}}}\n")

    made = [item.args for item in plan.requests if item.verb == "device.create"]
    assert [("app-0.disk0", "pci"), ("app-1.disk0", "pci")] == [
        (item["name"], item["attributes"]["transport"]) for item in made
    ]
    assert [("app-0.disk0", "/labs/base.img", True), ("app-1.disk0", "/labs/base.img", True)] == [
        (disk.device, disk.image, disk.is_read_only) for disk in plan.disks
    ]
    assert "insert" in "\n".join(plan.describe())


@pytest.mark.parametrize(
    ("keys", "connects"), [("front-end: true", True), ("front-end: true, connect: false", False)], ids=["", "listens"]
)
def test_a_port_that_is_a_front_end_connects_unless_it_listens(keys: str, connects: bool) -> None:
    """Back ends mostly listen."""
    text = f"name: t\nswitches: {{lan: }}\nvhost-user:\n  up: {{switch: lan, socket: /run/up.sock, {keys}}}\n"

    args = make_plan(parse_topology(text, "/labs/lab.yaml", {})).requests[-1].args

    assert (True, connects) == (args["front_end"], args.get("connect", False))


def test_a_front_end_that_listens_is_connected_to() -> None:
    """The request says so; its socket is a path."""
    text = "name: t\nswitches: {lan: }\nvhost-user:\n  fw: {switch: lan, socket: /run/fw.sock, connect: true}\n"

    request = make_plan(parse_topology(text, "/labs/lab.yaml", {})).requests[-1]

    assert ("port.listen", "/run/fw.sock", True) == (request.verb, request.args["socket"], request.args["connect"])
