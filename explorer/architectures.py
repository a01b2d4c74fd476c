"""Architecture-only models: a model's shapes from its configuration, with random weights made layer by layer. Speed and memory are real, text is not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from explorer.devices import free_memory
from explorer.records import InputError, ModelRef, Progress

FOLDER = Path(__file__).parent.parent / "assets" / "architectures"
PREFIX = "arch:"
RUN = ("llama", "mistral", "qwen2", "qwen3")  # types whose blocks hold their weights in linear layers, each quantized on its own
SPREAD = 0.02  # standard deviation of the weights: what these families are initialised with
ROOM = 1 << 30  # bytes for activations, the cache and the process itself


@cache
def architectures() -> dict[str, dict[str, Any]]:
    """Name -> {"source", "config"} of every JSON file in assets/architectures."""
    return {PREFIX + path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def known(name: str) -> dict[str, Any]:
    """The entry of a name such as "arch:llama-3.1-8b". Raises InputError with the names there are."""
    if name not in architectures():
        raise InputError(f"There is no architecture {name[:40]!r}; there are {', '.join(architectures())}.")
    return architectures()[name]


def resolve(name: str) -> ModelRef:
    """The reference of an architecture, pinned by its configuration."""
    return ModelRef(name, hashlib.sha256(json.dumps(known(name), sort_keys=True).encode()).hexdigest()[:16])


def skeleton(name: str, device: torch.device) -> Any:
    """The model in bfloat16: embedding, norms and head on `device`, the weights of the linear layers inside the blocks on torch's meta device, with
    a shape and no memory. Raises InputError with a sentence when not even that fits.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    options = dict(known(name)["config"])
    if options["model_type"] not in RUN:
        raise InputError(f"{name} is here for planning: models of type {options['model_type']} are not run; choose one of type {', '.join(RUN)}.")
    config = AutoConfig.for_model(options.pop("model_type"), **options, bos_token_id=0, eos_token_id=0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    outside = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    inside = sum(p.numel() for p in model.parameters()) - outside
    require(name, 2 * outside + inside // 4, device, "its embedding and head, and the rest in 2 bits,")
    head = model.get_output_embeddings()
    for path, module in model.named_modules():
        for part, parameter in module.named_parameters(recurse=False):
            inside = isinstance(module, nn.Linear) and module is not head
            if not (inside and part == "weight"):
                setattr(module, part, nn.Parameter(_values(f"{path}.{part}", parameter, device), requires_grad=False))
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    return model


def weight(model: Any, layer: str, device: torch.device) -> Tensor:
    """The weight [N, K] bfloat16 of a linear layer by its name in `models.linears`; the same every time."""
    path = f"model.{layer}"
    return _values(f"{path}.weight", model.get_submodule(path).weight, device)


def fill(model: Any, layers: dict[str, nn.Linear], device: torch.device) -> None:
    """Gives these layers their 16-bit weights."""
    for path, layer in layers.items():
        layer.weight = nn.Parameter(weight(model, path, device), requires_grad=False)


def making(name: str, model: Any, coded: dict[str, nn.Linear], kept: dict[str, nn.Linear], bits: int, device: torch.device) -> Iterator[Progress]:
    """Makes the weights of the layers that stay in 16 bits. Raises InputError when they, or codes of `bits` for the others, do not fit."""
    sizes = [sum(layer.weight.numel() for layer in layers.values()) for layers in (coded, kept)]
    if coded:
        require(name, sizes[0] * bits // 8, device, f"its codes of {bits} bits")
    if kept:
        require(name, 2 * sizes[1], device, "its weights in 16 bits")
    for done, (path, layer) in enumerate(kept.items()):
        yield Progress("make weights", done, len(kept), path)
        fill(model, {path: layer}, device)


def empty(layers: dict[str, nn.Linear]) -> None:
    """Takes the weights of these layers back to the meta device."""
    for layer in layers.values():
        layer.weight = nn.Parameter(layer.weight.to("meta"), requires_grad=False)


def require(name: str, size: int, device: torch.device, what: str) -> None:
    """Raises InputError unless `size` bytes and some room can be allocated."""
    free = free_memory(device)
    if size + ROOM > free:
        raise InputError(
            f"{name} does not fit here: {what} need {size / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; "
            "take fewer bits, a smaller architecture or a larger machine."
        )


def _values(path: str, like: Tensor, device: torch.device) -> Tensor:
    """Normal weights of the shape of `like`, bfloat16, from a seed that is the hash of the tensor's name; ones for norms."""
    if path.endswith("norm.weight"):
        return torch.ones(like.shape, dtype=torch.bfloat16, device=device)
    seed = int.from_bytes(hashlib.sha256(path.encode()).digest()[:6], "big")
    generator = torch.Generator(device).manual_seed(seed)
    return torch.empty(like.shape, dtype=torch.bfloat16, device=device).normal_(0, SPREAD, generator=generator)
