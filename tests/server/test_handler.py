"""Calls to experts over streams in memory: what is answered, what is refused, and that nothing else suffers."""

from __future__ import annotations

import copy
from contextlib import asynccontextmanager

import pytest
import torch
import trio
from torch import nn
from trio.testing import wait_all_tasks_blocked

from hivemind_p2p.compression import serialize_tensor
from hivemind_p2p.errors import (
    AnomalyDetected,
    CodecError,
    DeadlineExceeded,
    ExpertFailed,
    ExpertNotFound,
    MessageTooLarge,
    Overloaded,
    ProtocolViolation,
    RemoteError,
    RPCError,
    SchemaMismatch,
)
from hivemind_p2p.runtime import BatchTensorDescriptor, ExpertBackend, Runtime
from hivemind_p2p.server import handler as handler_module
from hivemind_p2p.server.handler import ConnectionHandler
from hivemind_p2p.wire import runtime_pb2
from hivemind_p2p.wire.compression_type import CompressionType
from hivemind_p2p.wire.expert_metadata import Wish, pack_wish
from hivemind_p2p.wire.tensor_descriptor import TensorDescriptor
from tests.server.calls import Caller

SIZE = 16


class Pair(nn.Module):
    """Two inputs, one of them whole numbers; two outputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(SIZE, SIZE)

    def forward(self, x, *, scale):
        y = self.linear(x) * scale
        return y, {"sum": y.sum(dim=1, keepdim=True)}


class Fails(nn.Module):
    def forward(self, x):
        raise ValueError("this expert never works")


class Wide(nn.Module):
    def forward(self, x):
        return x.repeat(1, 512)


def backend(uid, module, size=SIZE, compression=0, **options):
    parameters = list(module.parameters())
    return ExpertBackend(
        uid,
        module,
        args_schema=[BatchTensorDescriptor(size, compression=compression)],
        optimizer=torch.optim.SGD(parameters, lr=0.1) if parameters else None,
        **options,
    )


@pytest.fixture
def experts():
    pair = Pair()
    return {
        "linear.0": backend("linear.0", nn.Linear(SIZE, SIZE)),
        "pair.0": ExpertBackend(
            "pair.0",
            pair,
            args_schema=[BatchTensorDescriptor(SIZE)],
            kwargs_schema={"scale": BatchTensorDescriptor(1, dtype=torch.int64)},
            optimizer=torch.optim.SGD(pair.parameters(), lr=0.1),
        ),
        "fails.0": backend("fails.0", Fails(), outputs_schema=BatchTensorDescriptor(SIZE)),
        "wide.0": backend("wide.0", Wide()),
        "half.0": backend(
            "half.0",
            nn.Identity(),
            compression=CompressionType.FLOAT16,
            outputs_schema=BatchTensorDescriptor(SIZE, compression=CompressionType.UNIFORM_8BIT),
        ),
    }


@asynccontextmanager
async def serving(pair, experts, *, max_request_bytes=2**24, max_pending_bytes=2**26):
    caller, callee = pair
    handler = ConnectionHandler(experts, max_request_bytes=max_request_bytes, max_pending_bytes=max_pending_bytes)
    async with Runtime(experts):
        handler.register(callee)
        yield Caller(caller, callee.network.peer_id), handler
        handler.unregister(callee)


@pytest.fixture
async def served(pair, experts):
    async with serving(pair, experts) as (caller, handler):
        yield caller
        [expert] = [expert for uid, expert in experts.items() if uid == "linear.0"]
        [outputs] = await caller.unary("forward", "linear.0", torch.ones(1, SIZE))
        assert torch.equal(outputs, expert.module(torch.ones(1, SIZE))), "it serves on, whatever the test did"
        assert repr(handler) == "<ConnectionHandler of 5 experts: <Admission: 0 requests of 0 bytes at hand>>"


def local(expert, x, gradient):
    """What the same module gives when it is called and trained here: outputs, input gradient, new weights."""
    module, x = copy.deepcopy(expert.module), x.clone().requires_grad_()
    outputs = module(x)
    outputs.backward(gradient)
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    return outputs.detach(), x.grad, list(module.parameters())


@pytest.mark.parametrize("rows", [1, 7, 40_000])
async def test_unary_and_streamed_calls_equal_the_local_module(served, experts, rows):
    call = served.unary if rows < 1000 else served.stream
    x, gradient = torch.randn(rows, SIZE), torch.randn(rows, SIZE)
    expert = experts["linear.0"]
    expert.max_batch_size = 2**20  # in one piece, as the local module is called
    outputs, x_grad, weights = local(expert, x, gradient)
    [answer] = await call("forward", "linear.0", x)
    assert torch.equal(answer, outputs)
    [answer] = await call("backward", "linear.0", x, gradient)
    assert torch.equal(answer, x_grad)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(expert.module.parameters(), weights, strict=True))


async def test_numbers_that_are_not_finite_are_refused_by_name(served, experts):
    x = torch.ones(3, SIZE)
    bad = x * torch.tensor([[1.0], [float("inf")], [1.0]])
    with pytest.raises(AnomalyDetected, match="input 0 has NaN or infinity in row 1"):
        await served.unary("forward", "linear.0", bad)
    with pytest.raises(AnomalyDetected, match="the gradient of output 0 has NaN or infinity in row 1"):
        await served.stream("backward", "linear.0", x, bad)
    assert experts["linear.0"].update_count == 0


async def test_several_inputs_and_outputs(served, experts):
    x, scale = torch.randn(3, SIZE), torch.tensor([[1], [2], [3]])
    y, sums = await served.unary("forward", "pair.0", x, scale)
    assert torch.equal(y, experts["pair.0"].module(x, scale=scale)[0])
    assert sums.shape == (3, 1)
    x_grad, scale_grad = await served.unary("backward", "pair.0", x, scale, y, sums)
    assert x_grad.shape == x.shape
    assert torch.equal(scale_grad, torch.zeros(3, 1, dtype=torch.int64))


async def test_info(served):
    descriptor = TensorDescriptor(size=(None, SIZE), device_type=None)
    info = await served.info("pair.0")
    scale = TensorDescriptor(size=(None, 1), dtype="torch.int64", device_type=None)
    assert info["forward_schema"] == ((descriptor,), {"scale": scale})
    assert info["keyword_names"] == ("scale",)
    assert [output.size for output in (info["outputs_schema"][0], info["outputs_schema"][1]["sum"])] == [
        (None, SIZE),
        (None, 1),
    ]
    with pytest.raises(ExpertNotFound, match=r"does not host 'pair\.1', only fails\.0, half\.0"):
        await served.info("pair.1")


async def test_answers_are_compressed_as_the_schema_says(served):
    x = torch.linspace(-1, 1, 4096 * SIZE).view(4096, SIZE)
    request = runtime_pb2.ExpertRequest(uid="half.0", tensors=[serialize_tensor(x, CompressionType.FLOAT16)])
    response = await served.send("forward", request)
    assert [tensor.compression for tensor in response.tensors] == [CompressionType.UNIFORM_8BIT]
    request.tensors.append(serialize_tensor(x, CompressionType.NONE))  # a client may always send plain tensors
    response = await served.send("backward", request)
    assert [tensor.compression for tensor in response.tensors] == [CompressionType.FLOAT16]
    [outputs] = await served.stream("forward", "half.0", x)
    assert (outputs - x).abs().max() < 0.02


X = torch.zeros(2, SIZE)


@pytest.mark.parametrize("kind", ["unary", "stream"])
@pytest.mark.parametrize(
    ("uid", "tensors", "error", "text"),
    [
        ("linear.1", [X], ExpertNotFound, r"does not host 'linear\.1'.*look in the DHT"),
        ("garbage", [X], ExpertNotFound, "garbage"),
        ("x" * 10_000, [X], ExpertNotFound, "'xxx"),
        ("linear.0", [X, X], SchemaMismatch, r"expected 1 tensor for linear\.0_forward \(input 0\), got more"),
        ("pair.0", [X], SchemaMismatch, r"expected 2 tensors for pair\.0_forward \(input 0, input scale\), got 1"),
        ("linear.0", [X[:, 1:]], SchemaMismatch, r"input 0 for linear\.0_forward: expected shape \(any, 16\), got"),
        ("linear.0", [X[0]], SchemaMismatch, r"expected 2 dimensions \(any, 16\), got 1"),
        ("linear.0", [X.double()], SchemaMismatch, r"expected dtype torch\.float32, got torch\.float64"),
        ("pair.0", [X, torch.ones(3, 1, dtype=torch.int64)], SchemaMismatch, "has batch size 3, but input 0 has 2"),
        ("fails.0", [X], ExpertFailed, r"fails\.0_forward failed on a batch of 2 rows: ValueError: this expert never"),
    ],
)  # fmt: skip
async def test_what_is_refused(served, kind, uid, tensors, error, text):
    call = served.unary if kind == "unary" else served.stream
    with pytest.raises(error, match=text) as caught:
        await call("forward", uid, *tensors)
    assert isinstance(caught.value, RemoteError)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_gradients_that_do_not_fit(served, experts, kind):
    call = served.unary if kind == "unary" else served.stream
    before = copy.deepcopy(experts["linear.0"].module.state_dict())
    with pytest.raises(SchemaMismatch, match="the gradient of output 0"):
        await call("backward", "linear.0", X)
    with pytest.raises(SchemaMismatch, match="the gradient of output 0 for"):
        await call("backward", "linear.0", X, torch.ones(2, SIZE + 1))
    after = experts["linear.0"].module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def declared(size, dtype="float32", buffer=b"", **fields):
    return runtime_pb2.Tensor(size=size, dtype=dtype, buffer=buffer, **fields)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (declared([2, SIZE], buffer=b"short"), CodecError),
        (declared([2, SIZE], buffer=b"x" * 4096), CodecError),
        (declared([2, SIZE], compression=3, buffer=b"\xff" * 200), CodecError),
        (declared([2**31, SIZE]), MessageTooLarge),
        (declared([2, SIZE], dtype="object"), SchemaMismatch),
        (declared([], dtype=""), SchemaMismatch),
    ],
)
async def test_garbage_in_a_tensor(served, message, error):
    request = runtime_pb2.ExpertRequest(uid="linear.0", tensors=[message])
    with pytest.raises(error):
        await served.send("forward", request)
    with pytest.raises(CodecError if not message.dtype else (error, CodecError)):
        await served.send_stream("forward", [request])


async def test_garbage_between_parts(served):
    part = declared([1000, SIZE], buffer=b"\0" * 1000, chunks=64)
    first = runtime_pb2.ExpertRequest(uid="linear.0", tensors=[part])
    rest = runtime_pb2.ExpertRequest(tensors=[runtime_pb2.Tensor(buffer=b"\0" * 1000)])
    other = runtime_pb2.ExpertRequest(uid="pair.0", tensors=rest.tensors)
    assert len(await served.send_stream("forward", [first, *[rest] * 63])) == 1
    with pytest.raises(CodecError, match="63 of 64 parts"):
        await served.send_stream("forward", [first, *[rest] * 62])
    with pytest.raises((CodecError, SchemaMismatch)):
        await served.send_stream("forward", [first, first])
    with pytest.raises(ProtocolViolation, match=r"names two experts, linear\.0 and 'pair\.0'"):
        await served.send_stream("forward", [first, other])
    with pytest.raises(ProtocolViolation, match="before it began"):
        await served.send_stream("forward", [])
    with pytest.raises(SchemaMismatch, match="got 0"):
        await served.send_stream("forward", [runtime_pb2.ExpertRequest(uid="linear.0")])


async def test_an_answer_that_one_message_cannot_hold_is_refused_before_it_is_computed(served, experts):
    x = torch.ones(130, SIZE)
    with pytest.raises(MessageTooLarge, match="use the streaming call"):
        await served.unary("forward", "wide.0", x)
    assert experts["wide.0"].forward_pool.stats.batches == 0
    [outputs] = await served.stream("forward", "wide.0", x)
    assert outputs.shape == (130, 512 * SIZE)


async def test_an_answer_that_no_message_holds_as_it_is_wished_for_is_refused_before_it_is_computed(served, experts):
    x = serialize_tensor(torch.ones(80_000, SIZE), CompressionType.FLOAT16)
    for direction in ("forward", "backward"):
        tensors = [x] if direction == "forward" else [x, serialize_tensor(torch.ones(80_000, SIZE), 3)]
        request = runtime_pb2.ExpertRequest(uid="half.0", tensors=tensors, metadata=pack_wish(Wish(0)))
        with pytest.raises(MessageTooLarge, match="use the streaming call"):
            await served.send(direction, request)
    assert experts["half.0"].forward_pool.stats.batches == experts["half.0"].backward_pool.stats.batches == 0


async def test_bounds_of_bytes(pair, experts):
    x = torch.ones(100, SIZE)
    async with serving(pair, experts, max_request_bytes=6000, max_pending_bytes=9000) as (caller, handler):
        with pytest.raises(MessageTooLarge, match="more than 6000 bytes"):
            await caller.unary("forward", "linear.0", x)
        with pytest.raises((MessageTooLarge, CodecError)):
            await caller.stream("forward", "linear.0", x, part_size=100)
        [outputs] = await caller.unary("forward", "linear.0", x[:90])
        assert outputs.shape == (90, SIZE)
        async with waiting_request(caller, handler, rows=90):
            with pytest.raises(Overloaded, match=r"requests at hand have 5759 bytes.*another replica"):
                await caller.unary("forward", "linear.0", x[:60])
        [outputs] = await caller.unary("forward", "linear.0", x[:60])
        assert repr(handler) == "<ConnectionHandler of 5 experts: <Admission: 0 requests of 0 bytes at hand>>"


@asynccontextmanager
async def waiting_request(caller, handler, rows):
    """A streamed request of which all but the last byte has come."""
    part = serialize_tensor(torch.ones(rows, SIZE))
    first = runtime_pb2.Tensor(
        buffer=part.buffer[:-1], size=part.size, dtype=part.dtype, compression=part.compression, chunks=2
    )
    enough = trio.Event()

    async def items():
        yield runtime_pb2.ExpertRequest(uid="linear.0", tensors=[first])
        await enough.wait()
        yield runtime_pb2.ExpertRequest(uid="linear.0", tensors=[runtime_pb2.Tensor(buffer=part.buffer[-1:])])

    method = "ConnectionHandler.rpc_forward_stream"
    async with caller.rpc.stream_call(caller.peer_id, method, items(), runtime_pb2.ExpertResponse) as responses:
        await wait_all_tasks_blocked()
        yield
        enough.set()
        [response] = [response async for response in responses]
        assert response.tensors[0].size == [rows, SIZE]


async def test_a_stopping_server_finishes_what_it_has_and_takes_nothing_new(pair, experts):
    async with serving(pair, experts) as (caller, handler), waiting_request(caller, handler, rows=2):
        handler.refuse()
        with pytest.raises(RemoteError, match="this server is stopping; ask another"):
            await caller.unary("forward", "linear.0", X)
        with trio.move_on_after(0.01) as too_early:
            await handler.drained()
        assert too_early.cancelled_caught
    await handler.drained()


async def test_a_request_that_stops_to_come_is_given_up(served, monkeypatch):
    monkeypatch.setattr(handler_module, "PART_TIMEOUT", 0.01)

    async def items():
        yield runtime_pb2.ExpertRequest(uid="linear.0", tensors=[declared([1000, SIZE], buffer=b"\0", chunks=2)])
        await trio.sleep_forever()

    method = "ConnectionHandler.rpc_forward_stream"
    async with served.rpc.stream_call(served.peer_id, method, items(), runtime_pb2.ExpertResponse) as responses:
        with pytest.raises(RemoteError, match="no part of the request came for"):
            await anext(responses)
    assert issubclass(DeadlineExceeded, RPCError)


async def test_a_caller_who_leaves_frees_what_he_held(pair, experts):
    async with serving(pair, experts) as (caller, handler):

        async def items():
            yield runtime_pb2.ExpertRequest(uid="linear.0", tensors=[declared([1000, SIZE], buffer=b"\0", chunks=2)])
            await trio.sleep_forever()

        method = "ConnectionHandler.rpc_forward_stream"
        async with caller.rpc.stream_call(caller.peer_id, method, items(), runtime_pb2.ExpertResponse):
            await wait_all_tasks_blocked()
            assert handler._admission.pending_bytes == 1
        await handler.drained()
        assert handler._admission.pending_bytes == 0


async def test_two_handlers_on_one_node(pair, experts):
    async with serving(pair, experts):
        with pytest.raises(RPCError, match="served already"):
            ConnectionHandler(experts, max_request_bytes=1, max_pending_bytes=1).register(pair[1])
