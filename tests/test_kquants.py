"""K-quants against llama.cpp: its package `gguf` decodes and encodes, its own searches have left errors, its recipes say which layer gets what."""

from __future__ import annotations

import itertools

import numpy
import pytest
import torch

from explorer.input_statistics import InputStatistics
from explorer.methods import build, spec_of
from explorer.methods.mixed import Mixed
from explorer.qtensor import QuantizedTensor
from explorer.records import Experiment, InputError, ModelRef, Report, TextRef
from explorer.saving.ggml_blocks import packed
from kernels import formats
from tests.measuring import error


def gguf_bytes(q: QuantizedTensor, name: str) -> numpy.ndarray:
    """Codes and scales of our tensor in the byte layout of a GGUF block, [N, bytes] uint8; what was quantized twice is recovered exactly."""
    n = len(q.codes)
    codes, half = q.codes.numpy(), lambda x: numpy.ascontiguousarray(x.numpy().astype(numpy.float16)).view(numpy.uint8)
    if name == "q8_0":
        blocks = (codes.astype(numpy.int16) - 128).astype(numpy.int8).view(numpy.uint8).reshape(n, -1, 32)
        return numpy.concatenate([half(q.scale.unsqueeze(-1)), blocks], -1).reshape(n, -1)
    if name == "q5_0":
        blocks = codes.reshape(n, -1, 32)
        high = numpy.packbits(blocks >> 4, axis=-1, bitorder="little")
        return numpy.concatenate([half(q.scale.unsqueeze(-1)), high, blocks[..., :16] & 15 | (blocks[..., 16:] & 15) << 4], -1).reshape(n, -1)
    raise ValueError(name)


@pytest.mark.parametrize("name", ["q8_0", "q5_0"])
def test_simple_gguf_formats_agree_both_ways(weight: torch.Tensor, name: str) -> None:
    gguf = pytest.importorskip("gguf", reason="needs gguf, the oracle of llama.cpp's formats")
    kind = gguf.GGMLQuantizationType[name.upper()]
    ours = build("kquant", {"format": name}).quantize(weight, None)
    theirs = gguf.quants.quantize(weight.numpy(), kind)
    stored = gguf_bytes(ours, name)
    assert (stored != theirs.reshape(stored.shape)).mean() < 0.002, "a code on a tie may differ"
    assert numpy.allclose(gguf.quants.dequantize(stored, kind), ours.dequantize().numpy(), atol=1e-6)
    assert error(ours.dequantize(), torch.from_numpy(gguf.quants.dequantize(theirs, kind))) < 1e-3


def pack_q4_k(codes: numpy.ndarray, small: numpy.ndarray, minima: numpy.ndarray, d: float, dmin: float) -> bytes:
    """One Q4_K block of 256: two fp16, twelve bytes of 6-bit scales and minima, 128 bytes of codes (low and high nibble 32 apart)."""
    first = [int(small[j]) | (int(small[j + 4]) >> 4) << 6 for j in range(4)]
    second = [int(minima[j]) | (int(minima[j + 4]) >> 4) << 6 for j in range(4)]
    third = [(int(small[j + 4]) & 15) | (int(minima[j + 4]) & 15) << 4 for j in range(4)]
    pairs = codes.reshape(4, 2, 32)
    return numpy.array([d, dmin], numpy.float16).tobytes() + bytes(first + second + third) + (pairs[:, 0] | pairs[:, 1] << 4).astype(numpy.uint8).tobytes()


def test_q4_k_block_decodes_the_same_in_gguf() -> None:
    gguf = pytest.importorskip("gguf", reason="needs gguf, the oracle of llama.cpp's formats")
    w = torch.randn(6, 512, generator=torch.Generator().manual_seed(8)) * 0.05
    q = build("kquant", {}).quantize(w, None)
    scale, minimum = q.scale.double().reshape(6, 2, 8), (q.zero * q.scale).double().reshape(6, 2, 8)
    rows = []
    for row in range(6):
        for block in range(2):
            d, dmin = (x[row, block].max().item() / 63 for x in (scale, minimum))
            small, minima = ((x[row, block] / whole).round().numpy() for x, whole in ((scale, d), (minimum, dmin)))
            rows.append(pack_q4_k(q.codes[row, 256 * block : 256 * block + 256].numpy(), small, minima, d, dmin))
    stored = numpy.frombuffer(b"".join(rows), numpy.uint8).reshape(6, -1)
    assert stored.shape[1] * 8 / 512 == 4.5 == q.stored_bits() / w.numel()
    theirs = torch.from_numpy(gguf.quants.dequantize(stored, gguf.GGMLQuantizationType.Q4_K))
    assert error(q.dequantize(), theirs) < 1e-5


def test_q6_k_block_decodes_the_same_in_gguf() -> None:
    gguf = pytest.importorskip("gguf", reason="needs gguf, the oracle of llama.cpp's formats")
    w = torch.randn(4, 256, generator=torch.Generator().manual_seed(9)) * 0.05
    q = build("kquant", {"format": "q6_k"}).quantize(w, None)
    rows = []
    for row in range(4):
        extreme = q.scale[row][q.scale[row].abs().argmax()].item()
        whole = numpy.float16(extreme / -128)
        small = (q.scale[row] / float(whole)).round().to(torch.int8).numpy()
        halves = q.codes[row].numpy().reshape(2, 4, 32)
        low = numpy.concatenate([halves[:, 0] & 15 | (halves[:, 2] & 15) << 4, halves[:, 1] & 15 | (halves[:, 3] & 15) << 4], 1)
        high = halves[:, 0] >> 4 | (halves[:, 1] >> 4) << 2 | (halves[:, 2] >> 4) << 4 | (halves[:, 3] >> 4) << 6
        rows.append(low.astype(numpy.uint8).tobytes() + high.astype(numpy.uint8).tobytes() + small.tobytes() + whole.tobytes())
    stored = numpy.frombuffer(b"".join(rows), numpy.uint8).reshape(4, -1)
    assert stored.shape[1] * 8 / 256 == 6.5625 == q.stored_bits() / w.numel()
    theirs = torch.from_numpy(gguf.quants.dequantize(stored, gguf.GGMLQuantizationType.Q6_K))
    assert error(q.dequantize(), theirs) < 1e-5


@pytest.mark.parametrize(("asked", "kind"), [("q2_k", "Q4_0"), ("q3_k", "Q4_0"), ("q4_k", "Q5_0"), ("q5_k", "Q5_1"), ("q6_k", "Q8_0")])
def test_where_256_does_not_divide_a_row_gguf_encodes_the_same(weight: torch.Tensor, asked: str, kind: str) -> None:
    gguf = pytest.importorskip("gguf", reason="needs gguf, the oracle of llama.cpp's formats")
    narrow = weight[:, :224].contiguous()
    found, rows = packed(build("kquant", {"format": asked}).quantize(narrow, None))
    theirs = gguf.quants.quantize(narrow.numpy(), gguf.GGMLQuantizationType[kind])
    assert found == kind and (rows != theirs).mean() < 0.002, "a code on a tie may differ"
    other = [build("kquant", {"format": f}).refuses((64, 48)) for f in ("q2_k", "q5_k", "q4_k_m")]
    assert other == ["blocks of 32 do not divide its 48 inputs"] * 3


@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("name", ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q5_0", "q8_0"])
def test_gguf_decodes_what_is_written_code_for_code(name: str, importance: bool) -> None:
    """Ordinary blocks, and such that have no scale, one huge weight or no weight below zero. With importance the search leaves the largest block scale at
    another whole number than the greatest, which the writer has to find.
    """
    gguf = pytest.importorskip("gguf", reason="needs gguf, the oracle of llama.cpp's formats")
    w = 0.02 * torch.randn(64, 1024, generator=torch.Generator().manual_seed(12))
    w[1], w[2], w[3], w[4, :32], w[5, 32:64], w[6, 9], w[7] = 0.0, -0.25, 0.25, 0.0, -0.5, 3.0, w[7].abs() + 0.1
    x = torch.randn(64, 1024, generator=torch.Generator().manual_seed(13)) * (torch.arange(1024) * 31 % 17 / 4).exp()
    q = build("kquant", {"format": name, "importance": importance}).quantize(w, InputStatistics.of(x) if importance else None)
    kind, rows = packed(q)
    theirs = torch.from_numpy(gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind]))
    assert kind == name.upper() and 8 * rows.size == q.stored_bits()
    assert (theirs - q.dequantize()).abs().max() <= 2e-7 * w.abs().max()


@pytest.mark.parametrize(
    ("name", "importance", "theirs"),
    [("q4_k", False, 0.074483), ("q4_k", True, 0.069954), ("q6_k", False, 0.0071575), ("q6_k", True, 0.0067287),
     ("q5_0", False, 0.034032), ("q5_0", True, 0.031963), ("q8_0", False, 0.00052465), ("q8_0", True, 0.00052465),
     ("q2_k", False, 1.2958), ("q2_k", True, 0.99908), ("q3_k", False, 0.49273), ("q3_k", True, 0.44133), ("q5_k", False, 0.018577), ("q5_k", True, 0.017624),
     ("q2_k/480", False, 0.13891), ("q3_k/480", True, 0.12678), ("q5_k/480", False, 0.017116), ("q5_k/480", True, 0.014299)],
)  # fmt: skip
def test_k_quants_err_as_llama_cpp_does(name: str, importance: bool, theirs: float) -> None:
    """Squared errors weighted by the importance, on these numbers, as llama.cpp's ggml-quants.c (of llama-cpp-python 0.3.36, compiled by hand, read by
    gguf) leaves them; sums in another order move a few codes. /480: of the first 480 columns, which 256 does not divide.
    """
    name, _, columns = name.partition("/")
    i = torch.arange(16 * 512)
    w = (((i * 7919 % 1009) - 504).float() / 2**13 * (1 + (i % 13 == 0) * 3)).view(16, 512)
    squares = ((torch.arange(512) * 31 % 17) + 1).float() / 16
    w, squares = w[:, : int(columns or 512)], squares[: int(columns or 512)]
    q = build("kquant", {"format": name, "importance": importance}).quantize(w, InputStatistics.of(squares.sqrt().expand(2, -1)) if importance else None)
    assert ((q.dequantize() - w).square() * squares).sum().item() == pytest.approx(theirs, rel=1.5e-3)


def from_min_to_max(w: torch.Tensor, bits: int, members: int, top: int, minima: bool) -> torch.Tensor:
    """Plain rounding in a K-quant's layout: block scales (and minima) from the extremes of a block, whole numbers up to `top` times a 16-bit float."""
    groups, most = w.unflatten(1, (-1, members)), 2**bits - 1 if minima else 2 ** (bits - 1)
    low = -groups.amin(-1).clamp(max=0) if minima else torch.zeros(groups.shape[:2])
    scale = (groups.amax(-1) + low) / most if minima else groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1) / -most

    def whole(values: torch.Tensor) -> torch.Tensor:
        part = values.unflatten(1, (-1, 256 // members))
        step = part.gather(-1, part.abs().argmax(-1, keepdim=True)) / (top if minima else -top)
        return (step.half().float() * (part / step).round().clamp(-top, top if minima else top - 1)).reshape(*values.shape, 1)

    scale, low = whole(scale), whole(low) if minima else 0.0
    codes = ((groups + low) / torch.where(scale != 0, scale, 1.0)).round()
    return (codes.clamp(0 if minima else -most, most if minima else most - 1) * scale - low).flatten(1)


@pytest.mark.parametrize(
    ("name", "layout"),
    [("q2_k", (2, 16, 15, True)), ("q3_k", (3, 16, 32, False)), ("q4_k", (4, 32, 63, True)), ("q5_k", (5, 32, 63, True)), ("q6_k", (6, 16, 128, False))],
)
def test_k_quant_search_beats_rounding_and_importance_pays(name: str, layout: tuple) -> None:
    w = torch.randn(32, 512, generator=torch.Generator().manual_seed(10)) * 0.02
    made = torch.Generator().manual_seed(11)
    x = torch.randn(600, 512, generator=made) * torch.rand(512, generator=made).mul(3).exp()
    plain = build("kquant", {"format": name}).quantize(w, None).dequantize()
    assert error(plain, w) < error(from_min_to_max(w, *layout), w)
    weighted = build("kquant", {"format": name, "importance": True}).quantize(w, InputStatistics.of(x)).dequantize()
    squared = lambda back: ((back - w).square() * x.square().mean(0)).sum().item()  # noqa: E731
    assert squared(weighted) < 0.85 * squared(plain) and error(x @ weighted.T, x @ w.T) < error(x @ plain.T, x @ w.T)


def test_more_bits_of_k_quants_cost_less_error() -> None:
    w = torch.randn(32, 512, generator=torch.Generator().manual_seed(10)) * 0.02
    errors = [error(build("kquant", {"format": name}).quantize(w, None).dequantize(), w) for name in ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0")]
    assert all(1.6 < wide / narrow < 4.5 for wide, narrow in itertools.pairwise(errors)), errors


def recipe(name: str, blocks: int, **config: int | str) -> dict[str, str]:
    """{format: blocks and layers that have it, such as "down 0 1, v 0 1"} where that is not what most have."""
    method = build("kquant", {"format": name}).for_model({"model_type": "llama", "num_hidden_layers": blocks, "num_attention_heads": 32} | config)
    assert isinstance(method, Mixed)
    found: dict[str, dict[str, list[str]]] = {}
    for part, block in itertools.product(("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", *(f"self_attn.{p}_proj" for p in "koqv")), range(blocks)):
        given = method.of(f"layers.{block}.{part}").format
        found.setdefault(given, {}).setdefault(part.split(".")[1].removesuffix("_proj"), []).append(str(block))
    usual = max(found, key=lambda given: sum(map(len, found[given].values())))
    return {given: ", ".join(f"{part} {' '.join(which)}" for part, which in parts.items()) for given, parts in found.items() if given != usual}


@pytest.mark.parametrize("name", ["q4_k", "q5_k"])
def test_a_minimum_far_beyond_its_step_is_left_to_what_holds_it(name: str) -> None:
    """Weights that are nearly one negative constant: the zero, minimum over step, is beyond fp16, in which the Triton forms keep it."""
    generator = torch.Generator().manual_seed(0)
    narrow = -0.5 + 2e-5 * torch.randn(16, 256, generator=generator)
    q = build("kquant", {"format": name}).quantize(torch.cat([narrow, 0.02 * torch.randn(16, 256, generator=generator)], 1), None)
    assert q.zero.max() > 65504 and formats.refuses(q.weight()) == "its zeros are too large for 16 bits"
    plain = build("kquant", {"format": name}).quantize(0.02 * torch.randn(16, 512, generator=generator), None).weight()
    assert not formats.refuses(plain) and formats.pack(plain).tensors["zero"].isfinite().all()


def test_mixtures_give_each_layer_what_llama_cpp_does() -> None:
    """llama_tensor_get_type_impl, read for Llama-2-7B (32 blocks), a tiny model and Llama-2-70B (80 blocks, fewer heads of values)."""
    all32, more = " ".join(map(str, range(32))), "0 1 2 3 6 9 12 15 18 21 24 27 28 29 30 31"
    assert recipe("q4_k_m", 32) == recipe("q5_k_m", 32) == {"q6_k": f"down {more}, v {more}"}
    rest = " ".join(map(str, range(2, 32)))
    assert recipe("q3_k_m", 32) == {"q5_k": "down 0 1, v 0 1", "q4_k": f"down {rest}, o {all32}, v {rest}"}
    assert recipe("q4_k_m", 6) == {"q6_k": "down 2 5, v 2 5"}
    wide = [i for i in range(80) if i < 10 or i >= 70 or i % 3 == 0]
    seventy = {"num_key_value_heads": 8}
    told = recipe("q4_k_m", 80, **seventy)
    assert told["q6_k"].split(", v ")[1] == " ".join(map(str, wide)) and told["q5_k"] == "v " + " ".join(str(i) for i in range(80) if i not in wide)
    assert "q5_k" not in recipe("q4_k_m", 80) and recipe("q3_k_m", 80, **seventy)["q5_k"].endswith("v " + " ".join(map(str, range(80))))
    assert "q5_k" not in recipe("q4_k_m", 80, model_type="qwen3", **seventy) and "q5_k" in recipe("q4_k_m", 80, model_type="qwen2")


def test_mixtures_ask_for_the_model() -> None:
    one = build("kquant", {"format": "q4_k_m", "importance": True})
    assert one.by_name and one.reads_inputs() and not build("kquant", {}).by_name
    assert one.for_model({"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 2}).reads_inputs()
    with pytest.raises(InputError, match="The mixture q4_k_m is known for llama, mistral, qwen2, qwen3 here; choose q4_k for this model"):
        one.for_model({"model_type": "gpt2"})
    with pytest.raises(ValueError, match="depends on the model"):
        one.quantize(torch.zeros(2, 256), torch.ones(3, 256), "layers.0.mlp.down_proj")


def test_a_report_says_what_layers_got_instead() -> None:
    """384 inputs are no whole super-blocks: most layers of the bundled model get another format, and a name that kept that to itself would mislead."""
    assert build("kquant", {}).stored_as((64, 512)) == "" and build("kquant", {}).stored_as((64, 384)) == "q5_0"
    placed = build("kquant", {"format": "q4_k_m"}).for_model({"model_type": "llama", "num_hidden_layers": 8, "num_attention_heads": 4})
    assert placed.stored_as((64, 384), "layers.0.mlp.gate_proj") == "q5_0" and placed.stored_as((64, 384), "layers.2.mlp.down_proj") == "q5_0"
    assert placed.stored_as((64, 384), "layers.7.mlp.down_proj") == "q8_0" and placed.stored_as((64, 512), "layers.7.mlp.down_proj") == ""
    text = TextRef("bundled", "0", 512, 512)
    experiment = Experiment(ModelRef("demo", "r"), spec_of(build("kquant", {})), text, text)
    report = Report(experiment, provenance={"label": "GGUF q4_k", "instead": "36 of 42 layers q5_0"})
    assert report.name == "GGUF q4_k (36 of 42 layers q5_0)"
