"""Amounts in a lab file mean what a reader takes them for, and nothing else is an amount."""

import pytest

from vbnet.cluster.quantity import duration_s, length_bytes, rate_per_second


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (length_bytes("16MiB"), 16 << 20),
        (length_bytes("64kB"), 64_000),
        (length_bytes(4096), 4096),
        (rate_per_second("10k"), 10_000),
        (rate_per_second("1.5M"), 1_500_000),
        (duration_s("200ms"), 0.2),
        (duration_s("5m"), 300),
        (duration_s(2.5), 2.5),
    ],
)
def test_units_are_understood(actual: float, expected: float) -> None:
    """Text and plain numbers both count."""
    assert expected == actual


@pytest.mark.parametrize("text", ["", "k", "-1", "0", "10 k s", "1e3", "10K", "nan", True])
def test_anything_else_is_no_amount(text: str) -> None:
    """A wrong unit is an error, never a guess."""
    with pytest.raises(ValueError, match="expected a rate"):
        rate_per_second(text)
