"""Asking peers to dial one address of ours: the client of AutoNAT v2 (libp2p specs/autonat/autonat-v2.md).

A success is proved, not claimed: we give the peer a number, and it must bring that number to us on a connection that it
opened since. What a failure proves nobody can check.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio
from multiaddr import Multiaddr

from hivemind_p2p.errors import StreamReset, TransportError
from hivemind_p2p.nat import messages
from hivemind_p2p.transport.api import Connection, Stream
from hivemind_p2p.wire import autonat_v2_pb2 as pb

if TYPE_CHECKING:
    from hivemind_p2p.transport.connection import MuxedConnection
    from hivemind_p2p.transport.host import Host

logger = logging.getLogger(__name__)
DIAL_REQUEST: Final = "/libp2p/autonat/2/dial-request"
DIAL_BACK: Final = "/libp2p/autonat/2/dial-back"
LARGEST: Final = 8 * 1024
"""Bytes of one message; 8 KiB in go-libp2p and js-libp2p too."""
MOST_DIAL_DATA: Final = 100_000
"""Bytes that a server may want before it dials, as the specification recommends."""
LARGEST_PART: Final = 4096
"""Bytes of them in one message."""


@dataclass
class _Asked:
    """A number that is on its way."""

    at: float
    came: trio.Event = field(default_factory=trio.Event)


class DialRequests:
    """What one host asks of others.

    Args:
        timeout: seconds that the dial of a peer may take; it has four times that for all of it.
    """

    def __init__(self, host: Host, *, timeout: float) -> None:
        self._host = host
        self._timeout = timeout
        self._asked: dict[int, _Asked] = {}

    def start(self) -> None:
        """Let peers bring the numbers that they were given."""
        self._host.set_stream_handler(DIAL_BACK, self._take)

    def stop(self) -> None:
        """The opposite of :meth:`start`."""
        self._host.set_stream_handler(DIAL_BACK, None)

    async def ask(self, connection: MuxedConnection, maddr: Multiaddr) -> bool | None:
        """Whether the peer of a direct connection reaches us at an address; None when it did not say, or lied."""
        nonce, asked = secrets.randbits(64), _Asked(trio.current_time())
        self._asked[nonce] = asked
        try:
            with trio.fail_after(4 * self._timeout), self._host.visits.expected_from(connection.peer_id):
                async with await connection.open_stream(DIAL_REQUEST) as stream:
                    request = pb.DialRequest(addrs=[maddr.to_bytes()], nonce=nonce)
                    await messages.send(stream, pb.Message(dial_request=request))
                    answer = await messages.receive(stream, pb.Message, largest=LARGEST)
                    if answer.HasField("dial_data_request"):
                        await _pay(stream, answer.dial_data_request)
                        answer = await messages.receive(stream, pb.Message, largest=LARGEST)
        except (TransportError, trio.TooSlowError) as error:
            logger.debug("%s did not say whether it reaches us at %s: %s", connection.peer_id, maddr, error)
            return None
        finally:
            self._asked.pop(nonce, None)
        said = answer.dial_response
        if asked.came.is_set():
            return True
        if said.status != pb.DialResponse.OK or said.addr_idx != 0 or said.dial_status != pb.E_DIAL_ERROR:
            logger.debug("%s says nothing of %s that could be believed: %s", connection.peer_id, maddr, said)
            return None
        return False

    async def _take(self, stream: Stream) -> None:
        """Somebody dialled, and brings a number."""
        with trio.move_on_after(self._timeout) as timer:
            nonce = (await messages.receive(stream, pb.DialBack, largest=64)).nonce
            asked = self._asked.pop(nonce, None)  # each counts once
            if asked is None or not _is_fresh(stream.connection, asked.at):
                raise StreamReset(f"{stream.peer_id} brought a number that it was not given, or did not dial for it")
            asked.came.set()
            await messages.send(stream, pb.DialBackResponse())
        if timer.cancelled_caught:
            raise StreamReset(f"{stream.peer_id} dialled back and said nothing")

    def __repr__(self) -> str:
        return f"<DialRequests, {len(self._asked)} under way>"


def _is_fresh(connection: Connection | None, since: float) -> bool:
    """Whether somebody dialled us for this. Who brings the number is free to go by another name."""
    return (
        connection is not None
        and connection.relay is None
        and not connection.outbound
        and connection.opened_at >= since
    )


async def _pay(stream: Stream, request: pb.DialDataRequest) -> None:
    """Send the bytes that a dial to another IP address costs."""
    if request.num_bytes > MOST_DIAL_DATA:
        await stream.reset()
        raise StreamReset(f"{stream.peer_id} wants {request.num_bytes} bytes for a dial; {MOST_DIAL_DATA} are sane")
    for sent in range(0, request.num_bytes, LARGEST_PART):
        part = bytes(min(LARGEST_PART, request.num_bytes - sent))
        await messages.send(stream, pb.Message(dial_data_response=pb.DialDataResponse(data=part)))
