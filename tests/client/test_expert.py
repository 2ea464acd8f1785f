"""``RemoteExpert`` against the same module called locally."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hivemind_p2p import RemoteExpert, get_dht_time, get_experts
from hivemind_p2p.errors import CodecError, ExpertNotFound, InvalidUID, ProtocolViolation, SchemaMismatch
from hivemind_p2p.runtime import BatchTensorDescriptor
from hivemind_p2p.wire.compression_type import CompressionType
from tests.client.peers import backend


class Nested(nn.Module):
    """Two positional inputs, one of them of integers, two keyword inputs, nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.embedding = nn.Embedding(10, 8)

    def forward(self, x, ids, *, scale, bias):
        hidden = self.linear((x + self.embedding(ids)) * scale)
        return {"out": (hidden + bias, [hidden.sum(dim=1)]), "argmax": hidden.argmax(dim=1)}


class Sum(nn.Module):
    def forward(self, x, numbers):
        return x + numbers


def nested_backend(uid: str):
    floats, integers = BatchTensorDescriptor(8), BatchTensorDescriptor(dtype=torch.int64)
    kwargs = {"scale": BatchTensorDescriptor(8), "bias": BatchTensorDescriptor(4)}
    return backend(uid, Nested(), floats, integers, kwargs_schema=kwargs)


def grads_of(module, loss, *inputs):
    """Outputs, and the gradients of the inputs."""
    inputs = [tensor.detach().clone().requires_grad_(tensor.is_floating_point()) for tensor in inputs]
    outputs = module(*inputs)
    loss(outputs).backward()
    return outputs, [tensor.grad for tensor in inputs]


@pytest.mark.parametrize("rows", [1, 7, 3000])
def test_outputs_and_input_gradients_are_those_of_the_module(serve, join, rows) -> None:
    module = nn.Sequential(nn.Linear(256, 64), nn.GELU(), nn.Linear(64, 256))
    peer = serve([backend("ffn.0", copy.deepcopy(module), 256)])
    [expert] = get_experts(join(peer), ["ffn.0"])
    x = torch.randn(rows, 256)
    here, [grad_here] = grads_of(module, lambda y: y.square().sum(), x)
    there, [grad_there] = grads_of(expert, lambda y: y.square().sum(), x)
    torch.testing.assert_close(there, here)
    torch.testing.assert_close(grad_there, grad_here)
    assert peer.calls == [("ffn.0", "forward", rows, rows == 3000), ("ffn.0", "backward", rows, rows >= 3000)]


@pytest.mark.parametrize(("wide", "narrow"), [(2**18, 2), (2, 2**18)])
def test_what_is_small_one_way_and_large_the_other_is_streamed(serve, join, wide, narrow) -> None:
    """4 MiB and 32 bytes: a unary message of so much would be refused."""
    peer = serve([backend("ffn.0", nn.Linear(wide, narrow), wide)])
    [expert] = get_experts(join(peer), ["ffn.0"])
    x = torch.randn(4, wide, requires_grad=True)
    y = expert(x)
    y.sum().backward()
    torch.testing.assert_close(y, peer.backends["ffn.0"].module(x))
    assert [streamed for *_, streamed in peer.calls] == [True, True]


def test_only_floats_are_compressed_with_loss(serve, join) -> None:
    floats = BatchTensorDescriptor(64, compression=CompressionType.UNIFORM_8BIT)
    integers = BatchTensorDescriptor(64, dtype=torch.int64, compression=CompressionType.UNIFORM_8BIT)
    schemas = {"outputs_schema": BatchTensorDescriptor(64)}
    peer = serve([backend("sum.0", Sum(), floats, integers, **schemas)])
    [expert] = get_experts(join(peer), ["sum.0"])
    x, numbers = torch.randn(30, 64), torch.arange(30 * 64).view(30, 64) * 2**20
    assert torch.equal(expert(torch.zeros(30, 64), numbers), numbers.float())
    error = (expert(x, torch.zeros_like(numbers)) - x).abs().max()
    assert 0 < error < 0.5


def test_tensors_come_back_bit_for_bit(serve, join) -> None:
    [expert] = get_experts(join(serve([backend("id.0", nn.Identity(), 3, detect_anomalies=False)])), ["id.0"])
    x = torch.tensor([[0.1, -0.0, 1e-45], [torch.inf, -torch.inf, 3e38]])
    y, [grad] = grads_of(expert, lambda y: y[0].sum(), x)
    assert y.detach().numpy().tobytes() == x.numpy().tobytes()
    assert grad.tolist() == [[1, 1, 1], [0, 0, 0]]


def test_several_inputs_keyword_inputs_and_nested_outputs(serve, join) -> None:
    peer = serve([nested_backend("nested.0")])
    module = copy.deepcopy(peer.backends["nested.0"].module)
    [expert] = get_experts(join(peer), ["nested.0"])
    inputs = [torch.randn(5, 8), torch.arange(5), torch.randn(5, 8), torch.randn(5, 4)]

    def loss(outputs):
        return (outputs["out"][0].square().sum(dim=1) * outputs["out"][1][0]).sum()

    def call(of):
        return lambda x, ids, scale, bias: of(x, ids, bias=bias, scale=scale)

    here, grads_here = grads_of(call(module), loss, *inputs)
    there, grads_there = grads_of(call(expert), loss, *inputs)
    torch.testing.assert_close(there, here)
    torch.testing.assert_close(grads_there, grads_here)
    assert not there["argmax"].requires_grad


def test_an_output_that_the_loss_does_not_use(serve, join) -> None:
    peer = serve([nested_backend("nested.0")])
    module = copy.deepcopy(peer.backends["nested.0"].module)
    [expert] = get_experts(join(peer), ["nested.0"])
    others = {"scale": torch.randn(5, 8), "bias": torch.randn(5, 4)}
    x = torch.randn(5, 8)
    _, here = grads_of(lambda x: module(x, torch.arange(5), **others), lambda y: y["out"][0].sum(), x)
    _, there = grads_of(lambda x: expert(x, torch.arange(5), **others), lambda y: y["out"][0].sum(), x)
    torch.testing.assert_close(there, here)


def test_the_expert_learns_even_if_no_input_needs_a_gradient(serve, join) -> None:
    peer = serve([backend("ffn.0", nn.Linear(4, 4), 4, lr=0.1)])
    [expert] = get_experts(join(peer), ["ffn.0"])
    expert(torch.randn(2, 4)).sum().backward()
    assert peer.backends["ffn.0"].update_count == 1


def test_without_grad_the_backward_pass_is_not_asked_for(serve, join) -> None:
    peer = serve([backend("ffn.0", nn.Linear(4, 4), 4)])
    [expert] = get_experts(join(peer), ["ffn.0"])
    with torch.no_grad():
        assert not expert(torch.randn(2, 4, requires_grad=True)).requires_grad
    assert peer.count("backward") == {}


def test_second_derivatives_are_refused_in_words_when_they_are_asked_for(serve, join) -> None:
    [expert] = get_experts(join(serve([backend("ffn.0", nn.Linear(4, 4), 4)])), ["ffn.0"])
    x = torch.randn(2, 4, requires_grad=True)
    [grad] = torch.autograd.grad(expert(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives do not pass through remote experts"):
        grad.sum().backward()


def test_an_input_that_was_changed_before_backward_is_noticed(serve, join) -> None:
    [expert] = get_experts(join(serve([backend("ffn.0", nn.Linear(4, 4), 4)])), ["ffn.0"])
    x = torch.randn(2, 4)
    y = expert(x).sum()
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_a_batch_without_rows_is_not_sent(serve, join) -> None:
    peer = serve([backend("ffn.0", nn.Linear(4, 3), 4)])
    [expert] = get_experts(join(peer), ["ffn.0"])
    x = torch.zeros(0, 4, requires_grad=True)
    y = expert(x)
    y.sum().backward()
    assert y.shape == (0, 3)
    assert x.grad.shape == (0, 4)
    assert peer.calls == []


def test_the_schema_is_asked_for_once(serve, join) -> None:
    peer = serve([nested_backend("nested.0")])
    [expert] = get_experts(join(peer), ["nested.0"])
    assert expert.info["keyword_names"] == ("scale", "bias")
    assert [each.size for each in expert.info["forward_schema"][0]] == [(None, 8), (None,)]
    assert peer.infos == 1


@pytest.mark.parametrize("columns", [3, 5])
def test_the_schema_is_asked_for_again_when_answers_do_not_fit_it(serve, join, columns) -> None:
    """The server started anew, with an expert that gives something else."""
    peer = serve([backend("ffn.0", nn.Linear(4, 4), 4)])
    [expert] = get_experts(join(peer), ["ffn.0"])
    x = torch.zeros(2, 4)
    expert(x)
    peer.tamper = lambda uid, direction, tensors: [torch.zeros(2, columns)]
    with pytest.raises((ProtocolViolation, CodecError)):
        expert(x)
    peer.tamper = None
    assert expert(x).shape == (2, 4)
    assert peer.infos == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda args, kwargs: args.pop(), r"takes 2 positional inputs, nested like \(\(\*, \*\), \{.*not \(\(\*,\)"),
        (lambda args, kwargs: args.append(torch.zeros(5, 1)), "takes 2 positional inputs"),
        (lambda args, kwargs: kwargs.pop("bias"), "takes the keyword inputs 'bias', 'scale', not 'scale'"),
        (lambda args, kwargs: kwargs.update(more=torch.zeros(5)), "takes the keyword inputs 'bias', 'scale', not"),
        (lambda args, kwargs: args.__setitem__(0, torch.zeros(5, 9)), r"input 0 .* expected shape \(any, 8\), got"),
        (lambda args, kwargs: args.__setitem__(0, torch.zeros(8)), r"input 0 .* expected 2 dimensions"),
        (
            lambda args, kwargs: args.__setitem__(1, torch.zeros(5)),
            r"input 1 .* expected dtype torch.int64, got .*\.to",
        ),
        (lambda args, kwargs: args.__setitem__(1, 3), "input 1 is a int"),
        (lambda args, kwargs: kwargs.update(bias=torch.zeros(4, 4)), "'bias' has 4 rows where the first has 5"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_anything_is_sent(serve, join, change, words) -> None:
    peer = serve([nested_backend("nested.0")])
    [expert] = get_experts(join(peer), ["nested.0"])
    args, kwargs = [torch.zeros(5, 8), torch.arange(5)], {"scale": torch.zeros(5, 8), "bias": torch.zeros(5, 4)}
    expert(*args, **kwargs)
    change(args, kwargs)
    with pytest.raises(SchemaMismatch, match=words):
        expert(*args, **kwargs)
    assert len(peer.calls) == 1


def test_experts_are_found_in_one_look_up_and_those_that_are_not_there_are_none(serve, join) -> None:
    peer = serve([backend("ffn.0", nn.Linear(4, 4), 4), backend("ffn.1", nn.Linear(4, 4), 4)])
    dht = join(peer)
    first, missing, second = get_experts(dht, ["ffn.1", "ffn.2", "ffn.0"])
    assert (first.uid, missing, second.uid) == ("ffn.1", None, "ffn.0")
    assert isinstance(first, RemoteExpert)
    assert first.peer_id == peer.dht.peer_id
    assert repr(first) == f"RemoteExpert(uid=ffn.1, server_peer_id={peer.dht.peer_id})"
    [same] = get_experts(dht, ["ffn.1"], return_future=True).result()
    assert same.uid == "ffn.1"
    assert get_experts(dht, []) == []


@pytest.mark.parametrize("garbage", [17, "no peer id", b"bytes", ["12D3"], None, {"a": 1}])
def test_garbage_in_the_dht_is_nobody(serve, join, garbage) -> None:
    peer = serve([])
    assert peer.dht.store("ffn.0", garbage, get_dht_time() + 60)
    assert get_experts(join(peer), ["ffn.0"]) == [None]


@pytest.mark.parametrize("uids", ["ffn.0", ["ffn"], ["ffn.0", 5]])
def test_what_is_no_list_of_uids(serve, join, uids) -> None:
    with pytest.raises(InvalidUID):
        get_experts(join(serve([])), uids)


def test_an_expert_that_left_the_server(serve, join) -> None:
    peer = serve([backend("ffn.0", nn.Linear(4, 4), 4)])
    [expert] = get_experts(join(peer), ["ffn.0"])
    peer.host()
    with pytest.raises(ExpertNotFound, match=r"this peer does not host 'ffn\.0'"):
        expert(torch.zeros(1, 4))
