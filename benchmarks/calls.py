"""Tiny remote calls between two of our nodes in one process,: on one stream for all, and on a stream each."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import trio
from multiaddr import Multiaddr

from benchmarks.report import Row, publish
from hivemind_p2p.rpc import RPC
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.wire.call_frames import MAX_REQUEST
from hivemind_p2p.wire.dht_pb2 import FindRequest

METHOD = "Bench.echo"
CARRIES = {"one stream": 0, "a stream each": MAX_REQUEST + 1}
"""What a call says of its answer; with so much, it gets a stream of its own."""


def echo(request: FindRequest, context: object) -> FindRequest:
    """Answer with the same."""
    return request


async def measure(rounds: int, calls: int) -> list[Row]:
    """Both ways by turns, round by round; each sample is the mean of one round."""
    rows = {at_once: Row(f"a call of 32 bytes, {at_once} at once", "ms") for at_once in (1, 15)}
    request = FindRequest(keys=[bytes(32)])
    listening = Host(Identity.generate(), host_maddrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")])
    async with listening, Host(Identity.generate()) as dialing, RPC(listening) as callee, RPC(dialing) as caller:
        callee.register(METHOD, FindRequest, echo)
        await dialing.connect(listening.visible_maddrs[0])
        for connection in dialing.connections():
            await connection.identified.wait()

        async def some(count: int, carries: int) -> None:
            for _ in range(count):
                await caller.call(listening.peer_id, METHOD, request, FindRequest, carries=carries)

        for number in range(rounds + 1):  # the first one warms up
            for at_once, row in rows.items():
                for name, carries in CARRIES.items():
                    began = time.perf_counter()
                    async with trio.open_nursery() as nursery:
                        for _ in range(at_once):
                            nursery.start_soon(some, calls // at_once, carries)
                    if number:
                        row.add(name, 1000 * (time.perf_counter() - began) / (calls // at_once * at_once))
    return list(rows.values())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured to FILE")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each row (default: 9)")
    parser.add_argument("--calls", type=int, default=1500, help="calls of one round (default: 1500)")
    arguments = parser.parse_args()
    publish("remote calls", trio.run(measure, arguments.rounds, arguments.calls), arguments.json)


if __name__ == "__main__":
    main()
