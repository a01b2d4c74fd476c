"""Which layer costs the quality: every linear layer rounded alone at several widths, and how far the whole model's output moves.

Weights are dequantized and the model runs in float32: in bfloat16 any change of one layer, however small, flips roundings further on, which costs
some 1e-4 nats on the bundled model, as much as a layer at 8 bits and 42 times too much once layers are summed.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from explorer import data, models
from explorer.calibration import sequential_statistics
from explorer.input_statistics import InputStatistics
from explorer.methods import Method, build, fields_of, label_of, methods
from explorer.metrics import mean_interval, window_means
from explorer.metrics.floor import fits_in_float32, in_float32, room
from explorer.metrics.layers import relative
from explorer.metrics.quality import token_statistics
from explorer.models import LoadedModel
from explorer.provenance import circumstances
from explorer.qtensor import QuantizedTensor
from explorer.quantizing import finite
from explorer.records import Answer, Event, InputError, Measurement, Progress, key_of, plain
from explorer.tasks import Engine, Task, task_key

WIDTHS = (2, 3, 4, 8)
WINDOWS = 4  # scored, all in one batch


@contextmanager
def resumed(blocks: nn.ModuleList, index: int, output: Any) -> Iterator[None]:
    """The model starting at block `index`: the blocks before it do nothing and hand on `output`, as the block before it returned it."""
    for block in blocks[:index]:
        block.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        for block in blocks[:index]:
            del block.forward


class Scorer:
    """Scores one changed layer at a time on windows [W, T] int64 against the unchanged model. Only the blocks from that layer on are run."""

    def __init__(self, loaded: LoadedModel, windows: Tensor) -> None:
        self.loaded, self.windows, self.blocks = loaded, windows, models.blocks(loaded.model)
        self.originals = models.linears(loaded.model)
        names = {id(layer): name for name, layer in self.originals.items()}
        self.block_of = {names[id(m)]: i for i, block in enumerate(self.blocks) for m in block.modules() if id(m) in names}
        self._index, self._entering, self._leaving = -1, None, None
        self._inputs: dict[str, Tensor] = {}
        self._reference: Tensor | None = None

    @torch.no_grad()
    def _logits(self) -> Tensor:
        with resumed(self.blocks, self._index, self._entering):
            return self.loaded.model(self.windows, use_cache=False).logits[:, :-1].flatten(0, 1)

    def _enter(self, index: int) -> None:
        """Runs the unchanged model once to learn what enters and leaves block `index` and the inputs [T, K] of its layers in the first window."""
        while self._index < index:
            self._index, self._entering, self._inputs = self._index + 1, self._leaving, {}
            block = self.blocks[self._index]
            handles = [block.register_forward_hook(lambda module, args, output: setattr(self, "_leaving", output))]
            for name in (name for name, where in self.block_of.items() if where == self._index):
                handles.append(self.originals[name].register_forward_pre_hook(lambda m, args, name=name: self._inputs.__setitem__(name, args[0][0])))
            try:
                reference = self._logits()
                self._reference = reference if self._reference is None else self._reference
            finally:
                for handle in handles:
                    handle.remove()

    @torch.no_grad()
    def score(self, name: str, weight: Tensor) -> dict[str, Any]:
        """What the model loses with weight [N, K] float32 in the named layer: kld (nats) and delta (paired change of perplexity, %), both with the
        ends of a 95% interval, None with one window; kld_windows, the mean of each; output_error (relative); tokens scored and bad ones left out.
        """
        self._enter(self.block_of[name])
        original, inputs = self.originals[name], self._inputs[name]
        exact, own = original(inputs), original.weight.data
        original.weight.data = weight.to(own.dtype)
        try:
            logits, moved = self._logits(), original(inputs)
        finally:
            original.weight.data = own
        tokens = token_statistics(self._reference, logits, self.windows[:, 1:].flatten())
        good = tokens["nll"].isfinite() & tokens["kld"].isfinite()
        by_window = {name: values.where(good, torch.nan).cpu().view(len(self.windows), -1) for name, values in tokens.items()}
        kld = mean_interval(by_window["kld"])
        delta = [None if v is None else 100 * math.expm1(v) for v in mean_interval(by_window["nll"] - by_window["base"])]
        return {
            "kld": kld[0], "kld_low": None if kld[1] is None else max(0.0, kld[1]), "kld_high": kld[2],
            "kld_windows": window_means(by_window["kld"]),
            "delta": delta[0], "delta_low": delta[1], "delta_high": delta[2],
            "output_error": relative(moved - exact, exact), "tokens": int(good.sum()), "bad": int((~good).sum()),
        }  # fmt: skip


def checked(method: str, params: dict[str, Any], bits: tuple[int, ...], windows: int) -> dict[int, Method]:
    """Width -> method. Raises InputError with a sentence."""
    known = methods()
    if method not in known or known[method].of_model or "bits" not in {f.name for f in fields_of(known[method])}:
        able = [n for n, m in known.items() if not m.of_model and "bits" in {f.name for f in fields_of(m)}]
        raise InputError(f"Sensitivity needs a method that rounds one layer at a time to a chosen width; choose one of {', '.join(able)}.")
    if not bits or not 1 <= windows <= 32:
        raise InputError("Give at least one width and 1 to 32 windows to score.")
    return {width: build(method, {**params, "bits": width}) for width in sorted(set(bits))}


def rounded(loaded: LoadedModel, chosen: dict[int, Method], rows: Tensor) -> Iterator[tuple[str, Callable[[int], QuantizedTensor]]]:
    """(layer, its tensor at a width) in the model's order, as a run of that width would round it: with the layers that read the same inputs, whose scales
    it may share. Inputs are those of the unchanged model, because nothing is replaced in between.
    """
    one, layers = next(iter(chosen.values())), models.linears(loaded.model)
    if one.reads_inputs():
        found = sequential_statistics(loaded, rows, {name: one.reads_gram(name) for name in layers})
    else:
        found = (([name], None, None) for name in layers)
    for group, inputs, before in found:
        if inputs is not None:
            finite(inputs.absmax, "inputs", group[0])
        able = [name for name in group if not one.refuses(tuple(layers[name].weight.shape), name)]
        taken = before.rows if before and len(able) == len(group) else None

        @cache
        def together(width: int, able: tuple[str, ...] = tuple(able), inputs: InputStatistics | None = inputs, taken: Tensor | None = taken) -> dict:
            weights = {name: finite(layers[name].weight, "weights", name).float() for name in able}
            return dict(chosen[width].quantize_together(weights, inputs, taken))

        for name in group:
            yield name, lambda width, name=name, together=together: together(width)[name]


def work(
    engine: Engine, model: str, method: str = "rtn", params: dict[str, Any] | None = None, bits: tuple[int, ...] = WIDTHS, windows: int = WINDOWS,
    sequences: int = 16,
) -> Iterator[Event]:  # fmt: skip
    """Yields a Measurement "sensitivity" for every layer and width; Answer data: rows (layer, bits, stored_bits, weights and what `Scorer.score`
    gives), kept ({layer: weights} that stay in 16 bits), method, params, label, text, model.

    Scored on the calibration text, on windows that calibrate nothing, so that a choice made from the answer can be judged on the evaluation text.
    params: the method's parameters without bits. Layers measured before are taken from the store.
    """
    chosen = checked(method, params or {}, tuple(bits), windows)
    ref = models.trained(model, engine.load.hub)
    length = min(1024, models.context(ref, engine.load.hub))
    key = task_key(TASK, {"model": model, "method": method, "params": params, "bits": bits, "windows": windows, "sequences": sequences}, engine.load)
    loaded = yield from engine.load.checked(ref)
    one = next(iter(chosen.values()))
    apart = sequences if one.reads_inputs() else 0
    rows = models.windows(loaded, data.text_of("bundled", "calibration"), (apart + windows) * length, length, seed=0)
    kept, found = dict[str, int](), list[dict[str, Any]]()
    small = fits_in_float32(loaded)  # a larger model keeps bfloat16 and its rounding noise
    with in_float32(loaded.model) if small else nullcontext():
        scorer = Scorer(loaded, rows[-windows:])
        for done, (name, tensor) in enumerate(rounded(loaded, chosen, rows[:-windows])):
            yield Progress("sensitivity", done, len(scorer.originals), name)
            shape = tuple(scorer.originals[name].weight.shape)
            if one.refuses(shape, name):
                kept[name] = shape[0] * shape[1]
                continue
            for row in _layer(engine, key_of(key, name, small), scorer, tuple(chosen), name, tensor):
                found.append(row)
                yield Measurement("sensitivity", row, "nats", name, n=row["tokens"], bad=row["bad"])
    yield Answer("sensitivity", {
        "model": ref.name, "method": method, "params": params or {}, "rows": plain(found), "kept": kept, "label": label_of(one).replace(f" {one.bits}-bit", ""),
        "text": f"bundled calibration text, {len(rows[-windows:])} windows of {length} tokens drawn at random, {'float32' if small else 'bfloat16'} arithmetic",
    }, circumstances(loaded.device) | ({} if small else {"needs": room(loaded)}))  # fmt: skip


def _layer(engine: Engine, key: str, scorer: Scorer, widths: tuple[int, ...], name: str, tensor: Callable[[int], QuantizedTensor]) -> list[dict[str, Any]]:
    """The rows of one layer, from the store when it was measured before."""
    stored = engine.store.get(key)
    if stored is not None:
        return stored[1]["rows"]
    original, rows = scorer.originals[name], []
    for width in widths:
        q = tensor(width)
        scored = scorer.score(name, q.dequantize())
        rows.append({"layer": name, "bits": width, "stored_bits": q.stored_bits(), "weights": original.weight.numel(), **scored})
    with suppress(sqlite3.Error):  # the answer of all layers says when the store takes nothing
        engine.store.put(key, "sensitivity of a layer", [], {"rows": rows})
    return rows


TASK = Task("sensitivity", work)
