"""A moderated swarm: who has a token is in it, who has none is neither served nor believed."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from hivemind_p2p.dht import TokenAuthorizerBase, rsa_keys
from hivemind_p2p.dht.protocol import FIND, PING
from hivemind_p2p.errors import BootstrapError, RemoteError
from hivemind_p2p.wire import dht_pb2
from hivemind_p2p.wire.auth_pb2 import AccessToken
from tests.dht.swarm import Swarm, address, now

AUTHORITY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
IMPOSTOR = rsa.generate_private_key(public_exponent=65537, key_size=2048)


class Authorizer(TokenAuthorizerBase):
    """Tokens of 100 s from an authority in the same process."""

    def __init__(self, authority: rsa.RSAPrivateKey = AUTHORITY, clock: Callable[[], float] = now) -> None:
        super().__init__(rsa.generate_private_key(public_exponent=65537, key_size=1024), clock=clock)
        self.authority, self.given = authority, 0

    async def get_token(self) -> AccessToken:
        self.given += 1
        token = AccessToken(username="ann", public_key=self.local_public_key, expiration_time=str(now() + 100))
        token.signature = rsa_keys.sign(self.authority, self._signed(token))
        return token

    def is_token_valid(self, access_token: AccessToken) -> bool:
        public_key = rsa_keys.public_bytes(AUTHORITY)
        valid = rsa_keys.verify(public_key, self._signed(access_token), access_token.signature)
        return valid and float(access_token.expiration_time) > now()

    def does_token_need_refreshing(self, access_token: AccessToken) -> bool:
        return float(access_token.expiration_time) < now() + 10

    @staticmethod
    def _signed(token: AccessToken) -> bytes:
        return f"{token.username} {token.public_key!r} {token.expiration_time}".encode()


class Forger(Authorizer):
    """Believes in its own authority."""

    def __init__(self) -> None:
        super().__init__(IMPOSTOR)

    def is_token_valid(self, access_token: AccessToken) -> bool:
        return True


async def test_those_with_tokens_form_a_swarm(autojump_clock, swarm: Swarm):
    nodes = [await swarm.node(authorizer=Authorizer()) for _ in range(4)]
    assert await nodes[1].store("key", 1, now() + 600)
    assert (await nodes[3].get("key", latest=True)).value == 1


@pytest.mark.parametrize("authorizer", [None, Forger()])
async def test_those_without_are_kept_out(autojump_clock, swarm: Swarm, authorizer):
    node = await swarm.node(authorizer=Authorizer())
    await node.store("key", 1, now() + 60)
    with pytest.raises(BootstrapError, match="did not show that it may use this swarm: it takes a valid token"):
        await swarm.node(authorizer=authorizer)
    assert len(node.protocol.table) == 0


async def test_answers_without_a_token_are_not_believed(autojump_clock, swarm: Swarm):
    await swarm.node()
    with pytest.raises(BootstrapError, match="its answer is not believed"):
        await swarm.node(authorizer=Authorizer())


async def test_a_token_is_renewed_in_time(autojump_clock, swarm: Swarm):
    mine = Authorizer()
    node, other = await swarm.node(authorizer=mine), await swarm.node(authorizer=Authorizer())
    assert mine.given == 1
    autojump_clock.jump(95)
    await node.protocol.ping(other.protocol.own.peer)
    assert mine.given == 2


async def test_requests_cannot_be_replayed_changed_or_sent_late(autojump_clock, swarm: Swarm):
    server, client = Authorizer(), Authorizer()
    for _ in range(2):
        request = dht_pb2.FindRequest(keys=[bytes(20)])
        await client.sign_request(request)
        assert await server.validate_request(request)
        assert not await server.validate_request(request)
    await client.sign_request(request)
    changed = dht_pb2.FindRequest(keys=[b"1" * 20], auth=request.auth)
    assert not await server.validate_request(changed)
    late = Authorizer(clock=lambda: now() + 61)
    assert not await late.validate_request(request)
    request.auth.service_public_key = client.local_public_key
    request.auth.signature = rsa_keys.sign(client._key, _unsigned(request))
    assert not await server.validate_request(request)  # it is for somebody else


async def test_an_answer_belongs_to_its_request(autojump_clock):
    server, client = Authorizer(), Authorizer()
    requests = [dht_pb2.PingRequest(), dht_pb2.PingRequest()]
    for request in requests:
        await client.sign_request(request)
    response = dht_pb2.PingResponse(dht_time=5.0)
    await server.sign_response(response, requests[0])
    assert await client.validate_response(response, requests[0])
    assert not await client.validate_response(response, requests[1])
    response.dht_time = 6.0
    assert not await client.validate_response(response, requests[0])


async def test_an_authority_that_fails_is_reported(autojump_clock, swarm: Swarm, caplog):
    class Unlucky(Authorizer):
        async def get_token(self) -> AccessToken:
            raise OSError("no route to the authority")

    class Cheated(Authorizer):
        async def get_token(self) -> AccessToken:
            return AccessToken(public_key=self.local_public_key, expiration_time="0")

    await swarm.node(authorizer=Authorizer())
    with pytest.raises(BootstrapError, match="cannot get a token for this swarm: no route to the authority"):
        await swarm.node(authorizer=Unlucky())
    with pytest.raises(BootstrapError, match="the token that the authority gave us is not valid"):
        await swarm.node(authorizer=Cheated())


@pytest.mark.parametrize(("method", "kind"), [(PING, dht_pb2.PingRequest), (FIND, dht_pb2.FindRequest)])
async def test_garbage_in_the_authorization_is_refused(autojump_clock, swarm: Swarm, method, kind):
    node = await swarm.node(authorizer=Authorizer())
    rpc = await swarm.rpc()
    await rpc.network.connect(address(node))
    request = kind()
    request.auth.client_access_token.public_key = b"ssh-rsa garbage"
    request.auth.signature = b"\xff"
    with pytest.raises(RemoteError, match="did not show"):
        await rpc.call(node.protocol.own.peer, method, request, dht_pb2.PingResponse, timeout=3)


def _unsigned(request: dht_pb2.FindRequest) -> bytes:
    request.auth.signature = b""
    return request.SerializeToString()


class Trusting(Authorizer):
    """Looks at what a token says before it looks at who signed it."""

    def is_token_valid(self, access_token: AccessToken) -> bool:
        return float(access_token.expiration_time) > now() and super().is_token_valid(access_token)


class Babbler(Forger):
    """Its tokens do not say when they expire."""

    async def get_token(self) -> AccessToken:
        token = await super().get_token()
        token.expiration_time = "tomorrow"
        return token

    def does_token_need_refreshing(self, access_token: AccessToken) -> bool:
        return False


async def test_a_token_that_the_rules_fail_at_is_refused(autojump_clock, swarm: Swarm, caplog):
    node, other = await swarm.node(authorizer=Trusting()), await swarm.node(authorizer=Babbler(), join=False)
    with pytest.raises(BootstrapError, match="did not show that it may use this swarm"):
        await other.bootstrap([address(node)])
    peer = await node.protocol.network.connect(address(other))
    assert await node.protocol.find(peer, [5]) is None
    assert len(node.protocol.table) == 0
    assert "failed at a token, which is refused" in caplog.text


def test_keys_of_other_kinds_are_no_keys():
    compressed = base64.b64encode(b"\0\0\0\x13ecdsa-sha2-nistp256\0\0\0\x08nistp256\0\0\0\x21\x02" + bytes(32))
    assert not rsa_keys.verify(b"ecdsa-sha2-nistp256 " + compressed, b"data", b"")
