"""Experts that die, hang, move or lie, in the forward and in the backward pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import trio
from torch import nn

from hivemind_p2p import RemoteMixtureOfExperts, get_experts
from hivemind_p2p.compression import serialize_tensor
from hivemind_p2p.errors import CodecError, DeadlineExceeded, HivemindError, NotEnoughExperts, ProtocolViolation
from hivemind_p2p.sync import portal
from hivemind_p2p.wire.runtime_pb2 import Tensor
from hivemind_p2p.wire.tensor_descriptor import TensorDescriptor
from tests.client.peers import backend, hang
from tests.client.test_moe import grid_of, local_mixture, modules_of

LIES = {
    "wrong shape": (lambda answer: [answer[0][:, :3]], ProtocolViolation, r"expected shape \(any, 4\), got \(2, 3\)"),
    "too few rows": (lambda answer: [answer[0][:1]], ProtocolViolation, "expected 2 rows, got 1"),
    "wrong dtype": (lambda answer: [answer[0].int()], ProtocolViolation, "expected dtype torch.float32"),
    "too many tensors": (lambda answer: answer * 3, ProtocolViolation, "3 tensors where the schema says 1"),
    "no tensors": (lambda answer: [], ProtocolViolation, "0 tensors where the schema says 1"),
    "cut short": (lambda answer: [_cut(answer[0])], CodecError, "bytes"),
    "too large": (lambda answer: [torch.zeros(2**19)], CodecError, "above the limit of 32 bytes"),
    "above the limit of messages": (lambda answer: [torch.zeros(2**20)], HivemindError, "limit"),
    "no dtype": (lambda answer: [Tensor(buffer=b"1234", size=[1], dtype="spam")], CodecError, "spam"),
    "nonsense": (lambda answer: [Tensor(size=[2**31, 2**31], dtype="float32", compression=3)], CodecError, "limit"),
}


def _cut(tensor: torch.Tensor) -> Tensor:
    packed = serialize_tensor(tensor, 0)
    packed.buffer = packed.buffer[:-4]
    return packed


def only(direction, lie):
    return lambda uid, its, answer: lie(answer) if its == direction else answer


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_an_error_that_says_what_is_wrong_and_the_next_call_works(serve, join, direction, name) -> None:
    lie, error, words = LIES[name]
    peer = serve([backend("ffn.0", nn.Linear(4, 4), 4)])
    [expert] = get_experts(join(peer), ["ffn.0"])
    peer.tamper = only(direction, lie)
    x = torch.randn(2, 4, requires_grad=True)
    with pytest.raises(error, match=words):
        expert(x).sum().backward()
    peer.tamper = None
    expert(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("parts", [0, 1, 5])
def test_a_streamed_answer_of_another_length_than_promised(serve, join, parts) -> None:
    """A megabyte was asked for; what comes is nothing, part of it, or too much."""
    peer = serve([backend("ffn.0", nn.Identity(), 2**10)])
    [expert] = get_experts(join(peer), ["ffn.0"])
    peer.tamper = only("forward", lambda answer: [torch.zeros(1024, 1024)] * parts if parts != 1 else [_cut(answer[0])])
    with pytest.raises((ProtocolViolation, CodecError)):
        expert(torch.zeros(1024, 1024))
    peer.tamper = None
    assert torch.equal(expert(torch.ones(1024, 1024)), torch.ones(1024, 1024))


def test_an_answer_that_wants_a_gradient_gets_none(serve, join) -> None:
    peer = serve([backend("ffn.0", nn.Linear(4, 4), 4)])
    [expert] = get_experts(join(peer), ["ffn.0"])
    peer.tamper = lambda uid, direction, answer: [answer[0].requires_grad_()]
    with torch.no_grad():
        assert not expert(torch.zeros(1, 4)).requires_grad
    x = torch.zeros(1, 4, requires_grad=True)
    expert(x).sum().backward()
    assert not x.grad.requires_grad


def test_a_schema_that_is_none(serve, join) -> None:
    peer = serve([backend("ffn.0", nn.Linear(4, 4), 4)])
    peer.backends["ffn.0"].info = lambda: {"forward_schema": 3}
    [expert] = get_experts(join(peer), ["ffn.0"])
    with pytest.raises(ProtocolViolation, match="not a schema"):
        expert(torch.zeros(1, 4))


def test_an_expert_that_hangs_has_a_deadline(serve, join) -> None:
    peer = serve([backend("ffn.0", nn.Linear(4, 4), 4)])
    [expert] = get_experts(join(peer), ["ffn.0"])
    assert expert.info
    expert._timeouts["forward"] = 0.05
    cancelled = trio.Event()

    async def wait(uid: str, direction: str) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    peer.before = wait
    with pytest.raises(DeadlineExceeded, match=r"within 0\.05 s"):
        expert(torch.zeros(1, 4))
    portal().call(cancelled.wait)


def test_an_expert_that_moved_is_looked_up_anew_after_a_failure(serve, join) -> None:
    bootstrap, old = serve([]), serve([backend("ffn.0", nn.Linear(4, 4), 4)])
    [expert] = get_experts(join(bootstrap), ["ffn.0"])
    expert(torch.zeros(1, 4))
    old.kill()
    new = serve([backend("ffn.0", nn.Linear(4, 4), 4)])
    expert(torch.zeros(1, 4)).sum().backward()
    assert expert.peer_id == new.dht.peer_id
    assert [direction for _, direction, *_ in new.calls] == ["forward", "backward"]


def two_halves(serve, join, **options):
    """A grid of 2 x 4 whose rows two peers serve, a peer that only joins others, and a mixture."""
    bootstrap, one, two = serve([]), serve(grid_of(2, 4)[:4]), serve(grid_of(2, 4)[4:])
    options = {"k_best": 4, "in_features": 4, "grid_size": (2, 4), "uid_prefix": "ffn."} | options
    return one, two, RemoteMixtureOfExperts(dht=join(bootstrap), **options)


def test_experts_that_die_are_masked_and_gradients_are_those_of_the_survivors(serve, join) -> None:
    one, two, moe = two_halves(serve, join)
    modules = modules_of(one, two)
    nn.init.zeros_(moe.proj.weight)  # every sample wants two experts of each peer
    moe.proj.bias.data = torch.tensor([0.1, 0, 3, 2, 0, 0])
    moe(torch.randn(6, 4))
    one.kill()
    x = torch.randn(6, 4, requires_grad=True)
    there = moe(x)
    here = local_mixture(moe, modules, x, 4, alive=lambda uid: uid.startswith("ffn.1."))
    torch.testing.assert_close(there, here)
    torch.testing.assert_close(
        torch.autograd.grad(there.square().sum(), [x, *moe.parameters()]),
        torch.autograd.grad(here.square().sum(), [x, *moe.parameters()]),
    )
    assert sorted(moe.last_report.forward.uids("failed")) == ["ffn.0.0", "ffn.0.1"]
    assert sorted(moe.last_report.forward.uids("answered")) == ["ffn.1.0", "ffn.1.1"]


def test_samples_that_lose_all_their_experts_are_given_others(serve, join) -> None:
    one, two, moe = two_halves(serve, join)
    nn.init.zeros_(moe.proj.weight)
    moe.proj.bias.data = torch.tensor([9.0, 0, 0, 0, 0, 0])  # every sample wants all of one peer
    x = torch.randn(6, 4)
    moe(x)
    one.kill()
    y = moe(x)
    assert len(moe.last_report.forward.uids("failed")) == 4
    assert len(moe.last_report.forward.uids("answered")) == 4
    torch.testing.assert_close(y, sum(each.module(x) for each in two.backends.values()) / 4)
    moe(x)
    assert moe.last_report.forward.uids("failed") == [], "those that failed a moment ago are left out"
    assert len(moe.last_report.forward.calls) == 4


def test_a_mixture_whose_first_choice_is_dead_learns_from_others_what_experts_take(serve, join) -> None:
    one, two, moe = two_halves(serve, join)
    nn.init.zeros_(moe.proj.weight)
    moe.proj.bias.data = torch.tensor([9.0, 0, 0, 0, 0, 0])
    one.kill()
    moe(torch.randn(2, 4))
    assert len(two.count("forward")) == 4


def test_samples_that_lose_some_keep_the_answers_that_they_have(serve, join) -> None:
    """One of the two experts that each sample must have fails for all; the other is not asked again, but a third is."""
    peer = serve(grid_of(3))
    options = {"in_features": 4, "grid_size": (3,), "uid_prefix": "ffn.", "k_best": 2, "k_min": 2}
    moe = RemoteMixtureOfExperts(dht=join(peer), **options)
    modules = modules_of(peer)
    nn.init.zeros_(moe.proj.weight)
    # Half of the samples want experts 0 and 1, the others 2 and 1: expert 2 is asked twice, for different samples.
    moe.proj.weight.data[:, 0] = torch.tensor([1.0, 0.9, -1.0])
    moe.proj.weight.data[:, 1] = torch.tensor([-1.0, 0.9, 1.0])
    x = torch.tensor([[0.0, 9, 1, 2], [9, 0, 3, 4], [0, 9, 5, 6], [9, 0, 7, 8]], requires_grad=True)

    async def fail(uid: str, direction: str) -> None:
        if uid == "ffn.1":
            raise ProtocolViolation("no")

    peer.before = fail
    there = moe(x)
    asked = [(uid, rows) for uid, _, rows, _ in peer.calls]
    assert sorted(asked) == [("ffn.0", 2), ("ffn.0", 2), ("ffn.1", 4), ("ffn.2", 2), ("ffn.2", 2)]
    here = local_mixture(moe, modules, x, 3, alive=lambda uid: uid != "ffn.1")
    torch.testing.assert_close(there, here)
    peer.calls.clear()
    weights = torch.randn(4, 4)
    grads_there = torch.autograd.grad((there * weights).sum(), [x, *moe.parameters()])
    torch.testing.assert_close(grads_there, torch.autograd.grad((here * weights).sum(), [x, *moe.parameters()]))
    assert sorted(peer.calls) == [("ffn.0", "backward", 4, False), ("ffn.2", "backward", 4, False)]


def test_no_others_are_asked_when_no_time_is_left(serve, join) -> None:
    peer = serve(grid_of(3))
    options = {"in_features": 4, "grid_size": (3,), "uid_prefix": "ffn.", "k_best": 1}
    moe = RemoteMixtureOfExperts(dht=join(peer), **options)
    moe(torch.zeros(1, 4))
    moe.options = replace(moe.options, forward_timeout=0.1)
    peer.calls.clear()
    peer.before = hang
    with pytest.raises(NotEnoughExperts, match=": late"):
        moe(torch.zeros(1, 4))
    assert len(peer.calls) == 1


def test_an_expert_of_a_mixture_that_moved_is_found_at_its_new_peer(serve, join) -> None:
    for size, uid in (((2, 2), "ffn.1.1"), ((4,), "ffn.1")):
        bootstrap, old = serve([]), serve([backend(uid, nn.Linear(4, 4), 4)])
        dht = join(bootstrap)
        moe = RemoteMixtureOfExperts(in_features=4, grid_size=size, dht=dht, uid_prefix="ffn.", k_best=1)
        moe(torch.zeros(1, 4))
        old.kill()
        new = serve([backend(uid, nn.Linear(4, 4), 4)])
        y = moe(torch.zeros(1, 4))
        assert moe.last_report.forward.uids("failed") == moe.last_report.forward.uids("answered") == [uid]
        assert torch.equal(y, new.backends[uid].module(torch.zeros(1, 4)))
        new.kill()


def test_an_expert_that_answers_again_is_as_good_as_new(serve, join) -> None:
    peer = serve(grid_of(1))
    moe = RemoteMixtureOfExperts(in_features=4, grid_size=(1,), dht=join(peer), uid_prefix="ffn.", k_best=1)

    async def fail(uid: str, direction: str) -> None:
        raise ProtocolViolation("no")

    peer.before = fail
    with pytest.raises(NotEnoughExperts):
        moe(torch.zeros(1, 4))
    peer.before = None
    moe(torch.zeros(1, 4))
    assert len(moe.beam_search.contacts.failures) == 0


def test_a_lie_about_the_schema_is_not_believed_for_ever(serve, join) -> None:
    peer = serve(grid_of(1))
    expert = peer.backends["ffn.0"]
    honest = expert.info
    expert.info = lambda: honest() | {"outputs_schema": TensorDescriptor((None, 5))}
    moe = RemoteMixtureOfExperts(in_features=4, grid_size=(1,), dht=join(peer), uid_prefix="ffn.", k_best=1)
    with pytest.raises(NotEnoughExperts, match=r"expected shape \(any, 5\), got \(1, 4\)"):
        moe(torch.zeros(1, 4))
    expert.info = honest
    assert moe(torch.zeros(1, 4)).shape == (1, 4)


def test_training_goes_on_when_a_peer_dies_between_forward_and_backward(serve, join) -> None:
    one, _, moe = two_halves(serve, join)
    x = torch.randn(50, 4, requires_grad=True)
    y = moe(x)
    one.kill()
    y.sum().backward()
    assert x.grad.isfinite().all()
    report = moe.last_report.backward
    assert report.uids("failed")
    assert all(uid.startswith("ffn.0.") for uid in report.uids("failed"))
    assert all(uid.startswith("ffn.1.") for uid in report.uids("answered"))
    for _ in range(3):
        moe(torch.randn(50, 4)).sum().backward()


def test_experts_that_fail_in_the_backward_pass_count_as_constants(serve, join) -> None:
    peer = serve(grid_of(2))
    moe = RemoteMixtureOfExperts(in_features=4, grid_size=(2,), dht=join(peer), uid_prefix="ffn.", k_best=2)
    x = torch.randn(3, 4, requires_grad=True)

    async def fail(uid: str, direction: str) -> None:
        if (uid, direction) == ("ffn.1", "backward"):
            raise ProtocolViolation("no")

    peer.before = fail
    moe(x).sum().backward()
    x_here = x.detach().clone().requires_grad_()
    weights = moe.proj(x_here).softmax(1)
    outputs = [peer.backends[f"ffn.{at}"].module(tensor) for at, tensor in enumerate([x_here, x_here.detach()])]
    (weights[:, :1] * outputs[0] + weights[:, 1:] * outputs[1]).sum().backward()
    torch.testing.assert_close(x.grad, x_here.grad)


def test_when_all_are_dead(serve, join) -> None:
    one, two, moe = two_halves(serve, join, k_best=8)
    x = torch.randn(6, 4)
    y = moe(x)
    one.kill()
    two.kill()
    with pytest.raises(NotEnoughExperts, match="backward pass: 0 of 8 experts answered, and backward_k_min is 1"):
        y.sum().backward()
    with pytest.raises(NotEnoughExperts, match=r"6 of 6 samples have fewer than k_min = 1 answers.*DialError"):
        moe(x)


def test_zeros_are_returned_when_all_are_dead_and_that_is_allowed(serve, join) -> None:
    one, two, moe = two_halves(serve, join, allow_zero_outputs=True)
    x = torch.randn(6, 4, requires_grad=True)
    moe(x)
    one.kill()
    two.kill()
    y = moe(x)
    assert torch.equal(y, torch.zeros(6, 4))
    y.sum().backward()
    assert all(each.grad is None or each.grad.isfinite().all() for each in [x, *moe.parameters()])


def test_stragglers_are_cut_once_every_sample_has_k_min(serve, join) -> None:
    one, _, moe = two_halves(serve, join, timeout_after_k_min=0.1, k_best=8)
    x = torch.randn(6, 4, requires_grad=True)
    moe(x)
    one.before = hang
    moe(x).sum().backward()
    forward, backward = moe.last_report.forward, moe.last_report.backward
    assert sorted(forward.uids("late")) == [f"ffn.0.{at}" for at in range(4)]
    assert sorted(backward.uids("answered")) == sorted(forward.uids("answered")) == [f"ffn.1.{at}" for at in range(4)]


def test_a_forward_timeout_is_kept_and_says_who_was_late(serve, join) -> None:
    peer = serve(grid_of(2))
    moe = RemoteMixtureOfExperts(in_features=4, grid_size=(2,), dht=join(peer), uid_prefix="ffn.", k_best=2, k_min=2)
    moe(torch.randn(1, 4))
    moe.options = replace(moe.options, forward_timeout=0.2)

    async def slow(uid: str, direction: str) -> None:
        if uid == "ffn.1":
            await trio.sleep_forever()

    peer.before = slow
    with pytest.raises(NotEnoughExperts, match=r"ffn\.1 at .*: late"):
        moe(torch.randn(1, 4))


def test_anomalies_in_answers_are_masked(serve, join) -> None:
    one, two, moe = two_halves(serve, join, detect_anomalies=True, k_best=8)
    x = torch.randn(6, 4, requires_grad=True)
    one.tamper = lambda uid, direction, answer: [answer[0] * torch.nan]
    y = moe(x)
    assert y.isfinite().all()
    assert sorted(moe.last_report.forward.uids("failed")) == [f"ffn.0.{at}" for at in range(4)]
    two.tamper = lambda uid, direction, answer: [answer[0] / 0] if uid == "ffn.1.1" else answer
    y.sum().backward()
    assert x.grad.isfinite().all()
    assert moe.last_report.backward.uids("failed") == ["ffn.1.1"]


def test_the_lies_of_one_server_are_masked(serve, join) -> None:
    one, _, moe = two_halves(serve, join, k_best=8)
    for lie, *_ in LIES.values():
        one.tamper = lambda uid, direction, answer, lie=lie: lie(answer)
        moe.beam_search.contacts.failures.__init__(moe.beam_search.contacts.failures._clock)
        moe(torch.randn(2, 4)).sum().backward()
        assert len(moe.last_report.forward.uids("failed")) == 4
