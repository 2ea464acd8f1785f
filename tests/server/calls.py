"""Calls to experts, message by message, as a client makes them."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from hivemind_p2p.compression import TensorAssembler, deserialize_tensor, serialize_in_parts, serialize_tensor
from hivemind_p2p.rpc import RPC
from hivemind_p2p.wire import msgpack, runtime_pb2
from hivemind_p2p.wire.peer_id import PeerID


class Caller:
    """Calls one peer."""

    def __init__(self, rpc: RPC, peer_id: PeerID) -> None:
        self.rpc, self.peer_id = rpc, peer_id

    async def info(self, uid: str):
        request = runtime_pb2.ExpertUID(uid=uid)
        info = await self.rpc.call(self.peer_id, "ConnectionHandler.rpc_info", request, runtime_pb2.ExpertInfo)
        return msgpack.loads(info.serialized_info)

    async def unary(self, direction: str, uid: str, *tensors: torch.Tensor, compression: int = 0):
        messages = [serialize_tensor(tensor, compression) for tensor in tensors]
        response = await self.send(direction, runtime_pb2.ExpertRequest(uid=uid, tensors=messages))
        return [deserialize_tensor(message) for message in response.tensors]

    async def send(self, direction: str, request: runtime_pb2.ExpertRequest) -> runtime_pb2.ExpertResponse:
        method = f"ConnectionHandler.rpc_{direction}"
        return await self.rpc.call(self.peer_id, method, request, runtime_pb2.ExpertResponse)

    async def stream(self, direction: str, uid: str, *tensors: torch.Tensor, part_size: int = 2**20):
        parts = (part for tensor in tensors for part in serialize_in_parts(tensor, part_size=part_size))
        return await self.send_stream(direction, (runtime_pb2.ExpertRequest(uid=uid, tensors=[part]) for part in parts))

    async def send_stream(self, direction: str, requests: Iterable[runtime_pb2.ExpertRequest]):
        async def items():
            for request in requests:
                yield request

        assembler, outputs = TensorAssembler(), []
        method = f"ConnectionHandler.rpc_{direction}_stream"
        async with self.rpc.stream_call(self.peer_id, method, items(), runtime_pb2.ExpertResponse) as responses:
            async for response in responses:
                for part in response.tensors:
                    whole = assembler.add(part)
                    if whole is not None:
                        outputs.append(whole.decode())
        assembler.finish()
        return outputs
