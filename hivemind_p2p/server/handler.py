"""``ConnectionHandler`` answers the remote calls to experts: hivemind 1.1's methods, once for all experts of a node.

A request passes these gates, in this order, and what fails at one never reaches the next: the server takes requests;
it hosts the expert; number, shapes and dtypes of the tensors, as the messages declare them, fit the expert; their bytes
are within the bounds; the answer will fit the call; the bytes are the tensors they claim to be; there is room in the
expert's queue. Only then is anything computed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Final, Literal

import torch
import trio

from hivemind_p2p.compression import TensorAssembler, deserialize_tensor, serialize_in_parts, serialize_tensor
from hivemind_p2p.errors import DeadlineExceeded, ExpertNotFound, ProtocolViolation
from hivemind_p2p.rpc import RPC, CallContext
from hivemind_p2p.runtime import ExpertBackend, TaskPool
from hivemind_p2p.server.admission import Admission, Admitted
from hivemind_p2p.server.declared import DeclaredTensors
from hivemind_p2p.server.offload import off_the_loop
from hivemind_p2p.wire import msgpack, runtime_pb2

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
    """

    def __init__(self, experts: Mapping[str, ExpertBackend], *, max_request_bytes: int, max_pending_bytes: int) -> None:
        self._experts = experts
        self._admission = Admission(max_request_bytes=max_request_bytes, max_pending_bytes=max_pending_bytes)
        self._unary_limit = 2**22

    def register(self, rpc: RPC) -> None:
        """Answer calls of this node.

        Raises:
            RPCError: another handler does.
        """
        self._unary_limit = rpc.settings.max_message_bytes
        rpc.register(f"{SERVICE}.rpc_info", runtime_pb2.ExpertUID, self.rpc_info)
        rpc.register(f"{SERVICE}.rpc_forward", runtime_pb2.ExpertRequest, self.rpc_forward)
        rpc.register(f"{SERVICE}.rpc_backward", runtime_pb2.ExpertRequest, self.rpc_backward)
        rpc.register_stream(f"{SERVICE}.rpc_forward_stream", runtime_pb2.ExpertRequest, self.rpc_forward_stream)
        rpc.register_stream(f"{SERVICE}.rpc_backward_stream", runtime_pb2.ExpertRequest, self.rpc_backward_stream)

    def unregister(self, rpc: RPC) -> None:
        """Answer no more calls."""
        for method in ("rpc_info", "rpc_forward", "rpc_backward", "rpc_forward_stream", "rpc_backward_stream"):
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

    async def rpc_forward(self, request: runtime_pb2.ExpertRequest, context: CallContext) -> runtime_pb2.ExpertResponse:
        """Outputs for inputs."""
        return await self._answer(request, "forward")

    async def rpc_backward(
        self, request: runtime_pb2.ExpertRequest, context: CallContext
    ) -> runtime_pb2.ExpertResponse:
        """Input gradients for inputs and output gradients; the expert learns."""
        return await self._answer(request, "backward")

    def rpc_forward_stream(
        self, requests: AsyncIterator[runtime_pb2.ExpertRequest], context: CallContext
    ) -> AsyncIterator[runtime_pb2.ExpertResponse]:
        """Outputs for inputs, of any size."""
        return self._answer_stream(requests, "forward")

    def rpc_backward_stream(
        self, requests: AsyncIterator[runtime_pb2.ExpertRequest], context: CallContext
    ) -> AsyncIterator[runtime_pb2.ExpertResponse]:
        """Input gradients for inputs and output gradients, of any size; the expert learns."""
        return self._answer_stream(requests, "backward")

    async def _answer(self, request: runtime_pb2.ExpertRequest, direction: Direction) -> runtime_pb2.ExpertResponse:
        with self._admission.enter() as admitted:
            pool = self._pool(request.uid, direction)
            declared = DeclaredTensors(pool)
            for message in request.tensors:
                declared.add(message)
                admitted.take(len(message.buffer))
            declared.check_complete()
            declared.check_answer_fits(self._unary_limit - _ENVELOPE)
            inputs = [await _decode(message) for message in request.tensors]
            outputs = await pool.submit(*inputs)
            return runtime_pb2.ExpertResponse(
                tensors=[
                    await off_the_loop(output.nbytes, kind, serialize_tensor, output, kind)
                    for output, kind in zip(outputs, _compressions(pool), strict=True)
                ]
            )

    async def _answer_stream(
        self, requests: AsyncIterator[runtime_pb2.ExpertRequest], direction: Direction
    ) -> AsyncIterator[runtime_pb2.ExpertResponse]:
        with self._admission.enter() as admitted:
            pool, inputs = await self._gather(requests, direction, admitted)
            outputs = await pool.submit(*inputs)
            del inputs
            for output, kind in zip(outputs, _compressions(pool), strict=True):
                for part in await off_the_loop(output.nbytes, kind, serialize_in_parts, output, kind):
                    yield runtime_pb2.ExpertResponse(tensors=[part])

    async def _gather(
        self, requests: AsyncIterator[runtime_pb2.ExpertRequest], direction: Direction, admitted: Admitted
    ) -> tuple[TaskPool, list[torch.Tensor]]:
        """The tensors of a streamed request. Its first message names the expert; later ones may name it again."""
        request = await _next(requests)
        if request is None:
            raise ProtocolViolation("the request ended before it began: its first message names the expert")
        uid = request.uid
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
            request = await _next(requests)
        assembler.finish()
        declared.check_complete()
        return pool, inputs

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


def _compressions(pool: TaskPool) -> list[int]:
    return [descriptor.compression for descriptor in pool.outputs.descriptors]


async def _decode(message: runtime_pb2.Tensor) -> torch.Tensor:
    return await off_the_loop(len(message.buffer), message.compression, deserialize_tensor, message)


async def _next(requests: AsyncIterator[runtime_pb2.ExpertRequest]) -> runtime_pb2.ExpertRequest | None:
    with trio.move_on_after(PART_TIMEOUT):
        return await anext(requests, None)
    raise DeadlineExceeded(f"no part of the request came for {PART_TIMEOUT:g} s")
