"""A walk through a whole swarm: every node that can be found, and how it answers. For operators, not for daily work.

The nodes nearest to the first id of a range of ids are looked up. When a bucketful of them lies in the range there may
be more, and each half of it is walked on its own; otherwise those found are all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import trio
from multiaddr import Multiaddr

from hivemind_p2p.dht.crawl import Crawl
from hivemind_p2p.dht.messages import PeerContact
from hivemind_p2p.dht.protocol import DHTProtocol
from hivemind_p2p.errors import HivemindError
from hivemind_p2p.kademlia import SHA1


@dataclass(frozen=True)
class PeerReport:
    """What was seen of one node.

    Attributes:
        contact: its node id and peer id.
        maddrs: where it is, as far as we know.
        ping: seconds until it answered, connecting included where we were not connected; None if it did not.
        clock_offset: seconds by which its clock is ahead of ours, as far as the travel time lets us know.
        problem: why it did not answer.
    """

    contact: PeerContact
    maddrs: Sequence[Multiaddr]
    ping: float | None = None
    clock_offset: float | None = None
    problem: str = ""


async def survey(protocol: DHTProtocol, *, max_nodes: int = 10_000, parallel: int = 32) -> list[PeerReport]:
    """Find every node of the swarm, up to ``max_nodes``, and ping it.

    Args:
        parallel: pings at once.
    """
    contacts = await _walk(protocol, max_nodes)
    limiter, reports = trio.CapacityLimiter(parallel), list[PeerReport]()

    async def ping(contact: PeerContact) -> None:
        async with limiter:
            reports.append(await _report(protocol, contact))

    async with trio.open_nursery() as nursery:
        for contact in contacts:
            nursery.start_soon(ping, contact)
    return sorted(reports, key=lambda report: report.contact.node_id)


async def _walk(protocol: DHTProtocol, max_nodes: int) -> list[PeerContact]:
    found: dict[PeerContact, None] = {}
    ranges = [(0, SHA1.size)]
    while ranges and len(found) < max_nodes:
        crawl = Crawl(protocol, [lower for lower, _ in ranges])
        await crawl.run()
        halves = []
        for lower, upper in ranges:
            nearest = crawl.nearest(lower)
            found.update(dict.fromkeys(nearest))
            inside = [contact for contact in nearest if lower <= contact.node_id < upper]
            if len(inside) >= protocol.settings.bucket_size and upper - lower > 1:
                middle = (lower + upper) // 2
                halves += [(lower, middle), (middle, upper)]
        ranges = halves
    return list(found)[:max_nodes]


async def _report(protocol: DHTProtocol, contact: PeerContact) -> PeerReport:
    began = trio.current_time()
    try:
        pong = await protocol.ping(contact.peer)
    except HivemindError as error:
        return PeerReport(contact, protocol.network.addresses(contact.peer), problem=str(error))
    seconds = trio.current_time() - began
    return PeerReport(contact, protocol.network.addresses(contact.peer), seconds, pong.clock_skew)
