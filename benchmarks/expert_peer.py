"""One process of ``benchmarks.experts``: a server, or a client that does what its standard input says, a line each.

Runs in this project's environment and in hivemind's; apart from the imports the two programs are the same.
"""

import json
import sys
import tempfile
import time


def load(system: str):  # noqa: ANN201 - runs where hivemind's untyped names live
    """The names that both systems share."""
    if system == "ours":
        from hivemind_p2p import DHT, Server, get_experts
    else:
        from hivemind import DHT
        from hivemind.moe import Server, get_experts
    return DHT, Server, get_experts


def serve(system: str, torch_threads: int) -> None:
    """Host a ``nop`` and an ``ffn`` expert until standard input ends."""
    import torch

    torch.set_num_threads(torch_threads)
    _, server_class, _ = load(system)
    first = server_class.create(
        expert_uids=["nop.0"], expert_cls="nop", hidden_dim=1024, optim_cls=None,
        host_maddrs=["/ip4/127.0.0.1/tcp/0"], start=True,
    )  # fmt: skip
    peers = [str(maddr) for maddr in first.dht.get_visible_maddrs()]
    second = server_class.create(
        expert_uids=["ffn.0"], expert_cls="ffn", hidden_dim=1024, initial_peers=peers,
        host_maddrs=["/ip4/127.0.0.1/tcp/0"], start=True,
    )  # fmt: skip
    print(json.dumps({"peers": peers}), flush=True)
    sys.stdin.read()
    second.shutdown()
    first.shutdown()


def connect(system: str, peers: list) -> tuple:
    """A client in the swarm of a server, and its two experts by uid; says that it is ready."""
    import torch

    torch.set_num_threads(1)
    # Who calls torch's backward with gradients for the first time waits half a second until torch has loaded sympy.
    torch.ones(1, requires_grad=True).clone().backward(torch.ones(1))
    dht_class, _, get_experts = load(system)
    dht = dht_class(peers, start=True, client_mode=True)
    experts = {}
    for uid in ("nop.0", "ffn.0"):
        while experts.get(uid) is None:  # declared by a background thread of its server a moment after it is ready
            (experts[uid],) = get_experts(dht, [uid])
    print("ready", flush=True)
    return dht, experts


def use(system: str, peers: list) -> None:
    """Call experts as told (``{"expert", "rows", "backward", "calls" or "seconds"}``); answer in seconds per call."""
    import torch

    dht, experts = connect(system, peers)
    for line in sys.stdin:
        order = json.loads(line)
        expert = experts[order["expert"]]
        inputs = torch.randn(order["rows"], 1024, requires_grad=order["backward"])
        gradients = torch.randn(order["rows"], 1024)
        until = time.perf_counter() + order.get("seconds", 1e9)
        times, cut_short = [], 0
        while len(times) < order.get("calls", 1e9) and time.perf_counter() < until:
            began = time.perf_counter()
            outputs = expert(inputs)
            if order["backward"]:
                outputs.backward(gradients)
            times.append(time.perf_counter() - began)
            cut_short += outputs.shape != inputs.shape
        print(json.dumps({"times": times, "cut_short": int(cut_short)}), flush=True)
    dht.shutdown()


if __name__ == "__main__":
    tempfile.gettempdir()  # hivemind forks while its threads run, and the lock of this is one that they hold
    role, chosen, argument = sys.argv[1:4]
    if role == "server":
        serve(chosen, int(argument))
    else:
        use(chosen, json.loads(argument))
