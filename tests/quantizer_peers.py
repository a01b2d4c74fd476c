"""Times GPTQ, AWQ and HQQ beside public implementations on the same matrices: `python -m tests.quantizer_peers`. Peers are optional.

llm-compressor (`llmcompressor`) is asked for GPTQ, AutoAWQ (`autoawq`) for AWQ's two searches, and hqq: inner functions, on one weight and its inputs.
Every measurement runs in a process of its own under a time limit, and what is known is written after each. AutoAWQ's clipping search, whose time
is proportional to the outputs, is asked for one of its own batches of them, and ours for the same ones. Beside the seconds stand the output errors
||(W' - W) X^T|| / ||W X^T||: the same work was done.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from explorer.input_statistics import InputStatistics
from explorer.methods.awq import Awq
from explorer.methods.gptq import Gptq, hessian, quantize_with_hessian
from explorer.methods.hqq import Hqq
from kernels.timing import busy, device_name

RECORD = Path(__file__).parent.parent / "assets" / "quantizer_peers.json"
OURS, BITS, GROUP, TOKENS, WARM = "this project", 4, 128, 2048, (256, 512)
PATIENCE = 20  # seconds after which a work is not repeated
Work = Callable[[], Tensor]  # gives the weight [N, K] float32 as rounded, in the inputs' own scale


def matrices(n: int, k: int, device: str) -> tuple[Tensor, Tensor]:
    """(weight [N, K], inputs [TOKENS, K]) float32: correlated inputs of which few channels are large, as a model's are."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.exp(torch.randn(k, generator=generator))
    mixed = torch.randn(TOKENS, k, generator=generator) + torch.randn(TOKENS, 8, generator=generator) @ torch.randn(8, k, generator=generator)
    return (torch.randn(n, k, generator=generator) * 0.02).to(device), (mixed * spread).to(device)


def own_gptq(weight: Tensor, inputs: Tensor, order: bool) -> Work:
    method, h = Gptq(bits=BITS, group_size=GROUP, symmetric=True, full_range=True, act_order=order, static_groups=True), hessian(InputStatistics.of(inputs))
    return lambda: quantize_with_hessian(method, weight, h).dequantize()


def llm_compressor(weight: Tensor, inputs: Tensor, order: bool) -> Work:
    """Its quantizer of stacked weights, with the symmetric scales its observer would give: absmax / 7.5 of the original groups."""
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    scale, h = weight.unflatten(1, (-1, GROUP)).abs().amax(-1) / 7.5, hessian(InputStatistics.of(inputs))
    asked = QuantizationArgs(num_bits=BITS, group_size=GROUP, strategy="group", symmetric=True, actorder="weight" if order else None)

    def work() -> Tensor:
        zero = torch.zeros_like(scale, dtype=torch.int8)
        return quantize_weight(weight.clone()[None], h.clone()[None], scale[None], zero[None], None, asked)[0][0]

    return work


def own_awq(weight: Tensor, inputs: Tensor, clip: bool) -> Work:
    """Either search alone: that of the channels' scale, or that of the clipping range without a scale."""
    method = Awq(bits=BITS, group_size=GROUP, clip=clip)
    if clip:
        return lambda: dict(method.quantize_together({"": weight}, InputStatistics.of(inputs), None))[""].dequantize()
    return lambda: method.quantize(weight, InputStatistics.of(inputs)).dequantize()


@torch.no_grad()
def auto_awq(weight: Tensor, inputs: Tensor, clip: bool) -> Work:
    from awq.quantize.quantizer import AwqQuantizer

    quantizer = object.__new__(AwqQuantizer)
    quantizer.w_bit, quantizer.group_size, quantizer.zero_point, quantizer.duo_scaling = BITS, GROUP, True, False
    quantizer.max_chunk_memory, quantizer.n_parallel_calib_samples = 1 << 30, None
    linear = nn.Linear(*weight.T.shape, bias=False, device=weight.device)
    linear.weight.data = weight.clone()
    block = nn.Sequential(nn.Identity(), linear)

    @torch.no_grad()
    def scaled() -> Tensor:
        scale = quantizer._search_best_scale(block, block[0], [linear], inputs)[2]
        return quantizer.pseudo_quantize_tensor(weight * scale)[0] / scale

    @torch.no_grad()
    def clipped() -> Tensor:
        limit = quantizer._compute_best_clip(weight, inputs).view(len(weight), -1, 1)
        return quantizer.pseudo_quantize_tensor(weight.unflatten(1, (-1, GROUP)).clamp(-limit, limit).flatten(1))[0]

    return clipped if clip else scaled


def own_hqq(weight: Tensor, inputs: Tensor) -> Work:
    method = Hqq(bits=BITS, group_size=GROUP)
    return lambda: method.quantize(weight, None).dequantize()


def library_hqq(weight: Tensor, inputs: Tensor) -> Work:
    from hqq.core.quantize import Quantizer

    def work() -> Tensor:
        codes, meta = Quantizer.quantize(weight, nbits=BITS, group_size=GROUP, axis=1, bitpack=False, device=str(weight.device))
        return Quantizer.dequantize(codes, meta | {"compute_dtype": torch.float32})

    return work


@dataclass(frozen=True)
class Comparison:
    """own and theirs make a Work of a weight and its inputs. peer: its name; module: says its version. outputs: how many of the weight's rows, 0 for all."""

    own: Callable[[Tensor, Tensor], Work]
    theirs: Callable[[Tensor, Tensor], Work]
    peer: str
    module: str
    outputs: int = 0


COMPARISONS = {
    "GPTQ": Comparison(partial(own_gptq, order=False), partial(llm_compressor, order=False), "llm-compressor", "llmcompressor"),
    "GPTQ act-order": Comparison(partial(own_gptq, order=True), partial(llm_compressor, order=True), "llm-compressor", "llmcompressor"),
    "AWQ scales": Comparison(partial(own_awq, clip=False), partial(auto_awq, clip=False), "AutoAWQ", "awq"),
    "AWQ clipping": Comparison(partial(own_awq, clip=True), partial(auto_awq, clip=True), "AutoAWQ", "awq", outputs=256),
    "HQQ": Comparison(own_hqq, library_hqq, "hqq", "hqq"),
}


def measure(method: str, who: str, n: int, k: int, repeats: int, device: str) -> dict:
    """The median seconds, after the same work on a small matrix that is not counted, and the output error."""
    asked = COMPARISONS[method]
    make = asked.own if who == OURS else asked.theirs
    make(*matrices(*WARM, device))()
    weight, inputs = matrices(n, k, device)
    work, seconds = make(weight, inputs), []
    while len(seconds) < repeats and sum(seconds) < PATIENCE:
        start = time.perf_counter()
        rounded = work()
        if rounded.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    exact = inputs @ weight.T
    version = "" if who == OURS else importlib.import_module(asked.module).__version__
    return {"seconds": statistics.median(seconds), "error": ((inputs @ rounded.T - exact).norm() / exact.norm()).item(), "version": version}


def limited(method: str, who: str, n: int, k: int, repeats: int, limit: float, device: str) -> dict:
    """What `measure` finds in a process of its own; {"why"} where a peer cannot be imported, fails or takes longer than limit seconds."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.quantizer_peers",
        "--one",
        method,
        who,
        str(n),
        str(k),
        "--repeats",
        str(repeats),
        "--device",
        device,
    ]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"why": f"not done within {limit:g} s"}
    if ended.returncode:
        return {"why": (ended.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    return json.loads(ended.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.quantizer_peers", description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="1024x1024,4096x4096", help="N x K of weights, separated by commas")
    parser.add_argument("--methods", default=",".join(COMPARISONS), help="which of these, separated by commas")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=150, help="seconds that one measurement may take, its matrices included")
    parser.add_argument("--write", action="store_true", help=f"also write {RECORD.name}; rows of other shapes and methods stay")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="only times of a CPU are written")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], args.one[1], int(args.one[2]), int(args.one[3]), args.repeats, args.device)))
        return
    if args.write and args.device != "cpu":
        parser.error("only times of a CPU are written")
    rows = json.loads(RECORD.read_text())["rows"] if args.write and RECORD.exists() else []
    about = {"device": device_name(torch.device("cpu")), "torch": torch.__version__, "busy": busy(), "date": str(date.today())}
    for shape, method in ((shape, method) for shape in args.shapes.split(",") for method in args.methods.split(",")):
        n, k = map(int, shape.split("x"))
        n = min(n, COMPARISONS[method].outputs or n)
        for who in (OURS, COMPARISONS[method].peer):
            row = {"method": method, "who": who, "n": n, "k": k}
            rows = [old for old in rows if not row.items() <= old.items()]
            rows.append(row | limited(method, who, n, k, args.repeats, args.limit, args.device))
            print(json.dumps(rows[-1]), flush=True)
            if args.write:
                RECORD.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
