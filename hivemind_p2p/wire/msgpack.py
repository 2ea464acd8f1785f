"""Values as they travel and are stored: msgpack with hivemind's extension types.

* ``0x40``: a tuple, packed as a list inside; plain lists stay lists.
* ``0x50``: a dictionary value of the DHT: ``[maxsize, latest expiration, [[subkey, value, expiration], ...]]``.
* ``0x51``: a tensor descriptor (see ``tensor_descriptor``), packed as a map inside.

Strings are text, ``bytes`` are binary, and only the exact built-in types are packed (``strict_types``): a value comes
back as what it was. Extensions are read inside each other, and each level takes much of the C stack: a few hundred in
one value would end the process (segmentation fault). So their depth is bounded, when writing as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgpack

from hivemind_p2p.wire.tensor_descriptor import TensorDescriptor

_TUPLE: Final = 0x40
_DICTIONARY: Final = 0x50
_TENSOR_DESCRIPTOR: Final = 0x51
MAX_DEPTH: Final = 16
"""How many extension values may be inside each other."""


@dataclass(frozen=True)
class PackedDictionary:
    """A dictionary value of the DHT.

    Attributes:
        maxsize: the most subkeys that its writer allows; hivemind writes infinity.
        latest_expiration_time: of all subkeys, Unix time.
        items: ``(subkey, value bytes, expiration time)``; what a peer sent is as it was sent, unchecked.
    """

    maxsize: float
    latest_expiration_time: float
    items: Sequence[tuple[Any, Any, Any]]


def dumps(value: object, *, inside: int = 0) -> bytes:
    """Pack a value.

    Args:
        inside: extension values that it will be inside of.

    Raises:
        TypeError: it holds something that msgpack cannot carry.
        ValueError, OverflowError: it is nested too deeply, or holds an integer of more than 64 bits.
    """
    return _dumps(value, inside)


def loads(raw: bytes, *, inside: int = 0) -> Any:
    """Unpack a value that anybody may have sent.

    Args:
        inside: extension values that it may come to be inside of.

    Raises:
        ValueError: it is not msgpack, or not to the last byte, or nested too deeply.
    """
    return _loads(raw, inside)


def _dumps(value: object, depth: int) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True, strict_types=True, default=partial(_pack, depth=depth + 1))
    return packed


def _loads(raw: bytes, depth: int) -> Any:
    hook = partial(_unpack, depth=depth + 1)
    try:
        return msgpack.unpackb(raw, ext_hook=hook, raw=False, strict_map_key=False)
    except (TypeError, msgpack.UnpackException) as error:  # TypeError: a map with a key that cannot be one
        raise ValueError(f"not a msgpack value: {error}") from None


def _pack(value: object, depth: int) -> msgpack.ExtType:
    if depth > MAX_DEPTH:
        raise ValueError(f"extension values are inside each other more than {MAX_DEPTH} deep")
    if isinstance(value, tuple):
        return msgpack.ExtType(_TUPLE, _dumps(list(value), depth))
    if isinstance(value, PackedDictionary):
        items = [list(item) for item in value.items]
        return msgpack.ExtType(_DICTIONARY, _dumps([value.maxsize, value.latest_expiration_time, items], depth))
    if isinstance(value, TensorDescriptor):
        return msgpack.ExtType(_TENSOR_DESCRIPTOR, _dumps(value.to_map(), depth))
    raise TypeError(f"{type(value).__name__} is not a type that msgpack can carry")


def _unpack(code: int, data: bytes, depth: int) -> object:
    if code not in (_TUPLE, _DICTIONARY, _TENSOR_DESCRIPTOR):
        return msgpack.ExtType(code, data)
    if depth > MAX_DEPTH:
        raise ValueError(f"extension types are inside each other more than {MAX_DEPTH} deep")
    inner = _loads(data, depth)
    if code == _TENSOR_DESCRIPTOR:
        if not isinstance(inner, dict):
            raise ValueError("a tensor descriptor holds a map")
        return TensorDescriptor.from_map(inner)
    if not isinstance(inner, list):
        raise ValueError(f"extension type {code:#x} holds a list")
    if code == _TUPLE:
        return tuple(inner)
    match inner:
        case [float() | int() as maxsize, float() | int() as latest, list() as items]:
            if all(isinstance(item, list) and len(item) == 3 for item in items):
                return PackedDictionary(maxsize, latest, [(item[0], item[1], item[2]) for item in items])
    raise ValueError("a dictionary value holds [maxsize, latest expiration, [[subkey, value, expiration], ...]]")
