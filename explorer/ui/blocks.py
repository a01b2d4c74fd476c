"""LeanBlocks: gradio's Blocks without the work that this page has no use for, so that a click from cache costs the server little.

Gradio makes a new component for every output of a handler, also for those that stay as they are; passes every value to a thread of its own; keeps the
value of every component of every session for links of its own kind; and sends the last chunk of a stream twice. A handler of this page has up to
sixty outputs and streams its progress, so that was most of a click. What is not listed here goes gradio's way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import gradio as gr
from gradio.blocks import BlockFunction
from gradio.components.plot import PlotData
from gradio.routes import App
from gradio.state_holder import SessionState

SKIP = gr.skip()
TAKEN = (gr.Dropdown, gr.Radio, gr.CheckboxGroup, gr.Checkbox, gr.Number, gr.Slider, gr.Textbox, gr.HTML, gr.Markdown, gr.Code, gr.Button)
TEXTS = (gr.HTML, gr.Markdown, gr.Textbox)
LEFT = object()  # of an output: it goes gradio's way


@contextmanager
def unserved() -> Iterator[None]:
    """While Blocks are built and queued: gradio makes their whole web application at each of these steps, and launch makes the one that serves."""
    real = App.create_app
    App.create_app = staticmethod(lambda *args, **options: None)
    try:
        yield
    finally:
        App.create_app = staticmethod(real)


class LeanBlocks(gr.Blocks):
    """Blocks whose handlers cost what they change."""

    async def preprocess_data(self, block_fn: BlockFunction, inputs: list[Any], state: SessionState | None, explicit_call: bool = False) -> list[Any]:
        """The values that a handler is called with. Plain ones are read here, as the session's components read them."""
        plain = all(type(block) in TAKEN for block in block_fn.inputs) and not block_fn.component_prop_inputs
        if state is not None and plain and block_fn.preprocess:
            self.validate_inputs(block_fn, inputs)
            try:
                return [state.get(block._id, block).preprocess(value) for block, value in zip(block_fn.inputs, inputs, strict=False)]
            except Exception:  # gradio's way comes to the same end, and says it as the page expects
                pass
        return await super().preprocess_data(block_fn, inputs, state, explicit_call)

    async def postprocess_data(self, block_fn: BlockFunction, predictions: Any, state: SessionState | None) -> list[Any]:
        """What a page is sent for a handler's outputs."""
        outputs, values = block_fn.outputs, predictions if len(block_fn.outputs) > 1 else [predictions]
        if state is None or block_fn.batch or not isinstance(values, list | tuple) or len(values) != len(outputs):
            return await super().postprocess_data(block_fn, predictions, state)
        ready = [sent(block, value) for block, value in zip(outputs, values, strict=True)]
        left = [i for i, made in enumerate(ready) if made is LEFT]
        if left:
            few, rest = copy(block_fn), [values[i] for i in left]
            few.outputs = [outputs[i] for i in left]
            for i, made in zip(left, await super().postprocess_data(few, rest if len(rest) > 1 else rest[0], state), strict=True):
                ready[i] = made
        return ready

    def handle_streaming_diffs(self, block_fn: BlockFunction, data: list[Any], *args: Any, final: bool, **options: Any) -> list[Any]:
        """The chunks of a stream as changes. The last one is not sent again at the end: every figure would be drawn twice."""
        done = super().handle_streaming_diffs(block_fn, data, *args, final=final, **options)
        return [dict(SKIP) for _ in done] if final and block_fn.api_visibility == "private" else done


def sent(block: Any, value: Any) -> Any:
    """What gradio would send for a value of an output where that needs nothing of the session, or LEFT."""
    kind = type(block)
    if isinstance(value, dict) and value == SKIP:
        return dict(SKIP)
    if isinstance(value, str) and kind in TEXTS:
        return block.postprocess(value)
    if isinstance(value, PlotData) and kind is gr.Plot:
        return value.model_dump()
    if isinstance(value, gr.Column) and kind is gr.Column:
        return value.constructor_args | SKIP
    return LEFT
