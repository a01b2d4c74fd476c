"""What of a model a plan stores otherwise than it asks for, because a group or block does not divide a row: in words, and by kind of matrix.
Standard library only.
"""

from __future__ import annotations

import dataclasses

from explorer.families import Architecture
from explorer.layouts import stored_bits
from explorer.planner import Plan, layout_of, matrix_bits, tables

GROUPS = (128, 64, 32)  # that can be planned


def whole(model: Architecture, plan: Plan) -> str:
    """How much of the layers stays in 16 bits, and where groups or blocks do not divide their rows which rows, and what group would; "" where none does,
    or 16 bits were asked for.
    """
    stay = [one for one in model.matrices() if matrix_bits(model, plan, one) == 16 * one.parameters]
    if not stay or not any(layout_of(model, plan, one) for one in model.matrices()):
        return ""
    share, rows = sum(one.parameters for one in stay) / sum(one.parameters for one in model.matrices()), sorted({one.inputs for one in stay})
    kept = layout_of(model, plan, stay[0])
    why = f", because {kept.block} does not divide rows of {' and '.join(f'{k:,}' for k in rows)}{largest(rows)}" if kept else ""
    much = "more than 99%" if 0.99 < share < 1 else f"{share:.0%}"
    return f"{much} of the layers' weights stay in 16{why}"


def largest(rows: list[int]) -> str:
    """The largest group that divides rows of such lengths, in brackets."""
    group = next((group for group in GROUPS if all(k % group == 0 for k in rows)), 0)
    return f" ({group} is the largest group that does)" if group else " (no group does, a scale a channel does)"


def integers(model: Architecture, plan: Plan) -> str:
    """The same of the widths that are compared, as a sentence; "" where their groups divide all rows."""
    left = whole(model, dataclasses.replace(plan, bits=4, group=plan.group or 128, format=""))
    return f"In INT4 and below {left}." if left else ""


def by_kind(model: Architecture, plan: Plan) -> list[dict[str, str | int | float | bool]]:
    """What each kind of matrix that a plan quantizes or leaves is stored in: its rows, format, stored bits a weight, and whether that took the place of the
    format that was asked for.
    """
    asked = [(one.name, one.part, one.outputs, one.inputs, layout_of(model, plan, one)) for one in model.matrices()]
    asked += [(name, name, model.vocabulary, model.hidden, kept) for name, kept in tables(model, plan).items()]
    found = []
    for name, part, outputs, inputs, layout in asked:
        kept = layout.over(inputs) if layout else None
        bits = stored_bits(outputs, inputs, layout) / (outputs * inputs)
        said = {"kind": name, "part": part, "outputs": outputs, "inputs": inputs}
        found.append(said | {"format": kept.name if kept else "16 bits", "bits_per_weight": bits, "fell_back": kept != layout})
    return found
