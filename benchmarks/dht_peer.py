"""One peer of a local swarm, a process that ``benchmarks.dht`` talks to: run in the Python of the system it belongs to.

Both systems have the same interface, so this is the same code for both. Takes lines of JSON, ``["store", ...]``, and
answers each with ``[seconds, result]``. Ends with its standard input.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from functools import partial
from typing import Any


async def store_many(dht: Any, node: Any, keys: list[str], expiration_time: float) -> int:
    """How many were stored."""
    return sum((await node.store_many(keys, keys, expiration_time)).values())


async def get_many(dht: Any, node: Any, keys: list[str]) -> int:
    """How many were found."""
    return sum(found is not None for found in (await node.get_many(keys)).values())


def main() -> None:
    module, initial_peers = importlib.import_module(sys.argv[1]), json.loads(sys.argv[2])
    if sys.argv[1] == "hivemind_p2p":  # loads what it needs when a node starts; the other one when it is imported
        for needed in ("hivemind_p2p.transport.host", "hivemind_p2p.sync.dht", "hivemind_p2p.node"):
            importlib.import_module(needed)
    began = time.perf_counter()
    dht = module.DHT(initial_peers=initial_peers, host_maddrs=["/ip4/127.0.0.1/tcp/0"], start=True)
    seconds = time.perf_counter() - began
    print(json.dumps([seconds, str(dht.get_visible_maddrs()[0])]), flush=True)
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        began = time.perf_counter()
        result: Any
        if command == "store":
            key, value, lasts = arguments
            result = dht.store(key, value, time.time() + lasts)
        elif command == "get":
            key, latest = arguments
            found = dht.get(key, latest=latest)
            result = None if found is None else found.value
        elif command == "store_many":
            keys, lasts = arguments
            result = dht.run_coroutine(partial(store_many, keys=keys, expiration_time=time.time() + lasts))
        else:
            result = dht.run_coroutine(partial(get_many, keys=arguments[0]))
        print(json.dumps([time.perf_counter() - began, result]), flush=True)
    dht.shutdown()
    os._exit(0)  # hivemind leaves threads behind


if __name__ == "__main__":
    main()
