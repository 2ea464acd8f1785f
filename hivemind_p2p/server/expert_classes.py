"""Classes of experts by name: what ``Server.create(expert_cls="ffn")`` makes, and how to add your own.

``ffn``, ``transformer`` and ``nop`` are hivemind 1.1's in architecture and in the names of their parameters, so that a
state dict of one loads into the other.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from hivemind_p2p.errors import ConfigError

SampleInput = Callable[[int, int], torch.Tensor | tuple[torch.Tensor, ...]]
_Class = TypeVar("_Class", bound=Callable[[int], nn.Module])


@dataclass(frozen=True)
class ExpertClass:
    """A kind of expert.

    Attributes:
        module_class: makes a module of a hidden size.
        sample_input: makes inputs for a batch size and a hidden size: a tensor, or a tuple of the positional inputs.
            Only their shapes and dtypes matter.
    """

    module_class: Callable[[int], nn.Module]
    sample_input: SampleInput

    def sample(self, batch_size: int, hidden_dim: int) -> tuple[torch.Tensor, ...]:
        """Positional inputs of one batch."""
        inputs = self.sample_input(batch_size, hidden_dim)
        return inputs if isinstance(inputs, tuple) else (inputs,)


expert_classes: dict[str, ExpertClass] = {}
"""All that are registered, by name."""


def register_expert_class(name: str, sample_input: SampleInput) -> Callable[[_Class], _Class]:
    """Decorate a module class whose constructor takes the hidden size, to host it by ``name``::

        @register_expert_class("tanh", lambda batch_size, hidden_dim: torch.empty(batch_size, hidden_dim))
        class Tanh(nn.Module): ...

    Args:
        name: what ``expert_cls`` will say.
        sample_input: see :class:`ExpertClass`.

    Raises:
        ConfigError: the name is taken.
    """

    def register(module_class: _Class) -> _Class:
        if name in expert_classes:
            raise ConfigError(f"an expert class {name!r} is registered already; choose another name")
        expert_classes[name] = ExpertClass(module_class, sample_input)
        return module_class

    return register


def find_expert_class(name: str) -> ExpertClass:
    """The registered class.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in expert_classes:
        raise ConfigError(
            f"there is no expert class {name!r}, only {', '.join(sorted(expert_classes))}; add one of your own with "
            "register_expert_class, in a file that custom_module_path names"
        )
    return expert_classes[name]


def load_expert_classes(path: str | Path) -> None:
    """Run a Python file that registers expert classes.

    Raises:
        ConfigError: there is no such file. What the file itself raises is raised.
    """
    path = Path(path)
    spec = importlib.util.spec_from_file_location(f"expert_classes_of_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"custom_module_path = {path} is not a Python file")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def _rows(batch_size: int, hidden_dim: int) -> torch.Tensor:
    return torch.empty(batch_size, hidden_dim)


def _gelu(x: torch.Tensor) -> torch.Tensor:
    """Of what was made just now, and nobody else needs: where there will be no backward, it is overwritten."""
    if torch.is_grad_enabled():
        return nn.functional.gelu(x, approximate="tanh")
    changed: torch.Tensor = torch.ops.aten.gelu_(x, approximate="tanh")
    return changed


@register_expert_class("ffn", _rows)
class FeedForward(nn.Module):
    """Two linear layers with a residual connection around them: float32 ``[batch, hidden_dim]`` to the same.

    Args:
        hidden_dim: the size of inputs and outputs; four times as many units lie between.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.ffn = nn.Linear(hidden_dim, 4 * hidden_dim)
        self.ffn_output = nn.Linear(4 * hidden_dim, hidden_dim)
        self.layer_norm = nn.LayerNorm(hidden_dim, eps=1e-12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.layer_norm(x + self.ffn_output(_gelu(self.ffn(x))))
        return hidden


def _sequences(batch_size: int, hidden_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(batch_size, 128, hidden_dim), torch.empty(batch_size, 128, dtype=torch.bool)


@register_expert_class("transformer", _sequences)
class TransformerLayer(nn.Module):
    """A layer of a transformer's encoder, normalised behind its residuals: float32 ``[batch, 128, hidden_dim]`` to the
    same. The second input says which positions are padding: bool ``[batch, 128]``, true where nobody shall look.

    Args:
        hidden_dim: the size of inputs and outputs; a multiple of 16, the number of heads.
        dropout: of the attention, and behind each part.
    """

    def __init__(self, hidden_dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        if hidden_dim % 16:
            raise ConfigError(f"hidden_dim = {hidden_dim} cannot be shared by the 16 heads of a transformer expert")
        self.self_attn = nn.MultiheadAttention(hidden_dim, 16, dropout=dropout)
        self.linear1 = nn.Linear(hidden_dim, 4 * hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(4 * hidden_dim, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)

    def forward(self, src: torch.Tensor, src_key_padding_mask: torch.Tensor | None = None) -> torch.Tensor:
        src = src.transpose(0, 1)
        attended, _ = self.self_attn(src, src, src, key_padding_mask=src_key_padding_mask, need_weights=False)
        src = self.norm1(src + self.dropout1(attended))
        expanded = self.linear2(self.dropout(_gelu(self.linear1(src))))
        src = self.norm2(src + self.dropout2(expanded))
        return src.transpose(0, 1)


@register_expert_class("nop", _rows)
class Nop(nn.Module):
    """Gives back what it gets, to measure everything else: float32 ``[batch, hidden_dim]``.

    Its one parameter is empty, so that optimizers take it.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()
