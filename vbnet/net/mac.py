"""MAC addresses as values: six bytes that know what they are for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self

from vbnet.errors import UsageError

__all__ = ["BROADCAST", "MacAddress"]

_PATTERN: Final = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}\Z")
_BYTES: Final = 6
_GROUP: Final = 0x01
_LOCAL: Final = 0x02


@dataclass(frozen=True, slots=True, order=True)
class MacAddress:
    """One address.

    Args:
        octets: exactly six bytes, in the order they are sent.

    Raises:
        UsageError: another number of bytes.
    """

    octets: bytes

    def __post_init__(self) -> None:
        if len(self.octets) != _BYTES:
            raise UsageError(f"a MAC address has 6 bytes; got {len(self.octets)}", got=len(self.octets), limit=_BYTES)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``02:00:00:00:00:01``.

        Raises:
            UsageError: it is written some other way.
        """
        if not _PATTERN.match(text):
            raise UsageError(f"{text!r} is no MAC address; write six bytes like 02:00:00:00:00:01", got=text)
        return cls(bytes.fromhex(text.replace(":", "")))

    @classmethod
    def parse_station(cls, text: str) -> Self:
        """Read an address one station can have: neither a group's nor all zeroes.

        Raises:
            UsageError: it is none.
        """
        address = cls.parse(text)
        if not address.is_station:
            raise UsageError(f"{text} is a group's address or empty; a station's first byte is even", got=text)
        return address

    @classmethod
    def random_local(cls, entropy: bytes) -> Self:
        """Make a locally administered station's address from six random bytes."""
        return cls(bytes((entropy[0] & ~_GROUP | _LOCAL, *entropy[1:_BYTES])))

    @property
    def is_group(self) -> bool:
        """Whether it stands for several stations (broadcast, multicast)."""
        return bool(self.octets[0] & _GROUP)

    @property
    def is_station(self) -> bool:
        """Whether one station can have it."""
        return not self.is_group and any(self.octets)

    def __bytes__(self) -> bytes:
        return self.octets

    def __str__(self) -> str:
        return self.octets.hex(":")


BROADCAST: Final = MacAddress(b"\xff" * _BYTES)
"""Every station."""
