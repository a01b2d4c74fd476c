"""The Planner's table of accelerators as HTML: what of each a plan needs, its bound, its price, its data sheet. No gradio."""

from __future__ import annotations

from html import escape

from explorer.accelerators import NOTES, Fit
from explorer.chips import chip, reachable
from explorer.planner import Plan

HEADS = (
    "accelerator",
    "needed",
    "users that fit",
    "decoded tokens/s, at most",
    "$ a million tokens, decoded + prompt, at {share}",
    "$ an hour",
    "tokens/s, each user",
    "prompt tokens/s, at most",
    "memory, GB",
    "GB/s",
    "TFLOP/s, 16 bits",
    "FP8, FP4 units",
)  # what decides comes first: a narrow page shows no more
SHEET = 8  # where the columns begin that a data sheet says
NOTE = (
    "Estimated: memory, bandwidth and dense 16-bit compute are those of data sheets (the source is under each name). A driver reports less memory than the "
    "name says (79.1 GiB of 80 GB, 14.6 GiB of a T4's 16 GB); 90% of that may be filled, of unified memory 75%, on small machines 67%. Devices are counted in "
    "powers of two. They share a model by tensor parallelism, which divides the cache by key and value heads and copies it beyond, or each group of them "
    "holds a copy of the weights for some of the users, whichever has the higher bound. The bound on decoded tokens/s counts the time to read weights and "
    "cache, or to multiply, whichever is longer (named beside it), and nothing else: no transfer between devices, no gaps. Prompt tokens/s are bound by "
    f"compute alone. {NOTES['compute']} {NOTES['tight']} {NOTES['gguf']} "
    "A million tokens are priced at {share} of the bounds, the share set above: first decoded ones, then those of prompts. Prices are public list prices of "
    "the date under the name; what is bought has none. Computers with unified memory are counted once, because no link joins several."
)


def cells(one: Fit, plan: Plan) -> list[str]:
    """A row of the table, without its name."""
    a = one.accelerator
    sheet = [f"{a.memory:,}", f"{a.bandwidth:,}", f"{a.compute:,}", "&nbsp;".join([*["FP8"] * a.fp8, *["FP4"] * a.fp4]) or "none"]
    if not one.count:
        return [f"more than {one.most}", *[""] * 6, *sheet]
    needed = f"{one.count}" if one.together == one.count else f"{one.count} = {one.count // one.together}&nbsp;×&nbsp;{one.together}"
    needed += " (tight)" if one.tight else ""
    busy = "read" if one.limit == "bandwidth" else "compute"
    price = ["", ""] if one.dollars_hour is None else [f"{one.dollars:,.2f}&nbsp;+&nbsp;{one.prompt_dollars:,.2f}", f"{one.dollars_hour:,.2f}"]
    return [needed, f"{one.users:,}", f"{one.bound:,.0f}&nbsp;({busy})", *price, f"{one.bound / plan.users:,.1f}", f"{one.prompt:,.0f}", *sheet]


def table(fits: list[Fit], chosen: str, plan: Plan, share: float) -> str:
    """The accelerators as HTML. share: as in `sentence`."""
    rows = []
    for one in fits:
        a = one.accelerator
        mark = " class='chosen'" if a.name == chosen else ""
        rows.append(
            f"<tr{mark}><th scope='row' title='{escape(a.source, quote=True)}'>{escape(a.name)}</th>"
            + "".join(f"<td>{cell}</td>" for cell in cells(one, plan))
            + "</tr>"
        )
    note = NOTE.format(share=f"{share:.0%}")
    sheet, sums = (chip("estimated", f"{how}, not measured", reached=False) for how in ("from the data sheet under each name", note))
    heads = [head.format(share=f"{share:.0%}") for head in HEADS]
    head = "".join(f"<th scope='col'>{name} {sheet if i >= SHEET else sums if i else ''}</th>" for i, name in enumerate(heads))
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f"<div class='scroll' tabindex='0'><table class='compare plan'>{reachable(body)}</table></div><p class='hint'>{note}</p>"
