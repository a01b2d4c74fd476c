"""The Planner's answer for one accelerator in words: what the plan needs, how many devices hold it, at which bound and price. Plain text."""

from __future__ import annotations

from explorer.accelerators import TIGHT, UNCOUNTED, Fit
from explorer.fallbacks import whole
from explorer.families import Architecture
from explorer.planner import Need, Plan, gigabytes
from explorer.published import PUBLISHED, published
from explorer.ui.status import many


def width(model: Architecture, plan: Plan, found: Need) -> str:
    """In which width the weights are stored, in words; nothing for 16 bits."""
    own = published(model) if plan.format == PUBLISHED else None
    kept = own.layout if own else plan.layout()
    if kept is None:
        return " (as published, in 16 bits)" if plan.format else ""
    outside = [] if plan.everything else ["embedding"] if model.tied or (own and own.head) else ["embedding", "head"]
    replaced = kept.fallback is not None and any(one.inputs % kept.block for one in model.matrices())
    name = f"{kept.title}{f', {kept.fallback.title} where {kept.block} does not divide a row' if replaced else ''}: " if plan.format else ""
    rest = "".join(f"; {text}" for text in (f"{' and '.join(outside)} in 16" if outside else "", whole(model, plan)) if text)
    return f" ({'as published, ' if own else ''}{name}{found.bits_per_weight:.3f} bits a weight{rest})"


def asked_for(model: Architecture, plan: Plan, found: Need) -> str:
    """What the plan needs, in words."""
    kind = f" and uses {model.active} of {model.experts} experts a token" if model.experts > 1 else ""
    text = (
        f"{model.name} has {model.parameters / 1e9:,.3f} billion parameters{kind}. Weights {gigabytes(found.weight_bytes)}{width(model, plan, found)}, "
        f"KV cache {gigabytes(found.kv_user)} a user at {many(plan.context, 'token')}, {gigabytes(found.kv)} for {plan.users:,}, "
        f"activations {gigabytes(found.activations)}. "
    )
    if model.window and plan.context > model.window:
        where = "" if model.windowed == model.layers else f" in {model.windowed} of {model.layers} layers"
        text += f"Attention looks back {model.window:,} tokens{where}, so the cache stops growing there. "
    if model.context and plan.context > model.context:
        text += f"The model was made for {model.context:,} tokens. "
    return text


def sentence(model: Architecture, plan: Plan, found: Need, chosen: Fit, share: float) -> str:
    """The answer in words. share: of the bound, that the price of a token is for."""
    text, name = asked_for(model, plan, found), chosen.accelerator.name
    if not chosen.count:
        return f"{text}More than {chosen.most} × {name} would be needed{chosen.alone}."
    text += f"It needs {chosen.count} × {name}{groups(chosen)}, which then hold{'s' if chosen.count == 1 else ''} {many(chosen.users, 'user')}; "
    text += f"that is tight: less than {TIGHT:.0%} of what may be filled stays free, and {UNCOUNTED}; " if chosen.tight else ""
    busy = "memory bandwidth" if chosen.limit == "bandwidth" else "compute"
    text += f"it decodes at most {chosen.bound:,.0f} tokens/s in all, bound by {busy} (estimated bound)"
    if chosen.dollars is None:
        return f"{text}. Give a price to see what a token costs."
    return (
        f"{text}, ${chosen.dollars:,.2f} a million decoded tokens at {share:.0%} of that bound and ${chosen.dollars_hour:,.2f} an hour; "
        f"a million tokens of prompt cost another ${chosen.prompt_dollars:,.2f}."
    )


def groups(one: Fit) -> str:
    """How many copies of the weights the devices hold, where it is more than one."""
    return "" if one.together == one.count else f" ({one.count // one.together} copies of the weights, each on {one.together})"
