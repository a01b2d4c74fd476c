"""Provenance: what a report says about its own circumstances, and the name of a configuration. Measures nothing."""

from __future__ import annotations

import datetime
from collections import Counter
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from explorer.methods import Method, build, label_of
from explorer.metrics import Subject, metrics
from explorer.metrics.sample import PROMPT
from explorer.models import bos_of
from explorer.qlinear import HEAD
from explorer.records import OUTSIDE, Experiment, QuantSpec, TextRef
from kernels.timing import device_name

RANDOM = "random token ids: the weights are random, so nothing that depends on what the model says is measured, only size, memory and speed"

OFFLOADED = "the 16-bit model does not fit here whole: its weights stay in their files and are read a layer at a time, so 16 bits are not timed"
UNTIED = "config.json ties the head to the embedding, but the files hold two different matrices: each is used as the files have it, as transformers does"

FEW, DAMPED = 4, "damping decides; GPTQ's authors read 128 x 2,048"  # tokens an input below which that is said of an inverted Gram matrix
ROUNDED = "weights are rounded to bfloat16 as they are read, and the 16-bit baseline is that copy"


def name_of(spec: QuantSpec, method: Method) -> str:
    """A short name such as "GPTQ 4-bit g64, KV 4-bit, head 8-bit"."""
    rest = [f"{what} {bits}-bit" for what, bits in (("KV", spec.kv_bits), ("head", spec.head_bits)) if bits != 16]
    return ", ".join(["16-bit weights" if rest and spec.method == "none" else label_of(method), *rest])


def circumstances(device: torch.device) -> dict[str, str]:
    """Where, with what and when something was measured."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {"device": device_name(device), "torch": torch.__version__, "date": now}


def merged(told: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The provenance of a report from that of each metric by name; dates: of each.

    Where they differ the later wins, in this order: metrics of the 16-bit model, which may have been measured with nothing quantized; those that all
    devices share; those of this device, so that its name and its kernels stand. Each by name.
    """
    kinds = metrics()
    order = sorted(told, key=lambda name: (not kinds[name].of_model, kinds[name].per_device, name))
    found = {key: value for name in order for key, value in told[name].items()}
    return found | {"dates": {name: told[name].get("date") for name in told}}


def instead(subject: Subject, spec: QuantSpec) -> str:
    """Which other formats layers got in place of the one that was asked for, such as "36 of 42 layers q5_0"; "" for none."""
    method = build(spec.method, dict(spec.params)).for_model(subject.loaded.model.config.to_dict())
    others = Counter(other for name in subject.layers if (other := method.stored_as(tuple(subject.originals[name].weight.shape), name)))
    return ", ".join(f"{count} of {len(subject.originals)} layers {other}" for other, count in others.items())


def describe(subject: Subject, experiment: Experiment, skipped: dict[str, str]) -> dict[str, Any]:
    """Provenance: device, versions, which kernel runs in each layer, what was skipped and why, the evaluation protocol."""
    kernels = {name: layer.kernel for name, layer in subject.layers.items()}
    counts: dict[str, int] = {}
    for kernel in kernels.values():
        counts[kernel] = counts.get(kernel, 0) + 1
    summary = "; ".join(f"{kernel} on {count} of {len(subject.originals)} layers" for kernel, count in counts.items())
    text = experiment.evaluation
    return {
        **circumstances(subject.loaded.device),
        "transformers": transformers.__version__,
        "kernels": kernels,
        "kernel_summary": summary or f"torch bfloat16 linear on {len(subject.originals)} layers",
        "kernel_why": sorted({layer.why for layer in subject.layers.values() if layer.why}),
        "kernel_rows": many_rows(subject),
        "kernel_turns": turning(subject),
        "skipped": skipped | unquantized(subject) if subject.layers else {},
        "instead": instead(subject, experiment.spec),
        "offloaded": OFFLOADED if subject.loaded.offloaded else "",
        "untied": UNTIED if subject.loaded.untied else "",
        "stored": f"the files hold {' and '.join(stored)}: {ROUNDED}" if (stored := subject.loaded.stored) else "",
        "head": subject.head.kernel if subject.head else "torch bfloat16 linear",
        "text": RANDOM if subject.loaded.ref.random else f"{text.source} evaluation text {text.digest}, {drawing(subject, text)}",
        "calibration": calibrated(subject.read, experiment.calibration, beginning(subject, experiment.calibration), inverted(subject, experiment.spec)),
        "calibration_tokens": 0 if subject.read is None else subject.read.numel(),
        "tokens": subject.windows.numel(),
        "kv_context": subject.loaded.length,
        "prompt": PROMPT,
    }


def calibrated(read: Tensor | None, asked: TextRef, began: str = "", inverted: int = 0) -> str:
    """What was read to calibrate, windows [W, T] or None, and whether the text had less than was asked for. began: as `beginning` says it. inverted: most
    inputs of a layer whose Gram matrix is inverted; too few tokens for it are said.
    """
    if read is None:
        return "none read"
    words = f"{asked.source} calibration text {asked.digest}, {read.numel():,} tokens in windows of {asked.length}{began}, seed {asked.seed}"
    words += "" if read.numel() >= asked.tokens else f"; {asked.tokens:,} were asked for, the text has no more whole windows"
    few = f"; the Gram matrix of layers with {inverted:,} inputs comes from {read.numel():,} tokens, fewer than {FEW} x {inverted:,}: {DAMPED}"
    return words + few if read.numel() < FEW * inverted else words


def inverted(subject: Subject, spec: QuantSpec) -> int:
    """Most inputs of a quantized layer whose Gram matrix the method inverts; 0 where it inverts none."""
    method = build(spec.method, dict(spec.params)).for_model(subject.loaded.model.config.to_dict())
    return max((subject.originals[name].weight.shape[1] for name in subject.layers if method.inverts_gram(name)), default=0)


def drawing(subject: Subject, text: TextRef) -> str:
    """Which windows of the evaluation text were scored."""
    taken, have = len(subject.windows), max(len(subject.windows), subject.available)
    which = f"all {have}" if taken == have else f"{taken} of {have}"
    return f"{which} windows of {text.length} tokens{beginning(subject, text)}, {'' if taken == have else f'drawn at random (seed {text.seed}), '}no overlap"


def beginning(subject: Subject, text: TextRef) -> str:
    """Where BOS stands in the windows of a text; "" where the model's tokenizer adds none."""
    tokenizer = subject.loaded.tokenizer
    if tokenizer is None or bos_of(tokenizer) is None:
        return ""
    return ", each begun with BOS" if text.bos == "window" else " of the text begun once with BOS"


def many_rows(subject: Subject) -> str:
    """Which kernels run for many rows at once, and from how many rows on; "" where nothing changes with the rows."""
    found: dict[str, list[int]] = {}
    for layer in subject.layers.values():
        if many := getattr(layer, "many", None):
            found.setdefault(many[1], []).append(many[0])
    least = {name: (min(rows), f" ({max(rows)} in some layers)" if max(rows) > min(rows) else "") for name, rows in found.items()}
    return "; ".join(f"from {rows} rows at once{spread} with {name} first" for name, (rows, spread) in least.items())


def turning(subject: Subject) -> str:
    """What turns inputs by a Hadamard matrix, "" where nothing does."""
    return "; ".join(f"inputs turned by {name}" for name in dict.fromkeys(getattr(layer, "turned_by", "") for layer in subject.layers.values()) if name)


def unquantized(subject: Subject) -> dict[str, str]:
    """{name: why} of the matrices outside the decoder blocks, which every method leaves in 16 bits."""
    inside = {id(layer) for layer in (*subject.originals.values(), *subject.layers.values())}
    modules = subject.loaded.model.named_modules()
    gone = {HEAD} if subject.head else set()
    return {name: OUTSIDE for name, m in modules if isinstance(m, nn.Linear | nn.Embedding) and id(m) not in inside and name not in gone}
