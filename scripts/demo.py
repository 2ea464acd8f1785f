"""A bootstrap peer and two expert servers as processes of their own, and a trainer that finds them through the DHT.

With --behind-nat, both servers and the trainer are behind three different NATs and only the bootstrap peer is public
(needs root, iproute2 and nftables).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]  # the trainer is an example, told there in full

from scripts.places import Place, behind_nats, on_loopback  # noqa: E402

if TYPE_CHECKING:
    from hivemind_p2p import DHT, DHTNode

EXPERTS_PER_SERVER = 8


@contextmanager
def running(place: Place, verb: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """One ``hivemind-p2p`` process; asked to stop at the end, and killed if it will not."""
    listen = [] if place.listen is None else ["--host-maddrs", place.listen]
    command = place.command([sys.executable, "-m", "hivemind_p2p", verb, "--json", *listen, *options])
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


def path_to(dht: DHT, peer_id: str) -> str:
    """How the trainer is connected to a server now: ``direct``, ``relayed`` or ``not connected``."""

    from hivemind_p2p.wire.peer_id import PeerID

    async def ask(_: DHT, node: DHTNode) -> list[bool]:
        return [each.relay is None for each in dht.node.connections(PeerID.from_base58(peer_id))]

    paths = dht.run_coroutine(ask)
    return "not connected" if not paths else "direct" if any(paths) else "relayed"


def demo(*, epochs: int, behind_nat: bool, kill_one: bool, kill_relay: bool) -> dict[str, Any]:
    """Run the whole swarm once and return what ``--json`` prints."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    with ExitStack() as stack:
        started = time.perf_counter()
        places = stack.enter_context(behind_nats() if behind_nat else on_loopback())
        bootstrap = stack.enter_context(running(places.bootstrap, "bootstrap", "--no-mdns"))
        peers = ready(bootstrap)["addresses"]
        console.print(f"bootstrap peer  {places.bootstrap.network}, {peers[0]}", soft_wrap=True)
        servers = []
        for number, place in enumerate(places.servers):
            uids = [f"digits.{i}.{j}" for i in range(4) for j in range(2 * number, 2 * number + 2)]
            hosting = ["--hidden-dim", "64", "--expert-cls", "ffn", "--lr", "2e-3", "--expert-uids", *uids]
            servers.append(stack.enter_context(running(place, "server", "--initial-peers", *peers, *hosting)))

        import torch  # while they start
        from train_digits import Classifier, Digits, train

        torch.manual_seed(0)
        torch.set_num_threads(1)  # the two servers compute; the trainer's own layers are small
        data = Digits.load()
        from hivemind_p2p import DHT

        peer_ids = []
        for number, (process, place) in enumerate(zip(servers, places.servers, strict=True), 1):
            said = ready(process)
            peer_ids.append(said["peer_id"])
            hosted = f"{len(said['experts'])} experts, peer {said['peer_id']}"
            console.print(f"server {number}        {place.network}, {hosted}", soft_wrap=True)
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
                if step != total // 2:
                    return
                if kill_one:
                    servers[0].kill()
                    progress.console.print("server 1 was killed; training goes on")
                if kill_relay:
                    bootstrap.kill()
                    progress.console.print("the bootstrap peer, which is also the relay, was killed; training goes on")

            began = time.perf_counter()
            samples = train(model, data, epochs=epochs, on_step=on_step)
            train_seconds = time.perf_counter() - began
        accuracy = model.accuracy(data.test_x, data.test_y)
        alive = [process.poll() is None for process in servers]
        paths = [path_to(dht, peer_id) for peer_id in peer_ids]
        for number, path in enumerate(paths, 1):
            console.print(f"path            the trainer to server {number}: {path}")
        console.print(f"test accuracy   {accuracy:.1%} on {len(data.test_x)} scans never seen")
        console.print(f"speed           {samples / train_seconds:.0f} samples/s, forward and backward")
    return {
        "test_accuracy": round(accuracy, 4),
        "samples_per_second": round(samples / train_seconds, 1),
        "servers": len(servers),
        "servers_alive_at_the_end": sum(alive),
        "networks": [place.network for place in places.servers],
        "paths": paths,
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
    parser.add_argument("--behind-nat", action="store_true", help="servers and trainer behind a NAT each; needs root")
    parser.add_argument("--kill-relay", action="store_true", help="kill the bootstrap peer, the only relay, half way")
    parser.add_argument("--json", action="store_true", help="end with one JSON object as the last line")
    options = parser.parse_args()
    if options.epochs < 1:
        parser.error("--epochs must be 1 or more")
    try:
        result = demo(
            epochs=options.epochs,
            behind_nat=options.behind_nat,
            kill_one=options.kill_one,
            kill_relay=options.kill_relay,
        )
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
