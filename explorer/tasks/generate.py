"""The same prompt through several configurations, in step: what each writes, what the 16-bit model thinks of it, where they part."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from explorer import models
from explorer.kvcache import chunked_logits, kivi_cache
from explorer.metrics import Subject
from explorer.metrics.quality import token_statistics
from explorer.models import LoadedModel, reading
from explorer.pieces import pieces
from explorer.provenance import circumstances, name_of
from explorer.records import Answer, Event, InputError, Progress
from explorer.repetition import cycle, repetition
from explorer.request import Request, whole
from explorer.subjects import subject_of
from explorer.tasks import Engine, Task

BESIDE, NEW = 4, 256  # configurations beside the baseline; tokens written, at most
CHARACTERS = 8_000  # of a prompt
PAUSE = 0.15  # seconds between drafts
COLUMNS = ("ids", "p", "own", "rank", "top", "top_text", "kl")


@dataclass
class Writer:
    """One configuration at work: its layers, its cache, its tokens so far with what is said of each (see `work`)."""

    label: str
    subject: Subject
    token: Tensor
    cache: Any
    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    ended: bool = False

    def logits(self) -> Tensor:
        """[V] float32 after the tokens read so far."""
        model = self.subject.loaded.model
        with self.subject.quantized():
            out = model(self.token, use_cache=True, logits_to_keep=1, **reading(model, self.cache))
        return out.logits[0, -1].float()


def work(engine: Engine, model: str, specs: list[dict[str, Any]], prompt: str, new: int = 64, temperature: float = 0.0, seed: int = 0) -> Iterator[Event]:
    """specs: {"method", "params", "options"} as `Request` takes them, besides the baseline. temperature 0 always takes the likeliest token; above
    it the tokens are drawn with the same noise for all, so that two configurations part only where their distributions do.

    Answer data: prompt (its tokens as text), done, runs (the baseline's first), each with label, repetition, cycle, diverged (the first token that
    is not the baseline's, or None) and by token: ids, text, p (the baseline model's probability of it in this context), own (this configuration's),
    rank (in the baseline's order, 1 the likeliest), top_text and top (the baseline's likeliest token here and this configuration's probability of
    it), kl (baseline to this one, nats). At the end forced: see `forced`.
    """
    _check(specs, prompt, new, temperature, seed)
    subjects = []
    for spec in [{"method": "none", "params": {}}, *specs]:
        experiment, chosen, texts = Request(model, spec["method"], spec["params"], **spec.get("options", {})).prepare(engine.load.hub)
        name = name_of(experiment.spec, chosen)
        subjects.append((name, (yield from _named(name, subject_of(engine.load, experiment, chosen, texts)))))
    loaded = subjects[0][1].loaded
    ids = models.prompt(loaded, prompt)
    if not 1 <= ids.shape[1] <= loaded.length - new:
        raise InputError(f"The prompt has {ids.shape[1]} tokens; with {new} new ones the model takes 1 to {loaded.length - new}.")
    writers = [Writer(name, subject, ids, cache_of(subject)) for name, subject in subjects]
    draft = {"prompt": pieces(loaded.tokenizer, ids[0].tolist()), "temperature": temperature, "seed": seed}
    shown = time.monotonic()
    for done in _written(writers, ids, new, temperature, seed):
        if time.monotonic() - shown > PAUSE:
            shown = time.monotonic()
            yield Progress("writing", done, new, f"{len(writers)} texts in step")
            yield Answer("generate", draft | {"done": False, "runs": runs_of(writers, ids)})
    yield Progress("reading", 0, 1, "the baseline's text under every configuration")
    found = {"done": True, "runs": runs_of(writers, ids), "forced": forced(writers, ids)}
    yield Answer("generate", draft | found, circumstances(loaded.device))


def _check(specs: Any, prompt: Any, new: Any, temperature: Any, seed: Any) -> None:
    if not isinstance(specs, list) or len(specs) > BESIDE or not all(isinstance(s, dict) and {"method", "params"} <= s.keys() for s in specs):
        raise InputError(f"Give at most {BESIDE} configurations beside the baseline.")
    if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > CHARACTERS:
        raise InputError(f"Write a prompt of 1 to {CHARACTERS:,} characters.")
    drawn = isinstance(temperature, int | float) and not isinstance(temperature, bool) and 0 <= temperature <= 2
    if not (whole(new, 1, NEW) and drawn and whole(seed, 0, 2**31 - 1)):
        raise InputError(f"Give 1 to {NEW} new tokens, a temperature from 0 (always the likeliest token) to 2 and a seed from 0 up.")


def _named(name: str, events: Iterator[Progress]) -> Iterator[Progress]:
    """The events with the configuration's name before their detail; returns what they return."""
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            return end.value
        yield Progress(event.stage, event.done, event.total, f"{name}: {event.detail}")


def cache_of(subject: Subject) -> Any:
    """An empty KV cache in the subject's width."""
    config = subject.loaded.model.config
    return DynamicCache(config=config) if subject.kv_bits == 16 else kivi_cache(config, subject.kv_bits)


@torch.no_grad()
def _written(writers: Sequence[Writer], prompt: Tensor, new: int, temperature: float, seed: int) -> Iterator[int]:
    """Lets all write; yields how many tokens each has. The baseline model reads all texts as one batch, its own first."""
    base, loaded = writers[0], writers[0].subject.loaded
    draw = torch.Generator().manual_seed(seed)
    reads, seen = prompt.expand(len(writers), -1), DynamicCache(config=loaded.model.config)
    for done in range(new):
        theirs = loaded.model(reads, use_cache=True, logits_to_keep=1, **reading(loaded.model, seen)).logits[:, -1].float()
        noise = _gumbel(theirs.shape[1], draw).to(loaded.device) if temperature else 0.0
        for writer, reference in zip(writers, theirs, strict=True):
            own = reference if writer is base else writer.logits()
            token = int((own / temperature + noise if temperature else own).argmax())
            if not writer.ended:
                _note(writer, token, reference, own, loaded, prompt[0].tolist())
                writer.ended = token == loaded.tokenizer.eos_token_id
            writer.token = torch.tensor([[token]], device=loaded.device)
        reads = torch.cat([writer.token for writer in writers])
        yield done + 1
        if all(writer.ended for writer in writers):
            return


def _gumbel(size: int, draw: torch.Generator) -> Tensor:
    """[size] standard Gumbel noise: the argmax of log-probabilities plus it is a draw from the distribution."""
    return -torch.log(-torch.log(torch.rand(size, generator=draw).clamp(1e-20, 1 - 1e-7)))


def _note(writer: Writer, token: int, reference: Tensor, own: Tensor, loaded: LoadedModel, prompt: list[int]) -> None:
    p, q = reference.log_softmax(-1), own.log_softmax(-1)
    top, columns = int(p.argmax()), writer.columns
    [instead] = pieces(loaded.tokenizer, [top], prompt + columns["ids"])
    found = token, p[token].exp(), q[token].exp(), int((p > p[token]).sum()) + 1, q[top].exp(), instead, (p.exp() * (p - q)).sum().clamp(min=0)
    for name, value in zip(COLUMNS, found, strict=True):
        columns[name].append(_number(value) if isinstance(value, Tensor) else value)


def _number(value: Tensor) -> float | None:
    """A float of four significant digits, None where it is not finite."""
    number = float(value)
    return float(f"{number:.4g}") if math.isfinite(number) else None


def runs_of(writers: Sequence[Writer], prompt: Tensor) -> list[dict[str, Any]]:
    """What each has written, as data; where it left the baseline's text; how much it repeats itself."""
    base, tokenizer, runs = writers[0].columns["ids"], writers[0].subject.loaded.tokenizer, []
    for writer in writers:
        ids = writer.columns["ids"]
        parted = next((i for i, (a, b) in enumerate(zip(ids, base, strict=False)) if a != b), None)
        told = {"label": writer.label, "diverged": parted, "repetition": repetition(ids), "cycle": cycle(ids)}
        runs.append(told | {"text": pieces(tokenizer, ids, prompt[0].tolist())} | {name: list(values) for name, values in writer.columns.items()})
    return runs


@torch.no_grad()
def forced(writers: Sequence[Writer], prompt: Tensor) -> dict[str, Any]:
    """The baseline's text, read by every configuration as if it wrote it, the prompt at once: text (its tokens from the second on), start (of these,
    how many are the prompt's), p (the baseline's probability of each), lead (of its likeliest token over the second); runs: label and by token kl,
    p, flip (whether the likeliest token is another).
    """
    loaded = writers[0].subject.loaded
    ids = torch.cat([prompt, torch.tensor([writers[0].columns["ids"]], device=loaded.device)], dim=1)
    reference = loaded.model(ids, use_cache=False).logits[0, :-1]
    base, runs = token_statistics(reference, reference, ids[0, 1:]), []
    for writer in writers[1:]:
        with writer.subject.quantized():
            own = token_statistics(reference, chunked_logits(loaded.model, ids, writer.subject.kv_bits, prompt.shape[1])[0, :-1], ids[0, 1:])
        kl, p = ([*map(_number, values)] for values in (own["kld"], (-own["nll"]).exp()))
        runs.append({"label": writer.label, "kl": kl, "p": p, "flip": (own["same"] != 1).tolist()})
    told = pieces(loaded.tokenizer, ids[0].tolist())[1:]
    return {
        "text": told, "start": prompt.shape[1] - 1, "p": [*map(_number, (-base["base"]).exp())],
        "lead": [*map(_number, base["lead"])], "runs": runs,
    }  # fmt: skip


TASK = Task("generate", work)
