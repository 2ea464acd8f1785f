"""``hivemind-p2p server``: hosts experts in the swarm of ``--initial-peers``."""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from hivemind_p2p.cli import hosting_options as hosting
from hivemind_p2p.cli import options
from hivemind_p2p.cli.bootstrap import python_line
from hivemind_p2p.cli.running import run_until_stopped, set_up_logging
from hivemind_p2p.config import HostingSettings, NodeSettings, Settings
from hivemind_p2p.errors import ConfigError

if TYPE_CHECKING:
    from multiaddr import Multiaddr

    from hivemind_p2p.server import Server


def server(
    initial_peers: options.InitialPeers = None,
    host_maddrs: options.HostMaddrs = None,
    announce_maddrs: options.AnnounceMaddrs = None,
    identity_path: options.IdentityPath = None,
    mdns: options.Mdns = None,
    expert_uids: hosting.ExpertUids = None,
    num_experts: hosting.NumExperts = None,
    expert_pattern: hosting.ExpertPattern = None,
    expert_cls: hosting.ExpertCls = None,
    custom_module_path: hosting.CustomModulePath = None,
    hidden_dim: hosting.HiddenDim = None,
    compression: hosting.Compression = None,
    update_period: hosting.UpdatePeriod = None,
    device: hosting.Device = None,
    min_batch_size: hosting.MinBatchSize = None,
    max_batch_size: hosting.MaxBatchSize = None,
    batch_wait_timeout_s: hosting.BatchWaitTimeoutS = None,
    max_queue_tasks: hosting.MaxQueueTasks = None,
    max_request_bytes: hosting.MaxRequestBytes = None,
    max_pending_bytes: hosting.MaxPendingBytes = None,
    detect_anomalies: hosting.DetectAnomalies = None,
    autocast: hosting.Autocast = None,
    compile: hosting.Compile = None,  # noqa: A002  # torch's word
    optimizer: hosting.Optimizer = None,
    lr: hosting.Lr = None,
    scheduler: hosting.Scheduler = None,
    num_warmup_steps: hosting.NumWarmupSteps = None,
    num_training_steps: hosting.NumTrainingSteps = None,
    clip_grad_norm: hosting.ClipGradNorm = None,
    gradient_accumulation_steps: hosting.GradientAccumulationSteps = None,
    delayed_step: hosting.DelayedStep = None,
    undo_exploded_steps: hosting.UndoExplodedSteps = None,
    checkpoint_dir: hosting.CheckpointDir = None,
    checkpoint_period: hosting.CheckpointPeriod = None,
    checkpoints_kept: hosting.CheckpointsKept = None,
    replicate: hosting.Replicate = None,
    config: options.Config = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Host experts until Ctrl-C or SIGTERM, which withdraws them from the swarm.

    Without --initial-peers it joins a swarm that it finds in its network (--no-mdns: not), or else starts one of its
    own, which others can join through it.
    """
    given = dict(locals())
    set_up_logging(verbose)
    settings = options.settings_from(
        config,
        {
            **{f"node.{each.name}": given[each.name] for each in fields(NodeSettings)},
            "nat.mdns": mdns,
            **{f"hosting.{each.name}": given[each.name] for each in fields(HostingSettings)},
        },
    )
    if settings.hosting.checkpoint_dir is None and not checkpoint_period is checkpoints_kept is None:
        raise ConfigError(
            "--checkpoint-period and --checkpoints-kept say how to save experts, and nothing says where: give "
            "--checkpoint-dir, too, or leave them away"
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
