"""What a machine does not allow is told before anything is started, with the line that wants it."""

import pytest

from vbnet.cluster.privileges import Privileges, check_privileges, examine
from vbnet.cluster.source import TopologyError
from vbnet.cluster.topology import parse_topology

LAB = """name: t
switches: {lan: }
guests:
  ns: {kind: netns, nics: [{switch: lan}]}
uplinks:
  - {switch: lan, tap: vbnope0, ip: 10.0.0.1/24}
"""


def refused(privileges: Privileges) -> list[str]:
    """Return the messages for a machine that allows no more than this."""
    with pytest.raises(TopologyError) as caught:
        check_privileges(parse_topology(LAB, "lab.yaml", {}), privileges)
    return str(caught.value).splitlines()


def test_a_machine_that_allows_nothing_refuses_each_with_its_line() -> None:
    """Both the namespace and the uplink are named, in the order of the file."""
    said = refused(Privileges(has_net_admin=False, has_namespaces=False, has_tun=True))

    assert "lab.yaml:4: guest `ns` needs a network namespace; run as root, or allow user namespaces" in said[0]
    assert "lab.yaml:6: uplink `vbnope0` needs the right to make network interfaces; run as root" in said[1]


def test_a_machine_without_tap_devices_says_so() -> None:
    """Containers often lack the device."""
    said = refused(Privileges(has_net_admin=True, has_namespaces=True, has_tun=False))

    assert ["lab.yaml:4", "lab.yaml:6"] == [line.split(": ")[0] for line in said]
    assert all("needs /dev/net/tun" in line for line in said)


def test_an_interface_that_is_no_tap_is_no_uplink() -> None:
    """The loopback of the machine is not vbnet's to take."""
    lab = parse_topology(LAB.replace("vbnope0", "lo"), "lab.yaml", {})

    with pytest.raises(TopologyError, match=r"lab\.yaml:6: `lo` is a network interface of this machine, but no TAP"):
        check_privileges(lab, Privileges(has_net_admin=True, has_namespaces=True, has_tun=True))


def test_a_lab_that_needs_no_privileges_needs_none() -> None:
    """Python, stack and traffic guests run anywhere."""
    lab = parse_topology("name: t\nswitches: {lan: }\nguests:\n  a: {kind: traffic, nics: [{switch: lan}]}\n")

    check_privileges(lab, Privileges(has_net_admin=False, has_namespaces=False, has_tun=False))


def test_the_machine_can_be_examined() -> None:
    """Looking has no side effects and always answers."""
    assert isinstance(examine(), Privileges)
