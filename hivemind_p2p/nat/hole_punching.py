"""From a relayed connection to a direct one: DCUtR over TCP (libp2p specs/relay/DCUtR.md).

The peer that accepted the relayed connection leads:

1. It dials back plainly where the other side says that it listens in public, while
2. both tell each other where they are seen (``CONNECT``), which also measures the way through the relay.
3. It says "now" (``SYNC``), waits for half that time, and both dial each other, from the ports that they listen on.
4. Up to three times. Later again, for as long as the relayed connection lives and no direct one does.

The leader is the server of the security handshake whichever way the connection came up. A peer that is known by no
stable address takes part all the same: what it dials may get through to the other side.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import NATSettings
from hivemind_p2p.errors import StreamReset, TransportError
from hivemind_p2p.nat import messages, punch_targets
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
_SAID: Final = 0.2
"""Seconds to wait for what a peer says about itself; it was asked at the same time."""
_LONGEST_WAIT: Final = 3600.0


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
        self._following: set[PeerID] = set()
        self.succeeded = 0
        self.failed = 0

    def start(self) -> None:
        """Take part when peers lead."""
        self._host.set_stream_handler(DCUTR, self._follow)

    def stop(self) -> None:
        """The opposite of :meth:`start`."""
        self._host.set_stream_handler(DCUTR, None)

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
                async with self._room:
                    done = await self._rounds(relayed)
                if not done:
                    self.failed += 1
                    await trio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_WAIT)

    async def _rounds(self, relayed: MuxedConnection) -> bool:
        for number in range(self._settings.punch_rounds):
            try:
                if await self._round(relayed):
                    logger.debug("direct to %s in round %d", relayed.peer_id, number + 1)
                    self.succeeded += 1
                    return True
            except TransportError as error:
                logger.debug("hole punching with %s failed: %s", relayed.peer_id, error)
                return False
        logger.debug("no direct way to %s in %d rounds", relayed.peer_id, self._settings.punch_rounds)
        return False

    async def _round(self, relayed: MuxedConnection) -> bool:
        stream = await relayed.open_stream(DCUTR)
        try:
            with self._host.punching(relayed.peer_id, is_client=False) as punch:
                try:
                    with trio.fail_after(self._settings.relay_timeout):
                        targets, way = await self._agree(stream, relayed, punch)
                except trio.TooSlowError:
                    raise StreamReset(f"{relayed.peer_id} did not go on with hole punching") from None
                await trio.sleep(way)
                punch.dial(targets)
                with trio.move_on_after(self._settings.punch_window):
                    await punch.arrived.wait()
                return punch.arrived.is_set()
        finally:
            with trio.CancelScope(shield=True):
                await stream.reset()

    async def _agree(self, stream: Stream, relayed: MuxedConnection, punch: Punch) -> tuple[list[Multiaddr], float]:
        """Agree on a time to dial; the addresses to dial, and the seconds to that time."""
        asked = trio.current_time()
        await messages.send(stream, _message(HolePunch.CONNECT, self._offer()))
        with trio.move_on_after(_SAID):
            await relayed.identified.wait()
        if relayed.description is not None:
            listening = [maddr for maddr in relayed.description.maddrs if is_public(maddr)]
            punch.dial(punch_targets.choose(listening, ours=self._offer()))
        answer = await messages.receive(stream, HolePunch)
        way = (trio.current_time() - asked) / 2
        if answer.type != HolePunch.CONNECT:
            raise StreamReset(f"{relayed.peer_id} answered hole punching out of turn")
        if punch.answered.is_set():
            with trio.move_on_after(_DIAL_BACK):
                await punch.arrived.wait()
                return [], 0.0
        punch.both_dial, punch.patience = True, 2 * way + _SAID
        await messages.send(stream, _message(HolePunch.SYNC))
        return self._targets(answer), way

    async def _follow(self, stream: Stream) -> None:
        peer_id = stream.peer_id
        if stream.connection is None or stream.connection.relay is None:
            raise StreamReset("hole punching was asked for on a direct connection")
        if peer_id in self._following or self._room.available_tokens < 1:
            raise StreamReset("too many hole punches are under way")
        self._following.add(peer_id)
        try:
            async with self._room:
                with trio.fail_after(self._settings.relay_timeout):
                    wish = await messages.receive(stream, HolePunch)
                    if wish.type != HolePunch.CONNECT:
                        raise StreamReset(f"{peer_id} began hole punching out of turn")
                    await messages.send(stream, _message(HolePunch.CONNECT, self._offer()))
                    if (await messages.receive(stream, HolePunch)).type != HolePunch.SYNC:
                        raise StreamReset(f"{peer_id} went on with hole punching out of turn")
                if self._direct(peer_id) is None:
                    with self._host.punching(peer_id, is_client=True) as punch:
                        punch.dial(self._targets(wish))
                        with trio.move_on_after(self._settings.punch_window):
                            await punch.arrived.wait()
        except trio.TooSlowError:
            raise StreamReset(f"{peer_id} did not go on with hole punching") from None
        finally:
            self._following.discard(peer_id)

    def _targets(self, message: HolePunch) -> list[Multiaddr]:
        offered = messages.maddrs_in(message.obs_addrs, 4 * punch_targets.MOST)
        return punch_targets.choose(offered, ours=self._offer())

    def _direct(self, peer_id: PeerID) -> MuxedConnection | None:
        return next((each for each in self._host.connections(peer_id) if each.relay is None), None)

    def __repr__(self) -> str:
        return f"<HolePuncher: {self.succeeded} succeeded, {self.failed} failed>"


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _message(kind: HolePunch.Type, maddrs: Sequence[Multiaddr] = ()) -> HolePunch:
    return HolePunch(type=kind, obs_addrs=[maddr.to_bytes() for maddr in maddrs])
