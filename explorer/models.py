"""Where models come from: the bundled demo, a hub repository, a local folder; what is too large is refused before a weight is fetched."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from explorer import architectures, downloads, offload, sizes
from explorer.checkpoint import check_config, check_tokenizer, checked, context_of, read_model, weigh
from explorer.devices import free_memory
from explorer.hub import Hub, split_id
from explorer.records import InputError, ModelRef, Progress
from kernels.linear16 import has_units, linear

DEMO = Path(__file__).parent.parent / "assets" / "demo-model"
READ = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")
CACHE_ARGUMENTS = ("cache", "past_key_values")  # what transformers calls a cache since 5.24, and before


@dataclass(frozen=True)
class LoadedModel:
    """A model in bfloat16, in evaluation mode on `device`, its tokenizer (None with random weights). length: of a window. offloaded: see explorer/offload.py.
    whole: bytes of the device that it takes whole, 0 for random weights. untied: its files hold a head although its config ties it. stored: `Weight.rounded`.
    """

    ref: ModelRef
    model: Any
    tokenizer: Any
    device: torch.device
    length: int
    offloaded: bool = False
    whole: float = 0.0
    untied: bool = False
    stored: tuple[str, ...] = ()


@functools.lru_cache(256)  # of models that visitors name
def _content_hash(folder: Path, stamp: tuple) -> str:
    digest = hashlib.sha256()
    for name, _, _ in stamp:
        digest.update(name.encode())
        with open(folder / name, "rb") as file:
            while chunk := file.read(2**24):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def _folder_ref(name: str, folder: Path) -> ModelRef:
    """By everything that changes a number: weights, configuration, and what the tokenizer reads, such as whether texts begin with BOS."""
    files = sorted(p for p in folder.iterdir() if p.suffix == ".safetensors" or p.name in READ)
    return ModelRef(name, _content_hash(folder, tuple((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files)))


def resolve(name: str, hub: Hub) -> ModelRef:
    """Which model a name means, pinned by content or commit. Raises InputError with a sentence."""
    if name == "demo":
        return _folder_ref("demo", DEMO)
    if name.startswith(architectures.PREFIX):
        return architectures.resolve(name)
    folder = named_folder(name, hub)
    if folder is not None:
        check_config(folder)
        return _folder_ref(str(folder), folder)
    repository, _ = split_id(name)
    if hub.settings.offline and (ref := downloads.newest(hub.settings, name)):
        return ref
    listing = hub.listing(name)
    return ModelRef(repository, listing.commit)


def named_folder(name: str, hub: Hub) -> Path | None:
    """The folder that a name means, None when it is none, or not one that may be named here."""
    if not name or len(name) > 300 or "\0" in name:
        return None
    try:
        folder = Path(name).expanduser()
        allowed = hub.settings.folders
        return folder if folder.is_dir() and (allowed is None or any(folder.resolve().is_relative_to(root.resolve()) for root in allowed)) else None
    except (OSError, RuntimeError):  # a name too long, or of a user who is not here
        return None


def trained(name: str, hub: Hub) -> ModelRef:
    """`resolve` for a model whose weights are to be looked at. Raises InputError for an architecture, which has none."""
    if name.strip().startswith(architectures.PREFIX):
        raise InputError("An architecture has no trained weights to look at; choose a model.")
    return resolve(name.strip(), hub)


def folder_here(ref: ModelRef, hub: Hub) -> Path | None:
    """The folder that holds exactly this model, None when it would have to be downloaded."""
    folder = DEMO if ref.name == "demo" else named_folder(ref.name, hub)
    return folder or downloads.found(hub.settings, ref)


def context(ref: ModelRef, hub: Hub) -> int:
    """Tokens a window of this model may have, at most 2,048. For a hub id its config.json is read. Raises InputError with a sentence."""
    config = configuration(ref, hub)
    return min(2048, config["max_position_embeddings"]) if ref.random else context_of(checked(config, ref.name))


def configuration(ref: ModelRef, hub: Hub) -> Any:
    """A model's config.json as data; no weight is read. Raises InputError with a sentence when it does not come."""
    if ref.random:
        return architectures.known(ref.name)["config"]
    folder = folder_here(ref, hub)
    if folder is not None:
        return check_config(folder)
    return hub.config(hub.listing(f"{ref.name}@{ref.revision}"))


def typed_configuration(ref: ModelRef, hub: Hub) -> Any:
    """The same as transformers reads it, with every name that a family gives to a size."""
    from transformers import AutoConfig

    clean = {key: value for key, value in configuration(ref, hub).items() if not key.startswith("_")}
    return AutoConfig.for_model(clean.pop("model_type"), **clean)


def check_size(ref: ModelRef, device: torch.device, hub: Hub) -> None:
    """Raises InputError when a model of the hub fits neither disk nor memory. Asks for the headers of its weight files and no weight."""
    if folder_here(ref, hub) is not None:
        return
    listing = hub.listing(f"{ref.name}@{ref.revision}")
    downloads.check_disk(hub.settings, listing)
    must_be_offloaded(hub.weigh(listing), ref.name, device)


def must_be_offloaded(weight: sizes.Weight, name: str, device: torch.device) -> bool:
    """Whether a model does not fit the device whole. Raises InputError when it does not fit a layer at a time either."""
    free, on_gpu = free_memory(device), device.type == "cuda"
    if sizes.whole(weight, on_gpu) <= free:
        return False
    needs = sizes.offloaded(weight, on_gpu)
    if needs <= free and (weight.mapped or (on_gpu and 2.2 * weight.total <= free_memory(torch.device("cpu")))):
        return True
    needs = needs if weight.mapped or on_gpu else sizes.whole(weight, on_gpu)
    raise InputError(
        f"{name!r} has {weight.total / 1e9:,.2f} billion parameters and needs about {needs / 1e9:,.1f} GB of memory to be quantized and measured; "
        f"{'the GPU' if on_gpu else 'this machine'} has {free / 1e9:,.1f} GB free. Choose a smaller model."
    )


def fetching(ref: ModelRef, device: torch.device, hub: Hub) -> Iterator[Progress]:
    """Yields Progress, returns the folder that holds the model; downloads it unless it is here or will not fit. Raises InputError with a sentence."""
    folder = None if ref.random else folder_here(ref, hub)
    if folder is None and not ref.random:
        listing = hub.listing(f"{ref.name}@{ref.revision}")
        checked(hub.config(listing), ref.name)
        check_size(ref, device, hub)
        folder = yield from downloads.fetch(hub, listing)
    return folder


def load(ref: ModelRef, device: torch.device, hub: Hub) -> LoadedModel:
    """Loads exactly this model, fetched first when it is not here; of an architecture the skeleton. Raises InputError with a sentence."""
    if ref.random:
        return LoadedModel(ref, architectures.skeleton(ref.name, device), None, device, context(ref, hub))
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    folder = _drained(fetching(ref, device, hub))
    config = check_config(folder)
    check_tokenizer(folder)
    try:
        weight = weigh(folder)
        tight = must_be_offloaded(weight, ref.name, device)
        model = read_model(folder, config)
        if tight and device.type != "cpu":
            offload.streamed(linears(model))
        model = model.to(device)
        if device.type == "cpu" and not has_units():
            dense(model)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (torch.OutOfMemoryError, InputError):
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"The files of {ref.name!r} could not be read as a model ({type(error).__name__}); download them again.") from error
    tokenizer.model_max_length = int(1e9)  # texts are cut into windows by us; silences a warning about the whole text's length
    untied = typed_configuration(ref, hub).tie_word_embeddings and not model.config.tie_word_embeddings
    return LoadedModel(ref, model, tokenizer, device, context_of(config), tight, sizes.whole(weight, device.type == "cuda"), untied, weight.rounded)


def _drained(steps: Iterator[Progress]) -> Any:
    """What a generator returns, without what it yields."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def weight_of(ref: ModelRef, layer: str, hub: Hub) -> torch.Tensor:
    """The weight [N, K] of one layer, named as `linears` names it, in the dtype of the file; read alone, without loading the model. Raises
    InputError when the model is not on this disk or has no such layer.
    """
    from safetensors import safe_open

    folder = folder_here(ref, hub)
    transposed = folder is not None and check_config(folder)["model_type"] == "gpt2"  # its Conv1D keeps [K, N]
    for path in sorted(folder.glob("*.safetensors")) if folder is not None else []:
        with safe_open(path, "pt") as file:
            for key in (f"model.{layer}.weight", f"{layer}.weight", f"{layer.partition('.')[2]}.weight"):
                if key in file.keys():  # noqa: SIM118 - the file is no dict
                    return file.get_tensor(key).T.contiguous() if transposed else file.get_tensor(key)
    raise InputError(f"The model {ref.name!r} has no layer {str(layer)[:60]!r} on this disk; run it once and choose a layer from the list.")


def blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks, in order."""
    wanted = model.config.num_hidden_layers
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == wanted)


class Dense(nn.Linear):
    """A 16-bit linear layer on a CPU without bfloat16 units, where many rows are faster in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., K] -> [..., N]."""
        return linear(x, self.weight, self.bias)


def dense(model: nn.Module) -> None:
    """Makes the model's linear layers Dense, its head too."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Dense


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers inside the decoder blocks by name ("layers.0.self_attn.q_proj"), in the model's order."""
    inside = {id(m) for block in blocks(model) for m in block.modules() if isinstance(m, nn.Linear)}
    return {name.removeprefix("model."): m for name, m in model.named_modules() if id(m) in inside}


def reading(model: nn.Module, cache: Any) -> dict[str, Any]:
    """The keyword argument that gives a model of this transformers version its cache."""
    return {_cache_argument(type(model)): cache}


@functools.cache
def _cache_argument(kind: type) -> str:
    return next(name for name in CACHE_ARGUMENTS if name in inspect.signature(kind.forward).parameters)


def windows(loaded: LoadedModel, text: str, tokens: int, length: int, seed: int | None = None, bos: str = "window") -> torch.Tensor:
    """Windows of a text, [W, length] int64, at most `tokens` in all: the first ones, or with a seed some drawn at random. See `drawn`."""
    return drawn(loaded, text, tokens, length, seed, bos)[0]


def enough(tokens: int, length: int) -> None:
    """Raises InputError unless some tokens fill a window."""
    if tokens < length:
        raise InputError(f"Windows of {length} tokens need at least {length} to score, not {tokens}; ask for more tokens or a smaller length.")


def bos_of(tokenizer: Any) -> int | None:
    """The token that this tokenizer begins every text with by itself, None where it adds none. A model that was trained to see it first, as Gemma was,
    predicts little without it.
    """
    first = tokenizer("", add_special_tokens=True).input_ids[:1]
    return tokenizer.bos_token_id if first and first == [tokenizer.bos_token_id] else None


def prompt(loaded: LoadedModel, text: str) -> torch.Tensor:
    """The tokens of a text to be continued, [1, T] int64 on the device, after the BOS that the tokenizer itself begins with, if any."""
    ids, first = loaded.tokenizer(text, add_special_tokens=False).input_ids, bos_of(loaded.tokenizer)
    return torch.tensor([ids if first is None else [first, *ids]], dtype=torch.long, device=loaded.device)


def drawn(loaded: LoadedModel, text: str, tokens: int, length: int, seed: int | None = 0, bos: str = "window") -> tuple[torch.Tensor, int]:
    """(windows [W, length] int64, how many the whole text has): the text cut end to end, and at most `tokens` of it drawn at random without
    replacement, in random order, so that the first of them are a random sample too; with no seed the first windows, in order. bos, for a tokenizer that
    begins texts with BOS: "window" begins each window with it, "text" the text before it is cut, as the code of GPTQ's authors does, "" neither.

    Raises InputError if the text is too short. For random weights, which know no text: random ids.
    """
    if loaded.tokenizer is None:
        shape = (max(1, tokens // length), length)
        return torch.randint(0, loaded.model.config.vocab_size, shape, generator=torch.Generator().manual_seed(seed or 0)).to(loaded.device), shape[0]
    ids = loaded.tokenizer(text, return_tensors="pt", add_special_tokens=bos == "text").input_ids[0]
    first = bos_of(loaded.tokenizer) if bos == "window" else None
    room = length if first is None else length - 1  # tokens of text in a window
    if ids.numel() < room:
        raise InputError(f"The text is too short: it has {ids.numel()} tokens and at least {room} are needed; paste a longer text.")
    enough(tokens, length)
    cut = ids[: ids.numel() // room * room].view(-1, room)
    if first is not None:
        cut = torch.cat([torch.full((len(cut), 1), first), cut], 1)
    count = min(tokens // length, len(cut))
    chosen = slice(count) if seed is None else torch.randperm(len(cut), generator=torch.Generator().manual_seed(seed))[:count]
    return cut[chosen].to(loaded.device), len(cut)
