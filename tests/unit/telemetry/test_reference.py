"""docs/metrics.md is what the declarations say."""

from pathlib import Path

from vbnet.bus.kinds import discover
from vbnet.telemetry.catalogue import known
from vbnet.telemetry.own import OWN
from vbnet.telemetry.reference import render

PAGE = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_the_page_is_fresh() -> None:
    """Regenerate it with: python -m vbnet.telemetry.reference > docs/metrics.md."""
    assert render() == PAGE


def test_every_family_has_a_row() -> None:
    """And every kind of block says how many of it there may be."""
    catalogue = known(discover(with_entry_points=False)).metrics

    missing = [name for name in [*catalogue.families, *(own.name for own in OWN)] if f"| `{name}` |" not in PAGE]
    assert [] == missing
    assert ". Labels:" in PAGE
    assert "\n. Labels:" not in PAGE
