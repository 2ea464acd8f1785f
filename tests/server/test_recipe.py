from __future__ import annotations

import pytest
import torch

from hivemind_p2p.errors import ConfigError
from hivemind_p2p.server import register_expert_class
from hivemind_p2p.server.expert_classes import FeedForward
from hivemind_p2p.server.recipe import ExpertRecipe, compression_type, optimizer_maker, scheduler_maker
from hivemind_p2p.wire.compression_type import CompressionType
from hivemind_p2p.wire.nested import nested_flatten


def test_experts_of_one_recipe_share_nothing_but_their_looks():
    recipe = ExpertRecipe("ffn", 8, make_optimizer=optimizer_maker("adam", None), max_batch_size=77, clip_grad_norm=1.0)
    first, second = recipe.backend("a.0"), recipe.backend("a.1")
    assert (first.name, second.name) == ("a.0", "a.1")
    assert first.max_batch_size == 77
    assert first.training.clip_grad_norm == 1.0
    assert not torch.equal(first.module.ffn.weight, second.module.ffn.weight)
    assert first.optimizer is not second.optimizer
    assert first.outputs_schema == second.outputs_schema


def test_compression_is_that_of_all_floats():
    recipe = ExpertRecipe("transformer", 16, make_optimizer=None, compression=CompressionType.FLOAT16)
    backend = recipe.backend("a.0")
    assert [descriptor.compression for descriptor in nested_flatten(backend.forward_schema)] == [2, 0]
    assert [descriptor.compression for descriptor in nested_flatten(backend.outputs_schema)] == [2]
    assert backend.outputs_schema.size == (None, 128, 16)


@pytest.mark.usefixtures("registry")
def test_whole_numbers_are_never_compressed():
    @register_expert_class("ranks", lambda batch_size, hidden_dim: torch.empty(batch_size, hidden_dim))
    class Ranks(torch.nn.Linear):
        def __init__(self, hidden_dim):
            super().__init__(hidden_dim, hidden_dim)

        def forward(self, x):
            y = super().forward(x)
            return y, y.argsort(dim=1)

    backend = ExpertRecipe("ranks", 4, make_optimizer=None, compression=CompressionType.FLOAT16).backend("a.0")
    assert [descriptor.compression for descriptor in backend.outputs_schema] == [CompressionType.FLOAT16, 0]


@pytest.mark.parametrize(
    ("name", "lr", "kind", "rate"),
    [
        ("adam", None, torch.optim.Adam, 1e-3),
        ("adam", 0.5, torch.optim.Adam, 0.5),
        ("sgd", None, torch.optim.SGD, 1e-2),
    ],
)
def test_optimizers(name, lr, kind, rate):
    optimizer = optimizer_maker(name, lr)([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, kind)
    assert optimizer.param_groups[0]["lr"] == rate


def test_no_optimizer():
    assert optimizer_maker("none", 1.0) is None
    recipe = ExpertRecipe("nop", 8, make_optimizer=None, make_scheduler=scheduler_maker("linear", 1, 2))
    assert recipe.backend("a.0").optimizer is recipe.backend("a.0").scheduler is None
    with pytest.raises(ConfigError, match="'adagrad' is not one of adam, sgd, none; others go into optim_cls"):
        optimizer_maker("adagrad", None)


def test_the_linear_schedule():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = scheduler_maker("linear", 2, 6)(optimizer)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert scheduler_maker("none", None, None) is None
    assert scheduler_maker("linear", 0, 1)(optimizer).lr_lambdas[0](0) == 1.0
    with pytest.raises(ConfigError, match="not one of none, linear"):
        scheduler_maker("cosine", 1, 2)


def test_names_of_compressions():
    assert compression_type("float16") == compression_type(2) == compression_type(CompressionType.FLOAT16) == 2
    for wrong in ("zip", 99):
        with pytest.raises(ConfigError, match="is not one of NONE, MEANSTD_16BIT"):
            compression_type(wrong)


def test_no_module_is_made_in_vain(monkeypatch):
    made = []
    init = FeedForward.__init__
    monkeypatch.setattr(FeedForward, "__init__", lambda self, size: (init(self, size), made.append(self))[0])
    recipe = ExpertRecipe("ffn", 8, make_optimizer=None)
    modules = [recipe.backend(f"ffn.{number}").module for number in range(3)]
    assert modules == made
