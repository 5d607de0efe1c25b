"""What an operator may change of a port that belongs to no guest's device: of a TAP, of a socket for front ends.

Ports of guests' cards are set through the attributes of their devices, under the same names.
"""

from __future__ import annotations

from typing import Final

from vbnet.errors import NotFoundError, UsageError
from vbnet.hostnode.device import AttributeTable
from vbnet.hostnode.fabric import Fabric
from vbnet.hostnode.nics import ENABLED, TURN_PARAMETERS, turn_attributes

__all__ = ["set_port"]

_OWN_KINDS: Final = ("tap", "vhost-user", "front-end")


def set_port(fabric: Fabric, number: int, attribute: str, text: str) -> str:
    """Change one attribute of a running port; gives the port's name.

    Args:
        fabric: where the port is.
        number: of the port.
        attribute: ``burstthresh``, ``budget``, ``hold`` or ``enabled``.
        text: its value, as for a card's attribute of that name.

    Raises:
        NotFoundError: there is no such port, or it has no such attribute.
        UsageError: no such value is allowed, or the port is that of a guest's device.
    """
    port = next((port for port in fabric.ports() if port["id"] == number), None)
    if port is None:
        raise NotFoundError(f"there is no port {number}; `vbnet port list` has all", port=number)
    if port["kind"] not in _OWN_KINDS:
        raise UsageError(
            f"port {number} ({port['name']}) is that of a guest's device; set the attribute there (`vbnet device set`)",
            port=number,
        )
    parameters = TURN_PARAMETERS | {ENABLED.name: "link"}
    AttributeTable(
        (*turn_attributes(), ENABLED),
        lambda name, value: fabric.port_set(number, parameters[name], str(int(value))),
    ).set_text(attribute, text, is_open=False)
    return str(port["name"])
