"""``hivemind-p2p peers --watch``: the connections of running nodes as they change, as a table or line by line."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import trio

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hivemind_p2p.control.client import Answer

Ask = Callable[[], Awaitable[Sequence["Answer"]]]
NOBODY: Final = "No node of this user runs on this machine; the first one to start will be seen here."


@dataclass
class Changes:
    """What is different from one look to the next: nodes that started or ended, peers that came or went, and paths.

    A peer is as its connection in use is.
    """

    _nodes: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def saw(self, answers: Sequence[Answer], now: float) -> Iterator[dict[str, Any]]:
        """One look; what changed, in words and values for JSON.

        Args:
            now: Unix time in seconds.
        """
        seen = {
            each.peer_id: {peer["peer_id"]: peer for peer in each.answer if peer["in_use"]}
            for each in answers
            if not each.error
        }
        for node in [*seen, *(each for each in self._nodes if each not in seen)]:
            about = {"time": round(now, 3), "node": node}
            if node not in self._nodes:
                yield {**about, "event": "node started"}
            before, after = self._nodes.get(node, {}), seen.get(node, {})
            for peer_id, peer in after.items():
                if peer_id not in before:
                    yield {**about, "event": "connected", **_path_of(peer)}
                elif _path_of(before[peer_id]) != _path_of(peer):
                    yield {**about, "event": "path changed", **_path_of(peer)}
            for peer_id in before:
                if peer_id not in after:
                    yield {**about, "event": "disconnected", "peer_id": peer_id}
            if node not in seen:
                yield {**about, "event": "node ended"}
        self._nodes = seen


def _path_of(peer: dict[str, Any]) -> dict[str, Any]:
    return {key: peer[key] for key in ("peer_id", "path", "relay", "address")}


async def follow(ask: Ask, every: float, *, as_json: bool) -> None:
    """Print a line for each change; never returns.

    Args:
        every: seconds between two looks.
    """
    changes = Changes()
    while True:
        for change in changes.saw(await ask(), time.time()):
            print(json.dumps(change) if as_json else _in_words(change), flush=True)
        await trio.sleep(every)


def _in_words(change: dict[str, Any]) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(change["time"]))
    words = f"{clock} {change['node'][-8:]}: {change['event']}"
    if "peer_id" in change:
        words += f" {change['peer_id']}"
    if "path" in change:
        words += " directly" if change["relay"] is None else f" through the relay {change['relay']}"
        words += f" at {(change['address'] or 'an unknown address').partition('/p2p/')[0]}"
    return words


async def show(ask: Ask, every: float, draw: Callable[[Sequence[Answer]], RenderableType]) -> None:
    """Keep a picture of it on the terminal; never returns. What was on the screen before comes back at the end.

    Args:
        draw: the picture of one look.
    """
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(), screen=True, auto_refresh=False) as live:
        while True:
            answers = await ask()
            head = Text(f"{time.strftime('%H:%M:%S')}, every {every:g} s; Ctrl-C ends this\n", style="dim")
            live.update(Group(head, draw(answers) if answers else Text(NOBODY)), refresh=True)
            await trio.sleep(every)
