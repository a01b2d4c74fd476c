"""How much the model changed: perplexity, its paired difference to 16 bits, KL divergence, agreement and the correct token's probability, by token.

Both models run over the same windows. All differences are paired by token, which is what makes a few thousand tokens enough to tell
4 bits from 16 (llama.cpp's perplexity tool is the model for this protocol).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from explorer.kvcache import chunked_logits
from explorer.likelihood import by_rows, passes
from explorer.metrics import Interval, Metric, Subject, mean_interval, quantile_interval, window_means
from explorer.records import Measurement, Progress

BATCH = 2  # windows a forward pass at most
POINTS = "percentage points"
TIE = 0.2  # probability by which the top token must lead the second; below it a flip changes little


COLUMNS = ("base", "nll", "kld", "same", "lead")


def token_statistics(reference: Tensor, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Per token [M]: nll of both models (nats), KL(reference || model) (nats), whether the top tokens agree, the reference's lead of its top token
    over the second (probability). Logits are [M, V].
    """
    return dict(zip(COLUMNS, by_rows(_statistics, reference, logits, targets).T.contiguous(), strict=True))


def _statistics(reference: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """[M, COLUMNS] float32 of a few rows."""
    p, q = reference.float().log_softmax(-1), logits.float().log_softmax(-1)
    pick = targets.unsqueeze(-1)
    top = p.topk(2).values.exp()
    base, nll = -p.gather(-1, pick).squeeze(-1), -q.gather(-1, pick).squeeze(-1)
    kld = (p.exp() * (p - q)).sum(-1).clamp(min=0)
    same = (p.argmax(-1) == q.argmax(-1)).float().where(q.isfinite().all(-1), torch.nan)
    return torch.stack([base, nll, kld, same, top[:, 0] - top[:, 1]], 1)


@torch.no_grad()
def measure(subject: Subject) -> Iterator[Progress | Measurement]:
    model, rows, baseline = subject.loaded.model, [], not subject.layers and subject.kv_bits == 16 and subject.head is None
    batches = passes(model, subject.windows, BATCH)
    for done, batch in enumerate(batches):
        yield Progress("perplexity", done, len(batches), f"{done * batch.numel():,} tokens scored")
        reference = model(batch, use_cache=False).logits[:, :-1].flatten(0, 1)
        logits = reference
        if not baseline:
            with subject.quantized():
                logits = chunked_logits(model, batch, subject.kv_bits)[:, :-1].flatten(0, 1)
        rows.append(token_statistics(reference, logits, batch[:, 1:].flatten()))
        del reference, logits  # else they are held while the next are made
    shape = (len(subject.windows), -1)
    yield from summarise({key: torch.cat([row[key] for row in rows]).cpu().view(shape) for key in rows[0]})


def summarise(tokens: dict[str, Tensor]) -> Iterator[Measurement]:
    """Measurements from per-token statistics [W, T]; tokens with NaN or infinities are left out of every mean and counted in `bad`.

    Intervals are those of `mean_interval`; perplexity's has the ends of that of the mean log-likelihood. The largest divergence has none: it grows
    with the text. kld_windows and nll_delta_windows (nats, of the negative log-likelihood less the baseline's) are lists of W window means, by which two
    configurations are paired (see explorer.paired).
    """
    good = tokens["nll"].isfinite() & tokens["base"].isfinite() & tokens["kld"].isfinite()
    kept = {key: value.where(good, torch.nan) for key, value in tokens.items()}

    def found(name: str, interval: Interval, unit: str, least: float = -math.inf, most: float = math.inf) -> Measurement:
        value, low, high = interval
        ends = {"low": None if low is None else max(least, low), "high": None if high is None else min(most, high)}
        return Measurement(name, value, unit, **ends, n=int(good.sum()), bad=int((~good).sum()))

    yield found("perplexity", _each(_exp, mean_interval(kept["nll"])), "")
    yield found("perplexity_delta", _each(lambda nats: 100 * (_exp(nats) - 1), mean_interval(kept["nll"] - kept["base"])), "%")
    kld = kept["kld"]
    for name, values in (("kld_windows", kld), ("nll_delta_windows", kept["nll"] - kept["base"])):
        yield Measurement(name, window_means(values), "nats", n=int(good.sum()), bad=int((~good).sum()))
    yield found("kld_mean", mean_interval(kld), "nats", least=0.0)
    for name, share in (("kld_median", 0.5), ("kld_p99", 0.99)):
        yield found(name, quantile_interval(kld, share), "nats")
    yield found("kld_max", (kld[good].max().item() if good.any() else math.nan, None, None), "nats")
    # Mean and root mean square of how much the probability of the token that follows changed, which llama.cpp's perplexity tool prints as those of
    # delta p. The mean tells whether the model got worse, the RMS how much noise the rounding is, in whichever direction.
    change = 100 * ((-kept["nll"]).exp() - (-kept["base"]).exp())
    yield found("p_correct_change", mean_interval(change), POINTS)
    yield found("p_correct_rms", _each(lambda square: math.sqrt(max(0.0, square)), mean_interval(change.double().square())), POINTS)
    yield found("top1_agreement", mean_interval(kept["same"] * 100), "%", least=0.0, most=100.0)
    clear = ((kept["same"] == 0) & (kept["lead"] > TIE)).float().where(good, torch.nan)
    yield found("clear_flips", mean_interval(clear * 100), "%", least=0.0, most=100.0)


def _each(function: Callable[[float], float], interval: Interval) -> Interval:
    """A monotone function of a value and its ends, None and NaN kept."""
    value, low, high = (end if end is None or math.isnan(end) else function(end) for end in interval)
    return value, low, high


def _exp(nats: float) -> float:
    return math.inf if nats > 700 else math.exp(nats)


METRIC = Metric("quality", measure, order=0)
