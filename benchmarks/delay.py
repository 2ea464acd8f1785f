"""A TCP proxy that delays what passes: ``delay.py PORT SECONDS`` prints its own port and runs until stdin ends.

Each way, bytes arrive ``SECONDS`` after they were sent; nothing else is limited. What is under way is kept in memory.
"""

from __future__ import annotations

import math
import sys

import trio

CHUNK = 256 * 1024


async def carry(source: trio.SocketStream, target: trio.SocketStream, delay: float) -> None:
    """One direction, until its source ends."""
    send, receive = trio.open_memory_channel[tuple[float, bytes]](math.inf)

    async def deliver() -> None:
        async for due, data in receive:
            await trio.sleep_until(due)
            await target.send_all(data)
        await target.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(deliver)
        async with send:
            while data := await source.receive_some(CHUNK):
                send.send_nowait((trio.current_time() + delay, data))


async def proxy(port: int, delay: float) -> None:
    """Listen, and carry each connection to ``port`` of this machine."""

    async def accepted(stream: trio.SocketStream) -> None:
        try:
            async with stream, await trio.open_tcp_stream("127.0.0.1", port) as target, trio.open_nursery() as nursery:
                nursery.start_soon(carry, stream, target, delay)
                nursery.start_soon(carry, target, stream, delay)
        except* trio.BrokenResourceError:
            pass

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listener.socket.getsockname()[1], flush=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, accepted, [listener])
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(proxy, int(sys.argv[1]), float(sys.argv[2]))
