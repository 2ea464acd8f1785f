"""What an expert says about a tensor that it takes or gives: pure data, so that a peer without torch can read it.

It travels as msgpack extension ``0x51`` (see ``msgpack``), as hivemind 1.1 packs its ``BatchTensorDescriptor``: torch's
names as text, ``size`` a tuple whose first entry, the batch, is None. hivemind reads any first entry as None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from reprlib import repr as shown  # what a peer sent may be nested deeper than repr goes
from typing import Any

MAX_DIMENSIONS = 64
"""torch's own limit is about that; a descriptor with more is refused."""


@dataclass(frozen=True)
class TensorDescriptor:
    """The shape and kind of a tensor.

    Attributes:
        size: the length of every dimension; None where any length will do.
        dtype: torch's name, ``"torch.float32"``; None where any dtype will do (hivemind's descriptors may say so).
        layout: torch's name, or None.
        device_type: where its writer keeps such tensors, or None; says nothing about the wire.
        device_index: beside it, or None.
        requires_grad: whether its writer's tensor did.
        pin_memory: whether its writer's tensor was.
        compression: how it travels, a number of ``runtime_pb2.CompressionType``.
    """

    size: tuple[int | None, ...]
    dtype: str | None = "torch.float32"
    layout: str | None = "torch.strided"
    device_type: str | None = "cpu"
    device_index: int | None = None
    requires_grad: bool = False
    pin_memory: bool = False
    compression: int = 0

    def mismatch(self, shape: Sequence[int], dtype: str) -> str:
        """Why a tensor does not fit, for a person; empty if it does.

        Args:
            shape: of the tensor.
            dtype: of the tensor, as torch writes it: ``"torch.float32"``.
        """
        wanted = self.size
        if (
            len(shape) == len(wanted)
            and tuple(shape[1:]) == wanted[1:]
            and (not wanted or wanted[0] is None or wanted[0] == shape[0])
            and self.dtype in (None, dtype)
        ):
            return ""  # nearly always
        if len(shape) != len(self.size):
            return f"expected {len(self.size)} dimensions {self._shape_text()}, got {len(shape)}: {_text(shape)}"
        if any(want is not None and want != got for want, got in zip(self.size, shape, strict=True)):
            return f"expected shape {self._shape_text()}, got {_text(shape)}"
        if self.dtype is not None and dtype != self.dtype:
            return f"expected dtype {self.dtype}, got {dtype}"
        return ""

    def to_map(self) -> dict[str, Any]:
        """The map that travels, its keys in hivemind's order."""
        fields = asdict(self)
        fields["compression"] = int(self.compression)  # enumerations do not travel
        for last in ("device_type", "device_index"):
            fields[last] = fields.pop(last)
        return fields

    @classmethod
    def from_map(cls, fields: Mapping[str, Any]) -> TensorDescriptor:
        """Check a map that a peer sent; keys that we do not know are passed over.

        Raises:
            ValueError: something in it is not what it should be.
        """
        size = fields.get("size")
        if not isinstance(size, tuple | list) or len(size) > MAX_DIMENSIONS or not all(map(_is_length, size)):
            raise ValueError(f"the size of a tensor descriptor is not one: {shown(size)[:80]}")
        known = {key: fields[key] for key in _KINDS if key in fields}
        for key, value in known.items():
            if type(value) not in _KINDS[key]:
                raise ValueError(f"{key} of a tensor descriptor is a {type(value).__name__}: {shown(value)[:80]}")
        return cls(size=tuple(size), **known)

    def _shape_text(self) -> str:
        return _text(["any" if length is None else length for length in self.size])


_KINDS: Mapping[str, tuple[type, ...]] = {
    "dtype": (str, type(None)),
    "layout": (str, type(None)),
    "device_type": (str, type(None)),
    "device_index": (int, type(None)),
    "requires_grad": (bool,),
    "pin_memory": (bool,),
    "compression": (int,),
}


def _is_length(value: object) -> bool:
    return value is None or (type(value) is int and 0 <= value < 2**63)


def _text(shape: Sequence[object]) -> str:
    return f"({', '.join(map(str, shape))})"
