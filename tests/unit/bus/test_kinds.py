"""Discovery of device kinds."""

import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from vbnet.bus import kinds
from vbnet.bus.kinds import Catalogue, Kind, NicModel, discover, load
from vbnet.errors import ExistsError, NotFoundError, UsageError
from vbnet.guestnode.driver import Driver
from vbnet.guestnode.nic import NicDriverClass
from vbnet.hostnode.device import DeviceClass
from vbnet.metric import MetricBlock


def kind(
    name: str, *, classes: tuple[str, ...] = (), drivers: tuple[str, ...] = (), nics: tuple[str, ...] = ()
) -> Kind:
    """A kind of nothing."""
    models = {model: NicModel(model, model) for model in nics}
    return Kind(name, dict.fromkeys(classes, "m:o"), dict.fromkeys(drivers, "m:o"), nics=models)


@pytest.mark.parametrize(
    "second",
    [kind("a"), kind("b", classes=("x",)), kind("b", drivers=("y",)), kind("b", nics=("z",))],
    ids=["same kind", "same class", "same driver", "same model"],
)
def test_two_of_one_name_are_refused(second: Kind) -> None:
    """Nothing is shadowed silently."""
    with pytest.raises(ExistsError):
        Catalogue.of([kind("a", classes=("x",), drivers=("y",), nics=("z",)), second])


def test_every_kind_here_names_things_that_exist() -> None:
    """Both halves and the metrics of each folder load and are what they claim."""
    for found in discover().kinds.values():
        for name, path in found.classes.items():
            made = load(path)()  # type: ignore[operator]
            assert isinstance(made, DeviceClass)
            assert name == made.name
        for abi_type, path in found.drivers.items():
            driver = load(path)()  # type: ignore[operator]
            assert isinstance(driver, Driver)
            assert abi_type == driver.abi_type
        if found.metrics is not None:
            assert all(isinstance(block, MetricBlock) for block in load(found.metrics))  # type: ignore[attr-defined]


def test_every_model_of_nic_is_of_a_class_and_driven() -> None:
    """A lab's `model` leads to a class that a switch can be set for, and to a driver that says what memory it needs."""
    catalogue = discover()

    for name, model in catalogue.nics.items():
        assert model.device_class in catalogue.classes, name
        driver: NicDriverClass = load(catalogue.drivers[model.abi_type])  # type: ignore[assignment]
        assert model.abi_type == driver(slots=64).abi_type
        assert 0 < driver.ram_bytes(576, 64) <= driver.ram_bytes(1500, 64)


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package that offers a kind through the entry-point group."""
    module = ModuleType("outside_kind")
    module.KIND = kind("outside", classes=("outer",))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "outside_kind", module)
    entry = EntryPoint("outside", "outside_kind:KIND", kinds.ENTRY_POINT_GROUP)
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda group: [entry] if group == kinds.ENTRY_POINT_GROUP else []
    )
    return "outside"


def test_installed_packages_offer_kinds_through_the_same_door(outside: str) -> None:
    """An entry point is as good as a folder."""
    assert outside in discover().kinds
    assert outside not in discover(with_entry_points=False).kinds


@pytest.mark.parametrize(
    ("path", "error"), [("no colon", UsageError), ("no.such:x", NotFoundError), ("sys:nothing", NotFoundError)]
)
def test_a_path_that_leads_nowhere_is_refused(path: str, error: type[Exception]) -> None:
    """The author of the kind learns what is wrong."""
    with pytest.raises(error):
        load(path)
