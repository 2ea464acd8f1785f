"""Experts on several devices: who goes where, and that they compute at the same time."""

from __future__ import annotations

import pytest
import torch
import trio
from torch import nn

from hivemind_p2p.errors import ConfigError, NodeClosed
from hivemind_p2p.runtime import computing, spread
from tests.runtime.modules import Gate, backend_of, ffn_backend

CPUS = [torch.device("cpu:0"), torch.device("cpu:1")]  # torch takes any number, so that one machine can be two devices


def sized(uid: str, width: int):
    return backend_of(nn.Linear(2, width), uid)


def test_the_largest_go_first_and_each_to_who_has_the_least():
    experts = {f"test.{width}": sized(f"test.{width}", width) for width in (1, 2, 3, 4, 10)}
    shares = spread(experts, 2)
    assert [sorted(share) for share in shares] == [["test.10"], ["test.1", "test.2", "test.3", "test.4"]]
    assert all(share[uid] is experts[uid] for share in shares for uid in share)


def test_experts_without_weights_are_shared_out_too():
    experts = {f"nop.{number}": backend_of(nn.Identity(), f"nop.{number}") for number in range(4)}
    assert [len(share) for share in spread(experts, 2)] == [2, 2]
    assert [len(share) for share in spread(experts, 8)] == [1, 1, 1, 1, 0, 0, 0, 0]


async def test_devices_compute_at_the_same_time():
    gates = Gate(), Gate()
    experts = {f"test.{number}": backend_of(gate, f"test.{number}") for number, gate in enumerate(gates)}
    async with computing(experts, CPUS) as runtimes, trio.open_nursery() as nursery:
        assert [sorted(runtime.backends) for runtime in runtimes] == [["test.0"], ["test.1"]]
        for gate, expert in zip(gates, experts.values(), strict=True):
            gate.shut = True
            nursery.start_soon(expert.forward_pool.submit, torch.zeros(1, 2))
        for gate in gates:  # both are in, and nobody is out
            assert await trio.to_thread.run_sync(gate.entered.acquire, True, 30)
        for gate in gates:
            gate.may_go.release()


async def test_between_batches_is_between_those_of_its_own_device():
    experts = {f"ffn.{number}": ffn_backend(f"ffn.{number}") for number in range(2)}
    async with computing(experts, CPUS):
        for expert in experts.values():
            count = await expert.forward_pool.between_batches(lambda expert=expert: expert.update_count)
            assert count == 0
    with pytest.raises(NodeClosed, match=r"no Runtime serves ffn\.0_forward"):
        await experts["ffn.0"].forward_pool.between_batches(lambda: None)


async def test_a_device_that_cannot_be_used_stops_the_others():
    experts = {f"ffn.{number}": ffn_backend(f"ffn.{number}") for number in range(2)}
    with pytest.raises(ConfigError, match="device cuda:99 cannot be used"):
        async with computing(experts, [CPUS[0], torch.device("cuda:99")]):
            raise AssertionError
    async with computing(experts, []) as [runtime]:
        assert sorted(runtime.backends) == ["ffn.0", "ffn.1"]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
async def test_two_gpus_share_the_experts():
    experts = {f"ffn.{number}": ffn_backend(f"ffn.{number}") for number in range(2)}
    async with computing(experts, [torch.device("cuda:0"), torch.device("cuda:1")]):
        for number, expert in enumerate(experts.values()):
            [answer] = await expert.forward_pool.submit(torch.zeros(1, 8))
            assert answer.device.type == "cpu"
            assert next(expert.module.parameters()).device.index == number
