"""What the messages of a request say about its tensors, checked before a byte of them is decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hivemind_p2p.compression.encoded import AnyTensor
from hivemind_p2p.errors import MessageTooLarge, SchemaMismatch
from hivemind_p2p.runtime import TaskPool


class DeclaredTensors:
    """The tensors of one request, as far as they were declared.

    Args:
        pool: that the request is for.

    Attributes:
        rows: their batch size.
    """

    def __init__(self, pool: TaskPool) -> None:
        self._pool = pool
        self._schema = pool.inputs
        self._count = 0
        self.rows = 0

    def add(self, message: AnyTensor) -> None:
        """Check the next one.

        Raises:
            SchemaMismatch: it is one too many, has another shape or dtype than expected, or another batch size than
                the first.
        """
        place = self._count
        self._count += 1
        if place >= len(self._schema):
            raise SchemaMismatch(f"{self._expected()}, got more")
        name = self._schema.names[place]
        shape = tuple(message.size)
        mismatch = self._schema.descriptors[place].to_wire().mismatch(shape, f"torch.{message.dtype}")
        if mismatch:
            raise SchemaMismatch(f"{name} for {self._pool.name}: {mismatch[:200]}")
        if place == 0:
            self.rows = shape[0]
        elif shape[0] != self.rows:
            raise SchemaMismatch(f"{name} has batch size {shape[0]}, but {self._schema.names[0]} has {self.rows}")

    def check_complete(self) -> None:
        """Check that all are there.

        Raises:
            SchemaMismatch: they are too few.
        """
        if self._count != len(self._schema):
            raise SchemaMismatch(f"{self._expected()}, got {self._count}")

    def check_answer_fits(self, limit: int, compressions: Sequence[int]) -> None:
        """Refuse, before anything is computed or learned, what cannot be answered in one message.

        Args:
            limit: tensor bytes of the answer.
            compressions: those that its tensors will have.

        Raises:
            MessageTooLarge: the answer will have more. What is compressed is not looked at: it may or may not fit.
        """
        nbytes = sum(
            self.rows * math.prod(length or 0 for length in each.size[1:]) * each.dtype.itemsize
            for each, compression in zip(self._pool.outputs.descriptors, compressions, strict=True)
            if compression == 0
        )
        if nbytes > limit:
            raise MessageTooLarge(f"the answer has {nbytes} bytes, more than one message holds: use the streaming call")

    def _expected(self) -> str:
        count, names = len(self._schema), ", ".join(self._schema.names)
        return f"expected {count} tensor{'s'[: count != 1]} for {self._pool.name} ({names})"
