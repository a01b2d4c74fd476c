"""Multiple choice on the evaluation text: which of four continuations is the true one? Accuracy of both models, and what changed beneath it.

Rounding can leave a model's accuracy where it was and still change many of its answers, some for the better and some for the worse (Dutta et al. 2024,
Accuracy is Not All You Need, arXiv 2407.09141): so both directions are counted, and the comparison is paired.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from explorer import models
from explorer.experiment import prepared, released
from explorer.likelihood import losses
from explorer.models import reading
from explorer.provenance import circumstances, name_of
from explorer.records import Answer, Event, InputError, Progress
from explorer.request import Request
from explorer.tasks import Engine, Task
from explorer.tasks.perturb import mcnemar, wilson

CONTEXT, CONTINUATION = 48, 16  # tokens
NEAR = (2, 3, 4)  # whose continuations are the false ones: of passages so far behind in the text, so that the topic tells little
MOST, BATCH, WHOLE = 1024, 16, 10**8  # items at most, and of a forward pass; tokens of a text at most


def items(passages: Tensor) -> Tensor:
    """[I, 4, CONTEXT + CONTINUATION] from passages [I, CONTEXT + CONTINUATION] in the order of the text: each context with its true continuation first,
    then with three others of the neighbourhood.
    """
    ends = torch.stack([passages[:, CONTEXT:], *(passages.roll(-ahead, 0)[:, CONTEXT:] for ahead in NEAR)], 1)
    return torch.cat([passages[:, None, :CONTEXT].expand(-1, len(NEAR) + 1, -1), ends], 2)


def scores(model: nn.Module, batch: Tensor) -> Tensor:
    """Log-probability of each continuation given its context, [I, 4] nats float32, from items [I, 4, T]; a context is read once for its continuations.
    All continuations are equally long, so none needs a correction for its length.
    """
    contexts, ends = batch[:, 0, :CONTEXT], batch[:, :, CONTEXT:].flatten(0, 1)
    cache = DynamicCache(config=model.config)
    first = model(contexts, use_cache=True, logits_to_keep=1, **reading(model, cache)).logits
    cache.batch_repeat_interleave(batch.shape[1])
    rest = model(ends, use_cache=True, **reading(model, cache)).logits[:, :-1]
    logits = torch.cat([first.repeat_interleave(batch.shape[1], 0), rest], 1)
    return -losses(logits.flatten(0, 1), ends.flatten()).view(ends.shape).sum(-1).view(batch.shape[:2]).cpu()


@torch.no_grad()
def work(engine: Engine, model: str, method: str, params: dict[str, Any], options: dict[str, Any] | None = None, count: int = 384) -> Iterator[Event]:
    """options: further fields of a Request, such as calibration; a low-bit cache changes nothing, because a passage fits into its 16-bit window.

    Answer data: label, items, base and quantized (each: right, percent, low, high: Wilson), lost and gained (right before and not after, and the
    reverse), moved (one wrong answer for another), p (exact McNemar over lost and gained), difference, low, high (paired, percentage points; None where
    no answer was lost or gained).
    """
    if not isinstance(count, int) or isinstance(count, bool) or not 16 <= count <= MOST:
        raise InputError(f"Ask for 16 to {MOST:,} questions, not {str(count)[:20]}.")
    models.trained(model, engine.load.hub)
    experiment, chosen, texts = Request(model, method, params, **(options or {})).prepare(engine.load.hub)
    with released() as hold:
        subject, _ = yield from prepared(experiment, chosen, texts, engine.load, hold)
        loaded, length = subject.loaded, CONTEXT + CONTINUATION
        every = items(models.windows(loaded, texts["evaluation"], WHOLE, length))
        asked = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(experiment.evaluation.seed))[:count].to(every.device)]
        if len(asked) < 16:
            raise InputError(f"The evaluation text gives {len(asked)} questions; at least 16 are needed. Paste a longer one.")
        answers: dict[str, list[Tensor]] = {"base": [], "quantized": []}
        for done, batch in enumerate(asked.split(BATCH)):
            yield Progress("questions", done * BATCH, len(asked), name_of(experiment.spec, chosen))
            answers["base"].append(scores(loaded.model, batch))
            with subject.quantized():
                answers["quantized"].append(scores(loaded.model, batch))
        base, quantized = (torch.cat(answers[name]) for name in ("base", "quantized"))
    yield Answer("choices", summary(base, quantized) | {"label": name_of(experiment.spec, chosen), "model": model}, circumstances(loaded.device))


def summary(base: Tensor, quantized: Tensor) -> dict[str, Any]:
    """Accuracies with their intervals and the paired comparison, from scores [I, 4] whose first column is the true continuation's. A model that gives
    NaN is wrong.
    """
    picks = [torch.where(one.isfinite().all(1), one.nan_to_num().argmax(1), -1) for one in (base, quantized)]
    before, after = (pick == 0 for pick in picks)
    n, lost, gained = len(before), int((before & ~after).sum()), int((after & ~before).sum())
    found: dict[str, Any] = {"items": n, "lost": lost, "gained": gained, "moved": int(((picks[0] != picks[1]) & ~before & ~after).sum())}
    for name, right in (("base", before), ("quantized", after)):
        low, high = wilson(int(right.sum()), n)
        found[name] = {"right": int(right.sum()), "percent": 100 * right.float().mean().item(), "low": low, "high": high}
    change = after.double() - before.double()
    mean, half = change.mean().item(), 1.96 * change.std().item() / n**0.5
    ends = {"low": 100 * (mean - half), "high": 100 * (mean + half)} if half else {"low": None, "high": None}
    return found | {"p": mcnemar(lost, gained), "difference": 100 * mean} | ends


TASK = Task("choices", work)
