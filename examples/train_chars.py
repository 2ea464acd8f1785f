"""Train a character-level transformer, whose feed-forward layers are mixtures of experts in other processes, to write
like the reference manual of Python; draw the loss curve, and let it write.

Start a swarm first, each line in a terminal of its own; the first one prints what to paste for PEER::

    hivemind-p2p bootstrap
    hivemind-p2p server --initial-peers PEER --num-experts 8 --expert-pattern "chars.[0:4].[0:4]" --hidden-dim 64
    hivemind-p2p server --initial-peers PEER --num-experts 8 --expert-pattern "chars.[0:4].[0:4]" --hidden-dim 64
    python examples/train_chars.py PEER --steps 1000 --plot loss.png

The text comes with Python itself (``pydoc_data.topics``, half a million characters).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import nn

from hivemind_p2p import DHT, RemoteMixtureOfExperts

UID_PREFIX, GRID, HIDDEN, CONTEXT = "chars.", (4, 4), 64, 48


class Text:
    """The manual as numbers, the last twentieth held out: int64 ``[characters]``."""

    def __init__(self) -> None:
        text = "\n".join(topics[name] for name in sorted(topics))
        self.letters = sorted(set(text))
        numbers = {letter: number for number, letter in enumerate(self.letters)}
        encoded = torch.tensor([numbers[letter] for letter in text])
        held_out = len(encoded) // 20
        self.train, self.test = encoded[:-held_out], encoded[-held_out:]

    def batch(self, source: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Random places, ``[size, CONTEXT]`` each: characters, and those that follow them."""
        at = torch.randint(len(source) - CONTEXT, (size, 1)) + torch.arange(CONTEXT + 1)
        return source[at][:, :-1], source[at][:, 1:]


class Block(nn.Module):
    """Attention here, and for each character the two best of the swarm's experts."""

    def __init__(self, dht: DHT) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.attention = nn.MultiheadAttention(HIDDEN, num_heads=4, batch_first=True)
        self.experts = RemoteMixtureOfExperts(
            in_features=HIDDEN, grid_size=GRID, dht=dht, uid_prefix=UID_PREFIX,
            k_best=2, k_min=1, forward_timeout=30, backward_timeout=30, timeout_after_k_min=5,
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.norm(x)
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        x = x + self.attention(seen, seen, seen, attn_mask=future, need_weights=False)[0]
        return x + self.experts(x.flatten(0, 1)).view_as(x)


class Writer(nn.Module):
    """Says which character comes next: int64 ``[batch, length]`` to float32 ``[batch, length, letters]``."""

    def __init__(self, dht: DHT, letters: int) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(letters, HIDDEN), nn.Embedding(CONTEXT, HIDDEN)
        self.blocks = nn.Sequential(Block(dht), Block(dht))
        self.head = nn.Sequential(nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, letters))

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        places = self.places.weight[: characters.shape[1]]
        return self.head(self.blocks(self.letters(characters) + places))

    def loss(self, characters: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self(characters).flatten(0, 1), following.flatten())

    @torch.no_grad()
    def write(self, text: Text, start: str, length: int) -> str:
        """Inference: the servers only compute forward, and nobody learns."""
        written = [text.letters.index(letter) for letter in start]
        for _ in range(length):
            scores = self(torch.tensor([written[-CONTEXT:]]))[0, -1]
            written.append(int(torch.multinomial((scores / 0.7).softmax(0), 1)))
        return "".join(text.letters[number] for number in written)


def train(
    model: Writer, text: Text, *, steps: int, batch_size: int, on_step: Callable[[int, float], None]
) -> list[float]:
    """The loss of each step; the experts learn on their servers during ``backward()``."""
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=3e-3), list[float]()
    for step in range(1, steps + 1):
        loss = model.loss(*text.batch(text.train, batch_size))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        on_step(step, losses[-1])
    return losses


def plot(losses: list[float], path: Path) -> None:
    """Draw the loss curve, and its average over 20 steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    average = [sum(losses[max(0, at - 19) : at + 1]) / min(20, at + 1) for at in range(len(losses))]
    axes.plot(losses, alpha=0.3, label="loss of a step")
    axes.plot(average, label="average of 20")
    axes.set(xlabel="step", ylabel="cross-entropy, nats per character", title="Two mixtures of 16 remote experts")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("initial_peers", nargs="+", metavar="PEER", help="addresses that `bootstrap` printed")
    parser.add_argument("--steps", type=int, default=300, help="training steps (default: 300)")
    parser.add_argument("--batch-size", type=int, default=16, help="texts in a step (default: 16)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the loss curve (PNG, SVG, PDF)")
    arguments = parser.parse_args()
    text = Text()
    with DHT(arguments.initial_peers, start=True, client_mode=True) as dht:
        model = Writer(dht, len(text.letters))
        losses = train(
            model, text, steps=arguments.steps, batch_size=arguments.batch_size,
            on_step=lambda step, loss: step % 10 == 1 and print(f"step {step}: loss {loss:.3f}", flush=True),
        )  # fmt: skip
        with torch.no_grad():
            print(f"loss on text never seen: {model.loss(*text.batch(text.test, 32)).item():.3f}")
        print(model.write(text, "The ", 40))
        print(model.blocks[0].experts.last_report)
    if arguments.plot is not None:
        plot(losses, arguments.plot)


if __name__ == "__main__":
    main()
