"""A peer of the real hivemind 1.1.12, as a process that the tests talk to. Run by the Python of ``.venv-interop``.

Takes commands as lines of JSON, ``{"id": 1, "do": "call", ...}``, and answers each with ``{"id": 1, "result": ...}``
or ``{"id": 1, "error": "ValueError: ..."}``. Says ``{"peer_id": ..., "maddrs": [...]}`` when it is ready, and ends when
its standard input does. What it serves and calls has the names and numbers of hivemind's own test messages.
"""

import asyncio
import importlib
import json
import sys
from typing import AsyncIterator  # noqa: UP035  # hivemind tells streams by this one alone

import torch
from cryptography.hazmat.primitives import serialization
from hivemind.compression.serialization import deserialize_torch_tensor, serialize_torch_tensor
from hivemind.dht.crypto import RSASignatureValidator
from hivemind.dht.node import DHTNode
from hivemind.dht.validation import CompositeValidator
from hivemind.p2p import P2P, P2PContext, PeerID, ServicerBase
from hivemind.proto import runtime_pb2, test_pb2
from hivemind.proto.auth_pb2 import AccessToken
from hivemind.utils import get_dht_time
from hivemind.utils.auth import TokenAuthorizerBase
from hivemind.utils.crypto import RSAPrivateKey
from hivemind.utils.multiaddr import Multiaddr
from hivemind.utils.tensor_descr import BatchTensorDescriptor


class Interop(ServicerBase):
    """The methods that both sides serve."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    async def rpc_square(self, request: test_pb2.TestRequest, context: P2PContext) -> test_pb2.TestResponse:
        return test_pb2.TestResponse(number=request.number**2)

    async def rpc_fail(self, request: test_pb2.TestRequest, context: P2PContext) -> test_pb2.TestResponse:
        raise ValueError(f"no square of {request.number}")

    async def rpc_wait(self, request: test_pb2.TestRequest, context: P2PContext) -> test_pb2.TestResponse:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return test_pb2.TestResponse()

    async def rpc_double(
        self, requests: AsyncIterator[test_pb2.TestRequest], context: P2PContext
    ) -> AsyncIterator[test_pb2.TestResponse]:
        async for request in requests:
            yield test_pb2.TestResponse(number=2 * request.number)

    async def rpc_fail_later(
        self, requests: AsyncIterator[test_pb2.TestRequest], context: P2PContext
    ) -> AsyncIterator[test_pb2.TestResponse]:
        async for request in requests:
            yield test_pb2.TestResponse(number=request.number)
            raise ValueError("one is enough")

    async def rpc_wait_stream(
        self, requests: AsyncIterator[test_pb2.TestRequest], context: P2PContext
    ) -> AsyncIterator[test_pb2.TestResponse]:
        try:
            yield test_pb2.TestResponse(number=1)
            await asyncio.sleep(3600)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise


class Authorizer(TokenAuthorizerBase):
    """Tokens that the key of the authority, which every peer of the tests has, signs."""

    def __init__(self, authority: str) -> None:
        super().__init__(RSAPrivateKey())
        self.authority = RSAPrivateKey()
        self.authority._private_key = serialization.load_pem_private_key(authority.encode(), password=None)

    async def get_token(self) -> AccessToken:
        token = AccessToken(username="bob", public_key=self.local_public_key.to_bytes(), expiration_time="2100")
        token.signature = self.authority.sign(token.SerializeToString())
        return token

    def is_token_valid(self, access_token: AccessToken) -> bool:
        unsigned = AccessToken()
        unsigned.CopyFrom(access_token)
        unsigned.signature = b""
        return self.authority.get_public_key().verify(unsigned.SerializeToString(), access_token.signature)

    def does_token_need_refreshing(self, access_token: AccessToken) -> bool:
        return False


class Peer:
    """Runs the commands; each is a method."""

    def __init__(self, p2p: P2P, servicer: Interop) -> None:
        self.p2p = p2p
        self.servicer = servicer
        self.dht: DHTNode | None = None

    async def connect(self, maddr: str) -> None:
        whole = Multiaddr(maddr)
        peer_id = PeerID.from_base58(whole["p2p"])
        await self.p2p._client.connect(peer_id, [Multiaddr(maddr.rpartition("/p2p/")[0])])

    async def call(
        self, peer_id: str, method: str, number: int, timeout: float | None = None, namespace: str | None = None
    ) -> int:
        stub = Interop.get_stub(self.p2p, PeerID.from_base58(peer_id), namespace=namespace)
        return (await getattr(stub, method)(test_pb2.TestRequest(number=number), timeout=timeout)).number

    async def stream(self, peer_id: str, method: str, numbers: list[int], take: int | None = None) -> list[int]:
        async def requests() -> AsyncIterator[test_pb2.TestRequest]:
            for number in numbers:
                yield test_pb2.TestRequest(number=number)

        responses = await getattr(Interop.get_stub(self.p2p, PeerID.from_base58(peer_id)), method)(requests())
        taken = []
        async for response in responses:
            taken.append(response.number)
            if len(taken) == take:
                break
        await responses.aclose()
        return taken

    async def call_large(self, peer_id: str, size: int) -> int:
        """The size of the echo of so many bytes, each of which is checked."""
        tensor = runtime_pb2.Tensor(buffer=bytes(range(256)) * (size // 256))
        peer, data = PeerID.from_base58(peer_id), tensor.SerializeToString()
        echoed = await self.p2p._client.call_unary_handler(peer, "Interop.echo", data)
        assert echoed == data
        return len(runtime_pb2.Tensor.FromString(echoed).buffer)

    async def stream_large(self, peer_id: str, parts: int, size: int, method: str = "Interop.echo_stream") -> int:
        """The size of the echo of so many parts of so many bytes."""

        async def requests() -> AsyncIterator[runtime_pb2.Tensor]:
            for _ in range(parts):
                yield runtime_pb2.Tensor(buffer=bytes(size))

        peer = PeerID.from_base58(peer_id)
        responses = await self.p2p.iterate_protobuf_handler(peer, method, requests(), runtime_pb2.Tensor)
        return sum([len(response.buffer) async for response in responses])

    async def import_module(self, path: str, name: str) -> str:
        """Import a module found in ``path`` into this process, beside hivemind; its name."""
        sys.path.append(path)
        try:
            return importlib.import_module(name).__name__
        finally:
            sys.path.remove(path)

    async def wait_until_cancelled(self) -> bool:
        """Wait until a handler of this peer was cancelled by its caller."""
        await asyncio.wait_for(self.servicer.cancelled.wait(), 20)
        self.servicer.cancelled.clear()
        return True

    async def join(
        self, initial_peers: list[str], client_mode: bool = False, signed: bool = False, authority: str | None = None
    ) -> None:
        """Join a swarm.

        Args:
            signed: check and sign records.
            authority: private key (PEM) of the authority of a moderated swarm.
        """
        validators = [RSASignatureValidator()] if signed else []
        self.dht = await DHTNode.create(
            self.p2p,
            initial_peers=initial_peers,
            client_mode=client_mode,
            cache_locally=False,
            cache_on_store=False,
            record_validator=CompositeValidator(validators),
            authorizer=None if authority is None else Authorizer(authority),
        )

    async def owner_marker(self) -> str:
        return RSASignatureValidator().local_public_key.decode()

    async def store(
        self, key: str, value: object, seconds: float, subkey: str | int | None = None, as_bytes: bool = False
    ) -> bool:
        expiration_time = get_dht_time() + seconds
        if as_bytes:
            subkey = subkey.encode()
        if subkey is None:
            return await self.dht.store(key, value, expiration_time)
        return await self.dht.store(key, value, expiration_time, subkey=subkey)

    async def store_special(self, key: str, seconds: float) -> bool:
        """A tuple within a list, and a tensor's description: hivemind's extension types."""
        value = [(1, b"two", None), BatchTensorDescriptor(2, 3, dtype=torch.float16, compression=2)]
        return await self.dht.store(key, value, get_dht_time() + seconds)

    async def get(self, key: str) -> object:
        """The value; of a dictionary, the values by the text of their subkeys; what JSON does not know, as text."""
        found = await self.dht.get(key, latest=True)
        if found is None:
            return None
        if isinstance(found.value, dict):
            names = [each.decode() if isinstance(each, bytes) else str(each) for each in found.value]
            values = [item.value for item in found.value.values()]
            return {
                name: repr(item) if isinstance(item, tuple) else item for name, item in zip(names, values, strict=True)
            }
        return found.value if isinstance(found.value, str | int | float) else repr(found.value)

    async def codec(self, ours: str, plain: str, compression: int) -> dict[str, str]:
        """What hivemind reads from our message, and how it sends the same (plain) tensor; messages, in hex."""
        decoded, tensor = (
            deserialize_torch_tensor(runtime_pb2.Tensor.FromString(bytes.fromhex(each))) for each in (ours, plain)
        )
        theirs = serialize_torch_tensor(tensor, compression)
        read = serialize_torch_tensor(decoded)
        return {"read": read.SerializeToString().hex(), "theirs": theirs.SerializeToString().hex()}

    async def contacts(self) -> int:
        return len(self.dht.protocol.routing_table.uid_to_peer_id)

    async def leave(self) -> None:
        await self.dht.shutdown()
        self.dht = None


async def answer(peer: object, line: bytes) -> None:
    command = json.loads(line)
    number, do = command.pop("id"), command.pop("do")
    try:
        reply = {"id": number, "result": await getattr(peer, do)(**command)}
    except Exception as error:
        reply = {"id": number, "error": f"{type(error).__name__}: {error}"}
    print(json.dumps(reply), flush=True)


async def serve_commands(peer: object) -> None:
    """Run what standard input says, at the same time, until it ends."""
    commands = asyncio.StreamReader(limit=2**24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    tasks = set()
    while line := await commands.readline():
        task = asyncio.create_task(answer(peer, line))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def main() -> None:
    p2p = await P2P.create(
        host_maddrs=["/ip4/127.0.0.1/tcp/0"], auto_nat=False, nat_port_map=False, use_relay=False, idle_timeout=3600
    )
    servicer = Interop()
    await servicer.add_p2p_handlers(p2p)
    await servicer.add_p2p_handlers(p2p, namespace="ours")

    async def echo(data: bytes, peer_id: PeerID) -> bytes:
        return data

    await p2p._client.add_unary_handler("Interop.echo", echo)
    peer = Peer(p2p, servicer)
    maddrs = [str(maddr) for maddr in await p2p.get_visible_maddrs()]
    print(json.dumps({"peer_id": p2p.peer_id.to_base58(), "maddrs": maddrs}), flush=True)

    await serve_commands(peer)
    await p2p.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
