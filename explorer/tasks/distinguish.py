"""Whether two configurations differ: both score the same tokens until the difference, or its absence, is certain, and no longer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from explorer import likelihood, models
from explorer.experiment import prepared, released
from explorer.kvcache import chunked_logits
from explorer.metrics import Subject
from explorer.provenance import circumstances, name_of
from explorer.records import Answer, Event, InputError, Measurement, Progress
from explorer.request import Request
from explorer.sequential import LEAST_VALUES as LEAST
from explorer.sequential import bound, looks
from explorer.tasks import Engine, Task

BATCH = 2  # windows between two bars of progress


@torch.no_grad()
def losses(subject: Subject, batch: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of every token of windows [B, T] int64 under the quantized model, [B, T - 1], in nats, float64 on the CPU."""
    model, found = subject.loaded.model, []
    with subject.quantized():
        for part in likelihood.passes(model, batch, BATCH):
            found.append(likelihood.losses(chunked_logits(model, part, subject.kv_bits)[:, :-1].flatten(0, 1), part[:, 1:].flatten()))
    return torch.cat(found).double().cpu().view(len(batch), -1)


def verdict(low: float, high: float, margin: float) -> str:
    """Either "first" or "second" (the better one), "equal" (within the margin, %), or "" while neither is certain."""
    if low > 0:
        return "second"
    if high < 0:
        return "first"
    return "equal" if -margin < low and high < margin else ""


def percent(nats: float) -> float:
    """A difference of mean log-likelihoods as a change in perplexity, %."""
    return math.inf if nats > 700 else 100 * math.expm1(nats)


def work(
    engine: Engine, model: str, first: dict[str, Any], second: dict[str, Any], tokens: int = 32768, margin: float = 0.5, evaluation: str = "bundled",
    text: str = "",
) -> Iterator[Event]:  # fmt: skip
    """first, second: method, params and, if wanted, further fields of a Request such as kv_bits and calibration. evaluation, text: as in a Request. The
    difference is the perplexity of the first over the second's, in %, paired token by token; a window, drawn at random, gives one value.

    Yields a Measurement "difference" at each look (see explorer.sequential: looks double, and all of them together err with at most 5%).
    Answer data: names, looks (dicts of tokens, difference, low, high; the ends None while unknown), verdict: "first", "second", "equal" or "undecided".
    """
    if not (isinstance(margin, int | float) and 0 < margin <= 100):
        raise InputError("The margin within which two configurations count as equal is a percentage from above 0 to 100.")
    models.trained(model, engine.load.hub)
    asked = [Request(**{"model": model, "tokens": tokens, "evaluation": evaluation, "text": text, **one}).prepare(engine.load.hub) for one in (first, second)]
    if asked[0][0] == asked[1][0]:
        raise InputError("These are the same configuration; choose two different ones.")
    with released() as hold:
        subjects = []
        for experiment, method, texts in asked:
            subject, _ = yield from prepared(experiment, method, texts, engine.load, hold)
            subjects.append(subject)
        rows = subjects[0].windows
        if len(rows) < LEAST:
            raise InputError(
                f"To tell two configurations apart takes at least {LEAST} windows of text, here are {len(rows)}; give more tokens or shorter windows."
            )
        found = yield from _compare(subjects, rows, margin)
        where = circumstances(subjects[0].loaded.device)
    names = [name_of(wanted.spec, method) for wanted, method, _ in asked]
    data = {"names": names, "margin": margin, "available": rows[:, 1:].numel(), **found}
    yield Answer("distinguish", data, where)


def _compare(subjects: list[Subject], rows: torch.Tensor, margin: float) -> Iterator[Any]:
    """Yields Progress and Measurements, returns looks and the verdict."""
    means, taken, before, tokens, bad = list[float](), list[dict[str, Any]](), 0.0, 0, 0
    batches = rows.split(BATCH)
    stops = looks(len(batches), LEAST // BATCH)
    for done, batch in enumerate(batches, 1):
        yield Progress("compare", done - 1, len(batches), f"{(done - 1) * batches[0][:, 1:].numel():,} tokens scored by both")
        difference = losses(subjects[0], batch) - losses(subjects[1], batch)
        good = difference.isfinite()
        bad, tokens = bad + int((~good).sum()), tokens + int(good.sum())
        means += [window[finite].mean().item() for window, finite in zip(difference, good, strict=True) if finite.any()]
        if done in stops and means:
            low, high = (percent(end) for end in bound(means, done / len(batches), before))
            before, middle = done / len(batches), percent(sum(means) / len(means))
            ends = {"low": low if math.isfinite(low) and low > -100 else None, "high": high if math.isfinite(high) else None}
            taken.append({"tokens": tokens, "difference": middle, **ends})
            yield Measurement("difference", taken[-1], "%", low=ends["low"], high=ends["high"], n=tokens, bad=bad)
            if decided := verdict(low, high, margin):
                return {"looks": taken, "verdict": decided, "bad": bad}
    return {"looks": taken, "verdict": "undecided", "bad": bad}


TASK = Task("distinguish", work)
