"""Modules that both sides of an interop test know, weights included. Needs torch alone."""

import torch
from torch import nn


class Wave(nn.Linear):
    """A linear layer with weights that need no random numbers."""

    def __init__(self, size: int, number: int = 0) -> None:
        super().__init__(size, size)
        with torch.no_grad():
            self.weight.copy_(torch.sin(torch.arange(size * size) + number).view(size, size) / size)
            self.bias.copy_(torch.cos(torch.arange(size) + number))


class Nested(nn.Module):
    """A positional input of floats, one of integers, two keyword inputs, nested outputs."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.wave = Wave(size)

    def forward(self, x, ids, *, scale, bias):
        hidden = self.wave(x + ids[:, None] / 10) * scale
        return hidden + bias, {"sum": hidden.sum(dim=1), "mean": hidden.mean(dim=1)}
