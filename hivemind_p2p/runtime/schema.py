"""What an expert takes and gives: descriptors of batched tensors, and the check that requests must pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from hivemind_p2p.errors import AnomalyDetected, SchemaMismatch
from hivemind_p2p.runtime.finite import all_finite
from hivemind_p2p.wire.tensor_descriptor import TensorDescriptor


@dataclass(frozen=True, init=False)
class BatchTensorDescriptor:
    """A tensor whose first dimension, the batch, may have any length. hivemind's class of that name.

    Attributes:
        size: ``(None, *shape of one sample)``.
        dtype: of the tensors.
        layout: of the tensors.
        device: where the writer keeps such tensors, or None; says nothing about the wire.
        requires_grad: whether the sample did.
        pin_memory: whether the sample was pinned.
        compression: how they travel, a number of ``runtime_pb2.CompressionType``.
    """

    size: tuple[int | None, ...]
    dtype: torch.dtype
    layout: torch.layout
    device: torch.device | None
    requires_grad: bool
    pin_memory: bool
    compression: int

    def __init__(
        self,
        *size: int | Sequence[int],
        dtype: torch.dtype = torch.float32,
        layout: torch.layout = torch.strided,
        device: torch.device | None = None,
        requires_grad: bool = False,
        pin_memory: bool = False,
        compression: int = 0,
    ) -> None:
        """``size`` is the shape of one sample, as numbers or as one sequence."""
        sample = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        fields: dict[str, Any] = {
            "size": (None, *sample), "dtype": dtype, "layout": layout, "device": device,
            "requires_grad": requires_grad, "pin_memory": pin_memory, "compression": compression,
        }  # fmt: skip
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_tensor(cls, tensor: torch.Tensor, compression: int = 0) -> BatchTensorDescriptor:
        """Describe tensors like this one, whatever its batch size. Only floats are compressed."""
        return cls(
            *tensor.shape[1:],
            dtype=tensor.dtype,
            layout=tensor.layout,
            device=tensor.device,
            requires_grad=tensor.requires_grad,
            pin_memory=torch.cuda.is_available() and tensor.is_pinned(),
            compression=compression if tensor.is_floating_point() else 0,
        )

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The same as ``size``."""
        return self.size

    def make_zeros(self, batch_size: int) -> torch.Tensor:
        """A tensor that fits, ``[batch_size, ...]``."""
        return torch.zeros(
            (batch_size, *self.size[1:]),  # type: ignore[arg-type]  # only the first is None
            dtype=self.dtype,
            layout=self.layout,
            device=self.device,
            requires_grad=self.requires_grad,
            pin_memory=self.pin_memory,
        )

    def fits(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor has this dtype and, the batch aside, this shape."""
        shape = tensor.shape
        return tensor.dtype is self.dtype and len(shape) == len(self.size) and shape[1:] == self.size[1:]

    def to_wire(self) -> TensorDescriptor:
        """What travels."""
        return self._wire

    @cached_property
    def _wire(self) -> TensorDescriptor:
        return TensorDescriptor(
            size=self.size,
            dtype=str(self.dtype),
            layout=str(self.layout),
            device_type=self.device.type if self.device is not None else None,
            device_index=self.device.index if self.device is not None else None,
            requires_grad=self.requires_grad,
            pin_memory=self.pin_memory,
            compression=self.compression,
        )


class Schema:
    """The flat tensors of one kind of request, or of its answer.

    Args:
        descriptors: one for each tensor.
        names: what a person calls each: ``"input 0"``, ``"input mask"``, ``"the gradient of output 0"``.
    """

    def __init__(self, descriptors: Sequence[BatchTensorDescriptor], names: Sequence[str]) -> None:
        self.descriptors = tuple(descriptors)
        self.names = tuple(names)

    def check_inputs(self, tensors: Sequence[torch.Tensor]) -> int:
        """The batch size that all tensors have in common; may be 0.

        Raises:
            SchemaMismatch: their number, a shape or a dtype is not what is expected, batch sizes differ, or one is not
                an ordinary tensor in main memory.
        """
        if len(tensors) != len(self.descriptors):
            raise SchemaMismatch(
                f"expected {len(self.descriptors)} tensors ({', '.join(self.names)}), got {len(tensors)}"
            )
        rows = -1
        for tensor, descriptor, name in zip(tensors, self.descriptors, self.names, strict=True):
            if not isinstance(tensor, torch.Tensor):
                raise SchemaMismatch(f"{name} is a {type(tensor).__name__}, not a tensor")
            if not descriptor.fits(tensor):
                raise SchemaMismatch(f"{name}: {descriptor.to_wire().mismatch(tensor.shape, str(tensor.dtype))}")
            if not tensor.is_cpu or tensor.layout is not torch.strided:
                raise SchemaMismatch(
                    f"{name} is a {tensor.layout} tensor on {tensor.device}; send a dense one from cpu"
                )
            if rows not in (-1, tensor.shape[0]):
                raise SchemaMismatch(f"{name} has batch size {tensor.shape[0]}, but {self.names[0]} has {rows}")
            rows = tensor.shape[0]
        return rows

    def check_finite(self, tensors: Sequence[torch.Tensor]) -> None:
        """Refuse NaN and infinity.

        Raises:
            AnomalyDetected: there is one.
        """
        if all_finite(tensors):
            return
        for tensor, name in zip(tensors, self.names, strict=True):
            if not all_finite([tensor]):
                row = int((~tensor.isfinite()).nonzero()[0][0])
                raise AnomalyDetected(f"{name} has NaN or infinity in row {row}; nothing was computed or learned")

    def make_zeros(self, batch_size: int) -> tuple[torch.Tensor, ...]:
        """Tensors that fit, in main memory, filled with zeros."""
        return tuple(
            torch.zeros((batch_size, *each.size[1:]), dtype=each.dtype)  # type: ignore[arg-type]
            for each in self.descriptors
        )

    def __len__(self) -> int:
        return len(self.descriptors)

    def __repr__(self) -> str:
        parts = (
            f"{name} {each.to_wire().dtype}{[*each.size[1:]]}"
            for name, each in zip(self.names, self.descriptors, strict=True)
        )
        return f"<Schema: {', '.join(parts)}>"
