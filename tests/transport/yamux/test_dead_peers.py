"""Peers that do not answer any more: they are asked, and who waits for them is told."""

from __future__ import annotations

import pytest
import trio

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import ConnectionLost
from tests.transport.yamux.muxers import two_muxers
from tests.transport.yamux.sessions import KIB


async def test_a_peer_that_is_silent_is_asked_and_then_given_up_with_all_who_wait(autojump_clock):
    async with two_muxers(TransportSettings(max_streams_out=2)) as pair:
        here, _ = await pair.streams()
        full, _ = await pair.streams()
        await full.send_all(bytes(256 * KIB - 1))
        pair.one_end.deaf = True
        reasons = []

        async def expect(wait, *args) -> None:
            with pytest.raises(ConnectionLost) as failure:
                await wait(*args)
            reasons.append(str(failure.value))

        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, here.receive_some)
            nursery.start_soon(expect, full.send_all, b"x")
            nursery.start_soon(expect, pair.one.open_stream)
            nursery.start_soon(expect, pair.one.accept_stream)
        assert trio.current_time() - start <= 20 + 20 + 10
        assert len(set(reasons)) == 1
        assert "did not answer within 10 s" in reasons[0]
        await expect(pair.one.open_stream)
        await expect(here.send_all, b"x")
        await here.aclose()
        await full.reset()
        assert pair.one.stream_count == 0


async def test_a_dead_peer_is_noticed_sooner_by_who_waits_for_it(autojump_clock):
    async with two_muxers() as pair:
        await trio.sleep(3)
        here, _ = await pair.streams()
        pair.other_end.deaf = True
        start = trio.current_time()
        with pytest.raises(ConnectionLost, match="did not answer within 10 s"):
            await here.receive_some()
        assert trio.current_time() - start <= 5 + 5 + 10


async def test_a_peer_can_be_asked_whether_it_is_there_by_several_at_once(autojump_clock):
    async with two_muxers() as pair:
        answers: list[bool] = []

        async def ask() -> None:
            answers.append(await pair.one.answers(2))

        for expected in (True, False):
            start = trio.current_time()
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(ask)
            assert answers == [expected] * 3
            assert trio.current_time() - start == (0 if expected else 2)
            answers.clear()
            pair.other_end.deaf = True


async def test_what_is_known_to_be_dead_is_given_up_at_once(autojump_clock):
    async with two_muxers() as pair:
        here, _ = await pair.streams()
        pair.other_end.deaf = True
        pair.one.give_up("the cable is out")
        with pytest.raises(ConnectionLost, match="the cable is out"):
            await here.receive_some()
        assert pair.one.closed
        assert trio.current_time() == 0
