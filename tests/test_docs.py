"""The generated parts are current, and the committed files hold what the page and the README promise."""

from __future__ import annotations

import json
from pathlib import Path

from explorer.docs import CATALOGUE, README, ROOT, catalogue, render
from explorer.records import report_from


def test_readme_tables_are_current() -> None:
    assert render(README.read_text()) == README.read_text(), "run `make docs`"


def test_catalogue_is_current() -> None:
    assert CATALOGUE.read_text() == catalogue(), "run `make docs`"


def test_seed_results_are_of_the_bundled_model() -> None:
    from explorer.models import resolve

    reports = [report_from(data) for data in json.loads((ROOT / "assets" / "seed_results.json").read_text())]
    assert reports[0].experiment.spec.method == "none" and len(reports) == 5
    assert {r.experiment.model for r in reports} == {resolve("demo")}, "the model changed: run `make seeds`"


def test_demo_model_fits_and_did_not_see_the_held_out_text() -> None:
    folder = ROOT / "assets" / "demo-model"
    record = json.loads((folder / "training.json").read_text())
    assert (folder / "model.safetensors").stat().st_size <= 28 * 2**20
    assert 10e6 <= record["parameters"] <= 15e6 and record["text"]["overlapping_documents"] == 0


def test_every_file_the_readme_names_exists() -> None:
    import re

    text = README.read_text()
    named = re.findall(r"\]\(([\w./-]+)\)", text) + re.findall(r"`((?:explorer|tests|kernels|assets)/[\w./-]+)`", text)
    assert named and all((Path(ROOT) / name).exists() for name in named), named


def test_the_methods_example_is_a_method() -> None:
    """What the README shows as a whole file: it runs, its two bits cost what it says, zeros stay zeros, and the kernel multiplies by it."""
    import torch

    from kernels.op import multiply

    source = README.read_text().split("```python\n")[1].split("```")[0]
    space: dict = {}
    exec(compile(source, "midrise.py", "exec", dont_inherit=True), space)
    method = space["MidRise"]()
    weight, x = torch.randn(48, 128, generator=torch.Generator().manual_seed(0)), torch.randn(3, 128, generator=torch.Generator().manual_seed(1))
    q = method.quantize(weight, None)
    assert q.stored_bits() / weight.numel() == 2.25 and torch.unique(q.codes).tolist() == [0, 1, 2, 3]
    assert method.quantize(torch.zeros(8, 128), None).dequantize().abs().max() < 1e-6
    exact = x @ q.dequantize().T
    assert (multiply(x.bfloat16(), q.weight()).float() - exact).norm() < 0.02 * exact.norm()
