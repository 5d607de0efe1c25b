"""What operators may do, over the real admin socket."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import zmq

from vbnet.bus import admin
from vbnet.bus.operator import Operator, SyncOperator
from vbnet.bus.rundir import RunDir
from vbnet.errors import (
    BusyError,
    ExistsError,
    NotFoundError,
    NotPermittedError,
    PeerGone,
    UsageError,
)
from vbnet.hostnode.node import HostNode, HostOptions
from vbnet.testing import ListLog
from vbnet.testing.lab import Lab, eventually
from vbnet.testing.wire import pack, unpack


async def test_a_device_is_made_in_two_steps(run_root: Path) -> None:
    """Name first, then its type, once; only then can it be plugged."""
    async with Lab.open(run_root) as lab:
        operator = lab.operator
        await operator.bus_create("lan")
        await operator.device_create("e")

        with pytest.raises(UsageError, match="no type"):
            await operator.device_plug("e", "lan")
        with pytest.raises(NotFoundError, match="echo-loud"):
            await operator.device_set("e", "type", "nothing")
        await operator.device_set("e", "type", "echo")
        with pytest.raises(UsageError, match="for good"):
            await operator.device_set("e", "type", "echo-loud")

        assert await operator.device_plug("e", "lan") == [1, 2]


async def test_the_short_form_makes_all_or_nothing(run_root: Path) -> None:
    """A wrong attribute leaves no half-made device."""
    async with Lab.open(run_root) as lab:
        with pytest.raises(UsageError):
            await lab.operator.device_create("e", "echo", {"limit": "0"})

        assert await lab.operator.device_list() == []


async def test_a_device_shows_its_type_attributes_and_plugs(run_root: Path) -> None:
    """Everything the administrator set can be read back."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("e", "lan", "echo", {"prefix": "> "})

        info = await lab.operator.device_get("e")

        assert (
            admin.DeviceInfo(
                name="e",
                type="echo",
                attributes={"prefix": "> ", "limit": "4096", "calls": "0", "buses": "1024"},
                plugs=[
                    admin.PlugInfo("lan", 1, "echo0", "echo", 0),
                    admin.PlugInfo("lan", 2, "cell0", "echo-cell", 0),
                ],
            )
            == info
        )


async def test_one_device_on_many_buses_has_ids_of_each(run_root: Path) -> None:
    """Dev-ids belong to the bus, are never given again, and a device leaves one bus without leaving the others."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("first", "a")
        await lab.plugged("shared", "a")
        await lab.operator.bus_create("b")

        on_b = await lab.operator.device_plug("shared", "b")
        await lab.operator.device_unplug("shared", "a")
        again = await lab.operator.device_plug("shared", "a")

        assert (on_b, again) == ([1, 2], [5, 6])


async def test_a_device_may_refuse_a_plug(run_root: Path) -> None:
    """Its refusal reaches the operator and nothing was plugged."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("e", "a", "echo", {"buses": "1"})
        await lab.operator.bus_create("b")

        with pytest.raises(BusyError):
            await lab.operator.device_plug("e", "b")

        assert [plug.bus for plug in (await lab.operator.device_get("e")).plugs] == ["a", "a"]


@pytest.mark.parametrize(
    ("verb", "error"),
    [
        (admin.BusCreate("lan"), ExistsError),
        (admin.BusDelete("lan"), BusyError),
        (admin.BusDelete("none"), NotFoundError),
        (admin.DeviceCreate("e"), ExistsError),
        (admin.DeviceDelete("e"), BusyError),
        (admin.DeviceDelete("none"), NotFoundError),
        (admin.DevicePlug("e", "lan"), ExistsError),
        (admin.DevicePlug("e", "none"), NotFoundError),
        (admin.DeviceUnplug("e", "other"), NotFoundError),
        (admin.DeviceSet("e", "colour", "red"), NotFoundError),
        (admin.DeviceSet("e", "calls", "1"), UsageError),
        (admin.DeviceCreate("x", None, {"prefix": "y"}), UsageError),
        (admin.GuestReset("none"), NotFoundError),
        (admin.SwitchDelete("none"), NotFoundError),
        (admin.PortAdd("none", "nosuchtap0"), NotFoundError),
        (admin.PortListen("none", "vm"), NotFoundError),
        (admin.PortListen("lan", "vm", connect=True), UsageError),
    ],
    ids=lambda value: (
        type(value).__name__ if isinstance(value, object) and not isinstance(value, type) else value.__name__
    ),
)
async def test_what_makes_no_sense_is_refused_and_changes_nothing(
    run_root: Path, verb: Any, error: type[Exception]
) -> None:
    """Each verb names its refusal."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("e", "lan")
        await lab.operator.bus_create("other")
        before = (await lab.operator.bus_list(), await lab.operator.device_list())

        with pytest.raises(error):
            await lab.operator.apply([verb])

        assert before == (await lab.operator.bus_list(), await lab.operator.device_list())


async def test_force_takes_apart_what_is_in_use(run_root: Path) -> None:
    """With force a bus ends its guests, a device leaves its buses."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("e", "lan")
        guest = await lab.guest("web", "lan")

        await lab.operator.device_delete("e", force=True)
        await lab.operator.bus_delete("lan", force=True)

        assert (
            await lab.operator.bus_list(),
            await lab.operator.device_list(),
            await lab.operator.guest_list(),
        ) == ([], [], [])
        with pytest.raises(PeerGone, match="bus-deleted"):
            await guest.list_devices()


async def test_questions_under_way_when_a_guest_is_ended_say_why_it_ended(run_root: Path) -> None:
    """The host does not know the guest any more when it reads them; the guest knows better."""
    async with Lab.open(run_root) as lab:
        await lab.operator.bus_create("lan")
        guest = await lab.guest("web", "lan")
        ending = asyncio.create_task(lab.operator.bus_delete("lan", force=True))
        questions = []

        while not ending.done():
            questions.append(asyncio.create_task(guest.list_devices()))
            await asyncio.sleep(0)

        answers = await asyncio.gather(*questions, return_exceptions=True)
        refusals = [answer for answer in answers if answer != []]
        assert refusals
        assert [] == [each for each in refusals if not isinstance(each, PeerGone) or "bus-deleted" not in str(each)]


async def test_apply_stops_at_the_first_refusal_and_says_which(run_root: Path) -> None:
    """What came before stays, what comes after is not tried, even across messages."""
    async with Lab.open(run_root) as lab:
        verbs: list[Any] = [admin.BusCreate(f"b{index}") for index in range(600)]
        verbs[555] = admin.BusCreate("b3")

        with pytest.raises(ExistsError) as caught:
            await lab.operator.apply(verbs)

        assert (caught.value.fields["index"], caught.value.fields["verb"]) == (555, "bus.create")
        assert len(await lab.operator.bus_list()) == 555


async def test_apply_brings_up_many_at_once(run_root: Path) -> None:
    """A large lab is a few messages."""
    async with Lab.open(run_root) as lab:
        verbs: list[Any] = []
        for index in range(300):
            verbs += [
                admin.BusCreate(f"b{index}"),
                admin.DeviceCreate(f"d{index}", "echo", {"prefix": "x" * 100}),
                admin.DevicePlug(f"d{index}", f"b{index}"),
            ]

        done = await lab.operator.apply(verbs)

        assert (done, len(await lab.operator.bus_list())) == (900, 300)


async def test_the_node_tells_who_it_is_and_what_it_counted(run_root: Path) -> None:
    """Versions for the humans, counters by their exported names."""
    async with Lab.open(run_root) as lab:
        with pytest.raises(NotFoundError):
            await lab.operator.bus_delete("none")

        info = await lab.operator.node_info()

        assert (info.name, info.protocol, info.abi, info.guests) == ("lab", 1, 1, 0)
        assert info.counters['vbnet_bus_refused_total{code="ENOENT"}'] == 1


async def test_everything_that_happens_is_published(run_root: Path) -> None:
    """A subscriber sees each change once, in order, with increasing numbers."""
    async with Lab.open(run_root) as lab:
        stream = lab.operator.events()
        await eventually(lambda: _is_subscribed(lab, stream))
        await lab.plugged("e", "lan")
        guest = await lab.guest("web", "lan")
        await guest.close()
        topics = []

        async for event in stream:
            topics.append(event["topic"])
            if event["topic"] == "guest.gone":
                await lab.operator.device_unplug("e", "lan")
            if event["topic"] == "device.unplugged":
                break

        expected = [
            "bus.created",
            "device.created",
            "device.set",
            "device.plugged",
            "guest.joined",
            "guest.ready",
            "guest.gone",
            "device.unplugged",
        ]
        assert expected == [topic for topic in topics if topic != "probe"]
        assert stream.missed == 0


async def test_quarantined_ports_are_published(run_root: Path) -> None:
    """The fabric's faults reach operators."""
    async with Lab.open(run_root) as lab:
        stream = lab.operator.events("port.")
        await eventually(lambda: _is_subscribed(lab, stream, "port.probe"))

        lab.fabric.fault(port=3, name="web-0", rule="next < size")
        event = await anext(stream)
        while event["topic"] == "port.probe":
            event = await anext(stream)

        assert (event["topic"], event["port"], event["rule"]) == ("port.fault", 3, "next < size")


def _is_subscribed(lab: Lab, stream: Any, topic: str = "probe") -> bool:
    """Publish until the first one arrives: a subscription is known only by what it lets through."""
    lab.host.publish(topic)
    return bool(stream._waiting)


async def test_switches_and_ports_go_to_the_fabric(run_root: Path) -> None:
    """Admin verbs reach it under their names."""
    async with Lab.open(run_root) as lab:
        await lab.operator.switch_create("lan", ageing_s=10)
        port = lab.fabric.add_port("lan", "web-0", "venet")

        with pytest.raises(BusyError):
            await lab.operator.switch_delete("lan")
        await lab.operator.port_remove(port)
        await lab.operator.switch_delete("lan")

        assert (await lab.operator.switch_list(), await lab.operator.port_list()) == ([], [])


async def test_a_host_without_a_fabric_says_so(run_root: Path) -> None:
    """A bus works without switches."""
    run_dir = RunDir.for_node("bare", run_root)
    async with HostNode(HostOptions(run_dir=run_dir), log=ListLog()), await Operator.connect(run_dir) as operator:
        with pytest.raises(UsageError, match="without a switch fabric"):
            await operator.switch_create("lan")

        assert await operator.port_list() == []


async def test_shutdown_is_answered_and_then_happens(run_root: Path) -> None:
    """The operator hears yes; then the node ends and everyone else hears of it."""
    async with Lab.open(run_root) as lab:
        guest = await lab.guest("web")

        await lab.operator.node_shutdown()
        await lab.host.run()

        with pytest.raises(PeerGone):
            await guest.list_devices()
        await eventually(lambda: not lab.run_dir.admin_socket.exists())
        with pytest.raises(PeerGone):
            await _until_gone(lab.operator)


async def _until_gone(operator: Operator) -> None:
    while True:
        await operator.node_info()


async def test_without_a_host_the_operator_is_told_at_once(run_root: Path) -> None:
    """No deadline has to pass to learn that nobody is there."""
    run_dir = RunDir.for_node("none", run_root)
    run_dir.create()

    with pytest.raises(NotFoundError, match="no host node"):
        await Operator.connect(run_dir)


async def test_tcp_without_keys_is_refused_on_both_sides(run_root: Path) -> None:
    """Neither a host nor an operator opens tcp in the clear."""
    options = HostOptions(run_dir=RunDir.for_node("open", run_root), tcp="tcp://127.0.0.1:7400")

    with pytest.raises(NotPermittedError, match="keys"):
        await HostNode(options, log=ListLog()).start()
    with pytest.raises(NotPermittedError, match="keys"):
        await Operator.connect("tcp://127.0.0.1:7400")


async def test_a_second_host_in_the_same_folder_is_refused_and_hurts_nothing(run_root: Path) -> None:
    """The first goes on."""
    async with Lab.open(run_root) as lab:
        with pytest.raises(BusyError):
            await HostNode(HostOptions(run_dir=lab.run_dir), log=ListLog()).start()

        assert (await lab.operator.node_info()).name == "lab"


REQUESTS = [
    ([b"\xc1"], 0, "EPROTO"),
    ([pack([2, 5, {"verb": "node.info"}])], 5, "EPROTO"),
    ([pack([1, 5, {"verb": "node.explode"}])], 0, "EPROTO"),
    ([pack([1, 5, {"verb": "bus.create"}])], 5, "EPROTO"),
    ([pack([1, 5, {"verb": "bus.create", "name": "a b"}])], 5, "EPROTO"),
    ([pack([1, 5, {"verb": "bus.create", "name": "a", "colour": "red"}])], 5, "EPROTO"),
    ([pack([1, 5, {"verb": "apply", "verbs": [{"verb": "apply", "verbs": []}]}])], 5, "EINVAL"),
    ([b"\x00" * 70_000], 0, "EMSGSIZE"),
    ([b"one", b"two"], 0, "EINVAL"),
]


@pytest.mark.parametrize(("parts", "seq", "code"), REQUESTS, ids=range(len(REQUESTS)))
async def test_a_malformed_request_is_refused_by_name(run_root: Path, parts: list[bytes], seq: int, code: str) -> None:
    """Whatever an operator's socket says, the host answers and goes on."""
    async with Lab.open(run_root) as lab:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"ipc://{lab.run_dir.admin_socket}")

        socket.send_multipart(parts)
        await eventually(lambda: socket.poll(0))
        version, got_seq, body = unpack(socket.recv())

        assert (1, 1, code) == (version, body[0], body[1])
        assert got_seq in (seq, 5)
        assert (await lab.operator.node_info()).name == "lab"
        socket.close(0)
        context.term()


def test_plain_programs_have_the_same_methods() -> None:
    """SyncOperator forgets none of Operator's verbs."""
    verbs = {name for name in vars(Operator) if "_" in name and not name.startswith("_")} | {"apply"}

    assert set() == verbs - set(vars(SyncOperator))


def test_every_verb_has_a_method() -> None:
    """The operator's client speaks the whole vocabulary."""
    tags = {str(verb.__struct_config__.tag) for verb in admin.Verb.__args__}

    assert set() == {tag.replace(".", "_") for tag in tags} - set(vars(Operator))
