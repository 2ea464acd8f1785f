"""A process of ``benchmarks.load``: many clients of one system, as threads; told what to do line by line.

Runs in this project's environment and in hivemind's; apart from the imports the two programs are the same.
"""

import json
import queue
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from benchmarks.expert_peer import connect


class Clients:
    """Threads that call one expert; what came of it.

    Args:
        call: makes one call.
        count: threads.
        seconds: for which they begin calls.
    """

    def __init__(self, call: Callable, count: int, seconds: float) -> None:
        self._call, self._count, self._seconds = call, count, seconds
        self.times, self.failed = [], 0

    def closed_loop(self) -> None:
        """Each calls, waits, and calls again."""
        until = time.perf_counter() + self._seconds

        def client() -> None:
            while (began := time.perf_counter()) < until:
                self._one(began)

        self._run(client)

    def open_loop(self, rate: float, seed: int) -> None:
        """Calls are due at the times of a Poisson process. A late one counts from when it was due, not from when a
        thread got to it."""
        due, draw, at = queue.SimpleQueue(), random.Random(seed), 0.0
        while (at := at + draw.expovariate(rate)) < self._seconds:
            due.put(at)
        start = time.perf_counter()

        def client() -> None:
            while True:
                try:
                    at = start + due.get_nowait()
                except queue.Empty:
                    return
                time.sleep(max(0.0, at - time.perf_counter()))
                self._one(at)

        self._run(client)

    def _one(self, since: float) -> None:
        try:
            self._call()
        except Exception:  # of either system: counted, and published
            self.failed += 1
        else:
            self.times.append(time.perf_counter() - since)

    def _run(self, client: Callable) -> None:
        threads = [threading.Thread(target=client) for _ in range(self._count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def main(system: str, peers: list) -> None:
    """Do as told (``{"expert", "rows", "clients", "seconds"}``, and ``"rate"`` and ``"seed"`` for an open loop)."""
    import torch

    dht, experts = connect(system, peers)
    for line in sys.stdin:
        order = json.loads(line)
        expert, inputs = experts[order["expert"]], torch.randn(order["rows"], 1024)
        clients = Clients(lambda expert=expert, inputs=inputs: expert(inputs), order["clients"], order["seconds"])
        began = time.perf_counter()
        if "rate" in order:
            clients.open_loop(order["rate"], order["seed"])
        else:
            clients.closed_loop()
        took = time.perf_counter() - began
        print(json.dumps({"times": clients.times, "failed": clients.failed, "seconds": took}), flush=True)
    dht.shutdown()


if __name__ == "__main__":
    tempfile.gettempdir()  # hivemind forks while its threads run, and the lock of this is one that they hold
    main(sys.argv[2], json.loads(sys.argv[3]))
