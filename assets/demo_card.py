"""Writes the demo model's card and loss curve from its training record; nothing in the card is typed in by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path


def loss_curve(history: list[dict], width: int = 640, height: int = 280) -> str:
    """An SVG of held-out and training loss (nats per token) against tokens seen."""
    left, bottom, top = 48, 36, 12
    series = {
        "training": ("#999999", [(h["tokens"], h["train_nats"]) for h in history if "train_nats" in h]),
        "held out": ("#0072B2", [(h["tokens"], h["held_out_nats"]) for h in history if "held_out_nats" in h]),
    }
    points = [p for _, line in series.values() for p in line]
    if not points:
        return ""
    x_max, y_min, y_max = max(x for x, _ in points), min(y for _, y in points) - 0.1, min(6.5, max(y for _, y in points))

    def place(x: float, y: float) -> str:
        px = left + (width - left - 12) * x / x_max
        py = top + (height - top - bottom) * (y_max - min(y, y_max)) / (y_max - y_min)
        return f"{px:.1f},{py:.1f}"

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">']
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    for y in range(math.ceil(y_min), math.floor(y_max) + 1):
        _, py = place(0, y).split(",")
        parts.append(f'<line x1="{left}" x2="{width - 12}" y1="{py}" y2="{py}" stroke="#ddd"/><text x="{left - 20}" y="{float(py) + 4}">{y}</text>')
    for i, (name, (colour, line)) in enumerate(series.items()):
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{" ".join(place(x, y) for x, y in line)}"/>')
        parts.append(f'<text x="{width - 110}" y="{top + 16 + 16 * i}" fill="{colour}">{name}</text>')
    parts.append(f'<text x="{left}" y="{height - 10}">0</text>')
    parts.append(f'<text x="{width - 12}" y="{height - 10}" text-anchor="end">{x_max / 1e6:.1f} M tokens seen</text>')
    parts.append(f'<text x="{left}" y="{height - 10}" dx="120">loss in nats per token</text></svg>')
    return "\n".join(parts) + "\n"


def write_card(folder: Path) -> None:
    """Writes README.md and loss-curve.svg beside training.json in `folder`."""
    record = json.loads((folder / "training.json").read_text())
    text = record["text"]
    (folder / "loss-curve.svg").write_text(loss_curve(record["history"]))
    rows = "\n".join(f"| {s['name']} | {s['licence']} | {s['characters'] / 1e6:.1f} |" for s in text["sources"])
    (folder / "README.md").write_text(f"""---
license: mit
library_name: transformers
pipeline_tag: text-generation
---
# Demo model

A small Llama-architecture language model of English technical prose, trained by this project so that the app needs no download. It is
for experiments with quantization and knows nothing reliably: do not ask it for facts.

| fact | value |
|---|---|
| parameters | {record["parameters"] / 1e6:.2f} M (tied embeddings), bf16 |
| tokens seen | {record["tokens_seen"] / 1e6:.1f} M, from a text of {text["tokens"] / 1e6:.1f} M tokens ({text["bytes"] / 1e6:.0f} MB) |
| held-out perplexity | {record["held_out_perplexity"]} (first 32 windows of 512 tokens of the evaluation half of `pydoc_data.topics`) |
| held-out bits per byte | {record["bits_per_byte"]} |
| leak check | {text["overlapping_documents"]} of {text["documents"]:,} documents share {text["overlap_words"]} words in a row with the held-out text |
| command | `python -m assets.train_demo` (resumes; runs on CPU or GPU) |

![loss curve](loss-curve.svg)

## Text

Fetched by package name when training; none of it is committed.

| source | licence | million characters |
|---|---|---|
{rows}
""")
