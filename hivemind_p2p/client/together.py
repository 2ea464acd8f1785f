"""Several remote modules called at the same time, whose results do not depend on each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch

from hivemind_p2p.client.autograd import Exchange, exchange_with_experts
from hivemind_p2p.errors import ConfigError
from hivemind_p2p.sync import CallGroup


@dataclass(frozen=True)
class Prepared:
    """A call of a remote module, before anything was sent.

    Attributes:
        exchange: what carries it out, there and back.
        inputs: for the exchange.
        finish: makes the module's result of the exchange's outputs.
    """

    exchange: Exchange
    inputs: Sequence[torch.Tensor]
    finish: Callable[[Sequence[torch.Tensor]], Any]

    def run(self) -> Any:
        """Carry it out."""
        return self.finish(exchange_with_experts(self.exchange, self.inputs))


def call_together(*calls: partial[Any]) -> list[Any]:
    """Call remote modules at the same time, in the forward and in the backward pass::

        heads, tails = call_together(partial(expert_a, x), partial(mixture_b, x, mask=mask))

    takes as long as the slower one, not as both. The backward pass begins when the gradients of all results are there.

    Args:
        calls: of ``RemoteExpert`` and mixtures, with their inputs.

    Returns:
        What each call would return.

    Raises:
        ConfigError: something else is called.
        What the calls raise; the first of them, if several fail, and when all have ended.
    """
    if not calls:
        return []
    for call in calls:
        if not isinstance(call, partial) or not hasattr(call.func, "prepare"):
            raise ConfigError(f"call_together takes functools.partial(remote module, inputs...), not {call!r:.80}")
    prepared = [_prepare(call.func, call) for call in calls]
    together = _Together([each.exchange for each in prepared], [len(each.inputs) for each in prepared])
    outputs = exchange_with_experts(together, [tensor for each in prepared for tensor in each.inputs])
    return [
        each.finish([output.to(each.inputs[0].device) for output in its])
        for each, its in zip(prepared, _split(outputs, together.outputs), strict=True)
    ]


def _prepare(module: Any, call: partial[Any]) -> Prepared:
    prepared: Prepared = module.prepare(*call.args, **call.keywords)
    return prepared


class _Together:
    """The exchange of several; see :class:`~hivemind_p2p.client.autograd.Exchange`."""

    def __init__(self, exchanges: Sequence[Exchange], inputs: Sequence[int]) -> None:
        self._exchanges, self._inputs = exchanges, inputs
        self.outputs: list[int] = []

    def forward(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        results = self._all("forward", _split(inputs, self._inputs))
        self.outputs = [len(each) for each in results]
        return [tensor for each in results for tensor in each]

    def backward(
        self, inputs: Sequence[torch.Tensor], grads: Sequence[torch.Tensor], needed: Sequence[bool]
    ) -> Sequence[torch.Tensor | None]:
        parts = (_split(inputs, self._inputs), _split(grads, self.outputs), _split(needed, self._inputs))
        return [tensor for each in self._all("backward", *parts) for tensor in each]

    def _all(self, direction: str, *arguments: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
        """One thread waits for each; what they wait for happens in the portal, all at once."""
        group, count = CallGroup(), len(self._exchanges)
        with ThreadPoolExecutor(count, thread_name_prefix="call_together", initializer=group.enter) as threads:
            try:
                futures = [
                    threads.submit(getattr(exchange, direction), *its)
                    for exchange, *its in zip(self._exchanges, *arguments, strict=True)
                ]
                wait(futures)
            finally:
                group.cancel()  # KeyboardInterrupt comes to the thread that waits here, and to no other
        return [future.result() for future in futures]


def _split(items: Sequence[Any], counts: Sequence[int]) -> list[Sequence[Any]]:
    return [items[start:end] for start, end in pairwise(accumulate(counts, initial=0))]
