"""Remote calls as nodes of torch's autograd graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

WAKE = torch.empty(0, requires_grad=True, device="cpu")
"""An input that requires a gradient: without one, torch would leave out the backward pass of an expert none of whose
inputs needs a gradient; and with it the expert's own learning."""


class Exchange(Protocol):
    """How the inputs of one pass reach experts, and what comes back. All tensors are on the CPU and detached."""

    def forward(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """The outputs."""

    def backward(
        self, inputs: Sequence[torch.Tensor], grads: Sequence[torch.Tensor], needed: Sequence[bool]
    ) -> Sequence[torch.Tensor | None]:
        """The gradients of those inputs that need one."""


def exchange_with_experts(exchange: Exchange, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Pass inputs through an exchange; autograd passes the gradients back through it.

    Returns:
        The outputs, on the device of the first input.
    """
    outputs: tuple[torch.Tensor, ...] = _RemotePass.apply(WAKE, exchange, *inputs)  # type: ignore[no-untyped-call]
    return outputs


class _RemotePass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, wake: torch.Tensor, exchange: Exchange, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        on_cpu = [tensor.detach().cpu() for tensor in inputs]
        device = inputs[0].device
        outputs = tuple(tensor.to(device) for tensor in exchange.forward(on_cpu))
        ctx.exchange, ctx.device = exchange, device
        # The inputs themselves where they are what was sent, so that torch notices when they are changed in place.
        ctx.save_for_backward(
            *(mine if mine.device.type == "cpu" else sent for mine, sent in zip(inputs, on_cpu, strict=True))
        )
        ctx.input_devices = [tensor.device for tensor in inputs]
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        will_be_differentiated = torch.is_grad_enabled()
        needed = ctx.needs_input_grad[2:]
        with torch.no_grad():
            inputs = [tensor.detach() for tensor in ctx.saved_tensors]
            on_cpu = [grad.detach().cpu() for grad in grads]
            found = ctx.exchange.backward(inputs, on_cpu, needed)
            grads_of_inputs = [
                None if grad is None else grad.to(device) for grad, device in zip(found, ctx.input_devices, strict=True)
            ]
        if will_be_differentiated:
            grads_of_inputs = [grad if grad is None else _once(grad) for grad in grads_of_inputs]
        return (None, None, *grads_of_inputs)


def _once(grad: torch.Tensor) -> torch.Tensor:
    once: torch.Tensor = _Once.apply(WAKE, grad)  # type: ignore[no-untyped-call]
    return once


class _Once(torch.autograd.Function):
    """A gradient that came over the network, and has no derivative of its own."""

    @staticmethod
    def forward(ctx: Any, wake: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> None:
        raise RuntimeError(
            "second derivatives do not pass through remote experts: their servers compute first derivatives only. "
            "Keep what needs a gradient of a gradient (a gradient penalty, say) on local modules"
        )
