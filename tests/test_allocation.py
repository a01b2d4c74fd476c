"""The allocator against brute force, its rules against the method that reads them, and the laws of bounds that are looked at again and again."""

from __future__ import annotations

import itertools
import math
import random
import time

import pytest

from explorer.allocate import Option, best, frontier, options_of, rules, together, uniform
from explorer.methods.mixed import Mixed
from explorer.records import InputError
from explorer.sequential import bound, looks, spent, student_t, within


def random_layers(seed: int, layers: int, widths: tuple[int, ...] = (2, 3, 4, 8)) -> list[list[Option]]:
    rng = random.Random(seed)
    sizes = [rng.choice((48, 144, 393)) for _ in range(layers)]
    return [[Option(f"layers.{i}.p", w, size * (4 * w + 1), rng.random() * 4.0**-w) for w in widths] for i, size in enumerate(sizes)]


@pytest.mark.parametrize("seed", range(4))
def test_the_knapsack_is_exact(seed: int) -> None:
    layers = random_layers(seed, 6)
    every = [(sum(o.cost for o in chosen), sum(o.loss for o in chosen)) for chosen in itertools.product(*layers)]
    points = frontier(layers)
    assert [p.cost for p in points] == sorted(p.cost for p in points) and all(a.loss > b.loss for a, b in itertools.pairwise(points))
    for budget in [points[0].cost, points[len(points) // 3].cost + 1, points[-1].cost, math.inf]:
        found = best(points, budget)
        assert found.loss == pytest.approx(min(loss for cost, loss in every if cost <= budget), rel=1e-12)
        chosen = found.assignment().values()
        assert found.cost == sum(o.cost for o in chosen) <= budget and found.loss == pytest.approx(sum(o.loss for o in chosen))
        assert [o.layer for o in chosen] == [layer[0].layer for layer in layers]


def test_a_budget_too_small_and_losses_that_are_none_are_refused() -> None:
    points = frontier(random_layers(0, 3))
    with pytest.raises(InputError, match="more than the budget"):
        best(points, points[0].cost - 1)
    with pytest.raises(InputError, match="finite loss"):
        frontier([[Option("a", 2, 10, math.nan), Option("a", 3, 15, math.inf)]])
    assert frontier([[Option("a", 2, 10, math.nan), Option("a", 3, 15, 1.0)]])[0].cost == 15


def test_many_layers_are_solved_while_a_slider_moves() -> None:
    start = time.perf_counter()
    points = frontier([[Option(f"layers.{i}.p", w, (1 + i % 7) * (4 * w + 1), (1 + i % 5) * 4.0**-w) for w in (2, 3, 4, 8)] for i in range(42)])
    solved = time.perf_counter()
    best(points, points[len(points) // 2].cost).assignment()
    assert solved - start < 5 and time.perf_counter() - solved < 0.05


def test_rules_say_the_assignment() -> None:
    rows = [
        {"layer": f"layers.{i}.self_attn.q_proj", "bits": w, "stored_bits": 100 * w, "kld": (9 - i) * 4.0**-w} for i in range(4) for w in (2, 4)
    ]  # fmt: skip
    chosen = best(frontier(options_of(rows)), 1000).assignment()
    mixed = Mixed(rules(chosen, "rtn", {"group_size": 64, "symmetric": False}))
    assert not mixed.check() and {o.bits for o in chosen.values()} == {2, 4}
    for layer, option in chosen.items():
        method = mixed.of(layer)
        assert (method.bits, method.symmetric, method.group_size) == (option.bits, False, 64)
    assert uniform(rows, 2) == (800, pytest.approx(sum(9 - i for i in range(4)) / 16))


def test_layers_that_run_as_one_get_one_width() -> None:
    """Of all assignments that are alike in q, k and v the best, each layer of it named."""
    names = [f"layers.{i}.self_attn.{part}_proj" for i in range(2) for part in "qkvo"]
    rng = random.Random(3)
    layers = [[Option(name, w, rng.choice((3, 5)) * w, rng.random() / w) for w in (4, 8)] for name in names]
    alike = [
        chosen for chosen in itertools.product(*layers) if len({o.bits for o in chosen[:3]}) == 1 == len({o.bits for o in chosen[4:7]})
    ]  # fmt: skip
    for budget in (150, 180, 220):
        found = best(frontier(together(layers)), budget)
        assert found.loss == pytest.approx(min(sum(o.loss for o in chosen) for chosen in alike if sum(o.cost for o in chosen) <= budget))
        widths = {layer: option.bits for layer, option in found.assignment().items()}
        assert list(widths) == names and len({widths[n] for n in names[:3]}) == 1 == len({widths[n] for n in names[4:7]})
        assert all(Mixed(rules(found.assignment(), "rtn", {})).of(layer).bits == bits for layer, bits in widths.items())


def test_layers_that_run_as_one_are_paired_by_width() -> None:
    """Whatever the order of their rows, and where one lacks a width, at those that all have."""
    rows = [{"layer": f"m.{part}_proj", "bits": bits, "stored_bits": 10 * bits, "kld": 1 / bits} for part, bits in
            (("gate", 4), ("gate", 2), ("gate", 3), ("up", 2), ("up", 4), ("down", 8))]  # fmt: skip
    pair, alone = together(options_of(rows))
    assert [(o.layer, o.bits, o.cost, o.loss, o.also) for o in pair] == [
        ("m.gate_proj", 4, 80, 0.5, ("m.up_proj",)),
        ("m.gate_proj", 2, 40, 1.0, ("m.up_proj",)),
    ]
    assert [o.bits for o in alone] == [8]
    with pytest.raises(InputError, match=r"m\.gate_proj, m\.up_proj run as one and were measured at no width that all of them have"):
        together(options_of([rows[2], rows[3]]))


def test_student_quantiles() -> None:
    """Tables: t of 4 and of 29 degrees of freedom at 5% two-sided, and the normal limit."""
    assert student_t(0.05, 4) == pytest.approx(2.7764, abs=1e-4) and student_t(0.05, 29) == pytest.approx(2.0452, abs=1e-4)
    assert student_t(0.05, 1) == pytest.approx(12.706, abs=1e-3) and student_t(0.05, 5000) == pytest.approx(1.96, abs=1e-3)
    assert within(0, 7) == 0 and within(2.3646, 7) == pytest.approx(0.95, abs=1e-4)


def test_spending_is_all_of_alpha_and_little_of_it_early() -> None:
    assert spent(1.0) == pytest.approx(0.05) and spent(0.0) == 0 and spent(0.25) < 1e-4 < spent(0.5) < 0.01
    assert looks(16, 1) == [1, 2, 4, 8, 16] and looks(5, 2) == [2, 4, 5] and looks(1, 1) == [1]
    assert bound([1.0] * 4, 1.0, 0.0) == (-math.inf, math.inf), "too few values say nothing"


def test_looking_again_and_again_errs_in_at_most_five_percent() -> None:
    """Equal things, one value a window of 64, skewed as windows of text are, looked at after 8, 16, 32 and 64: the true mean, 0, may lie outside of any
    of the intervals in at most 5% of 2,000 trials (and 2.2 standard errors of that); a plain 95% interval at the same looks does it far more often.
    """
    rng = random.Random(1)
    wrong = naive = 0
    for _ in range(2000):
        values = [rng.gauss(0, 1) + rng.expovariate(2) - 0.5 for _ in range(64)]
        before, ends, plain = 0.0, [], []
        for look in looks(32, 4):
            seen = values[: 2 * look]
            ends.append(bound(seen, look / 32, before))
            plain.append(bound(seen, 1.0, 0.0))
            before = look / 32
        wrong += any(low > 0 or high < 0 for low, high in ends)
        naive += any(low > 0 or high < 0 for low, high in plain)
    assert wrong / 2000 <= 0.05 + 2.2 * (0.05 * 0.95 / 2000) ** 0.5 < naive / 2000


def test_a_real_difference_is_found_early() -> None:
    rng = random.Random(2)
    values = [rng.gauss(1.0, 1) for _ in range(240)]
    assert bound(values[:120], 0.5, 0.25)[0] > 0
