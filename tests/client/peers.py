"""Peers that serve experts over real connections on loopback, note what they are asked, and misbehave when told to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import torch
import trio
from torch import nn

from hivemind_p2p import DHT, get_dht_time
from hivemind_p2p.compression import TensorAssembler, deserialize_tensor, serialize_tensor, split_for_streaming
from hivemind_p2p.errors import ExpertNotFound
from hivemind_p2p.runtime import BatchTensorDescriptor, ExpertBackend
from hivemind_p2p.sync import portal
from hivemind_p2p.wire import msgpack
from hivemind_p2p.wire.expert_uid import grid_entries
from hivemind_p2p.wire.runtime_pb2 import ExpertInfo, ExpertRequest, ExpertResponse, ExpertUID, Tensor

LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
SERVICE = "ConnectionHandler"
Answer = list[torch.Tensor] | list[Tensor]


def backend(uid: str, module: nn.Module, *args: Any, lr: float | None = None, **options: Any) -> ExpertBackend:
    """An expert that takes float vectors of these lengths; with ``lr`` it learns."""
    args_schema = [arg if isinstance(arg, BatchTensorDescriptor) else BatchTensorDescriptor(arg) for arg in args]
    optimizer = None if lr is None else torch.optim.SGD(module.parameters(), lr=lr)
    return ExpertBackend(uid, module, args_schema=args_schema, optimizer=optimizer, **options)


class ExpertPeer:
    """One peer of a swarm with experts.

    Attributes:
        calls: ``(uid, "forward" or "backward", rows, streamed)`` of every call.
        before: awaited before a call is computed: hangs, fails, waits.
        tamper: makes of the answer something else.
    """

    def __init__(self, backends: Sequence[ExpertBackend], initial_peers: Sequence[Any] = ()) -> None:
        self.backends = {backend.name: backend for backend in backends}
        self.calls: list[tuple[str, str, int, bool]] = []
        self.before: Callable[[str, str], Awaitable[None]] | None = None
        self.tamper: Callable[[str, str, list[torch.Tensor]], Answer] = lambda uid, direction, answer: answer
        self.dht = DHT(initial_peers, host_maddrs=LOOPBACK, start=True)
        self.infos = 0
        portal().call(self._serve)
        self.declare()

    @property
    def maddrs(self) -> list[Any]:
        return self.dht.get_visible_maddrs()

    def declare(self, uids: Sequence[str] | None = None, seconds: float = 60) -> None:
        """Declare experts in the DHT as a server does."""
        uids = list(self.backends) if uids is None else uids
        peer = self.dht.peer_id.base58
        records = {(uid, None): peer for uid in uids}
        records |= {place: (uid, peer) for uid in uids for place in grid_entries(uid)}
        if records:
            keys, subkeys = zip(*records, strict=True)
            values = list(records.values())

            async def store(_, node) -> dict[Any, bool]:
                return await node.store_many(keys, values, get_dht_time() + seconds, subkeys)

            assert all(self.dht.run_coroutine(store).values())

    def count(self, direction: str) -> dict[str, int]:
        """How often each expert was called."""
        called = [uid for uid, its, *_ in self.calls if its == direction]
        return {uid: called.count(uid) for uid in called}

    def close(self) -> None:
        self.dht.shutdown()

    async def _serve(self) -> None:
        rpc = self.dht.node.rpc
        rpc.register(f"{SERVICE}.rpc_info", ExpertUID, self._info)
        for direction in ("forward", "backward"):
            rpc.register(f"{SERVICE}.rpc_{direction}", ExpertRequest, self._unary(direction))
            rpc.register_stream(f"{SERVICE}.rpc_{direction}_stream", ExpertRequest, self._stream(direction))

    def _backend(self, uid: str) -> ExpertBackend:
        if uid not in self.backends:
            raise ExpertNotFound(f"no expert {uid} here")
        return self.backends[uid]

    async def _info(self, request: ExpertUID, context: Any) -> ExpertInfo:
        self.infos += 1
        return ExpertInfo(serialized_info=msgpack.dumps(self._backend(request.uid).info()))

    def _unary(self, direction: str) -> Any:
        async def handler(request: ExpertRequest, context: Any) -> ExpertResponse:
            tensors = [deserialize_tensor(tensor) for tensor in request.tensors]
            return ExpertResponse(tensors=await self._compute(request.uid, direction, tensors, streamed=False))

        return handler

    def _stream(self, direction: str) -> Any:
        async def handler(requests: AsyncIterator[ExpertRequest], context: Any) -> AsyncIterator[ExpertResponse]:
            tensors, uids, assembler = [], set(), TensorAssembler()
            async for request in requests:
                uids.add(request.uid)
                for part in request.tensors:
                    tensors += [] if (whole := assembler.add(part)) is None else [whole.decode()]
            assembler.finish()
            [uid] = uids
            for packed in await self._compute(uid, direction, tensors, streamed=True):
                for part in split_for_streaming(packed):
                    yield ExpertResponse(tensors=[part])

        return handler

    async def _compute(self, uid: str, direction: str, tensors: list[torch.Tensor], *, streamed: bool) -> list[Tensor]:
        expert = self._backend(uid)
        self.calls.append((uid, direction, len(tensors[0]), streamed))
        if self.before is not None:
            await self.before(uid, direction)
        answer = self.tamper(uid, direction, list(getattr(expert, direction)(*tensors)))
        return [each if isinstance(each, Tensor) else serialize_tensor(each, 0) for each in answer]


async def hang(uid: str, direction: str) -> None:
    """A ``before`` for peers that never answer."""
    await trio.sleep_forever()
