"""The Triton kernel itself on the tile of kernel_steps, run by its interpreter in a process of its own, beside the mirror's result.

Triton decides when it is imported whether kernels are compiled or interpreted, so the interpreter cannot be switched on in a process that serves.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import kernels
from explorer import models
from explorer.records import Answer, Event, InputError, Progress
from explorer.tasks import Engine, Task
from explorer.tasks.kernel_steps import BITS, GROUPS, steps_of, tile_of

SECONDS = 120
CODE = """
import json, sys, torch
from kernels.op import LowBitWeight, ops
asked = json.load(sys.stdin)
zero = None if asked["zero"] is None else torch.tensor(asked["zero"])
w = LowBitWeight(torch.tensor(asked["codes"], dtype=torch.uint8), torch.tensor(asked["scale"]).bfloat16(), zero, asked["bits"])
op = ops()["int8_matmul" if asked["bits"] > 4 else "int4_matmul"]
form = next(form for form in op.forms() if "triton" in form.name)
y = form.run(torch.tensor(asked["x"]).half(), form.pack(w))
json.dump({"y": y.float().tolist(), "op": op.name, "form": form.name}, sys.stdout)
"""


def interpreted(x: torch.Tensor, w: Any) -> dict[str, Any]:
    """{"y": the kernel's result, [M, N], "op", "form"} for inputs x [M, K] and a weight in low bits, from a fresh interpreter process."""
    asked = {"x": x.tolist(), "codes": w.codes.tolist(), "scale": w.scale.tolist(), "zero": None if w.zero is None else w.zero.tolist(), "bits": w.bits}
    done = subprocess.run(
        [sys.executable, "-c", CODE], input=json.dumps(asked), capture_output=True, text=True, timeout=SECONDS, check=False,
        cwd=Path(kernels.__file__).parent.parent, env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the interpreter ended with {done.returncode}: {done.stderr.strip().splitlines()[-1][:200] if done.stderr.strip() else ''}")
    return json.loads(done.stdout)


def work(engine: Engine, model: str, layer: str, bits: int = 4, group: int = 32, symmetric: bool = True, seed: int = 0) -> Iterator[Event]:
    """Answer data: y (the kernel's, [M, N]), mirror (the same by `steps_of`), difference (largest, relative to the largest y), op, form."""
    if bits not in BITS or group not in GROUPS:
        raise InputError(f"The kernel shows {', '.join(map(str, BITS))} bits and groups of {', '.join(map(str, GROUPS))}.")
    x, w, block = tile_of(models.weight_of(models.trained(model, engine.load.hub), layer, engine.load.hub), bits, group, symmetric, seed)
    yield Progress("interpreter", 0, 1, "starting Triton's interpreter in a process of its own")
    found = interpreted(x, w)
    mirror = torch.tensor(steps_of(x, w, block)[-1]["y"])
    y = torch.tensor(found["y"])
    difference = ((mirror - y).abs().max() / y.abs().max().clamp(min=1e-30)).item()
    yield Answer("kernel_check", found | {"mirror": mirror.tolist(), "difference": difference}, {"torch": torch.__version__})


TASK = Task("kernel_check", work, turn="none")
