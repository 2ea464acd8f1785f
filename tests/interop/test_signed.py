"""Signed records and moderated swarms of hivemind and ours: what one accepts or refuses, the other does too."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from hivemind_p2p import Node
from hivemind_p2p.dht import Ed25519SignatureValidator, RSASignatureValidator, TokenAuthorizerBase, rsa_keys
from hivemind_p2p.dht import get_dht_time as now
from hivemind_p2p.errors import BootstrapError
from hivemind_p2p.wire import auth_pb2
from tests.interop.conftest import HivemindPeer
from tests.interop.test_dht import LOOPBACK, hivemind_in

AUTHORITY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
IMPOSTOR = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem(key: rsa.RSAPrivateKey) -> str:
    kind = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()).decode()


class Authorizer(TokenAuthorizerBase):
    def __init__(self, authority: rsa.RSAPrivateKey) -> None:
        super().__init__(rsa.generate_private_key(public_exponent=65537, key_size=2048))
        self.authority = authority

    async def get_token(self) -> auth_pb2.AccessToken:
        token = auth_pb2.AccessToken(username="ann", public_key=self.local_public_key, expiration_time="2100")
        token.signature = rsa_keys.sign(self.authority, token.SerializeToString())
        return token

    def is_token_valid(self, access_token: auth_pb2.AccessToken) -> bool:
        unsigned = auth_pb2.AccessToken()
        unsigned.CopyFrom(access_token)
        unsigned.signature = b""
        public_key = rsa_keys.public_bytes(self.authority)
        return rsa_keys.verify(public_key, unsigned.SerializeToString(), access_token.signature)

    def does_token_need_refreshing(self, access_token: auth_pb2.AccessToken) -> bool:
        return False


async def test_each_accepts_what_the_other_signed_and_refuses_forgeries(hivemind: HivemindPeer):
    ours = RSASignatureValidator()
    async with (
        Node(host_maddrs=LOOPBACK, record_validators=[ours]) as node,
        hivemind_in(hivemind, node, signed=True),
        Node([str(node.visible_maddrs[0])], client_mode=True) as forger,  # signs nothing, checks nothing
    ):
        soon = now() + 60
        mine = "us" + ours.local_public_key.decode()
        theirs = "them" + await hivemind.do("owner_marker")
        assert await hivemind.do("store", key="signed", value=2, seconds=60, subkey=theirs, as_bytes=True)
        assert await node.dht.store("signed", 1, soon, subkey=mine.encode())
        assert await hivemind.do("get", key="signed") == {mine: 1, theirs: 2}
        found = (await node.dht.get("signed", latest=True)).value
        assert {subkey.decode(): value for subkey, (value, _) in found.items()} == {mine: 1, theirs: 2}

        for owned in (mine, theirs):
            assert not await forger.dht.store("signed", 3, soon + 30, subkey=owned.encode())
        assert not await hivemind.do("store", key="signed", value=3, seconds=90, subkey=mine, as_bytes=True)
        # hivemind fails where a string and bytes expire at one time.
        assert await forger.dht.store("signed", 4, soon + 1, subkey="nobody's")
        assert await hivemind.do("get", key="signed") == {mine: 1, theirs: 2, "nobody's": 4}


async def test_hivemind_refuses_by_itself(hivemind: HivemindPeer):
    async with hivemind_in(hivemind, signed=True), Node([str(hivemind.maddr)], client_mode=True) as forger:
        theirs = b"them" + (await hivemind.do("owner_marker")).encode()
        assert not await forger.dht.store("forged", 3, now() + 60, subkey=theirs)
        assert await hivemind.do("get", key="forged") is None


@pytest.mark.parametrize("signed", [True, False])
async def test_hivemind_lives_with_what_identities_signed(hivemind: HivemindPeer, signed: bool):
    async with (
        Node(host_maddrs=LOOPBACK, record_validators=[Ed25519SignatureValidator()]) as node,
        hivemind_in(hivemind, node, signed=signed),
    ):
        mine = "us" + Ed25519SignatureValidator.marker(node.peer_id)
        assert await node.dht.store("mixed", "value", now() + 60, subkey=mine)
        assert await hivemind.do("store", key="mixed", value=1, seconds=60, subkey="plain")
        found = await hivemind.do("get", key="mixed")
        assert found["plain"] == 1
        assert found[mine].startswith(("('value', b'", "('value', b\""))  # the quotes depend on the signature
        # It keeps it for others, signature and all, and cannot change it.
        assert not await hivemind.do("store", key="mixed", value="forged", seconds=90, subkey=mine) or (
            (await node.dht.get("mixed", latest=True)).value[mine].value == "value"
        )
        async with Node([str(hivemind.maddr)], record_validators=[Ed25519SignatureValidator()]) as reader:
            assert (await reader.dht.get("mixed", latest=True)).value["plain"].value == 1


async def test_a_moderated_swarm_of_both(hivemind: HivemindPeer):
    async with (
        Node(host_maddrs=LOOPBACK, authorizer=Authorizer(AUTHORITY)) as node,
        hivemind_in(hivemind, node, authority=pem(AUTHORITY)),
    ):
        assert await node.dht.store("moderated", "ours", now() + 60)
        assert await hivemind.do("get", key="moderated") == "ours"
        assert await hivemind.do("store", key="moderated", value="theirs", seconds=90)
        assert (await node.dht.get("moderated", latest=True)).value == "theirs"
        for authorizer in (None, Authorizer(IMPOSTOR)):
            with pytest.raises(BootstrapError):
                async with Node([str(node.visible_maddrs[0])], client_mode=True, authorizer=authorizer):
                    pass
            with pytest.raises(BootstrapError):
                async with Node([str(hivemind.maddr)], client_mode=True, authorizer=authorizer):
                    pass


async def test_hivemind_without_a_token_is_kept_out(hivemind: HivemindPeer):
    async with Node(host_maddrs=LOOPBACK, authorizer=Authorizer(AUTHORITY)) as node:
        for authority in (None, pem(IMPOSTOR)):
            with pytest.raises(RuntimeError, match="bootstrap failed"):
                async with hivemind_in(hivemind, node, client_mode=True, authority=authority):
                    pass
        assert len(node.dht.protocol.table) == 0
