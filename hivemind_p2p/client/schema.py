"""What an expert takes and gives: its schema, as it told us, and the checks of tensors against it.

The schema comes from a peer, so it is checked itself; what we send and what comes back is checked against it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Self

import torch

from hivemind_p2p.errors import ProtocolViolation, SchemaMismatch
from hivemind_p2p.wire import msgpack
from hivemind_p2p.wire.nested import nested_compare, nested_flatten, nested_pack
from hivemind_p2p.wire.tensor_descriptor import TensorDescriptor

MAX_TENSORS: Final = 1024
"""The most tensors that an expert may take, or give."""
MAX_ROW: Final = 2**31
"""The most numbers in one row of an output."""


@dataclass(frozen=True)
class ExpertSchema:
    """What one expert takes and gives.

    Attributes:
        forward_schema: ``(args, kwargs)``: descriptors of the positional and of the keyword inputs.
        outputs_schema: descriptors of the outputs, nested as the expert nests them.
        keyword_names: of the keyword inputs, in the expert's order.
        inputs: the descriptors of ``forward_schema``, flat, as the tensors travel.
        outputs: those of ``outputs_schema``.
    """

    forward_schema: tuple[tuple[Any, ...], dict[str, Any]]
    outputs_schema: Any
    keyword_names: tuple[str, ...]
    inputs: tuple[TensorDescriptor, ...]
    outputs: tuple[TensorDescriptor, ...]

    @classmethod
    def parse(cls, serialized_info: bytes) -> Self:
        """Read an answer to ``rpc_info``.

        Raises:
            ProtocolViolation: it is not what an expert says of itself.
        """
        try:
            info = msgpack.loads(serialized_info)
            (args, kwargs), outputs, names = info["forward_schema"], info["outputs_schema"], info["keyword_names"]
            inputs = tuple(nested_flatten((args, kwargs)))
            flat_outputs = tuple(nested_flatten(outputs))
        except (ValueError, TypeError, KeyError) as error:
            raise _not_a_schema(f"{type(error).__name__}: {error}") from None
        if not (isinstance(args, tuple | list) and isinstance(kwargs, dict) and isinstance(names, tuple | list)):
            raise _not_a_schema("it should hold (args, kwargs) and the names of kwargs")
        if sorted(map(str, names)) != sorted(map(str, kwargs)) or not all(isinstance(name, str) for name in kwargs):
            raise _not_a_schema(f"the names {names!r:.80} are not those of its keyword inputs")
        if not inputs or not flat_outputs or max(len(inputs), len(flat_outputs)) > MAX_TENSORS:
            raise _not_a_schema(f"{len(inputs)} inputs, {len(flat_outputs)} outputs; each must be 1 to {MAX_TENSORS}")
        for descriptor in inputs + flat_outputs:
            if not isinstance(descriptor, TensorDescriptor) or not descriptor.size:
                raise _not_a_schema(f"{descriptor!r:.80} does not describe a batch of tensors")
            if descriptor.dtype is not None and not isinstance(_dtype(descriptor.dtype), torch.dtype):
                raise _not_a_schema(f"torch has no dtype {descriptor.dtype!r:.80}")
        for descriptor in flat_outputs:
            if None in descriptor.size[1:] or math.prod(descriptor.size[1:]) > MAX_ROW:
                raise _not_a_schema(f"one row of an output is of size {descriptor.size[1:]!r:.80}")
        return cls((tuple(args), kwargs), outputs, tuple(names), inputs, flat_outputs)

    @cached_property
    def output_row_bytes(self) -> int:
        """Bytes of one row of all outputs in memory."""
        return byte_size(self.outputs, 1)

    @cached_property
    def _args_alone(self) -> bool:
        """Whether it takes positional tensors and nothing nested, as most experts do."""
        args, kwargs = self.forward_schema
        return not kwargs and not any(isinstance(each, list | tuple | dict) for each in args)

    def info(self) -> dict[str, Any]:
        """The schema in hivemind's form."""
        return {
            "forward_schema": self.forward_schema,
            "outputs_schema": self.outputs_schema,
            "keyword_names": self.keyword_names,
        }

    def flatten_inputs(self, expert: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
        """Check the inputs of one call, and put them in the order in which they travel.

        Args:
            expert: what to call it in errors.

        Raises:
            SchemaMismatch: they are not what the expert takes.
        """
        if self._args_alone and not kwargs and len(args) == len(self.inputs) and self._fits(args):
            return list(args)
        if kwargs.keys() != set(self.keyword_names):
            raise SchemaMismatch(
                f"{expert} takes the keyword inputs {_listed(self.keyword_names)}, not {_listed(kwargs)}"
            )
        if not nested_compare((tuple(args), dict(kwargs)), self.forward_schema):
            count = len(self.forward_schema[0])
            raise SchemaMismatch(
                f"{expert} takes {count} positional input{'s'[: count != 1]}, nested like "
                f"{_outline(self.forward_schema)}, not {_outline((tuple(args), dict(kwargs)))}"
            )
        flat: list[torch.Tensor] = list(nested_flatten((tuple(args), dict(kwargs))))
        names = _names(self.forward_schema)
        for name, tensor, descriptor in zip(names, flat, self.inputs, strict=True):
            if not isinstance(tensor, torch.Tensor):
                raise SchemaMismatch(f"{expert} takes tensors, and {name} is a {type(tensor).__name__}")
            if wrong := descriptor.mismatch(tensor.shape, str(tensor.dtype)):
                advice = "; convert it with .to() first" if "dtype" in wrong else ""
                raise SchemaMismatch(f"{name} does not fit {expert}: {wrong}{advice}")
            if tensor.shape[0] != flat[0].shape[0]:
                raise SchemaMismatch(
                    f"the inputs of one call are of one batch, and for {expert} {name} has {tensor.shape[0]} rows "
                    f"where the first has {flat[0].shape[0]}"
                )
        return flat

    def _fits(self, tensors: Sequence[Any]) -> bool:
        """Whether they are what is taken. Otherwise the checks one by one say what is wrong."""
        return all(
            isinstance(tensor, torch.Tensor)
            and not descriptor.mismatch(tensor.shape, str(tensor.dtype))
            and tensor.shape[0] == tensors[0].shape[0]
            for tensor, descriptor in zip(tensors, self.inputs, strict=True)
        )

    def pack_outputs(self, flat: Sequence[torch.Tensor]) -> Any:
        """The outputs, nested as the expert nests them."""
        if isinstance(self.outputs_schema, TensorDescriptor) and len(flat) == 1:
            return flat[0]
        return nested_pack(flat, self.outputs_schema)

    def empty_outputs(self) -> tuple[torch.Tensor, ...]:
        """The outputs for a batch of no rows."""
        return tuple(
            torch.zeros([length or 0 for length in each.size], dtype=_dtype(each.dtype), device="cpu")
            for each in self.outputs
        )


def check_answer(tensors: Sequence[torch.Tensor], expected: Sequence[TensorDescriptor], rows: int) -> None:
    """Check what came back.

    Raises:
        ProtocolViolation: it is not what the schema promised.
    """
    if len(tensors) != len(expected):
        raise ProtocolViolation(f"the answer has {len(tensors)} tensors where the schema says {len(expected)}")
    for number, (tensor, descriptor) in enumerate(zip(tensors, expected, strict=True)):
        wrong = descriptor.mismatch(tensor.shape, str(tensor.dtype))
        if not wrong and tensor.shape[0] != rows:
            wrong = f"expected {rows} rows, got {tensor.shape[0]}"
        if wrong:
            raise ProtocolViolation(f"tensor {number} of the answer is not what the schema says: {wrong}")


def check_gradients(grads: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> None:
    """Check gradients that came back against the inputs that they are of; more tensors may follow those.

    Raises:
        ProtocolViolation: their shapes or dtypes differ.
    """
    for number, (grad, tensor) in enumerate(zip(grads, inputs, strict=False)):
        if grad.shape != tensor.shape or grad.dtype != tensor.dtype:
            raise ProtocolViolation(
                f"the gradient of input {number} is {grad.dtype} {tuple(grad.shape)}, and the input {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )


def byte_size(descriptors: Sequence[TensorDescriptor], rows: int) -> int:
    """How many bytes such tensors have in memory, of known lengths; unknown dtypes count as the largest."""
    return sum(
        rows * math.prod(length or 0 for length in each.size[1:]) * _dtype(each.dtype or "complex128").itemsize
        for each in descriptors
    )


def _dtype(name: str | None) -> torch.dtype:
    """The dtype of a name like ``torch.float32``; None for what is none."""
    return getattr(torch, (name or "torch.float32").removeprefix("torch."), None)  # type: ignore[return-value]


def _not_a_schema(why: str) -> ProtocolViolation:
    return ProtocolViolation(f"what the expert says of itself is not a schema: {why}")


def _names(schema: tuple[tuple[Any, ...], dict[str, Any]]) -> Iterator[str]:
    """What to call each flat input in errors."""
    args, kwargs = schema
    for place, each in enumerate(args):
        yield from _names_within(f"input {place}", each)
    for key in sorted(kwargs):
        yield from _names_within(f"input {key!r}", kwargs[key])


def _names_within(name: str, structure: Any) -> Iterator[str]:
    if isinstance(structure, list | tuple):
        for place, each in enumerate(structure):
            yield from _names_within(f"{name}[{place}]", each)
    elif isinstance(structure, dict):
        for key in sorted(structure):
            yield from _names_within(f"{name}[{key!r}]", structure[key])
    else:
        yield name


def _outline(structure: Any) -> str:
    """A nested structure without its leaves."""
    return _text(structure)[:200]


def _text(structure: Any) -> str:
    if isinstance(structure, list):
        return f"[{', '.join(map(_text, structure))}]"
    if isinstance(structure, tuple):
        return f"({', '.join(map(_text, structure))}{',' if len(structure) == 1 else ''})"
    if isinstance(structure, dict):
        return f"{{{', '.join(f'{key!r}: {_text(value)}' for key, value in structure.items())}}}"
    return "*"


def _listed(names: Any) -> str:
    return ", ".join(map(repr, sorted(names))) or "none"
