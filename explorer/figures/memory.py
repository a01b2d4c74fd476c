"""Memory by part: codes, scales, 16-bit copies of weights, what stayed in 16 bits, and the KV cache."""

from __future__ import annotations

from collections.abc import Sequence

from explorer.figures import COLOURS, PATTERNS, Figure, Plot, layout, plot, with_metrics
from explorer.records import Report

PARTS = (("memory_kept", "kept in 16 bits"), ("memory_codes", "codes"), ("memory_scales", "scales and zeros"), ("memory_kv_cache", "KV cache"))

COPIES = ("memory_copies", "16-bit copies of weights")  # only where a kernel holds some


def tokens(reports: Sequence[Report]) -> str:
    """At how many tokens the caches were computed, such as "2,048 tokens"."""
    lengths = sorted({cache.n for r in reports if (cache := r.find("memory_kv_cache"))})
    return " or ".join(f"{length:,}" for length in lengths) + " tokens"


def draw(reports: Sequence[Report], layer: str) -> Plot:
    found = [r for _, r in with_metrics(reports, *(metric for metric, _ in PARTS))]
    data = []
    for i, (metric, title) in enumerate((*PARTS, COPIES) if found else ()):
        if (metric, title) == COPIES and not any(r.find(metric) for r in found):
            continue
        name = f"{title} at {tokens(found)}" if metric == "memory_kv_cache" else title
        data.append(
            {"type": "bar", "orientation": "h", "y": [r.name for r in found], "x": [(r.value(metric) or 0) / 2**20 for r in found], "name": name,
             "marker": {"color": COLOURS[i], "pattern": {"shape": PATTERNS[i]}}, "hovertemplate": "%{x:.2f} MiB"}
        )  # fmt: skip
    return plot(data, layout("MiB resident", "", barmode="stack", yaxis={"autorange": "reversed"}, legend={"traceorder": "normal"}))


def summary(reports: Sequence[Report], layer: str) -> str:
    found = [r for _, r in with_metrics(reports, "weight_bytes", "memory_kv_cache")]
    parts = [f"{r.name}: {r.value('weight_bytes') / 2**20:.2f} MiB of weights, {r.value('memory_kv_cache') / 2**20:.2f} of KV cache" for r in found]
    return f"{'; '.join(parts)}. The cache is that of one sequence of {tokens(found)}." if parts else "No memory measured."


FIGURE = Figure(
    "memory", "Memory",
    "See what does not shrink: embeddings, norms and the KV cache stay in 16 bits, so a quarter of the bits is not a quarter of the memory.",
    "Bytes are summed from the tensors in use after packing: our kernel for CPUs holds codes of 2 to 6 bits in as many, and 7 in 8; torch's "
    "operators, where it is not built, hold up to 3 bits in 4, and 5 to 7 in 8; a format that no kernel reads "
    "here is held as a copy in 16 bits. "
    "What stays weighs more the fewer bits the rest has: of Llama 3.1 70B the embedding and the head are 3% of the bytes in 16 bits, and 10% once the "
    "blocks have 4.25 bits a weight. The KV cache is computed for one sequence and grows with both length and batch.",
    tuple(metric for metric, _ in PARTS), draw, summary, order=2,
)  # fmt: skip
