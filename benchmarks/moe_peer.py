"""One process of ``benchmarks.moe``: a server of a grid of experts, or a trainer; told what to do line by line.

Runs in this project's environment and in hivemind's; apart from the imports the two programs are the same.
"""

import json
import sys
import tempfile
import time

GRID = (4, 4)


def load(system: str):  # noqa: ANN201 - runs where hivemind's untyped names live
    """The names that both systems share."""
    if system == "ours":
        from hivemind_p2p import DHT, RemoteMixtureOfExperts, Server
    else:
        from hivemind import DHT
        from hivemind.moe import RemoteMixtureOfExperts, Server
    return DHT, Server, RemoteMixtureOfExperts


def serve(system: str, torch_threads: int) -> None:
    """Host 16 ``ffn`` experts until standard input ends."""
    import torch

    torch.set_num_threads(torch_threads)
    _, server_class, _ = load(system)
    uids = [f"ffn.{row}.{column}" for row in range(GRID[0]) for column in range(GRID[1])]
    server = server_class.create(
        expert_uids=uids, expert_cls="ffn", hidden_dim=512, host_maddrs=["/ip4/127.0.0.1/tcp/0"], start=True
    )
    print(json.dumps({"peers": [str(maddr) for maddr in server.dht.get_visible_maddrs()]}), flush=True)
    sys.stdin.read()
    server.shutdown()


def train(system: str, peers: list) -> None:
    """Pass batches through the mixture as told (``{"rows", "k", "backward", "calls"}``); answer in seconds."""
    import torch

    torch.set_num_threads(1)
    dht_class, _, mixture_class = load(system)
    dht = dht_class(peers, start=True, client_mode=True)
    for row in range(GRID[0]):
        for column in range(GRID[1]):  # declared by a background thread of the server a moment after it is ready
            while dht.get(f"ffn.{row}.{column}", latest=True) is None:
                pass
    mixtures = {}
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if order["k"] not in mixtures:
            torch.manual_seed(0)
            mixtures[order["k"]] = mixture_class(
                in_features=512, grid_size=GRID, dht=dht, uid_prefix="ffn.", k_best=order["k"],
                forward_timeout=60, backward_timeout=60,
            )  # fmt: skip
        mixture, times = mixtures[order["k"]], []
        inputs = torch.randn(order["rows"], 512, requires_grad=order["backward"])
        for _ in range(order["calls"]):
            began = time.perf_counter()
            outputs = mixture(inputs)
            if order["backward"]:
                outputs.sum().backward()
            times.append(time.perf_counter() - began)
        print(json.dumps({"times": times}), flush=True)
    dht.shutdown()


def compute_here() -> None:
    """What the server computes for such batches, without a network; the rows spread evenly: the floor."""
    import torch

    from hivemind_p2p.server.expert_classes import FeedForward

    experts = [FeedForward(512) for _ in range(GRID[0] * GRID[1])]
    steps = [torch.optim.Adam(each.parameters(), fused=True) for each in experts]
    print("ready", flush=True)
    for line in sys.stdin:
        order, times = json.loads(line), []
        rows = order["rows"] * order["k"]
        busy = min(rows, len(experts))
        inputs = torch.randn(rows // busy, 512)
        for _ in range(order["calls"]):
            began = time.perf_counter()
            with torch.inference_mode():
                for expert in experts[:busy]:
                    expert(inputs)
            if order["backward"]:  # a backward request computes forward again, as hivemind's do, and makes one step
                for expert, step in zip(experts[:busy], steps, strict=False):
                    step.zero_grad()
                    expert(inputs.clone().requires_grad_()).sum().backward()
                    step.step()
            times.append(time.perf_counter() - began)
        print(json.dumps({"times": times}), flush=True)


if __name__ == "__main__":
    tempfile.gettempdir()  # hivemind forks while its threads run, and the lock of this is one that they hold
    role, chosen, argument = sys.argv[1:4]
    if role == "server":
        serve(chosen, int(argument))
    elif role == "here":
        compute_here()
    else:
        train(chosen, json.loads(argument))
