"""The exception tree of hivemind_p2p.

Every error says what failed, why, and what to do about it, in that order. Callers catch the class that names their
concern; nothing in the package raises a bare ``Exception``.

::

    HivemindError
    ├── ConfigError                 a setting is unknown, malformed or contradicts another
    ├── IdentityError               the identity file is broken, or others may read it
    ├── TransportError
    │   ├── ListenError             an address to listen on cannot be used (taken, not ours, malformed)
    │   ├── DialError               no known address of a peer answered; ``attempts`` says why for each
    │   ├── ProtocolNotSupported    the peer is there but does not speak the protocol
    │   ├── RelayLimited            the peer is reached only through a relay that does not carry so much
    │   └── StreamError
    │       ├── StreamReset         the other side (or we) threw the stream away
    │       ├── StreamEnded         the other side finished before all expected bytes came
    │       └── ConnectionLost      the connection under the stream is gone
    ├── RPCError
    │   ├── RemoteError             the peer's handler failed; carries the remote text
    │   ├── DeadlineExceeded        no answer within the deadline (also a TimeoutError)
    │   ├── MessageTooLarge         a message is above the limit, here or there
    │   ├── ProtocolViolation       the peer sent bytes that the wire does not allow
    │   └── Unauthorized            the peer, or we ourselves, cannot show that it may use this swarm
    ├── DHTError
    │   ├── BootstrapError          none of the initial peers could be reached
    │   └── InvalidRecord           a key, value or expiration that no peer would store
    ├── CheckpointError             the saved state of an expert cannot be read, written, or used for it
    ├── CodecError                  bytes that are not the tensor they claim to be
    ├── ExpertError
    │   ├── InvalidUID              not an expert uid or prefix
    │   ├── ExpertNotFound          nobody serves this uid, here or in the DHT
    │   ├── SchemaMismatch          tensors that do not fit the expert's schema
    │   ├── ExpertFailed            the expert's own code raised while it computed
    │   ├── Overloaded              too many requests wait for the expert already
    │   ├── NotEnoughExperts        fewer than ``k_min`` experts answered a mixture
    │   └── AnomalyDetected         NaN or infinity in what is sent, computed or learned
    ├── ControlError                a node that runs on this machine cannot be asked how it is doing
    ├── NodeClosed                  the node, server or runtime was shut down under the call
    └── WouldDeadlock               a synchronous call in the thread that would have to answer it
"""

from __future__ import annotations

import re
from collections.abc import Sequence


class HivemindError(Exception):
    """The root of every error that this package raises on purpose."""


class ConfigError(HivemindError, ValueError):
    """A setting is unknown, malformed or contradicts another; the text names it and where it came from."""


class IdentityError(HivemindError):
    """The identity file cannot be used as it is. It is never overwritten: mend it, move it away, or name another."""


class TransportError(HivemindError):
    """Something between two peers, below calls: addresses, connections, streams."""


class ListenError(TransportError):
    """An address to listen on cannot be used."""


class DialError(TransportError):
    """No known address of a peer answered.

    Attributes:
        peer_id: base58 text of the peer.
        attempts: ``(address, reason)`` of every attempt, in the order in which they were started.
    """

    def __init__(self, message: str, *, peer_id: str = "", attempts: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.peer_id = peer_id
        self.attempts = tuple(attempts)


class ProtocolNotSupported(TransportError):
    """The peer answered, but does not speak the protocol that was asked for."""


class RelayLimited(TransportError):
    """The peer is reached only through a relay that does not carry so much. Nothing was sent.

    Attributes:
        relay: base58 text of the relay's peer id.
        size: bytes that it carries on one connection, in each direction.
    """

    def __init__(self, message: str, *, relay: str = "", size: float = 0.0) -> None:
        super().__init__(message)
        self.relay = relay
        self.size = size


class StreamError(TransportError):
    """A stream cannot go on."""


class StreamReset(StreamError):
    """The stream was thrown away before it ended."""


class StreamEnded(StreamError):
    """The other side ended its half before all the expected bytes came."""


class ConnectionLost(StreamError):
    """The connection that carried the stream is gone."""


class RPCError(HivemindError):
    """A remote call failed."""


class RemoteError(RPCError):
    """The peer's handler failed.

    Attributes:
        remote_text: what the peer said, as it said it.
    """

    def __init__(self, message: str, *, remote_text: str = "") -> None:
        super().__init__(message)
        self.remote_text = remote_text


class DeadlineExceeded(RPCError, TimeoutError):
    """No answer within the deadline. The peer was told that nobody waits any more."""


class MessageTooLarge(RPCError):
    """A message is above the limit: send less at once, or use the streaming call."""


class ProtocolViolation(RPCError):
    """The peer sent bytes that the wire does not allow; the stream was thrown away."""


class Unauthorized(RPCError):
    """The peer, or we ourselves, cannot show a valid token: this swarm is moderated."""


class DHTError(HivemindError):
    """A DHT operation could not be carried out."""


class BootstrapError(DHTError):
    """None of the initial peers could be reached."""


class InvalidRecord(DHTError, ValueError):
    """A key, value or expiration time that no peer would store."""


class CodecError(HivemindError, ValueError):
    """Bytes that are not the tensor they claim to be, or a tensor that the codec cannot carry."""


class CheckpointError(HivemindError):
    """The saved state of an expert cannot be read, written, or used for this expert; the text names the file."""


class ExpertError(HivemindError):
    """A call to an expert failed for a reason of the expert, not of the network."""


class InvalidUID(ExpertError, ValueError):
    """Not an expert uid (``ffn.3.7``) or not a prefix of one (``ffn.3.``)."""


class ExpertNotFound(ExpertError, LookupError):
    """Nobody serves this expert uid."""


class SchemaMismatch(ExpertError, TypeError):
    """The tensors of a request do not fit the expert's schema: count, shape or dtype."""


class ExpertFailed(ExpertError):
    """The expert's own code raised while it computed."""


class Overloaded(ExpertError):
    """Too many requests wait for the expert already: try again later, or another replica.

    Attributes:
        retry_after: seconds after which there may be room; None: not known. It stands in the text, too, and so survives
            the way from another peer.
    """

    def __init__(self, message: str = "", *, retry_after: float | None = None) -> None:
        if retry_after is not None:
            message = f"{message} (retry after {retry_after:.2f} s)"
        super().__init__(message)
        said = re.search(r"\(retry after ([0-9]{1,6}\.[0-9]{2}) s\)", message)
        self.retry_after = float(said[1]) if said is not None else None


class NotEnoughExperts(ExpertError):
    """Fewer than ``k_min`` experts answered for some samples of a mixture."""


class AnomalyDetected(ExpertError, ValueError):
    """NaN or infinity in inputs, gradients or answers, found by who sends, computes or receives them."""


class ControlError(HivemindError):
    """A node that runs on this machine cannot be asked how it is doing."""


class NodeClosed(HivemindError):
    """The node, server or runtime was shut down under the call, or had not been started."""


class WouldDeadlock(HivemindError, RuntimeError):
    """A synchronous call was made in the thread that would have to answer it: await the asynchronous one there."""
