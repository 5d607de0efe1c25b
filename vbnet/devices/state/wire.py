"""What both halves of state know: ABI types, functions and their data. Little-endian throughout.

Both types, version 1: SCHEMA gives the number of records, u32, and the schema's text.

``state-sample``: ROLL, given a layout version, u32, lends the roll and gives the ticket, u64. MAP, given version and
record, lends the page the record is in and gives its generation and ticket, both u64; 0 and 0 when there is none yet.
SAMPLE, given a record, gives the roll's word and the moment, both u64, then the values; none when there are none.

``state-publish``: CLAIM, given version and record, lends a writable page and gives the ticket; COMMIT, given the
record, says that it is mapped: samplers see it from then on. PUBLISH, given a record and values, claims the record if
need be and publishes for the caller. A claim ends with its connection.

The roll, pages and records: docs/wire/state.md.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

__all__ = [
    "LAYOUT_VERSION",
    "MAPPED",
    "MAX_RECORDS",
    "NUMBER",
    "PUBLISH_TYPE",
    "RECORD",
    "SAMPLED",
    "SAMPLE_TYPE",
    "TICKET",
    "VERSION",
    "PublishFunction",
    "SampleFunction",
]

SAMPLE_TYPE: Final = "state-sample"
PUBLISH_TYPE: Final = "state-publish"
VERSION: Final = 1
LAYOUT_VERSION: Final = 1
MAX_RECORDS: Final = 64

NUMBER: Final = struct.Struct("<I")
RECORD: Final = struct.Struct("<II")
"""Layout version, record."""
TICKET: Final = struct.Struct("<Q")
MAPPED: Final = struct.Struct("<QQ")
"""Generation, ticket."""
SAMPLED: Final = struct.Struct("<QQ")
"""The roll's word, the moment; values follow."""


class SampleFunction(enum.IntEnum):
    """Functions of ``state-sample``."""

    SCHEMA = 0
    ROLL = 1
    MAP = 2
    SAMPLE = 3


class PublishFunction(enum.IntEnum):
    """Functions of ``state-publish``."""

    SCHEMA = 0
    CLAIM = 1
    COMMIT = 2
    PUBLISH = 3
