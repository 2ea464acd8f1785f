"""From a relayed connection to a direct one: DCUtR over TCP (libp2p specs/relay/DCUtR.md).

The peer that accepted the relayed connection leads:

1. It dials back plainly where the other side says that it listens in public, while
2. both tell each other where they are seen (``CONNECT``), which also measures the way through the relay.
3. It says "now" (``SYNC``), waits for half that time, and both dial each other, from the ports that they listen on.
4. Up to three times. Later again, for as long as the relayed connection lives and no direct one does.

The first time, nodes of this kind do not wait: each dials as soon as it knows where to. A dial that comes too early is
lost at the other NAT, and is there to meet the one that comes back. But where an earlier punch has left holes
(``transport.punch``, 5), what comes early meets a listener; so for some minutes after one, both keep to that time.

The leader is the server of the security handshake whichever way the connection came up. The specification leaves that
open, and go-libp2p has it the other way round; so with others we listen first (``transport.punch``, 2). A peer that is
known by no stable address takes part all the same: what it dials may get through to the other side.

Two peers that reached each other through a relay at one moment have two relayed connections, and each would lead. Then
the one with the larger id gives way: their dials would meet, and wait for each other to speak as a client.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import NATSettings
from hivemind_p2p.errors import ProtocolNotSupported, StreamError, StreamReset, TransportError
from hivemind_p2p.nat import messages, punch_targets
from hivemind_p2p.nat.per_minute import PerMinute
from hivemind_p2p.transport.addresses import is_public
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.wire.dcutr_pb2 import HolePunch
from hivemind_p2p.wire.peer_id import PeerID

if TYPE_CHECKING:
    from hivemind_p2p.transport.connection import MuxedConnection
    from hivemind_p2p.transport.host import Host
    from hivemind_p2p.transport.punch import Punch

logger = logging.getLogger(__name__)
DCUTR: Final = "/libp2p/dcutr"
_DIAL_BACK: Final = 1.0
"""Seconds that a plain dial back which was answered may take to be secured."""
_LATE: Final = 0.2
"""Seconds by which a peer may be late with its first word."""
_FIRST_WORD: Final = 1.0
"""Seconds to wait for the first word of a leader that is not of our kind, before we speak first."""
_SAID: Final = 0.05
"""Seconds to wait for a leader to say of which kind it is; it was asked before it began."""
_BREATH: Final = 0.5
"""Seconds before the next round after one that could not be agreed on."""
_LONGEST_WAIT: Final = 3600.0
_HOLES: Final = 180.0
"""Seconds for which NATs may remember dials that nobody answered; Linux does for 120."""
_MOST_REMEMBERED: Final = 1024


@dataclass
class _Session:
    """Hole punching with one peer under way, led by us or by it."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    over: trio.Event = field(default_factory=trio.Event)


class HolePuncher:
    """Hole punching of one host.

    Args:
        offer: our addresses to punch to, best first.
    """

    def __init__(self, host: Host, settings: NATSettings, offer: Callable[[], Sequence[Multiaddr]]) -> None:
        self._host = host
        self._settings = settings
        self._offer = offer
        self._room = trio.CapacityLimiter(settings.max_punches)
        self._leading: dict[PeerID, _Session] = {}
        self._following: dict[PeerID, _Session] = {}
        self._limit = PerMinute(settings.punches_per_minute)
        self._punched: OrderedDict[PeerID, float] = OrderedDict()
        self.succeeded = 0
        self.failed = 0

    def start(self) -> None:
        """Take part when peers lead."""
        self._host.set_stream_handler(DCUTR, self._follow)

    def stop(self) -> None:
        """The opposite of :meth:`start`."""
        self._host.set_stream_handler(DCUTR, None)

    def forget(self) -> None:
        """The network changed: no NAT remembers what we dialled."""
        self._punched.clear()

    async def lead(self, relayed: MuxedConnection) -> None:
        """Try to get a direct connection to who came through a relay, until the relayed one is gone."""
        pause = self._settings.punch_again
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_after, relayed.ended, nursery.cancel_scope)
            while True:
                direct = self._direct(relayed.peer_id)
                if direct is not None:
                    pause = self._settings.punch_again
                    await direct.ended.wait()
                    continue
                busy = self._leading.get(relayed.peer_id) or self._following.get(relayed.peer_id)
                if busy is not None:
                    await busy.over.wait()
                    continue
                with _entered(self._leading, relayed.peer_id) as session:
                    async with self._room:
                        done = await self._rounds(relayed, nursery)
                if not session.scope.cancelled_caught and not done:
                    self.failed += 1
                    await trio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_WAIT)

    async def _rounds(self, relayed: MuxedConnection, nursery: trio.Nursery) -> bool:
        for number in range(self._settings.punch_rounds):
            try:
                if self._direct(relayed.peer_id) is not None:
                    return True
                if await self._round(relayed, nursery):
                    logger.debug("direct to %s in round %d", relayed.peer_id, number + 1)
                    self.succeeded += 1
                    return True
            except ProtocolNotSupported as error:
                logger.debug("hole punching with %s is not possible: %s", relayed.peer_id, error)
                return False
            except TransportError as error:
                logger.debug("hole punching with %s failed: %s", relayed.peer_id, error)
                await trio.sleep(_BREATH)
        logger.debug("no direct way to %s in %d rounds", relayed.peer_id, self._settings.punch_rounds)
        return False

    async def _dial_back(self, relayed: MuxedConnection, punch: Punch) -> None:
        """Dial where the peer listens in public, once it has said so."""
        await relayed.identified.wait()
        if relayed.description is not None:
            listening = [maddr for maddr in relayed.description.maddrs if is_public(maddr)]
            punch.dial(punch_targets.choose(listening, ours=self._offer()))

    async def _round(self, relayed: MuxedConnection, nursery: trio.Nursery) -> bool:
        stream = await relayed.open_stream(DCUTR, hopeful=True)
        try:
            with self._punching(relayed.peer_id, is_client=False) as (punch, at_once):
                if at_once:
                    nursery.start_soon(self._dial_back, relayed, punch)
                try:
                    with trio.fail_after(self._settings.relay_timeout):
                        targets, way = await self._agree(stream, punch)
                except trio.TooSlowError:
                    raise StreamReset(f"{relayed.peer_id} did not go on with hole punching") from None
                agreed = trio.current_time() + way
                if at_once:
                    with trio.move_on_at(agreed):
                        await relayed.identified.wait()
                if not (at_once and _is_of_our_kind(relayed)):
                    await trio.sleep_until(agreed)
                punch.dial(targets)
                with trio.move_on_after(self._settings.punch_window):
                    await punch.arrived.wait()
                return punch.arrived.is_set()
        finally:
            with trio.CancelScope(shield=True):
                await stream.reset()

    async def _agree(self, stream: Stream, punch: Punch) -> tuple[list[Multiaddr], float]:
        """Agree on a time to dial; the addresses to dial, and the seconds to that time."""
        asked = trio.current_time()
        await messages.send(stream, _message(HolePunch.CONNECT, self._offer()))
        answer = await messages.receive(stream, HolePunch)
        way = (trio.current_time() - asked) / 2
        if answer.type != HolePunch.CONNECT:
            raise StreamReset(f"{stream.peer_id} answered hole punching out of turn")
        if punch.answered.is_set():
            with trio.move_on_after(_DIAL_BACK):
                await punch.arrived.wait()
                return [], 0.0
        punch.both_dial, punch.patience = True, 2 * way + _LATE
        await messages.send(stream, _message(HolePunch.SYNC))
        return self._targets(answer), way

    async def _follow(self, stream: Stream) -> None:
        peer_id = stream.peer_id
        if stream.connection is None or stream.connection.relay is None:
            raise StreamReset("hole punching was asked for on a direct connection")
        if not self._limit.admits(peer_id, trio.current_time()):
            raise StreamReset(f"{peer_id} asks for too many hole punches")
        leading = self._leading.get(peer_id)
        if leading is not None:
            if self._host.peer_id < peer_id:
                raise StreamReset("we lead a hole punch with this peer")
            leading.scope.cancel()
        former = self._following.get(peer_id)
        if former is not None:  # the peer began anew
            former.scope.cancel()
            await former.over.wait()
        if peer_id in self._following or self._room.available_tokens < 1:
            raise StreamReset("too many hole punches are under way")
        try:
            with _entered(self._following, peer_id):
                async with self._room:
                    await self._follow_once(stream)
        except trio.TooSlowError:
            raise StreamReset(f"{peer_id} did not go on with hole punching") from None

    async def _follow_once(self, stream: Stream) -> None:
        peer_id = stream.peer_id
        relayed = next((each for each in self._host.connections(peer_id) if each is stream.connection), None)
        if relayed is None:
            raise StreamReset(f"the relayed connection to {peer_id} is gone")
        with self._punching(peer_id, is_client=True) as (punch, at_once):
            with trio.fail_after(self._settings.relay_timeout):
                wish = await messages.receive(stream, HolePunch)
                if wish.type != HolePunch.CONNECT:
                    raise StreamReset(f"{peer_id} began hole punching out of turn")
                await messages.send(stream, _message(HolePunch.CONNECT, self._offer()))
                with trio.move_on_after(_SAID):
                    await relayed.identified.wait()
                if at_once and _is_of_our_kind(relayed):
                    punch.dial(self._targets(wish))
                if (await messages.receive(stream, HolePunch)).type != HolePunch.SYNC:
                    raise StreamReset(f"{peer_id} went on with hole punching out of turn")
            if relayed.description is not None and not _is_of_our_kind(relayed):
                punch.is_client, punch.both_dial, punch.patience = False, True, _FIRST_WORD
            punch.dial(self._targets(wish))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_at_reset, stream, nursery.cancel_scope)
                with trio.move_on_after(self._settings.punch_window):
                    await punch.arrived.wait()
                nursery.cancel_scope.cancel()

    @contextmanager
    def _punching(self, peer_id: PeerID, *, is_client: bool) -> Iterator[tuple[Punch, bool]]:
        """A round of dials; whether they may begin before the time that is agreed on."""
        now = trio.current_time()
        at_once = now - self._punched.pop(peer_id, -_HOLES) >= _HOLES
        try:
            with self._host.punching(peer_id, is_client=is_client) as punch:
                yield punch, at_once
        finally:
            if punch.has_dialled or not at_once:
                self._punched[peer_id] = trio.current_time()
                if len(self._punched) > _MOST_REMEMBERED:
                    self._punched.popitem(last=False)

    def _targets(self, message: HolePunch) -> list[Multiaddr]:
        offered = messages.maddrs_in(message.obs_addrs, 4 * punch_targets.MOST)
        return punch_targets.choose(offered, ours=self._offer())

    def _direct(self, peer_id: PeerID) -> MuxedConnection | None:
        direct = [each for each in self._host.connections(peer_id) if each.relay is None and not each.doubted]
        return direct[0] if direct else None

    def __repr__(self) -> str:
        return f"<HolePuncher: {self.succeeded} succeeded, {self.failed} failed>"


@contextmanager
def _entered(sessions: dict[PeerID, _Session], peer_id: PeerID) -> Iterator[_Session]:
    """A block that is known as a session with a peer, and that its scope cancels."""
    session = sessions[peer_id] = _Session()
    try:
        with session.scope:
            yield session
    finally:
        del sessions[peer_id]
        session.over.set()


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _cancel_at_reset(stream: Stream, scope: trio.CancelScope) -> None:
    """The leader resets the stream when its round is over. Others may close it earlier, which means nothing."""
    try:
        while await stream.receive_some(1024):
            pass
    except StreamError:
        scope.cancel()


def _is_of_our_kind(connection: MuxedConnection) -> bool:
    return connection.description is not None and connection.description.is_of_our_kind


def _message(kind: HolePunch.Type, maddrs: Sequence[Multiaddr] = ()) -> HolePunch:
    return HolePunch(type=kind, obs_addrs=[maddr.to_bytes() for maddr in maddrs])
