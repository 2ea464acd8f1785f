"""multistream-select, without a network."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.errors import HivemindError, ProtocolNotSupported, StreamEnded, StreamReset
from hivemind_p2p.transport import negotiate
from hivemind_p2p.transport.negotiate import GREETING, line

names = st.text(st.characters(exclude_characters="\n", codec="utf-8"), min_size=1, max_size=200).filter(
    lambda name: name not in ("na", "ls")  # multistream's own words
)


class Script:
    """A channel whose other side says ``incoming`` and then ends."""

    def __init__(self, incoming: bytes) -> None:
        self.incoming = incoming
        self.sent = b""

    async def read_exactly(self, size: int) -> bytes:
        if len(self.incoming) < size:
            raise StreamEnded("the script is over")
        data, self.incoming = self.incoming[:size], self.incoming[size:]
        return data

    async def send_all(self, data: bytes) -> None:
        self.sent += data


def run(call, *args):
    """Run a negotiation to its end; the name chosen, or the error raised."""

    async def main():
        try:
            return await call(*args)
        except HivemindError as error:
            return error

    return trio.run(main)


def test_the_bytes_are_those_of_the_specification():
    assert line(GREETING) == b"\x13/multistream/1.0.0\n"
    asked = Script(line(GREETING) + line("/noise"))
    assert run(negotiate.ask, asked, "/noise") is None
    assert asked.sent == b"\x13/multistream/1.0.0\n\x07/noise\n"


@given(names)
def test_one_side_asks_and_the_other_agrees(name):
    answering = Script(line(GREETING) + line(name))
    assert run(negotiate.answer, answering, {name}) == name
    assert run(negotiate.ask, Script(answering.sent), name) is None


@given(st.lists(names.filter(lambda name: name != "/wanted"), max_size=20))
def test_the_second_choice_is_taken_after_refusals(others):
    answering = Script(line(GREETING) + b"".join(map(line, others)) + line("/wanted"))
    assert run(negotiate.answer, answering, {"/wanted"}) == "/wanted"
    assert answering.sent == line(GREETING) + line("na") * len(others) + line("/wanted")


def test_a_refusal_names_the_protocol():
    error = run(negotiate.ask, Script(line(GREETING) + line("na")), "/wanted")
    assert isinstance(error, ProtocolNotSupported)
    assert "/wanted" in str(error)


def test_one_who_keeps_asking_is_given_up():
    error = run(negotiate.answer, Script(line(GREETING) + line("/a") * 1000), {"/b"})
    assert isinstance(error, StreamReset)


@given(st.binary(max_size=2000))
def test_garbage_is_an_error_of_ours_and_nothing_else(garbage):
    for script, call, arg in [
        (Script(garbage), negotiate.ask, "/p"),
        (Script(garbage), negotiate.answer, {"/p"}),
        (Script(line(GREETING) + garbage), negotiate.ask, "/p"),
        (Script(line(GREETING) + garbage), negotiate.answer, {"/q"}),
    ]:
        assert isinstance(run(call, script, arg), HivemindError)


def test_a_name_too_long_for_the_wire_is_refused_here():
    with pytest.raises(ValueError, match="at most 1023 bytes"):
        line("x" * 1024)
