"""What each visitor costs and is: the session of a request, as the queue needs it, and a cheaper start of a new one."""

from __future__ import annotations

import hmac
import inspect
import secrets
import time
from ipaddress import ip_address, ip_network
from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio.context import LocalContext
from gradio.state_holder import SessionState, StateHolder

from explorer import rights

_SECRET = secrets.token_bytes(16)  # of this process: nobody can try all addresses afterwards


def session() -> str:
    """The hash of the session whose request is being served, "" outside of one. A secret: never shown or logged."""
    request = LocalContext.request.get(None)
    return str(getattr(request, "session_hash", "") or "")


def address() -> str:
    """Tells network addresses apart without naming one, "" outside of a request. All visitors have the proxy's where uvicorn does not trust its headers;
    of IPv6 the first half counts, the rest is the visitor's to choose.
    """
    host = str(getattr(getattr(LocalContext.request.get(None), "client", None), "host", None) or "")
    try:
        ip = ip_address(host)
        host = str(ip_network((ip, 64), strict=False)) if ip.version == 6 else host
    except ValueError:
        pass  # a name, as in tests
    return hmac.new(_SECRET, host.encode(), "sha256").hexdigest()[:16] if host else ""


def login() -> str:
    """The visitor's own token on the hub, from the signed cookie that logging in on a Space leaves with them; "" without one, or when it is over.
    A secret: it goes to the worker with the job and is kept nowhere.
    """
    info = _logged_in()
    return str(info.get("access_token") or "") if float(info.get("expires_at") or 0) > time.time() else ""


def owner() -> str:
    """Tells this login on the hub apart from others, "" without one. The same when it is over: a run may end later, and its result is no stranger's."""
    return rights.owner(str(_logged_in().get("access_token") or ""))


def _logged_in() -> dict[str, Any]:
    request = LocalContext.request.get(None)
    scope = getattr(getattr(request, "request", None), "scope", None) or {}
    return (scope.get("session") or {}).get("oauth_info") or {}


def remember_signatures(blocks: gr.Blocks) -> None:
    """For each update of a component gradio asks for the signature of its class. A function that carries its signature is not inspected again."""
    for kind in {type(block) for block in blocks.blocks.values()}:
        made = inspect.unwrap(kind.__init__)
        kind.__init__.__signature__ = made.__signature__ = inspect.signature(made)


class Sessions(StateHolder):
    """Sessions that know what differs from the page as it was built. Gradio's also hold the configuration of all components, some 15 ms and a
    megabyte a visitor, for links of its own kind, which the guard closes.
    """

    def __init__(self, blocks: gr.Blocks) -> None:
        super().__init__()
        self.set_blocks(blocks)

    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = SessionState(SimpleNamespace(default_config=self.blocks.default_config, blocks={}))
        return super().__getitem__(session_id)
