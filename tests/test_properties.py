"""Properties of every method over shapes, parameters and degenerate values: a defined result, or a refusal that is a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from explorer import lattice
from explorer.experiment import LocalRunner, last_report
from explorer.input_statistics import InputStatistics
from explorer.loader import Loader
from explorer.methods import Method, build, fields_of, methods
from explorer.records import InputError
from explorer.store import Store

LLAMA = {"model_type": "llama", "num_hidden_layers": 4, "num_attention_heads": 4}
REAL = [m for m in methods().values() if m.name != "none"]
RELAXED = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def any_method(kind: type[Method]) -> st.SearchStrategy[Method]:
    """The method with any choice of its listed parameters that means something together, as a Llama has it; numbers and texts keep their defaults."""
    listed = {field.name: st.sampled_from(field.choices) for field in fields_of(kind) if field.choices}
    return st.fixed_dictionaries(listed).filter(lambda params: not kind(**params).check()).map(lambda params: build(kind.name, params).for_model(LLAMA))


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """[N, K] float32 values of a bfloat16 checkpoint, ordinary or degenerate in one of the ways that checkpoints are."""
    n, k = draw(st.integers(1, 5)) * draw(st.sampled_from([1, 8])), draw(st.sampled_from([32, 64, 80, 96, 128, 256]))
    w = torch.randn(n, k, generator=torch.Generator().manual_seed(draw(st.integers(0, 999)))) * draw(st.sampled_from([1e-30, 1e-4, 0.02, 1e4]))
    kind = draw(st.sampled_from(["ordinary", "zeros", "zero row", "zero column", "constant row", "one huge", "positive", "one value"]))
    row, column = draw(st.integers(0, n - 1)), draw(st.integers(0, k - 1))
    if kind == "zeros":
        w.zero_()
    elif kind == "zero row":
        w[row] = 0
    elif kind == "zero column":
        w[:, column] = 0
    elif kind == "constant row":
        w[row] = 0.5
    elif kind == "one huge":
        w[row, column] = 3e4
    elif kind == "positive":
        w.abs_()
    elif kind == "one value":
        w.fill_(-0.25)
    return w.bfloat16().float()


@st.composite
def calibration(draw: st.DrawFn, width: int) -> Tensor:
    """[M, K] inputs: enough rows, fewer rows than columns (a singular Hessian), one row, a dead channel, or two channels alike."""
    rows = draw(st.sampled_from([1, 7, 300]))
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(draw(st.integers(0, 999)))) * draw(st.sampled_from([1e-3, 1.0, 1e3]))
    if draw(st.booleans()):
        x[:, draw(st.integers(0, width - 1))] = 0
    if draw(st.booleans()):
        x[:, 0] = x[:, 1]
    return x


@pytest.mark.parametrize("kind", REAL, ids=lambda m: m.name)
@RELAXED
@given(data=st.data())
def test_any_weight_gives_a_defined_tensor_or_is_refused(kind: type[Method], data: st.DataObject) -> None:
    method, w = data.draw(any_method(kind)), data.draw(weights())
    if refusal := method.refuses(tuple(w.shape), "layers.0.mlp.up_proj"):
        assert refusal[0].islower() or refusal[0].isdigit(), "a clause that follows a layer's name"
        return
    q = method.quantize(w, InputStatistics.of(data.draw(calibration(w.shape[1]))), "layers.0.mlp.up_proj")
    restored = q.dequantize()
    assert restored.shape == w.shape and restored.isfinite().all()
    assert q.codes.dtype == torch.uint8 and q.codes.shape == w.shape and int(q.codes.max()) < 2**q.bits
    assert (q.code_bits or q.bits) * w.numel() < q.stored_bits()
    assert restored.abs().max() <= 4 * w.abs().max() + 1e-30, "no value may appear that the weight never had"


@RELAXED
@given(st.data())
def test_a_calibrated_method_is_deterministic(data: st.DataObject) -> None:
    w, method = data.draw(weights()), build("gptq", {"granularity": "channel"})
    x = InputStatistics.of(data.draw(calibration(w.shape[1])))
    assert torch.equal(method.quantize(w, x).dequantize(), method.quantize(w, x).dequantize())


def test_nan_in_a_checkpoint_is_an_error_that_names_the_layer(store: Store, tiny_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in tiny_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.self_attn.o_proj.weight"][3, 5] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for method in ("rtn", "gptq", "qat"):
        with pytest.raises(InputError, match=r"layer layers\.1\.self_attn\.o_proj hold NaN"):
            last_report(LocalRunner(store, Loader(torch.device("cpu"))).run(str(tmp_path), method, {"group_size": 32}, sequences=1))


def test_lattice_search_finds_the_nearest_of_all_points() -> None:
    everything = lattice.coordinates(*lattice.unpack(torch.arange(2**16)))
    assert everything.unique(dim=0).shape == (2**16, 8), "65,536 different points"
    x = 1.5 * torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    found = lattice.coordinates(*lattice.nearest_point(x))
    assert torch.allclose((found - x).norm(dim=-1), torch.cdist(x, everything).amin(-1), atol=1e-4)


def test_lattice_points_are_points_of_e8_and_fit_two_bytes() -> None:
    packed = torch.arange(2**16)
    parts = lattice.unpack(packed)
    assert torch.equal(lattice.pack(*parts).long(), packed)
    points = lattice.coordinates(*parts) - lattice.SHIFT * (2 * parts[2].float() - 1).unsqueeze(-1)
    assert torch.equal((points - 0.5).round() + 0.5, points) and (points.sum(-1) % 2 == 0).all(), "half-odd coordinates with an even sum"


def test_two_bits_are_enough_for_what_quip_stores() -> None:
    """Every run of eight 4-bit codes of a QuIP# tensor is one of the 65,536 points, so it fits in 16 bits and comes back from them."""
    w, x = (torch.randn(*shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(((24, 128), (400, 128))))
    q = build("quip", {}).quantize(w, InputStatistics.of(x))
    points = (q.codes.reshape(-1, 8).float() - lattice.MIDDLE) * lattice.CODE_STEP
    stored = lattice.pack(*lattice.nearest_point(points))
    assert int(stored.max()) < 2**16
    assert torch.equal(lattice.to_codes(lattice.coordinates(*lattice.unpack(stored))).reshape(q.codes.shape), q.codes)
