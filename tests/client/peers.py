"""Servers of experts on loopback that note what they are asked, and misbehave when they are told to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import torch
import trio
from torch import nn

from hivemind_p2p import DHT, Server
from hivemind_p2p.compression import TensorAssembler, deserialize_tensor, serialize_tensor, split_for_streaming
from hivemind_p2p.runtime import BatchTensorDescriptor, ExpertBackend
from hivemind_p2p.sync import portal
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
    """A peer with a server of experts.

    Attributes:
        calls: ``(uid, "forward" or "backward", rows, streamed)`` of every call.
        infos: how often a schema was asked for.
        before: awaited before the server hears of a call: hangs, fails, waits.
        tamper: makes of the server's answer something else.
    """

    def __init__(self, backends: Sequence[ExpertBackend], initial_peers: Sequence[Any] = ()) -> None:
        self.backends = {backend.name: backend for backend in backends}
        self.calls: list[tuple[str, str, int, bool]] = []
        self.infos = 0
        self.before: Callable[[str, str], Awaitable[None]] | None = None
        self.tamper: Callable[[str, str, list[torch.Tensor]], Answer] | None = None
        self.dht = DHT(initial_peers, host_maddrs=LOOPBACK, start=True)
        self._server = Server(self.dht, self.backends, start=True) if backends else None
        if self._server is not None:
            portal().call(self._stand_between)

    @property
    def maddrs(self) -> list[Any]:
        return self.dht.get_visible_maddrs()

    def count(self, direction: str) -> dict[str, int]:
        """How often each expert was called."""
        called = [uid for uid, its, *_ in self.calls if its == direction]
        return {uid: called.count(uid) for uid in called}

    def host(self, *uids: str) -> None:
        """Host only these from now on, without telling the DHT."""
        self._server._handler._experts = {uid: self.backends[uid] for uid in uids}

    def kill(self) -> None:
        """Be gone at once, without withdrawing anything."""
        self.dht.shutdown()

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
        self.dht.shutdown()

    async def _stand_between(self) -> None:
        rpc, handler = self.dht.node.rpc, self._server._handler

        async def info(request: ExpertUID, context: Any) -> ExpertInfo:
            self.infos += 1
            return await handler.rpc_info(request, context)

        def unary(direction: str) -> Any:
            answer = getattr(handler, f"rpc_{direction}")

            async def serve(request: ExpertRequest, context: Any) -> ExpertResponse:
                await self._asked(request.uid, direction, request.tensors[0].size[0], streamed=False)
                response = await answer(request, context)
                if self.tamper is None:
                    return response
                outputs = [deserialize_tensor(tensor) for tensor in response.tensors]
                return ExpertResponse(tensors=self._tampered(request.uid, direction, outputs))

            return serve

        def stream(direction: str) -> Any:
            answer = getattr(handler, f"rpc_{direction}_stream")

            async def serve(requests: AsyncIterator[ExpertRequest], context: Any) -> AsyncIterator[ExpertResponse]:
                first = await anext(requests)
                uid = first.uid
                await self._asked(uid, direction, first.tensors[0].size[0], streamed=True)
                responses = answer(_chain(first, requests), context)
                if self.tamper is None:
                    async for response in responses:
                        yield response
                    return
                outputs, assembler = [], TensorAssembler()
                async for response in responses:
                    outputs += [encoded.decode() for part in response.tensors if (encoded := assembler.add(part))]
                for packed in self._tampered(uid, direction, outputs):
                    for part in split_for_streaming(packed):
                        yield ExpertResponse(tensors=[part])

            return serve

        rpc.unregister(f"{SERVICE}.rpc_info")
        rpc.register(f"{SERVICE}.rpc_info", ExpertUID, info)
        for direction in ("forward", "backward"):
            rpc.unregister(f"{SERVICE}.rpc_{direction}")
            rpc.register(f"{SERVICE}.rpc_{direction}", ExpertRequest, unary(direction))
            rpc.unregister(f"{SERVICE}.rpc_{direction}_stream")
            rpc.register_stream(f"{SERVICE}.rpc_{direction}_stream", ExpertRequest, stream(direction))

    async def _asked(self, uid: str, direction: str, rows: int, *, streamed: bool) -> None:
        self.calls.append((uid, direction, rows, streamed))
        if self.before is not None:
            await self.before(uid, direction)

    def _tampered(self, uid: str, direction: str, outputs: list[torch.Tensor]) -> list[Tensor]:
        answer = self.tamper(uid, direction, outputs)
        return [each if isinstance(each, Tensor) else serialize_tensor(each) for each in answer]


async def _chain(first: ExpertRequest, rest: AsyncIterator[ExpertRequest]) -> AsyncIterator[ExpertRequest]:
    yield first
    async for request in rest:
        yield request


async def hang(uid: str, direction: str) -> None:
    """A ``before`` for peers that never answer."""
    await trio.sleep_forever()
