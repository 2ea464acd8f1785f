"""An expert's state from one server to another: a new replica begins with what a living one has learned.

``ExpertReplica.rpc_state`` is ours, not hivemind's: asked for a uid it streams the bytes of an
:class:`~hivemind_p2p.runtime.ExpertState`, a safetensors file, in parts. What comes is bounded, checked to be whole and
to fit, and never executed; whether its numbers are good nobody can tell, as with the answers of an expert.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any, Final

import trio

from hivemind_p2p.errors import CheckpointError, ExpertNotFound, HivemindError, MessageTooLarge, Overloaded
from hivemind_p2p.kademlia import ValueWithExpiration
from hivemind_p2p.node import Node
from hivemind_p2p.rpc import RPC, CallContext
from hivemind_p2p.runtime import ExpertBackend, ExpertState
from hivemind_p2p.wire import runtime_pb2
from hivemind_p2p.wire.expert_uid import replicas_key
from hivemind_p2p.wire.peer_id import PeerID

METHOD: Final = "ExpertReplica.rpc_state"
FETCH_TIMEOUT: Final = 600.0
"""Seconds that a state may take to come."""
_PART: Final = 2**20
_AT_ONCE: Final = 2
"""States that a server sends at the same time."""
_LARGER: Final = 8
"""How many times its parameters and buffers the state of an expert may be: optimizers remember a few times as much."""
_BESIDE: Final = 2**24
"""Bytes of a state beside that."""

logger = logging.getLogger(__name__)


class StateService:
    """Sends the states of some experts to whoever asks.

    Args:
        experts: by uid; a Runtime serves them.
    """

    def __init__(self, experts: Mapping[str, ExpertBackend]) -> None:
        self._experts = experts
        self._sending = 0

    def register(self, rpc: RPC) -> None:
        """Answer calls of this node."""
        rpc.register_stream(METHOD, runtime_pb2.ExpertUID, self.rpc_state)

    def unregister(self, rpc: RPC) -> None:
        """Answer no more calls."""
        rpc.unregister(METHOD)

    async def rpc_state(
        self, requests: AsyncIterator[runtime_pb2.ExpertUID], context: CallContext
    ) -> AsyncIterator[runtime_pb2.ExpertInfo]:
        """The state of an expert, between two of its steps."""
        request = await anext(requests, None)
        expert = self._experts.get(request.uid) if request is not None else None
        if expert is None:
            raise ExpertNotFound("this peer does not host that expert; look in the DHT for who does")
        if self._sending >= _AT_ONCE:
            raise Overloaded(f"{self._sending} states are being sent already; try again later, or another replica")
        self._sending += 1
        try:
            state = await expert.forward_pool.between_batches(partial(ExpertState.of, expert, accumulated=False))
            data = await trio.to_thread.run_sync(state.to_bytes, expert.name)
            del state
            logger.info("sending expert %s (%d bytes) to %s", expert.name, len(data), context.peer_id)
            for start in range(0, len(data), _PART):
                yield runtime_pb2.ExpertInfo(serialized_info=data[start : start + _PART])
        finally:
            self._sending -= 1


async def fetch_state(rpc: RPC, peer_id: PeerID, uid: str, *, max_bytes: int) -> ExpertState:
    """The state of an expert that a peer serves.

    Args:
        max_bytes: the most that is taken.

    Raises:
        MessageTooLarge: there is more.
        CheckpointError: it is not the state of that expert.
        RPCError, TransportError: the call failed.
    """

    async def request() -> AsyncIterator[runtime_pb2.ExpertUID]:
        yield runtime_pb2.ExpertUID(uid=uid)

    parts: list[bytes] = []
    length = 0
    call = rpc.stream_call(peer_id, METHOD, request(), runtime_pb2.ExpertInfo, timeout=FETCH_TIMEOUT)
    async with call as answers:
        async for answer in answers:
            length += len(answer.serialized_info)
            if length > max_bytes:
                raise MessageTooLarge(
                    f"the state of {uid} at {peer_id} has more than {max_bytes} bytes; is it the same?"
                )
            parts.append(answer.serialized_info)
    return await trio.to_thread.run_sync(ExpertState.from_bytes, b"".join(parts), uid)


async def take_over(node: Node, experts: Mapping[str, ExpertBackend]) -> None:
    """Make each expert what a living replica of it is, the one that has learned the most. Before they compute.

    Where nobody serves it, nobody has learned more, or nobody's state can be had (which is logged), it stays as it is.
    """
    found = await node.dht.get_many([replicas_key(uid) for uid in experts], sufficient_expiration_time=float("inf"))
    for uid, expert in experts.items():
        entry = found[replicas_key(uid)]
        for updates, peer_id in _replicas(entry.value if entry is not None else None, node.peer_id):
            if updates <= expert.update_count:
                break
            try:
                state = await fetch_state(node.rpc, peer_id, uid, max_bytes=_largest(expert))
                if state.update_count <= expert.update_count:
                    raise CheckpointError(f"it declares {updates} updates, and its state has {state.update_count}")
                await trio.to_thread.run_sync(state.restore, expert)
            except HivemindError as error:
                logger.warning("the state of expert %s cannot be had from %s: %s", uid, peer_id, error)
                continue
            logger.info("expert %s goes on after %d updates, from %s", uid, state.update_count, peer_id)
            break


def _replicas(listed: Any, ourselves: PeerID) -> list[tuple[int, PeerID]]:
    """Who serves an expert besides us, with the updates they have made, most first."""
    replicas = []
    for peer, entry in listed.items() if isinstance(listed, dict) else ():
        told = entry.value if isinstance(entry, ValueWithExpiration) else None  # a value may be a dictionary, too
        updates = told.get("updates") if isinstance(told, dict) else None
        if not isinstance(peer, str) or not isinstance(updates, int) or peer == ourselves.base58:
            continue
        try:
            replicas.append((updates, PeerID.from_base58(peer)))
        except ValueError:
            continue
    return sorted(replicas, key=lambda replica: replica[0], reverse=True)


def _largest(expert: ExpertBackend) -> int:
    size = sum(tensor.nbytes for tensor in [*expert.module.parameters(), *expert.module.buffers()])
    return _LARGER * size + _BESIDE
