"""compressed-tensors: integers of 4 and 8 bits, int8 and float8 with rounded inputs, MXFP4, MXFP8 and NVFP4, as vLLM and transformers read them.

The layouts are those of the package of that name (its `pack-quantized`, `int-quantized`, `float-quantized`, `mxfp4-pack-quantized`,
`mxfp8-quantized` and `nvfp4-pack-quantized` formats); that package is the oracle in the tests and no dependency.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from explorer.qlinear import siblings
from explorer.qtensor import QuantizedTensor
from explorer.saving import Format, Prepared
from kernels.floats import float_format
from kernels.op import BLOCK, Activation

PACKABLE = (4, 8)  # bits of integers that vLLM reads
INPUTS = {"int8": 8, "e4m3": 8, "e2m1": 4}  # bits of inputs that are rounded
BLOCKS = {
    "block": {"strategy": "group", "group_size": BLOCK},
    "mx": {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8", "zp_dtype": None},
    "nvfp4": {"strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn", "zp_dtype": None},
}


class _Scheme(NamedTuple):
    """How one layer is stored: the name of the layout, its weights' and its inputs' arguments."""

    layout: str
    weights: dict[str, Any]
    inputs: dict[str, Any] | None


def _refuses(q: QuantizedTensor) -> str:
    element, inputs = float_format(q.codebook), q.activation
    if q.rotation is not None:
        return "its inputs are rotated while it runs"
    if q.channel_scale is not None:
        return "its inputs are scaled while it runs, which no operator before it does for it"
    if inputs is not None and (inputs.threshold or inputs.columns):
        return "outlier columns of its inputs stay in 16 bits"
    if inputs is not None and not inputs.small_blocks() and (inputs.per == "block") != _blocks(q):
        return f"weights in blocks take inputs in blocks there and no others do: its inputs have a scale per {inputs.per}"
    if inputs is not None and inputs.kind not in INPUTS:
        return f"float inputs are {' or '.join(kind.upper() for kind in INPUTS if kind != 'int8')} there, not {inputs.kind.upper()}"
    if q.codebook is None:
        if (q.bits if q.code_bits is None else q.code_bits) not in PACKABLE or q.bits not in PACKABLE:
            return f"integers there have {' or '.join(map(str, PACKABLE))} bits, not {q.code_bits or q.bits}"
        if q.zero is not None and not (q.zero == q.zero.round()).all():
            return "its zero-points are no integers"
        return "" if (q.zero is None or q.zero_bits is None) and not q.extra_bits and q.scale_bits is None else "its scales are codes themselves"
    if element == "e4m3" and (q.scale_bits is None or _powers_of_two(q.scale)):
        return ""
    if element == "e2m1" and q.nested is None and (q.scale_unit is not None or _powers_of_two(q.scale)):
        return ""
    return "it has no table or float of this kind"


def _powers_of_two(scale: Tensor) -> bool:
    return bool((torch.frexp(scale.float())[0].abs() == 0.5).all())


def _blocks(q: QuantizedTensor) -> bool:
    """Whether the weight has a scale for each of its 128 x 128 parts; where it is one part, its inputs tell that from a scale for all."""
    one = q.codes.shape == (BLOCK, BLOCK) and q.activation is not None and q.activation.per == "block"
    return q.scale.shape[0] != q.codes.shape[0] and (q.scale.numel() > 1 or one)


def _scheme(q: QuantizedTensor) -> _Scheme:
    element, groups, inputs = float_format(q.codebook), q.scale.shape[1], _inputs(q.activation)
    if q.scale_bits is not None and element:
        layout = "nvfp4-pack-quantized" if q.scale_unit is not None else {4: "mxfp4-pack-quantized", 8: "mxfp8-quantized"}[q.bits]
        weights = {"num_bits": q.bits, "type": "float", "symmetric": True, **BLOCKS["mx" if q.scale_unit is None else "nvfp4"], "dynamic": False}
        return _Scheme(layout, weights, inputs)
    weights = {"num_bits": q.bits, "type": "float" if element else "int", "symmetric": q.zero is None, "strategy": "channel", "dynamic": False}
    rows = q.scale.shape[0]
    if rows == q.codes.shape[0] and groups > 1:
        weights |= {"strategy": "group", "group_size": q.codes.shape[1] // groups}
    elif _blocks(q):
        weights |= {"strategy": "block", "block_structure": [BLOCK, BLOCK]}
    layout = "float-quantized" if element else "pack-quantized" if inputs is None else "int-quantized"
    return _Scheme(layout, weights, inputs)


def _inputs(activation: Activation | None) -> dict[str, Any] | None:
    if activation is None:
        return None
    per = BLOCKS.get(activation.per, {"strategy": activation.per})
    dynamic = "local" if activation.per == "nvfp4" else not activation.scale
    return {"num_bits": INPUTS[activation.kind], "type": "int" if activation.kind == "int8" else "float", "symmetric": True, "dynamic": dynamic, **per}


def _config(layers: Mapping[str, QuantizedTensor], rest: Sequence[str]) -> dict[str, Any]:
    """One group of layers for every scheme; the only one targets every Linear but `rest`, several name their layers."""
    schemes: dict[str, list[str]] = {}
    for name, q in layers.items():
        schemes.setdefault(json.dumps(_scheme(q)._asdict()), []).append(name)
    groups = {}
    for i, (text, names) in enumerate(schemes.items()):
        scheme = json.loads(text)
        targets = ["Linear"] if len(schemes) == 1 else names
        groups[f"group_{i}"] = {"targets": targets, "weights": scheme["weights"], "input_activations": scheme["inputs"], "format": scheme["layout"]}
    layouts = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors", "format": layouts.pop() if len(layouts) == 1 else "mixed-precision", "quantization_status": "compressed",
        "config_groups": groups, "ignore": list(rest), "kv_cache_scheme": None, "global_compression_ratio": None,
    }  # fmt: skip


def _tensors(q: QuantizedTensor) -> dict[str, Tensor]:
    scheme, (n, _) = _scheme(q), q.codes.shape
    made = {"weight_scale": q.scale}
    if scheme.weights["strategy"] == "channel":
        made = {"weight_scale": q.scale.expand(n, 1)}
    if scheme.layout == "nvfp4-pack-quantized":
        made = {
            "weight_scale": (q.scale / q.scale_unit).to(torch.float8_e4m3fn),
            "weight_global_scale": 1 / q.scale_unit.reshape(1),
            "weight_packed": pairs(q.codes),
        }
    elif scheme.layout.startswith("mxfp"):
        codes = {"weight_packed": pairs(q.codes)} if q.bits == 4 else {"weight": q.codes.view(torch.float8_e4m3fn)}
        made = {"weight_scale": (torch.frexp(q.scale.float())[1] + 126).to(torch.uint8), **codes}
    elif scheme.layout == "pack-quantized":
        made |= {"weight_packed": words(q.codes, q.bits), "weight_shape": torch.tensor(q.codes.shape)}
        if q.zero is not None:
            made["weight_zero_point"] = words(q.zero.expand(n, -1).T.to(torch.uint8), q.bits).T
    elif scheme.layout == "int-quantized":
        made["weight"] = (q.codes.int() - 128).to(torch.int8)
        if q.zero is not None:
            made["weight_zero_point"] = (q.zero.expand(n, -1).int() - 128).to(torch.int8)
    else:
        made["weight"] = q.codes.view(torch.float8_e4m3fn)
    if scheme.inputs is not None and q.activation.scale:
        local = scheme.inputs["dynamic"] == "local"
        made["input_global_scale" if local else "input_scale"] = torch.tensor([1 / q.activation.scale if local else q.activation.scale])
    return made


def words(codes: Tensor, bits: int) -> Tensor:
    """codes [N, K] uint8 of 4 or 8 bits -> int32 [N, ceil(K * bits / 32)], the first code of a word in its lowest bits; padded with zero codes."""
    each = 32 // bits
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % each)).unflatten(1, (-1, each)).long()
    shifts = torch.arange(0, 32, bits, device=codes.device)
    return (padded << shifts).sum(-1).to(torch.int32)


def pairs(codes: Tensor) -> Tensor:
    """codes [N, K] uint8 of 4 bits -> bytes [N, K/2], the first of two in the lower half."""
    return codes[:, ::2] | codes[:, 1::2] << 4


def _readers(made: Prepared) -> str:
    why, vllm = _not_in_vllm(made), vllm_said(made.layers.values())
    several = len({json.dumps(_scheme(q)._asdict()) for q in made.layers.values()}) > 1
    if several and any(q.zero is not None for q in made.layers.values()):
        said = f"nothing known here: not with {UNREAD}, nor with vLLM: {why}" if why else f"{vllm}, but not with {UNREAD}"
    else:
        reader = MIXED if several else TRANSFORMERS
        said = f"{reader}, but not with vLLM: {why}" if why else f"{reader}, and {vllm}"
    return ". ".join([said, *_mx_inputs(made.layers.values(), bool(why))])


def vllm_said(layers: Iterable[QuantizedTensor]) -> str:
    """What is known of such layers in vLLM: RAN where its own products on a CPU were tried, else READ, where they were loaded and it had none."""
    return RAN if all(_runs_on_cpu(q, _scheme(q)) for q in layers) else READ


def _runs_on_cpu(q: QuantizedTensor, scheme: _Scheme) -> bool:
    if scheme.layout == "pack-quantized":
        return q.bits == 4
    if scheme.layout == "float-quantized":
        return scheme.weights["strategy"] == "channel" and scheme.inputs is not None and scheme.inputs["strategy"] == "token"
    return scheme.layout == "int-quantized"


def _mx_inputs(layers: Iterable[QuantizedTensor], refused: bool) -> list[str]:
    """What those who run layers of MX floats do to their inputs. refused: whether vLLM is none of them."""
    mx = [q for q in layers if _scheme(q).layout.startswith("mxfp")]
    rounded = any(q.activation is not None for q in mx)
    asked = any(q.activation is None for q in mx) and not refused
    return [MX_INPUTS] * rounded + [MX_WEIGHTS] * asked


def _not_in_vllm(made: Prepared) -> str:
    """Why vLLM refuses a model or runs it otherwise than it was measured, "" where it does neither."""
    for q in made.layers.values():
        if q.activation is not None and q.activation.per == "tensor" and not q.activation.scale:
            return "inputs that share one scale, found as it runs, " + ("have no product there" if q.codebook is None else "get one for each token there")
        if q.activation is not None and q.activation.per == "mx" and q.activation.kind != float_format(q.codebook):
            return "MXFP4 weights meet inputs in MXFP4 or in 16 bits there, in 8 only where a kernel for the GPU has them"
    for names in siblings(made.subject.originals):
        if len({json.dumps(_scheme(made.layers[name])._asdict()) if name in made.layers else "" for name in names}) > 1:
            place, parts = names[0].rpartition(".")[0], [name.rpartition(".")[2] for name in names]
            return f"it runs {', '.join(parts)} as one layer, and in {place} they are not stored alike"
    return ""


MX_INPUTS = (
    "Those programs give a block of inputs twice the scale where its largest is 1.75 or more times a power of two, and not by the MX specification's rule, so "
    "their numbers differ a little from the measured ones; vLLM leaves inputs in 16 bits on GPUs without units for MX"
)
TRANSFORMERS = (
    "transformers with the package compressed-tensors (a grid with zero-points wants `quantization_config=CompressedTensorsConfig(dequantize=True)` there)"
)
MIXED = "transformers with the package compressed-tensors (never with `dequantize=True`, which takes all layers for stored like the first, without an error)"
UNREAD = "transformers, which takes no zero-points from a file, or with `dequantize=True` takes all layers for stored like the first"
MX_WEIGHTS = (
    "By its code vLLM 0.32 asks for rounded inputs of MXFP4 and MXFP8 layers whatever the file says: GPUs with units for MX round them to blocks of that "
    "format, which is worse than the measured numbers; others leave them in 16 bits"
)
RAN = "vLLM (`vllm serve FOLDER`; 0.32 on a CPU ran the bundled model in this format as measured)"
READ = (
    "vLLM (`vllm serve FOLDER`; 0.32 read the bundled model in this format as it is meant, with a plain product in place of its own, which the CPU it was "
    "tried on lacks)"
)
FORMAT = Format("compressed-tensors", "compressed-tensors", _refuses, _tensors, _config, f"{TRANSFORMERS}, and vLLM", readers=_readers)
