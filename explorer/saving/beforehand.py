"""What a checkpoint will be refused for and can be known before a weight is read: from the method, its parameters and the model's configuration."""

from __future__ import annotations

from typing import Any

import torch

from explorer.input_statistics import InputStatistics
from explorer.methods import Method, label_of
from explorer.qtensor import QuantizedTensor
from explorer.records import Experiment, InputError
from explorer.saving import NOTHING, formats, known, refuse_transposed, type_refused

TRIAL = (128, 512)  # a weight that all groups and blocks divide
TOKENS = 64


def check_asked(experiment: Experiment, method: Method, config: dict[str, Any], wanted: str) -> None:
    """config: the model's config.json; wanted: a format's name or auto. Raises InputError.

    What a method makes of a small random weight has the grid, the scales and the input transform of every layer it quantizes, so a format that
    cannot hold it holds none. What depends on a layer's shape, on trained scales or on rules by name is refused later, by `choose`.
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
    trial = tried(method)
    reasons = {form.name: type_refused(form, kind) or (form.refuses(trial) if trial is not None else "") for form in formats().values()}
    if reasons[wanted]:
        able = ", ".join(name for name, why in reasons.items() if not why)
        raise InputError(f"{formats()[wanted].title} cannot hold {label_of(method)} of this model: {reasons[wanted]}. What can: {able}.")


@torch.no_grad()
def tried(method: Method) -> QuantizedTensor | None:
    """What a method makes of a random weight on random inputs; None where it trains the whole model, or rounds layers differently by their names."""
    if method.of_model or method.by_name:
        return None
    made = torch.Generator().manual_seed(0)
    weight, inputs = 0.02 * torch.randn(TRIAL, generator=made), torch.randn(TOKENS, TRIAL[1], generator=made)
    known = InputStatistics.of(inputs) if method.reads_inputs() else None
    return next(q for _, q in method.quantize_together({"": weight}, known, None))
