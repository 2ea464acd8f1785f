"""How a verb that serves runs: logging, one Trio run, and a clean end on SIGINT or SIGTERM."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def set_up_logging(verbose: bool) -> None:
    """Our own loggers to stderr: warnings, or everything when ``verbose``; those of libraries only warnings."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("hivemind_p2p").setLevel(logging.DEBUG if verbose else logging.WARNING)


def run_until_stopped(serve: Callable[[], Awaitable[None]]) -> None:
    """Run ``serve`` until it returns, or cancel it at the first SIGINT or SIGTERM and return when it has cleaned up.

    A second signal exits at once, with 128 plus its number, whatever the clean-up is doing.
    """
    import trio

    trio.run(_serve_until_stopped, serve)


async def _serve_until_stopped(serve: Callable[[], Awaitable[None]]) -> None:
    import trio

    async def stop_on_signal() -> None:
        with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
            watching.set()
            await anext(signals)
        for number in STOP_SIGNALS:
            signal.signal(number, _exit_at_once)
        nursery.cancel_scope.cancel()

    watching = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_on_signal)
        await watching.wait()
        await serve()
        nursery.cancel_scope.cancel()


def _exit_at_once(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)
