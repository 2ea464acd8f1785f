"""When a batch may stop to wait for stragglers. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Quorum:
    """Counts answers per sample while calls end, each of which concerns some of the samples.

    A sample is settled once it has ``k_min`` answers, or no call that could bring it more is under way: samples that
    have lost their experts do not keep the others waiting.

    Args:
        answers: int64 ``[samples]``, what each sample has already; changed in place.
        rows: for each call, int64, the samples that it concerns, each at most once.
        k_min: answers that each sample should have.
    """

    def __init__(self, answers: torch.Tensor, rows: Sequence[torch.Tensor], k_min: int) -> None:
        self.answers = answers
        self._rows = rows
        self._k_min = k_min
        everyone = torch.cat([*rows, torch.zeros(0, dtype=torch.int64, device="cpu")])
        self._under_way = everyone.bincount(minlength=len(answers))

    def ended(self, call: int, *, answered: bool) -> None:
        """A call is over."""
        rows = self._rows[call]
        self._under_way[rows] -= 1
        if answered:
            self.answers[rows] += 1

    @property
    def settled(self) -> bool:
        """Whether every sample is."""
        return bool(((self.answers >= self._k_min) | (self._under_way == 0)).all())
