"""Options of ``hivemind-p2p server``, one for each of :class:`~hivemind_p2p.config.HostingSettings`, in its words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from hivemind_p2p.cli.options import setting
from hivemind_p2p.config import HostingSettings

_DEFAULTS = HostingSettings()
_GIB = 2**30


def _option(name: str, panel: str, text: str, *, default: object = None, metavar: str | None = None) -> Any:
    """The option of a setting; its help tells ``default``, or else what the setting is by itself."""
    value = getattr(_DEFAULTS, name)
    if default is None and value is not None and value != ():
        default = _shown(value)
    return setting(text, panel, default=default, metavar=metavar)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and value >= _GIB:
        return f"{value}, {value / _GIB:g} GiB"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _experts(name: str, text: str, **options: Any) -> Any:
    return _option(name, "Experts", text, **options)


def _computing(name: str, text: str, **options: Any) -> Any:
    return _option(name, "Computing", text, **options)


def _learning(name: str, text: str, **options: Any) -> Any:
    return _option(name, "Learning", text, **options)


def _keeping(name: str, text: str, **options: Any) -> Any:
    return _option(name, "Keeping what was learned", text, **options)


ExpertUids = Annotated[list[str] | None, _experts("expert_uids", "Host exactly these.", metavar="UID...")]
NumExperts = Annotated[
    int | None, _experts("num_experts", "Host so many, under free uids of --expert-pattern.", default=1)
]
ExpertPattern = Annotated[
    str | None,
    _experts(
        "expert_pattern", "Uids to draw from: ffn.[0:16].[0:16] is a grid of 256.", default="<--expert-cls>.[0:4096]"
    ),
]
ExpertCls = Annotated[str | None, _experts("expert_cls", "ffn, transformer, nop, or one of --custom-module-path.")]
CustomModulePath = Annotated[
    Path | None, _experts("custom_module_path", "Python file that registers expert classes of yours.", metavar="FILE")
]
HiddenDim = Annotated[int | None, _experts("hidden_dim", "Size of the last axis of inputs and outputs.")]
Compression = Annotated[str | None, _experts("compression", "How tensors travel: NONE, FLOAT16, UNIFORM_8BIT, ...")]
UpdatePeriod = Annotated[float | None, _experts("update_period", "Seconds between two declarations in the swarm.")]

Device = Annotated[
    list[str] | None,
    _computing(
        "device", "cpu, cuda, cuda:1, ...; several share the experts.", default="cuda where there is one, else cpu",
        metavar="DEVICE...",
    ),
]  # fmt: skip
MinBatchSize = Annotated[int | None, _computing("min_batch_size", "Rows that a batch waits for.")]
MaxBatchSize = Annotated[
    int | None, _computing("max_batch_size", "Rows that a batch never exceeds; larger requests run in pieces.")
]
BatchWaitTimeoutS = Annotated[
    float | None, _computing("batch_wait_timeout_s", "Seconds that a batch waits for --min-batch-size rows.")
]
MaxQueueTasks = Annotated[
    int | None,
    _computing("max_queue_tasks", "Requests that may wait for an expert in each direction; more are refused."),
]
MaxRequestBytes = Annotated[
    int | None, _computing("max_request_bytes", "Bytes of the largest request, all its tensors together.")
]
MaxPendingBytes = Annotated[
    int | None, _computing("max_pending_bytes", "Bytes of all requests that are here at once; more are refused.")
]
DetectAnomalies = Annotated[
    bool | None, _computing("detect_anomalies", "Refuse inputs, outputs and gradients with NaN or infinity.")
]
Autocast = Annotated[bool | None, _computing("autocast", "Compute in bfloat16 what torch considers safe.")]
Compile = Annotated[
    bool | None,
    _computing("compile", "Compute with torch.compile: needs a C++ compiler, and a minute at first."),
]

Optimizer = Annotated[
    str | None, _learning("optimizer", "What a backward request does to the weights: adam, sgd or none.")
]
Lr = Annotated[float | None, _learning("lr", "Learning rate.", default="1e-3 for adam, 1e-2 for sgd")]
Scheduler = Annotated[
    str | None,
    _learning(
        "scheduler", "The learning rate: none: it stays; linear: it rises from 0 for --num-warmup-steps, then falls to "
        "0 at --num-training-steps.",
    ),
]  # fmt: skip
NumWarmupSteps = Annotated[
    int | None, _learning("num_warmup_steps", "Steps over which the learning rate of linear rises; may be 0.")
]
NumTrainingSteps = Annotated[
    int | None, _learning("num_training_steps", "Steps, in all, after which the learning rate of linear is 0.")
]
ClipGradNorm = Annotated[
    float | None,
    _learning("clip_grad_norm", "Largest norm of an expert's gradient; it is scaled down to it.", default="no limit"),
]
GradientAccumulationSteps = Annotated[
    int | None, _learning("gradient_accumulation_steps", "Backward batches that are added up for one step.")
]
DelayedStep = Annotated[
    bool | None, _learning("delayed_step", "Answer a backward batch first, and make its step then.")
]
UndoExplodedSteps = Annotated[
    bool | None,
    _learning("undo_exploded_steps", "Take steps back that leave NaN or infinity in weights; costs a copy of them."),
]

CheckpointDir = Annotated[
    Path | None,
    _keeping(
        "checkpoint_dir", "Save experts here, and go on from what is here.", default="nothing is saved", metavar="DIR"
    ),
]
CheckpointPeriod = Annotated[float | None, _keeping("checkpoint_period", "Seconds between two times of saving.")]
CheckpointsKept = Annotated[int | None, _keeping("checkpoints_kept", "Checkpoints of each expert that stay.")]
Replicate = Annotated[
    bool | None,
    _keeping("replicate", "Begin with the states of living replicas of these experts, if they have learned more."),
]
