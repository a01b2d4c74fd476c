"""The 70B of questions, counted by the planner: users on one H100 and H100s for so many users. Arithmetic of explorer.planner, none of its own."""

from __future__ import annotations

from explorer.accelerators import ACCELERATORS, fit, spread
from explorer.families import Architecture
from explorer.planner import Plan
from explorer.presets import presets

CARD = next(one for one in ACCELERATORS if one.name == "H100")
GROUPS = {4: 128}  # of other widths one scale an output channel


def model_70b() -> Architecture:
    """Llama-3.1-70B from its configuration."""
    return presets()["llama-3.1-70b"]


def planned_users(bits: int, kv_bits: int, context: int) -> int:
    """Users of so many tokens each that the 70B serves on one H100, 0 where it does not fit."""
    found = spread(model_70b(), Plan(bits=bits, group=GROUPS.get(bits, 0), kv_bits=kv_bits, context=context), CARD, 1, 1)
    return found.users if found else 0


def planned_cards(bits: int, users: int, context: int) -> int:
    """H100s, 1, 2, 4 and so on, that the 70B takes with so many users and a 16-bit cache."""
    return fit(model_70b(), Plan(bits=bits, group=GROUPS.get(bits, 0), context=context, users=users), CARD).count


FUNCTIONS = {"planned_users": planned_users, "planned_cards": planned_cards}
