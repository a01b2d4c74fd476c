"""The kernel stepper: its last step is what the Triton kernel computes, and every step can be shown."""

from __future__ import annotations

import re

import pytest
import torch

from explorer import models
from explorer.experiment import LocalRunner
from explorer.hub import Hub
from explorer.records import InputError
from explorer.store import Store
from explorer.tasks.kernel_steps import packed_of, steps_of, tile_of
from explorer.ui.tabs.stepper.steps import step_html, verdict
from kernels.op import multiply, ops
from kernels.packing import swizzle
from tests.planes import unpack_planar

LAYER = "layers.3.mlp.gate_proj"


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero"])
@pytest.mark.parametrize(("bits", "group"), [(2, 32), (2, 128), (3, 64), (4, 32), (4, 64), (8, 32)])
def test_the_mirror_is_the_kernel(bits: int, group: int, symmetric: bool) -> None:
    """Against the Triton kernel in its interpreter, and against the plain meaning."""
    weight = models.weight_of(models.resolve("demo", Hub()), LAYER, Hub())
    x, w, block = tile_of(weight, bits, group, symmetric, seed=3)
    steps = steps_of(x, w, block)
    op = ops()["int8_matmul" if bits > 4 else "int4_matmul"]
    form = next(form for form in op.forms() if "triton" in form.name)
    y, mirror, plain = form.run(x, form.pack(w)).float(), torch.tensor(steps[-1]["y"]), multiply(x, w)
    largest = plain.abs().max()
    assert (mirror - y).abs().max() <= 1e-3 * largest and (mirror - plain).abs().max() <= 1e-3 * largest
    assert torch.equal(swizzle(unpack_planar(packed_of(w, bits, block), block, bits)), w.codes)
    codes = torch.zeros_like(w.codes)
    for step in steps:
        if step["kind"] == "unpack":
            codes[:, step["inputs"]] = torch.tensor(step["codes"], dtype=torch.uint8)
    assert torch.equal(codes, w.codes), "every code is unpacked once, at the input it meets"


def test_every_step_is_shown() -> None:
    runner = LocalRunner(Store(":memory:"))
    asked = {"model": "demo", "layer": LAYER, "bits": 3, "group": 64, "symmetric": False}
    data = list(runner.do("kernel_steps", asked))[-1].data
    shown = [step_html(data, at) for at in range(len(data["steps"]))]
    assert {step["kind"] for step in data["steps"]} == {"load", "unpack", "multiply", "scale", "store"} and len(set(shown)) == len(shown)
    assert all(f"Step {i + 1} of {len(shown)}" in html and "nan" not in re.sub(r"<[^>]*>", "", html) for i, html in enumerate(shown))
    assert step_html(data, 10**6) == shown[-1] and "engine" in step_html({}, 0)
    assert "the first 256 of 384 inputs only" in shown[-1]
    for wrong, sentence in (({"bits": 5}, "2, 3, 4, 8 bits"), ({"group": 16}, "groups of"), ({"layer": "layers.0.self_attn.k_proj", "group": 1}, "groups of")):
        with pytest.raises(InputError, match=sentence):
            list(runner.do("kernel_steps", asked | wrong))


def test_the_real_kernel_runs_beside_a_server(store: Store) -> None:
    """In a process of its own with the interpreter switched on; the answer is kept."""
    runner = LocalRunner(store)
    asked = {"model": "demo", "layer": LAYER, "bits": 4, "group": 32}
    data = list(runner.do("kernel_check", asked))[-1].data
    assert data["difference"] <= 1e-3 and "int4_matmul (triton)" in verdict(data)
    assert list(runner.do("kernel_check", asked))[-1].provenance["from_store"]
