"""Names of experts: ``ffn.3.7`` is the expert at row 3, column 7 of the grid ``ffn``.

The grammar, and what a declared expert stores in the DHT, are hivemind 1.1's: the uid itself leads to the peer that
serves it, and every prefix of it to the coordinates that follow, so that a search can walk the grid axis by axis.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hivemind_p2p.errors import InvalidUID

UID_DELIMITER: Final = "."
FLAT_EXPERT: Final = -1
"""The coordinate under which a grid of one axis lists an expert below the expert's own prefix: ``ffn.5.`` -> -1."""
UID_PATTERN: Final = re.compile(r"(([^.])+)([.](?:[0]|([1-9]([0-9]{0,18}))))+")  # more than 64 bits cannot be stored
PREFIX_PATTERN: Final = re.compile(r"(([^.])+)([.](?:[0]|([1-9]([0-9]{0,18}))))*[.]")
MAX_LENGTH: Final = 512
"""Characters of a uid; a DHT key holds more."""

_RANGE: Final = re.compile(r"\[([0-9]{1,9}):([0-9]{1,9})\]")


def is_valid_uid(text: str) -> bool:
    """Whether it is a name and at least one coordinate: ``ffn.3.7``."""
    return len(text) <= MAX_LENGTH and UID_PATTERN.fullmatch(text) is not None


def is_valid_prefix(text: str) -> bool:
    """Whether it is the beginning of a uid up to a dot: ``ffn.`` or ``ffn.3.``."""
    return len(text) <= MAX_LENGTH and PREFIX_PATTERN.fullmatch(text) is not None


def check_uid(text: str) -> str:
    """The uid itself.

    Raises:
        InvalidUID: it is none.
    """
    if not isinstance(text, str) or not is_valid_uid(text):
        raise InvalidUID(
            f"{_shown(text)} is not an expert uid: it is a name without dots, then one or more coordinates without "
            "leading zeros, like ffn.3.7"
        )
    return text


def check_prefix(text: str) -> str:
    """The prefix itself.

    Raises:
        InvalidUID: it is none.
    """
    if not isinstance(text, str) or not is_valid_prefix(text):
        raise InvalidUID(f"{_shown(text)} is not the prefix of expert uids: it ends with a dot, like ffn. or ffn.3.")
    return text


def split_uid(uid_or_prefix: str) -> tuple[str, int]:
    """The prefix and the last coordinate: ``ffn.3.7`` and ``ffn.3.7.`` are ``("ffn.3.", 7)``.

    Raises:
        InvalidUID: there is no coordinate to split off.
    """
    head, dot, coordinate = uid_or_prefix.rstrip(UID_DELIMITER).rpartition(UID_DELIMITER)
    try:
        return head + dot, int(coordinate)
    except ValueError:
        raise InvalidUID(f"{_shown(uid_or_prefix)} has no last coordinate; it should look like ffn.3.7") from None


def grid_entries(uid: str) -> Iterator[tuple[str, int]]:
    """``(prefix, coordinate)`` of every place of the grid at which a declared expert is listed, longest prefix first.

    ``ffn.3.7`` is listed at ``ffn.3.`` under 7 and at ``ffn.`` under 3; the flat ``ffn.5`` at ``ffn.5.`` under
    :data:`FLAT_EXPERT` and at ``ffn.`` under 5.
    """
    name, *coordinates = check_uid(uid).split(UID_DELIMITER)
    axes = [int(coordinate) for coordinate in coordinates]
    if len(axes) == 1:
        axes.append(FLAT_EXPERT)
    for depth in reversed(range(len(axes))):
        yield "".join(f"{part}{UID_DELIMITER}" for part in (name, *axes[:depth])), axes[depth]


def replicas_key(uid: str) -> str:
    """The DHT key under which every server of an expert names itself: neither a uid nor a prefix.

    hivemind 1.1 has one record for a uid, in which the last server to declare it replaces the others. Its readers never
    look here.
    """
    return f"{check_uid(uid)}@replicas"


@dataclass(frozen=True)
class UIDGrid:
    """The uids of a pattern: ``UIDGrid.parse("ffn.[0:16].[0:16]")`` has 256, counted row by row.

    Attributes:
        blocks: one list of choices for each part between dots.
    """

    blocks: tuple[range | str, ...]

    @classmethod
    def parse(cls, pattern: str) -> UIDGrid:
        """Read a pattern, whose blocks are fixed (``ffn``, ``3``) or ranges (``[0:16]``: 0 to 15).

        Raises:
            InvalidUID: a block is neither, a range is empty, or what it makes are not uids.
        """
        grid = cls(tuple(_block(pattern, block) for block in pattern.split(UID_DELIMITER)))
        if not is_valid_uid(grid[0]):
            raise InvalidUID(
                f"the pattern {_shown(pattern)} makes {_shown(grid[0])}, which is not an expert uid; it should look "
                "like ffn.[0:16].[0:16]"
            )
        return grid

    def __len__(self) -> int:
        return math.prod(len(block) for block in self.blocks if isinstance(block, range))

    def __contains__(self, uid: object) -> bool:
        """Whether it is one of them."""
        if not isinstance(uid, str) or not is_valid_uid(uid):
            return False
        parts = uid.split(UID_DELIMITER)
        return len(parts) == len(self.blocks) and all(
            int(part) in block if isinstance(block, range) else part == block
            for part, block in zip(parts, self.blocks, strict=True)
        )

    def __getitem__(self, index: int) -> str:
        """The uid at ``index``; the last block counts fastest."""
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not in a grid of {len(self)} uids")
        parts = []
        for block in reversed(self.blocks):
            if isinstance(block, range):
                index, place = divmod(index, len(block))
                parts.append(str(block[place]))
            else:
                parts.append(block)
        return UID_DELIMITER.join(reversed(parts))


def _block(pattern: str, block: str) -> range | str:
    if "[" not in block and "]" not in block:
        return block
    match = _RANGE.fullmatch(block)
    if match is None or not (choices := range(int(match[1]), int(match[2]))):
        raise InvalidUID(
            f"the pattern {_shown(pattern)} has a block {_shown(block)}; a block is fixed, or a range like [0:16], "
            "which is 0 to 15"
        )
    return choices


def _shown(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 80 else shown[:77] + "..."
