"""NAT-PMP (RFC 6886): a router is asked for a port with one datagram, and answers with one."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Final

import trio

from hivemind_p2p.errors import TransportError
from hivemind_p2p.nat.mapping import Mapping

PORT: Final = 5351
_EXTERNAL_ADDRESS, _MAP_TCP, _ANSWER = 0, 2, 128
_TRIES: Final = 4
_FIRST_WAIT: Final = 0.25
"""Seconds to wait for an answer; doubles with each try (section 3.1, which goes on for a minute longer than we do)."""
_REFUSALS: Final = {
    1: "it speaks another version of the protocol",
    2: "it is not allowed to forward ports: see its settings",
    3: "it has no address of its own at the moment",
    4: "it has no room for more",
    5: "it does not know how",
}


@dataclass(frozen=True)
class Granted:
    """What a router has promised."""

    external_port: int
    lifetime: int
    """Seconds."""


def address_request() -> bytes:
    """Ask for the router's outside address."""
    return bytes([0, _EXTERNAL_ADDRESS])


def map_request(internal_port: int, external_port: int, lifetime: int) -> bytes:
    """Ask for a TCP port; with lifetime 0, give it back.

    Args:
        external_port: the one that we would like; 0 when giving back.
        lifetime: seconds.
    """
    return struct.pack("!BBHHHI", 0, _MAP_TCP, 0, internal_port, external_port, lifetime)


def read_address(answer: bytes) -> str:
    """The outside address in an answer.

    Raises:
        TransportError: it is a refusal, or no such answer.
    """
    _check(answer, _EXTERNAL_ADDRESS, 12)
    return socket.inet_ntoa(answer[8:12])


def read_mapping(answer: bytes, internal_port: int) -> Granted:
    """The promise in an answer.

    Raises:
        TransportError: it is a refusal, or no such answer.
    """
    _check(answer, _MAP_TCP, 16)
    inside, outside, lifetime = struct.unpack_from("!HHI", answer, 8)
    if inside != internal_port:
        raise TransportError("the router answered about another port than it was asked for")
    return Granted(outside, lifetime)


def _check(answer: bytes, operation: int, size: int) -> None:
    if len(answer) < 4 or answer[0] != 0 or answer[1] != _ANSWER + operation:
        raise TransportError("the router answered with something else than NAT-PMP")
    if code := int.from_bytes(answer[2:4]):
        raise TransportError(f"the router refuses: {_REFUSALS.get(code, f'code {code}')}")
    if len(answer) < size:
        raise TransportError("the router's answer is cut short")


class NATPMP:
    """A router that is asked by NAT-PMP.

    Args:
        gateway: its IPv4 address.
    """

    name: Final = "NAT-PMP"

    def __init__(self, gateway: str) -> None:
        self._gateway = gateway

    async def map(self, internal_port: int, external_port: int, lifetime: int) -> Mapping:
        """Have a TCP port forwarded, or the promise renewed.

        Raises:
            TransportError: the router does not answer, or refuses.
        """
        ip = read_address(await self._ask(address_request()))
        answer = await self._ask(map_request(internal_port, external_port, lifetime))
        granted = read_mapping(answer, internal_port)
        return Mapping(self.name, ip, granted.external_port, internal_port, granted.lifetime)

    async def unmap(self, mapping: Mapping) -> None:
        """Give a port back.

        Raises:
            TransportError: the router does not answer, or refuses.
        """
        await self._ask(map_request(mapping.internal_port, 0, 0))

    async def _ask(self, request: bytes) -> bytes:
        try:
            with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                await sock.connect((self._gateway, PORT))  # who answers from elsewhere is not heard
                for number in range(_TRIES):
                    await sock.send(request)
                    with trio.move_on_after(_FIRST_WAIT * 2**number):
                        return await sock.recv(64)
        except OSError as error:
            raise TransportError(f"the router {self._gateway} does not speak NAT-PMP: {error.strerror}") from None
        raise TransportError(f"the router {self._gateway} does not answer NAT-PMP")

    def __repr__(self) -> str:
        return f"<NATPMP at {self._gateway}>"
