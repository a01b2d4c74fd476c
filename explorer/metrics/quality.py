"""How much the model changed: perplexity, its paired difference to 16 bits, KL divergence, agreement and the correct token's probability, by token.

Both models run over the same windows. All differences are paired by token, which is what makes a few thousand tokens enough to tell
4 bits from 16 (llama.cpp's perplexity tool is the model for this protocol).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from explorer.kvcache import chunked_logits
from explorer.metrics import Metric, Subject, mean_interval
from explorer.records import Measurement, Progress

BATCH = 2  # windows a forward pass
POINTS = "percentage points"
TIE = 0.2  # probability by which the top token must lead the second; below it a flip changes little


def token_statistics(reference: Tensor, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Per token [M]: nll of both models (nats), KL(reference || model) (nats), whether the top tokens agree, the reference's lead of its top token
    over the second (probability). Logits are [M, V].
    """
    p, q = reference.float().log_softmax(-1), logits.float().log_softmax(-1)
    pick = targets.unsqueeze(-1)
    top = p.topk(2).values.exp()
    return {
        "base": -p.gather(-1, pick).squeeze(-1),
        "nll": -q.gather(-1, pick).squeeze(-1),
        "kld": (p.exp() * (p - q)).sum(-1).clamp(min=0),
        "same": (p.argmax(-1) == q.argmax(-1)).float().where(q.isfinite().all(-1), torch.nan),
        "lead": top[:, 0] - top[:, 1],
    }


@torch.no_grad()
def measure(subject: Subject) -> Iterator[Progress | Measurement]:
    model, rows, baseline = subject.loaded.model, [], not subject.layers and subject.kv_bits == 16 and subject.head is None
    batches = subject.windows.split(BATCH)
    for done, batch in enumerate(batches):
        yield Progress("perplexity", done, len(batches), f"{done * batch.numel():,} tokens scored")
        reference = model(batch, use_cache=False).logits[:, :-1].flatten(0, 1)
        logits = reference
        if not baseline:
            with subject.quantized():
                logits = chunked_logits(model, batch, subject.kv_bits)[:, :-1].flatten(0, 1)
        rows.append(token_statistics(reference, logits, batch[:, 1:].flatten()))
    yield from summarise({key: torch.cat([row[key] for row in rows]).cpu() for key in rows[0]}, baseline)


def summarise(tokens: dict[str, Tensor], is_baseline: bool) -> Iterator[Measurement]:
    """Measurements from per-token statistics; tokens with NaN or infinities are left out of every mean and counted in `bad`."""
    good = tokens["nll"].isfinite() & tokens["base"].isfinite() & tokens["kld"].isfinite()
    bad, n = int((~good).sum()), int(good.sum())
    kept = {key: value[good] for key, value in tokens.items()}
    nll, low, high = mean_interval(kept["nll"])
    yield Measurement("perplexity", _exp(nll), "", low=_exp(low), high=_exp(high), n=n, bad=bad)
    delta, low, high = (0.0, 0.0, 0.0) if is_baseline else mean_interval(kept["nll"] - kept["base"])
    yield Measurement("perplexity_delta", 100 * (_exp(delta) - 1), "%", low=100 * (_exp(low) - 1), high=100 * (_exp(high) - 1), n=n, bad=bad)
    kld, low, high = mean_interval(kept["kld"])
    yield Measurement("kld_mean", kld, "nats", low=max(0.0, low), high=high, n=n, bad=bad)
    for name, share in (("kld_median", 0.5), ("kld_p99", 0.99), ("kld_max", 1.0)):
        value = torch.quantile(kept["kld"], share).item() if n else math.nan
        yield Measurement(name, value, "nats", n=n, bad=bad)
    yield from of_correct_token(100 * ((-kept["nll"]).exp() - (-kept["base"]).exp()), bad)
    same, low, high = mean_interval(kept["same"] * 100)
    yield Measurement("top1_agreement", same, "%", low=low, high=min(100.0, high), n=n, bad=bad)
    clear = ((kept["same"] == 0) & (kept["lead"] > TIE)).float() * 100
    share, low, high = mean_interval(clear)
    yield Measurement("clear_flips", share, "%", low=max(0.0, low), high=high, n=n, bad=bad)


def of_correct_token(change: Tensor, bad: int) -> Iterator[Measurement]:
    """Mean and root mean square of how much the probability of the token that follows changed, in percentage points, from change [n].

    They are what llama.cpp's perplexity tool prints as mean and RMS of Δp. The mean tells whether the model got worse, the RMS how much noise the
    rounding is, in whichever direction.
    """
    mean, low, high = mean_interval(change)
    yield Measurement("p_correct_change", mean, POINTS, low=low, high=high, n=change.numel(), bad=bad)
    square, low, high = (math.sqrt(max(0.0, value)) if math.isfinite(value) else value for value in mean_interval(change.double().square()))
    yield Measurement("p_correct_rms", square, POINTS, low=low, high=high, n=change.numel(), bad=bad)


def _exp(nats: float) -> float:
    return math.inf if nats > 700 else math.exp(nats)


METRIC = Metric("quality", measure)
