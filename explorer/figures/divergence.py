"""What the quantization costs in divergence: how far the predicted distributions moved from the baseline's."""

from __future__ import annotations

from collections.abc import Sequence

from explorer.figures import Figure, Plot, against_bits, with_metrics
from explorer.findings import known
from explorer.paired import ranked
from explorer.records import Report, significant


def draw(reports: Sequence[Report], layer: str) -> Plot:
    return against_bits(reports, "kld_mean", "mean KL divergence, nats (log)")


def summary(reports: Sequence[Report], layer: str) -> str:
    found = [r for _, r in with_metrics(reports, "kld_mean", "top1_agreement") if not r.experiment.spec.is_baseline]
    parts = [f"{r.name}: {significant(r.value('kld_mean'))} nats, same top token {r.value('top1_agreement'):.1f}%" for r in found]
    if not parts:
        return "No quantized configuration measured yet."
    floor = next(filter(None, (known(r, "kld_floor") for r in reports)), None)
    noise = f" 16 bits themselves are {significant(floor.value)} nats from float32: below twice that a divergence is not told from rounding." if floor else ""
    return " ".join(filter(None, ("Mean KL divergence to the baseline. " + "; ".join(parts) + ".", ranked(found)))) + noise


FIGURE = Figure(
    "divergence", "Divergence against bits",
    "See whether configurations stand apart here that the perplexity cannot tell apart; the words below pair neighbours by window.",
    "KL divergence compares whole distributions, not only the probability of the one token that came next. Gains and losses cannot cancel in it, "
    "so it shows damage long before the perplexity moves. 0 means the same distribution at every position. Bars are of each configuration alone, and most "
    "of a bar is how hard the text is, the same for all: where bars overlap, the difference by window may still be certain.",
    ("kld_mean", "top1_agreement"), draw, summary, order=1,
)  # fmt: skip
