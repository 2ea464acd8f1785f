"""Several devices: which expert computes where, and a Runtime, with its thread, for each device."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import torch

from hivemind_p2p.runtime.expert_backend import ExpertBackend
from hivemind_p2p.runtime.runtime import Runtime


def spread(experts: Mapping[str, ExpertBackend], devices: int) -> list[dict[str, ExpertBackend]]:
    """Share experts out, the largest first, each to the device that has the least to hold so far."""
    shares: list[dict[str, ExpertBackend]] = [{} for _ in range(devices)]
    held = [0] * devices
    for uid in sorted(experts, key=lambda uid: (-_size(experts[uid]), uid)):
        least = held.index(min(held))
        shares[least][uid] = experts[uid]
        held[least] += max(1, _size(experts[uid]))  # those without weights are shared out, too
    return shares


@asynccontextmanager
async def computing(
    experts: Mapping[str, ExpertBackend], devices: Sequence[torch.device]
) -> AsyncIterator[tuple[Runtime, ...]]:
    """Compute while inside, see :class:`Runtime`.

    Args:
        devices: experts are shared out among them. None given: each stays where it is, and one thread computes all.

    Raises (on entering):
        ConfigError: a device cannot be used, or another Runtime serves one of the experts.
    """
    places: Sequence[torch.device | None] = devices or [None]
    shares = spread(experts, len(places))
    async with AsyncExitStack() as stack:
        runtimes = [
            await stack.enter_async_context(Runtime(share, device=device))
            for share, device in zip(shares, places, strict=True)
            if share
        ]
        yield tuple(runtimes)


def _size(expert: ExpertBackend) -> int:
    return sum(tensor.nbytes for tensor in [*expert.module.parameters(), *expert.module.buffers()])
