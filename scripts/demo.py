"""A bootstrap peer and two expert servers as processes of their own, and a trainer that finds them through the DHT."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))  # the trainer is an example, told there in full

LISTEN = ["--host-maddrs", "/ip4/127.0.0.1/tcp/0"]
EXPERTS_PER_SERVER = 8


@contextmanager
def running(verb: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """One ``hivemind-p2p`` process; asked to stop at the end, and killed if it will not."""
    command = [sys.executable, "-m", "hivemind_p2p", verb, "--json", *LISTEN, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ready(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait until it is up; what it says of itself then."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a process of the swarm ended with {process.wait()} before it was ready; see above why")
    said: dict[str, Any] = json.loads(line)
    return said


def demo(*, epochs: int, kill_one: bool) -> dict[str, Any]:
    """Run the whole swarm once and return what ``--json`` prints."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    with ExitStack() as stack:
        started = time.perf_counter()
        peers = ready(stack.enter_context(running("bootstrap")))["addresses"]
        console.print(f"bootstrap peer  {peers[0]}", soft_wrap=True)
        servers = []
        for number in range(2):
            uids = [f"digits.{i}.{j}" for i in range(4) for j in range(2 * number, 2 * number + 2)]
            hosting = ["--hidden-dim", "64", "--expert-cls", "ffn", "--lr", "2e-3", "--expert-uids", *uids]
            servers.append(stack.enter_context(running("server", "--initial-peers", *peers, *hosting)))

        import torch  # while they start
        from train_digits import Classifier, Digits, train

        from hivemind_p2p import DHT

        torch.manual_seed(0)
        torch.set_num_threads(1)  # the two servers compute; the trainer's own layers are small
        data = Digits.load()
        for number, process in enumerate(servers):
            said = ready(process)
            console.print(
                f"server {number + 1}        {len(said['experts'])} experts, peer {said['peer_id']}", soft_wrap=True
            )
        dht = stack.enter_context(DHT(peers, start=True, client_mode=True))
        model = Classifier(dht)
        total = epochs * -(-len(data.train_x) // 128)
        setup_seconds = time.perf_counter() - started

        loss_column = TextColumn("loss {task.fields[loss]:.3f}")
        with Progress(
            TextColumn("training"), BarColumn(), loss_column, TimeRemainingColumn(), console=console
        ) as progress:
            bar = progress.add_task("training", total=total, loss=float("nan"))

            def on_step(step: int, loss: float) -> None:
                progress.update(bar, completed=step, loss=loss)
                if kill_one and step == total // 2:
                    servers[0].kill()
                    progress.console.print("server 1 was killed; training goes on")

            began = time.perf_counter()
            samples = train(model, data, epochs=epochs, on_step=on_step)
            train_seconds = time.perf_counter() - began
        accuracy = model.accuracy(data.test_x, data.test_y)
        alive = sum(process.poll() is None for process in servers)
        console.print(f"test accuracy   {accuracy:.1%} on {len(data.test_x)} scans never seen")
        console.print(f"speed           {samples / train_seconds:.0f} samples/s, forward and backward")
    return {
        "test_accuracy": round(accuracy, 4),
        "samples_per_second": round(samples / train_seconds, 1),
        "servers": len(servers),
        "servers_alive_at_the_end": alive,
        "experts": len(servers) * EXPERTS_PER_SERVER,
        "epochs": epochs,
        "setup_seconds": round(setup_seconds, 2),
        "train_seconds": round(train_seconds, 2),
    }


def main() -> int:
    """Parse the command line, run the demo, print the result."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--epochs", type=int, default=12, help="passes over the training scans (default: 12)")
    parser.add_argument("--kill-one", action="store_true", help="kill one of the two servers half way")
    parser.add_argument("--json", action="store_true", help="end with one JSON object as the last line")
    options = parser.parse_args()
    if options.epochs < 1:
        parser.error("--epochs must be 1 or more")
    try:
        result = demo(epochs=options.epochs, kill_one=options.kill_one)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
