"""Controls derived from the methods' fields: one column a method, built once, shown when the method is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

# What a field does, for somebody who has never quantized anything: by its name, and by (method, name) where a method's own differs. Others say their help.
PLAIN: dict[str | tuple[str, str], str] = {
    "bits": "How finely each weight is kept: 4 bits are 16 possible values. Fewer bits: a smaller model and larger errors.",
    "granularity": "Values are evenly spaced; the spacing is the scale. Who shares one: the whole matrix, a row of it, or a small group.",
    ("fp8", "granularity"): "Who shares one scale: the whole matrix, a row of it, or a block of 128 x 128.",
    ("ternary", "granularity"): "Who shares one scale: the whole matrix, as in BitNet, a row of it, or a small group.",
    "group_size": "How many neighbours share a scale. Small groups: smaller errors, more scales to store.",
    ("nf4", "group_size"): "How many neighbours share a scale; the paper has 64. Small groups: smaller errors, more scales to store.",
    "symmetric": "On: the values reach equally far below and above zero. Off: from the smallest to the largest weight, which stores one more number a group.",
    ("awq", "symmetric"): "On: the values reach equally far below and above zero. Off, as the authors have it: from the smallest to the largest weight.",
    "full_range": "Off: the lowest of the values is never used, so that both sides are equal. On: all are used, as in GPTQ's own code.",
    ("gptq", "full_range"): (
        "Off: both sides are equal, and the lowest of the values is left to what makes up for other errors. On: all are used, as in GPTQ's own code."
    ),
    ("rtn", "clip"): "Cut off the few largest weights where that makes the others more exact.",
    "rotate": "Mix the columns first, so that no single one is much larger.",
}


@dataclass(frozen=True)
class Control:
    """A component for one field of one method. `field` is the field's JSON form from the catalogue."""

    method: str
    field: dict[str, Any]
    component: gr.components.Component


def info_of(method: str, field: dict[str, Any]) -> str | None:
    """What a method's field does, as the page says it."""
    name = field["name"]
    return PLAIN.get((method, name)) or PLAIN.get(name) or field["help"] or None


def component_for(method: str, field: dict[str, Any]) -> gr.components.Component:
    """The component that fits the kind of a method's field."""
    shared = {"label": field["title"], "info": info_of(method, field), "elem_classes": ["field"]}
    if field["kind"] == "bool":
        return gr.Checkbox(field["default"], **shared)
    if field["kind"] == "choice":
        return gr.Radio(list(field["choices"]), value=field["default"], **shared)
    if field["kind"] == "text":
        return gr.Textbox(field["default"], lines=4, max_lines=12, max_length=10_000, **shared)
    return gr.Number(field["default"], minimum=field["low"], maximum=field["high"], precision=0 if field["kind"] == "int" else None, **shared)


def build_controls(
    catalogue: list[dict[str, Any]], chosen: gr.Dropdown, default: str, make: Callable[[str, dict[str, Any]], gr.components.Component] = component_for
) -> list[Control]:
    """Builds all controls, each by `make`, and wires which are shown. The handlers are client-side where they can be, so nothing waits for the server."""
    controls: list[Control] = []
    columns = []
    for method in catalogue:
        with gr.Column(visible=method["name"] == default, elem_classes=["method"]) as column:
            for field in method["fields"]:
                controls.append(Control(method["name"], field, make(method["name"], field)))
            if not method["fields"]:
                gr.Markdown("No parameters: the model as it was trained." if method["name"] == "none" else "No parameters: the format fixes them all.")
        columns.append(column)
    names = [method["name"] for method in catalogue]
    chosen.change(lambda name: [gr.Column(visible=name == n) for n in names], chosen, columns, queue=False, api_visibility="private")
    for control in controls:
        if control.field["when"]:
            _show_when(control, controls)
    return controls


def _show_when(control: Control, controls: list[Control]) -> None:
    other, values = control.field["when"]
    ruler = next(c for c in controls if c.method == control.method and c.field["name"] == other)
    ruler.component.change(lambda value: gr.update(visible=value in values), ruler.component, control.component, queue=False, api_visibility="private")


def parameters(method: str, controls: list[Control], values: tuple[Any, ...]) -> dict[str, Any]:
    """The chosen method's parameters from the values of all controls."""
    return {c.field["name"]: v for c, v in zip(controls, values, strict=True) if c.method == method}
