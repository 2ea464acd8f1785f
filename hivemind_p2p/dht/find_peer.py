"""Where a peer is: the lookup that the network asks for when it knows no address that works.

Two are asked at once. The DHT: a node's id is the SHA-1 of its peer id unless it chose another, so that finding a peer
is an ordinary lookup, and the nodes nearest to that id tell the peer's addresses beside it. And libp2p's peer routing,
by which hivemind's peers, who choose their ids at random, are found.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio
from multiaddr import Multiaddr

from hivemind_p2p.dht.asking import is_asking
from hivemind_p2p.dht.crawl import Crawl
from hivemind_p2p.dht.keys import DHTID, node_id_of
from hivemind_p2p.dht.messages import FindAnswer, PeerContact
from hivemind_p2p.dht.protocol import DHTProtocol
from hivemind_p2p.wire.peer_id import PeerID


async def find_peer(protocol: DHTProtocol, peer_id: PeerID) -> Sequence[Multiaddr]:
    """Addresses of a peer, new ones first, as the swarm tells them; empty when nobody knows any.

    The lookup ends at the first answer with an address that we did not know. While a lookup is under way it may find
    that it has to dial a peer; that dial does not start another lookup, and only asks those who named the peer.
    """
    if peer_id == protocol.own.peer:
        return []
    if is_asking():
        return await protocol.peer_routing.ask_namers(peer_id)
    known = set(protocol.network.addresses(peer_id))
    told: dict[Multiaddr, None] = {}

    async def by_the_dht() -> None:
        target = node_id_of(peer_id)

        def on_answer(contact: PeerContact, answer: FindAnswer) -> list[DHTID]:
            told.update(dict.fromkeys(answer.addresses.get(peer_id, ())))
            return [target] if contact.peer == peer_id or not known.issuperset(told) else []

        await Crawl(protocol, [target], on_answer=on_answer).run()
        if not known.issuperset(told):
            nursery.cancel_scope.cancel()

    async def by_peer_routing() -> None:
        told.update(dict.fromkeys(await protocol.peer_routing.find_peer(peer_id, known)))
        if not known.issuperset(told):
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(by_the_dht)
        nursery.start_soon(by_peer_routing)
    return sorted({**told, **dict.fromkeys(protocol.network.addresses(peer_id))}, key=lambda maddr: maddr in known)
