"""Train a classifier of handwritten digits whose middle layer is a mixture of experts in other processes.

Start a swarm first, each line in a terminal of its own; the first one prints what to paste for PEER::

    hivemind-p2p bootstrap
    hivemind-p2p server --initial-peers PEER --num-experts 8 --expert-pattern "digits.[0:4].[0:4]" --hidden-dim 64
    hivemind-p2p server --initial-peers PEER --num-experts 8 --expert-pattern "digits.[0:4].[0:4]" --hidden-dim 64
    python examples/train_digits.py PEER
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from hivemind_p2p import DHT, RemoteMixtureOfExperts

UID_PREFIX, GRID, HIDDEN = "digits.", (4, 4), 64


@dataclass
class Digits:
    """1797 real scans of 8x8 pixels, a fifth of them held out: float32 [n, 64] in [0, 1], int64 [n]."""

    train_x: torch.Tensor
    train_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor

    @classmethod
    def load(cls) -> Digits:
        scans, labels = load_digits(return_X_y=True)
        parts = train_test_split(scans / 16, labels, test_size=0.2, random_state=0, stratify=labels)
        train_x, test_x = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
        train_y, test_y = (torch.tensor(part) for part in parts[2:])
        return cls(train_x, train_y, test_x, test_y)


class Classifier(nn.Module):
    """Two small local layers around a mixture: for each sample the gate picks 4 of the swarm's experts."""

    def __init__(self, dht: DHT) -> None:
        super().__init__()
        self.encoder = nn.Linear(64, HIDDEN)
        self.experts = RemoteMixtureOfExperts(
            in_features=HIDDEN, grid_size=GRID, dht=dht, uid_prefix=UID_PREFIX,
            k_best=4, k_min=1, forward_timeout=10, backward_timeout=10, timeout_after_k_min=2,
        )  # fmt: skip
        self.decoder = nn.Linear(HIDDEN, 10)

    def forward(self, scans: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.experts(self.encoder(scans)))

    @torch.no_grad()
    def accuracy(self, scans: torch.Tensor, labels: torch.Tensor) -> float:
        return (self(scans).argmax(dim=1) == labels).float().mean().item()


def train(
    model: Classifier,
    data: Digits,
    *,
    epochs: int,
    batch_size: int = 128,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> int:
    """Train for some epochs; experts learn on their servers during ``backward()``. Returns the samples seen."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    step = 0
    for _ in range(epochs):
        for batch in torch.randperm(len(data.train_x)).split(batch_size):
            loss = nn.functional.cross_entropy(model(data.train_x[batch]), data.train_y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            on_step(step, loss.item())
    return epochs * len(data.train_x)


def main(initial_peers: list[str]) -> None:
    data = Digits.load()
    with DHT(initial_peers, start=True, client_mode=True) as dht:
        model = Classifier(dht)
        train(model, data, epochs=12, on_step=lambda step, loss: print(f"step {step}: loss {loss:.3f}"))
        print(f"accuracy on {len(data.test_x)} scans never seen: {model.accuracy(data.test_x, data.test_y):.1%}")


if __name__ == "__main__":
    main(sys.argv[1:])
