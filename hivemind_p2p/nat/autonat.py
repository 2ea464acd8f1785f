"""Asking peers to dial us back, and dialling back those who ask: AutoNAT (libp2p specs/autonat).

A dial back proves something only on a fresh connection: from another port than ours, since a NAT lets in what comes
from an address and port that was dialled from inside.

Who speaks version 2 is asked by it about each public address, and has to prove that it got in (``dial_requests``,
``dial_backs``). Others, and about private addresses, are asked by version 1, which is here. That goes no further than
the security handshake, which proves who is there, so that it never becomes a connection that somebody uses. Only
addresses of the very IP that we see the asker at are dialled by it, and nobody is served through a relay: otherwise we
could be made to knock at doors of others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import NATSettings
from hivemind_p2p.errors import TransportError
from hivemind_p2p.nat import messages
from hivemind_p2p.nat.dial_backs import DialBacks
from hivemind_p2p.nat.dial_requests import DIAL_REQUEST, DialRequests
from hivemind_p2p.nat.per_minute import PerMinute
from hivemind_p2p.nat.reachability import Reachability
from hivemind_p2p.transport.addresses import Endpoint, endpoint_of, is_public, maddr_of, why_undialable
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.wire.autonat_pb2 import Message
from hivemind_p2p.wire.peer_id import PeerID

if TYPE_CHECKING:
    from hivemind_p2p.transport.connection import MuxedConnection
    from hivemind_p2p.transport.host import Host

logger = logging.getLogger(__name__)
AUTONAT: Final = "/libp2p/autonat/1.0.0"
_MOST_DIALS: Final = 4
_MOST_SERVERS: Final = 4
_LARGEST: Final = 16 * 1024


class AutoNAT:
    """The clients and the servers of one host.

    Args:
        changed: called when there is a new finding.
    """

    def __init__(self, host: Host, settings: NATSettings, changed: Callable[[], None]) -> None:
        self.reachability = Reachability(max_age=2 * settings.autonat_interval)
        self.tried = trio.Event()
        """Set once a peer has tried to dial us back."""
        self.mapped: Sequence[Multiaddr] = ()
        """Addresses of routers that forward them to us."""
        self._host = host
        self._settings = settings
        self._changed = changed
        self._asked: dict[PeerID, float] = {}
        self._limit = PerMinute(settings.autonat_per_minute)
        self._requests = DialRequests(host, timeout=settings.autonat_timeout)
        self._dial_backs = DialBacks(host, settings, self._limit)

    def start(self) -> None:
        """Dial back those who ask."""
        self._host.set_stream_handler(AUTONAT, self._serve)
        self._requests.start()
        self._dial_backs.start()

    def stop(self) -> None:
        """The opposite of :meth:`start`."""
        self._host.set_stream_handler(AUTONAT, None)
        self._requests.stop()
        self._dial_backs.stop()

    async def run(self) -> None:
        """Ask again from time to time; never returns."""
        while True:
            await trio.sleep(self._settings.autonat_interval / 4)
            for connection in list(self._host.connections()):
                if connection.relay is None:
                    await self.ask(connection)
            self._changed()  # what was found may have become too old to count

    async def ask(self, connection: MuxedConnection) -> None:
        """Have the peer of a direct connection try our addresses, unless it or enough others did a while ago."""
        said, now = connection.description, trio.current_time()
        fresh = {peer: at for peer, at in self._asked.items() if now - at < self._settings.autonat_interval}
        peer_id = connection.peer_id
        if said is None or said.observed is None or peer_id in fresh or len(fresh) >= _MOST_SERVERS:
            return
        # In our own network nobody knows what those outside can reach.
        speaks_2 = DIAL_REQUEST in said.protocols and is_public(said.observed)
        plan = [(maddr, 2 if speaks_2 and is_public(maddr) else 1) for maddr in self._targets(said.observed, speaks_2)]
        if AUTONAT not in said.protocols:
            plan = [(maddr, version) for maddr, version in plan if version == 2]
        if not plan:
            return
        self._asked = {**fresh, peer_id: now}
        for maddr, version in plan:
            ask = self._requests.ask if version == 2 else self._ask_about
            reached = await ask(connection, maddr)
            if reached is None:
                continue
            logger.debug("%s says that we are %s at %s", peer_id, "reached" if reached else "not reached", maddr)
            self.reachability.add(maddr, peer_id, reached, trio.current_time(), version=version)
            self.tried.set()
            self._changed()

    def ask_anew(self) -> None:
        """Our addresses changed: whoever is asked next may have been asked before."""
        self._asked.clear()

    def forget(self) -> None:
        """The network changed: ask anew, about everything."""
        self.reachability.forget()
        self._asked.clear()

    def _targets(self, seen: Multiaddr, everywhere: bool) -> list[Multiaddr]:
        """What a peer may try, what matters most first: what we announce of the IP that it sees us at, and the ports
        there that we listen on; then, with ``everywhere``, our public addresses of other IPs."""
        endpoint = endpoint_of(seen)
        if endpoint is None:
            return []
        ports = {each.port for maddr in self._host.listen_maddrs if (each := endpoint_of(maddr)) is not None}
        listening = [maddr_of(endpoint.host, port) for port in sorted(ports)]
        forwarded = [*self.mapped, *self._host.announce_maddrs]
        announced = [maddr for maddr in forwarded if _same_ip(maddr, endpoint)]
        elsewhere = [*forwarded, *self._host.listen_maddrs] if everywhere else []
        others = [maddr for maddr in elsewhere if is_public(maddr) and _has_ip(maddr)]
        return list(dict.fromkeys([*announced, *listening, *others]))[:_MOST_DIALS]

    async def _ask_about(self, connection: MuxedConnection, maddr: Multiaddr) -> bool | None:
        """Whether the peer reached us there; None when it did not say."""
        info = Message.PeerInfo(id=self._host.peer_id.to_bytes(), addrs=[maddr.to_bytes()])
        try:
            with trio.fail_after(4 * self._settings.autonat_timeout):
                async with await connection.open_stream(AUTONAT) as stream:
                    await messages.send(stream, Message(type=Message.DIAL, dial=Message.Dial(peer=info)))
                    answer = await messages.receive(stream, Message, largest=_LARGEST)
        except (TransportError, trio.TooSlowError) as error:
            logger.debug("%s did not say whether it reaches us: %s", connection.peer_id, error)
            return None
        status = answer.dial_response.status
        return {Message.OK: True, Message.E_DIAL_ERROR: False}.get(status)

    async def _serve(self, stream: Stream) -> None:
        with trio.move_on_after(self._settings.autonat_timeout):
            request = await messages.receive(stream, Message, largest=_LARGEST)
            response = await self._dial_back(stream, request)
            await messages.send(stream, Message(type=Message.DIAL_RESPONSE, dial_response=response))
            return
        await stream.reset()

    async def _dial_back(self, stream: Stream, request: Message) -> Message.DialResponse:
        peer = request.dial.peer
        if request.type != Message.DIAL or peer.id != stream.peer_id.to_bytes():
            return _response(Message.E_BAD_REQUEST, "ask about yourself, with a DIAL")
        connection = stream.connection
        if connection is None or connection.relay is not None or connection.remote_maddr is None:
            return _response(Message.E_DIAL_REFUSED, "nobody knows where you are")
        seen = endpoint_of(connection.remote_maddr)
        offered = messages.maddrs_in(peer.addrs, 16)
        targets = [maddr for maddr in offered if why_undialable(maddr) is None and _same_ip(maddr, seen)][:_MOST_DIALS]
        if not targets:
            return _response(Message.E_DIAL_REFUSED, "none of these addresses is of the IP that you come from")
        if not self._limit.admits(stream.peer_id, trio.current_time()):
            return _response(Message.E_DIAL_REFUSED, "too many requests; ask later")
        reached = await self._first_reached(stream.peer_id, targets)
        if reached is None:
            return _response(Message.E_DIAL_ERROR, "no answer")
        return Message.DialResponse(status=Message.OK, addr=reached.to_bytes())

    async def _first_reached(self, peer_id: PeerID, targets: Sequence[Multiaddr]) -> Multiaddr | None:
        found: list[Multiaddr] = []
        with trio.move_on_after(0.8 * self._settings.autonat_timeout):
            async with trio.open_nursery() as nursery:

                async def attempt(maddr: Multiaddr) -> None:
                    try:
                        await self._host.visits.knock(peer_id, maddr)
                    except TransportError as error:
                        logger.debug("%s is not reached at %s: %s", peer_id, maddr, error)
                    else:
                        found.append(maddr)
                        nursery.cancel_scope.cancel()

                for maddr in targets:
                    nursery.start_soon(attempt, maddr)
        return found[0] if found else None

    def __repr__(self) -> str:
        return f"<AutoNAT, {self.reachability!r}>"


def _same_ip(maddr: Multiaddr, seen: Endpoint | None) -> bool:
    endpoint = endpoint_of(maddr)
    return endpoint is not None and seen is not None and endpoint.host == seen.host


def _has_ip(maddr: Multiaddr) -> bool:
    endpoint = endpoint_of(maddr)
    return endpoint is not None and endpoint.ip is not None


def _response(status: Message.ResponseStatus, text: str) -> Message.DialResponse:
    return Message.DialResponse(status=status, status_text=text)
