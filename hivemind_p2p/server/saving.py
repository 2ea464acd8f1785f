"""Checkpoints of a running server: loaded before it starts, saved while it runs and when it stops."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Final

import trio

from hivemind_p2p.errors import CheckpointError, NodeClosed
from hivemind_p2p.runtime import Checkpoints, ExpertBackend, ExpertState

LAST_SAVE_TIMEOUT: Final = 30.0
"""Seconds that saving may take when the server stops."""

logger = logging.getLogger(__name__)


class Saver:
    """Saves the experts of one server.

    Args:
        checkpoints: where.
        experts: by uid.
        period: seconds between two times.
    """

    def __init__(self, checkpoints: Checkpoints, experts: Mapping[str, ExpertBackend], *, period: float) -> None:
        self.checkpoints, self.period = checkpoints, period
        self._experts = experts
        self._saved: dict[str, tuple[int, int, int]] = {}

    def load(self) -> None:
        """Make the experts what their checkpoints say; those without one stay as they are. Before they compute. Blocks.

        Raises:
            CheckpointError: one has checkpoints, of which none can be used; or another server saves there.
        """
        self.checkpoints.lock()
        try:
            self.checkpoints.clean_up()
            for uid, expert in self._experts.items():
                if self.checkpoints.load(expert) is not None:
                    self._saved[uid] = expert.training.progress
        except CheckpointError:
            self.checkpoints.unlock()
            raise

    async def save(self) -> None:
        """Save those that have learned since the last time, and those that never were saved.

        Raises:
            CheckpointError, NodeClosed: one cannot be saved, or its device computes no more. The others are.
        """
        failed: list[CheckpointError | NodeClosed] = []
        for uid, expert in self._experts.items():
            if self._saved.get(uid) == expert.training.progress:
                continue
            try:
                progress, state = await expert.forward_pool.between_batches(partial(_take, expert))
                await trio.to_thread.run_sync(self.checkpoints.save, uid, state)
            except (CheckpointError, NodeClosed) as error:
                failed.append(error)
                continue
            self._saved[uid] = progress
            logger.debug("saved expert %s after %d updates", uid, state.update_count)
        if failed:
            raise failed[0]

    async def keep_saving(self) -> None:
        """Save every ``period`` seconds."""
        while True:
            await trio.sleep(self.period)
            try:
                await self.save()
            except Exception:  # the boundary of a background loop
                logger.exception("experts could not be saved; trying again in %g s", self.period)

    async def save_at_last(self) -> None:
        """Save what there is to save, in bounded time; what goes wrong is logged."""
        try:
            with trio.fail_after(LAST_SAVE_TIMEOUT):
                await self.save()
        except (CheckpointError, NodeClosed, trio.TooSlowError) as error:
            logger.error("stopping without having saved all experts: %s", error or "it took too long")

    def __repr__(self) -> str:
        return f"<Saver of {len(self._experts)} experts every {self.period:g} s: {self.checkpoints!r}>"


def _take(expert: ExpertBackend) -> tuple[tuple[int, int, int], ExpertState]:
    return expert.training.progress, ExpertState.of(expert)
