"""A sweep whose page is loaded anew: this tab of the browser keeps what was asked for and how far it came, and tells the page that takes its place. See
assets/address.js.
"""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.context import Context

SWEEP, BATCH = "sweep", "batch"  # what assets/address.js keeps


def box(name: str, length: int = 20_000) -> Any:
    """A hidden box outside of all tabs: what is in a tab is there only once that is opened."""
    inside, Context.block = Context.block, Context.root_block
    try:
        return gr.Textbox("", visible="hidden", max_length=length, elem_id=name)
    finally:
        Context.block = inside


def keeping(name: str) -> tuple[Any, Any]:
    """(a box whose text this tab of the browser keeps, the box that a page which is loaded anew gets "reload TEXT" in, or "restart", or "stopped")."""
    mark, told = box(f"kept-{name}"), box(f"go-on-{name}")
    mark.change(None, mark, None, js=f"(text) => window.keep('{name}', text)", api_visibility="private")
    return mark, told
