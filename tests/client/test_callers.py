"""Who may call: any thread, another event loop, autograd; and what Ctrl-C leaves behind."""

from __future__ import annotations

import asyncio
import copy
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
import trio
from torch import nn

from hivemind_p2p import RemoteMixtureOfExperts, RemoteSwitchMixtureOfExperts, call_together, get_experts
from hivemind_p2p.errors import NodeClosed, WouldDeadlock
from hivemind_p2p.sync import portal
from tests.client.test_moe import grid_of


def step(module, seed: int):
    """One forward and backward pass: the output, and the gradient of the input."""
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    y = module(x)
    y.square().sum().backward()
    return y.detach(), x.grad


def mixture(dht, **options) -> RemoteMixtureOfExperts:
    return RemoteMixtureOfExperts(in_features=4, grid_size=(4,), dht=dht, uid_prefix="ffn.", k_best=2, **options)


def test_several_threads_at_once(serve, join) -> None:
    peer = serve(grid_of(4))
    dht = join(peer)
    [expert] = get_experts(dht, ["ffn.0"])
    moe = mixture(dht)
    alone = [[step(module, seed) for seed in range(6)] for module in (expert, moe)]
    with ThreadPoolExecutor(6) as threads:
        together = [
            list(threads.map(lambda seed, module=module: step(module, seed), range(6))) for module in (expert, moe)
        ]
    torch.testing.assert_close(together, alone)


class CalledByOthers(RemoteMixtureOfExperts):
    """Another thread called it last, whenever it looks."""

    @property
    def _last(self):
        return self.__dict__.get("of_another")

    @_last.setter
    def _last(self, exchange) -> None:
        if exchange is not None:
            self.__dict__.setdefault("of_another", exchange)


def test_what_another_thread_called_last_is_nothing_to_us(serve, join) -> None:
    dht = join(serve(grid_of(4)))
    moe = mixture(dht)
    alone = [step(moe, seed) for seed in range(3)]
    moe.__class__ = CalledByOthers
    torch.testing.assert_close([step(moe, seed) for seed in range(3)], alone)
    assert moe.last_report is moe._last.report


@pytest.mark.parametrize("kind", [RemoteMixtureOfExperts, RemoteSwitchMixtureOfExperts])
def test_in_inference_mode(serve, join, kind) -> None:
    moe = kind(in_features=4, grid_size=(4,), dht=join(serve(grid_of(4))), uid_prefix="ffn.", k_best=2).eval()
    x = torch.randn(5, 4)
    with torch.inference_mode():
        there = moe(x)
    torch.testing.assert_close(there, moe(x))


@pytest.mark.parametrize("rows", [0, 5])
@pytest.mark.parametrize("kind", [RemoteMixtureOfExperts, RemoteSwitchMixtureOfExperts])
def test_with_another_default_device(serve, join, kind, rows) -> None:
    """As after ``torch.set_default_device("cuda")``; here with a device that no computer lacks."""
    moe = kind(in_features=4, grid_size=(2, 2), dht=join(serve(grid_of(2, 2))), uid_prefix="ffn.", k_best=2).eval()
    x = torch.randn(rows, 4, requires_grad=True)
    with torch.device("meta"):
        there = moe(x)
        (there if torch.is_tensor(there) else there[0]).sum().backward()
    assert x.grad.device.type == "cpu"
    torch.testing.assert_close(there, moe(x))


def test_a_deep_copy_has_a_gate_of_its_own_and_asks_the_same_experts(serve, join) -> None:
    dht = join(serve(grid_of(4)))
    [expert] = get_experts(dht, ["ffn.0"])
    model = nn.ModuleList([expert, mixture(dht)])
    alone = [step(module, 0) for module in model]
    copied = copy.deepcopy(model)
    torch.testing.assert_close([step(module, 0) for module in copied], alone)
    with torch.no_grad():
        copied[1].proj.weight.zero_()
    torch.testing.assert_close([step(module, 0) for module in model], alone)
    assert copied[1].dht is copied[0]._dht is dht


def test_inside_a_running_event_loop_as_in_a_notebook(serve, join) -> None:
    dht = join(serve(grid_of(4)))

    async def cell():
        return step(mixture(dht), 0)

    assert asyncio.run(cell())[1].isfinite().all()
    assert trio.run(cell)[1].isfinite().all()


def test_inside_the_portal_it_is_refused_rather_than_waiting_for_itself(serve, join) -> None:
    [expert] = get_experts(join(serve(grid_of(4))), ["ffn.0"])

    async def inside() -> None:
        expert(torch.zeros(1, 4))

    with pytest.raises(WouldDeadlock):
        portal().call(inside)


def test_after_the_dht_was_shut_down(serve, join) -> None:
    dht = join(serve(grid_of(4)))
    [expert] = get_experts(dht, ["ffn.0"])
    moe = mixture(dht)
    dht.shutdown()
    for module in (expert, moe):
        with pytest.raises(NodeClosed, match="shut down"):
            module(torch.zeros(1, 4))


@pytest.fixture
def ctrl_c_counts() -> Iterator[None]:
    """Also where the tests run in the background of a shell, which has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", ["expert", "mixture", "together"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.usefixtures("ctrl_c_counts")
def test_ctrl_c_ends_the_calls_here_and_there_and_the_next_ones_work(serve, join, kind, direction) -> None:
    peer = serve(grid_of(4))
    dht = join(peer)
    module = {"expert": get_experts(dht, ["ffn.0"])[0], "mixture": mixture(dht)}.get(kind)
    if module is None:
        others = get_experts(dht, ["ffn.1", "ffn.2", "ffn.3"])
        module = lambda x: sum(call_together(*(partial(other, x) for other in others)))  # noqa: E731
    step(module, 0)
    began, ended = [], []

    async def interrupt(uid: str, its: str) -> None:
        if its != direction:
            return
        began.append(uid)
        if len(began) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        try:
            await trio.sleep_forever()
        finally:
            ended.append(uid)
            if len(ended) == len(began):
                all_ended.set()

    all_ended = trio.Event()
    peer.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        step(module, 0)
    portal().call(all_ended.wait)
    peer.before = None
    step(module, 0)
