"""Kernel: the low-bit matmul on one small tile of the chosen layer, step by step, and a check against the Triton kernel itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from explorer.figures import short_layer
from explorer.records import Report
from explorer.ui.asking import LIVE, asked, model_of, subject_of
from explorer.ui.frame import headed
from explorer.ui.status import status
from explorer.ui.tab import QUIET, Shell, Tab, View
from explorer.ui.tabs.stepper.steps import step_html, verdict

HINT = (
    "<p class='hint'>Mirrored in PyTorch, in the kernel's order and precision, on the layer's own weights and two rows of random inputs (seed 0). A test "
    "holds the mirror to the Triton kernel; the button below runs the Triton kernel on this very tile, in its interpreter. Bits, group and grid are this "
    "tile's own: Run takes those of the panel.</p>"
)


def head(layer: str) -> str:
    """The heading, with the layer that the tile is of."""
    see = "Four rows and two tokens on the way through the low-bit matmul: packed bytes in, codes by plane, scaled weights, partial sums out."
    return headed(f"The kernel, step by step, on layer {short_layer(layer)}" if layer else "The kernel, step by step", see) + HINT


LONGEST = 43  # steps of a tile, at 3 bits in groups of 32


def build(shell: Shell) -> View:
    top = gr.HTML(head(""), elem_id="stepper-head")
    subject = gr.Textbox("", visible="hidden", elem_id="stepper-subject")
    with gr.Row(elem_classes=["ms-controls"]):
        bits = gr.Radio([2, 3, 4, 8], value=4, label="Bits", elem_id="stepper-bits")
        group = gr.Radio([32, 64, 128], value=64, label="Group size", elem_id="stepper-group")
        symmetric = gr.Checkbox(True, label="Symmetric", elem_id="stepper-symmetric")
    with gr.Row(elem_id="stepper-go"):
        back = gr.Button("Back", size="sm", min_width=80, scale=1)
        step = gr.Slider(1, LONGEST, 1, step=1, label="Step", scale=6, elem_id="stepper-step")
        forward = gr.Button("Next", variant="primary", size="sm", min_width=80, scale=1, elem_id="stepper-next")
    line = gr.HTML("", elem_id="stepper-status", padding=False)
    shown = gr.HTML(step_html({}, 0), elem_id="stepper")
    check = gr.Button("Run the Triton kernel on this tile", size="sm", elem_id="stepper-check")
    checked = gr.HTML("", elem_id="stepper-checked", padding=False)
    shell.linked["stepper"] = {"bits": bits, "group": group, "symmetric": symmetric, "step": step}
    inputs, outputs = [subject, bits, group, symmetric, step], [line, shown, step]

    def arguments(told: str, bits: int, group: int, symmetric: bool) -> dict[str, Any]:
        return subject_of(told) | {"bits": bits, "group": group, "symmetric": bool(symmetric)}

    def look(told: str, bits: int, group: int, symmetric: bool, at: int) -> Iterator[list[Any]]:
        def draw(data: dict[str, Any]) -> list[Any]:
            here = max(1, min(int(at or 1), len(data["steps"])))
            return [step_html(data, here - 1), gr.Slider(maximum=len(data["steps"]), value=here)]

        yield from asked(shell.runner, "kernel_steps", arguments(told, bits, group, symmetric), 2, draw)

    def real(told: str, bits: int, group: int, symmetric: bool) -> Iterator[list[Any]]:
        yield from asked(shell.runner, "kernel_check", arguments(told, bits, group, symmetric), 1, lambda data: [status(verdict(data), "done")])

    moved = [bits.input, group.input, symmetric.input]
    gr.on([*moved, step.input, subject.change], look, inputs, outputs, **LIVE)
    gr.on(moved, lambda: "", None, checked, queue=False, **QUIET)
    forward.click(lambda *v: (yield from look(*v[:-1], v[-1] + 1)), inputs, outputs, **LIVE)
    back.click(lambda *v: (yield from look(*v[:-1], v[-1] - 1)), inputs, outputs, **LIVE)
    check.click(real, inputs[:-1], [line, checked], **QUIET)

    def render(reports: Sequence[Report], layer: str) -> list[Any]:
        return [head(layer), json.dumps({"model": model_of(reports), "layer": layer})]

    return View([top, subject], render)


TAB = Tab("stepper", "Kernel", build, order=75)
