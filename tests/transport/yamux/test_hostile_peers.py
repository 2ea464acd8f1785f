"""Peers that break the rules, and peers that use them to the limit."""

from __future__ import annotations

import pytest
import trio

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import ConnectionLost, StreamReset
from hivemind_p2p.transport.yamux import frames
from hivemind_p2p.transport.yamux.frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    INITIAL_WINDOW,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    frame,
)
from tests.transport.yamux.muxers import against, read_until_it_fails
from tests.transport.yamux.sessions import KIB, MIB

GOODBYE = (GO_AWAY, 0, 0, frames.PROTOCOL_ERROR)


@pytest.mark.parametrize(
    "offence",
    [
        frame(DATA, 0, 1, INITIAL_WINDOW + 1),
        frame(DATA, 0, 9, 17 * MIB),
        frame(DATA, SYN, 1, 0),
        frame(DATA, SYN, 2, 0),
        frame(DATA, FIN, 1, 0) + frame(DATA, 0, 1, 1),
        frame(WINDOW_UPDATE, 0, 1, 2**32 - 1),
        frame(7, 0, 1, 1),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
async def test_an_offence_is_answered_with_go_away_and_ends_the_connection(autojump_clock, offence, caplog):
    async with against() as (muxer, peer):
        await peer.say(frame(DATA, SYN, 1, 0))
        stream = await muxer.accept_stream()
        await peer.say(offence)
        assert (await peer.hear_all())[-1] == GOODBYE
        with pytest.raises(ConnectionLost, match="broke the protocol"):
            await stream.send_all(b"x")
        with pytest.raises(ConnectionLost, match="broke the protocol"):
            await muxer.accept_stream()
        assert "broke the protocol" in caplog.text


async def test_a_flood_of_streams_is_refused_beyond_the_limit(autojump_clock, caplog):
    async with against(TransportSettings(max_streams_in=10)) as (muxer, peer):
        await peer.say(*(frame(DATA, SYN, 2 * number + 1, 0) for number in range(500)))
        heard = await peer.hear(490)
        assert set(heard) == {(WINDOW_UPDATE, RST, 2 * number + 1, 0) for number in range(10, 500)}
        assert muxer.stream_count == 10
        assert caplog.text.count("max_streams_in") == 1


async def test_what_a_peer_opens_while_we_close_is_refused_without_a_word(autojump_clock, caplog):
    async with against() as (muxer, peer):
        muxer.session.go_away()
        await peer.say(*(frame(DATA, SYN, 2 * number + 1, 0) for number in range(3)))
        assert (await peer.hear(4))[1:] == [(WINDOW_UPDATE, RST, 2 * number + 1, 0) for number in range(3)]
        assert not caplog.records


async def test_opening_and_resetting_in_a_loop_leaves_nothing(autojump_clock):
    async with against(TransportSettings(max_streams_in=4)) as (muxer, peer):
        for number in range(1000):
            stream_id = 2 * number + 1
            await peer.say(frame(DATA, SYN, stream_id, 1), b"x", frame(WINDOW_UPDATE, RST, stream_id, 0))
            await (await muxer.accept_stream()).aclose()
        assert muxer.stream_count == len(muxer.session) == muxer.session.windows.held == 0


async def test_pings_whose_answers_are_not_taken_end_the_connection(autojump_clock):
    async with against() as (muxer, peer):
        flood = [frame(PING, SYN, 0, number) for number in range(100)]

        async def ask_and_not_listen() -> None:
            while True:
                await peer.say(*flood)

        with pytest.raises(ConnectionLost):
            await ask_and_not_listen()
        assert muxer.closed


async def test_pings_that_are_answered_are_no_harm(autojump_clock):
    async with against() as (muxer, peer):
        for number in range(3000):
            await peer.say(frame(PING, SYN, 0, number))
            assert (await peer.hear(number + 1))[-1] == (PING, ACK, 0, number)
        assert not muxer.closed


async def test_what_lies_unread_is_bounded_and_other_streams_go_on(autojump_clock, caplog):
    settings = TransportSettings(max_receive_window=256 * KIB, max_unread=MIB)
    async with against(settings) as (muxer, peer):
        streams = []
        for number in range(5):
            await peer.say(frame(DATA, SYN, 2 * number + 1, INITIAL_WINDOW), bytes(INITIAL_WINDOW))
            streams.append(await muxer.accept_stream())
        with pytest.raises(StreamReset, match="max_unread"):
            await read_until_it_fails(streams[4])
        assert muxer.session.windows.held == MIB
        assert "1048576 bytes were held" in caplog.text
        assert len(await streams[0].read_exactly(INITIAL_WINDOW)) == INITIAL_WINDOW
        await peer.say(frame(DATA, SYN, 101, 2), b"ok")
        assert await (await muxer.accept_stream()).read_exactly(2) == b"ok"


async def test_data_for_streams_that_do_not_exist_is_skipped(autojump_clock):
    async with against() as (muxer, peer):
        for _ in range(50):
            await peer.say(frame(DATA, 0, 8, 100 * KIB), bytes(100 * KIB))
        await peer.say(frame(DATA, SYN, 1, 2), b"ok")
        assert await (await muxer.accept_stream()).read_exactly(2) == b"ok"
        assert muxer.session.windows.held == 0


async def test_a_peer_that_goes_away_lets_open_streams_finish(autojump_clock):
    async with against() as (muxer, peer):
        await peer.say(frame(DATA, SYN, 1, 0), frame(GO_AWAY, 0, 0, 0))
        stream = await muxer.accept_stream()
        assert muxer.closed
        with pytest.raises(ConnectionLost, match="no new streams"):
            await muxer.open_stream()
        await peer.say(frame(DATA, FIN, 1, 4), b"data")
        assert await stream.read_exactly(4) == b"data"
        await stream.send_all(b"answer")
        assert (await peer.hear(1))[0] == (DATA, ACK, 1, 6)


async def test_silence_after_the_first_half_of_a_frame_is_noticed(autojump_clock):
    async with against() as (muxer, peer):
        await peer.say(frame(DATA, SYN, 1, 100)[:7])
        with pytest.raises(ConnectionLost, match="did not answer"):
            await muxer.accept_stream()
        assert trio.current_time() <= 60


async def test_a_connection_that_ends_in_the_middle_of_a_message_says_so(autojump_clock):
    async with against() as (muxer, peer):
        await peer.channel._link._stream.send_all(b"\x40\x00only this")
        await peer.channel.aclose()
        with pytest.raises(ConnectionLost, match="in the middle of a message"):
            await muxer.accept_stream()
