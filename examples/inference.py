"""Ask experts to compute, without training them: ``python examples/inference.py PEER UID...``.

What an expert takes is in its ``info``, so this works for any expert of floating point inputs. Under
``torch.no_grad()`` no backward is sent, and nothing is learned.
"""

from __future__ import annotations

import sys
import time

import torch

from hivemind_p2p import DHT, client_stats, get_experts


def main(peer: str, uids: list[str]) -> None:
    with DHT([peer], start=True, client_mode=True) as dht, torch.no_grad():
        for uid, expert in zip(uids, get_experts(dht, uids), strict=True):
            if expert is None:
                print(f"{uid}: nobody serves it")
                continue
            inputs, _ = expert.info["forward_schema"]
            batch = [torch.randn(32, *each.size[1:]) for each in inputs]
            expert(*batch)  # connects
            began = time.perf_counter()
            outputs = [expert(*batch) for _ in range(20)]
            seconds = (time.perf_counter() - began) / 20
            print(f"{uid} at {expert.peer_id}: {len(inputs)} inputs, output {tuple(outputs[0].shape)}, {seconds:.4f} s")
            print(f"replicas: {[str(replica.info.peer_id) for replica in expert.replicas]}")
        print(client_stats(dht))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
