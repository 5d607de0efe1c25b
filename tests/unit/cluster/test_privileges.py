"""What a machine does not allow is told before anything is started, with the line that wants it."""

import errno
import os
from pathlib import Path

import pytest

from vbnet.cluster import privileges
from vbnet.cluster.privileges import Obstacle, Privileges, check_privileges, examine, tun_obstacle
from vbnet.cluster.source import TopologyError
from vbnet.cluster.topology import parse_topology

LAB = """name: t
switches: {lan: }
guests:
  ns: {kind: netns, nics: [{switch: lan}]}
uplinks:
  - {switch: lan, tap: vbnope0, ip: 10.0.0.1/24}
"""


def refused(found: Privileges) -> list[str]:
    """Return the messages for a machine that allows no more than this."""
    with pytest.raises(TopologyError) as caught:
        check_privileges(parse_topology(LAB, "lab.yaml", {}), found)
    return str(caught.value).splitlines()


def test_a_machine_that_allows_nothing_refuses_each_with_its_line() -> None:
    """Both the namespace and the uplink are named, in the order of the file."""
    said = refused(Privileges(has_net_admin=False, has_namespaces=False))

    assert "lab.yaml:4: guest `ns` needs a network namespace; run as root, or allow user namespaces" in said[0]
    assert "lab.yaml:6: uplink `vbnope0` needs the right to make network interfaces; run as root" in said[1]


def test_a_machine_without_tap_devices_says_so() -> None:
    """Containers often lack the device."""
    said = refused(Privileges(has_net_admin=True, has_namespaces=True, tun=Obstacle("is not there", "load `tun`")))

    assert [
        "lab.yaml:4: guest `ns` needs /dev/net/tun, which is not there; load `tun`",
        "lab.yaml:6: uplink `vbnope0` needs /dev/net/tun, which is not there; load `tun`",
    ] == said


def test_a_tap_device_that_is_not_there_wants_its_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing to open is told apart from not being allowed to."""
    monkeypatch.setattr(privileges, "TUN_DEVICE", tmp_path / "tun")

    found = tun_obstacle()

    assert found is not None
    assert ("is not there", "load the `tun` module") == (found.what, found.fix.partition(":")[0])


@pytest.mark.parametrize(
    ("number", "what", "fix"),
    [
        (errno.EACCES, "may not be opened by this user (mode 0600)", "ask root for: chmod 0666 "),
        (errno.EPERM, "is closed to this container by its device rules", "run the container with --device "),
        (errno.ENODEV, "cannot be opened: No such device", "load the `tun` module: modprobe tun"),
    ],
)
def test_what_the_kernel_says_of_the_tap_device_leads_to_what_helps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, what: str, fix: str
) -> None:
    """Each refusal has its own cure."""
    device = tmp_path / "tun"
    device.touch(0o600)

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(privileges, "TUN_DEVICE", device)
    monkeypatch.setattr("os.open", refuse)

    found = tun_obstacle()

    assert found is not None
    assert (what, fix) == (found.what, found.fix.removesuffix(str(device)))


def test_an_interface_that_is_no_tap_is_no_uplink() -> None:
    """The loopback of the machine is not vbnet's to take."""
    lab = parse_topology(LAB.replace("vbnope0", "lo"), "lab.yaml", {})

    with pytest.raises(TopologyError, match=r"lab\.yaml:6: `lo` is a network interface of this machine, but no TAP"):
        check_privileges(lab, Privileges(has_net_admin=True, has_namespaces=True))


def test_a_lab_that_needs_no_privileges_needs_none() -> None:
    """Python, stack and traffic guests run anywhere."""
    lab = parse_topology("name: t\nswitches: {lan: }\nguests:\n  a: {kind: traffic, nics: [{switch: lan}]}\n")

    check_privileges(lab, Privileges(has_net_admin=False, has_namespaces=False, tun=Obstacle("is not there", "")))


def test_the_machine_can_be_examined() -> None:
    """Looking has no side effects and always answers."""
    assert isinstance(examine(), Privileges)
