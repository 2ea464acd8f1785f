"""Every pair of NAT kinds: two nodes behind them join with one command, and each cell ends as the network allows.

A direct connection where there can be one, the relayed one where only that is left: never nothing. All 81 cells in CI
and with ``NAT_MATRIX=all``; elsewhere, and with ``NAT_MATRIX=quick``, a choice of them.
"""

from __future__ import annotations

import itertools
import os

import pytest

from tests.nat.lab.cells import KINDS, Cell, can_be_direct

QUICK = [
    ("none", "port-restricted"),
    ("port-restricted", "port-restricted"),
    ("symmetric", "restricted"),
    ("full-cone", "cgnat-symmetric"),
    ("symmetric", "port-restricted"),
    ("firewalled", "cgnat"),
]
ALL = list(itertools.product(KINDS, KINDS))
IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}
CELLS = ALL if os.environ.get("NAT_MATRIX", "all" if IN_CI else "quick") == "all" else QUICK


def test_the_network_allows_61_of_81_pairs_to_be_direct():
    assert len(ALL) == 81
    assert sum(can_be_direct(*pair) for pair in ALL) == 61


@pytest.mark.parametrize(("one", "other"), CELLS)
def test_a_node_reaches_another(matrix_cell: Cell, one: str, other: str):
    assert matrix_cell.is_as_the_network_allows, f"{one} to {other}: {matrix_cell}"
