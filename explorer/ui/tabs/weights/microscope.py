"""One group of weights as HTML: the numbers that matter, the arithmetic with this group's own values, its packed words, a table. No gradio."""

from __future__ import annotations

from html import escape
from typing import Any

from explorer.chips import chip, reachable

TONES = 6  # colours that neighbouring codes take in turn
ORIGIN = (
    "Computed on the layer as the model file holds it, on this machine, for this view.",
    "Computed on this machine on a group in which values were planted or typed: the model does not hold them.",
)


def short(value: float | None, digits: int = 4) -> str:
    """A number for a person."""
    return "none" if value is None else f"{value:.{digits}g}"


def microscope(data: dict[str, Any]) -> str:
    """The whole view of what the task `group` answers; a sentence when there is nothing yet."""
    if not data:
        return "<p class='ms-empty'>The group appears here when the engine has started.</p>"
    return f"<div class='ms'>{facts(data)}{steps(data)}{packed(data)}{table(data)}</div>"


def facts(data: dict[str, Any]) -> str:
    """The few numbers that sum it up."""
    rest = " of the other weights" if data["changed"] else ""
    seen = f"{data['rows_seen']:,} of {data['shape'][0]:,} rows" if data["rows_seen"] < data["shape"][0] else f"all {data['shape'][0]:,} rows"
    shown = [
        ("signal to noise, matrix", f"{short(data['sqnr'])} dB", f"10 log10 of signal over error energy{rest}, {seen}"),
        ("signal to noise, group", f"{short(data['sqnr_group'])} dB", f"the {data['width']:,} neighbours in row {data['row']}, group {data['group']}{rest}"),
        ("stored bits per weight", f"{data['bits_per_weight']:.4g}", "codes, scales and zeros as they are stored"),
        ("become exactly 0, group", f"{100 * data['zeros']:.0f}%", f"share{rest} of this group whose code means 0"),
        ("become exactly 0, matrix", f"{100 * data['zeros_all']:.0f}%", f"share{rest} of {seen}"),
    ]
    tiles = "".join(f"<div title='{escape(why)}'><b>{value}</b><small>{name}</small></div>" for name, value, why in shown)
    return f"<div class='ms-facts'>{tiles}</div><p class='hint'>{mark(data)} {ORIGIN[bool(data['changed'])]}</p>"


def mark(data: dict[str, Any], reached: bool = True) -> str:
    """The chip of the group's numbers."""
    return chip("simulated" if data["changed"] else "measured", ORIGIN[bool(data["changed"])], reached)


def steps(data: dict[str, Any]) -> str:
    """Scale, zero and one code written out with this group's numbers."""
    lines = [*_scale(data), *_code(data)]
    turned = "<p class='hint'>The weights were turned by a Hadamard matrix first; these are the turned ones.</p>" if data["rotated"] else ""
    head = f"{escape(data['label'])}, row {data['row']}, group {data['group']} (of 0 to {data['groups'] - 1})"
    return f"<h3>{head}</h3>{turned}<ol class='ms-steps'>{''.join(lines)}</ol>"


def _scale(data: dict[str, Any]) -> list[str]:
    bits, low, high, scale, zero = data["bits"], data["low"], data["high"], data["scale"], data["zero"]
    sharing, top = f"{data['sharing']:,} weights share it", max(abs(low), abs(high))
    if data["kind"] == "codebook":
        return [f"<li>scale = {short(scale)}; the largest of the group is {short(top)}, {sharing}. The codebook has {2**bits} values.</li>"]
    if data["kind"] == "symmetric":
        steps = 2 ** (bits - 1) - 1
        plain = top / steps
        how = f"largest |w| / (2^{bits - 1} - 1) = {short(top)} / {steps} = {short(plain)}"
        near = abs(scale - plain) <= 0.005 * plain
        note = "stored in 16 bits" if near else "the method chose another one"
        return [
            f"<li>scale = {how}; {note}: <b>{short(scale, 5)}</b>, {sharing}.</li>",
            f"<li>zero = 2^{bits - 1} = <b>{2 ** (bits - 1)}</b>, the middle code.</li>",
        ]
    span, steps = max(high, 0) - min(low, 0), 2**bits - 1
    plain = span / steps
    note = "stored in 16 bits" if abs(scale - plain) <= 0.005 * plain else "the method chose another one"
    return [
        f"<li>scale = (max - min) / (2^{bits} - 1) = {short(span)} / {steps} = {short(plain)}; {note}: <b>{short(scale, 5)}</b>, {sharing}.</li>",
        f"<li>zero = {_zero(-min(low, 0) / scale, zero)}, the code that means 0.</li>",
    ]


def _zero(start: float, zero: float) -> str:
    """How a zero came to be: rounded from -min / scale, or, as a fraction, moved from there by the method."""
    if float(zero).is_integer():
        return f"round(-min / scale) = round({short(start)}), as stored: <b>{short(zero, 5)}</b>"
    return f"-min / scale = {short(start)} to begin with; the method moved it to <b>{short(zero, 5)}</b> and stores the fraction"


def _code(data: dict[str, Any]) -> list[str]:
    """The arithmetic for the weight with the largest error."""
    at = max(range(len(data["values"])), key=lambda i: abs(data["errors"][i]))
    value, code, back, error = data["values"][at], data["codes"][at], data["dequantized"][at], data["errors"][at]
    column, scale = data["start"] + at, data["scale"]
    if data["kind"] == "codebook":
        ratio = value / scale if scale else 0.0
        return [
            f"<li>code = the entry nearest to w / scale = {short(value)} / {short(scale)} = {short(ratio)} (column {column}): <b>{code}</b>.</li>",
            f"<li>back = codebook[{code}] x scale = <b>{short(back)}</b>, an error of {error:+.3g}.</li>",
        ]
    zero = 2 ** (data["bits"] - 1) if data["zero"] is None else data["zero"]
    ratio = value / scale if scale else 0.0
    if whole := float(zero).is_integer():
        how, unrounded, rounds = "round(w / scale) + zero", ratio, f"round({short(ratio, 7)}) + {short(zero)}"
    else:  # HQQ adds its zero before it rounds
        how, unrounded, rounds = "round(w / scale + zero)", ratio + zero, f"round({short(ratio + zero, 7)})"
    quotient = f"{short(value, 7)} / {short(scale, 7)}"
    written = f"round({quotient}) + {short(zero)}" if whole else f"round({quotient} + {short(zero, 7)})"
    reached = round(unrounded) + (zero if whole else 0)
    cut = f", cut to the {2 ** data['bits']} codes there are" if not 0 <= reached <= 2 ** data["bits"] - 1 else ""
    tie = ", a tie: halves go to the even number" if abs(unrounded % 1 - 0.5) < 1e-6 * max(1.0, abs(unrounded)) and not cut else ""
    return [
        f"<li>code = {how} = {written} = {rounds}{tie}{cut}: <b>{code}</b> (column {column}, the largest error).</li>",
        f"<li>back = (code - zero) x scale = ({code} - {short(zero)}) x {short(scale, 7)} = <b>{short(back)}</b>, an error of {error:+.3g}.</li>",
    ]


def packed(data: dict[str, Any]) -> str:
    """The packed words in binary, highest bit first, the bits of each code in one colour."""
    bits, count, lines = data["bits"], len(data["codes"]), []
    for word, text in enumerate(data["words"]):
        cells = []
        for position, bit in enumerate(text):
            code = (word * 32 + 31 - position) // bits
            if code >= count:
                cells.append("<i>0</i>")
            else:
                cells.append(f"<span class='ms-t{code % TONES}' title='code {code}: {data['codes'][code]}'>{bit}</span>")
        lines.append(f"<div><small>{word}</small>{''.join(cells)}</div>")
    note = f"{count} codes of {bits} bits in {len(lines)} words of 32 bits; the first code is in the lowest bits, on the right. Hover for the code."
    return f"<h3>Packed</h3><p class='hint'>{note}</p><div class='ms-words' role='img' aria-label='{note}' tabindex='0'>{''.join(lines)}</div>"


def table(data: dict[str, Any]) -> str:
    """Value, code, what comes back and the error of every weight of the group."""
    largest = max(max(map(abs, data["errors"])), 1e-30)
    rows = []
    for i, (value, code, back, error) in enumerate(zip(data["values"], data["codes"], data["dequantized"], data["errors"], strict=True)):
        own = " class='ms-own'" if i < data["changed"] else ""
        bar = f"<span class='ms-bar' style='width:{100 * abs(error) / largest:.0f}%'></span>"
        rows.append(
            f"<tr{own}><th scope='row'>{data['start'] + i}</th><td>{value:.5g}</td><td "
            f"class='ms-t{i % TONES}'>{code}</td><td><code>{code:0{data['bits']}b}</code></td>"
            f"<td>{back:.5g}</td><td>{error:+.3g}{bar}</td></tr>"
        )
    names = ("weight", "code", "binary", "comes back as", "error")
    head = "<th scope='col'>column</th>" + "".join(f"<th scope='col'>{name} {mark(data, reached=False)}</th>" for name in names)
    whole = reachable(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>")
    return f"<div class='ms-table' tabindex='0' role='region' aria-label='weights of the group'>{whole}</div>"
