"""What our nodes tell each other beside the tensors of a call: msgpack in ``metadata``, empty in hivemind. Pure.

A caller says how the answer shall travel, and how long it waits for it; only to peers that serve
``ConnectionHandler.rpc_codecs``. Such a peer says what it measured: the error of each tensor that it compressed, and
how fast the request came.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from hivemind_p2p.wire import msgpack


class AnswerNotes(NamedTuple):
    """Beside an answer.

    Attributes:
        errors: relative L2 errors of its tensors; None where it was not measured.
        received: bytes per second at which requests come from the caller; None: not known.
    """

    errors: tuple[float | None, ...] = ()
    received: float | None = None


class Wish(NamedTuple):
    """Beside a request of ours, whose answer shall have notes beside it.

    Attributes:
        compression: that the answer shall have, a number; None: as the expert says.
    """

    compression: int | None = None


class Urgency(NamedTuple):
    """Beside a request of ours.

    Attributes:
        timeout: seconds after which nobody waits for the answer any more; None: it is not said.
        priority: 0, or above it for a request that may be computed after others.
    """

    timeout: float | None = None
    priority: float = 0.0


def pack_wish(wish: Wish, urgency: Urgency | None = None) -> bytes:
    """For a request."""
    fields: dict[str, object] = {"answer_compression": None if wish.compression is None else int(wish.compression)}
    return msgpack.dumps(fields if urgency is None else fields | urgency._asdict())


def read_urgency(metadata: bytes) -> Urgency:
    """What stands beside a request; what makes no sense is left out, and so is a wish to be computed before others."""
    fields = _fields(metadata)
    return Urgency(_measure(fields.get("timeout")), _measure(fields.get("priority")) or 0.0)


def read_wish(metadata: bytes) -> Wish | None:
    """What stands beside a request; None: nothing, or something else."""
    fields = _fields(metadata)
    if "answer_compression" not in fields:
        return None
    number = fields["answer_compression"]
    return Wish(number if type(number) is int else None)


def pack_notes(errors: Sequence[float | None], received: float | None) -> bytes:
    """For an answer; see :class:`AnswerNotes`."""
    return msgpack.dumps({"errors": list(errors), "received": received})


def read_notes(metadata: bytes) -> AnswerNotes:
    """What stands beside an answer; what makes no sense is left out."""
    fields = _fields(metadata)
    errors, received = fields.get("errors"), _measure(fields.get("received"))
    return AnswerNotes(tuple(map(_measure, errors)) if isinstance(errors, list | tuple) else (), received or None)


def pack_codecs(compressions: Sequence[int]) -> bytes:
    """The answer to ``rpc_codecs``: what this peer reads, and gives when it is wished for."""
    return msgpack.dumps({"compressions": [int(each) for each in compressions]})


def read_codecs(answer: bytes) -> frozenset[int]:
    """What a peer reads and gives."""
    numbers = _fields(answer).get("compressions")
    return (
        frozenset(each for each in numbers if type(each) is int) if isinstance(numbers, list | tuple) else frozenset()
    )


def _fields(packed: bytes) -> dict[object, object]:
    if not packed:
        return {}
    try:
        fields = msgpack.loads(packed)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _measure(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value >= 0 else None
