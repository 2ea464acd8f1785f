"""Who may use a moderated swarm: requests and answers of the DHT carry a token and a signature. hivemind's scheme.

An authority hands out tokens, each for one public key. Derive from ``TokenAuthorizerBase`` to say how a node gets its
token and how it tells a good one; with it, what comes from peers without one is neither served nor believed. Messages
are signed whole, with the sender's own key, over their bytes with the signature left empty; a nonce ties an answer to
its request, and together with the time keeps requests from being replayed.
"""

from __future__ import annotations

import abc
import logging
import secrets
from collections.abc import Callable
from typing import Final, TypeAlias

import trio
from cryptography.hazmat.primitives.asymmetric import rsa

from hivemind_p2p.dht import rsa_keys
from hivemind_p2p.dht.clock import get_dht_time
from hivemind_p2p.errors import Unauthorized
from hivemind_p2p.kademlia import ExpiringStorage
from hivemind_p2p.wire import dht_pb2
from hivemind_p2p.wire.auth_pb2 import AccessToken

logger = logging.getLogger(__name__)
Request: TypeAlias = dht_pb2.PingRequest | dht_pb2.StoreRequest | dht_pb2.FindRequest
Response: TypeAlias = dht_pb2.PingResponse | dht_pb2.StoreResponse | dht_pb2.FindResponse
MAX_TIME_DIFFERENCE: Final = 60.0
"""Seconds that the clocks of client and server may differ, and that a request may travel."""
_MAX_NONCES: Final = 2**18
_NONCE_BYTES: Final = 8


class AuthorizerBase(abc.ABC):
    """Signs what a node sends, and judges what it receives. Messages are signed in place, in their ``auth`` field."""

    @abc.abstractmethod
    async def sign_request(self, request: Request) -> None:
        """Called for every request that we send."""

    @abc.abstractmethod
    async def validate_request(self, request: Request) -> bool:
        """Whether to serve a request of a peer."""

    @abc.abstractmethod
    async def sign_response(self, response: Response, request: Request) -> None:
        """Called for every answer that we give."""

    @abc.abstractmethod
    async def validate_response(self, response: Response, request: Request) -> bool:
        """Whether to believe an answer of a peer."""


class TokenAuthorizerBase(AuthorizerBase):
    """hivemind's authorization by tokens.

    Args:
        local_private_key: signs our messages; our token must be for its public half. Default: a key of this process.
        clock: Unix time in seconds; another one only in tests.
    """

    def __init__(
        self, local_private_key: rsa.RSAPrivateKey | None = None, *, clock: Callable[[], float] = get_dht_time
    ) -> None:
        self._key = local_private_key if local_private_key is not None else rsa_keys.process_key()
        self._clock = clock
        self.local_public_key: Final = rsa_keys.public_bytes(self._key)
        """``ssh-rsa AAAA...``: what our token must be for."""
        self._token: AccessToken | None = None
        self._refreshing = trio.Lock()
        self._nonces: ExpiringStorage[bytes, None] = ExpiringStorage(max_count=_MAX_NONCES)

    @abc.abstractmethod
    async def get_token(self) -> AccessToken:
        """Ask the authority for a token for ``local_public_key``."""

    @abc.abstractmethod
    def is_token_valid(self, access_token: AccessToken) -> bool:
        """Whether the authority gave out this token, and it has not expired.

        Anybody may have sent it; raising refuses it, too.
        """

    @abc.abstractmethod
    def does_token_need_refreshing(self, access_token: AccessToken) -> bool:
        """Whether our own token will expire soon."""

    async def sign_request(self, request: Request) -> None:
        """Add our token, the time, a nonce, and the signature."""
        request.auth.client_access_token.CopyFrom(await self._current_token())
        request.auth.time = self._clock()
        request.auth.nonce = secrets.token_bytes(_NONCE_BYTES)
        request.auth.signature = rsa_keys.sign(self._key, request.SerializeToString())

    async def validate_request(self, request: Request) -> bool:
        """Whether its sender has a token and signed it just now, for us or for anybody, for the first time."""
        auth, now = request.auth, self._clock()
        if not _is_signed_by(auth.client_access_token, request) or not self._is_good(auth.client_access_token):
            return False
        if auth.service_public_key not in (b"", self.local_public_key):
            return False
        if not abs(auth.time - now) <= MAX_TIME_DIFFERENCE:
            return False
        # A full storage refuses: a nonce that was forgotten would be one that can be replayed.
        return bool(self._nonces.store(auth.nonce, None, now + 3 * MAX_TIME_DIFFERENCE, now=now))

    async def sign_response(self, response: Response, request: Request) -> None:
        """Add our token, the nonce of the request, and the signature."""
        response.auth.service_access_token.CopyFrom(await self._current_token())
        response.auth.nonce = request.auth.nonce
        response.auth.signature = rsa_keys.sign(self._key, response.SerializeToString())

    async def validate_response(self, response: Response, request: Request) -> bool:
        """Whether its sender has a token and signed it as the answer to ``request``."""
        auth = response.auth
        return (
            _is_signed_by(auth.service_access_token, response)
            and self._is_good(auth.service_access_token)
            and auth.nonce == request.auth.nonce
        )

    def _is_good(self, token: AccessToken) -> bool:
        try:
            return self.is_token_valid(token)
        except Exception:  # the boundary of one message: users' code, and anybody's token
            logger.exception("%r failed at a token, which is refused: %.300r", self, token)
            return False

    async def _current_token(self) -> AccessToken:
        if self._token is None or self.does_token_need_refreshing(self._token):
            async with self._refreshing:
                if self._token is None or self.does_token_need_refreshing(self._token):
                    self._token = await self._new_token()
        return self._token

    async def _new_token(self) -> AccessToken:
        try:
            token = await self.get_token()
        except Exception as error:  # users' code, on a network of its own: one failed call to the authority
            logger.warning("%r cannot get a token", self, exc_info=True)
            raise Unauthorized(f"cannot get a token for this swarm: {error}") from error
        if not self.is_token_valid(token):
            raise Unauthorized("the token that the authority gave us is not valid; is this machine's clock right?")
        return token


def _is_signed_by(token: AccessToken, message: Request | Response) -> bool:
    signature = message.auth.signature
    message.auth.signature = b""
    try:
        return rsa_keys.verify(token.public_key, message.SerializeToString(), signature)
    finally:
        message.auth.signature = signature
