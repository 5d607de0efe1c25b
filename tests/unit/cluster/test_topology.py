"""The lab file: what it means, and one clear message with file and line for everything that can be wrong in it."""

from pathlib import Path

import pytest

from vbnet.cluster.source import TopologyError
from vbnet.cluster.topology import (
    LabFile,
    PythonGuest,
    address_at,
    derive_mac,
    device_guests,
    guest_names,
    load_topology,
    parse_topology,
)

HEAD = "name: t\nswitches:\n  lan:\nguests:\n"


def problems(text: str, **environment: str) -> list[str]:
    """Return the messages for a lab file, which must be wrong."""
    with pytest.raises(TopologyError) as caught:
        parse_topology(text, "lab.yaml", environment)
    return str(caught.value).splitlines()


def parsed(text: str, **environment: str) -> LabFile:
    """Return the lab of a file, which must be right."""
    return parse_topology(text, "lab.yaml", environment)


def guest(line: str) -> str:
    """Return a lab file with one guest, on line 5."""
    return f"{HEAD}  {line}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: t\nswitchs: {}\n", "lab.yaml:2: unknown key `switchs`; did you mean `switches`?"),
        ("guests: {}\n", "lab.yaml:1: the lab has no `name`; add `name: my-lab` at the top"),
        (
            "name: My Lab\n",
            "lab.yaml:1: `name` is `My Lab`; use lower-case letters, digits and hyphens, at most 31, a letter first",
        ),
        ("name: t\nswitches: [lan]\n", "lab.yaml:2: `switches` is not a mapping; write `switches:` and below it"),
        (
            "name: t\nswitches: {lan: {ageing: 0}}\n",
            "lab.yaml:2: `switches.lan.ageing` is `0`; expected a whole number >= 1",
        ),
        ("name: t\nguests: {a: 3}\n", "lab.yaml:2: `guests.a` is `3`, not a mapping; write `key: value` pairs"),
        (
            guest("w: {nics: [{switch: lan, ip: 10.0.0.1/24}]}"),
            "lab.yaml:5: guest `w` has no `kind`; add `kind:` with one of stack, python, netns, traffic",
        ),
        (guest("w: {kind: stak, nics: []}"), "lab.yaml:5: unknown kind `stak`; did you mean `stack`?"),
        (guest("w: {kind: stack, cuont: 3}"), "lab.yaml:5: unknown key `cuont`; did you mean `count`?"),
        (
            guest("w: {kind: traffic, nics: [{switch: lan, model: veneet}]}"),
            "lab.yaml:5: unknown model `veneet`; did you mean `venet`?",
        ),
        (
            guest("w: {kind: traffic, nics: [{switch: lan, trap-cost: 2us}]}"),
            (
                "lab.yaml:5: `trap-cost` with a card without traps, `venet`; leave it out, or use a model that traps: "
                "e1000, rtl8139, virtio-net-mmio, virtio-net-pci"
            ),
        ),
        (
            guest("w: {kind: traffic, nics: [{switch: lan, model: virtio-net-pci, trap-cost: 2ms}]}"),
            "lab.yaml:5: `trap-cost` is 2ms; use 1ms at most",
        ),
        (
            guest("w: {kind: netns, nics: [{switch: lan, model: venet}]}"),
            "lab.yaml:5: `model: venet` in netns guest `w`, whose interfaces are the kernel's own; leave `model` out",
        ),
        (
            guest("w: {kind: traffic, nics: [{switch: lan, pairs: 2}]}"),
            (
                "lab.yaml:5: `pairs` with a card of one pair of queues, `venet`; leave it out, or use a model that has "
                "several: virtio-net, virtio-net-mmio, virtio-net-pci"
            ),
        ),
        (
            guest("w: {kind: traffic, nics: [{switch: lan, model: virtio-net, pairs: 9}]}"),
            "lab.yaml:5: `guests.w.nics[0].pairs` is `9`; expected a whole number <= 8",
        ),
        (
            guest('w: {kind: python, run: "os:getpid", disks: [{image: a, serial: "a number that is too long"}]}'),
            (
                "lab.yaml:5: `guests.w.disks[0].serial` is `a number that is too long`; "
                "use at most 20 printable ASCII characters"
            ),
        ),
        (
            guest('w: {kind: python, run: "os:getpid", disks: [{image: a, serial: 12}]}'),
            "lab.yaml:5: `guests.w.disks[0].serial` is `12`; expected text",
        ),
        *(
            (
                guest(f"w: {{kind: netns, nics: [{{switch: lan, ip: '{ip}'}}]}}"),
                f"lab.yaml:5: `{ip}` is {noun} address; use one that a single card may have",
            )
            for ip, noun in (
                ("224.0.0.4/24", "a multicast"),
                ("ff02::1/64", "a multicast"),
                ("127.0.0.1/8", "a loopback"),
                ("::1/64", "a loopback"),
                ("0.0.0.5/24", "an unspecified"),
                ("255.255.255.254/24", "a reserved"),
            )
        ),
        (
            guest("w: {kind: netns, nics: [{switch: lan, name: lo}]}"),
            "lab.yaml:5: the NIC name `lo` is taken by every namespace; use another name",
        ),
        (
            guest("w: {kind: netns, nics: [{switch: lan, ip: 'fd00::1/64', mtu: 1279}]}"),
            "lab.yaml:5: `mtu` is 1279 with the IPv6 address `fd00::1/64`; use 1280 at least",
        ),
        (
            "name: t\nswitches: {lan: }\nuplinks:\n  - {switch: lan, tap: vb0, ip: 'fd00::1/64', mtu: 68}\n",
            "lab.yaml:4: `mtu` is 68 with the IPv6 address `fd00::1/64`; use 1280 at least",
        ),
        *(
            (
                guest(f"w: {{kind: traffic, nics: [{{switch: lan, model: {model}, mtu: {most + 1}}}]}}"),
                f"lab.yaml:5: `mtu` is {most + 1} with the model `{model}`; use {most} at most",
            )
            for model, most in (("e1000", 16106), ("rtl8139", 1500))
        ),
        (
            guest("w: {kind: netns, nics: [{switch: lan, mtu: 65522}]}"),
            "lab.yaml:5: `mtu` is 65522 in netns guest `w`, whose interfaces are TAPs; use 65521 at most",
        ),
        (
            "name: t\nswitches: {lan: }\nuplinks:\n  - {switch: lan, tap: vb0, mtu: 65522}\n",
            "lab.yaml:4: `uplinks[0].mtu` is `65522`; expected a whole number <= 65521",
        ),
        (guest("w: {kind: stack, nics: [{swich: lan}]}"), "lab.yaml:5: unknown key `swich`; did you mean `switch`?"),
        (guest("w: {kind: python}"), "lab.yaml:5: `run` is missing in `guests.w`; add `run: ...`"),
        (guest("w: {kind: stack}"), "lab.yaml:5: guest `w` has no NIC; add `nics: [{switch: ...}]`"),
        (
            guest("w: {kind: stack, nics: [{switch: lan}]}"),
            "lab.yaml:5: guest `w` has no `ip`; a stack guest needs one, such as `ip: 10.10.0.10/24`",
        ),
        (
            guest("w: {kind: stack, nics: [{switch: lam, ip: 10.0.0.1/24}]}"),
            "lab.yaml:5: unknown switch `lam`; did you mean `lan`?",
        ),
        (
            guest("w: {kind: stack, nics: [{switch: lan, ip: 10.0.0.300/24}]}"),
            (
                "lab.yaml:5: impossible address `10.0.0.300/24` ('10.0.0.300/24' does not appear to be an IPv4 or "
                "IPv6 interface); "
                "write it as 10.10.0.10/24"
            ),
        ),
        (
            guest("w: {kind: stack, nics: [{switch: lan, ip: 10.0.0.1/33}]}"),
            (
                "lab.yaml:5: impossible address `10.0.0.1/33` ('10.0.0.1/33' does not appear to be an IPv4 or IPv6 "
                "interface); "
                "write it as 10.10.0.10/24"
            ),
        ),
        (
            guest("w: {kind: stack, nics: [{switch: lan, ip: 10.0.0.1}]}"),
            "lab.yaml:5: `10.0.0.1` has no prefix length; write `10.0.0.1/24` or what your network has",
        ),
        (
            guest("w: {kind: stack, nics: [{switch: lan, ip: 10.0.0.0/24}]}"),
            (
                "lab.yaml:5: `10.0.0.0/24` is the network's own or broadcast address; use a host address inside "
                "10.0.0.0/24"
            ),
        ),
        (
            guest("w: {kind: stack, count: 10, nics: [{switch: lan, ip: 10.0.0.250/24}]}"),
            (
                "lab.yaml:5: 10 addresses from `10.0.0.250/24` do not fit, there is room for 5; "
                "lower `count`, start lower, or widen the prefix"
            ),
        ),
        (
            guest("w: {kind: stack, nics: [{switch: lan, ip: 'fd00::1/64'}]}"),
            "lab.yaml:5: `fd00::1/64` is IPv6; stack guests speak IPv4; use a netns guest for IPv6",
        ),
        (
            guest("w: {kind: traffic, nics: [{switch: lan, mac: 02:00:00:00:00}]}"),
            "lab.yaml:5: impossible MAC address `02:00:00:00:00`; write it as 02:00:00:00:00:0a",
        ),
        (
            guest("w: {kind: traffic, nics: [{switch: lan, mac: 01:00:5e:00:00:01}]}"),
            "lab.yaml:5: `01:00:5e:00:00:01` is not a station's address; use an even first octet, such as 02",
        ),
        (
            guest("w: {kind: traffic, count: 2, nics: [{switch: lan, mac: 02:00:00:00:00:01}]}"),
            "lab.yaml:5: `02:00:00:00:00:01` would be given to 2 guests; leave `mac` out to derive them",
        ),
        (
            guest("w: {kind: traffic, nics: [{switch: lan, mtu: 67}]}"),
            "lab.yaml:5: `guests.w.nics[0].mtu` is `67`; expected a whole number >= 68",
        ),
        (
            guest("w: {kind: traffic, nics: [{switch: lan, mtu: 65536}]}"),
            "lab.yaml:5: `guests.w.nics[0].mtu` is `65536`; expected a whole number <= 65535",
        ),
        (
            guest("w: {kind: traffic, count: 0, nics: [{switch: lan}]}"),
            "lab.yaml:5: `guests.w.count` is `0`; expected a whole number >= 1",
        ),
        (
            guest("w: {kind: traffic, restart: sometimes, nics: [{switch: lan}]}"),
            "lab.yaml:5: `guests.w.restart` is `sometimes`; invalid enum value 'sometimes'",
        ),
        (
            guest("w: {kind: traffic, ram: lots, nics: [{switch: lan}]}"),
            "lab.yaml:5: `ram` is `lots`; expected a size such as 16MiB",
        ),
        (
            guest("w: {kind: traffic, ram: 1GB2, nics: [{switch: lan}]}"),
            "lab.yaml:5: `ram` is `1GB2`; expected a size such as 16MiB",
        ),
        (guest("w: {kind: traffic, ram: 8GiB, nics: [{switch: lan}]}"), "lab.yaml:5: `ram` is 8GiB; use 64KiB to 4GiB"),
        (
            guest("w: {kind: stack, nics: [{switch: lan, ip: 10.0.0.1/24}, {switch: lan, ip: 10.0.0.2/24}]}"),
            "lab.yaml:5: guest `w` has 2 NICs; this kind has exactly one",
        ),
        (
            guest("w: {kind: netns, nics: [{switch: lan, name: eth1}, {switch: lan}]}"),
            "lab.yaml:5: duplicate NIC name `eth1` in `w`; name each NIC differently",
        ),
        (
            guest("host: {kind: netns, nics: [{switch: lan}]}"),
            "lab.yaml:5: the guest name `host` is taken by the lab itself; use another name",
        ),
        (
            guest("w: {kind: python, run: main}"),
            "lab.yaml:5: `run` is `main`; write `file.py:function` or `module:function`",
        ),
        (
            guest("w: {kind: traffic, nics: [{switch: lan}], send: {to: nobody}}"),
            "lab.yaml:5: unknown guest `nobody`; add it",
        ),
        (
            guest("w: {kind: traffic, nics: [{switch: lan}], send: {to: w}}"),
            "lab.yaml:5: `w` would send to itself; name another guest",
        ),
        (
            guest("w: {kind: netns, nics: [{switch: lan, ip: 10.0.0.2/24, gateway: 10.1.0.1}]}"),
            "lab.yaml:5: `10.1.0.1` is not inside the NIC's network 10.0.0.0/24; use a neighbour on that network",
        ),
        (
            guest("w: {kind: netns, nics: [{switch: lan, gateway: 10.1.0.1}]}"),
            "lab.yaml:5: a route through `10.1.0.1` on a NIC without `ip`; give the NIC an `ip`",
        ),
        (
            guest("w: {kind: netns, nics: [{switch: lan, ip: 10.0.0.2/24, routes: {10.2.0.1/16: 10.0.0.1}}]}"),
            "lab.yaml:5: impossible network `10.2.0.1/16` (10.2.0.1/16 has host bits set); write it as 10.20.0.0/16",
        ),
        (
            guest("w: {kind: netns, count: 2, bus: b, nics: [{switch: lan}]}"),
            "lab.yaml:5: `bus: b` would be shared by 2 guests; leave `bus` out",
        ),
        (
            "name: t\nguests:\n  a: {kind: netns, nics: [{switch: lan}]}\n",
            "lab.yaml:3: unknown switch `lan`; declare it: `switches: {lan: {}}`",
        ),
        (
            "name: t\nswitches: {lan: }\nuplinks:\n  - {switch: lan, tap: a-name-that-is-too-long}\n",
            (
                "lab.yaml:4: `uplinks[0].tap` is `a-name-that-is-too-long`; use at most 15 letters, digits, `_`, `.` "
                "or `-`"
            ),
        ),
        (
            "name: t\nswitches: {lan: }\nuplinks: {switch: lan}\n",
            "lab.yaml:3: `uplinks` is not a list; write `- {switch: ..., tap: ...}` entries",
        ),
    ],
)
def test_each_mistake_is_one_message_with_its_line(text: str, message: str) -> None:
    """What is wrong is said with file, line, value and what to do, and nothing else is blamed."""
    said = problems(text)

    assert len(said) == 1
    assert said[0].startswith(message)


def test_all_mistakes_of_a_file_are_told_at_once_in_order() -> None:
    """An author fixes a file once, not once a mistake."""
    text = f"{HEAD}  a: {{kind: python}}\n  b: {{kind: stack, nics: [{{switch: lan, ip: x}}]}}\n  c: {{kind: what}}\n"

    said = problems(text)

    assert [line.split(": ")[0] for line in said] == ["lab.yaml:5", "lab.yaml:7"]


def test_names_given_twice_are_told_with_both_lines() -> None:
    """YAML itself would silently keep the last one."""
    text = f"{HEAD}  a: {{kind: netns, nics: [{{switch: lan}}]}}\n  a: {{kind: netns, nics: [{{switch: lan}}]}}\n"

    assert problems(text) == ["lab.yaml:6: duplicate name `a`, first on line 5; rename or remove one"]


def test_names_that_counting_makes_twice_are_told() -> None:
    """``a`` with count 2 stands for a-0 and a-1, so another a-1 is a duplicate."""
    nics = "nics: [{switch: lan}]"
    text = f"{HEAD}  a: {{kind: traffic, count: 2, {nics}}}\n  a-1: {{kind: traffic, {nics}}}\n"

    assert "lab.yaml:6: duplicate guest name `a-1`, also made on line 5; rename one of the two" in problems(text)


def test_addresses_that_counting_makes_twice_are_told() -> None:
    """Two ranges on one switch may not meet; both owners and the other's line are named."""
    text = (
        f"{HEAD}  a: {{kind: stack, count: 3, nics: [{{switch: lan, ip: 10.0.0.1/24}}]}}\n"
        "  b: {kind: netns, nics: [{switch: lan, ip: 10.0.0.3/24}]}\n"
    )

    assert problems(text) == ["lab.yaml:6: 10.0.0.3 of `b` is also the address of `a-2` on line 5; move one range"]


def test_an_uplink_may_not_take_a_guests_address() -> None:
    """Uplinks are on the same network as guests."""
    text = (
        f"{HEAD}  a: {{kind: stack, nics: [{{switch: lan, ip: 10.0.0.1/24}}]}}\n"
        "uplinks:\n  - {switch: lan, tap: vb0, ip: 10.0.0.1/24}\n"
    )

    assert problems(text) == [
        "lab.yaml:7: 10.0.0.1 of `uplink vb0` is also the address of `a` on line 5; move one range"
    ]


@pytest.mark.parametrize(
    ("ports", "said"),
    [
        ("  vm: {switch: wan}\n", "7: unknown switch `wan`; did you mean `lan`?"),
        ("  vm: {switch: lan, sock: x}\n", "7: unknown key `sock`; did you mean `socket`?"),
        (
            "  vm: {switch: lan, connect: true}\n",
            "7: `connect` without a path; say where the other end listens: `socket`",
        ),
        (
            "  vm: {switch: lan, front-end: true}\n",
            "7: `front-end` without a path; say where the other end listens: `socket`",
        ),
        (
            "  vm: {switch: lan, socket: /x, front-end: true, mac: '02:00:00:00:00:09'}\n",
            "7: a front end has the addresses of those behind it, and none of its own; leave `mac` out",
        ),
        ("  VM: {switch: lan}\n", "7: impossible vhost-user name `VM`; use lower-case letters, digits and hyphens"),
        ("  a: {switch: lan}\n", "7: duplicate name `a`, also on line 5; rename one of the two"),
        ("  vm: {switch: lan, mac: '01:00:00:00:00:01'}\n", "7: `01:00:00:00:00:01` is not a station's address"),
        ("  vm: {switch: lan, mac: '02:00:00:00:00:01'}\n", "7: `02:00:00:00:00:01` is also the MAC of `a` on line 5"),
        (f"  vm: {{switch: lan, socket: {'x' * 120}}}\n", "7: the path /"),
        (
            "  vm: {switch: lan, socket: a.sock}\n  wm: {switch: lan, socket: ./a.sock}\n",
            "8: duplicate socket `./a.sock`, first on line 7",
        ),
    ],
    ids=[
        "switch",
        "key",
        "no path",
        "front end without a path",
        "front end's MAC",
        "name",
        "guest's name",
        "group's MAC",
        "guest's MAC",
        "long path",
        "same path",
    ],
)
def test_a_socket_for_front_ends_that_cannot_be_is_told(ports: str, said: str) -> None:
    """Switches exist, names, addresses and paths are one port's each."""
    text = f"{HEAD}  a: {{kind: python, run: 'os:getpid', nics: [{{switch: lan, mac: '02:00:00:00:00:01'}}]}}\n"

    found = problems(f"{text}vhost-user:\n{ports}")

    assert [True] == [problem.startswith(f"lab.yaml:{said}") for problem in found], found


@pytest.mark.parametrize(
    ("guests", "said"),
    [
        ("  a: {kind: python, run: 'os:getpid', disks: [{imag: x}]}\n", "5: unknown key `imag`; did you mean `image`?"),
        (
            "  a: {kind: python, run: 'os:getpid', count: 2, disks: [{image: x}]}\n",
            "5: `x` would be written to by 2 guests; add `readonly: true`, or leave `count` out",
        ),
        (
            "  a: {kind: python, run: 'os:getpid', disks: [{image: x}, {image: ./x, readonly: true}]}\n",
            "5: `./x` is a disk on line 5 too, and one of the two is written to",
        ),
        (
            "  a: {kind: python, run: 'os:getpid', disks: [{image: x}, {image: y, name: disk0}]}\n",
            "5: duplicate name `disk0` in `a`; name each disk differently",
        ),
    ],
    ids=["key", "count", "same file", "same name"],
)
def test_disks_that_cannot_be_are_told(guests: str, said: str) -> None:
    """A file that is written to is one guest's, and each disk of a guest has a name of its own."""
    found = problems(f"{HEAD}{guests}")

    assert [True] == [problem.startswith(f"lab.yaml:{said}") for problem in found], found


def test_a_tap_given_twice_is_told() -> None:
    """One TAP is one port."""
    text = "name: t\nswitches: {lan: }\nuplinks:\n  - {switch: lan, tap: vb0}\n  - {switch: lan, tap: vb0}\n"

    assert problems(text) == ["lab.yaml:5: duplicate TAP `vb0`, first on line 4; use another name"]


def test_a_fixed_mac_given_twice_is_told() -> None:
    """Two stations with one address make a switch flap."""
    nic = "{switch: lan, mac: 02:00:00:00:00:01}"
    text = f"{HEAD}  a: {{kind: traffic, nics: [{nic}]}}\n  b: {{kind: traffic, nics: [{nic}]}}\n"

    assert problems(text) == ["lab.yaml:6: `02:00:00:00:00:01` is also the MAC of `a` on line 5; change one of the two"]


def test_the_same_address_on_two_switches_is_fine() -> None:
    """Switches are separate networks."""
    lab = parsed(
        "name: t\nswitches: {a: , b: }\nguests:\n"
        "  x: {kind: stack, nics: [{switch: a, ip: 10.0.0.1/24}]}\n"
        "  y: {kind: stack, nics: [{switch: b, ip: 10.0.0.1/24}]}\n"
    )

    assert list(lab.topology.guests) == ["x", "y"]


def test_a_missing_python_file_is_told_with_the_folder_it_was_looked_for_in(tmp_path: Path) -> None:
    """Paths count from the lab file's folder, not from where the command runs."""
    file = tmp_path / "lab.yaml"
    file.write_text("name: t\nguests:\n  p: {kind: python, run: 'no/such.py:main'}\n", encoding="utf-8")

    with pytest.raises(TopologyError) as caught:
        load_topology(file)

    expected = f"{file}:3: there is no file `no/such.py`; paths count from the lab file's folder ({tmp_path / 'no'})"
    assert expected == str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: t\n  x: : y\n", "lab.yaml:2: this is not YAML"),
        ("- a\n- b\n", "lab.yaml:1: the file is not a mapping"),
        ("", "lab.yaml:1: the file is not a mapping"),
        (
            "name: !!python/object:os.system t\n",
            "lab.yaml:1: the tag `tag:yaml.org,2002:python/object:os.system` means nothing here",
        ),
        ("name: t\n? [a]\n: b\n", "lab.yaml:2: a key is not a plain word"),
        ("x-a: &a [1]\nname: t\nx-b: {<<: *a}\n", "lab.yaml:3: `<<` does not name a mapping"),
        ("name: t\nx-a: &a [*a]\n", "lab.yaml:"),
        ("name: t\x00\n", "lab.yaml:1: this is not YAML"),
        ("name: t\nx: *unknown\n", "lab.yaml:2: this is not YAML"),
        ("x-a: " + "[" * 2000, "lab.yaml:"),
    ],
)
def test_text_that_is_no_lab_is_told_with_its_line(text: str, message: str) -> None:
    """Whatever the bytes are, the answer is a message, not a traceback."""
    assert problems(text)[0].startswith(message)


def test_aliases_that_multiply_are_refused() -> None:
    """A file of a few hundred bytes may not become gigabytes."""
    lines = ["name: t", "x-0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"x-{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 10)]

    said = problems("\n".join(lines))

    assert "repeats itself without end" in said[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe", "the file is not UTF-8 text"), (b"#" * (2 << 20), "the file is longer than 1 MiB")],
)
def test_bytes_that_are_no_text_are_told(tmp_path: Path, content: bytes, message: str) -> None:
    """Size and encoding are checked before the parser sees anything."""
    file = tmp_path / "lab.yaml"
    file.write_bytes(content)

    with pytest.raises(TopologyError, match=message):
        load_topology(file)


def test_an_unreadable_file_is_told(tmp_path: Path) -> None:
    """A wrong path is the most common mistake of all."""
    with pytest.raises(TopologyError, match=r"none\.yaml:1: cannot read the file"):
        load_topology(tmp_path / "none.yaml")


def test_variables_are_replaced_from_the_environment() -> None:
    """``${NAME}`` needs the variable, ``${NAME:-default}`` does not, and plain numbers stay numbers."""
    text = f"{HEAD}  a: {{kind: stack, count: '${{N:-2}}', nics: [{{switch: '${{S}}', ip: '10.0.${{X:-0}}.1/24'}}]}}\n"

    found = parsed(text, S="lan", N="3").topology.guests["a"]

    assert (found.count, found.nics[0].switch, found.nics[0].ip) == (3, "lan", "10.0.0.1/24")


def test_nothing_in_quotes_is_an_empty_text() -> None:
    """Written so, or left by a variable."""
    text = f"{HEAD}  a: {{kind: python, run: 'os:getpid', env: {{ONE: '', TWO: '${{NOT_THERE:-}}'}}}}\n"

    guest = parsed(text).topology.guests["a"]

    assert isinstance(guest, PythonGuest)
    assert {"ONE": "", "TWO": ""} == guest.env


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("${NOT_THERE}", "lab.yaml:1: the variable `NOT_THERE` is not set; set it, or write ${NOT_THERE:-default}"),
        ("'${NOT THERE}'", "lab.yaml:1: `${NOT THERE}` has an unfinished `${`"),
        ("'${'", "lab.yaml:1: `${` has an unfinished `${`"),
    ],
)
def test_a_variable_that_cannot_be_replaced_is_told(value: str, message: str) -> None:
    """An empty name where a value should be would be worse than an error."""
    assert problems(f"name: {value}\n")[0].startswith(message)


def test_words_that_old_yaml_takes_for_something_else_stay_words() -> None:
    """``no`` is a restart policy, and 52:54:00:12:34:56 an address, not a number to the base of sixty."""
    lab = parsed(guest("a: {kind: traffic, restart: no, nics: [{switch: lan, mac: 52:54:00:12:34:56}]}"))

    found = lab.topology.guests["a"]

    assert (found.restart, found.nics[0].mac) == ("no", "52:54:00:12:34:56")


def test_anchors_share_what_guests_have_in_common() -> None:
    """Keys that begin with x- are the author's own, a place for anchors."""
    lab = parsed(
        "x-common: &common {kind: traffic, restart: always, nics: [{switch: lan}]}\n"
        "name: t\nswitches: {lan: }\nguests:\n  a: {<<: *common}\n  b: {<<: *common, restart: no}\n"
    )

    assert [found.restart for found in lab.topology.guests.values()] == ["always", "no"]


def test_count_makes_numbered_guests() -> None:
    """Without ``count`` a guest keeps its name, with it even a single one is numbered."""
    lab = parsed(
        f"{HEAD}  a: {{kind: traffic, nics: [{{switch: lan}}]}}\n  b: {{kind: traffic, count: 2, nics: [{{switch: "
        f"lan}}]}}\n"
    )

    names = [full for name, found in lab.topology.guests.items() for full in guest_names(name, found)]

    assert names == ["a", "b-0", "b-1"]


def test_addresses_count_up() -> None:
    """The third guest of a range has the range's third address, in the same network."""
    assert address_at("10.0.0.255/16", 2) == "10.0.1.1/16"


def test_a_derived_mac_is_stable_local_and_unicast() -> None:
    """The same names give the same address in every run, and it is never a vendor's or a group's."""
    mac = derive_mac("demo", "web-0", "eth0")

    assert mac == derive_mac("demo", "web-0", "eth0") != derive_mac("demo", "web-1", "eth0")
    assert int(mac[:2], 16) & 0x03 == 0x02


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("{type: intk}", "lab.yaml:5: unknown device type `intk`; did you mean `intc`?"),
        ("{type: venet}", "lab.yaml:5: `venet` is a network interface; write it under the guest's `nics`"),
        ("{tipe: intc}", "lab.yaml:5: unknown key `tipe`; did you mean `type`?"),
        ("{attributes: {}}", "lab.yaml:5: `type` is missing in `devices.irq`; add `type: ...`"),
        ("3", "lab.yaml:5: `devices.irq` is `3`, not a mapping; write `key: value` pairs"),
        ("{type: intc, attributes: {vcpu: 2}}", "lab.yaml:5: unknown attribute `vcpu`; did you mean `vcpus`?"),
        (
            "{type: intc, attributes: {vcpus: 65}}",
            "lab.yaml:5: `vcpus` is `65`; '65' is no value for 'vcpus': allowed are 1..64",
        ),
        ("{type: intc, guests: [ap]}", "lab.yaml:5: unknown guest `ap`; did you mean `app`?"),
        ("{type: intc, guests: [app-2]}", "lab.yaml:5: unknown guest `app-2`; did you mean `app-1`?"),
        (
            "{type: intc, guests: [sink]}",
            "lab.yaml:5: guest `sink` uses no devices but its NICs; name python guests only",
        ),
    ],
)
def test_a_device_that_cannot_be_is_one_line(device: str, message: str) -> None:
    """Its class is asked before anything starts: type, attributes with their values, and who gets it."""
    found = problems(
        "name: t\nswitches: {lan: }\nguests: {app: {kind: python, run: 'os:getpid', count: 2}, "
        f"sink: {{kind: traffic, nics: [{{switch: lan}}]}}}}\ndevices:\n  irq: {device}\n"
    )

    assert [message] == found


@pytest.mark.parametrize(
    ("guests", "expected"),
    [
        ("", ["app-0", "app-1", "db"]),
        (", guests: []", []),
        (", guests: [app]", ["app-0", "app-1"]),
        (", guests: [db, app-1]", ["app-1", "db"]),
    ],
)
def test_a_device_is_given_to_the_guests_that_are_named(guests: str, expected: list[str]) -> None:
    """Left out: every Python guest. An entry with a count stands for all of its guests."""
    topology = parsed(
        "name: t\nswitches: {lan: }\nguests: {app: {kind: python, run: 'os:getpid', count: 2}, "
        "db: {kind: python, run: 'os:getpid'}, sink: {kind: traffic, nics: [{switch: lan}]}}\n"
        f"devices: {{irq: {{type: intc{guests}}}}}\n"
    ).topology

    assert expected == device_guests(topology, topology.devices["irq"])


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("def main(guest): ...", ""),
        ("async def main(guest): ...", ""),
        ("main = print", ""),
        ("from os import getpid as main", ""),
        ("import os.path as main", ""),
        ("from os import *", ""),
        ("if True:\n    def main(guest): ...", ""),
        ("globals()['main'] = print", ""),
        ("def __getattr__(name): ...", ""),
        ("def mian(guest): ...", "lab.yaml:2: `boom.py` has no function `main`; did you mean `mian`?"),
        ("'main'", "lab.yaml:2: `boom.py` has no function `main`; name one that it has"),
        ("\ndef main(guest:", "lab.yaml:2: `boom.py` is no Python: '(' was never closed (its line 2); mend it"),
    ],
)
def test_function_that_a_file_cannot_have_is_told_before_anything_starts(
    tmp_path: Path, program: str, said: str
) -> None:
    """The file is read and not run; what it may make as it runs is given the benefit of the doubt."""
    (tmp_path / "boom.py").write_text(program, encoding="utf-8")
    (tmp_path / "lab.yaml").write_text("name: t\nguests: {a: {kind: python, run: 'boom.py:main'}}\n", encoding="utf-8")
    found = ""

    try:
        load_topology(tmp_path / "lab.yaml", {})
    except TopologyError as error:
        found = str(error).removeprefix(f"{tmp_path}/")

    assert said == found


def test_switches_that_are_not_there_are_told_beside_other_mistakes() -> None:
    """One run tells all of them, wherever a switch is named, and whatever else is wrong with the file."""
    said = problems(
        "name: t\nswitches: {lan: }\nguests:\n  a: {kind: stak, nics: [{switch: lam}]}\n"
        "uplinks:\n  - {switch: wan, tap: vb0, mtu: 1}\nvhost-user: {vm: {switch: lann}, ok: {switch: lan}}\n"
    )

    assert {
        "lab.yaml:4: unknown kind `stak`; did you mean `stack`?",
        "lab.yaml:4: unknown switch `lam`; did you mean `lan`?",
        "lab.yaml:6: `uplinks[0].mtu` is `1`; expected a whole number >= 68",
        "lab.yaml:6: unknown switch `wan`; did you mean `lan`?",
        "lab.yaml:7: unknown switch `lann`; did you mean `lan`?",
    } == set(said)
