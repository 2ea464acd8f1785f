"""Dialling an address of those who ask: the server of AutoNAT v2 (libp2p specs/autonat/autonat-v2.md). Rules:

1. One address of a request is dialled: the first that is an IP address of the whole internet, over TCP, of a family
   that this machine has, and not our own. Names are not looked up for others.
2. Whoever wants another IP address dialled than the one that we see it at sends us first more bytes than the dial costs
   who lives there. So nobody gains by having us dial others.
3. The dial leaves from a fresh port, under a name that is used for nothing else, and becomes no connection of ours.
4. Who comes through a relay, or from our own network, is not served: what we would find is nothing to others.
5. All of it is bounded: requests in a minute, of all and of each; requests at once; bytes; time.
"""

from __future__ import annotations

import ipaddress
import logging
import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import NATSettings
from hivemind_p2p.errors import StreamReset, TransportError
from hivemind_p2p.nat import messages
from hivemind_p2p.nat.dial_requests import DIAL_BACK, DIAL_REQUEST, LARGEST, LARGEST_PART, MOST_DIAL_DATA
from hivemind_p2p.nat.per_minute import PerMinute
from hivemind_p2p.transport.addresses import Endpoint, endpoint_of, interface_ips, is_public, why_undialable
from hivemind_p2p.transport.api import Connection, Stream
from hivemind_p2p.wire import autonat_v2_pb2 as pb
from hivemind_p2p.wire.peer_id import PeerID

if TYPE_CHECKING:
    from hivemind_p2p.transport.host import Host

logger = logging.getLogger(__name__)
_LEAST_DIAL_DATA: Final = 30_000
_SMALLEST_PART: Final = 100
"""Bytes of dial data in one message, the last excepted: many small ones cost us more than the asker."""
_MOST_ADDRESSES: Final = 64
_AT_ONCE: Final = 16
_FOREIGN_SHARE: Final = 5
_EMBEDS_IPV4: Final = ipaddress.ip_network("64:ff9b::/96")


class DialBacks:
    """What one host does for those who ask.

    Args:
        limit: requests in a minute, with AutoNAT v1's together; a fifth of it for dials to other IP addresses.
    """

    def __init__(self, host: Host, settings: NATSettings, limit: PerMinute) -> None:
        self._host = host
        self._timeout = settings.autonat_timeout
        self._limit = limit
        foreign = max(1, settings.autonat_per_minute // _FOREIGN_SHARE)
        self._foreign = PerMinute(foreign, of_each=max(1, foreign // 3))
        self._room = trio.CapacityLimiter(_AT_ONCE)

    def start(self) -> None:
        """Dial back those who ask."""
        self._host.set_stream_handler(DIAL_REQUEST, self._serve)

    def stop(self) -> None:
        """The opposite of :meth:`start`."""
        self._host.set_stream_handler(DIAL_REQUEST, None)

    async def _serve(self, stream: Stream) -> None:
        with trio.move_on_after(3 * self._timeout) as timer:
            request = await messages.receive(stream, pb.Message, largest=LARGEST)
            if not request.HasField("dial_request"):
                raise StreamReset(f"{stream.peer_id} sent something else than the addresses to dial")
            response = await self._respond(stream, request.dial_request)
            await messages.send(stream, pb.Message(dial_response=response))
        if timer.cancelled_caught:
            raise StreamReset(f"{stream.peer_id} asked to be dialled and was too slow")

    async def _respond(self, stream: Stream, request: pb.DialRequest) -> pb.DialResponse:
        seen = _public_endpoint(stream.connection)
        chosen = self._choose(request.addrs)
        if seen is None or chosen is None:
            return pb.DialResponse(status=pb.DialResponse.E_DIAL_REFUSED)
        index, maddr = chosen
        endpoint = endpoint_of(maddr)
        is_foreign = endpoint is None or endpoint.ip != seen.ip
        if not self._admits(stream.peer_id, is_foreign=is_foreign):
            return pb.DialResponse(status=pb.DialResponse.E_REQUEST_REJECTED)
        async with self._room:
            if is_foreign:
                await self._collect(stream, index)
            status = await self._dial(stream.peer_id, maddr, request.nonce)
        logger.debug("%s asked to be dialled at %s: %s", stream.peer_id, maddr, pb.DialStatus.Name(status))
        return pb.DialResponse(status=pb.DialResponse.OK, addr_idx=index, dial_status=status)

    def _choose(self, addrs: Iterable[bytes]) -> tuple[int, Multiaddr] | None:
        """The first address that may be dialled, and its place in the list."""
        listening = [endpoint for maddr in self._host.listen_maddrs if (endpoint := endpoint_of(maddr)) is not None]
        own = {ipaddress.ip_address(ip) for ip in [*interface_ips(), *(each.host for each in listening)]}
        families = {ip.version for ip in own if (ip.is_global if ip.version == 6 else not ip.is_loopback)}
        for index, raw in zip(range(_MOST_ADDRESSES), addrs, strict=False):
            for maddr in messages.maddrs_in([raw], 1):
                endpoint = endpoint_of(maddr)
                ip = endpoint.ip if endpoint is not None else None
                if (
                    ip is not None
                    and is_public(maddr)
                    and why_undialable(maddr) is None
                    and ip.version in families
                    and ip not in own
                    and not (isinstance(ip, ipaddress.IPv6Address) and _embeds_ipv4(ip))
                ):
                    return index, maddr
        return None

    def _admits(self, peer_id: PeerID, *, is_foreign: bool) -> bool:
        now = trio.current_time()
        if self._room.available_tokens < 1 or not self._limit.admits(peer_id, now):
            return False
        return not is_foreign or self._foreign.admits(peer_id, now)

    async def _collect(self, stream: Stream, index: int) -> None:
        """Take the bytes that the dial costs. Raises StreamReset when what comes is something else."""
        wanted = random.randint(_LEAST_DIAL_DATA, MOST_DIAL_DATA)
        request = pb.DialDataRequest(addr_idx=index, num_bytes=wanted)
        await messages.send(stream, pb.Message(dial_data_request=request))
        while wanted > 0:
            data = (await messages.receive(stream, pb.Message, largest=LARGEST)).dial_data_response.data
            wanted -= len(data)
            if len(data) > LARGEST_PART or (len(data) < _SMALLEST_PART and wanted > 0):
                raise StreamReset(f"{stream.peer_id} sent {len(data)} bytes as dial data")

    async def _dial(self, peer_id: PeerID, maddr: Multiaddr, nonce: int) -> pb.DialStatus:
        status = pb.E_DIAL_ERROR

        async def bring(connection: Connection) -> None:
            nonlocal status
            status = pb.E_DIAL_BACK_ERROR
            async with await connection.open_stream(DIAL_BACK) as stream:
                await messages.send(stream, pb.DialBack(nonce=nonce))
                await messages.receive(stream, pb.DialBackResponse, largest=64)
            status = pb.OK

        with trio.move_on_after(0.8 * self._timeout):
            try:
                await self._host.visits.visit(peer_id, maddr, bring)
            except TransportError as error:
                logger.debug("%s is not reached at %s: %s", peer_id, maddr, error)
        return status

    def __repr__(self) -> str:
        return f"<DialBacks, {self._room.borrowed_tokens} under way>"


def _public_endpoint(connection: Connection | None) -> Endpoint | None:
    """Where a peer is seen, if it comes directly, and from outside of our own network."""
    if connection is None or connection.relay is not None or connection.remote_maddr is None:
        return None
    return endpoint_of(connection.remote_maddr) if is_public(connection.remote_maddr) else None


def _embeds_ipv4(ip: ipaddress.IPv6Address) -> bool:
    """Whether packets to it may end at an IPv4 address, which then may be anything."""
    return bool(ip.ipv4_mapped or ip.sixtofour or ip.teredo) or ip in _EMBEDS_IPV4
