"""Several calls at once: both are under way before either is answered, in both directions."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import trio
from torch import nn

from hivemind_p2p import RemoteMixtureOfExperts, RemoteSwitchMixtureOfExperts, call_together, get_experts
from hivemind_p2p.errors import ConfigError, NotEnoughExperts, ProtocolViolation
from tests.client.peers import backend
from tests.client.test_moe import grid_of


def meet(count: int):
    """A ``before`` that lets nobody pass until ``count`` have come."""
    waiting: list[int] = []
    event = trio.Event()

    async def before(uid: str, direction: str) -> None:
        nonlocal event
        waiting.append(1)
        if len(waiting) % count == 0:
            event.set()
            event = trio.Event()
        else:
            await event.wait()

    return before


def test_calls_meet_in_both_directions_and_give_what_they_would_give_alone(serve, join) -> None:
    peer = serve([backend(f"ffn.{at}", nn.Linear(4, 4), 4) for at in range(2)])
    modules = [each.module for each in peer.backends.values()]
    experts = get_experts(join(peer), ["ffn.0", "ffn.1"])
    x, z = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    peer.before = meet(2)
    one, two = call_together(partial(experts[0], x), partial(experts[1], z))
    (one.sum() + two.square().sum()).backward()
    assert torch.equal(one, modules[0](x))
    assert torch.equal(two, modules[1](z))
    here = torch.autograd.grad(modules[0](x).sum() + modules[1](z).square().sum(), [x, z])
    torch.testing.assert_close((x.grad, z.grad), here)


def test_mixtures_and_experts_together(serve, join) -> None:
    peer = serve(grid_of(3))
    dht = join(peer)
    [expert] = get_experts(dht, ["ffn.0"])
    options = {"in_features": 4, "grid_size": (3,), "dht": dht, "uid_prefix": "ffn."}
    moe = RemoteMixtureOfExperts(k_best=3, **options)
    switch = RemoteSwitchMixtureOfExperts(jitter_eps=0, **options).eval()
    x = torch.randn(6, 4, requires_grad=True)
    mixed, (switched, loss), plain = call_together(partial(moe, x), partial(switch, x), partial(expert, x))
    torch.testing.assert_close((mixed, (switched, loss), plain), (moe(x), switch(x), expert(x)))
    together = torch.autograd.grad(mixed.sum() + switched.sum() + loss + plain.sum(), [x, *moe.parameters()])
    alone = torch.autograd.grad(
        moe(x).sum() + switch(x)[0].sum() + switch(x)[1] + expert(x).sum(), [x, *moe.parameters()]
    )
    torch.testing.assert_close(together, alone)
    assert len(moe.last_report.forward.calls) == 3


def test_one_of_them_fails(serve, join) -> None:
    peer = serve([backend(f"ffn.{at}", nn.Linear(4, 4), 4) for at in range(2)])
    experts = get_experts(join(peer), ["ffn.0", "ffn.1"])

    async def fail(uid: str, direction: str) -> None:
        if uid == "ffn.1":
            raise ProtocolViolation("no")

    peer.before = fail
    with pytest.raises(ProtocolViolation):
        call_together(*(partial(expert, torch.zeros(1, 4)) for expert in experts))
    moe = RemoteMixtureOfExperts(
        in_features=4, grid_size=(2,), dht=experts[0]._dht, uid_prefix="ffn.", k_best=2, k_min=2
    )
    with pytest.raises(NotEnoughExperts):
        call_together(partial(moe, torch.zeros(1, 4)))


def test_what_is_not_remote() -> None:
    assert call_together() == []
    for wrong in (partial(nn.Linear(2, 2), torch.zeros(1, 2)), torch.zeros(1)):
        with pytest.raises(ConfigError, match="remote module"):
            call_together(wrong)
