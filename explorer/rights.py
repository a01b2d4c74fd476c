"""Rights: whose login on the hub a job is done with. Held for the length of the job, in its thread, and nowhere else. Standard library only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_token: ContextVar[str] = ContextVar("token", default="")


@contextmanager
def of(token: str) -> Iterator[None]:
    """Requests to the hub inside carry this token; "" is nobody's."""
    before = _token.set(token)
    try:
        yield
    finally:
        _token.reset(before)


def token() -> str:
    """The token of the visitor whose job this is, "" for none."""
    return _token.get()


def owner(token: str) -> str:
    """Tells visitors with a login apart without their token, "" for nobody: what one may see of a hub, another may not."""
    return hashlib.sha256(token.encode()).hexdigest() if token else ""
