"""Calls of experts: tensors there, tensors back, checked, on hivemind 1.1's wire."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, TypeAlias, TypeVar

import torch
import trio

from hivemind_p2p.client.beam_search import ExpertInfo
from hivemind_p2p.client.schema import ExpertSchema, byte_size, check_answer, check_gradients
from hivemind_p2p.compression import (
    MAX_UNARY_BYTES,
    TensorAssembler,
    deserialize_tensor,
    serialize_in_parts,
    serialize_tensor,
)
from hivemind_p2p.rpc import RPC
from hivemind_p2p.wire import runtime_pb2
from hivemind_p2p.wire.tensor_descriptor import TensorDescriptor

Direction: TypeAlias = Literal["forward", "backward"]
INLINE_BYTES: Final = 2**18
"""Bytes of tensors up to which they are packed and unpacked between two turns of the network; more, in a thread."""
_T = TypeVar("_T")


async def fetch_schema(rpc: RPC, expert: ExpertInfo, timeout: float | None = None) -> ExpertSchema:
    """Ask an expert what it takes and gives.

    Raises:
        ProtocolViolation: the answer is garbage.
        RPCError, TransportError: there is none.
    """
    request = runtime_pb2.ExpertUID(uid=expert.uid)
    answer = await rpc.call(
        expert.peer_id, "ConnectionHandler.rpc_info", request, runtime_pb2.ExpertInfo, timeout=timeout
    )
    return ExpertSchema.parse(answer.serialized_info)


async def call_expert(
    rpc: RPC,
    expert: ExpertInfo,
    direction: Direction,
    schema: ExpertSchema,
    tensors: Sequence[torch.Tensor],
    timeout: float | None = None,
) -> list[torch.Tensor]:
    """Have an expert compute: its outputs, or the gradients of its inputs, on the CPU.

    Small calls are unary, large ones streams of parts; here the size of the answer counts as well, which must fit, too.

    Args:
        tensors: on the CPU, all of one batch. Forward: the inputs, flat. Backward: then the gradients of the outputs.
        timeout: seconds; default: the RPC's own.

    Raises:
        ProtocolViolation: the answer is not what the schema promised.
        CodecError: it is not tensors at all, or larger than promised.
        RPCError, TransportError: there is none.
    """
    rows = len(tensors[0])
    if direction == "forward":
        sent, expected, answer_bytes = schema.inputs, schema.outputs, byte_size(schema.outputs, rows)
    else:
        sent, expected = schema.inputs + schema.outputs, schema.inputs
        answer_bytes = sum(tensor.nbytes for tensor in tensors[: len(expected)])
    compressions = [_compression(*pair) for pair in zip(tensors, sent, strict=True)]
    call = _Call(rpc, expert, direction, tensors, compressions, len(expected), answer_bytes, timeout)
    answer = await (call.unary() if call.largest <= MAX_UNARY_BYTES else call.stream())
    check_answer(answer, expected, rows)
    if direction == "backward":
        check_gradients(answer, tensors)
    return answer


@dataclass(frozen=True)
class _Call:
    rpc: RPC
    expert: ExpertInfo
    direction: Direction
    tensors: Sequence[torch.Tensor]
    compressions: Sequence[int]
    answer_tensors: int
    answer_bytes: int
    timeout: float | None

    @property
    def largest(self) -> int:
        """Bytes of the request or of the answer, whichever is more. bfloat16 may travel as float32."""
        sent = sum(tensor.nbytes * (1 + (tensor.dtype is torch.bfloat16)) for tensor in self.tensors)
        return max(sent, self.answer_bytes)

    async def unary(self) -> list[torch.Tensor]:
        request = await beside_the_network(self.largest, self._pack)
        method = f"ConnectionHandler.rpc_{self.direction}"
        kind = runtime_pb2.ExpertResponse
        answer = await self.rpc.call(self.expert.peer_id, method, request, kind, timeout=self.timeout)
        return await beside_the_network(self.largest, self._unpack, answer)

    async def stream(self) -> list[torch.Tensor]:
        assembler = TensorAssembler(max_bytes=self.answer_bytes, max_tensors=self.answer_tensors)
        answer: list[torch.Tensor] = []
        method = f"ConnectionHandler.rpc_{self.direction}_stream"
        kind = runtime_pb2.ExpertResponse
        async with self.rpc.stream_call(
            self.expert.peer_id, method, self._parts(), kind, timeout=self.timeout
        ) as responses:
            async for response in responses:
                for part in response.tensors:
                    encoded = assembler.add(part)
                    if encoded is not None:
                        answer += [await beside_the_network(encoded.length, encoded.decode)]
        assembler.finish()
        return answer

    def _pack(self) -> runtime_pb2.ExpertRequest:
        packed = map(serialize_tensor, self.tensors, self.compressions)
        return runtime_pb2.ExpertRequest(uid=self.expert.uid, tensors=packed)

    def _unpack(self, answer: runtime_pb2.ExpertResponse) -> list[torch.Tensor]:
        return [deserialize_tensor(tensor, max_bytes=self.answer_bytes) for tensor in answer.tensors]

    async def _parts(self) -> AsyncIterator[runtime_pb2.ExpertRequest]:
        for tensor, compression in zip(self.tensors, self.compressions, strict=True):
            for part in await beside_the_network(tensor.nbytes, partial(serialize_in_parts, tensor, compression)):
                yield runtime_pb2.ExpertRequest(uid=self.expert.uid, tensors=[part])


def _compression(tensor: torch.Tensor, descriptor: TensorDescriptor) -> int:
    """What the expert wants its tensors to be compressed with; only floats can lose precision."""
    return descriptor.compression if tensor.is_floating_point() else runtime_pb2.NONE


async def beside_the_network(size: int, function: Callable[..., _T], *args: Any) -> _T:
    """Call a function that works on ``size`` bytes without holding up other calls for long."""
    if size <= INLINE_BYTES:
        return function(*args)
    return await trio.to_thread.run_sync(function, *args)
