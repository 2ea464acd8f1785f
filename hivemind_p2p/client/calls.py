"""Calls of experts: tensors there, tensors back, checked, on hivemind 1.1's wire."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

import torch
import trio

from hivemind_p2p.client.beam_search import ExpertInfo
from hivemind_p2p.client.compression import Kinds
from hivemind_p2p.client.report import TensorReport
from hivemind_p2p.client.schema import ExpertSchema, check_answer, check_gradients
from hivemind_p2p.compression import (
    MAX_UNARY_BYTES,
    ErrorMeter,
    TensorAssembler,
    carries,
    compression_type,
    deserialize_tensor,
    in_parts,
    message_of,
)
from hivemind_p2p.errors import ProtocolNotSupported
from hivemind_p2p.rpc import RPC
from hivemind_p2p.wire import runtime_pb2
from hivemind_p2p.wire.expert_messages import ExpertMessage
from hivemind_p2p.wire.expert_metadata import AnswerNotes, Urgency, pack_wish, read_codecs, read_notes
from hivemind_p2p.wire.peer_id import PeerID
from hivemind_p2p.wire.tensor_descriptor import TensorDescriptor

Direction: TypeAlias = Literal["forward", "backward"]
INLINE_BYTES: Final = 2**18
"""Bytes of tensors up to which they are packed and unpacked between two turns of the network; more, in a thread."""
COPIED_AT_ONCE: Final = 2**20
"""Bytes that are only copied there: less than a thread costs."""
AS_THE_EXPERT_SAYS: Final = Kinds()
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


async def fetch_codecs(rpc: RPC, peer_id: PeerID, timeout: float | None = None) -> frozenset[int]:
    """Ask a peer which compressions it knows; none if it is not one of ours.

    Raises:
        RPCError, TransportError: it does not answer.
    """
    try:
        answer = await rpc.call(
            peer_id, "ConnectionHandler.rpc_codecs", runtime_pb2.ExpertUID(), runtime_pb2.ExpertInfo, timeout=timeout
        )
    except ProtocolNotSupported:
        return frozenset()
    return read_codecs(answer.serialized_info)


async def call_expert(
    rpc: RPC,
    expert: ExpertInfo,
    direction: Direction,
    schema: ExpertSchema,
    tensors: Sequence[torch.Tensor],
    timeout: float | None = None,
    kinds: Kinds = AS_THE_EXPERT_SAYS,
    meter: ErrorMeter | None = None,
) -> Answer:
    """Have an expert compute: its outputs, or the gradients of its inputs, on the CPU.

    Small calls are unary, large ones streams of parts; here the size of the answer counts as well, which must fit, too.

    Args:
        tensors: on the CPU, all of one batch. Forward: the inputs, flat. Backward: then the gradients of the outputs.
        timeout: seconds; default: the RPC's own.
        kinds: how the tensors travel.
        meter: measures what compressing them costs.

    Raises:
        ProtocolViolation: the answer is not what the schema promised.
        CodecError: it is not tensors at all, or larger than promised.
        RPCError, TransportError: there is none.
    """
    rows = len(tensors[0])
    if direction == "forward":
        sent, expected, answer_bytes = schema.inputs, schema.outputs, rows * schema.output_row_bytes
    else:
        sent, expected = schema.inputs + schema.outputs, schema.inputs
        answer_bytes = sum(tensor.nbytes for tensor in tensors[: len(expected)])
    wishes = [kinds.inputs if place < len(schema.inputs) else kinds.grads for place in range(len(sent))]
    compressions = [_compression(*each) for each in zip(tensors, sent, wishes, strict=True)]
    metadata = b""
    if kinds.wish is not None:
        left = trio.current_effective_deadline() - trio.current_time()
        metadata = pack_wish(kinds.wish, Urgency(left if left < math.inf else timeout))
    call = _Call(rpc, expert, direction, tensors, compressions, metadata, meter, len(expected), answer_bytes, timeout)
    answer = await (call.unary() if call.largest <= MAX_UNARY_BYTES else call.stream())
    check_answer(answer, expected, rows)
    if direction == "backward":
        check_gradients(answer, tensors)
    if not call.notes and not any(compressions) and not any(call.came):
        return Answer(answer)
    notes = read_notes(call.notes)
    return Answer(answer, call.reports(len(schema.inputs), notes), notes.received)


class Answer(NamedTuple):
    """What came of a call.

    Attributes:
        tensors: on the CPU.
        compressed: those of both directions that did not travel as they are.
        received: bytes per second at which the peer says that it gets what we send; None: it does not.
    """

    tensors: list[torch.Tensor]
    compressed: tuple[TensorReport, ...] = ()
    received: float | None = None


@dataclass
class _Call:
    rpc: RPC
    expert: ExpertInfo
    direction: Direction
    tensors: Sequence[torch.Tensor]
    compressions: Sequence[int]
    metadata: bytes
    meter: ErrorMeter | None
    answer_tensors: int
    answer_bytes: int
    timeout: float | None
    errors: list[float | None] = field(default_factory=list)
    came: list[int] = field(default_factory=list)
    notes: bytes = b""

    @property
    def largest(self) -> int:
        """Bytes of the request or of the answer, whichever is more. bfloat16 may travel as float32."""
        sent = sum(tensor.nbytes * (1 + (tensor.dtype is torch.bfloat16)) for tensor in self.tensors)
        return max(sent, self.answer_bytes)

    @property
    def _work(self) -> int:
        """Bytes of what cannot be sent as it lies in memory."""
        return sum(
            tensor.nbytes
            for tensor, kind in zip(self.tensors, self.compressions, strict=True)
            if kind or tensor.dtype is torch.bfloat16 or not tensor.is_contiguous()
        )

    def reports(self, inputs: int, notes: AnswerNotes) -> tuple[TensorReport, ...]:
        """What was compressed, there and back."""
        there: Iterable[TensorReport] = (
            TensorReport("input" if place < inputs else "grad_output", compression_type(kind).name, error)
            for place, (kind, error) in enumerate(zip(self.compressions, self.errors, strict=False))
            if kind
        )
        errors = notes.errors if len(notes.errors) == len(self.came) else [None] * len(self.came)
        back: Iterable[TensorReport] = (
            TensorReport("output" if self.direction == "forward" else "grad_input", compression_type(kind).name, error)
            for kind, error in zip(self.came, errors, strict=True)
            if kind
        )
        return (*there, *back)

    async def unary(self) -> list[torch.Tensor]:
        request = await beside_the_network(self._work, self._pack)
        method = f"ConnectionHandler.rpc_{self.direction}"
        kind = ExpertMessage
        answer = await self.rpc.call(
            self.expert.peer_id, method, request, kind, timeout=self.timeout, carries=self.largest
        )
        self.notes, self.came = answer.metadata, [tensor.compression for tensor in answer.tensors]
        copied_at_once = not any(self.came) and self.answer_bytes <= COPIED_AT_ONCE
        return await beside_the_network(0 if copied_at_once else self.largest, self._unpack, answer)

    async def stream(self) -> list[torch.Tensor]:
        assembler = TensorAssembler(max_bytes=self.answer_bytes, max_tensors=self.answer_tensors)
        answer: list[torch.Tensor] = []
        method = f"ConnectionHandler.rpc_{self.direction}_stream"
        kind = ExpertMessage
        async with self.rpc.stream_call(
            self.expert.peer_id, method, self._parts(), kind, timeout=self.timeout, carries=self.largest
        ) as responses:
            async for response in responses:
                self.notes = self.notes or response.metadata
                for part in response.tensors:
                    encoded = assembler.add(part)
                    if encoded is not None:
                        self.came.append(encoded.header.compression)
                        answer += [await beside_the_network(encoded.length, encoded.decode)]
                    elif ahead := assembler.ahead:
                        await beside_the_network(ahead, assembler.decode_ahead)
        assembler.finish()
        return answer

    def _measure(self, tensor: torch.Tensor, compression: int) -> None:
        self.errors.append(self.meter.measure(tensor, compression) if self.meter is not None else None)

    def _pack(self) -> ExpertMessage:
        for each in zip(self.tensors, self.compressions, strict=True):
            self._measure(*each)
        packed = map(message_of, self.tensors, self.compressions)
        return ExpertMessage(uid=self.expert.uid, tensors=list(packed), metadata=self.metadata)

    def _unpack(self, answer: ExpertMessage) -> list[torch.Tensor]:
        return [deserialize_tensor(tensor, max_bytes=self.answer_bytes) for tensor in answer.tensors]

    async def _parts(self) -> AsyncIterator[ExpertMessage]:
        metadata = self.metadata
        for tensor, compression in zip(self.tensors, self.compressions, strict=True):
            if compression:
                await beside_the_network(tensor.nbytes, self._measure, tensor, compression)
            else:
                self.errors.append(0.0)
            parts = in_parts(tensor, compression)
            work = tensor.nbytes if compression or not tensor.is_contiguous() else 0
            while (part := await beside_the_network(work, next, parts, None)) is not None:
                yield ExpertMessage(uid=self.expert.uid, tensors=[part], metadata=metadata)
                metadata = b""


def _compression(tensor: torch.Tensor, descriptor: TensorDescriptor, wish: int | None) -> int:
    """As was decided, or as the expert wants its tensors to be compressed; only floats can lose precision."""
    if not tensor.is_floating_point():
        return runtime_pb2.NONE
    if wish is None:
        return descriptor.compression
    return wish if carries(wish, tensor.dtype) else runtime_pb2.NONE


async def beside_the_network(size: int, function: Callable[..., _T], *args: Any) -> _T:
    """Call a function that works on ``size`` bytes without holding up other calls for long."""
    if size <= INLINE_BYTES:
        return function(*args)
    return await trio.to_thread.run_sync(function, *args)
