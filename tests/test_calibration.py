"""What calibration hands to methods: statistics that are those of all inputs at once, of memory that does not grow with them."""

from __future__ import annotations

from pathlib import Path

import pretended_gpu
import pytest
import torch
from pretended_gpu import gpu  # noqa: F401 - a fixture

from explorer import models
from explorer.calibration import block_inputs, sequential_statistics
from explorer.data import bundled_text
from explorer.hub import Hub
from explorer.input_statistics import ROWS, InputStatistics, InputSums
from explorer.methods import build
from explorer.methods.awq import STRIP, group_gram, output_error
from explorer.methods.gptq import hessian
from explorer.metrics import Subject
from explorer.quantizing import quantize
from explorer.records import InputError, TextRef
from explorer.rotation import Rotation
from tests import architectures
from tests.measuring import drained

CPU = torch.device("cpu")
FIELDS = ("absmax", "mean_abs", "mean_square", "gram")
TOKENS = 64  # a window


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    """[ROWS + 300, 96] in bfloat16, correlated, with a few large channels, one of them never positive."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS + 300, 8, generator=draw) @ torch.randn(8, 96, generator=draw) + torch.randn(ROWS + 300, 96, generator=draw)
    x[:, 5], x[:, 40] = -x[:, 5].abs() * 30, x[:, 40] * 20
    return x.bfloat16()


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.mark.parametrize("size", [7, 512, ROWS + 300])
def test_statistics_are_those_of_all_inputs_in_float64_whatever_the_batches(inputs: torch.Tensor, size: int) -> None:
    sums, exact = InputSums(gram=True), inputs.double()
    for batch in inputs.split(size):
        sums.add(batch.unsqueeze(0))
    found = sums.statistics()
    assert found.tokens == len(inputs) and torch.equal(found.absmax, exact.abs().amax(0).float())
    assert apart(found.mean_abs, exact.abs().mean(0)) < 1e-6 and apart(found.mean_square, exact.square().mean(0)) < 1e-6
    assert apart(found.gram, exact.T @ exact) < 1e-6
    assert all(getattr(found, name).dtype == torch.float32 for name in FIELDS)


def test_only_who_asks_pays_for_the_gram_matrix(inputs: torch.Tensor) -> None:
    bare = InputStatistics.of(inputs, gram=False)
    assert bare.gram is None and torch.equal(bare.absmax, InputStatistics.of(inputs).absmax)
    asking = {name for name in ("gptq", "awq", "quip", "smoothquant", "fp8", "llm_int8", "kquant") if build(name, {}).reads_gram("")}
    assert asking == {"gptq", "awq", "quip"}
    mixed = build("mixed", {"rules": "*v_proj: smoothquant\n*: gptq bits=3"})
    assert [mixed.reads_gram(layer) for layer in ("a.v_proj", "a.q_proj")] == [False, True]
    for name in asking:
        with pytest.raises(ValueError, match="Gram matrix"):
            build(name, {}).quantize(torch.ones(8, 96), bare)


@pytest.mark.parametrize("width", [64, 96, 80])
def test_the_hessian_of_turned_inputs_is_the_turned_hessian(inputs: torch.Tensor, width: int) -> None:
    x, rotation = inputs[:, :width].float(), Rotation.of(width, CPU)
    turned = hessian(InputStatistics.of(rotation.apply(x)))
    assert apart(rotation.conjugate(hessian(InputStatistics.of(x))), turned) < 1e-6


def test_awq_cuts_the_gram_matrices_of_scaled_groups_out_of_one(inputs: torch.Tensor) -> None:
    scale = torch.rand(96, generator=torch.Generator().manual_seed(1)) + 0.5
    groups = (inputs.double() / scale).unflatten(1, (-1, 32))
    found = group_gram(InputStatistics.of(inputs).gram, 32, scale)
    assert found.shape == (3, 32, 32) and apart(found, torch.einsum("tgi,tgj->gij", groups, groups)) < 1e-6


def test_awq_has_the_output_error_from_half_of_the_gram_matrix() -> None:
    """With a last strip that is not full, and fewer inputs than channels."""
    draw, width = torch.Generator().manual_seed(2), 2 * STRIP + 40
    x, difference = torch.randn(300, width, generator=draw) + torch.randn(300, 1, generator=draw), torch.randn(5, width, generator=draw)
    exact = (difference.double() @ x.double().T).square().sum().item()
    assert output_error(difference, InputStatistics.of(x).gram) == pytest.approx(exact, rel=1e-4)


def test_a_set_of_layers_of_which_none_is_asked_is_left_out(tiny_folder: Path) -> None:
    loaded = models.load(models.resolve(str(tiny_folder), Hub()), CPU, Hub())
    rows = torch.randint(0, 4096, (2, 64), generator=torch.Generator().manual_seed(0))
    found = list(sequential_statistics(loaded, rows, {"layers.0.mlp.down_proj": False, "layers.1.self_attn.v_proj": True}))
    assert [layers for layers, *_ in found] == [["layers.0.mlp.down_proj"], [f"layers.1.self_attn.{name}_proj" for name in "kqv"]]
    assert found[0][1].gram is None and found[1][1].gram is not None and found[1][1].tokens == rows.numel()


def bare(loaded: models.LoadedModel) -> Subject:
    return Subject(loaded, {}, {}, models.linears(loaded.model), torch.zeros(1, 8, dtype=torch.int64), 0.0)


@pytest.mark.parametrize("method", ["gptq", "smoothquant"])
def test_inputs_that_overflow_are_refused_by_the_layers_name(method: str, tiny_folder: Path) -> None:
    loaded = models.load(models.resolve(str(tiny_folder), Hub()), CPU, Hub())
    norm = models.blocks(loaded.model)[1].post_attention_layernorm
    norm.weight = torch.nn.Parameter(torch.full_like(norm.weight, 3e38), requires_grad=False)
    with pytest.raises(InputError, match=r"inputs of layer layers\.1\.mlp\.gate_proj hold NaN or infinities"):
        drained(quantize(bare(loaded), build(method, {}), TextRef("bundled", "0", 128, 64), bundled_text("calibration")))


@pytest.mark.parametrize("gram", [False, True])
def test_memory_grows_with_the_windows_by_the_hidden_states_alone(gram: bool, tmp_path: Path, gpu: torch.device) -> None:  # noqa: F811
    """On the pretended GPU, which counts bytes. The inputs of down_proj, eight times as wide as the hidden states, are never there for all windows."""
    folder = architectures.make("llama", tmp_path / "llama", hidden_size=64, intermediate_size=512, num_hidden_layers=2)
    loaded = models.load(models.resolve(str(folder), Hub()), gpu, Hub())
    asked, peaks = dict.fromkeys(models.linears(loaded.model), gram), []
    for windows in (4, 20):
        rows = torch.randint(0, 4096, (windows, TOKENS), generator=torch.Generator().manual_seed(0)).to(gpu)
        before = pretended_gpu.held.bytes
        pretended_gpu.held.start()
        tokens = [seen.tokens for _, seen, _ in sequential_statistics(loaded, rows, asked)]
        peaks.append(pretended_gpu.held.peak - before)
        assert tokens == [windows * TOKENS] * 8
    assert 0 < peaks[1] - peaks[0] < 1.1 * 16 * TOKENS * 64 * 2, "bytes of hidden states in bfloat16"


MANY_KINDS = {  # models whose blocks do not all get the same masks and rotary frequencies
    "gemma3_text": {"num_hidden_layers": 7, "sliding_window": 32},
    "gemma2": {"num_hidden_layers": 4, "sliding_window": 32},
    "qwen2": {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 0]},
}


@pytest.mark.parametrize("kind", architectures.CONFIGS)
def test_every_block_sees_what_it_sees_when_the_model_runs(kind: str, tmp_path: Path) -> None:
    """Inputs of each layer, gathered block by block, beside those of a plain pass over windows longer than the sliding one."""
    folder = architectures.make(kind, tmp_path, **MANY_KINDS.get(kind, {}))
    loaded = models.load(models.resolve(str(folder), Hub()), CPU, Hub())
    loaded.model.float()
    windows = torch.randint(0, 500, (6, 96), generator=torch.Generator().manual_seed(0))
    wanted, seen = models.linears(loaded.model), {}
    handles = [layer.register_forward_pre_hook(lambda m, args, name=name: seen.update({name: args[0].flatten(0, -2)})) for name, layer in wanted.items()]
    with torch.no_grad():
        loaded.model(windows, use_cache=False)
    for handle in handles:
        handle.remove()
    ours = {name: x for _, _, inputs in block_inputs(loaded, windows, wanted) for name, x in inputs.items()}
    assert ours.keys() == wanted.keys()
    for name, inputs in ours.items():
        assert ((inputs - seen[name]).norm() / seen[name].norm()).item() < 1e-4, name
    assert all("forward" not in vars(block) for block in models.blocks(loaded.model))
