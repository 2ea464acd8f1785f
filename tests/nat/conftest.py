"""Labs for the tests of this folder, which say so and are skipped where none can be built; in CI that is a failure."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.nat.lab.cells import Cell, run_cells
from tests.nat.lab.lab import Lab
from tests.nat.lab.namespaces import why_unavailable

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
