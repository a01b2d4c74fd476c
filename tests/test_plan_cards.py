"""The cards one has: the widest format that fits on so many, how they share it, what more would bring; the same words on the page and the command line."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

pytest.importorskip("gradio", reason="needs gradio, which the page is made of")

from explorer.__main__ import main
from explorer.accelerators import ACCELERATORS, fit, held, spread
from explorer.goal import placement
from explorer.planner import Plan
from explorer.presets import presets
from explorer.records import InputError
from tests.test_plan_formats import goal_of, solved

CARDS = {one.name: one for one in ACCELERATORS}
LLAMA = presets()["llama-3.1-70b"]


def test_more_cards_take_a_wider_format() -> None:
    names = [placement(LLAMA, Plan(users=10), CARDS["A100 80 GB"], have).width.name for have in (1, 2, 4)]
    assert names == ["AWQ (4-bit g128)", "INT8 (a scale a row)", "BF16"], "141 GB of weights and 27 of cache: 76 GB a card hold 16 bits on four"
    for have, words in ((1, "One A100 80 GB holds "), (2, "2 × A100 80 GB hold "), (4, "4 × A100 80 GB hold ")):
        said = goal_of(cards=have)
        assert words in said and f" in {names[(1, 2, 4).index(have)]}, the most bits per weight that vLLM can load there" in said
    assert "; 2 of them hold it in INT8" in goal_of() and "; 4 of them hold it in BF16" in goal_of(cards=2) and "of them" not in goal_of(cards=4)


def test_on_so_many_cards_by_hand() -> None:
    """Two A100 in 8 bits: half of the weights, half of the cache, and the activations on each."""
    plan, card = Plan(bits=8, group=0, users=10), CARDS["A100 80 GB"]
    assert held(LLAMA, plan, card, 2) == spread(LLAMA, plan, card, 2, 2) and not held(LLAMA, plan, card, 1).count
    inside = 80 * (2 * 8192 * 8192 + 2 * 1024 * 8192 + 3 * 28672 * 8192)
    rows = 80 * (2 * 8192 + 2 * 1024 + 2 * 28672 + 8192)
    weights = inside + 2 * rows + 2 * (70_553_706_496 - inside)
    cache, step = 10 * 8192 * 320 * 1024, 2 * 2048 * (3 * 8192 + 3 * 28672 // 2) + 10 * 4 * 128256
    free = 79.14 * 2**30 * 0.9 - (weights + cache) / 2 - step
    assert f"{free / 1e9:.1f} GB of what may be filled stay free on each" in goal_of(cards=2)


def test_three_cards_are_two_or_three_copies() -> None:
    """Tensor parallelism takes powers of two: a model that one card holds is copied to each of three, another leaves one of them idle."""
    small, card = presets()["llama-3.1-8b"], CARDS["H100"]
    alone = held(small, Plan(users=64), card, 3)
    assert (alone.count, alone.together) == (3, 1) and alone.users == 3 * held(small, Plan(users=22), card, 1).users
    assert alone.bound > held(small, Plan(users=64), card, 2).bound, "the third reads a third of the cache"
    shared = held(LLAMA, Plan(bits=8, group=0, users=10), CARDS["A100 80 GB"], 3)
    assert (shared.count, shared.together) == (2, 2)
    assert "(2 share a copy of the weights, 1 stays idle: a copy takes a power of two of cards)" in goal_of(cards=3)
    assert "(each holds a copy of the weights for its part of the users)" in goal_of(model="llama-3.1-8b", device="H100", users=64, cards=3)
    assert "(3 copies of the weights, 2 cards to each)" in goal_of(device="H200", users=100, context=16384, cards=6)


@pytest.mark.parametrize("have", range(1, 17))
def test_more_never_hold_less(have: int) -> None:
    for plan in (Plan(users=10), Plan(bits=4, users=64, context=32768)):
        few, needed = held(LLAMA, plan, CARDS["L40S"], have), fit(LLAMA, plan, CARDS["L40S"]).count
        assert bool(few.count) == (have >= needed) and few.count <= have
        assert few.bound >= (held(LLAMA, plan, CARDS["L40S"], have - 1).bound if have > 1 else 0) or few.count < have


def test_what_is_no_number_of_cards_is_a_sentence() -> None:
    for have in (0, 17, 2.5, None, float("nan")):
        assert re.search(r"The number of cards (takes a whole number from 1 to 16|needs a number)", solved(cards=have)[0]), have
    mac, alone = (solved(device="Apple M3 Ultra 512 GB", cards=have) for have in (8, 1))
    assert mac == (alone[0], f"{alone[1]} No link joins several Apple M3 Ultra 512 GB, so this is for one.") and alone[1].startswith("One Apple M3 Ultra")
    for have in (True, 0, "2"):
        with pytest.raises(InputError, match="a whole number from 1 to 16"):
            held(LLAMA, Plan(), CARDS["H100"], have)


def test_none_of_so_many_holds_it() -> None:
    deep = goal_of(model="deepseek-v3", device="A100 80 GB", cards=2, users=1)
    assert "2 × A100 80 GB do not hold deepseek-v3 for 1 user at 8,192 tokens in any format here; 4 of them hold it in " in deep
    assert "and no link joins several" in goal_of(model="deepseek-v3", device="Apple M4 16 GB")


def test_the_command_says_the_same(capsys: pytest.CaptureFixture) -> None:
    for have, name in ((1, "llama-3.1-70b"), (3, "llama-3.1-70b"), (4, "gpt-oss-120b")):
        assert main(["plan", "--model", name, "--users", "10", "--accelerator", "a100 80 gb", "--cards", str(have)]) == 0
        said, page = capsys.readouterr().out.splitlines()[1], goal_of(model=name, cards=have)
        assert re.sub(r" \((estimated|recorded)\)", "", said).replace(" ", "") == re.sub(r" [ER](?=[;.])", "", page).replace(" ", "")
    assert main(["plan", "--cards", "2", "--json"]) == 0
    goal = json.loads(capsys.readouterr().out)["goal"]
    assert goal["cards"] == 2 and goal["format"] == "BF16" and goal["fit"]["together"] == 2 and goal["words"].startswith("2 × A100 80 GB hold ")
    for wrong in (["--cards", "17"], ["--accelerator", "X"], ["--accelerator", "Apple M4 16 GB", "--cards", "2"]):
        assert main(["plan", *wrong]) == 2
    assert dataclasses.asdict(held(LLAMA, Plan(bits=4), CARDS["H100"], 1))["count"] == 1
