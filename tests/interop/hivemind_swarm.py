"""Many peers of the real hivemind 1.1.12 in one process, each with its own p2pd. For the Python of ``.venv-interop``.

Commands as in ``hivemind_peer.py``; ``at`` says at which of the peers, in the order in which they came.
"""

import asyncio
import json

from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.utils import get_dht_time
from hivemind_peer import serve_commands


class Swarm:
    """Runs the commands; each is a method."""

    def __init__(self) -> None:
        self.nodes: list[DHTNode] = []

    async def join(self, initial_peers: list[str], count: int) -> list[dict[str, object]]:
        """So many more peers, all of which know ``initial_peers`` and nobody else."""
        new = [await self._node(initial_peers) for _ in range(count)]
        self.nodes += new
        return [
            {
                "node_id": int(node.node_id),
                "peer_id": node.peer_id.to_base58(),
                "maddr": str((await node.get_visible_maddrs())[0]),
            }
            for node in new
        ]

    async def store(self, at: int, key: str, value: object, expiration_time: float, subkey: str | None = None) -> bool:
        if subkey is None:
            return await self.nodes[at].store(key, value, expiration_time)
        return await self.nodes[at].store(key, value, expiration_time, subkey=subkey)

    async def get(self, at: int, key: str, latest: bool = False) -> object:
        """``[value, expiration]``; the value of a dictionary is one of such pairs."""
        found = await self.nodes[at].get(key, latest=latest)
        if found is None:
            return None
        value = {k: list(v) for k, v in found.value.items()} if isinstance(found.value, dict) else found.value
        return [value, found.expiration_time]

    async def holders(self, key: str) -> dict[str, list[int]]:
        """Which peers have a key stored, and which cached."""
        key_id = DHTID.generate(source=key)
        return {
            "stored": [n for n, node in enumerate(self.nodes) if node.protocol.storage.get(key_id) is not None],
            "cached": [n for n, node in enumerate(self.nodes) if node.protocol.cache.get(key_id) is not None],
        }

    async def contacts(self, at: int) -> list[str]:
        return [peer_id.to_base58() for peer_id in self.nodes[at].protocol.routing_table.uid_to_peer_id.values()]

    async def leave(self) -> None:
        nodes, self.nodes = self.nodes, []
        await asyncio.gather(*(node.shutdown() for node in nodes))

    async def _node(self, initial_peers: list[str]) -> DHTNode:
        return await DHTNode.create(
            initial_peers=initial_peers,
            host_maddrs=["/ip4/127.0.0.1/tcp/0"],
            auto_nat=False,
            nat_port_map=False,
            use_relay=False,
        )


async def main() -> None:
    swarm = Swarm()
    print(json.dumps({"now": get_dht_time()}), flush=True)
    await serve_commands(swarm)
    await swarm.leave()


if __name__ == "__main__":
    asyncio.run(main())
