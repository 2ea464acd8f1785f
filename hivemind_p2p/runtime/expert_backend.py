"""An expert: a torch module, its optimizer, and the pools in which requests to it wait."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hivemind_p2p.errors import AnomalyDetected, ConfigError, ExpertFailed
from hivemind_p2p.runtime.finite import all_finite
from hivemind_p2p.runtime.memory import Tensors, make_ordinary, own, to_device, to_host
from hivemind_p2p.runtime.pool import Abandoned, TaskPool, always
from hivemind_p2p.runtime.schema import BatchTensorDescriptor, Schema
from hivemind_p2p.runtime.training import Training
from hivemind_p2p.wire.nested import nested_flatten, nested_map, nested_pack

DUMMY_BATCH_SIZE = 3
"""Rows of the sample with which a module is asked what it gives."""


class ExpertBackend:
    """A module that answers two kinds of requests: outputs for inputs, and input gradients for inputs with output
    gradients, of which it also learns. hivemind 1.1 calls it ``ModuleBackend``.

    All inputs and outputs are tensors whose first dimension is the batch, and rows do not influence each other, or as
    little as in batch normalisation: requests of several callers are computed together, large ones in pieces of at
    most ``max_batch_size`` rows. As in hivemind, the module stays in the mode (``train()``, ``eval()``) in which it is
    given, and a backward request computes the module again: what it draws at random is not the same in both, unless
    it is an input.

    Numbers that are not finite stop at every door: in what a request brings (before it waits), in what the module
    gives, in the gradients of the weights, and in the weights after a step, which is then undone. So one bad request
    cannot destroy the weights, and nobody is sent garbage.

    Args:
        name: the uid of the expert.
        module: what computes. Forward requests run under ``torch.inference_mode``.
        args_schema: descriptors of the positional inputs, possibly nested; or samples, tensors like them.
        kwargs_schema: of the keyword inputs.
        outputs_schema: descriptors of the outputs, possibly nested. Default: what the module gives for zeros; its
            buffers are then as they were.
        optimizer: makes one step per batch of backward requests. Without one, the module stays as it is and gradients
            of its weights are not computed.
        scheduler: makes a step after each step of the optimizer.
        clip_grad_norm: the largest norm of the gradient of all weights; a larger one is scaled down.
        gradient_accumulation_steps: backward batches whose gradients are added up for one step.
        delayed_step: answer a backward batch first, and make its step then, before anything else is computed.
        undo_exploded_steps: see :class:`~hivemind_p2p.runtime.training.Training`.
        autocast: compute in bfloat16 what torch considers safe (``torch.autocast``); weights, gradients and what
            travels keep their dtypes.
        compile: compute with ``torch.compile``: True, or its arguments, such as ``{"backend": "eager"}``. It is
            compiled when it first computes, which may take a minute.
        detect_anomalies: refuse inputs, outputs and gradients with NaN or infinity. Say False if they have a meaning,
            as in masks that are added.
        min_batch_size: rows that a batch waits for; see ``batch_wait_timeout_s``.
        max_batch_size: rows that the module is given at once, at most.
        batch_wait_timeout_s: seconds that a batch of less than ``min_batch_size`` rows waits for more.
        max_queue_tasks: the most requests that may wait in each pool.
        max_queue_rows: the most rows that may wait in each pool. Default: 16 of the largest batches, and at least
            4096.

    Attributes:
        training: how it learns.

    Raises:
        ConfigError: the arguments contradict each other, or outputs of the module are not tensors with a batch.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        *,
        args_schema: Sequence[Any] = (),
        kwargs_schema: Mapping[str, Any] | None = None,
        outputs_schema: Any = None,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        clip_grad_norm: float | None = None,
        gradient_accumulation_steps: int = 1,
        delayed_step: bool = False,
        undo_exploded_steps: bool = True,
        autocast: bool = False,
        compile: bool | Mapping[str, Any] = False,  # noqa: A002  # torch's word
        detect_anomalies: bool = True,
        min_batch_size: int = 1,
        max_batch_size: int = 4096,
        batch_wait_timeout_s: float = 0.1,
        max_queue_tasks: int = 1024,
        max_queue_rows: int | None = None,
    ) -> None:
        if not args_schema and not kwargs_schema:
            raise ConfigError(f"expert {name} takes no inputs; give args_schema or kwargs_schema")
        self.name = name
        self.device: torch.device | None = None
        self.training = Training(
            name,
            module,
            optimizer,
            scheduler,
            clip_grad_norm=clip_grad_norm,
            accumulation_steps=gradient_accumulation_steps,
            undo_exploded=undo_exploded_steps,
        )
        self.max_batch_size, self.detect_anomalies = max_batch_size, detect_anomalies
        self.autocast, self._compute = autocast, module.__call__
        if compile:
            options = {"dynamic": True} | (dict(compile) if isinstance(compile, Mapping) else {})
            self._compute = torch.compile(module, **options)

        self.args_schema = tuple(nested_map(_described, args_schema))
        self.kwargs_schema = {key: nested_map(_described, each) for key, each in (kwargs_schema or {}).items()}
        self.forward_schema = (self.args_schema, self.kwargs_schema)
        self.outputs_schema = self._ask_module() if outputs_schema is None else outputs_schema
        self._inputs = _schema(self.forward_schema, _input_names(self.args_schema, self.kwargs_schema))
        self._outputs = _schema(self.outputs_schema, [f"output {i}" for i in range(_count(self.outputs_schema))])
        self._inputs_and_grads = Schema(
            self._inputs.descriptors + self._outputs.descriptors,
            self._inputs.names + tuple(f"the gradient of {output}" for output in self._outputs.names),
        )

        limits: dict[str, Any] = {
            "detect_anomalies": detect_anomalies,
            "min_batch_size": min_batch_size,
            "max_batch_size": max_batch_size,
            "batch_wait_timeout_s": batch_wait_timeout_s,
            "max_tasks": max_queue_tasks,
            "max_rows": max(16 * max_batch_size, 4096) if max_queue_rows is None else max_queue_rows,
        }
        self.forward_pool = TaskPool(f"{name}_forward", self.forward, self._inputs, self._outputs, **limits)
        self.backward_pool = TaskPool(
            f"{name}_backward",
            self.gradients,
            self._inputs_and_grads,
            self._inputs,
            finish=self.on_backward,
            finish_later=delayed_step,
            **limits,
        )

    def to(self, device: torch.device) -> None:
        """Move the module, and what its optimizer remembers, to a device, and compute there from now on.

        Raises:
            ConfigError: torch cannot move parameters there, only make new ones, of which the optimizer knows nothing.
        """
        before = set(self.module.parameters())
        self.module.to(device)
        if self.optimizer is not None and not before.issuperset(self.module.parameters()):
            raise ConfigError(
                f"expert {self.name} has other parameters on {device} than its optimizer learns; move the module there "
                "before you make its optimizer, and give the Runtime no device"
            )
        self.device = device
        if self.optimizer is not None and self.optimizer.state:
            self.optimizer.load_state_dict(self.optimizer.state_dict())  # moves it to where the parameters are
        self.training.accumulated = self.training.accumulated  # so does this

    def forward(self, *inputs: torch.Tensor, still_wanted: Callable[[], bool] = always) -> Tensors:
        """Outputs for inputs. For the Runtime; everybody else submits to ``forward_pool``.

        Args:
            inputs: ``nested_flatten((args, kwargs))``, in main memory, of one batch size.
            still_wanted: asked before each piece of a batch above ``max_batch_size``.

        Returns:
            ``nested_flatten`` of the outputs, in main memory that nobody else uses.

        Raises:
            ExpertFailed: the module gave something else than the outputs that its schema promises.
            AnomalyDetected: it gave NaN or infinity.
            Abandoned: the outputs are not wanted any more.
        """
        if len(inputs[0]) == 0:
            return self._outputs.make_zeros(0)
        return self._in_pieces(self._forward_piece, inputs, still_wanted)

    def gradients(self, *inputs_and_grads: torch.Tensor, still_wanted: Callable[[], bool] = always) -> Tensors:
        """Input gradients for inputs and output gradients. Those of the weights are gathered for :meth:`on_backward`.

        They add up over the pieces of a large batch. A batch that fails, or that is not wanted any more, leaves no
        trace in them. Arguments, return and errors are like those of :meth:`forward`; what has no gradient, such as an
        integer input, gets zeros.
        """
        if len(inputs_and_grads[0]) == 0:
            return self._inputs.make_zeros(0)
        make_ordinary(self.module)
        try:
            input_grads = self._in_pieces(self._backward_piece, inputs_and_grads, still_wanted)
            self.training.gather()
        finally:
            self.training.forget()
        return input_grads

    def backward(self, *inputs_and_grads: torch.Tensor) -> Tensors:
        """:meth:`gradients`, then :meth:`on_backward`."""
        input_grads = self.gradients(*inputs_and_grads)
        if len(inputs_and_grads[0]):
            self.on_backward(len(inputs_and_grads[0]))
        return input_grads

    def on_backward(self, batch_size: int) -> None:
        """Learn from the gradients that were gathered: clip, optimizer, scheduler.

        Args:
            batch_size: rows of the batch.
        """
        self.training.step(batch_size)

    @property
    def module(self) -> nn.Module:
        """What computes."""
        return self.training.module

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """What learns."""
        return self.training.optimizer

    @property
    def scheduler(self) -> torch.optim.lr_scheduler.LRScheduler | None:
        """What changes the learning rate."""
        return self.training.scheduler

    @property
    def update_count(self) -> int:
        """Steps of the optimizer."""
        return self.training.update_count

    @property
    def examples_processed(self) -> int:
        """Rows of which it learned."""
        return self.training.examples_processed

    @property
    def skipped_updates(self) -> int:
        """Requests of which it did not learn, and steps that were undone, because something was not finite."""
        return self.training.exploded_steps + self.backward_pool.stats.anomalies

    def info(self) -> dict[str, Any]:
        """What a client must know, for ``wire.msgpack``: the schemas, and the names of the keyword inputs."""
        to_wire = BatchTensorDescriptor.to_wire
        kwargs_schema = {key: nested_map(to_wire, each) for key, each in self.kwargs_schema.items()}  # unsorted
        return {
            "forward_schema": (nested_map(to_wire, self.args_schema), kwargs_schema),
            "outputs_schema": nested_map(to_wire, self.outputs_schema),
            "keyword_names": tuple(self.kwargs_schema),
        }

    def __repr__(self) -> str:
        return (
            f"<ExpertBackend {self.name}: {type(self.module).__name__} on {self.device or 'its own device'}, "
            f"{self.skipped_updates} updates skipped, {self.training!r}>"
        )

    def _in_pieces(
        self, function: Callable[[Tensors], Tensors], tensors: Tensors, still_wanted: Callable[[], bool]
    ) -> Tensors:
        count = -(-len(tensors[0]) // self.max_batch_size)
        if count == 1:
            return to_host(function(to_device(tensors, self.device)))
        results = []
        # Pieces of nearly the same size: a last one of a single row would be no batch to normalise over.
        for piece in zip(*(tensor.tensor_split(count) for tensor in tensors), strict=True):
            if not still_wanted():
                raise Abandoned
            results.append(to_host(function(to_device(piece, self.device))))
        return tuple(map(torch.cat, zip(*results, strict=True)))

    def _forward_piece(self, inputs: Tensors) -> Tensors:
        with torch.inference_mode():
            outputs = self._call(inputs)
            self._check_finite(outputs, self._outputs.names)
        # What the module did not make just now (its weights, a buffer) is not of this inference mode.
        return own((each if each.is_inference() else each.detach().clone() for each in outputs), inputs)

    def _backward_piece(self, inputs_and_grads: Tensors) -> Tensors:
        inputs = tuple(
            tensor.detach().requires_grad_(tensor.is_floating_point() or tensor.is_complex())
            for tensor in inputs_and_grads[: len(self._inputs)]
        )
        with torch.enable_grad():
            outputs = self._call(inputs)
        pairs = list(zip(outputs, inputs_and_grads[len(inputs) :], strict=True))
        differentiable = [output for output, _ in pairs if output.requires_grad]
        grads = [grad.to(output.device, output.dtype) for output, grad in pairs if output.requires_grad]
        # Without an optimizer nobody needs the gradients of the weights, which cost as much as those of the inputs.
        asked = [tensor for tensor in inputs if tensor.requires_grad] if self.optimizer is None else None
        if differentiable and asked != []:
            start = _Gradients.apply(grads, *differentiable)  # type: ignore[no-untyped-call]
            del outputs, pairs, differentiable  # what a backward does not need of them need not be there meanwhile
            start.backward(inputs=asked)
        input_grads = tuple(
            torch.zeros_like(tensor, requires_grad=False) if tensor.grad is None else tensor.grad for tensor in inputs
        )
        self._check_finite(input_grads, [f"the gradient of {name}" for name in self._inputs.names])
        return own(input_grads, inputs_and_grads)

    def _call(self, inputs: Tensors) -> Tensors:
        args, kwargs = nested_pack(inputs, self.forward_schema)
        device_type = (self.device or torch.device("cpu")).type
        with torch.autocast(device_type, torch.bfloat16) if self.autocast else contextlib.nullcontext():
            outputs = tuple(nested_flatten(self._compute(*args, **kwargs)))
        rows = len(inputs[0])
        if len(outputs) != len(self._outputs):
            raise ExpertFailed(f"expert {self.name} gave {len(outputs)} outputs, but promises {len(self._outputs)}")
        for output, name in zip(outputs, self._outputs.names, strict=True):
            if not isinstance(output, torch.Tensor) or output.dim() == 0 or len(output) != rows:
                got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
                raise ExpertFailed(f"{name} of expert {self.name} should have {rows} rows, as the inputs have: {got}")
        if self.autocast:
            outputs = tuple(o.to(like.dtype) for o, like in zip(outputs, self._outputs.descriptors, strict=True))
        for output, name, like in zip(outputs, self._outputs.names, self._outputs.descriptors, strict=True):
            if not like.fits(output):
                why = like.to_wire().mismatch(output.shape, str(output.dtype))
                raise ExpertFailed(f"{name} of expert {self.name} is not what its schema promises: {why}")
        return outputs

    def _check_finite(self, tensors: Tensors, names: Sequence[str]) -> None:
        if not self.detect_anomalies or all_finite(tensors):
            return
        bad = ", ".join(name for name, tensor in zip(names, tensors, strict=True) if not all_finite([tensor]))
        raise AnomalyDetected(f"{bad} of expert {self.name} would have NaN or infinity; is its training stable?")

    def _ask_module(self) -> Any:
        # Not under inference_mode: what a module makes once and keeps (a mask, a table of positions) must be fit for
        # a backward as well.
        args, kwargs = nested_map(lambda descriptor: descriptor.make_zeros(DUMMY_BATCH_SIZE), self.forward_schema)
        buffers = [
            (part, name, buffer, buffer.clone())
            for part in self.module.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None
        ]
        with torch.enable_grad():
            outputs = self.module(*args, **kwargs)
        with torch.no_grad():
            for part, name, buffer, before in buffers:
                part._buffers[name] = buffer.copy_(before)  # the module may have put another one there
        for output in nested_flatten(outputs):
            if not isinstance(output, torch.Tensor) or output.dim() == 0 or len(output) != DUMMY_BATCH_SIZE:
                raise ConfigError(
                    f"expert {self.name} must give tensors with as many rows as its inputs have; for "
                    f"{DUMMY_BATCH_SIZE} rows of zeros it gave {getattr(output, 'shape', type(output).__name__)}"
                )
        return nested_map(BatchTensorDescriptor.from_tensor, outputs)


class _Gradients(torch.autograd.Function):
    """A scalar whose backward pass begins with given gradients. ``torch.autograd.backward`` would do the same, but when
    it is given gradients it imports sympy, for shapes of which only torch's compiler knows: 3 seconds and 50 MiB.
    """

    @staticmethod
    def forward(ctx: Any, grads: list[torch.Tensor], *outputs: torch.Tensor) -> torch.Tensor:
        ctx.grads = grads
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (None, *ctx.grads)


def _described(like: BatchTensorDescriptor | torch.Tensor) -> BatchTensorDescriptor:
    if isinstance(like, BatchTensorDescriptor):
        return like
    if not isinstance(like, torch.Tensor) or like.dim() == 0:
        raise ConfigError(f"a schema is made of descriptors, or of tensors with a batch, not of {type(like).__name__}")
    return BatchTensorDescriptor(*like.shape[1:], dtype=like.dtype)


def _schema(structure: Any, names: Sequence[str]) -> Schema:
    return Schema(tuple(nested_flatten(structure)), names)


def _count(structure: Any) -> int:
    return sum(1 for _ in nested_flatten(structure))


def _input_names(args_schema: Any, kwargs_schema: Any) -> list[str]:
    named = nested_map(lambda _: None, (args_schema, kwargs_schema))
    return [f"input {i}" for i in range(_count(named[0]))] + [
        f"input {key}" for key in sorted(kwargs_schema) for _ in nested_flatten(kwargs_schema[key])
    ]
