"""The steps of the low-bit kernel as HTML: what each one reads and makes, as small tables. No gradio."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from explorer.chips import chip
from explorer.ui.tabs.weights.microscope import TONES

TITLES = {
    "load": "Load the packed bytes", "unpack": "Unpack one plane", "multiply": "Multiply with the inputs", "scale": "Apply the group's scale",
    "store": "Store the result",
}  # fmt: skip
MIRRORED = chip("simulated", "the kernel's steps mirrored in PyTorch on the layer's own weights; inputs are random, seed 0")


def title_of(data: dict[str, Any], at: int) -> str:
    """Such as "Step 3 of 13: Multiply with the inputs, plane 1 of 2, run 1 of 2"."""
    step = data["steps"][at]
    plane = f", plane {step['plane'] + 1} of {data['planes']}" if "plane" in step and data["planes"] > 1 else ""
    runs = data["shape"][1] // data["block"]
    return f"Step {at + 1} of {len(data['steps'])}: {TITLES[step['kind']]}{plane}, run {step['run'] + 1} of {runs}"


def step_html(data: dict[str, Any], at: int) -> str:
    """One step of what the task `kernel_steps` answers; a sentence when there is nothing yet."""
    if not data:
        return "<p class='ms-empty'>The steps appear here when the engine has started.</p>"
    at = max(0, min(at, len(data["steps"]) - 1))
    body = {"load": _load, "unpack": _unpack, "multiply": _multiply, "scale": _scale, "store": _store}[data["steps"][at]["kind"]]
    return f"<div class='ks'><h3>{escape(title_of(data, at))}</h3>{_bar(data, at)}{body(data, data['steps'][at])}</div>"


def _bar(data: dict[str, Any], at: int) -> str:
    """All steps as a row of small marks, the shown one filled."""
    marks = "".join(f"<i class='ks-{step['kind']}{' ks-now' if i == at else ''}' title='{TITLES[step['kind']]}'></i>" for i, step in enumerate(data["steps"]))
    return f"<div class='ks-bar' aria-hidden='true'>{marks}</div>"


def grid(rows: Sequence[Sequence[Any]], head: Sequence[Any], side: str, caption: str, tone: int = -1) -> str:
    """A table of cells that are HTML already; side: what a row is called."""
    top = "".join(f"<th scope='col'>{h}</th>" for h in head)
    body = "".join(f"<tr><th scope='row'>{side} {i}</th>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for i, row in enumerate(rows))
    kind = f" class='ms-t{tone % TONES}'" if tone >= 0 else ""
    table = f"<table{kind}><thead><tr><th></th>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f"<figure class='ks-grid' tabindex='0' role='region' aria-label='{escape(caption)}'><figcaption>{caption} {MIRRORED}</figcaption>{table}</figure>"


def _bits(value: int, width: int, lit: Sequence[int] = (), tone: int = 0) -> str:
    """A byte in binary, with the bits at the positions `lit` coloured."""
    text = f"{value:0{width}b}"
    return "<code>" + "".join(f"<b class='ms-t{tone % TONES}'>{c}</b>" if width - 1 - i in lit else c for i, c in enumerate(text)) + "</code>"


def _load(data: dict[str, Any], step: dict[str, Any]) -> str:
    count = len(step["bytes"][0])
    words = (
        f"Every row loads {count} neighbouring bytes: {data['block']} codes of {data['bits']} bits in {data['planes']} "
        f"plane{'s' if data['planes'] > 1 else ''} of {data['width']}."
    )
    tables = grid([[f"<code>{v:02x}</code>" for v in row] for row in step["bytes"]], range(count), "row", "packed bytes, hexadecimal")
    if step["high"]:
        words += " The upper bit of each code lies in a tensor of its own, eight to a byte."
        tables += grid([[f"<code>{v:02x}</code>" for v in row] for row in step["high"]], range(len(step["high"][0])), "row", "bytes of upper bits, hexadecimal")
    return f"<p>{words}</p>{tables}"


def _unpack(data: dict[str, Any], step: dict[str, Any]) -> str:
    bits, plane, width = data["bits"], step["plane"], data["width"]
    low = 2 if bits == 3 else bits
    place = plane % 4 * 2 if bits == 3 else plane * bits
    start = width if bits == 3 and plane >= 4 else 0
    read = [[_bits(v, 8, range(place, place + low), plane) for v in row[start : start + width]] for row in step["bytes"]]
    middle = 2 ** (bits - 1)
    zero = (
        ""
        if step["zero"] is None
        else " Then each row's zero for this group, less the middle, is taken off: " + ", ".join(f"{z:g}" for z in step["zero"]) + "."
    )
    words = (
        f"Plane {plane + 1} lies in bits {place} to {place + low - 1}: shift right by {place}, mask with {2**low - 1}. OR-ed into the mantissa of the "
        f"fp16 number 1024 (bits 0x6400) a code is "
        f"1024 + code, so subtracting 1024 + {middle} gives the code less the middle one, exactly, with no conversion instruction.{zero}"
    )
    head = [f"k {k}" for k in step["inputs"]]
    tables = grid(read, range(width), "row", "bytes, this plane's bits coloured") + grid(step["codes"], head, "row", "codes", plane)
    return f"<p>{words}</p>{tables}{grid(step['weights'], head, 'row', 'weights as fp16, before the scale', plane)}"


def _multiply(data: dict[str, Any], step: dict[str, Any]) -> str:
    head = [f"k {k}" for k in step["inputs"]]
    inputs = [[f"{v:+.2f}" for v in row] for row in step["x"]]
    words = (
        "The plane's weights meet the inputs of the same columns; products are summed in float32 on top of what this group has so far. The columns come "
        "in the order of the bytes: 0, 2, 1, 3."
    )
    tables = grid(step["weights"], head, "row", "weights", step["plane"]) + grid(inputs, head, "token", "inputs x, fp16", step["plane"])
    return f"<p>{words}</p>{tables}{_sums(step['part'], 'partial sum of the group, float32')}"


def _scale(data: dict[str, Any], step: dict[str, Any]) -> str:
    words = (
        f"The group's {data['group']} weights are through, so its sum is multiplied by its scale once and added to the total: one multiplication a group, "
        f"not one a weight."
    )
    scales = grid([[f"{s:.5g}"] for s in step["scale"]], [f"group {step['group']}"], "row", "scales, bfloat16")
    return f"<p>{words}</p><div class='ks-side'>{_sums(step['part'], 'sum of the group')}{scales}{_sums(step['sum'], 'total so far')}</div>"


def _store(data: dict[str, Any], step: dict[str, Any]) -> str:
    plain = [[f"{v:.4f}" for v in row] for row in data["exact"]]
    made = [[f"{v:.4f}" for v in row] for row in step["y"]]
    head = [f"row {n}" for n in range(len(step["y"][0]))]
    words = "The totals are rounded to the inputs' 16 bits and stored. Beside them the plain meaning: dequantize the whole tile, multiply in float32."
    k = data["shape"][1]
    if k < data["inputs"]:
        words += f" These are sums over the first {k} of {data['inputs']} inputs only: the kernel itself goes on to the end of the row before it stores."
    return f"<p>{words}</p><div class='ks-side'>{grid(made, head, 'token', 'y by the steps, fp16')}{grid(plain, head, 'token', 'y by the plain meaning')}</div>"


def _sums(part: list[list[float]], caption: str) -> str:
    return grid([[f"{v:+.4f}" for v in row] for row in part], [f"token {m}" for m in range(len(part[0]))], "row", caption)


def verdict(data: dict[str, Any]) -> str:
    """What the comparison with the real kernel found, in a sentence."""
    gap = data["difference"]
    same = "the same to the last bit" if gap == 0 else f"a largest difference of {gap:.1e} of the largest output"
    return f"{data['op']} ({data['form']}), the Triton kernel itself in its interpreter, on this tile: {same}."
