"""A quantized model ready to answer questions that are no report: quantized as `run` does it, or taken from what is held in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from explorer import models
from explorer.experiment import quantized_once
from explorer.loader import Loader
from explorer.methods import Method
from explorer.metrics import Subject
from explorer.qlinear import quantized_head
from explorer.records import Experiment, InputError, Progress


def subject_of(load: Loader, experiment: Experiment, method: Method, texts: dict[str, str]) -> Iterator[Progress]:
    """Yields Progress, returns the Subject, with no windows yet. Raises InputError for random weights. Leaves the model with its original layers in place."""
    if experiment.model.random:
        raise InputError(f"The weights of {experiment.model.name} are random, so what it writes means nothing; choose a trained model.")
    load.require(experiment, method)
    loaded = yield from load.checked(experiment.model)
    none = torch.empty(0, experiment.evaluation.length, dtype=torch.long, device=loaded.device)
    bare = Subject(loaded, {}, {}, models.linears(loaded.model), none, 0.0)
    kept, _ = yield from quantized_once(load, bare, experiment, method, texts["calibration"])
    bits = experiment.spec.head_bits
    head = None if bits == 16 else quantized_head(loaded.model.get_output_embeddings(), bits, loaded.device)
    return dataclasses.replace(kept, kv_bits=experiment.spec.kv_bits, head=head)


def refusals(subject: Subject, method: Method) -> dict[str, str]:
    """{layer: why} of the layers that the method left in 16 bits."""
    return {name: method.refuses(tuple(layer.weight.shape), name) for name, layer in subject.originals.items() if name not in subject.layers}
