"""One training run over servers that lie, refuse, hang, die and come back: it learns what an undisturbed one learns.

What happens to the processes and links of real servers is in ``tests/nat/test_training_through_faults.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from hivemind_p2p import RemoteMixtureOfExperts
from hivemind_p2p.client import latency
from hivemind_p2p.client.contacts import client_stats, contacts_of
from hivemind_p2p.compression import serialize_tensor
from hivemind_p2p.errors import Overloaded
from hivemind_p2p.wire.runtime_pb2 import Tensor
from tests.client.peers import ExpertPeer, backend, hang

HIDDEN, CLASSES, STEPS = 16, 5, 60


class Classifier(nn.Module):
    def __init__(self, dht) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.experts = RemoteMixtureOfExperts(
            in_features=HIDDEN, grid_size=(6,), dht=dht, uid_prefix="ffn.", k_best=3, k_min=1, detect_anomalies=True,
            timeout_after_k_min=2, backward_k_min=0, forward_timeout=60, backward_timeout=60,
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.experts(self.first(x)))


def experts(*numbers: int):
    module = lambda: nn.Sequential(nn.Linear(HIDDEN, 32), nn.Tanh(), nn.Linear(32, HIDDEN))  # noqa: E731
    return [backend(f"ffn.{number}", module(), HIDDEN, lr=0.2) for number in numbers]


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around the corners of a cube; near the right one nearly always."""
    labels = torch.randint(CLASSES, (size,))
    corners = torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(3)) * 2
    return corners[labels] + torch.randn(size, 8), labels


def train(dht, disturb: Callable[[int], None], after_step: Callable[[Classifier], None] = lambda model: None) -> float:
    """The accuracy after some steps."""
    torch.manual_seed(1)
    model = Classifier(dht)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for step in range(STEPS):
        disturb(step)
        x, labels = batch(64)
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(each.grad.isfinite().all() for each in model.parameters())
        optimizer.step()
        after_step(model)
    x, labels = batch(1000)
    with torch.no_grad():
        return (model(x).argmax(1) == labels).float().mean().item()


def lie_in(direction: str, lie: Callable[[torch.Tensor], torch.Tensor | Tensor]):
    return lambda uid, its, answer: [lie(answer[0])] if its == direction else answer


class Stale:
    """Answers in one direction with what it answered the last time."""

    def __init__(self, direction: str) -> None:
        self._direction = direction
        self._last: dict[str, list[torch.Tensor]] = {}

    def __call__(self, uid: str, direction: str, answer: list[torch.Tensor]) -> list[torch.Tensor]:
        if direction != self._direction:
            return answer
        last, self._last[uid] = self._last.get(uid, answer), answer
        return last


def cut(answer: torch.Tensor) -> Tensor:
    """The bytes end early."""
    packed = serialize_tensor(answer)
    packed.buffer = packed.buffer[:-4]
    return packed


async def refuse(uid: str, direction: str) -> None:
    raise Overloaded("full")


async def hang_backward(uid: str, direction: str) -> None:
    if direction == "backward":
        await hang(uid, direction)


def test_it_learns_what_an_undisturbed_run_learns(serve, join, monkeypatch) -> None:
    monkeypatch.setattr(latency, "STUCK_AT_LEAST", 1.0)  # in the forward passes that hang, nothing is waited for
    torch.manual_seed(0)
    there = [experts(0, 1, 2), experts(3, 4, 5)]
    weights = {each.name: copy.deepcopy(each.module.state_dict()) for its in there for each in its}
    quiet = [serve(its) for its in there]
    undisturbed = train(join(quiet[0]), lambda step: None)
    for peer in quiet:
        peer.close()

    bootstrap = ExpertPeer([])
    peers = [ExpertPeer(experts(*numbers), bootstrap.maddrs) for numbers in ((0, 1, 2), (3, 4, 5))]
    for peer in peers:
        for uid, each in peer.backends.items():
            each.module.load_state_dict(weights[uid])
    dht = join(bootstrap)
    troubles, dead = set[str](), list[ExpertPeer]()

    lies = [
        lie_in("forward", lambda answer: answer * torch.nan),
        lie_in("backward", lambda answer: answer * torch.nan),
        lie_in("forward", lambda answer: answer[:, :3]),
        lie_in("backward", lambda answer: answer[:, :3]),
        lie_in("forward", lambda answer: answer[:-1]),
        lie_in("backward", lambda answer: answer[:-1]),
        lie_in("forward", cut),
        lie_in("backward", cut),
        Stale("forward"),
        Stale("backward"),
    ]

    def disturb(step: int) -> None:
        one, two = peers
        one.tamper = two.tamper = one.before = two.before = None
        contacts_of(dht).failures.__init__(contacts_of(dht).failures._clock)  # ask them again, so that it hurts again
        if 3 <= step < 23:
            liar = one if step < 14 else two
            liar.tamper = lies[(step - 3) // 2]
        elif 25 <= step < 27:
            two.before = refuse
        elif 27 <= step < 29:
            two.before = hang
        elif 30 <= step < 32:
            one.before = hang_backward
        elif step == 36:
            two.kill()
        elif step == 42:  # from where it was: a checkpoint
            again = ExpertPeer(experts(3, 4, 5), bootstrap.maddrs)
            for uid, each in again.backends.items():
                each.module.load_state_dict(two.backends[uid].module.state_dict())
            two.close()
            dead.append(two)
            peers[1] = again

    def check(model: Classifier) -> None:
        report = model.experts.last_report
        for call in report.forward.calls + report.backward.calls:
            troubles.add(call.outcome)
            troubles.update(attempt.error.split(":")[0] for attempt in call.attempts)
        for call in report.backward.calls:
            sent = [attempt for attempt in call.attempts if not attempt.error.startswith("RemoteOverloaded")]
            assert len(sent) <= 1, "what may have been applied is not sent again"

    try:
        disturbed = train(dht, disturb, check)
    finally:
        for peer in (*peers, bootstrap):
            peer.close()
    for peer in (*peers, *dead):
        assert all(each.update_count <= peer.count("backward").get(uid, 0) for uid, each in peer.backends.items())
    assert undisturbed > 0.85
    assert disturbed > undisturbed - 0.05
    assert {"answered", "late", "AnomalyDetected", "ProtocolViolation", "CodecError", "RemoteOverloaded"} <= troubles
    assert client_stats(dht).anomalies > 0
