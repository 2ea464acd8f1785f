"""Training while a server is paused, slowed, partitioned and killed, in the middle of forward and of backward.

Three machines, programs as users start them. What lies, and what is refused, is in
``tests/client/test_training_under_faults.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hivemind_p2p.runtime.checkpoints import Checkpoints
from hivemind_p2p.runtime.state import ExpertState
from tests.nat.lab.lab import Lab
from tests.nat.lab.programs import Program, server, trainer

OPTIONS = ["--hidden-dim", "16", "--optimizer", "sgd", "--lr", "0.1"]
STEPS = 3


class Swarm:
    """A server to which things happen, one that is left alone, and a trainer.

    Attributes:
        sent: backward requests by uid: how many were sent, and answered.
    """

    def __init__(self, lab: Lab, folder: Path, stack: ExitStack) -> None:
        self.lab, self._folder, self._stack = lab, folder, stack
        self._host = lab.public("a")
        steady = stack.enter_context(server(lab.public("b"), uids(3, 4, 5), *OPTIONS))
        self._peers = steady.maddrs
        self.victim = self._start()
        self.trainer: Program = stack.enter_context(trainer(lab.public("t"), self._peers))
        self.sent: dict[str, list[int]] = {}

    def _start(self) -> Program:
        directory, identity = str(self._folder / "checkpoints"), str(self._folder / "key")
        return self._stack.enter_context(
            server(
                self._host, uids(0, 1, 2), *OPTIONS, "--checkpoint-dir", directory, "--checkpoint-period", "0.1",
                "--identity-path", identity, initial_peers=self._peers,
            )
        )  # fmt: skip

    def train(self, prefix: str, steps: int, direction: str = "", happens: Callable[[], None] | None = None) -> Counter:
        """Make steps; something happens to the server when the first call of a pass to it begins. How calls ended."""
        stop_at = {"stop_at": [direction, self.victim.peer_id]} if happens is not None else {}
        self.trainer.tell(do="train", prefix=prefix, steps=steps, **stop_at)
        if happens is not None:
            assert self.trainer.answer() == {"reached": direction}
            happens()
            self.trainer.tell()
        answer: dict[str, Any] = self.trainer.answer()
        for uid, counts in answer["sent"].items():
            self.sent[uid] = [one + other for one, other in zip(self.sent.get(uid, [0, 0]), counts, strict=True)]
        return Counter(answer["outcomes"][direction or "forward"])

    def restart(self) -> None:
        """Start the server again, as it was, after it died."""
        self.victim = self._start()

    def updates(self) -> dict[str, int]:
        """How many steps each of its experts has made, by its newest checkpoint."""
        checkpoints = Checkpoints(self._folder / "checkpoints")
        newest = {uid: checkpoints.of(uid)[0] for uid in checkpoints.uids()}
        return {uid: ExpertState.read(path, uid).update_count for uid, path in newest.items()}


def uids(*numbers: int) -> list[str]:
    return [f"{prefix}.{number}" for prefix in ("calm", "ffn") for number in numbers]


@pytest.fixture
def swarm(make_lab: Callable[..., Lab], tmp_path: Path) -> Iterator[Swarm]:
    with ExitStack() as stack:
        yield Swarm(make_lab(delay_ms=1), tmp_path, stack)


def test_it_learns_what_an_undisturbed_run_learns(swarm: Swarm) -> None:
    lab, ended = swarm.lab, {}
    swarm.train("calm.", 40)
    undisturbed = swarm.trainer.ask(do="accuracy", prefix="calm.")
    swarm.train("ffn.", STEPS)
    for direction in ("forward", "backward"):
        ended["paused", direction] = swarm.train("ffn.", STEPS, direction, swarm.victim.pause)
        swarm.victim.go_on()
        ended["partitioned", direction] = swarm.train("ffn.", STEPS, direction, lambda: lab.cut("a"))
        lab.heal("a")
        ended["slowed", direction] = swarm.train("ffn.", STEPS, direction, lambda: lab.delay("a", 100))
        lab.delay("a", 1)
        before = swarm.updates()
        ended["killed", direction] = swarm.train("ffn.", STEPS, direction, swarm.victim.kill)
        swarm.restart()
        swarm.train("ffn.", STEPS)
    swarm.train("ffn.", 10)
    disturbed = swarm.trainer.ask(do="accuracy", prefix="ffn.")
    assert undisturbed > 0.8
    assert disturbed > undisturbed - 0.05
    for (fault, _), outcomes in ended.items():
        assert outcomes["answered"] > 0, "by the other server"
        assert outcomes["late"] + outcomes["failed"] > 0 or fault == "slowed"
    swarm.victim.stop()
    for uid, updates in swarm.updates().items():
        assert updates <= swarm.sent[uid][0], "no update is made twice"
        assert updates >= before[uid], "what was saved before it was killed was gone on from"
    assert sum(swarm.updates().values()) > sum(before.values())
