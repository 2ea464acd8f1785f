from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from tests.dht.swarm import Swarm


@pytest.fixture
async def swarm() -> AsyncIterator[Swarm]:
    """An empty swarm in memory, whose tests ask for ``autojump_clock`` too."""
    async with trio.open_nursery() as nursery:
        yield Swarm(nursery)
        nursery.cancel_scope.cancel()
