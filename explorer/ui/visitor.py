"""Who a handler runs for, as the queue needs it: the session of the request being served. The value is a secret: never shown or logged."""

from __future__ import annotations

from gradio.context import LocalContext


def session() -> str:
    """The session's hash, "" outside of a request."""
    request = LocalContext.request.get(None)
    return str(getattr(request, "session_hash", "") or "")
