"""One call of an expert, with as many attempts as it takes: at other replicas, or again.

A forward may be asked of anybody, and twice: it changes nothing. It is asked of the less busy of two replicas; of
another one when that fails, or beside it when it is late (``race``). A backward goes to the replica that answered the
forward, and makes it learn, so it is asked again only after errors that prove that nothing was computed: the peer could
not be reached, does not host the expert, or has no room for the request.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
import trio

from hivemind_p2p.client.beam_search import ExpertInfo
from hivemind_p2p.client.calls import AS_THE_EXPERT_SAYS, Direction, beside_the_network, call_expert
from hivemind_p2p.client.compression import Compression, Kinds, decide
from hivemind_p2p.client.contacts import Contacts
from hivemind_p2p.client.lookup import find_experts
from hivemind_p2p.client.race import NEVER, first_answer
from hivemind_p2p.client.report import AttemptReport
from hivemind_p2p.client.schema import ExpertSchema
from hivemind_p2p.errors import (
    AnomalyDetected,
    DeadlineExceeded,
    DialError,
    ExpertNotFound,
    HivemindError,
    NodeClosed,
    Overloaded,
    ProtocolNotSupported,
    RelayLimited,
    SchemaMismatch,
    StreamError,
)
from hivemind_p2p.node import Node
from hivemind_p2p.wire.expert_metadata import Wish
from hivemind_p2p.wire.peer_id import PeerID

MAX_ATTEMPTS: Final = 4
FIRST_PAUSE: Final = 0.1
"""Seconds before a peer that has no room is asked again; each time twice as long, give or take a half."""
SOONEST_HEDGE: Final = 0.01
"""Seconds below which a second attempt could not win much."""
_NOTHING_COMPUTED: Final = (DialError, RelayLimited, ProtocolNotSupported, ExpertNotFound, Overloaded)


@dataclass(frozen=True)
class Caller:
    """Calls experts of one schema.

    Attributes:
        find_more: after a failure, ask the DHT who serves the expert now.
        detect_anomalies: answers with NaN or infinity are failures.
        compression: how the tensors travel.
    """

    node: Node
    contacts: Contacts
    schema: ExpertSchema
    find_more: bool = False
    detect_anomalies: bool = False
    compression: Compression = field(default_factory=Compression)

    async def call(
        self,
        expert: ExpertInfo,
        direction: Direction,
        tensors: Sequence[torch.Tensor],
        timeout: float | None = None,
        reports: list[AttemptReport] | None = None,
    ) -> tuple[ExpertInfo, list[torch.Tensor]]:
        """Have the expert compute; see ``calls.call_expert``.

        Args:
            timeout: seconds for all attempts together; default: the RPC's own.
            reports: is filled with what happened.

        Returns:
            The replica that answered, and its answer.

        Raises:
            DeadlineExceeded: no answer in time.
            HivemindError: what went wrong first, when all attempts have failed.
        """
        seconds = self.node.rpc.settings.timeout if timeout is None else timeout
        reports = reports if reports is not None else []
        call = _Call(self, expert, direction, tensors, reports)
        contacts = self.contacts
        contacts.stats.calls += 1
        how = "late"
        try:
            with trio.move_on_after(seconds):
                answer = await call.make()
                how = "answered"
                return answer
            error = DeadlineExceeded(
                f"{expert.uid} was not answered for within {seconds:g} s by {expert.peer_id!r}"
                f"{f' and {len(call.tried) - 1} others' * (len(call.tried) > 1)}, who were told that nobody waits any "
                "more; give it more time, or ask another expert"
            )
            for late in call.tried:
                contacts.failures.add(late, error, lasted=seconds)
            raise error
        except HivemindError:
            how = "failed"
            raise
        finally:
            setattr(contacts.stats, how, getattr(contacts.stats, how) + 1)


@dataclass
class _Call:
    caller: Caller
    expert: ExpertInfo
    direction: Direction
    tensors: Sequence[torch.Tensor]
    reports: list[AttemptReport]
    tried: list[ExpertInfo] = field(default_factory=list)
    hedge: ExpertInfo | None = None
    answered: bool = False
    looked_up: bool = False

    async def make(self) -> tuple[ExpertInfo, list[torch.Tensor]]:
        contacts = self.caller.contacts
        hedge_after = NEVER
        if self.direction == "forward":
            contacts.hedges.earn()
            contacts.learn_replicas(self.caller.node, [self.expert.uid])
            if len(self._untried()) > 1:
                hedge_after = max(SOONEST_HEDGE, contacts.latencies.late_after(self.expert.uid, self._nbytes))
        by, answer = await first_answer(self._attempt, self._choose, hedge_after=hedge_after, may_hedge=self._may_hedge)
        contacts.stats.hedges_won += by == self.hedge
        return by, answer

    @property
    def _nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    async def _attempt(self, at: ExpertInfo) -> tuple[ExpertInfo, list[torch.Tensor]]:
        caller, contacts = self.caller, self.caller.contacts
        self.tried.append(at)
        contacts.stats.attempts += 1
        contacts.balance.began(at.peer_id)
        began, answer, failure = trio.current_time(), None, None
        try:
            answer = await call_expert(
                caller.node.rpc, at, self.direction, caller.schema, self.tensors, math.inf,
                await self._kinds(at.peer_id), contacts.errors,
            )  # fmt: skip
            if answer.received is not None:
                contacts.uploaded(at.peer_id, answer.received)
            if caller.detect_anomalies and not await beside_the_network(self._nbytes, _all_finite, answer.tensors):
                contacts.stats.anomalies += 1
                raise AnomalyDetected(f"the answer of {at.uid} has NaN or infinity in it")
        except HivemindError as error:
            failure, answer = error, None
            contacts.failures.add(at, error)
            raise
        finally:
            seconds = trio.current_time() - began
            contacts.balance.ended(at.peer_id, seconds)
            self.answered = self.answered or answer is not None
            how: Literal["answered", "failed", "late", "outrun"] = "late"
            if failure is not None:
                how = "failed"
            elif answer is not None:
                how = "answered"
            elif self.answered:
                how = "outrun"
            text = "" if failure is None else f"{type(failure).__name__}: {failure}"
            if how == "outrun":
                contacts.failures.add(at, lasted=seconds)
            compressed = () if answer is None else answer.compressed
            self.reports.append(AttemptReport(at.peer_id, how, seconds, text, compressed))
        contacts.failures.clear(at)
        if self.direction == "forward":
            contacts.latencies.add(at.uid, self._nbytes, seconds)
        return at, answer.tensors

    async def _kinds(self, peer_id: PeerID) -> Kinds:
        """How the tensors travel."""
        caller, choice, contacts = self.caller, self.caller.compression, self.caller.contacts
        if choice.as_the_expert_says:
            return AS_THE_EXPERT_SAYS
        known = await contacts.codecs_of(caller.node, peer_id)
        up, down = contacts.upload.get(peer_id), caller.node.rpc.speeds.of(peer_id)
        nbytes = self._nbytes
        inputs = decide(choice.inputs, nbytes, up, known, ours=True)
        grads = decide(choice.grad_outputs, nbytes, up, known, ours=True)
        answered = choice.outputs if self.direction == "forward" else choice.grad_inputs
        return Kinds(inputs, grads, Wish(decide(answered, nbytes, down, known, ours=False)) if known else None)

    def _may_hedge(self) -> bool:
        return bool(self._untried()) and self.caller.contacts.hedges.spend()

    async def _choose(self, error: HivemindError | None) -> ExpertInfo | None:
        """Whom to ask: first, beside who is late, or after an error."""
        contacts = self.caller.contacts
        if not self.tried and error is None:
            return self._best(self._untried()) if self.direction == "forward" else self.expert
        if error is None:
            self.hedge = self._best(self._untried())
            contacts.stats.hedges += 1
            return self.hedge
        if len(self.tried) >= MAX_ATTEMPTS or not self._may_ask_again(error):
            return None
        if self.caller.find_more and not self._untried():
            await self._look_up()
        if others := self._untried():
            contacts.stats.failovers += 1
            return self._best(others)
        if isinstance(error, Overloaded):
            await trio.sleep(_pause(error, len(self.tried)))
        elif not isinstance(error, StreamError) or len(self.tried) > 1:
            return None  # a broken stream is worth one more; any other error would only come again
        contacts.stats.retries += 1
        return self.tried[-1]

    def _may_ask_again(self, error: HivemindError) -> bool:
        if self.direction == "backward":
            return isinstance(error, _NOTHING_COMPUTED)
        return not isinstance(error, NodeClosed | SchemaMismatch)

    def _untried(self) -> list[ExpertInfo]:
        replicas = [replica.info for replica in self.caller.contacts.replicas.of(self.expert.uid)]
        if not replicas:
            return [] if self.expert in self.tried else [self.expert]
        return [info for info in dict.fromkeys([self.expert, *replicas]) if info not in self.tried]

    def _best(self, infos: Sequence[ExpertInfo]) -> ExpertInfo:
        contacts = self.caller.contacts
        if len(infos) == 1:
            return infos[0]
        return contacts.balance.choose([info for info in infos if info not in contacts.failures] or infos)

    async def _look_up(self) -> None:
        """Who serves the expert now, past what anybody remembers; once."""
        if self.looked_up:
            return
        self.looked_up = True
        dht, uid = self.caller.node.dht, self.expert.uid
        try:
            await self.caller.contacts.replicas.fetch(dht, [uid], latest=True)
            [found] = await find_experts(dht, [uid], latest=True)
        except HivemindError:
            return  # what the expert's peer said is more to the point
        self.expert = found or self.expert


def _all_finite(tensors: Sequence[torch.Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _pause(error: Overloaded, attempts: int) -> float:
    """Seconds to wait: what the peer asks for, or longer with each attempt; not all callers at once."""
    asked = error.retry_after or FIRST_PAUSE * 2 ** (attempts - 1)
    return asked * random.uniform(0.75, 1.5)
