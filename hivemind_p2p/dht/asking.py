"""Whether we are in the middle of asking a peer for the DHT.

A request to a peer may have to dial it, and the dialer may ask the DHT where the peer is. That question would send more
requests, to more peers that would have to be dialled. So the DHT answers it only when it did not cause it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class _Mark:
    """Tasks inherit the context of who starts them, and may live on: a mark is worth nothing once it is over."""

    over = False


_mark: ContextVar[_Mark | None] = ContextVar("asking", default=None)


@contextmanager
def asking() -> Iterator[None]:
    """While inside, this task and those that it starts are asking for the DHT."""
    mark = _Mark()
    token = _mark.set(mark)
    try:
        yield
    finally:
        mark.over = True
        _mark.reset(token)


def is_asking() -> bool:
    """Whether this task was started, however indirectly, by a request of the DHT that is still under way."""
    mark = _mark.get()
    return mark is not None and not mark.over
