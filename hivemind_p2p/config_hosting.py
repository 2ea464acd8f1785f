"""What ``hivemind-p2p server`` hosts; a part of :mod:`~hivemind_p2p.config`, which says what holds for all settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hivemind_p2p.errors import ConfigError


@dataclass(frozen=True)
class HostingSettings:
    """Which experts ``hivemind-p2p server`` hosts, and how they compute and learn."""

    expert_uids: tuple[str, ...] = ()
    """Exactly these experts: ``ffn.0.0``, ``ffn.0.1``. Instead of ``num_experts``."""
    num_experts: int | None = None
    """How many to host, under free uids drawn from ``expert_pattern``. Default: 1, unless ``expert_uids`` are given."""
    expert_pattern: str | None = None
    """Uids to draw from: ``ffn.[0:16].[0:16]`` is a grid of 256. Default: ``<expert_cls>.[0:4096]``."""
    expert_cls: str = "ffn"
    """The registered class of the experts: ``ffn``, ``transformer``, ``nop``, or one of your own."""
    hidden_dim: int = 1024
    """Size of the last axis of inputs and outputs."""
    min_batch_size: int = 1
    """Rows that a batch waits for."""
    max_batch_size: int = 4096
    """Rows that a batch never exceeds; a larger request runs in pieces."""
    batch_wait_timeout_s: float = 0.1
    """Seconds that a batch of less than ``min_batch_size`` rows waits for more."""
    max_queue_tasks: int = 1024
    """Requests that may wait for an expert in each direction; more are refused at once."""
    device: tuple[str, ...] = ()
    """Where experts compute: ``cpu``, ``cuda``; several (``cuda:0``, ``cuda:1``) share them. Default: ``cuda`` where
    there is one, else ``cpu``."""
    optimizer: Literal["adam", "sgd", "none"] = "adam"
    """What a backward request does to the expert's weights; ``none`` leaves them as they are."""
    lr: float | None = None
    """Learning rate of the optimizer. Default: 1e-3 for ``adam``, 1e-2 for ``sgd``."""
    clip_grad_norm: float | None = None
    """Largest norm of an expert's gradient; a larger one is scaled down. None: no limit."""
    scheduler: Literal["none", "linear"] = "none"
    """The learning rate: ``linear`` rises for ``num_warmup_steps``, falls to 0 at ``num_training_steps``."""
    num_warmup_steps: int | None = None
    """Steps over which the learning rate of ``linear`` rises."""
    num_training_steps: int | None = None
    """Steps after which, in all, the learning rate of ``linear`` has fallen to 0."""
    gradient_accumulation_steps: int = 1
    """Backward batches whose gradients are added up for one step of the optimizer."""
    delayed_step: bool = False
    """Answer a backward batch before its step is made: sooner, but the step may still be under way then."""
    undo_exploded_steps: bool = True
    """Keep a copy of the weights during each step, for the case that it makes one of them NaN or infinity."""
    autocast: bool = False
    """Compute in bfloat16 what torch considers safe; weights, gradients and what travels keep their dtypes."""
    compile: bool = False
    """Compute with ``torch.compile``, which needs a C++ compiler and a minute when it first computes."""
    detect_anomalies: bool = True
    """Refuse inputs, outputs and gradients with NaN or infinity."""
    compression: str = "NONE"
    """How inputs, outputs and gradients travel, where they are floats; a name of the wire's ``CompressionType``."""
    custom_module_path: Path | None = None
    """A Python file that registers expert classes of your own; it is run first."""
    checkpoint_dir: Path | None = None
    """Where experts are saved, and from where they go on at the next start. One server has a directory."""
    checkpoint_period: float = 60.0
    """Seconds between two times of saving the experts that have learned."""
    checkpoints_kept: int = 3
    """So many checkpoints of each expert stay, the newest."""
    replicate: bool = False
    """Begin with the states of other servers' experts of the same uids, where they have learned more."""
    update_period: float = 30.0
    """Seconds between two declarations of the experts in the swarm, which forgets them after twice that."""
    max_request_bytes: int = 2**30
    """The largest request, all its tensors together as they travel."""
    max_pending_bytes: int = 2**32
    """The most bytes of requests that are being received or wait to be computed; beyond it they are refused."""

    def __post_init__(self) -> None:
        if self.expert_uids and (self.num_experts is not None or self.expert_pattern is not None):
            raise ConfigError(
                "expert_uids already say which experts to host; leave num_experts and expert_pattern away"
            )
        above_zero = (
            "num_experts", "hidden_dim", "min_batch_size", "max_batch_size", "lr", "clip_grad_norm", "update_period",
            "max_queue_tasks", "gradient_accumulation_steps", "num_training_steps", "checkpoint_period",
            "checkpoints_kept", "max_request_bytes", "max_pending_bytes",
        )  # fmt: skip
        for name in above_zero:
            value = getattr(self, name)
            if value is not None and not value > 0:  # NaN is not
                raise ConfigError(f"{name} = {value} must be above 0")
        self._check_learning()
        if not self.batch_wait_timeout_s >= 0:
            raise ConfigError(f"batch_wait_timeout_s = {self.batch_wait_timeout_s} must be at least 0")
        if self.min_batch_size > self.max_batch_size:
            raise ConfigError(f"min_batch_size = {self.min_batch_size} is above max_batch_size = {self.max_batch_size}")

    def _check_learning(self) -> None:
        warmup, total = self.num_warmup_steps, self.num_training_steps
        if self.scheduler == "linear" and (warmup is None or total is None or not 0 <= warmup < total):
            raise ConfigError(
                f"scheduler = 'linear' needs 0 <= num_warmup_steps < num_training_steps, not {warmup} and {total}"
            )
        if self.scheduler == "none" and not warmup is total is None:
            raise ConfigError(
                f"num_warmup_steps = {warmup} and num_training_steps = {total} are of scheduler = 'linear', and there "
                "is no scheduler; say that, too, or leave them away"
            )
        if self.optimizer != "none":
            return
        for name in (
            "lr", "clip_grad_norm", "scheduler", "gradient_accumulation_steps", "delayed_step"
        ):  # fmt: skip
            if (value := getattr(self, name)) != getattr(type(self), name):
                raise ConfigError(
                    f"{name} = {value!r} has no meaning without an optimizer, as experts of optimizer = 'none' do not "
                    "learn; leave one of them away"
                )
