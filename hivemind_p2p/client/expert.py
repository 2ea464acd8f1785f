"""``RemoteExpert``: an expert on another machine, used like a local module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import nn

from hivemind_p2p.client.attempts import Caller
from hivemind_p2p.client.beam_search import ExpertInfo
from hivemind_p2p.client.calls import Direction, fetch_schema
from hivemind_p2p.client.compression import Compression, CompressionOption
from hivemind_p2p.client.contacts import contacts_of
from hivemind_p2p.client.lookup import find_experts
from hivemind_p2p.client.replicas import Replica
from hivemind_p2p.client.schema import ExpertSchema
from hivemind_p2p.client.together import Prepared
from hivemind_p2p.dht import DHTNode
from hivemind_p2p.errors import CodecError, HivemindError, InvalidUID, ProtocolViolation, SchemaMismatch
from hivemind_p2p.sync import DHT, PortalFuture, portal
from hivemind_p2p.wire.expert_uid import check_uid
from hivemind_p2p.wire.peer_id import PeerID


class RemoteExpert(nn.Module):
    """One expert that a server hosts; calling it is calling the expert there. Autograd goes through it.

    ``backward`` asks the server, which runs the forward pass again, takes one optimizer step of its own and returns the
    gradients of the inputs. It does so even if no input requires a gradient, for the expert's sake; under
    ``torch.no_grad()`` it is not asked. The expert's parameters are not here. Where several servers are its replicas, a
    forward goes to one that is not busy, and its backward to the same. Who fails is left out for a while; another one
    is asked, after a look into the DHT if need be, within the same timeout. May be used by several threads at once.

    Args:
        expert_info: uid and peer id, as :func:`get_experts` finds them.
        dht: through whose node the calls go.
        forward_timeout, backward_timeout: seconds for a call, whatever attempts it takes; default:
            ``settings.rpc.timeout`` of the node.
        compression: how tensors travel, one way for all or a :class:`Compression`; default: as the expert says.
    """

    def __init__(
        self,
        expert_info: ExpertInfo,
        dht: DHT,
        *,
        forward_timeout: float | None = None,
        backward_timeout: float | None = None,
        compression: CompressionOption = None,
    ) -> None:
        super().__init__()
        self._info, self._dht = expert_info, dht
        self._timeouts: dict[Direction, float | None] = {"forward": forward_timeout, "backward": backward_timeout}
        self.compression = Compression.of(compression)
        self._contacts = contacts_of(dht)
        self._schema: ExpertSchema | None = None

    @property
    def uid(self) -> str:
        """The expert's name: ``ffn.3.7``."""
        return self._info.uid

    @property
    def peer_id(self) -> PeerID:
        """The peer that serves it, as far as we know: of several, the last that answered."""
        return self._info.peer_id

    @property
    def replicas(self) -> list[Replica]:
        """All that serve it now, as they declare themselves in the DHT, which is asked; none of hivemind's servers.

        Raises:
            DHTError: it cannot be asked.
        """

        async def fetch() -> None:
            await self._contacts.replicas.fetch(self._dht.node.dht, [self.uid], latest=True)

        portal().call(fetch)
        return list(self._contacts.replicas.of(self.uid))

    @property
    def info(self) -> dict[str, Any]:
        """What it takes and gives, asked for once: ``forward_schema`` (args, kwargs), ``outputs_schema``,
        ``keyword_names``.

        Raises:
            RPCError, TransportError: it does not answer.
        """
        return self._known_schema().info()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Have the expert compute.

        Args:
            args, kwargs: tensors ``[batch, ...]`` on any device, nested as its ``forward_schema`` is.

        Returns:
            Tensors ``[batch, ...]`` on the device of the first input, nested as its ``outputs_schema`` is.

        Raises:
            SchemaMismatch: the inputs are not what the expert takes; nothing was sent.
            RPCError, TransportError: there is no answer; ``DeadlineExceeded`` if it takes too long.
            ProtocolViolation, CodecError: the answer is not what it should be.
        """
        return self.prepare(*args, **kwargs).run()

    def prepare(self, *args: Any, **kwargs: Any) -> Prepared:
        """What :meth:`forward` would do, for ``call_together``."""
        schema = self._known_schema()
        inputs = schema.flatten_inputs(self.uid, args, kwargs)
        return Prepared(_OneExpert(self, schema), inputs, schema.pack_outputs)

    def extra_repr(self) -> str:
        return f"uid={self.uid}, server_peer_id={self.peer_id}"

    def _known_schema(self) -> ExpertSchema:
        schema = self._schema
        if schema is None:
            schema = self._schema = portal().call(self._fetch_schema)
        return schema

    async def _fetch_schema(self) -> ExpertSchema:
        try:
            return await fetch_schema(self._dht.node.rpc, self._info, self._timeouts["forward"])
        except HivemindError:
            [found] = await find_experts(self._dht.node.dht, [self.uid], latest=True)
            if found is None or found == self._info:
                raise
        self._info = found
        return await fetch_schema(self._dht.node.rpc, found, self._timeouts["forward"])

    async def compute(
        self, direction: Direction, schema: ExpertSchema, tensors: Sequence[torch.Tensor], at: ExpertInfo | None = None
    ) -> tuple[ExpertInfo, list[torch.Tensor]]:
        """One call, without autograd, to be awaited in the portal; see ``attempts.Caller``.

        Args:
            at: the replica to ask first.
        """
        caller = Caller(self._dht.node, self._contacts, schema, find_more=True, compression=self.compression)
        try:
            by, answer = await caller.call(at or self._info, direction, tensors, self._timeouts[direction])
        except (SchemaMismatch, ProtocolViolation, CodecError):
            self._schema = None  # the server may have started anew, with another one
            raise
        if by != self._info:  # to set an attribute of a module is not cheap
            self._info = by
        return by, answer


class _OneExpert:
    """The exchange of one expert; see :class:`~hivemind_p2p.client.autograd.Exchange`."""

    def __init__(self, expert: RemoteExpert, schema: ExpertSchema) -> None:
        self._expert, self._schema = expert, schema
        self._answered_by: ExpertInfo | None = None

    def forward(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        if len(inputs[0]) == 0:
            return self._schema.empty_outputs()
        self._answered_by, outputs = portal().call(self._expert.compute, "forward", self._schema, inputs)
        return outputs

    def backward(
        self, inputs: Sequence[torch.Tensor], grads: Sequence[torch.Tensor], needed: Sequence[bool]
    ) -> Sequence[torch.Tensor | None]:
        if len(inputs[0]) == 0:
            return [torch.zeros_like(tensor) for tensor in inputs]
        sent = [*inputs, *grads]
        _, found = portal().call(self._expert.compute, "backward", self._schema, sent, self._answered_by)
        return [grad if wanted else None for grad, wanted in zip(found, needed, strict=True)]


@overload
def get_experts(
    dht: DHT,
    uids: Sequence[str],
    expiration_time: float | None = ...,
    return_future: Literal[False] = ...,
    *,
    compression: CompressionOption = ...,
) -> list[RemoteExpert | None]: ...
@overload
def get_experts(
    dht: DHT,
    uids: Sequence[str],
    expiration_time: float | None = ...,
    *,
    return_future: Literal[True],
    compression: CompressionOption = ...,
) -> PortalFuture[list[RemoteExpert | None]]: ...
def get_experts(
    dht: DHT,
    uids: Sequence[str],
    expiration_time: float | None = None,
    return_future: bool = False,
    *,
    compression: CompressionOption = None,
) -> list[RemoteExpert | None] | PortalFuture[list[RemoteExpert | None]]:
    """Find experts in the DHT, all in one look-up.

    Args:
        uids: their names: ``["ffn.0.0", "ffn.0.1"]``.
        expiration_time: Unix time; only experts whose declaration lasts at least until then. Default: until now.
        return_future: return a future of the list at once.
        compression: see :class:`RemoteExpert`.

    Returns:
        One for each uid; None where nobody serves it.

    Raises:
        InvalidUID: one of them is not the uid of an expert.
    """
    if isinstance(uids, str):
        raise InvalidUID(f"uids is the text {uids!r:.80}; give a list of uids: [{uids!r:.80}]")
    checked, how = [check_uid(uid) for uid in uids], Compression.of(compression)

    async def find(dht: DHT, node: DHTNode) -> list[RemoteExpert | None]:
        infos = await find_experts(node, checked, expiration_time)
        return [None if info is None else RemoteExpert(info, dht, compression=how) for info in infos]

    return dht.run_coroutine(find, return_future)
