"""How the tensors of a call travel: what the user asked for, what the peer knows, what is worth it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Self, TypeAlias

from hivemind_p2p.compression import CompressionType, OwnCompression, fastest
from hivemind_p2p.errors import ConfigError
from hivemind_p2p.wire.expert_metadata import Wish

Choice: TypeAlias = CompressionType | OwnCompression | Literal["auto"] | None
CompressionOption: TypeAlias = "Compression | CompressionType | OwnCompression | str | None"


@dataclass(frozen=True)
class Compression:
    """How each kind of tensor travels: a way, by name or as an enumeration; ``"auto"``; or None: as the expert says.

    ``"auto"`` compresses (BLOCK_INT8) where that takes half of the time or less, by the measured speed of the link in
    that direction and of this machine's codec; nothing until enough came over the link to tell. ``BLOCK_INT8``,
    ``"auto"``, and any choice for what the server sends, need a server of this package; hivemind's gets and gives what
    its expert says. Only floats are compressed.

    Attributes:
        inputs: to the server, forward and backward.
        outputs: from it.
        grad_outputs: to it.
        grad_inputs: from it.

    Raises:
        ConfigError: there is no such way.
    """

    inputs: Choice = None
    outputs: Choice = None
    grad_outputs: Choice = None
    grad_inputs: Choice = None

    def __post_init__(self) -> None:
        for role, choice in vars(self).items():
            object.__setattr__(self, role, _choice(choice))

    @classmethod
    def of(cls, option: CompressionOption) -> Self:
        """One for each kind, or one for all."""
        if isinstance(option, cls):
            return option
        return cls(option, option, option, option)  # type: ignore[arg-type]  # checked there

    @property
    def as_the_expert_says(self) -> bool:
        """Whether nothing was chosen."""
        return self.inputs is self.outputs is self.grad_outputs is self.grad_inputs is None


def _choice(choice: object) -> Choice:
    if choice is None or choice == "auto":
        return choice
    for kinds in (CompressionType, OwnCompression):
        for kind in kinds:
            if choice == kind or (isinstance(choice, str) and choice.upper() == kind.name):
                return kind
    known = ", ".join(kind.name for kinds in (CompressionType, OwnCompression) for kind in kinds)
    raise ConfigError(f"there is no compression {choice!r}, only 'auto', None, {known}")


class Kinds(NamedTuple):
    """What was decided for one call: numbers of compressions; None: as the expert says.

    Attributes:
        wish: what to tell a peer that would understand it.
    """

    inputs: int | None = None
    grads: int | None = None
    wish: Wish | None = None


def decide(choice: Choice, nbytes: int, speed: float | None, known: frozenset[int], *, ours: bool) -> int | None:
    """How tensors of one kind travel.

    Args:
        nbytes: of them.
        speed: bytes per second of the link in their direction; None: not known.
        known: the compressions that the peer says it knows; empty for hivemind's.
        ours: whether we send them, so that only their reader must know the way.
    """
    if choice is None or (choice != "auto" and ours and isinstance(choice, CompressionType)):
        return choice
    if choice == "auto":
        if OwnCompression.BLOCK_INT8 not in known:
            return None
        ways = (CompressionType.NONE, OwnCompression.BLOCK_INT8)
        return CompressionType.NONE if speed is None else fastest(nbytes, 4, speed, ways)
    return choice if choice in known else None
