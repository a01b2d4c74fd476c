"""What a page keeps in its browser: a BrowserState that is there when the page opens, whichever tab is open."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.context import Context

# Gradio scrambles what it keeps in the browser; with a word of its own for each start, a restart of the server would lose everybody's notes.
SECRET = "quantization-explorer"


def notes(key: str, empty: Any) -> gr.BrowserState:
    """The notes of a key, `empty` before there are any. They stand outside all tabs, because what is in a tab is read only once the tab is opened."""
    kept = gr.BrowserState(empty, storage_key=key, secret=SECRET, render=False)
    inside, Context.block = Context.block, Context.root_block
    try:
        kept.render()
    finally:
        Context.block = inside
    return kept
