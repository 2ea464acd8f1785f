"""What becomes of a record that is to be stored, and why."""

from __future__ import annotations

import enum


class Verdict(enum.Enum):
    """True in a condition if the record was stored. The numbers travel between our nodes."""

    UNKNOWN = 0
    """A peer refused it and did not say why, as hivemind's never do."""
    STORED = 1
    NOT_NEWER = 2
    """What is there expires no earlier."""
    EXPIRED = 3
    """It has expired, or its time is none."""
    TOO_LARGE = 4
    NO_ROOM = 5
    """The store is full; what is in it was promised to be kept."""
    OVER_SHARE = 6
    """The store is filling up, and the peer that asks has more than its share of it."""
    INVALID = 7
    """A validator refuses it: a bad signature, or not as the schema wants it."""
    MALFORMED = 8
    """Not a record at all."""
    TOO_LASTING = 9
    """It would expire later than records may."""

    def __bool__(self) -> bool:
        return self is Verdict.STORED
