"""Our client trains through the real hivemind's server: ``RemoteExpert``, beam search, ``RemoteMixtureOfExperts``."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from hivemind_p2p import (
    DHT,
    Compression,
    RemoteExpert,
    RemoteMixtureOfExperts,
    RemoteSwitchMixtureOfExperts,
    get_experts,
)
from hivemind_p2p.errors import RemoteError
from tests.interop.modules import Nested, Wave
from tests.interop.process import hivemind_process

SIZE = 64


@pytest.fixture(scope="module")
def dht() -> Iterator[DHT]:
    """A trainer's, in the swarm of hivemind's server."""
    torch.manual_seed(0)
    with (
        hivemind_process("hivemind_server.py") as (_, ready),
        DHT(json.loads(ready)["maddrs"], client_mode=True, start=True) as dht,
    ):
        yield dht


def find(dht: DHT, uid: str) -> RemoteExpert:
    """An expert; hivemind declares its own a moment after it is ready."""
    while True:
        [expert] = get_experts(dht, [uid])
        if expert is not None:
            return expert


def run(module, inputs, **kwargs):
    inputs = [tensor.clone().requires_grad_(tensor.is_floating_point()) for tensor in inputs]
    outputs = module(*inputs, **kwargs)
    flat = outputs if isinstance(outputs, torch.Tensor) else outputs[0] * outputs[1]["sum"][:, None]
    flat.square().sum().backward()
    return outputs, [tensor.grad for tensor in inputs]


@pytest.mark.parametrize("rows", [1, 100, 20_000, 262_144])
def test_unary_and_streamed_calls(dht, rows) -> None:
    """5 MiB are a stream, there and back, and so are 64."""
    x = torch.randn(rows, SIZE)
    there, grads_there = run(find(dht, "grid.0.0"), [x])
    here, grads_here = run(Wave(SIZE), [x])
    torch.testing.assert_close(there, here)
    torch.testing.assert_close(grads_there, grads_here)


def test_several_inputs_keyword_inputs_and_nested_outputs(dht) -> None:
    inputs = [torch.randn(5, SIZE), torch.arange(5)]
    kwargs = {"scale": torch.randn(5, SIZE), "bias": torch.randn(5, SIZE)}
    there, grads_there = run(find(dht, "nested.0"), inputs, **kwargs)
    here, grads_here = run(Nested(SIZE), inputs, **kwargs)
    torch.testing.assert_close(there, here)
    torch.testing.assert_close(grads_there, grads_here, rtol=1e-4, atol=1e-4)


def test_the_expert_learns_as_the_module_does(dht) -> None:
    expert, module = find(dht, "learns.0"), Wave(SIZE)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    x = torch.randn(10, SIZE)
    for _ in range(3):
        (expert(x).square().mean()).backward()
        optimizer.zero_grad()
        (module(x).square().mean()).backward()
        optimizer.step()
        with torch.no_grad():
            torch.testing.assert_close(expert(x), module(x))


@pytest.mark.parametrize(
    ("uid", "tolerance"),
    [
        ("float16.0", 1e-2), ("meanstd_16bit.0", 1e-2), ("uniform_8bit.0", 0.2), ("quantile_8bit.0", 0.4),
        ("blockwise_8bit.0", 0.2),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rows", [8, 20_000])
def test_compression_is_as_the_expert_wants_it(dht, uid, tolerance, rows) -> None:
    x, gradient = torch.randn(rows, SIZE, requires_grad=True), torch.randn(rows, SIZE)
    y = find(dht, uid)(x)
    y.backward(gradient)
    for got, sent in ((y, x), (x.grad, gradient)):
        assert 0 < (got - sent).square().mean().sqrt() < tolerance


@pytest.mark.parametrize("rows", [4, 20_000])
def test_hivemind_s_server_gets_no_compression_that_it_does_not_know(dht, rows) -> None:
    find(dht, "grid.0.0")
    x = torch.randn(rows, SIZE)
    for how in ("block_int8", "auto"):
        [expert] = get_experts(dht, ["grid.0.0"], compression=how)
        torch.testing.assert_close(run(expert, [x]), run(Wave(SIZE), [x]))
    [expert] = get_experts(dht, ["grid.0.0"], compression=Compression(inputs="float16"))
    here = Wave(SIZE)(x.half().float())
    torch.testing.assert_close(expert(x), here)


@pytest.mark.parametrize(("prefix", "grid"), [("grid", (2, 2)), ("flat", (4,))])
def test_a_mixture_finds_and_trains_hivemind_s_experts(dht, prefix, grid) -> None:
    find(dht, "grid.1.1")
    moe = RemoteMixtureOfExperts(
        in_features=SIZE, grid_size=grid, dht=dht, uid_prefix=prefix, k_best=3, negative_caching=False
    )
    x = torch.randn(20, SIZE, requires_grad=True)
    y = moe(x)
    scores = moe.proj(x).split_with_sizes(grid, dim=-1)
    total = scores[0][:, :3] if prefix == "flat" else (scores[0][:, :, None] + scores[1][:, None, :]).flatten(1)
    best = total.topk(3)
    outputs = torch.stack([Wave(SIZE, number)(x) for number in range(total.shape[1])], dim=1)
    chosen = outputs.gather(1, best.indices[..., None].expand(-1, -1, SIZE))
    here = (best.values.softmax(1)[..., None] * chosen).sum(1)
    torch.testing.assert_close(y, here)
    parameters = [x, *moe.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(y.square().sum(), parameters), torch.autograd.grad(here.square().sum(), parameters),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip
    assert len(moe.last_report.backward.calls) == total.shape[1]


def test_a_switch_layer_trains_hivemind_s_experts(dht) -> None:
    find(dht, "grid.1.1")
    moe = RemoteSwitchMixtureOfExperts(
        in_features=SIZE, grid_size=(2, 2), dht=dht, uid_prefix="grid.", jitter_eps=0.0, negative_caching=False
    )
    x = torch.randn(20, SIZE, requires_grad=True)
    y, loss = moe(x)
    rows, columns = (axis.softmax(1) for axis in moe.proj(x).split_with_sizes((2, 2), dim=-1))
    best = (rows[:, :, None] * columns[:, None, :]).flatten(1).max(1)
    outputs = torch.stack([Wave(SIZE, number)(x) for number in range(4)], dim=1)
    here = x + best.values[:, None] * outputs[torch.arange(20), best.indices]
    torch.testing.assert_close(y, here)
    parameters = [x, *moe.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(y.square().sum(), parameters), torch.autograd.grad(here.square().sum(), parameters),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip
    assert 1.9 < loss < 4


def test_what_hivemind_does_not_host(dht) -> None:
    expert = find(dht, "grid.0.0")
    gone = RemoteExpert(expert._info._replace(uid="grid.5.5"), dht)
    with pytest.raises(RemoteError, match="KeyError"):
        gone.info  # noqa: B018
    assert isinstance(expert, nn.Module)
