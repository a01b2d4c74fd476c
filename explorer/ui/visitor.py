"""What each visitor costs and is: the session of a request, as the queue needs it, and a cheaper start of a new one."""

from __future__ import annotations

import inspect

import gradio as gr
from gradio.context import LocalContext


def session() -> str:
    """The hash of the session whose request is being served, "" outside of one. A secret: never shown or logged."""
    request = LocalContext.request.get(None)
    return str(getattr(request, "session_hash", "") or "")


def remember_signatures(blocks: gr.Blocks) -> None:
    """For each new session gradio asks every component for its configuration, and that for the signature of its class: most of some 40 ms on this
    page. A function that carries its signature is not inspected again.
    """
    for kind in {type(block) for block in blocks.blocks.values()}:
        kind.__init__.__signature__ = inspect.signature(kind.__init__)
