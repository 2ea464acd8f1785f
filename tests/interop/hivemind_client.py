"""The real hivemind 1.1.12 as a client of experts, as a process that the tests talk to. Run by the Python of ``.venv-interop``.

Takes commands as lines of JSON, ``{"do": "train", ...}``, and answers each with ``{"result": ...}`` or
``{"error": "ValueError: ..."}``. The addresses of the swarm are its arguments. Ends when its standard input does.
"""  # noqa: E501

import json
import sys

import numpy as np
import torch
from hivemind.dht import DHT
from hivemind.moe import RemoteMixtureOfExperts, get_experts
from hivemind.moe.client.beam_search import MoEBeamSearcher
from hivemind.moe.server.layers import name_to_block


class Client:
    """Runs the commands; each is a method."""

    def __init__(self, initial_peers: list) -> None:
        self.dht = DHT(initial_peers, start=True, client_mode=True, cache_locally=False)

    def train(self, uid: str, path: str) -> list:
        """Call the expert with the arrays ``input 0``, ... of a file; write its outputs and the gradients of inputs.

        The gradient of the output is the array ``gradient``.
        """
        arrays = dict(np.load(path))
        inputs = [torch.from_numpy(arrays[f"input {n}"]) for n in range(len(arrays) - 1)]
        inputs = [tensor.requires_grad_() if tensor.is_floating_point() else tensor for tensor in inputs]
        [expert] = get_experts(self.dht, [uid])
        outputs = expert(*inputs)
        outputs.backward(torch.from_numpy(arrays["gradient"]))
        np.savez(path, outputs=outputs.detach().numpy(), input_gradient=inputs[0].grad.numpy())
        return list(outputs.shape)

    def find(self, uids: list) -> list:
        """The peers that serve some experts, as text, or None."""
        return [expert and expert.peer_id.to_base58() for expert in get_experts(self.dht, uids)]

    def search(self, prefix: str, grid: list) -> list:
        """All uids that a beam search over a grid finds."""
        searcher = MoEBeamSearcher(self.dht, prefix, grid)
        scores = [[1.0] * size for size in grid]
        return sorted(expert.uid for expert in searcher.find_best_experts(scores, beam_size=100))

    def train_mixture(self, prefix: str, grid: list, size: int, steps: int) -> list:
        """The loss after each step of learning to reproduce random rows through a mixture of experts."""
        torch.manual_seed(0)
        mixture = RemoteMixtureOfExperts(in_features=size, grid_size=grid, dht=self.dht, uid_prefix=prefix, k_best=2)
        optimizer = torch.optim.Adam(mixture.parameters(), lr=0.01)
        rows, losses = torch.randn(4, size), []
        for _ in range(steps):
            loss = torch.nn.functional.mse_loss(mixture(rows), rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    def expert_class(self, name: str, size: int, path: str) -> None:
        """Write a module of hivemind's as the arrays of its state, of its inputs and of its outputs."""
        torch.manual_seed(0)
        module = name_to_block[name](size).eval()
        inputs = [torch.randn(3, size)]
        if name == "transformer":
            inputs = [torch.randn(3, 128, size), torch.arange(128).repeat(3, 1) > 100]
        arrays = {f"state {key}": value.numpy() for key, value in module.state_dict().items()}
        arrays |= {f"input {n}": tensor.numpy() for n, tensor in enumerate(inputs)}
        with torch.no_grad():
            np.savez(path, outputs=module(*inputs).numpy(), **arrays)


def main() -> None:
    torch.set_num_threads(1)
    client = Client(sys.argv[1:])
    print(json.dumps({"result": client.dht.peer_id.to_base58()}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            reply = {"result": getattr(client, command.pop("do"))(**command)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)
    client.dht.shutdown()


if __name__ == "__main__":
    main()
