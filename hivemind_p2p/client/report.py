"""What happened to a batch that was sent to experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hivemind_p2p.wire.peer_id import PeerID


@dataclass(frozen=True)
class TensorReport:
    """A tensor that travelled compressed.

    Attributes:
        role: what it was.
        compression: by name.
        error: the L2 norm of what was lost, relative to that of the tensor; None: not measured, which takes time and is
            done for every eighth one.
    """

    role: Literal["input", "output", "grad_output", "grad_input"]
    compression: str
    error: float | None


@dataclass(frozen=True)
class AttemptReport:
    """One request that was sent for a call.

    Attributes:
        peer_id: whom.
        outcome: ``outrun`` ones were cancelled because another attempt was answered first.
        seconds: until it ended.
        error: why it failed; empty unless it did.
        compressed: tensors, of both directions, that did not travel as they are.
    """

    peer_id: PeerID
    outcome: Literal["answered", "failed", "late", "outrun"]
    seconds: float
    error: str = ""
    compressed: tuple[TensorReport, ...] = ()


@dataclass(frozen=True)
class CallReport:
    """One call of one expert.

    Attributes:
        uid, peer_id: whom; of several replicas the one that answered, or that was asked first.
        rows: how many samples it was asked about.
        outcome: ``late`` calls were still under way when their time was over; they were cancelled.
        seconds: until it ended.
        error: why it failed; empty unless it did.
        attempts: the requests that it took, in the order in which they ended: more than one where a replica, or the
            same peer again, was asked after a failure, or beside a peer that was late.
    """

    uid: str
    peer_id: PeerID
    rows: int
    outcome: Literal["answered", "failed", "late"]
    seconds: float
    error: str = ""
    attempts: tuple[AttemptReport, ...] = ()

    def __str__(self) -> str:
        why = {"answered": "answered", "failed": self.error, "late": "late"}[self.outcome]
        attempts = f", {len(self.attempts)} attempts" if len(self.attempts) > 1 else ""
        return f"{self.uid} at {self.peer_id!r} ({self.rows} rows, {self.seconds:.3f} s{attempts}): {why}"


@dataclass(frozen=True)
class BatchReport:
    """All the calls of one batch in one direction.

    Attributes:
        samples: rows of the batch.
        calls: in the order in which they were started.
        unanswered: how many samples got fewer answers than ``k_min`` asks for.
        seconds: for all of it, looking for experts included.
    """

    samples: int
    calls: tuple[CallReport, ...]
    unanswered: int
    seconds: float

    def uids(self, outcome: Literal["answered", "failed", "late"]) -> list[str]:
        """The experts whose calls ended so."""
        return [call.uid for call in self.calls if call.outcome == outcome]

    def __str__(self) -> str:
        counts = ", ".join(f"{len(self.uids(outcome))} {outcome}" for outcome in ("answered", "failed", "late"))
        return f"{self.samples} samples, {len(self.calls)} calls ({counts}) in {self.seconds:.3f} s"


@dataclass(frozen=True)
class MixtureReport:
    """What happened to a batch of a mixture, see ``RemoteMixtureOfExperts.last_report``.

    Attributes:
        forward: the forward pass.
        backward: the backward pass; None until it is done.
        search_seconds: what looking for experts took, look-ups in the DHT included.
    """

    forward: BatchReport
    backward: BatchReport | None
    search_seconds: float

    def __str__(self) -> str:
        backward = f"; backward: {self.backward}" if self.backward is not None else ""
        return f"forward: {self.forward} ({self.search_seconds:.3f} s of it to find experts){backward}"
