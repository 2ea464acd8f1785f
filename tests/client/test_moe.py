"""``RemoteMixtureOfExperts`` against the same mixture computed locally; how often it calls whom."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hivemind_p2p import RemoteMixtureOfExperts
from hivemind_p2p.errors import AnomalyDetected, ConfigError, InvalidUID, NotEnoughExperts, SchemaMismatch
from hivemind_p2p.runtime import BatchTensorDescriptor
from tests.client.peers import backend


def grid_of(*size: int, dim: int = 4, **options):
    """An expert at every place of a grid ``ffn.``."""
    places = torch.cartesian_prod(*(torch.arange(length) for length in size)).view(-1, len(size)).tolist()
    uids = [".".join(("ffn", *map(str, place))) for place in places]
    return [backend(uid, nn.Sequential(nn.Linear(dim, dim), nn.Tanh()), dim, **options) for uid in uids]


def local_mixture(moe, modules, x, k, alive=lambda uid: True):
    """What the mixture should give, expert by expert and sample by sample."""
    scores = moe.proj(x).split_with_sizes(list(moe.beam_search.grid_size), dim=-1)
    rows = []
    for sample in range(len(x)):
        score = {
            uid: sum(axis[sample, int(at)] for axis, at in zip(scores, uid.split(".")[1:], strict=True))
            for uid in modules
        }
        best = sorted(score, key=lambda uid: -score[uid].item())[:k]
        best = [uid for uid in best if alive(uid)]
        weights = torch.stack([score[uid] for uid in best]).softmax(0)
        outputs = torch.stack([modules[uid](x[sample : sample + 1])[0] for uid in best])
        rows.append((weights[:, None] * outputs).sum(0))
    return torch.stack(rows)


def modules_of(*peers):
    return {uid: copy.deepcopy(each.module) for peer in peers for uid, each in peer.backends.items()}


@pytest.mark.parametrize("size", [(5,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize("rows", [1, 9])
def test_outputs_and_all_gradients_are_those_of_the_local_mixture(serve, join, size, rows) -> None:
    peer = serve(grid_of(*size))
    modules = modules_of(peer)
    moe = RemoteMixtureOfExperts(in_features=4, grid_size=size, dht=join(peer), uid_prefix="ffn.", k_best=3)
    x = torch.randn(rows, 4, requires_grad=True)
    weights = torch.randn(rows, 4)
    there = moe(x)
    grads_there = torch.autograd.grad((there * weights).sum(), [x, *moe.parameters()])
    here = local_mixture(moe, modules, x, 3)
    grads_here = torch.autograd.grad((here * weights).sum(), [x, *moe.parameters()])
    torch.testing.assert_close(there, here)
    torch.testing.assert_close(grads_there, grads_here)


def test_scores_of_any_size_make_weights(serve, join) -> None:
    peer = serve(grid_of(3))
    moe = RemoteMixtureOfExperts(in_features=4, grid_size=(3,), dht=join(peer), uid_prefix="ffn.", k_best=3)
    x = torch.randn(2, 4)
    with torch.no_grad():
        for offset in (-1e4, 1e4):
            moe.proj.bias.fill_(offset)
            torch.testing.assert_close(moe(x), local_mixture(moe, modules_of(peer), x, 3))


def test_each_expert_is_called_once_per_direction_with_all_of_its_rows(serve, join) -> None:
    one, two = serve(grid_of(2, 4)[:4]), serve(grid_of(2, 4)[4:])
    moe = RemoteMixtureOfExperts(in_features=4, grid_size=(2, 4), dht=join(one), uid_prefix="ffn.", k_best=4)
    for _ in range(2):
        one.calls.clear()
        two.calls.clear()
        moe(torch.randn(100, 4)).sum().backward()
        for direction in ("forward", "backward"):
            assert set((one.count(direction) | two.count(direction)).values()) == {1}
            rows = [rows for _, its, rows, _ in one.calls + two.calls if its == direction]
            assert sum(rows) == 400
    assert one.infos + two.infos <= 4


def test_the_gate_has_hivemind_s_parameter_names(serve, join) -> None:
    moe = RemoteMixtureOfExperts(in_features=6, grid_size=(2, 4), dht=join(serve([])), uid_prefix="ffn", k_best=4)
    assert {name: tuple(each.shape) for name, each in moe.state_dict().items()} == {
        "proj.weight": (6, 6),
        "proj.bias": (6,),
    }
    assert repr(moe).startswith("RemoteMixtureOfExperts(\n  <GridSearch of ffn.[0:2].[0:4]>, k_best=4, k_min=1")


def test_experts_learn_from_one_step_per_batch(serve, join) -> None:
    peer = serve(grid_of(3, lr=0.1))
    moe = RemoteMixtureOfExperts(in_features=4, grid_size=(3,), dht=join(peer), uid_prefix="ffn.", k_best=2)
    moe(torch.randn(16, 4)).sum().backward()
    called = peer.count("backward")
    assert {uid: each.update_count for uid, each in peer.backends.items()} == {
        uid: int(uid in called) for uid in peer.backends
    }


class Attention(nn.Module):
    """An expert with a sequence, a keyword input of integers, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, *, lengths):
        mask = (torch.arange(x.shape[1]) < lengths[:, None])[..., None]
        hidden = self.linear(x) * mask
        return hidden, hidden.sum(dim=1)


def test_sequences_keyword_inputs_and_several_outputs(serve, join) -> None:
    kwargs = {"lengths": BatchTensorDescriptor(dtype=torch.int64)}
    sequence = BatchTensorDescriptor(5, 4)
    peer = serve([backend(f"att.{at}", Attention(), sequence, kwargs_schema=kwargs) for at in range(3)])
    modules = modules_of(peer)
    moe = RemoteMixtureOfExperts(in_features=4, grid_size=(3,), dht=join(peer), uid_prefix="att.", k_best=3)
    x = torch.randn(6, 5, 4, requires_grad=True)
    lengths = torch.tensor([1, 2, 3, 4, 5, 5])
    there = moe(x, lengths=lengths)
    weights = moe.proj(x.mean(dim=1)).softmax(dim=1)
    outputs = [modules[f"att.{at}"](x, lengths=lengths) for at in range(3)]
    here = tuple(
        sum(weights[:, at].view(-1, *[1] * (out.ndim - 1)) * out for at, out in enumerate(each))
        for each in zip(*outputs, strict=True)
    )
    torch.testing.assert_close(there, here)
    both = [sum(each.square().sum() for each in result) for result in (there, here)]
    torch.testing.assert_close(*[torch.autograd.grad(loss, [x, *moe.parameters()]) for loss in both])


def test_a_batch_without_rows(serve, join) -> None:
    peer = serve(grid_of(3))
    moe = RemoteMixtureOfExperts(in_features=4, grid_size=(3,), dht=join(peer), uid_prefix="ffn.", k_best=2)
    x = torch.zeros(0, 4, requires_grad=True)
    y = moe(x)
    y.sum().backward()
    assert y.shape == (0, 4)
    assert x.grad.shape == (0, 4)
    assert peer.calls == []


def test_look_ups_are_remembered(serve, join) -> None:
    peer = serve(grid_of(4, 4))
    moe = RemoteMixtureOfExperts(in_features=4, grid_size=(4, 4), dht=join(peer), uid_prefix="ffn.", k_best=4)
    moe(torch.randn(64, 4))
    assert moe.beam_search.look_ups == 5, "the list of the first axis, and what follows each of its places"
    moe(torch.randn(64, 4))
    assert moe.beam_search.look_ups == 5


def test_the_report_says_what_happened(serve, join) -> None:
    peer = serve(grid_of(3))
    moe = RemoteMixtureOfExperts(in_features=4, grid_size=(3,), dht=join(peer), uid_prefix="ffn.", k_best=3)
    assert moe.last_report is None
    y = moe(torch.randn(8, 4))
    report = moe.last_report
    assert (report.forward.samples, report.forward.unanswered, report.backward) == (8, 0, None)
    assert {(call.uid, call.peer_id, call.rows, call.outcome) for call in report.forward.calls} == {
        (f"ffn.{at}", peer.dht.peer_id, 8, "answered") for at in range(3)
    }
    y.sum().backward()
    assert sorted(moe.last_report.backward.uids("answered")) == ["ffn.0", "ffn.1", "ffn.2"]
    assert "8 samples, 3 calls (3 answered, 0 failed, 0 late)" in str(moe.last_report)


def test_no_experts_at_all(serve, join) -> None:
    moe = RemoteMixtureOfExperts(in_features=4, grid_size=(3, 3), dht=join(serve([])), uid_prefix="ffn.", k_best=3)
    with pytest.raises(NotEnoughExperts, match=r"no expert under 'ffn\.' in a grid of \(3, 3\).*none is alive"):
        moe(torch.randn(2, 4))
    assert moe.last_report is None


def test_fewer_experts_than_k_min(serve, join) -> None:
    peer = serve(grid_of(2))
    moe = RemoteMixtureOfExperts(in_features=4, grid_size=(9,), dht=join(peer), uid_prefix="ffn.", k_best=4, k_min=3)
    with pytest.raises(NotEnoughExperts, match=r"5 of 5 samples .* k_min = 3 .*only 2 experts are alive"):
        moe(torch.randn(5, 4))


def test_a_gate_that_has_exploded(serve, join) -> None:
    moe = RemoteMixtureOfExperts(in_features=4, grid_size=(2,), dht=join(serve(grid_of(2))), uid_prefix="ffn", k_best=2)
    moe(torch.randn(1, 4))
    nn.init.constant_(moe.proj.weight, torch.nan)
    with pytest.raises(NotEnoughExperts, match="the gate's scores are NaN"):
        moe(torch.randn(1, 4))


def test_anomalies_in_inputs_and_gradients_are_not_sent(serve, join) -> None:
    peer = serve(grid_of(2))
    options = {"in_features": 4, "grid_size": (2,), "uid_prefix": "ffn", "k_best": 2, "detect_anomalies": True}
    moe = RemoteMixtureOfExperts(dht=join(peer), **options)
    with pytest.raises(AnomalyDetected, match="input 0 of the mixture has NaN"):
        moe(torch.tensor([[0, 1, torch.inf, 2]]))
    y = moe(torch.randn(1, 4))
    with pytest.raises(AnomalyDetected, match="gradient of output 0 of the mixture has NaN"):
        (y * torch.nan).sum().backward()
    assert peer.count("backward") == {}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"k_best": 0}, ConfigError),
        ({"k_min": 5}, ConfigError),
        ({"grid_size": ()}, ConfigError),
        ({"grid_size": (3, 0)}, ConfigError),
        ({"uid_prefix": ".ffn"}, InvalidUID),
    ],
)
def test_options_that_make_no_sense(serve, join, options, error) -> None:
    options = {"in_features": 4, "grid_size": (2,), "uid_prefix": "ffn", "k_best": 2} | options
    with pytest.raises(error):
        RemoteMixtureOfExperts(dht=join(serve([])), **options)


def test_inputs_that_do_not_fit(serve, join) -> None:
    moe = RemoteMixtureOfExperts(in_features=3, grid_size=(2,), dht=join(serve(grid_of(2))), uid_prefix="ffn", k_best=2)
    with pytest.raises(SchemaMismatch, match=r"input 0 does not fit an expert of ffn\.\*: expected shape \(any, 4\)"):
        moe(torch.randn(1, 3))
    with pytest.raises(SchemaMismatch, match=r"\[batch, \.\.\., features\], not \(3,\)"):
        moe(torch.randn(3))
