"""What can be watched of calls: give ``RPC`` a function, and it is called when a call begins and when it ends.

For logs, metrics and tests. It runs in the middle of the call: it must be quick and raise nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from hivemind_p2p.rpc.context import Message
from hivemind_p2p.wire.peer_id import PeerID


@dataclass(frozen=True)
class CallStarted:
    """A call began.

    Attributes:
        peer_id: the callee of a call that we make, the caller of one that we serve.
        method: its name on the wire.
        outbound: whether we make it.
        request: what we ask; None for streams and for calls that we serve, whose request has not come yet.
    """

    peer_id: PeerID
    method: str
    outbound: bool
    request: Message | None = None


@dataclass(frozen=True)
class CallEnded:
    """A call ended.

    Attributes:
        call: how it began.
        seconds: since then.
        error: what the caller's code got instead of an answer; of a call that we serve, what its handler raised, or
            ``StreamError`` when the caller did not wait for the end. None: all was well. A call that was cancelled by
            our own program ends with ``trio.Cancelled``.
    """

    call: CallStarted
    seconds: float
    error: BaseException | None


Trace: TypeAlias = Callable[[CallStarted | CallEnded], None]
