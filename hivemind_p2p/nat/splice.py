"""Two streams made one: what arrives on either goes out on the other, until both ended or a limit is reached."""

from __future__ import annotations

from typing import Final

import trio

from hivemind_p2p.errors import StreamError
from hivemind_p2p.transport.api import CircuitLimit, Stream

_CHUNK: Final = 256 * 1024


async def splice(one: Stream, other: Stream, limit: CircuitLimit) -> str:
    """Carry bytes both ways, ends of halves included.

    Returns:
        ``""`` when both sides ended in peace. Otherwise why the circuit was cut; then both streams are reset, so that
        nobody takes what came for all that was sent.
    """
    reasons: list[str] = []
    with trio.move_on_after(limit.seconds) as timer:
        async with trio.open_nursery() as nursery:

            async def carry(source: Stream, sink: Stream) -> None:
                try:
                    reason = await _copy(source, sink, limit.size)
                except StreamError as error:
                    reason = str(error)
                if reason:
                    reasons.append(reason)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(carry, one, other)
            nursery.start_soon(carry, other, one)
    if timer.cancelled_caught:
        reasons.append(f"the circuit was open for {limit.seconds:g} s, which is all this relay gives")
    if reasons:
        await one.reset()
        await other.reset()
        return reasons[0]
    return ""


async def _copy(source: Stream, sink: Stream, allowance: float) -> str:
    carried = 0
    while data := await source.receive_some(_CHUNK):
        carried += len(data)
        if carried > allowance:
            return f"more than {allowance:g} bytes in one direction, which is all this relay gives"
        await sink.send_all(data)
    await sink.send_eof()
    return ""
