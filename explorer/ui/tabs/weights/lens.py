"""The microscope's section of the Weights tab: controls of its own, the number line, and the group written out. Every control answers at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from explorer.figures import charts
from explorer.records import InputError
from explorer.ui.asking import LIVE, asked, found, subject_of
from explorer.ui.controls import Control, build_controls, component_for, info_of, parameters
from explorer.ui.frame import chart, chart_values
from explorer.ui.status import failure
from explorer.ui.tab import QUIET, Shell
from explorer.ui.tabs.weights.microscope import microscope

EACH = (("Tensor", "tensor"), ("Row", "channel"), ("Group", "group"))
OWN = "As the microscope has it, until you move it."
SAME = ("none", "dynamic_int8", "llm_int8")  # round no weight, or round weights as absmax does


def lens_methods(catalogue: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The methods that round a weight without looking at inputs, unless asked to."""
    return [m for m in catalogue if not m["reads_inputs"] and m["name"] not in SAME]


def slider_or(method: str, field: dict[str, Any]) -> gr.components.Component:
    """A slider where a field's choices are consecutive whole numbers, to be dragged; else the usual component."""
    choices = list(field.get("choices") or ())
    if field["kind"] == "choice" and len(choices) > 3 and all(isinstance(c, int) for c in choices) and choices == list(range(choices[0], choices[-1] + 1)):
        return gr.Slider(choices[0], choices[-1], field["default"], step=1, label=field["title"], info=info_of(method, field), elem_classes=["field"])
    return component_for(method, field)


class Lens:
    """Lays the section out. `subject`: a hidden text with the model and layer as JSON, which the tab sets. `line`: the tab's status line."""

    def __init__(self, shell: Shell, subject: Any, line: Any) -> None:
        self.shell, self.subject, self.line = shell, subject, line
        gr.HTML(
            "<h2 class='figure'>Microscope</h2><p class='see'>One group of the layer's weights under any method that looks at weights alone: drag a "
            "control and watch. Method, bits and all else here are the microscope's own: Run takes those of the panel.</p>"
        )
        with gr.Row(elem_id="microscope"):
            with gr.Column(scale=2, min_width=290, elem_classes=["ms-controls"]):
                self._controls()
            with gr.Column(scale=5, min_width=320):
                self.line_plot, self.line_words = chart(charts()["number_line"])
                self.html = gr.HTML(microscope({}), elem_id="microscope-group")
        with gr.Row():
            with gr.Column(min_width=320):
                self.spans = chart(charts()["shared_scale"], controls=self._scale_controls)
            with gr.Column(min_width=320):
                self.granular = chart(charts()["granularity"])
                self.clipped = chart(charts()["clipping"])
        self._wire()

    def _controls(self) -> None:
        methods = lens_methods(self.shell.catalogue)
        names = [m["name"] for m in methods]
        default = "rtn" if "rtn" in names else (names[0] if names else None)
        self.method = gr.Dropdown([(m["title"], m["name"]) for m in methods], value=default, label="Method", filterable=False, elem_id="ms-method")
        self.fields: list[Control] = build_controls(methods, self.method, default or "", slider_or)
        with gr.Row():
            self.row = gr.Number(0, minimum=0, precision=0, label="Row", min_width=90, elem_id="ms-row")
            self.group = gr.Number(0, minimum=0, precision=0, label="Group", min_width=90, elem_id="ms-group")
        with gr.Row():
            labels = (("Largest error", "error"), ("Largest weight", "outlier"), ("Random", "random"))
            self.jumps = [(pick, gr.Button(text, size="sm", min_width=80, elem_id=f"ms-{pick}")) for text, pick in labels]
        self.planted = gr.Slider(0, 150, 0, step=5, label="Plant an outlier", info="In this group, in standard deviations of the matrix.", elem_id="ms-planted")
        self.clip = gr.Slider(0.3, 1, 1, step=0.05, label="Share of the range", info="Plain RTN only: the grid spans less than min to max.", elem_id="ms-clip")
        self.typed = gr.Textbox(
            label="Your own values", info="They take the place of the group's first weights; Enter shows them.", placeholder="0.01 -0.2 0.05", max_length=3000,
            elem_id="ms-typed",
        )  # fmt: skip
        own = {f"{control.method}_{control.field['name']}": control.component for control in self.fields}
        own |= {"row": self.row, "group": self.group, "planted": self.planted, "share": self.clip, "values": self.typed}
        self.shell.linked["weights"] = {"method": self.method} | own
        with gr.Row():
            self.take = gr.Button("Edit this group's values", size="sm", min_width=120)
            self.clear = gr.Button("Back to the model's", size="sm", min_width=120)

    def _scale_controls(self) -> None:
        with gr.Row():
            self.each = gr.Radio(list(EACH), value="channel", label="One scale for each", info=OWN, elem_id="scale-each", min_width=200)
            self.width = gr.Slider(2, 8, 4, step=1, label="Bits", info=OWN, elem_id="scale-bits", min_width=140)

    def inputs(self) -> list[Any]:
        """The components that `arguments` reads, after the subject."""
        return [self.subject, self.method, *(control.component for control in self.fields), self.row, self.group, self.clip, self.planted, self.typed]

    def arguments(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """The task's arguments from the values of `inputs`; a number that was deleted counts as 0."""
        subject, method, *rest = values
        *fields, row, group, clip, planted, typed = rest
        given = subject_of(subject) | {"method": method, "params": parameters(method, self.fields, tuple(fields))}
        return given | {"row": int(row or 0), "group": int(group or 0), "clip": clip, "planted": float(planted or 0), "typed": str(typed or "")}

    def _drawn(self, data: dict[str, Any]) -> list[Any]:
        return [*chart_values(charts()["number_line"], data), microscope(data)]

    def look(self, *values: Any) -> Iterator[list[Any]]:
        """Shows the group that the controls ask for."""
        yield from asked(self.shell.runner, "group", self.arguments(values), 3, self._drawn)

    def jump(self, pick: str, *values: Any) -> Iterator[list[Any]]:
        """Goes to the group with the largest error or weight, or to any, and shows it with nothing planted."""
        wanted = self.arguments(values) | {"pick": pick, "planted": 0.0, "typed": ""}
        yield from asked(self.shell.runner, "group", wanted, 7, lambda data: [*self._drawn(data), data["row"], data["group"], 0, ""])

    def edit(self, *values: Any) -> Any:
        """The group's values as text, to be changed."""
        try:
            return " ".join(f"{v:.4g}" for v in found(self.shell.runner, "group", self.arguments(values) | {"planted": 0.0})["values"])
        except (InputError, RuntimeError):  # the status line of `look` says why
            return gr.skip()

    def curves(self, *values: Any) -> list[Any]:
        """The two curves of the whole matrix, under RTN's granularity, group size and symmetry where it is the method."""
        wanted = self.arguments(values)
        params = {k: v for k, v in wanted["params"].items() if k in ("granularity", "group_size", "symmetric")} if wanted["method"] == "rtn" else {}
        where = {"model": wanted["model"], "layer": wanted["layer"]}
        symmetry = {k: v for k, v in params.items() if k == "symmetric"}
        try:
            wide = found(self.shell.runner, "granularity", where | symmetry)
            cut = found(self.shell.runner, "clipping", where | params)
        except Exception as error:
            return [failure(error), *[gr.skip()] * 4]
        return [gr.skip(), *chart_values(charts()["granularity"], wide), *chart_values(charts()["clipping"], cut)]

    def shared(self, each: str, width: float, *values: Any) -> Iterator[list[Any]]:
        """Rows or groups beside the grid that each of them gets, under RTN's group size and symmetry where it is the method."""
        wanted = self.arguments(values)
        params = {k: v for k, v in wanted["params"].items() if k in ("group_size", "symmetric")} if wanted["method"] == "rtn" else {}
        about = {"model": wanted["model"], "layer": wanted["layer"], "granularity": each, "bits": int(width)} | params
        yield from asked(self.shell.runner, "shared_scale", about, 2, lambda data: chart_values(charts()["shared_scale"], data))

    def follow(self, *values: Any) -> list[Any]:
        """What shares a scale and the bits, as the microscope has them."""
        params = self.arguments(values)["params"]
        return [params["granularity"], params["bits"]]

    def _wire(self) -> None:
        shown = [self.line, self.line_plot, self.line_words, self.html]
        curves = [self.line, *self.granular, *self.clipped]
        moved = [*(c.component for c in self.fields), self.row, self.group, self.clip, self.planted, self.method]
        gr.on([*(component.input for component in moved), self.typed.submit, self.typed.blur], self.look, self.inputs(), shown, **LIVE)
        self.subject.change(self.look, self.inputs(), shown, **LIVE).then(self.curves, self.inputs(), curves, **QUIET)
        spans, asked_of = [self.line, *self.spans], [self.each, self.width, *self.inputs()]
        gr.on([self.each.input, self.width.input, self.subject.change], self.shared, asked_of, spans, **LIVE)
        for pick, button in self.jumps:
            button.click(lambda *values, pick=pick: (yield from self.jump(pick, *values)), self.inputs(),
                         [*shown, self.row, self.group, self.planted, self.typed], **LIVE)  # fmt: skip
        self.take.click(self.edit, self.inputs(), self.typed, **QUIET).then(self.look, self.inputs(), shown, **QUIET)
        self.clear.click(lambda: ("", 0), None, [self.typed, self.planted], **QUIET).then(self.look, self.inputs(), shown, **QUIET)
        rtn = {control.field["name"]: control.component.input for control in self.fields if control.method == "rtn"}
        grid = [rtn[name] for name in ("granularity", "group_size", "symmetric") if name in rtn]
        if grid:
            followed = gr.on([rtn["bits"], *grid], self.follow, self.inputs(), [self.each, self.width], **LIVE)
            followed.then(self.shared, asked_of, spans, **QUIET)
            gr.on(grid, self.curves, self.inputs(), curves, **LIVE)
