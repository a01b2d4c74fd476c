"""What a checkpoint will be refused for and can be known before a weight is read: from the method, its parameters and the model's configuration."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from explorer.input_statistics import InputStatistics
from explorer.methods import Method, label_of
from explorer.models import linears
from explorer.qtensor import QuantizedTensor
from explorer.records import Experiment, InputError
from explorer.saving import NOTHING, Format, formats, known, refuse_transposed, type_refused

TRIAL = (128, 512)  # a weight that all groups and blocks divide
TOKENS = 64


def check_asked(experiment: Experiment, method: Method, config: dict[str, Any], wanted: str) -> None:
    """config: the model's config.json; wanted: a format's name or auto. Raises InputError.

    What a method makes of a small random weight has the grid, the scales and the input transform of every layer it quantizes, so a format that
    cannot hold it holds none. Of rules by name each one that decides a layer is tried. What depends on a layer's shape or on trained scales is refused
    later, by `choose`.
    """
    known(wanted)
    if experiment.spec.method == "none":
        raise InputError(NOTHING)
    if experiment.model.random:
        raise InputError(f"The weights of {experiment.model.name} are random, so a checkpoint of them means nothing; choose a trained model.")
    kind = str(config.get("model_type", ""))
    refuse_transposed(kind)
    if wanted == "auto":
        return
    trials = {label_of(one): tried(one) for one in of_layers(method, config)}
    reasons = {form.name: type_refused(form, kind) or refused(form, trials) for form in formats().values()}
    if reasons[wanted]:
        able = ", ".join(name for name, why in reasons.items() if not why)
        raise InputError(f"{formats()[wanted].title} cannot hold {label_of(method)} of this model: {reasons[wanted]}. What can: {able}.")


def refused(form: Format, trials: dict[str, QuantizedTensor]) -> str:
    """Why a format cannot hold one of the trials, by the names of their methods; "" when it holds all."""
    for name, q in trials.items():
        if why := form.refuses(q):
            return why if len(trials) == 1 else f"{why} ({name})"
    return ""


def of_layers(method: Method, config: dict[str, Any]) -> list[Method]:
    """The different methods that round the layers of a model with this config.json; none where it trains the whole model, or where rules go by the names of
    layers and transformers alone does not know the model, so that the configuration does not give them.
    """
    if method.of_model or not method.by_name:
        return [] if method.of_model else [method]
    clean = {key: value for key, value in config.items() if not key.startswith("_") and key not in ("auto_map", "quantization_config")}
    try:
        typed = AutoConfig.for_model(clean.pop("model_type"), **clean)
        with torch.device("meta"):  # takes no memory
            names = list(linears(AutoModelForCausalLM.from_config(typed)))
    except Exception:  # whatever such a configuration raises there; a run of that model has a sentence for it
        return []
    rules = method.for_model(typed.to_dict())
    found = dict.fromkeys(rules.of(name) for name in names)
    return [one for one in found if one is not None and one.name != "none"]


@torch.no_grad()
def tried(method: Method) -> QuantizedTensor:
    """What a method that rounds one layer at a time makes of a random weight on random inputs."""
    made = torch.Generator().manual_seed(0)
    weight, inputs = 0.02 * torch.randn(TRIAL, generator=made), torch.randn(TOKENS, TRIAL[1], generator=made)
    known = InputStatistics.of(inputs) if method.reads_inputs() else None
    return next(q for _, q in method.quantize_together({"": weight}, known, None))
