"""How much difficulty SmoothQuant should move: the error of one layer's int8 product for every alpha."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from explorer import models
from explorer.records import Answer, Event
from explorer.tasks import Engine, Task
from explorer.tasks.activations import Pair, checked
from explorer.tasks.inputs import inputs_of
from kernels.op import Activation

ALPHAS = [round(0.1 * i, 1) for i in range(11)]


@torch.no_grad()
def work(engine: Engine, model: str, layer: str, strength: float = 1.0, channels: int = 4) -> Iterator[Event]:
    """Answer data: layer, alphas, token and tensor (relative output error at each alpha by how inputs are scaled), plain ({token, tensor}: without
    SmoothQuant), rows and of (rows of the weight looked at, evenly spaced), tokens.
    """
    checked(strength, channels)
    inputs, _ = yield from inputs_of(engine, model, layer)
    weight = models.weight_of(models.trained(model, engine.load.hub), layer, engine.load.hub)
    pair = Pair.of(inputs, weight.float()).planted(strength, channels)
    few = torch.linspace(0, len(weight) - 1, min(128, len(weight))).long()
    found: dict[str, list[float]] = {"token": [], "tensor": []}
    bare = Pair(pair.inputs, pair.weight[few], pair.peaks)
    for alpha in ALPHAS:
        smooth = bare.scaled(pair.factor(alpha))
        for per, errors in found.items():
            errors.append(smooth.error(Activation("int8", per)))
    plain = {per: bare.error(Activation("int8", per)) for per in found}
    yield Answer("alpha", {"layer": layer, "alphas": ALPHAS, "plain": plain, "rows": len(few), "of": len(weight), "tokens": len(pair.inputs)} | found)


TASK = Task("alpha", work, turn="none", stored=False)
