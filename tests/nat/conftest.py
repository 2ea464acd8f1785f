"""Labs for the tests of this folder, which say so and are skipped where none can be built; in CI that is a failure."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.nat.lab.cells import Cell, run_cells
from tests.nat.lab.lab import Lab
from tests.nat.lab.namespaces import why_unavailable
from tests.nat.lab.peers import Peer, peers

_numbers = itertools.count()


@pytest.fixture(scope="session")
def _labs_are_possible() -> None:
    if reason := why_unavailable():
        pytest.skip(f"the NAT laboratory {reason}")


@pytest.fixture
def make_lab(_labs_are_possible: None) -> Iterator[Callable[..., Lab]]:
    """``make_lab(delay_ms=10)``: a lab of its own for one test, taken down at the end of it."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(Lab(f"{os.getpid()}-{next(_numbers)}", **options))


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(delay_ms=5)


@pytest.fixture
def start(lab: Lab) -> Iterator[Callable[..., Peer]]:
    """``start(host, **options)``: a node in the lab, see ``Peer``; killed at the end of the test."""
    with peers() as start:
        yield start


@pytest.fixture
def bootstrap(lab: Lab, start: Callable[..., Peer]) -> Callable[..., Peer]:
    """``bootstrap()``: a public node that others join through, and that relays for them."""

    def start_bootstrap(name: str = "boot", **options: Any) -> Peer:
        return start(lab.public(name), host_maddrs=["/ip4/0.0.0.0/tcp/4001"], **options)

    return start_bootstrap


_matrix: dict[tuple[str, str], Cell] = {}


@pytest.fixture
def matrix_cell(request: pytest.FixtureRequest, _labs_are_possible: None) -> Cell:
    """The cell of the matrix that a test is parametrized with (``one`` and ``other``).

    All cells that this run of pytest asks for are run together, several at once, when the first one is wanted.
    """
    if not _matrix:
        wanted = [item.callspec.params for item in request.session.items if "matrix_cell" in item.fixturenames]
        pairs = [(params["one"], params["other"]) for params in wanted]
        _matrix.update({(cell.one, cell.other): cell for cell in run_cells(pairs)})
    params = request.node.callspec.params
    return _matrix[params["one"], params["other"]]
