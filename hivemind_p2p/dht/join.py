"""Joining a swarm through any live peer of it (section 2.3 of the Kademlia paper)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import trio
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from hivemind_p2p.dht.asking import asking
from hivemind_p2p.dht.crawl import Crawl
from hivemind_p2p.dht.protocol import DHTProtocol, Pong
from hivemind_p2p.errors import BootstrapError, HivemindError
from hivemind_p2p.transport.addresses import split_peer


@dataclass
class _Attempts:
    """How the initial peers answered; when one has, the others have ``wait_timeout`` to follow."""

    scope: trio.CancelScope
    joined: int = 0
    reasons: dict[str, str] = field(default_factory=dict)


async def join(protocol: DHTProtocol, initial_peers: Iterable[str | Multiaddr]) -> None:
    """Get to know the swarm: connect to the initial peers, all at once, and look up our own id.

    Our own address among them is passed over, so that the first nodes of a swarm can share one list.

    Raises:
        BootstrapError: none of them answered; it says what happened at each.
    """
    others, reasons = dict[str, Multiaddr](), dict[str, str]()
    for text in map(str, initial_peers):
        try:
            maddr = Multiaddr(text)
            if split_peer(maddr)[1] != protocol.own.peer:
                others[text] = maddr
        except (MultiaddrError, ValueError) as error:
            reasons[text] = f"not the address of a peer: {error}"
    if not others and not reasons:
        return
    settings = protocol.settings
    with trio.move_on_after(settings.bootstrap_timeout) as scope:
        attempts = _Attempts(scope, reasons=reasons)
        async with trio.open_nursery() as nursery:
            for text, maddr in others.items():
                reasons[text] = f"no answer within {settings.bootstrap_timeout:g} s"
                nursery.start_soon(_attempt, protocol, text, maddr, attempts)
    if not attempts.joined:
        told = "\n".join(f"  {text}: {reason}" for text, reason in reasons.items())
        raise BootstrapError(
            f"cannot join the swarm, none of the {len(reasons)} initial peers can be used:\n{told}\n"
            "Check that one of them runs and can be reached from here, and that its address is current."
        )
    await Crawl(protocol, [protocol.own.node_id]).run()


async def _attempt(protocol: DHTProtocol, text: str, maddr: Multiaddr, attempts: _Attempts) -> None:
    try:
        with asking():
            peer = await protocol.network.connect(maddr)
        pong = await protocol.ping(peer, validate=True)
    except HivemindError as error:
        attempts.reasons[text] = str(error)
        return
    if reason := _why_unusable(pong, protocol):
        attempts.reasons[text] = reason
        return
    attempts.joined += 1
    attempts.scope.deadline = min(attempts.scope.deadline, trio.current_time() + protocol.settings.wait_timeout)


def _why_unusable(pong: Pong, protocol: DHTProtocol) -> str:
    if pong.node_id is None:
        return "it answers, but is a client and no full member of the swarm"
    if abs(pong.clock_skew) > protocol.settings.max_clock_skew:
        ahead = "ahead of" if pong.clock_skew > 0 else "behind"
        return f"its clock is {abs(pong.clock_skew):.1f} s {ahead} ours; records would expire too early: set the clock"
    if not pong.available and not protocol.client_mode:
        return "it answers, but cannot reach us; listen on an address that it can dial, or join in client mode"
    return ""
