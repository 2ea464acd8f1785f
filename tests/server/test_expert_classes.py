from __future__ import annotations

import pytest
import torch
from torch import nn

from hivemind_p2p.errors import ConfigError
from hivemind_p2p.server.expert_classes import (
    expert_classes,
    find_expert_class,
    load_expert_classes,
    register_expert_class,
)

PARAMETERS = {
    "ffn": {
        "ffn.weight": (128, 32), "ffn.bias": (128,), "ffn_output.weight": (32, 128), "ffn_output.bias": (32,),
        "layer_norm.weight": (32,), "layer_norm.bias": (32,),
    },
    "transformer": {
        "self_attn.in_proj_weight": (96, 32), "self_attn.in_proj_bias": (96,), "self_attn.out_proj.weight": (32, 32),
        "self_attn.out_proj.bias": (32,), "linear1.weight": (128, 32), "linear1.bias": (128,),
        "linear2.weight": (32, 128), "linear2.bias": (32,), "norm1.weight": (32,), "norm1.bias": (32,),
        "norm2.weight": (32,), "norm2.bias": (32,),
    },
    "nop": {"w": (0,)},
}  # fmt: skip
"""Printed from ``name_to_block[name](32).state_dict()`` of hivemind 1.1.12."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_named_and_shaped_as_hivemind_has_them(name):
    module = expert_classes[name].module_class(32)
    assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_outputs_are_like_the_first_input(name):
    kind = expert_classes[name]
    inputs = [
        torch.randn(tensor.shape) if tensor.is_floating_point() else torch.zeros_like(tensor)
        for tensor in kind.sample(5, 32)
    ]
    outputs = kind.module_class(32)(*inputs)
    assert outputs.shape == inputs[0].shape
    assert outputs.isfinite().all()
    assert outputs.data_ptr() != inputs[0].data_ptr()


def test_a_transformer_does_not_look_at_padding():
    layer = expert_classes["transformer"].module_class(32).eval()
    x, mask = torch.randn(2, 128, 32), torch.zeros(2, 128, dtype=torch.bool)
    mask[:, 100:] = True
    other = x.clone()
    other[:, 100:] = 7.0
    assert torch.allclose(layer(x, mask)[:, :100], layer(other, mask)[:, :100], atol=1e-6)
    assert not torch.allclose(layer(x)[:, :100], layer(other)[:, :100], atol=1e-3)
    with pytest.raises(ConfigError, match="16 heads"):
        expert_classes["transformer"].module_class(40)


@pytest.mark.usefixtures("registry")
def test_a_class_of_your_own():
    @register_expert_class("twice", lambda batch_size, hidden_dim: torch.empty(batch_size, hidden_dim))
    class Twice(nn.Module):
        def __init__(self, hidden_dim):
            super().__init__()

        def forward(self, x):
            return 2 * x

    assert isinstance(Twice(3), nn.Module)
    kind = find_expert_class("twice")
    assert kind.module_class is Twice
    assert [tensor.shape for tensor in kind.sample(4, 3)] == [(4, 3)]
    with pytest.raises(ConfigError, match="registered already"):
        register_expert_class("twice", kind.sample_input)(Twice)
    with pytest.raises(ConfigError, match="no expert class 'thrice', only ffn, nop, transformer, twice"):
        find_expert_class("thrice")


@pytest.mark.usefixtures("registry")
def test_a_file_of_your_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch\n"
        "from hivemind_p2p import register_expert_class\n"
        "register_expert_class('mine', lambda batch, hidden: torch.empty(batch, hidden))(torch.nn.Softmax)\n"
    )
    load_expert_classes(path)
    assert find_expert_class("mine").module_class is nn.Softmax
    for missing in (tmp_path / "absent.py", tmp_path):
        with pytest.raises(ConfigError, match="is not a Python file"):
            load_expert_classes(missing)


def test_an_ffn_gives_the_same_to_the_last_bit_with_and_without_a_backward():
    """Without one it overwrites what it no longer needs, which is never what it was given."""
    module = find_expert_class("ffn").module_class(8)
    inputs = torch.randn(5, 8)
    before = inputs.clone()
    outputs = module(inputs)
    with torch.inference_mode():
        assert torch.equal(module(inputs), outputs)
    with torch.no_grad():
        assert torch.equal(module(inputs), outputs)
    assert torch.equal(inputs, before)
