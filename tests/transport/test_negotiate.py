"""multistream-select, without a network."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemind_p2p.errors import HivemindError, ProtocolNotSupported, StreamEnded, StreamReset
from hivemind_p2p.transport import negotiate
from hivemind_p2p.transport.negotiate import GREETING, line

names = st.text(st.characters(exclude_characters="\n", codec="utf-8"), min_size=1, max_size=200).filter(
    lambda name: name not in ("na", "ls")  # multistream's own words
)


class Script:
    """A channel whose other side says ``incoming``, in pieces of ``size`` bytes, and then ends."""

    def __init__(self, incoming: bytes, size: int = 2000) -> None:
        self.incoming = incoming
        self.size = size
        self.sent = b""

    async def receive_some(self) -> bytes:
        if not self.incoming:
            raise StreamEnded("the script is over")
        data, self.incoming = self.incoming[: self.size], self.incoming[self.size :]
        return data

    def unread(self, data: bytes) -> None:
        self.incoming = data + self.incoming

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


@settings(max_examples=50)
@given(names, st.binary(max_size=50), st.integers(1, 60))
def test_one_side_asks_and_the_other_agrees_however_the_bytes_are_cut(name, behind, size):
    answering = Script(line(GREETING) + line(name) + behind, size)
    assert run(negotiate.answer, answering, {name}) == name
    assert answering.incoming == behind
    asking = Script(answering.sent + behind, size)
    assert run(negotiate.ask, asking, name) is None
    assert asking.incoming == behind


@settings(max_examples=50)
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


@settings(max_examples=50)
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
