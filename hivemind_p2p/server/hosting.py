"""What a server does while it runs: computes, answers, keeps its experts declared; and how it stops."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import torch
import trio

from hivemind_p2p.errors import ConfigError, HivemindError, RPCError
from hivemind_p2p.node import Node
from hivemind_p2p.runtime import ExpertBackend, Runtime, computing
from hivemind_p2p.runtime.memory import share_memory_among_threads
from hivemind_p2p.server.declare import declaration, store_records, withdraw_experts
from hivemind_p2p.server.handler import ConnectionHandler
from hivemind_p2p.server.replication import StateService, take_over
from hivemind_p2p.server.saving import Saver
from hivemind_p2p.wire.expert_uid import replicas_key

WITHDRAW_TIMEOUT: Final = 5.0
"""Seconds that withdrawing may take."""
DRAIN_TIMEOUT: Final = 10.0
"""Seconds that requests under way have to be answered when the server stops."""

logger = logging.getLogger(__name__)


@asynccontextmanager
async def hosting(
    node: Node,
    experts: Mapping[str, ExpertBackend],
    handler: ConnectionHandler,
    *,
    devices: Sequence[torch.device],
    update_period: float,
    expiration: float,
    saver: Saver | None = None,
    replicate: bool = False,
) -> AsyncIterator[tuple[Runtime, ...]]:
    """Serve experts while inside; declared before this is entered, unless the DHT fails.

    On leaving: withdraw them while still answering, refuse new requests, let those under way finish, save, stop.

    Args:
        devices: that share the experts; none: each computes where it is.
        saver: of their checkpoints.
        replicate: take over the states of living replicas first.

    Raises (on entering):
        ConfigError: the node hosts a server already, or a device cannot be used.
        CheckpointError: nothing can be saved.
    """
    share_memory_among_threads()
    if replicate:
        await take_over(node, experts)
    uids = sorted(experts)
    for uid in uids:
        module = experts[uid].module
        size = sum(parameter.numel() for parameter in module.parameters())
        logger.info("hosting %s: %s, %d parameters", uid, type(module).__name__, size)
    rpc = node.rpc  # the node may be gone before we are
    async with computing(experts, devices) as runtimes:
        states = StateService(experts)
        if saver is not None:
            await saver.save()
        try:
            handler.register(rpc)
            states.register(rpc)
        except RPCError as error:
            raise ConfigError(
                f"this node hosts a server already ({error}); give all experts to one server, or the other a DHT of "
                "its own"
            ) from None
        try:
            async with trio.open_nursery() as nursery:
                await declare(node, experts, expiration)
                nursery.start_soon(_keep_declared, node, experts, update_period, expiration)
                if saver is not None:
                    nursery.start_soon(saver.keep_saving)
                yield runtimes
                nursery.cancel_scope.cancel()
        finally:
            logger.info("stopping: withdrawing %d experts", len(uids))
            with trio.CancelScope(shield=True):
                try:
                    with trio.move_on_after(WITHDRAW_TIMEOUT):
                        await _withdraw(node, uids)
                finally:
                    handler.refuse()
                    logger.info("stopping: finishing what is under way (%r)", handler)
                    with trio.move_on_after(DRAIN_TIMEOUT):
                        await handler.drained()
                    handler.unregister(rpc)
                    states.unregister(rpc)
                    if saver is not None:
                        await saver.save_at_last()


async def _keep_declared(
    node: Node, experts: Mapping[str, ExpertBackend], update_period: float, expiration: float
) -> None:
    while True:
        await trio.sleep(update_period)
        await declare(node, experts, expiration)


async def declare(node: Node, experts: Mapping[str, ExpertBackend], expiration: float) -> None:
    """Declare experts for ``expiration`` seconds. What goes wrong is logged: the next time may go better."""
    updates = {uid: experts[uid].update_count for uid in sorted(experts)}
    records = declaration(updates, node.peer_id, updates)
    try:
        stored = await store_records(node.dht, records, node.dht.protocol.clock() + expiration)
    except Exception:  # the boundary of a background loop
        logger.exception("experts could not be declared; trying again soon")
        return
    refused = [uid for uid in updates if not stored[replicas_key(uid), node.peer_id.base58]]
    replaced = [uid for uid in updates if not stored[uid] and uid not in refused]
    if refused:
        logger.warning(
            "the swarm did not take the declaration of %s: nobody could be reached; trying again soon",
            ", ".join(refused[:10]),
        )
    elif replaced:
        logger.warning(
            "another server has declared %s for longer, and those who know nothing of replicas only see that one: give "
            "all servers of an expert the same update_period and expiration", ", ".join(replaced[:10]),
        )  # fmt: skip
    else:
        logger.debug("declared %d experts for %g s", len(updates), expiration)


async def _withdraw(node: Node, uids: Sequence[str]) -> None:
    try:
        await withdraw_experts(node.dht, uids, node.peer_id)
    except HivemindError as error:
        logger.warning("experts could not be withdrawn, and are forgotten when they expire: %s", error)
