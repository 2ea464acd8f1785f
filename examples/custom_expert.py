"""Experts of your own: register a module by name, and let servers host it.

::

    hivemind-p2p server --custom-module-path examples/custom_expert.py --expert-cls gated --expert-uids gated.0 --hidden-dim 64
    python examples/inference.py PEER gated.0

The constructor takes the hidden size; the sample says what the module takes: here two inputs, rows of ``hidden_dim``
numbers, and for each row how much of it to pass on.
"""  # noqa: E501 - commands are one line each

from __future__ import annotations

import torch
from torch import nn

from hivemind_p2p import register_expert_class


def sample(batch_size: int, hidden_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(batch_size, hidden_dim), torch.empty(batch_size, 1)


@register_expert_class("gated", sample)
class Gated(nn.Module):
    """A gated linear unit (SwiGLU; Shazeer 2020, https://arxiv.org/abs/2002.05202), with a residual connection."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden_dim)
        self.expand = nn.Linear(hidden_dim, 2 * 2 * hidden_dim, bias=False)
        self.contract = nn.Linear(2 * hidden_dim, hidden_dim, bias=False)

    def forward(self, x: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        gate, value = self.expand(self.norm(x)).chunk(2, dim=-1)
        return x + share * self.contract(nn.functional.silu(gate) * value)
