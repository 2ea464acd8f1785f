"""``ConnectionHandler`` answers the remote calls to experts: hivemind 1.1's methods, once for all experts of a node.

A request passes these gates, in this order, and what fails at one never reaches the next: the server takes requests;
it hosts the expert; number, shapes and dtypes of the tensors, as the messages declare them, fit the expert; their bytes
are within the bounds; the answer will fit the call; the bytes are the tensors they claim to be; there is room in the
expert's queue. Only then is anything computed, and only as long as the caller waits for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, Literal

import torch
import trio

from hivemind_p2p.compression import (
    CODECS,
    ErrorMeter,
    TensorAssembler,
    carries,
    deserialize_tensor,
    in_parts,
    message_of,
)
from hivemind_p2p.errors import DeadlineExceeded, ExpertNotFound, ProtocolViolation
from hivemind_p2p.rpc import RPC, CallContext
from hivemind_p2p.rpc.link_speed import LinkSpeeds
from hivemind_p2p.runtime import ExpertBackend, TaskPool
from hivemind_p2p.server.admission import Admission, Admitted
from hivemind_p2p.server.declared import DeclaredTensors
from hivemind_p2p.server.offload import off_the_loop
from hivemind_p2p.wire import msgpack, runtime_pb2
from hivemind_p2p.wire.expert_messages import ExpertMessage, TensorMessage
from hivemind_p2p.wire.expert_metadata import Wish, pack_codecs, pack_notes, read_urgency, read_wish

SERVICE: Final = "ConnectionHandler"
PART_TIMEOUT: Final = 60.0
"""Seconds that the next part of a streamed request may take."""
_ENVELOPE: Final = 2**12
"""What a unary answer has beside tensor bytes, at most."""

Direction = Literal["forward", "backward"]


class ConnectionHandler:
    """Answers for some experts.

    Args:
        experts: by uid.
        max_request_bytes: the largest request, all its tensors together as they travel.
        max_pending_bytes: the most bytes of all requests at hand.

    Attributes:
        errors: what compressing answers has cost.
    """

    def __init__(self, experts: Mapping[str, ExpertBackend], *, max_request_bytes: int, max_pending_bytes: int) -> None:
        self._experts = experts
        self._admission = Admission(max_request_bytes=max_request_bytes, max_pending_bytes=max_pending_bytes)
        self._unary_limit = 2**22
        self._speeds: LinkSpeeds | None = None
        self.errors = ErrorMeter()

    def register(self, rpc: RPC) -> None:
        """Answer calls of this node.

        Raises:
            RPCError: another handler does.
        """
        self._unary_limit, self._speeds = rpc.settings.max_message_bytes, rpc.speeds
        rpc.register(f"{SERVICE}.rpc_info", runtime_pb2.ExpertUID, self.rpc_info)
        rpc.register(f"{SERVICE}.rpc_codecs", runtime_pb2.ExpertUID, self.rpc_codecs)
        rpc.register(f"{SERVICE}.rpc_forward", ExpertMessage, self.rpc_forward)
        rpc.register(f"{SERVICE}.rpc_backward", ExpertMessage, self.rpc_backward)
        rpc.register_stream(f"{SERVICE}.rpc_forward_stream", ExpertMessage, self.rpc_forward_stream)
        rpc.register_stream(f"{SERVICE}.rpc_backward_stream", ExpertMessage, self.rpc_backward_stream)

    def unregister(self, rpc: RPC) -> None:
        """Answer no more calls."""
        for method in (
            "rpc_info",
            "rpc_codecs",
            "rpc_forward",
            "rpc_backward",
            "rpc_forward_stream",
            "rpc_backward_stream",
        ):
            rpc.unregister(f"{SERVICE}.{method}")

    def refuse(self) -> None:
        """From now on, tell callers that the server is stopping. Requests under way go on."""
        self._admission.close()

    async def drained(self) -> None:
        """Wait until no request is under way."""
        await self._admission.empty()

    async def rpc_info(self, request: runtime_pb2.ExpertUID, context: CallContext) -> runtime_pb2.ExpertInfo:
        """The schemas of an expert."""
        with self._admission.enter():
            info = self._expert(request.uid).info()
            return runtime_pb2.ExpertInfo(serialized_info=msgpack.dumps(info))

    async def rpc_codecs(self, request: runtime_pb2.ExpertUID, context: CallContext) -> runtime_pb2.ExpertInfo:
        """The compressions that we know, and give when they are wished for. Not one of hivemind's methods: by serving
        it we tell callers what we are."""
        return runtime_pb2.ExpertInfo(serialized_info=pack_codecs(list(CODECS)))

    async def rpc_forward(self, request: ExpertMessage, context: CallContext) -> ExpertMessage:
        """Outputs for inputs."""
        return await self._answer(request, "forward", context)

    async def rpc_backward(self, request: ExpertMessage, context: CallContext) -> ExpertMessage:
        """Input gradients for inputs and output gradients; the expert learns."""
        return await self._answer(request, "backward", context)

    def rpc_forward_stream(
        self, requests: AsyncIterator[ExpertMessage], context: CallContext
    ) -> AsyncIterator[ExpertMessage]:
        """Outputs for inputs, of any size."""
        return self._answer_stream(requests, "forward", context)

    def rpc_backward_stream(
        self, requests: AsyncIterator[ExpertMessage], context: CallContext
    ) -> AsyncIterator[ExpertMessage]:
        """Input gradients for inputs and output gradients, of any size; the expert learns."""
        return self._answer_stream(requests, "backward", context)

    async def _answer(self, request: ExpertMessage, direction: Direction, context: CallContext) -> ExpertMessage:
        with self._admission.enter() as admitted:
            pool = self._pool(request.uid, direction)
            declared = DeclaredTensors(pool)
            for message in request.tensors:
                declared.add(message)
                admitted.take(len(message.buffer))
            declared.check_complete()
            kinds = _compressions(pool, wish := read_wish(request.metadata))
            declared.check_answer_fits(self._unary_limit - _ENVELOPE, kinds)
            inputs = [await _decode(message) for message in request.tensors]
            outputs = await _compute(pool, inputs, request.metadata, context)
            return ExpertMessage(
                metadata=await self._notes(outputs, kinds, context) if wish is not None else b"",
                tensors=[
                    await off_the_loop(output.nbytes, kind, message_of, output, kind)
                    for output, kind in zip(outputs, kinds, strict=True)
                ],
            )

    async def _answer_stream(
        self, requests: AsyncIterator[ExpertMessage], direction: Direction, context: CallContext
    ) -> AsyncIterator[ExpertMessage]:
        with self._admission.enter() as admitted:
            pool, inputs, metadata = await self._gather(requests, direction, admitted)
            outputs = await _compute(pool, inputs, metadata, context)
            del inputs
            wish = read_wish(metadata)
            kinds = _compressions(pool, wish)
            notes = await self._notes(outputs, kinds, context) if wish is not None else b""
            for output, kind in zip(outputs, kinds, strict=True):
                parts = in_parts(output, kind)
                work = output.nbytes if kind or not output.is_contiguous() else 0
                while (part := await off_the_loop(work, kind, next, parts, None)) is not None:
                    yield ExpertMessage(tensors=[part], metadata=notes)
                    notes = b""

    async def _gather(
        self, requests: AsyncIterator[ExpertMessage], direction: Direction, admitted: Admitted
    ) -> tuple[TaskPool, list[torch.Tensor], bytes]:
        """The tensors of a streamed request, and what stands beside them. Its first message names the expert; later
        ones may name it again."""
        request = await _next(requests)
        if request is None:
            raise ProtocolViolation("the request ended before it began: its first message names the expert")
        uid, metadata = request.uid, request.metadata
        pool = self._pool(uid, direction)
        declared = DeclaredTensors(pool)
        assembler = TensorAssembler(max_bytes=self._admission.max_request_bytes, max_tensors=len(pool.inputs))
        inputs = []
        while request is not None:
            if request.uid not in ("", uid):
                raise ProtocolViolation(f"one request names two experts, {uid} and {request.uid[:80]!r}")
            for part in request.tensors:
                if part.dtype:
                    declared.add(part)
                admitted.take(len(part.buffer))
                encoded = assembler.add(part)
                if encoded is not None:
                    kind = encoded.header.compression.value
                    inputs.append(await off_the_loop(encoded.length, kind, encoded.decode))
                elif ahead := assembler.ahead:
                    await off_the_loop(ahead, 1, assembler.decode_ahead)
            request = await _next(requests)
        assembler.finish()
        declared.check_complete()
        return pool, inputs, metadata

    async def _notes(self, outputs: Sequence[torch.Tensor], kinds: Sequence[int], context: CallContext) -> bytes:
        """What one of our clients is told beside its answer."""
        errors = [
            await off_the_loop(output.nbytes, kind, self.errors.measure, output, kind)
            for output, kind in zip(outputs, kinds, strict=True)
        ]
        return pack_notes(errors, self._speeds.of(context.peer_id) if self._speeds is not None else None)

    def _pool(self, uid: str, direction: Direction) -> TaskPool:
        expert = self._expert(uid)
        return expert.forward_pool if direction == "forward" else expert.backward_pool

    def _expert(self, uid: str) -> ExpertBackend:
        expert = self._experts.get(uid)
        if expert is None:
            hosted = ", ".join(sorted(self._experts)[:5]) + (", ..." if len(self._experts) > 5 else "")
            raise ExpertNotFound(f"this peer does not host {uid[:80]!r}, only {hosted}; look in the DHT for who does")
        return expert

    def __repr__(self) -> str:
        return f"<ConnectionHandler of {len(self._experts)} experts: {self._admission!r}>"


async def _compute(
    pool: TaskPool, inputs: Sequence[torch.Tensor], metadata: bytes, context: CallContext
) -> tuple[torch.Tensor, ...]:
    """The answer, if it is there before the caller gives up: what he does not wait for any more is not begun."""
    urgency = read_urgency(metadata)
    if urgency.timeout is None:
        return await pool.submit(*inputs, client=context.peer_id, priority=urgency.priority)
    with trio.move_on_after(urgency.timeout):
        return await pool.submit(*inputs, client=context.peer_id, priority=urgency.priority)
    raise DeadlineExceeded(f"{pool.name} had no answer within the {urgency.timeout:g} s that the caller waits")


def _compressions(pool: TaskPool, wish: Wish | None) -> list[int]:
    """Those of the outputs: as the caller wishes, if we can; otherwise as the expert's schema says."""
    outputs = pool.outputs.descriptors
    if wish is None or wish.compression not in CODECS:
        return [each.compression for each in outputs]
    kind = wish.compression
    return [kind if each.dtype.is_floating_point and carries(kind, each.dtype) else 0 for each in outputs]


async def _decode(message: TensorMessage) -> torch.Tensor:
    return await off_the_loop(len(message.buffer), message.compression, deserialize_tensor, message)


async def _next(requests: AsyncIterator[ExpertMessage]) -> ExpertMessage | None:
    with trio.move_on_after(PART_TIMEOUT):
        return await anext(requests, None)
    raise DeadlineExceeded(f"no part of the request came for {PART_TIMEOUT:g} s")
