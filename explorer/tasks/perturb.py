"""Do small changes of a prompt flip the quantized model's next token more often than the 16-bit model's? Paired over the same prompts."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import torch

from explorer import models
from explorer.models import LoadedModel
from explorer.provenance import circumstances, name_of
from explorer.records import Answer, Event, InputError, Progress
from explorer.request import Request
from explorer.subjects import subject_of
from explorer.tasks import Engine, Task

PROMPTS, LENGTH, KEPT = 1024, 32, 4  # prompts, their tokens, and the words at their end that stay as they are
LEAST = 5  # prompts of which a share says anything
KINDS = ("two letters swapped", "a word left out", "a word in capitals")


def changed(text: str, kind: str, draw: random.Random) -> str:
    """The text with one word changed, never one of its last KEPT; the text itself when it has none to change."""
    words = text.split(" ")
    places = [i for i, word in enumerate(words[:-KEPT]) if len(word) > 3 and word.isalpha() and word[1] != word[2] and not word.isupper()]
    if not places:
        return text
    at = draw.choice(places)
    word = words[at]
    new = {"two letters swapped": [word[0] + word[2] + word[1] + word[3:]], "a word left out": [], "a word in capitals": [word.upper()]}[kind]
    return " ".join([*words[:at], *new, *words[at + 1 :]])


def changeable(loaded: LoadedModel, rows: torch.Tensor) -> list[tuple[str, str]]:
    """(prompt, prompt with one word changed) of the rows [P, T] int64 that have a word to change. Raises InputError where almost none has."""
    draw, pairs = random.Random(0), []
    for i, row in enumerate(rows):
        text = loaded.tokenizer.decode(row)
        other = changed(text, KINDS[i % len(KINDS)], draw)
        if other != text:
            pairs.append((text, other))
    if len(pairs) < LEAST:
        raise InputError("This text has almost no words between spaces to change; choose another, such as the bundled one.")
    return pairs


def next_token(loaded: LoadedModel, text: str) -> int:
    """The likeliest token after a text."""
    return int(loaded.model(models.prompt(loaded, text), use_cache=False, logits_to_keep=1).logits[0, -1].argmax())


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value that the two rates are equal, from the discordant pairs (binomial with 1/2)."""
    n, least = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n) if n else 1.0


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95% interval of a share, in percent (Wilson's score interval)."""
    z, share = 1.96, hits / n
    centre, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return 100 * (centre - half) / (1 + z * z / n), 100 * (centre + half) / (1 + z * z / n)


@torch.no_grad()
def work(engine: Engine, model: str, method: str, params: dict[str, Any], options: dict[str, Any] | None = None) -> Iterator[Event]:
    """options: further fields of a Request, such as calibration; a prompt fits into the 16-bit window of a low-bit cache, which changes nothing here.

    Answer data: label, prompts, base and quantized (each: flips, percent, low, high), only_base, only_quantized, p (exact McNemar), moved (clean
    prompts whose next token the quantization itself changes, percent), kinds.
    """
    models.trained(model, engine.load.hub)
    experiment, chosen, texts = Request(model, method, params, **(options or {})).prepare(engine.load.hub)
    engine.load.require(experiment, chosen)
    loaded, name = (yield from engine.load.checked(experiment.model)), name_of(experiment.spec, chosen)
    pairs = changeable(loaded, models.windows(loaded, texts["evaluation"], PROMPTS * LENGTH, LENGTH, experiment.evaluation.seed, bos=""))
    subject = yield from subject_of(engine.load, experiment, chosen, texts)
    flips: dict[str, list[bool]] = {"base": [], "quantized": []}
    moved = 0
    for i, (text, other) in enumerate(pairs):
        if i % 16 == 0:
            yield Progress("perturbed prompts", i, len(pairs), name)
        clean = next_token(loaded, text)
        flips["base"].append(clean != next_token(loaded, other))
        with subject.quantized():
            first = next_token(loaded, text)
            flips["quantized"].append(first != next_token(loaded, other))
        moved += first != clean
    yield Answer("perturb", summary(flips["base"], flips["quantized"]) | {
        "label": name, "moved": 100 * moved / len(pairs), "kinds": list(KINDS)},
        circumstances(loaded.device))  # fmt: skip


def summary(base: list[bool], quantized: list[bool]) -> dict[str, Any]:
    """Rates with intervals and the paired test."""
    n = len(base)
    found: dict[str, Any] = {"prompts": n}
    for name, flips in (("base", base), ("quantized", quantized)):
        low, high = wilson(sum(flips), n)
        found[name] = {"flips": sum(flips), "percent": 100 * sum(flips) / n, "low": low, "high": high}
    found["only_base"] = sum(b and not q for b, q in zip(base, quantized, strict=True))
    found["only_quantized"] = sum(q and not b for b, q in zip(base, quantized, strict=True))
    return found | {"p": mcnemar(found["only_base"], found["only_quantized"])}


TASK = Task("perturb", work)
