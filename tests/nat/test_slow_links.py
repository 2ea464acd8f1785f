"""``compression="auto"`` over links of different speeds: what it decides by is what it measured there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.nat.lab.lab import Lab
from tests.nat.lab.programs import Program, server, trainer

SIZE = 1024
CODEC = 1e6
"""Elements per second. A codec as slow as that makes the two links clearly different for it, on a busy machine, too."""
ALL = sorted(
    [[role, "BLOCK_INT8"] for role in ("input", "input", "output", "grad_output", "grad_input")]
)  # the input travels in both passes


def learns(program: Program, rows: int, wanted: list[list[str]], codec: float | None = CODEC) -> bool:
    """Whether a training step comes to compress this, after some others: one that met a pause of the machine's is not
    taken for the link, as long as it is not the only one."""
    for _ in range(8):
        [[compressed, _]] = program.ask(do="link", compression="auto", steps=1, rows=rows, size=SIZE, codec=codec)
        if sorted(compressed) == wanted:
            return True
    return False


@pytest.fixture
def train(make_lab: Callable[..., Lab]) -> Iterator[Callable[..., Program]]:
    """``train(rate_mbit=2)``: a trainer whose link to a server is like that."""
    with ExitStack() as stack:

        def start(**link: float) -> Program:
            lab = make_lab(**link)
            options = ["--expert-cls", "nop", "--hidden-dim", str(SIZE)]
            peer = stack.enter_context(server(lab.public("server"), ["wide.0"], *options))
            return stack.enter_context(trainer(lab.public("trainer"), peer.maddrs))

        yield start


def test_on_a_slow_link_auto_sends_eight_bits(train: Callable[..., Program]) -> None:
    """2 Mbit/s, where 256 KiB take a second: for a codec as slow as that, and for this machine's own."""
    program = train(rate_mbit=2, delay_ms=5)
    assert learns(program, 64, ALL)
    assert learns(program, 64, ALL, codec=None)


def test_on_a_fast_link_auto_leaves_tensors_as_they_are(train: Callable[..., Program]) -> None:
    program = train()
    [[compressed, _]] = program.ask(do="link", compression="auto", steps=1, rows=2048, size=SIZE, codec=CODEC)
    assert len(compressed) < len(ALL), "the first inputs travel as they are: nothing is known yet"
    assert learns(program, 2048, [])
