"""Encoding and decoding large tensors in a thread, so that other calls of the node do not wait for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar, TypeVarTuple

import trio

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")
_COPIED_AT_ONCE: Final = 2**20
"""Bytes whose copying (a fraction of a millisecond) is not worth a thread."""
_COMPUTED_AT_ONCE: Final = 2**15
"""Bytes whose compression is not."""


async def off_the_loop(nbytes: int, compression: int, sync_fn: Callable[[*_Args], _T], *args: *_Args) -> _T:
    """``sync_fn(*args)``, in a thread if it takes long: it copies, or with ``compression`` computes, so many bytes."""
    if nbytes <= (_COMPUTED_AT_ONCE if compression else _COPIED_AT_ONCE):
        return sync_fn(*args)
    return await trio.to_thread.run_sync(sync_fn, *args)
