"""``hivemind-p2p ping --until-direct``: how the path to a peer changes, from a relayed one to a direct one."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import trio

from hivemind_p2p.cli.ping import too_slow
from hivemind_p2p.errors import TransportError

if TYPE_CHECKING:
    from hivemind_p2p.node import Node
    from hivemind_p2p.transport.api import Connection

_LOOK = 0.02
"""Seconds between two looks at the connections to the peer."""
_PINGS = 3
_LAST_PING = 5.0
"""Seconds that a round trip over the path found last may take beyond the time given."""


@dataclass(frozen=True)
class Path:
    """One way to the peer."""

    after_s: float
    """Seconds from the beginning until it was there."""
    path: str
    """``direct`` or ``relayed``."""
    relay: str | None
    """Peer id of the relay."""
    address: str | None
    """What is at the other end: the peer, or for a relayed path the relay."""
    rtt_ms: float | None
    """The quickest round trip; None where none was measured."""


async def follow(node: Node, target: str, timeout: float, *, as_json: bool) -> bool:
    """Connect to the peer at ``target`` and print each path to it as it comes up; whether the last one is direct.

    Raises:
        DialError: it cannot be reached at all.
        DeadlineExceeded: it was not reached in time.
    """
    paths: list[Path] = []
    peer_id = None
    began = trio.current_time()
    with trio.move_on_after(timeout):
        peer_id = await node.connect(target)
        last = None
        while not paths or paths[-1].relay is not None:
            connections = node.connections(peer_id)
            if connections and connections[0] is not last:
                last = connections[0]
                paths.append(await _measured(last, last.opened_at - began))
                if not as_json:
                    print(as_text(paths[-1]), flush=True)
            else:
                await trio.sleep(_LOOK)
    if peer_id is None or not paths:
        raise too_slow(target, timeout)
    is_direct = paths[-1].relay is None
    if as_json:
        print(json.dumps(summary(peer_id.base58, paths)), flush=True)
    elif is_direct and len(paths) > 1:
        print(f"{peer_id} is reached directly, {paths[-1].after_s - paths[0].after_s:.2f} s after the first contact")
    elif is_direct:
        print(f"{peer_id} was reached directly from the beginning")
    else:
        print(
            f"{peer_id} is still relayed after {timeout:g} s; it works, but slower. "
            "`hivemind-p2p doctor`, here and there, says what kind of NAT is in the way and what helps."
        )
    return is_direct


def summary(peer_id: str, paths: list[Path]) -> dict[str, Any]:
    """The result for programs."""
    is_direct = paths[-1].relay is None
    return {
        "peer_id": peer_id,
        "direct": is_direct,
        "direct_after_s": paths[-1].after_s if is_direct else None,
        "paths": [asdict(path) for path in paths],
    }


def as_text(path: Path) -> str:
    """One line for people."""
    where = f" at {path.address}" if path.address else ""
    way = "direct" if path.relay is None else f"relayed by {path.relay}"
    trip = "no answer to a ping yet" if path.rtt_ms is None else f"round trip {path.rtt_ms:.1f} ms"
    return f"{path.after_s:6.2f} s  {way}{where}, {trip}"


async def _measured(connection: Connection, after: float) -> Path:
    from hivemind_p2p.transport.addresses import circuit_of
    from hivemind_p2p.transport.identify import round_trip

    trip = None
    # Shielded from the end of the time given: a path that came up in time counts. It may end while it is measured,
    # mostly since a better one took its place.
    with trio.CancelScope(shield=True), trio.move_on_after(_LAST_PING), suppress(TransportError):
        trip = await round_trip(connection, _PINGS)
    maddr = connection.remote_maddr
    circuit = circuit_of(maddr) if maddr is not None else None
    return Path(
        after_s=round(after, 3),
        path="direct" if connection.relay is None else "relayed",
        relay=connection.relay.base58 if connection.relay is not None else None,
        address=str((circuit.relay_maddr or "") if circuit is not None else maddr or "") or None,
        rtt_ms=None if trip is None else round(1000 * trip, 3),
    )
