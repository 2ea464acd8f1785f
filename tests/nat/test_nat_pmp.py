"""The datagrams of NAT-PMP, byte by byte as RFC 6886 draws them (sections 3.2 and 3.3)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.errors import TransportError
from hivemind_p2p.nat.nat_pmp import Granted, address_request, map_request, read_address, read_mapping

ADDRESS = bytes.fromhex("0080 0000 000004d2 2c2c2c0a")
MAPPED = bytes.fromhex("0082 0000 000004d2 138d 1b58 00001c20")


def test_the_requests():
    assert address_request() == bytes.fromhex("0000")
    assert map_request(5005, 7000, 7200) == bytes.fromhex("0002 0000 138d 1b58 00001c20")
    assert map_request(5005, 0, 0) == bytes.fromhex("0002 0000 138d 0000 00000000")


def test_the_answers():
    assert read_address(ADDRESS) == "44.44.44.10"
    assert read_mapping(MAPPED, 5005) == Granted(7000, 7200)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "something else"),
        (b"\x01" + MAPPED[1:], "something else"),
        (ADDRESS, "something else"),
        (MAPPED[:12], "cut short"),
        (bytes.fromhex("0082 0002 000004d2"), "not allowed to forward ports"),
        (bytes.fromhex("0082 00ff 000004d2"), "code 255"),
        (bytes.fromhex("0082 0000 000004d2 0001 1b58 00001c20"), "another port"),
    ],
)
def test_refusals_and_nonsense_are_told_apart(answer: bytes, why: str):
    with pytest.raises(TransportError, match=why):
        read_mapping(answer, 5005)


@given(st.binary(max_size=20))
def test_garbage_is_an_error_of_ours(data: bytes):
    for read in (read_address, lambda answer: read_mapping(answer, 5005)):
        try:
            read(data)
        except TransportError:
            continue
        assert data[1] in (0x80, 0x82)
