"""Structures of lists, tuples and dictionaries, and the flat sequence of what they hold.

As in hivemind 1.1, the values of a dictionary come in the order of its sorted keys, and named tuples stay what they
are. Where hivemind lets a mistake pass, we do not: a leaf has the structure of a leaf only, and a flat sequence that is
too long for its structure is refused like one that is too short. Structures may come from peers, so their depth is
bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

MAX_NESTING: Final = 32
"""How many lists, tuples and dictionaries may be inside each other."""


def nested_flatten(structure: Any) -> Iterator[Any]:
    """The leaves, one by one, in order.

    Raises:
        ValueError: it is nested too deeply.
        TypeError: the keys of a dictionary cannot be sorted.
    """
    return _flatten(structure, 0)


def nested_pack(flat: Iterable[Any], structure: Any) -> Any:
    """The inverse of :func:`nested_flatten`: a structure like the given one, with these leaves.

    Raises:
        ValueError: there are more or fewer leaves than the structure has, or it is nested too deeply.
        TypeError: the keys of a dictionary cannot be sorted.
    """
    leaves = iter(flat)
    try:
        packed = _pack(leaves, structure, 0)
    except StopIteration:
        raise ValueError("there are fewer leaves than the structure has") from None
    if next(leaves, _NOTHING) is not _NOTHING:
        raise ValueError("there are more leaves than the structure has")
    return packed


def nested_compare(one: Any, other: Any) -> bool:
    """Whether both have the same structure, whatever their leaves: the same lengths, keys, and lists for lists.

    Raises:
        ValueError: they are nested too deeply.
    """
    return _same_structure(one, other, 0)


def nested_map(function: Callable[..., Any], first: Any, *others: Any) -> Any:
    """Apply a function to the leaves of one structure, or of several of the same structure at once.

    Raises:
        ValueError: the structures differ, or are nested too deeply.
        TypeError: the keys of a dictionary cannot be sorted.
    """
    if not all(nested_compare(first, other) for other in others):
        raise ValueError("the nested structures differ")
    return nested_pack(map(function, *map(nested_flatten, (first, *others))), first)


_NOTHING: Final = object()


def _flatten(structure: Any, depth: int) -> Iterator[Any]:
    if isinstance(structure, list | tuple):
        for each in structure:
            yield from _flatten(each, _deeper(depth))
    elif isinstance(structure, dict):
        for key in sorted(structure):
            yield from _flatten(structure[key], _deeper(depth))
    else:
        yield structure


def _pack(leaves: Iterator[Any], structure: Any, depth: int) -> Any:
    if isinstance(structure, list | tuple):
        values = [_pack(leaves, each, _deeper(depth)) for each in structure]
        return type(structure)(*values) if hasattr(structure, "_fields") else type(structure)(values)
    if isinstance(structure, dict):
        return {key: _pack(leaves, structure[key], _deeper(depth)) for key in sorted(structure)}
    return next(leaves)


def _same_structure(one: Any, other: Any, depth: int) -> bool:
    if isinstance(one, list | tuple):
        return (
            isinstance(other, type(one))
            and len(one) == len(other)
            and all(_same_structure(mine, theirs, _deeper(depth)) for mine, theirs in zip(one, other, strict=True))
        )
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(_same_structure(one[key], other[key], _deeper(depth)) for key in one)
        )
    return not isinstance(other, list | tuple | dict)


def _deeper(depth: int) -> int:
    if depth >= MAX_NESTING:
        raise ValueError(f"lists, tuples and dictionaries are inside each other more than {MAX_NESTING} deep")
    return depth + 1
