"""Checkpoints that load elsewhere: which formats there are, which of them holds a quantized model exactly, and writing one with its tokenizer and card."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from explorer.folding import folded
from explorer.metrics import Subject
from explorer.models import LoadedModel
from explorer.qtensor import QuantizedTensor
from explorer.records import InputError, Report
from explorer.version import written_by
from explorer.writing import whole

SHOWN = {
    "bits_per_weight": "bits per weight, by the method", "perplexity": "perplexity", "perplexity_delta": "change in perplexity, paired",
    "kld_mean": "KL divergence to 16 bits", "top1_agreement": "same top token as 16 bits",
}  # fmt: skip
TRANSPOSED = ("gpt2",)  # architectures that keep their linear layers the other way round
NOTHING = "No layer is quantized, so the checkpoint would be the model as it is; choose a quantized configuration."


def _any_model(loaded: LoadedModel) -> str:
    return ""


@dataclass(frozen=True)
class Format:
    """A way of storing quantized layers that other programs read.

    refuses(qtensor): why it cannot hold this layer exactly, "" when it can. tensors(qtensor): its parameters by the name they have in the layer.
    config(layers, rest): the `quantization_config` of config.json, rest the linear layers that stay in 16 bits; None for none.
    loads: what reads it, for the card; readers(prepared): the same for a model that not all of them run as it is, "" where they do. exact: whether the
    weights are the quantized ones to the bit. refuses_model(loaded): as refuses, of the model.
    write(loaded, 16-bit parameters, layers, folder): for a format that is no folder of transformers; it then needs no tensors and no config.
    stored(qtensor): for such a format the name of the layout that a layer is written in and the bits it takes.
    families: the model types that it is written for, none for all.
    """

    name: str
    title: str
    refuses: Callable[[QuantizedTensor], str]
    tensors: Callable[[QuantizedTensor], dict[str, Tensor]] | None
    config: Callable[[Mapping[str, QuantizedTensor], Sequence[str]], dict[str, Any] | None] | None
    loads: str
    exact: bool = True
    refuses_model: Callable[[LoadedModel], str] = _any_model
    write: Callable[[LoadedModel, Mapping[str, Tensor], Mapping[str, QuantizedTensor], Path], None] | None = None
    stored: Callable[[QuantizedTensor], tuple[str, int]] | None = None
    families: tuple[str, ...] = ()
    readers: Callable[[Prepared], str] | None = None


@dataclass(frozen=True)
class Prepared:
    """A quantized model as a checkpoint has it: input scales folded where that can be. changed: the 16-bit parameters that took them, by path."""

    subject: Subject
    layers: dict[str, QuantizedTensor]
    changed: dict[str, Tensor]

    @classmethod
    def of(cls, subject: Subject) -> Prepared:
        return cls(subject, *folded(subject))


@cache
def formats() -> dict[str, Format]:
    """Every FORMAT in this folder by name, those that hold codes first."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    found = [module.FORMAT for module in modules if hasattr(module, "FORMAT")]
    return {form.name: form for form in sorted(found, key=lambda form: not form.exact)}


def check(folder: Path, wanted: str = "auto") -> None:
    """What can be known before a model is named. Raises InputError for a folder in use or not writable and for a format that does not exist."""
    known(wanted)
    try:
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        if os.path.lexists(folder) and (not folder.is_dir() or inside):
            held = f" (it holds {inside[0].name})" if inside else ""
            raise InputError(f"{folder} is not an empty folder{held}; name a new one, nothing is overwritten.")
        there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be written ({error.strerror}); name another place.") from error


def known(wanted: str) -> None:
    """Raises InputError for a name that is neither auto nor a format's."""
    if wanted != "auto" and wanted not in formats():
        raise InputError(f"There is no format {wanted[:40]!r}; choose auto or one of {', '.join(formats())}.")


def refuse_transposed(kind: str) -> None:
    """Raises InputError for a model type whose linear layers no format here can hold."""
    if kind in TRANSPOSED:
        raise InputError(f"Models of type {kind} keep their linear layers transposed, which no format here does; choose another model.")


def type_refused(form: Format, kind: str) -> str:
    """Why a format is not written for models of a type, "" when it is."""
    return f"models of type {kind} are not written as {form.title} here, only {', '.join(form.families)}" if form.families and kind not in form.families else ""


def refusal(form: Format, made: Prepared) -> str:
    """Why a format cannot hold a model exactly, "" when it can."""
    layers = next((f"{why} (layer {name})" for name, q in made.layers.items() if (why := form.refuses(q))), "")
    loaded = made.subject.loaded
    return type_refused(form, loaded.model.config.model_type) or form.refuses_model(loaded) or layers


def choose(made: Prepared, wanted: str = "auto") -> Format:
    """The format of that name, or the first that holds all layers. Raises InputError with the reason when the named one cannot, or none is quantized."""
    known(wanted)
    if not made.layers:
        raise InputError(NOTHING)
    for form in formats().values() if wanted == "auto" else [formats()[wanted]]:
        why = refusal(form, made)
        if not why:
            return form
    others = [form.name for form in formats().values() if not refusal(form, made)]
    raise InputError(f"{formats()[wanted].title} cannot hold this model: {why}. What can: {', '.join(others)}.")


def why_not_exact(made: Prepared) -> dict[str, str]:
    """{title: why} of the formats of codes that cannot hold a model."""
    reasons = {form.title: refusal(form, made) for form in formats().values() if form.exact}
    return {title: why for title, why in reasons.items() if why}


def written_bits(form: Format, made: Prepared) -> float:
    """Bits a weight of the blocks' linear layers as the files hold them, scales included; a layer that is not quantized counts 16."""
    sizes = {name: layer.weight.numel() for name, layer in made.subject.originals.items()}
    return sum(_bits(form, made.layers[name]) if name in made.layers else 16 * size for name, size in sizes.items()) / sum(sizes.values())


def _bits(form: Format, q: QuantizedTensor) -> int:
    return form.stored(q)[1] if form.stored is not None else 8 * sum(tensor.nbytes for tensor in form.tensors(q).values())


def layouts(form: Format, made: Prepared) -> str:
    """Which codes a format with layouts of its own writes as what; "" for another."""
    if form.stored is None:
        return ""
    found = Counter((q.code_bits or q.bits, form.stored(q)[0], _bits(form, q) / q.codes.numel()) for q in made.layers.values())
    parts = (f"{count} layers of {bits}-bit codes as {name} ({size:g} bits a weight)" for (bits, name, size), count in found.items())
    return f"It holds {', '.join(parts)}. "


def note(form: Format, made: Prepared) -> str:
    """As what a format holds a model, what it does not keep of it, and why no other does; "" where it holds the codes as they are and keeps all."""
    refused = why_not_exact(made)
    alone = all(one.title in refused for one in formats().values() if one.exact)
    kept = f"{'No format of codes holds it exactly, so its' if alone else 'Its'} files have 16-bit weights: the quality of the quantized model and the size of "
    kept += "the original"
    if any(q.activation is not None for q in made.layers.values()):
        kept += "; its inputs are no longer rounded, so it is better than the measured numbers"
    kept += f". {'; '.join(f'{title} cannot hold it, {why}' for title, why in refused.items())}" if alone else ""
    moved = "Its input scales are in the normalisations and layers before them, which rounds those to 16 bits once more. " if made.changed else ""
    return (moved + layouts(form, made) + ("" if form.exact else f"{kept}.")).strip()


def loads(form: Format, made: Prepared) -> str:
    """What reads a model in a format, and where something that reads others does not, why."""
    return (form.readers(made) if form.readers else "") or form.loads


def card(form: Format, made: Prepared, title: str, how: str, report: Report | None) -> str:
    """README.md of a checkpoint. how: the command that writes it; report: what was measured, None for nothing."""
    return f"""# {title} of {made.subject.loaded.ref.name}

Made by the {written_by()}: `{how}`

Format: {form.title}. It loads with {loads(form, made)}. {note(form, made)}

{_numbers(report, written_bits(form, made)) if report else "Not measured."}

`quantization_explorer.json` holds the experiment, every measurement with its interval, and the versions and device that gave them.
"""


def _numbers(report: Report, bits: float) -> str:
    """The main measurements as a table. bits: a weight, as written."""
    rows = ["| measured | value | 95% interval |", "|---|---|---|"]
    for m in report.measurements:
        if m.metric in SHOWN and not m.layer:
            interval = f"{m.low:.4g} to {m.high:.4g}" if m.low is not None else ""
            rows.append(f"| {SHOWN[m.metric]} | {m.value:.5g} {m.unit} | {interval} |")
            rows += [f"| bits per weight, in these files | {bits:.5g} bits |  |"] if m.metric == "bits_per_weight" else []
    return "\n".join([*rows, "", f"On {report.experiment.evaluation.source} text, {report.provenance['device']}, with the explorer's own kernels."])


def save(made: Prepared, form: Format, folder: Path, words: str, record: dict[str, Any]) -> dict[str, Any]:
    """Writes config, weights, tokenizer, words (README.md) and record (quantization_explorer.json) into an empty or new folder.

    Returns {"format", "bytes", "files", "layers", "kept": layers in 16 bits}. Raises InputError when the folder is in use, NotWritten when a disk is full;
    then nothing is left.
    """
    subject, model = made.subject, made.subject.loaded.model
    refuse_transposed(model.config.model_type)
    check(folder)
    places = {part: name for name, part in model.named_modules()}
    layers = {places[subject.originals[name]]: q for name, q in made.layers.items()}
    rest = [name for part, name in places.items() if isinstance(part, nn.Linear) and name not in layers]
    state = {key: value for key, value in model.state_dict().items() if key.removesuffix(".weight") not in layers} | made.changed
    with whole(folder) as made_at:
        if form.write is not None:
            form.write(subject.loaded, state, layers, made_at)
        else:
            _write(model, state, form, layers, rest, made_at)
            if subject.loaded.tokenizer is not None:
                subject.loaded.tokenizer.save_pretrained(made_at)
        (made_at / "README.md").write_text(words)
        (made_at / "quantization_explorer.json").write_text(json.dumps(record | {"written_by": written_by()}, indent=1) + "\n")
        usual = (made_at / "README.md").stat().st_mode  # as the umask has it; the library that writes the weights leaves them to their owner alone
        for path in made_at.rglob("*"):
            if path.is_file():
                path.chmod(stat.S_IMODE(usual))
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return {"format": form.name, "bytes": sum(files.values()), "files": files, "layers": len(layers), "kept": rest}


def _write(model: Any, state: dict[str, Tensor], form: Format, layers: Mapping[str, QuantizedTensor], rest: Sequence[str], folder: Path) -> None:
    """config.json and the weights in files of at most 5 GB, by transformers, which knows what is tied and how its names differ on disk."""
    config = form.config(layers, rest)
    for name, q in layers.items():
        state |= {f"{name}.{part}": tensor.contiguous() for part, tensor in form.tensors(q).items()}
    try:
        if config is not None:
            model.config.quantization_config = config
        model.save_pretrained(folder, state_dict=state)
    finally:
        if config is not None:
            del model.config.quantization_config
