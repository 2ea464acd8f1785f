"""Drawing uids that nobody serves yet."""

from __future__ import annotations

import random
from collections.abc import Collection
from pathlib import Path
from typing import Final

from hivemind_p2p.errors import ConfigError
from hivemind_p2p.runtime import Checkpoints
from hivemind_p2p.sync import DHT
from hivemind_p2p.wire.expert_uid import UIDGrid

_MOST_LOOKED_UP: Final = 4096
"""Uids that are looked up for one draw; more only if more are wanted."""


def grid_for(count: int, pattern: str) -> UIDGrid:
    """The uids of a pattern, of which so many are wanted.

    Raises:
        InvalidUID: the pattern is none.
        ConfigError: there are not enough.
    """
    grid = UIDGrid.parse(pattern)
    if count > len(grid):
        raise ConfigError(f"the pattern {pattern} has {len(grid)} uids, which is not enough for {count} experts")
    return grid


def saved_uids(directory: str | Path, count: int, grid: UIDGrid) -> list[str]:
    """The uids of a grid that have checkpoints in a directory.

    Raises:
        ConfigError: they are more than ``count``.
    """
    saved = [uid for uid in Checkpoints(directory).uids() if uid in grid]
    if len(saved) > count:
        raise ConfigError(
            f"{directory} has checkpoints of {len(saved)} experts like {grid[0]}, and only {count} are to be hosted: "
            "raise num_experts, say expert_uids, or move checkpoints away"
        )
    return saved


def draw_uids(dht: DHT, count: int, grid: UIDGrid, taken: Collection[str] = ()) -> list[str]:
    """So many different uids that nobody serves, at random.

    Two servers that draw at the same moment may draw the same one; both then serve it.

    Args:
        dht: is asked who serves what.
        taken: not these.

    Raises:
        ConfigError: there are not enough.
    """
    candidates = random.sample(range(len(grid)), min(len(grid), max(_MOST_LOOKED_UP, 2 * count)))
    free: list[str] = []
    while candidates and len(free) < count:
        some = [grid[candidates.pop()] for _ in range(min(len(candidates), 2 * (count - len(free))))]
        free += _unserved(dht, [uid for uid in some if uid not in taken])
    if len(free) < count:
        raise ConfigError(
            f"only {len(free)} of the {len(grid)} uids like {grid[0]} are free, and {count} are wanted; use a larger "
            "grid, or fewer experts"
        )
    return free[:count]


def _unserved(dht: DHT, uids: list[str]) -> list[str]:
    found = dht.run_coroutine(lambda _, node: node.get_many(uids))
    return [uid for uid in uids if (record := found[uid]) is None or not isinstance(record.value, str)]
