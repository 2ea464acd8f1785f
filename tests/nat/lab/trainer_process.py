"""A trainer on a machine of a lab: does what its standard input says, a line of JSON each, and answers so.

With ``"stop_at": ["forward", PEER_ID]`` an order says ``{"reached": ...}`` when the first such call begins, and goes on
after the next line: meanwhile the peer may be stopped, cut off or killed.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch import nn

from hivemind_p2p import DHT, RemoteMixtureOfExperts
from hivemind_p2p.client.contacts import contacts_of
from hivemind_p2p.compression import measure
from hivemind_p2p.rpc.trace import CallEnded, CallStarted

HIDDEN, CLASSES = 16, 5


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


class Classifier(nn.Module):
    """Between two local layers, the best four of six experts, each server having three."""

    def __init__(self, dht: DHT, prefix: str) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.experts = RemoteMixtureOfExperts(
            in_features=HIDDEN, grid_size=(6,), dht=dht, uid_prefix=prefix, k_best=4, k_min=1, backward_k_min=0,
            timeout_after_k_min=0.5, forward_timeout=30, backward_timeout=30, detect_anomalies=True,
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.experts(self.first(x)))


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around some places, which are their labels."""
    labels = torch.randint(CLASSES, (size,))
    places = torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(3)) * 2
    return places[labels] + torch.randn(size, 8), labels


class Trainer:
    """Runs the orders; each is a method."""

    def __init__(self, initial_peers: list[str]) -> None:
        torch.set_num_threads(1)
        self.dht = DHT(initial_peers, client_mode=True, start=True)
        self.dht.node.rpc.trace = self._note
        self.models: dict[str, tuple[Classifier, torch.optim.Optimizer]] = {}
        self.stop_at: list[str] | None = None

    def _note(self, event: CallStarted | CallEnded) -> None:
        if isinstance(event, CallStarted) and event.outbound and self.stop_at is not None:
            direction, peer = self.stop_at
            if event.peer_id.base58 == peer and event.method == f"ConnectionHandler.rpc_{direction}":
                self.stop_at = None
                say(reached=direction)
                sys.stdin.readline()  # nothing of this node goes on meanwhile

    def train(self, prefix: str, steps: int, stop_at: list[str] | None = None) -> dict[str, Any]:
        """Make steps, and more until the call came at which to stop: a connection that was cut off may still be waiting
        to try again. How calls ended by direction, and how many backward requests an expert was sent and answered."""
        if prefix not in self.models:
            torch.manual_seed(0)
            model = Classifier(self.dht, prefix)
            self.models[prefix] = model, torch.optim.SGD(model.parameters(), lr=0.2)
        model, optimizer = self.models[prefix]
        failures = contacts_of(self.dht).failures
        self.stop_at = stop_at
        made = 0
        outcomes: dict[str, list[str]] = {"forward": [], "backward": []}
        sent: dict[str, list[int]] = {}
        while made < steps or self.stop_at is not None:
            if made % steps == 0:
                failures.__init__(failures._clock)  # who failed before is asked again, so that it hurts again
            made += 1
            x, labels = batch(64)
            loss = nn.functional.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            assert all(each.grad.isfinite().all() for each in model.parameters())
            optimizer.step()
            report = model.experts.last_report
            for direction, its in (("forward", report.forward), ("backward", report.backward)):
                outcomes[direction] += [call.outcome for call in its.calls]
            for call in report.backward.calls:
                counts = sent.setdefault(call.uid, [0, 0])
                counts[0] += max(1, len(call.attempts))
                counts[1] += call.outcome == "answered"
        return {"outcomes": outcomes, "sent": sent}

    def accuracy(self, prefix: str) -> float:
        x, labels = batch(1000)
        with torch.no_grad():
            return (self.models[prefix][0](x).argmax(1) == labels).float().mean().item()

    def link(self, compression: str | None, steps: int, rows: int, size: int, codec: float | None = None) -> list[Any]:
        """Steps through one expert, ``wide.0``; for each, what travelled compressed (role and way), and its seconds.

        ``codec``: elements per second that this machine's codec shall be taken to do, instead of what it does.
        """
        measured = measure.elements_per_second
        if codec is not None:
            measure.elements_per_second = lambda compression: codec
        mixture = RemoteMixtureOfExperts(
            in_features=size, grid_size=(1,), dht=self.dht, uid_prefix="wide.", k_best=1, compression=compression
        )
        told = []
        for _ in range(steps):
            x = torch.randn(rows, size, requires_grad=True)
            began = time.perf_counter()
            mixture(x).sum().backward()
            seconds = time.perf_counter() - began
            report = mixture.last_report
            calls = [*report.forward.calls, *report.backward.calls]
            kinds = [[each.role, each.compression] for call in calls for each in call.attempts[-1].compressed]
            told.append([kinds, seconds])
        measure.elements_per_second = measured
        return told


def main() -> None:
    trainer = Trainer(sys.argv[1:])
    say(ready=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(getattr(trainer, order.pop("do"))(**order)), flush=True)


if __name__ == "__main__":
    main()
