"""Times GPTQ and AWQ beside public implementations on the same matrices: `python -m tests.quantizer_peers`. Peers are optional and imported when run.

llm-compressor (`llmcompressor`) is asked for GPTQ, AutoAWQ (`autoawq`) for AWQ's two searches, `hqq` for HQQ: inner functions, on one weight, its
inputs and, for GPTQ, the Hessian that this project made. Beside the seconds stand the output errors ||(W' - W) X^T|| / ||W X^T||: the same work was done.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from explorer.methods.awq import Awq
from explorer.methods.gptq import Gptq, hessian, quantize_with_hessian
from explorer.methods.hqq import Hqq
from kernels.timing import device_name

GROUP, TOKENS = 128, 2048
Work = Callable[[], Tensor]  # gives the weight [N, K] float32 as rounded, in the inputs' own scale


def matrices(n: int, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(weight [N, K], inputs [TOKENS, K]) float32: correlated inputs of which few channels are large, as a model's are."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.exp(torch.randn(k, generator=generator))
    mixed = torch.randn(TOKENS, k, generator=generator) + torch.randn(TOKENS, 8, generator=generator) @ torch.randn(8, k, generator=generator)
    return (torch.randn(n, k, generator=generator) * 0.02).to(device), (mixed * spread).to(device)


def own_gptq(weight: Tensor, h: Tensor, order: bool) -> Work:
    method = Gptq(bits=4, group_size=GROUP, symmetric=True, act_order=order, static_groups=True)
    return lambda: quantize_with_hessian(method, weight, h).dequantize()


def llm_compressor(weight: Tensor, h: Tensor, order: bool) -> Work:
    """Its quantizer of stacked weights, with its own symmetric scales, absmax / 7.5 of the same groups; this project's are absmax / 7."""
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    scale = weight.unflatten(1, (-1, GROUP)).abs().amax(-1) / 7.5
    asked = QuantizationArgs(num_bits=4, group_size=GROUP, strategy="group", symmetric=True, actorder="weight" if order else None)

    def work() -> Tensor:
        zero = torch.zeros_like(scale, dtype=torch.int8)
        return quantize_weight(weight.clone()[None], h.clone()[None], scale[None], zero[None], None, asked)[0][0]

    return work


def own_awq(weight: Tensor, inputs: Tensor) -> Work:
    return lambda: Awq(bits=4, group_size=GROUP).quantize(weight, inputs).dequantize()


def auto_awq(weight: Tensor, inputs: Tensor) -> Work:
    """Its searches for the channels' scale and the clipping range, and its rounding."""
    from awq.quantize.quantizer import AwqQuantizer

    quantizer = object.__new__(AwqQuantizer)
    quantizer.w_bit, quantizer.group_size, quantizer.zero_point, quantizer.duo_scaling = 4, GROUP, True, False
    quantizer.max_chunk_memory, quantizer.n_parallel_calib_samples = 1 << 30, None

    @torch.no_grad()
    def work() -> Tensor:
        linear = nn.Linear(*weight.T.shape, bias=False, device=weight.device)
        linear.weight.data = weight.clone()
        block = nn.Sequential(nn.Identity(), linear)
        _, _, scale = quantizer._search_best_scale(block, block[0], [linear], inputs)
        scaled = weight * scale
        limit = quantizer._compute_best_clip(scaled, inputs / scale).view(len(weight), -1, 1)
        clamped = scaled.unflatten(1, (-1, GROUP)).clamp(-limit, limit).flatten(1)
        return quantizer.pseudo_quantize_tensor(clamped)[0] / scale

    return work


def own_hqq(weight: Tensor) -> Work:
    return lambda: Hqq(bits=4, group_size=GROUP).quantize(weight, None).dequantize()


def hqq(weight: Tensor) -> Work:
    """Its authors' quantizer, in float32 along the inputs."""
    from hqq.core.quantize import Quantizer

    asked = {"nbits": 4, "group_size": GROUP, "axis": 1, "bitpack": False, "compute_dtype": torch.float32, "device": str(weight.device)}
    return lambda: Quantizer.dequantize(*Quantizer.quantize(weight, **asked))


def timed(work: Work, repeats: int) -> tuple[Tensor, float]:
    """(what it gave, the median of its seconds after one call that is not counted)."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        result = work()
        if result.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds[1:])


def compare(n: int, k: int, repeats: int, methods: str, device: torch.device) -> list[dict]:
    """A row for each of these methods and its implementations on a weight [N, K]; {"why"} where a peer cannot be imported or fails."""
    weight, inputs = matrices(n, k, device)
    exact, h, rows = inputs @ weight.T, hessian(inputs), []
    wanted = {
        "GPTQ": (lambda: own_gptq(weight, h, False), {"llm-compressor": lambda: llm_compressor(weight, h, False)}),
        "GPTQ act-order": (lambda: own_gptq(weight, h, True), {"llm-compressor": lambda: llm_compressor(weight, h, True)}),
        "AWQ": (lambda: own_awq(weight, inputs), {"AutoAWQ": lambda: auto_awq(weight, inputs)}),
        "HQQ": (lambda: own_hqq(weight), {"hqq": lambda: hqq(weight)}),
    }
    for name in methods.split(","):
        own, peers = wanted[name]
        for who, make in {"this project": own, **peers}.items():
            row = {"method": name, "who": who, "n": n, "k": k}
            try:
                rounded, seconds = timed(make(), repeats)
                row |= {"seconds": seconds, "error": ((inputs @ rounded.T - exact).norm() / exact.norm()).item()}
            except Exception as error:  # a peer is someone else's code: whatever it raises must not end the comparison
                if who == "this project":
                    raise
                row |= {"why": f"{type(error).__name__}: {str(error)[:160]}"}
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.quantizer_peers", description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="1024x1024", help="N x K of weights, separated by commas")
    parser.add_argument("--methods", default="GPTQ,GPTQ act-order,AWQ,HQQ", help="which of these, separated by commas; AutoAWQ takes minutes for large weights")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    rows = [row for shape in args.shapes.split(",") for row in compare(*map(int, shape.split("x")), args.repeats, args.methods, device)]
    print(json.dumps({"device": device_name(device), "torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
