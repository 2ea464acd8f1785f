"""``hivemind-p2p server``: hosts experts in the swarm of ``--initial-peers``."""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from hivemind_p2p.cli import options
from hivemind_p2p.cli.bootstrap import python_line
from hivemind_p2p.cli.running import run_until_stopped, set_up_logging
from hivemind_p2p.config import HostingSettings, Settings
from hivemind_p2p.errors import ConfigError

if TYPE_CHECKING:
    from multiaddr import Multiaddr

    from hivemind_p2p.server import Server

_DEFAULTS = HostingSettings()


def _option(text: str, *, default: object = None, metavar: str | None = None) -> Any:
    return options.setting(text, "Experts", default=default, metavar=metavar)


def server(
    initial_peers: options.InitialPeers = None,
    host_maddrs: options.HostMaddrs = None,
    announce_maddrs: options.AnnounceMaddrs = None,
    identity_path: options.IdentityPath = None,
    mdns: options.Mdns = None,
    expert_uids: Annotated[list[str] | None, _option("Host exactly these.", metavar="UID...")] = None,
    num_experts: Annotated[
        int | None, _option("Host so many, under free uids of --expert-pattern.", default="1")
    ] = None,
    expert_pattern: Annotated[str | None, _option("Uids to draw from: ffn.[0:16].[0:16] is a grid of 256.")] = None,
    expert_cls: Annotated[
        str | None, _option("ffn, transformer, nop, or one of --custom-module-path.", default=_DEFAULTS.expert_cls)
    ] = None,
    custom_module_path: Annotated[
        Path | None, _option("Python file that registers expert classes of your own.", metavar="FILE")
    ] = None,
    hidden_dim: Annotated[
        int | None, _option("Size of the last axis of inputs and outputs.", default=_DEFAULTS.hidden_dim)
    ] = None,
    min_batch_size: Annotated[
        int | None, _option("Rows that a batch waits for.", default=_DEFAULTS.min_batch_size)
    ] = None,
    max_batch_size: Annotated[
        int | None,
        _option("Rows that a batch never exceeds; larger requests run in pieces.", default=_DEFAULTS.max_batch_size),
    ] = None,
    batch_wait_timeout_s: Annotated[
        float | None,
        _option("Seconds that a smaller batch waits for that many.", default=f"{_DEFAULTS.batch_wait_timeout_s:g}"),
    ] = None,
    device: Annotated[
        list[str] | None,
        _option(
            "cpu, cuda, cuda:1, ...; several share the experts.", default="cuda where there is one", metavar="DEVICE..."
        ),
    ] = None,
    optimizer: Annotated[str | None, _option("adam, sgd or none.", default=_DEFAULTS.optimizer)] = None,
    lr: Annotated[float | None, _option("Learning rate.", default="1e-3 for adam, 1e-2 for sgd")] = None,
    clip_grad_norm: Annotated[
        float | None, _option("Largest norm of an expert's gradient.", default="no limit")
    ] = None,
    autocast: Annotated[bool | None, _option("Compute in bfloat16 what torch considers safe.", default="no")] = None,
    compression: Annotated[
        str | None, _option("How tensors travel: NONE, FLOAT16, UNIFORM_8BIT, ...", default=_DEFAULTS.compression)
    ] = None,
    checkpoint_dir: Annotated[
        Path | None,
        _option("Save experts here, and go on from what is here.", default="nothing is saved", metavar="DIR"),
    ] = None,
    checkpoint_period: Annotated[
        float | None, _option("Seconds between two times of saving.", default=f"{_DEFAULTS.checkpoint_period:g}")
    ] = None,
    replicate: Annotated[
        bool | None,
        _option(
            "Begin with the states of living replicas of these experts, where they have learned more.", default="no"
        ),
    ] = None,
    update_period: Annotated[
        float | None, _option("Seconds between two declarations in the swarm.", default=f"{_DEFAULTS.update_period:g}")
    ] = None,
    config: options.Config = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Host experts until Ctrl-C or SIGTERM, which withdraws them from the swarm.

    Without --initial-peers it joins a swarm that it finds in its network (--no-mdns: not), or else starts one of its
    own, which others can join through it.
    """
    set_up_logging(verbose)
    settings = options.settings_from(
        config,
        {
            "node.initial_peers": initial_peers,
            "node.host_maddrs": host_maddrs,
            "node.announce_maddrs": announce_maddrs,
            "node.identity_path": identity_path,
            "nat.mdns": mdns,
            "hosting.expert_uids": expert_uids,
            "hosting.num_experts": num_experts,
            "hosting.expert_pattern": expert_pattern,
            "hosting.expert_cls": expert_cls,
            "hosting.custom_module_path": custom_module_path,
            "hosting.hidden_dim": hidden_dim,
            "hosting.min_batch_size": min_batch_size,
            "hosting.max_batch_size": max_batch_size,
            "hosting.batch_wait_timeout_s": batch_wait_timeout_s,
            "hosting.device": device,
            "hosting.optimizer": optimizer,
            "hosting.lr": lr,
            "hosting.clip_grad_norm": clip_grad_norm,
            "hosting.autocast": autocast,
            "hosting.compression": compression,
            "hosting.checkpoint_dir": checkpoint_dir,
            "hosting.checkpoint_period": checkpoint_period,
            "hosting.replicate": replicate,
            "hosting.update_period": update_period,
        },
    )
    run_until_stopped(lambda: host_experts(options.for_serving(settings), as_json=as_json))


async def host_experts(settings: Settings, *, as_json: bool) -> None:
    """Create the experts, join the swarm, say so, and host until cancelled; then withdraw them."""
    import trio

    # Threads of OpenMP that wait for each other by spinning, which is its default, bring servers that share a machine's
    # cores to a halt: a batch of milliseconds takes seconds. It is read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    atexit.register(_leave_at_once)  # before others are, whose turn comes first then
    try:
        server = await _start(settings)
    except trio.Cancelled:
        raise
    except BaseException:
        atexit.unregister(_leave_at_once)
        raise
    atexit.unregister(_leave_at_once)
    try:
        ready = ready_as_json if as_json else ready_as_text
        print(ready(server.dht.peer_id.base58, server.dht.get_visible_maddrs(), sorted(server.experts)), flush=True)
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(server.shutdown)


async def _start(settings: Settings) -> Server:
    import trio

    try:
        from hivemind_p2p import Server  # which loads torch a little faster than its own package does
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "numpy"):
            raise
        raise ConfigError(
            f"hosting experts needs {error.name}, which is not installed: install hivemind-p2p with its extra [torch] "
            "(from a checkout: uv pip install '.[torch]'); in Docker, build the image without --build-arg EXTRAS="
        ) from None

    return await trio.to_thread.run_sync(
        lambda: Server.create(**options.node_options(settings), **asdict(settings.hosting), start=True),
        # What has been started by then ends with the program. (mypy sees the older trio-stubs that libp2p brings.)
        abandon_on_cancel=True,  # type: ignore[call-arg]
    )


def _leave_at_once() -> None:
    """End the process without ending the interpreter, under which a thread that loads torch would abort with a core
    dump. The last of all that is done at exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def ready_as_json(peer_id: str, maddrs: Sequence[Multiaddr], experts: Sequence[str]) -> str:
    """What a program that started us needs."""
    return json.dumps({"peer_id": peer_id, "addresses": [str(maddr) for maddr in maddrs], "experts": list(experts)})


def ready_as_text(peer_id: str, maddrs: Sequence[Multiaddr], experts: Sequence[str]) -> str:
    """What a person who started us needs, in lines to paste."""
    addresses = [str(maddr) for maddr in maddrs]
    return "\n".join(
        [
            f"Server {peer_id} is up, at",
            *(f"  {address}" for address in addresses),
            f"It hosts {len(experts)} expert{'s'[: len(experts) != 1]}:",
            f"  {' '.join(experts)}",
            "Use them from Python:",
            f"  {python_line(addresses)}",
            f"  experts = hivemind_p2p.get_experts(dht, {json.dumps(list(experts[:2]))})",
            "Ctrl-C withdraws them and stops it.",
        ]
    )
