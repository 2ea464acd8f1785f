"""``Server``: hosts experts in a swarm. Names and meaning are those of ``hivemind.moe.Server``."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeAlias

import torch
from multiaddr import Multiaddr

from hivemind_p2p.config import HostingSettings
from hivemind_p2p.errors import ConfigError, NodeClosed
from hivemind_p2p.runtime import Checkpoints, ExpertBackend, Runtime
from hivemind_p2p.server.expert_classes import load_expert_classes
from hivemind_p2p.server.handler import ConnectionHandler
from hivemind_p2p.server.hosting import hosting
from hivemind_p2p.server.recipe import (
    ExpertRecipe,
    MakeOptimizer,
    compression_type,
    optimizer_maker,
    scheduler_maker,
)
from hivemind_p2p.server.saving import Saver
from hivemind_p2p.server.uids import draw_uids, grid_for, saved_uids
from hivemind_p2p.sync import DHT, Held, portal
from hivemind_p2p.wire.expert_uid import check_uid
from hivemind_p2p.wire.peer_id import PeerID

logger = logging.getLogger(__name__)
Devices: TypeAlias = "torch.device | str | Sequence[torch.device | str] | None"

_UNSET: Final[Any] = object()
_WITHOUT_MEANING: Final = {
    "num_handlers": "one thread answers all requests",
    "num_connection_handlers": "one thread answers all requests",
    "stats_report_interval": "read server.experts[uid].forward_pool.stats instead",
}


class PeerInfo(NamedTuple):
    """Who a peer is, and addresses for others' ``initial_peers``."""

    peer_id: PeerID
    addrs: list[Multiaddr]


class Server:
    """Hosts experts: answers requests, trains, and keeps the experts declared in the DHT.

    :meth:`create` makes one with experts of a registered class. A server starts once, in the background, and ends with
    :meth:`shutdown` or with the program. It may be used as ``with server:``.

    Args:
        dht: the peer that hosts; started with the server if it was not. One peer has one server.
        experts: by uid.
        update_period: seconds between two declarations.
        expiration: seconds that a declaration lasts. Default: twice ``update_period``.
        device: where experts compute; several, ``["cuda:0", "cuda:1"]``, share them and have a thread each. None: where
            each module is.
        start: start now and wait until it is ready.
        max_request_bytes: the largest request, all its tensors together as they travel.
        max_pending_bytes: the most bytes of requests that are being received or wait to be computed; beyond it they
            are refused.
        checkpoint_dir: where experts are saved, and from where those that are there go on. One server has a directory.
        checkpoint_period: seconds between two times of saving those that have learned. They are saved at the end, too.
        checkpoints_kept: so many of each expert stay.
        replicate: experts that other servers serve as well begin with the state of the one that has learned the most,
            if that is more than they themselves have.

    Attributes:
        dht, experts: what was given.
        ready: a :class:`threading.Event`, set while requests are answered.

    Raises:
        InvalidUID: a uid is none.
        ConfigError: arguments contradict each other, or the peer hosts a server already.
        CheckpointError: there is no expert like these in the checkpoints, or they cannot be read or written.
    """

    def __init__(
        self,
        dht: DHT,
        experts: Mapping[str, ExpertBackend],
        *,
        update_period: float = 30.0,
        expiration: float | None = None,
        device: Devices = None,
        start: bool = False,
        max_request_bytes: int = HostingSettings.max_request_bytes,
        max_pending_bytes: int = HostingSettings.max_pending_bytes,
        checkpoint_dir: str | Path | None = None,
        checkpoint_period: float = HostingSettings.checkpoint_period,
        checkpoints_kept: int = HostingSettings.checkpoints_kept,
        replicate: bool = False,
    ) -> None:
        self.dht, self.experts = dht, dict(experts)
        for uid, expert in self.experts.items():
            if check_uid(uid) != expert.name:
                raise ConfigError(f"the expert named {expert.name} is given as {uid}; use one uid for both")
        if update_period <= 0 or (expiration is not None and expiration <= update_period):
            raise ConfigError(
                f"update_period = {update_period} must be above 0, and expiration = {expiration} above it: experts "
                "would be forgotten between two declarations"
            )
        self.update_period = update_period
        self.expiration = 2 * update_period if expiration is None else expiration
        self.devices = _devices(device)
        self.ready = threading.Event()
        self._handler = ConnectionHandler(
            self.experts, max_request_bytes=max_request_bytes, max_pending_bytes=max_pending_bytes
        )
        self._replicate, self._saver = replicate, None
        if checkpoint_dir is not None:
            checkpoints = Checkpoints(checkpoint_dir, kept=checkpoints_kept)
            self._saver = Saver(checkpoints, self.experts, period=checkpoint_period)
            self._saver.load()
        self._owns_dht = False
        self._held: Held[tuple[Runtime, ...]] | None = None
        if start:
            self.run_in_background()

    @classmethod
    def create(
        cls,
        *,
        start: bool,
        num_experts: int | None = None,
        expert_uids: Sequence[str] | None = None,
        expert_pattern: str | None = None,
        expert_cls: str = "ffn",
        hidden_dim: int = 1024,
        optimizer: str | None = None,
        lr: float | None = None,
        optim_cls: MakeOptimizer | None = _UNSET,
        scheduler: str = "none",
        num_warmup_steps: int | None = None,
        num_training_steps: int | None = None,
        clip_grad_norm: float | None = None,
        gradient_accumulation_steps: int = 1,
        delayed_step: bool = False,
        undo_exploded_steps: bool = True,
        detect_anomalies: bool = True,
        autocast: bool = False,
        compile: bool | Mapping[str, Any] = False,  # noqa: A002  # torch's word
        min_batch_size: int = 1,
        max_batch_size: int = 4096,
        batch_wait_timeout_s: float = HostingSettings.batch_wait_timeout_s,
        max_queue_tasks: int = HostingSettings.max_queue_tasks,
        device: Devices = None,
        compression: int | str = "NONE",
        custom_module_path: str | Path | None = None,
        update_period: float = 30.0,
        expiration: float | None = None,
        max_request_bytes: int = HostingSettings.max_request_bytes,
        max_pending_bytes: int = HostingSettings.max_pending_bytes,
        checkpoint_dir: str | Path | None = None,
        checkpoint_period: float = HostingSettings.checkpoint_period,
        checkpoints_kept: int = HostingSettings.checkpoints_kept,
        replicate: bool = False,
        dht: DHT | None = None,
        **dht_options: Any,
    ) -> Self:
        """A server of experts that are all alike.

        Args:
            start: start it and wait until it is ready.
            expert_uids: host exactly these. Instead of ``num_experts`` and ``expert_pattern``.
            num_experts: host so many, under free uids of ``expert_pattern``. Default: 1.
            expert_pattern: ``ffn.[0:16].[0:16]`` is a grid of 256. Default: ``<expert_cls>.[0:4096]``.
            expert_cls: a registered class: ``ffn``, ``transformer``, ``nop``, or one of your own.
            hidden_dim: what its constructor is given.
            optimizer, lr: ``adam`` (the default, 1e-3), ``sgd`` (1e-2) or ``none``.
            optim_cls: instead of them: makes an optimizer of parameters, as hivemind has it. None: no learning.
            scheduler: ``none``, or ``linear`` with ``num_warmup_steps`` and ``num_training_steps``.
            clip_grad_norm: the largest norm of an expert's gradient; a larger one is scaled down.
            gradient_accumulation_steps, delayed_step, undo_exploded_steps, detect_anomalies, autocast, compile: see
                :class:`~hivemind_p2p.runtime.ExpertBackend`.
            min_batch_size: rows that a batch waits for.
            max_batch_size: rows that a batch never exceeds; a larger request runs in pieces.
            batch_wait_timeout_s: seconds that a batch of less than ``min_batch_size`` rows waits for more.
            max_queue_tasks: requests that may wait for an expert in each direction; more are refused.
            device: where experts compute; see :class:`Server`. Default: ``cuda`` where there is one, else ``cpu``.
            compression: of all inputs, outputs and gradients that are floats: ``"FLOAT16"``, or a number of
                ``CompressionType``.
            custom_module_path: a Python file that registers expert classes, run first.
            update_period, expiration, max_request_bytes, max_pending_bytes, checkpoint_period, checkpoints_kept,
                replicate: see :class:`Server`.
            checkpoint_dir: see there. Experts that were saved there and fit ``expert_pattern`` are hosted again, before
                free uids are drawn.
            dht: the peer that hosts; it stays yours. Default: one of its own, which ends with the server.
            dht_options: arguments of that :class:`~hivemind_p2p.DHT`: ``initial_peers``, ``host_maddrs``, ...

        Raises:
            ConfigError, InvalidUID: something in the arguments.
            IdentityError, ListenError, BootstrapError: its DHT cannot start.
        """
        for name in dht_options.keys() & _WITHOUT_MEANING.keys():
            raise ConfigError(f"Server.create({name}=...) has no meaning here: {_WITHOUT_MEANING[name]}; leave it away")
        if dht is not None and dht_options:
            raise ConfigError(f"{', '.join(dht_options)}: give these to the dht, which is given")
        if optim_cls is not _UNSET and not (optimizer is None and lr is None):
            raise ConfigError("optim_cls already makes the optimizer; leave optimizer and lr away")
        wanted = HostingSettings(
            expert_uids=tuple(map(check_uid, expert_uids or ())),
            num_experts=num_experts,
            expert_pattern=expert_pattern,
            expert_cls=expert_cls,
            hidden_dim=hidden_dim,
            optimizer="none" if optim_cls is None else optimizer or "adam",  # type: ignore[arg-type]  # names are
            lr=lr,
            clip_grad_norm=clip_grad_norm,
            scheduler=scheduler,  # type: ignore[arg-type]  # checked below
            num_warmup_steps=num_warmup_steps,
            num_training_steps=num_training_steps,
            gradient_accumulation_steps=gradient_accumulation_steps,
            delayed_step=delayed_step,
            detect_anomalies=detect_anomalies,
            min_batch_size=min_batch_size,
            max_batch_size=max_batch_size,
            batch_wait_timeout_s=batch_wait_timeout_s,
            max_queue_tasks=max_queue_tasks,
            checkpoint_period=checkpoint_period,
            checkpoints_kept=checkpoints_kept,
        )
        if custom_module_path is not None:
            load_expert_classes(custom_module_path)
        devices = _devices(device) or _devices("cuda" if torch.cuda.is_available() else "cpu")
        count = num_experts or 1
        grid = None if wanted.expert_uids else grid_for(count, expert_pattern or f"{expert_cls}.[0:4096]")
        own_dht = DHT(start=False, **dht_options) if dht is None else None
        try:
            if own_dht is not None:
                own_dht.run_in_background(await_ready=False)  # joins, while the first expert is made
            recipe = ExpertRecipe(
                expert_cls,
                hidden_dim,
                make_optimizer=optimizer_maker(optimizer or "adam", lr) if optim_cls is _UNSET else optim_cls,
                make_scheduler=scheduler_maker(scheduler, num_warmup_steps, num_training_steps),
                compression=compression_type(compression),
                clip_grad_norm=clip_grad_norm,
                gradient_accumulation_steps=gradient_accumulation_steps,
                delayed_step=delayed_step,
                undo_exploded_steps=undo_exploded_steps,
                detect_anomalies=detect_anomalies,
                autocast=autocast,
                compile=compile,
                min_batch_size=min_batch_size,
                max_batch_size=max_batch_size,
                batch_wait_timeout_s=batch_wait_timeout_s,
                max_queue_tasks=max_queue_tasks,
            )
            if own_dht is not None:
                own_dht.wait_until_ready()
            peer = dht or own_dht
            assert peer is not None
            saved = () if grid is None or checkpoint_dir is None else saved_uids(checkpoint_dir, count, grid)
            uids = wanted.expert_uids if grid is None else [*saved, *draw_uids(peer, count - len(saved), grid, saved)]
            server = cls(
                peer,
                {uid: recipe.backend(uid) for uid in uids},
                update_period=update_period,
                expiration=expiration,
                device=devices,
                max_request_bytes=max_request_bytes,
                max_pending_bytes=max_pending_bytes,
                checkpoint_dir=checkpoint_dir,
                checkpoint_period=checkpoint_period,
                checkpoints_kept=checkpoints_kept,
                replicate=replicate,
            )
            server._owns_dht = dht is None
            if start:
                server.run_in_background()
        except BaseException:
            if own_dht is not None:
                own_dht.shutdown()
            raise
        return server

    def run_in_background(self, await_ready: bool = True, timeout: float | None = None) -> None:
        """Start; with ``await_ready``, wait until requests are answered and the experts are declared.

        Raises:
            NodeClosed: it was started before; make a new server.
            TimeoutError: it takes longer than ``timeout`` seconds; it goes on starting.
            ConfigError: the device cannot be used, or the peer hosts a server already.
        """
        if self._held is not None:
            raise NodeClosed("this server was started before; make a new one instead of starting one twice")
        if not self.dht.is_alive():
            self.dht.run_in_background()
        self._held = portal().hold(self._host())
        if await_ready:
            self._held.value(timeout)

    @asynccontextmanager
    async def _host(self) -> AsyncIterator[tuple[Runtime, ...]]:
        try:
            async with hosting(
                self.dht.node,  # and with self, the DHT stays as long as this runs, whoever forgets it
                self.experts,
                self._handler,
                devices=self.devices,
                update_period=self.update_period,
                expiration=self.expiration,
                saver=self._saver,
                replicate=self._replicate,
            ) as runtimes:
                self.ready.set()
                try:
                    yield runtimes
                finally:
                    self.ready.clear()
        finally:
            if self._saver is not None:
                self._saver.checkpoints.unlock()

    def shutdown(self) -> None:
        """Withdraw the experts, let requests under way finish, and stop; then its own DHT. Bounded in time."""
        try:
            if self._held is not None and not self._held.closed:
                self._held.close()
        finally:
            if self._owns_dht:
                self.dht.shutdown()

    def is_alive(self) -> bool:
        """Whether it is starting or running."""
        return self._held is not None and not self._held.closed

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has stopped, at most ``timeout`` seconds."""
        if self._held is not None and not self._held.closed:
            self._held.wait_closed(timeout)

    def __enter__(self) -> Self:
        if self._held is None:
            self.run_in_background()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def __repr__(self) -> str:
        state = "ready" if self.ready.is_set() else "starting" if self.is_alive() else "not running"
        return f"<Server of {len(self.experts)} experts, {state}: {self._handler!r} on {self.dht!r}>"


def _devices(given: Devices) -> tuple[torch.device, ...]:
    if given is None:
        return ()
    devices: list[torch.device] = []
    for each in (given,) if isinstance(given, torch.device | str) else given:
        try:
            device = torch.device(each)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"device {each} cannot be used: {reason}; say cpu, cuda or cuda:1") from None
        if device in devices:
            raise ConfigError(f"device {each} is given twice; one thread computes on it, name it once")
        devices.append(device)
    return tuple(devices)


@contextmanager
def background_server(**options: Any) -> Iterator[PeerInfo]:
    """A server for as long as the block lasts: ``with background_server(expert_uids=["ffn.0"]) as peer:``.

    Args:
        options: of :meth:`Server.create`, without ``start``.

    Yields:
        Its peer id and addresses, for ``DHT(initial_peers=peer.addrs)``. hivemind's runs in a process of its own, this
        one in this process's background.
    """
    with Server.create(start=True, **options) as server:
        yield PeerInfo(server.dht.peer_id, server.dht.get_visible_maddrs())
