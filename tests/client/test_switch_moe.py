"""``RemoteSwitchMixtureOfExperts`` against the same layer computed locally."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hivemind_p2p import RemoteSwitchMixtureOfExperts
from hivemind_p2p.errors import ConfigError, NotEnoughExperts
from tests.client.test_moe import grid_of, modules_of


def switch(dht, grid, **options) -> RemoteSwitchMixtureOfExperts:
    options = {"in_features": 4, "uid_prefix": "ffn.", "jitter_eps": 0.0} | options
    return RemoteSwitchMixtureOfExperts(grid_size=grid, dht=dht, **options)


def local_switch(moe, modules, x, k, alive=lambda uid: True):
    """What the layer should give, the paper's equations expert by expert; and the loss before ``moe`` has counted."""
    probabilities = [axis.softmax(-1) for axis in moe.proj(x).split_with_sizes(list(moe.beam_search.grid_size), dim=-1)]
    counts = [torch.zeros(length) for length in moe.beam_search.grid_size]
    rows = []
    for sample in range(len(x)):
        places = {uid: [int(at) for at in uid.split(".")[1:]] for uid in modules}
        p = {uid: torch.stack([axis[sample, at] for axis, at in zip(probabilities, places[uid], strict=True)]).prod()
             for uid in modules}  # fmt: skip
        best = [uid for uid in sorted(p, key=lambda uid: -p[uid].item())[:k] if alive(uid)]
        rows.append(x[sample] + sum((p[uid] * modules[uid](x[sample : sample + 1])[0] for uid in best), torch.zeros(4)))
        for uid in best:
            for count, at in zip(counts, places[uid], strict=True):
                count[at] += 1
    batch = torch.cat([nn.functional.normalize(count, p=1, dim=0) for count in counts])
    utilization = moe.utilization_alpha * moe.grid_utilization + (1 - moe.utilization_alpha) * batch
    shares = utilization.split_with_sizes(list(moe.beam_search.grid_size))
    loss = sum(len(share) * axis.mean(0) @ share for axis, share in zip(probabilities, shares, strict=True))
    return torch.stack(rows), loss, utilization


@pytest.mark.parametrize(("grid", "k"), [((5,), 1), ((3, 4), 1), ((3, 4), 3)])
def test_outputs_loss_and_all_gradients_are_those_of_the_local_layer(serve, join, grid, k) -> None:
    peer = serve(grid_of(*grid))
    modules, moe = modules_of(peer), switch(join(peer), grid, k_best=k)
    for _ in range(2):
        x, weights = torch.randn(9, 4, requires_grad=True), torch.randn(9, 4)
        here, loss_here, utilization = local_switch(moe, modules, x, k)
        there, loss_there = moe(x)
        torch.testing.assert_close((there, loss_there), (here, loss_here))
        torch.testing.assert_close(moe.grid_utilization, utilization)
        torch.testing.assert_close(
            torch.autograd.grad((there * weights).sum() + loss_there, [x, *moe.parameters()]),
            torch.autograd.grad((here * weights).sum() + loss_here, [x, *moe.parameters()]),
        )


def test_the_loss_evens_the_gate_out(serve, join) -> None:
    """It is 1 per axis where all is even, and more where it is not; to follow its gradient makes it less."""
    peer = serve(grid_of(4, 4))
    moe = switch(join(peer), (4, 4), utilization_alpha=0.0)
    nn.init.zeros_(moe.proj.weight)
    moe.proj.bias.data = torch.tensor([3.0, 0, 0, 0, 3, 0, 0, 0])
    optimizer = torch.optim.SGD(moe.parameters(), lr=0.5)
    losses = []
    for _ in range(30):
        _, loss = moe(torch.randn(32, 4))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] > 5
    assert losses[-1] < 3
    with torch.no_grad():
        moe.proj.bias.zero_()
        moe.grid_utilization.fill_(0.25)
    moe.eval()
    torch.testing.assert_close(moe(torch.randn(8, 4))[1], torch.tensor(2.0))


def test_who_gets_no_answer_keeps_the_input(serve, join) -> None:
    one, two, bootstrap = serve(grid_of(2, 4)[:4]), serve(grid_of(2, 4)[4:]), serve([])
    moe = switch(join(bootstrap), (2, 4))
    modules = modules_of(one, two)
    x = torch.randn(20, 4, requires_grad=True)
    moe(x)
    one.kill()
    here, *_ = local_switch(moe, modules, x, 1, alive=lambda uid: uid.startswith("ffn.1."))
    there, _ = moe(x)
    failed = moe.last_report.forward.uids("failed")
    assert failed
    assert moe.last_report.forward.unanswered == 0, "k_min is 0"
    torch.testing.assert_close(there, here)
    two.kill()
    there, loss = moe(x)
    torch.testing.assert_close(there, x)
    (there.sum() + loss).backward()
    torch.testing.assert_close(moe.proj.weight.grad.isfinite().all(), torch.tensor(True))


def test_noise_and_dropout_belong_to_training_and_the_input_stays(serve, join) -> None:
    peer = serve(grid_of(6))
    moe = switch(join(peer), (6,), jitter_eps=0.5, grid_dropout=0.5)
    x = torch.randn(16, 4)
    before = x.clone()
    counts = []
    for _ in range(10):
        moe(x)
        counts.append(len(moe.last_report.forward.calls))
    assert torch.equal(x, before)
    assert min(counts) < len(set(moe.proj(x).argmax(1).tolist()))
    moe.eval()
    utilization = moe.grid_utilization.clone()
    assert torch.equal(moe(x)[0], moe(x)[0])
    torch.testing.assert_close(moe(x)[0], local_switch(moe, modules_of(peer), x, 1)[0])
    assert torch.equal(moe.grid_utilization, utilization)


def test_dropout_leaves_at_least_one(serve, join) -> None:
    peer = serve(grid_of(2))
    moe = switch(join(peer), (2,), grid_dropout=1e-9)
    y, loss = moe(torch.randn(3, 4))
    assert y.isfinite().all()
    assert loss.isfinite()


def test_a_batch_without_rows_costs_and_counts_nothing(serve, join) -> None:
    moe = switch(join(serve(grid_of(2))), (2,))
    utilization = moe.grid_utilization.clone()
    y, loss = moe(torch.zeros(0, 4))
    assert y.shape == (0, 4)
    assert loss == 0
    (y.sum() + loss).backward()
    assert moe.proj.weight.grad.count_nonzero() == 0
    assert torch.equal(moe.grid_utilization, utilization)


def test_the_schema_is_asked_for_again_when_nobody_keeps_to_it(serve, join) -> None:
    """It was the lie of one, or all started anew. Such a batch raises nothing here: it keeps its input."""
    peer = serve(grid_of(2))
    moe = switch(join(peer), (2,))
    x = torch.randn(3, 4)
    moe(x)
    assert moe.info is not None
    asked = peer.infos
    peer.tamper = lambda uid, direction, tensors: [torch.zeros(len(tensors[0]), 7)]
    assert torch.equal(moe(x)[0], x)
    assert moe.info is not None
    assert peer.infos > asked


def test_names_arguments_and_defaults_are_hivemind_s(serve, join) -> None:
    moe = RemoteSwitchMixtureOfExperts(in_features=6, grid_size=(2, 4), dht=join(serve([])), uid_prefix="ffn")
    assert {name: tuple(each.shape) for name, each in moe.state_dict().items()} == {
        "grid_utilization": (6,), "proj.weight": (6, 6), "proj.bias": (6,),
    }  # fmt: skip
    assert moe.grid_utilization.tolist() == [0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    assert (moe.options.k_best, moe.options.k_min, moe.options.backward_k_min) == (1, 0, 0)
    assert "k_best=1, k_min=0, grid_dropout=1.0, jitter_eps=0.01" in repr(moe)
    with pytest.raises(NotEnoughExperts, match="none is alive"):
        moe(torch.randn(1, 6))
    for wrong in ({"grid_dropout": 0.0}, {"jitter_eps": 1.0}, {"utilization_alpha": 1.5}):
        with pytest.raises(ConfigError, match="must be shares from 0 to 1"):
            switch(moe.dht, (2,), **wrong)
