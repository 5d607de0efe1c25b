"""Whether a device of a lab file can be: asked of its class, which the host node would ask later.

A device is made, given its attributes and let go of, in this process and plugged nowhere, so that a wrong value is a
line of the lab file before anything starts. Nothing is kept of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vbnet.clock import MonotonicClock
from vbnet.cluster.topology import attribute_text, nic_classes
from vbnet.errors import NotFoundError, VbnetError, did_you_mean
from vbnet.hostnode.device import Device, HostServices
from vbnet.hostnode.registry import ClassRegistry
from vbnet.hostnode.signals import SignalBook
from vbnet.testing.log import ListLog


def check_device(
    name: str, type_: str, attributes: Mapping[str, str | int | float | bool]
) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Yield what is wrong with a device: the key below it, what, and what to do."""
    registry = ClassRegistry()
    nics = nic_classes()
    if type_ in nics:
        yield ("type",), f"`{type_}` is a network interface", "write it under the guest's `nics`"
        return
    if type_ not in registry.names():
        known = [known for known in registry.names() if known not in nics]
        yield ("type",), f"unknown device type `{type_}`", did_you_mean(type_, known, otherwise=_one_of(known))
        return
    signals = SignalBook()
    services = HostServices(MonotonicClock(), ListLog(), lambda _topic, **_fields: None, signals=signals)
    try:
        device = registry.find(type_).create(services, name)
    except VbnetError as error:
        yield ("type",), f"no `{type_}` can be made", str(error)
        return
    try:
        yield from _attributes(device, attributes)
    finally:
        device.release()
        signals.close()


def _attributes(
    device: Device, attributes: Mapping[str, str | int | float | bool]
) -> Iterator[tuple[tuple[str, ...], str, str]]:
    known = list(device.attributes.texts())
    for key, value in attributes.items():
        try:
            device.attributes.set_text(key, attribute_text(value), is_open=False)
        except NotFoundError:
            yield ("attributes", key), f"unknown attribute `{key}`", did_you_mean(key, known, otherwise=_one_of(known))
        except VbnetError as error:
            yield ("attributes", key), f"`{key}` is `{value}`", str(error)


def _one_of(known: list[str]) -> str:
    return f"there are: {', '.join(known) or 'none'}"
