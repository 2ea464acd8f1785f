"""Failures of handlers as text on the wire, and back.

The text begins with the name of the exception's class, as hivemind's own does. Between our nodes a name that stands in
``TOLD_BY_NAME`` becomes that class again, beside ``RemoteError``: a caller may catch ``SchemaMismatch`` without caring
where the schema was checked. Names of other errors (a peer's trouble with its own connections, say) are only text.
"""

from __future__ import annotations

from typing import Final

from hivemind_p2p import errors
from hivemind_p2p.errors import HivemindError, RemoteError

TOLD_BY_NAME: Final[tuple[type[HivemindError], ...]] = (
    errors.MessageTooLarge,
    errors.ProtocolViolation,
    errors.Unauthorized,
    errors.InvalidRecord,
    errors.CodecError,
    errors.InvalidUID,
    errors.ExpertNotFound,
    errors.SchemaMismatch,
    errors.ExpertFailed,
    errors.Overloaded,
    errors.AnomalyDetected,
)
LONGEST_TEXT: Final = 4096
"""Characters of a failure that are sent, and that are believed."""

_REMOTE: Final[dict[str, type[RemoteError]]] = {
    kind.__name__: type(f"Remote{kind.__name__}", (RemoteError, kind), {"__doc__": f"A peer's ``{kind.__name__}``."})
    for kind in TOLD_BY_NAME
}


def text_of(error: Exception) -> str:
    """What the caller is told of an exception of a handler."""
    return f"{type(error).__name__}: {error}"[:LONGEST_TEXT]


def remote_error(text: str, context: str) -> RemoteError:
    """What a caller raises for a callee's text; ``context`` says which call it was."""
    text = text[:LONGEST_TEXT]
    kind = _REMOTE.get(text.partition(":")[0], RemoteError)
    return kind(f"{context} failed there: {text or 'it did not say why'}", remote_text=text)
