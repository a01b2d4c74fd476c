"""`python -m kernels`: checks every op against float64 on its cases, then times it beside the 16-bit linear. Exit code 1 on a failed check."""

from __future__ import annotations

import argparse
import json
import sys

import torch

from kernels.op import Case, Form, Op, dequantize, multiply, ops, random_weight
from kernels.timing import cache_bytes, device_name, time_call

# ||error|| / ||reference|| against float64 on the dequantized weights, by activation dtype.
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 4e-3, torch.float32: 1e-3}
SHAPES = ((4096, 4096), (14336, 4096), (8192, 8192))  # N, K
ROWS = (1, 4, 16, 64)


def relative_error(op: Op, form: Form, case: Case, dtype: torch.dtype, device: torch.device) -> float:
    """||y - y_ref|| / ||y_ref|| of one form on one case with random inputs; NaN if any output was not written."""
    generator = torch.Generator().manual_seed(case.m * 31 + case.n)
    weight = random_weight(case, generator)
    x = torch.randn(case.m, case.k, generator=generator).to(dtype)
    packed = form.pack(weight)
    packed = packed._replace(tensors={name: t.to(device) for name, t in packed.tensors.items()})
    y = form.run(x.to(device), packed).double().cpu()
    expected = multiply(x, weight).double() if weight.activation else x.double() @ dequantize(weight).double().T
    return ((y - expected).norm() / expected.norm()).item()


def tolerance(form: Form, dtype: torch.dtype) -> float:
    """The relative error allowed to a form with inputs of this dtype: that of the coarsest dtype its results pass through."""
    return max(TOLERANCE[dtype], TOLERANCE[form.rounds_to or dtype])


def check(device: torch.device) -> list[dict]:
    """The worst relative error of each op, form and dtype on this device."""
    rows = []
    for op in ops().values():
        for form in op.forms():
            if form.name == ("triton" if device.type == "cpu" else "cpu"):
                continue
            for dtype in (torch.float16, torch.bfloat16) if device.type == "cuda" else (torch.bfloat16,):
                errors = [
                    relative_error(op, form, case, dtype, device)
                    for case in op.cases
                    if not form.refuses(random_weight(case, torch.Generator().manual_seed(0)))
                ]
                worst = max(errors, key=lambda e: (e != e, e))
                limit = tolerance(form, dtype)
                row = {"op": op.name, "form": form.name, "dtype": str(dtype)[6:], "cases": len(errors), "worst": worst, "limit": limit}
                rows.append(row | {"ok": worst <= limit})
    return rows


def measure(op: Op, form: Form, n: int, k: int, m: int, device: torch.device, samples: int) -> dict:
    """Seconds of a form and of the bfloat16 linear at one shape, both over rotated copies of their weights."""
    bits = op.bits[1]
    case = Case(m, n, k, bits, 128 if bits == 4 else 0, activation=op.cases[0].activation)
    packed = form.pack(random_weight(case, torch.Generator().manual_seed(0)))
    size = sum(t.numel() * t.element_size() for t in packed.tensors.values())
    x = torch.randn(m, k, dtype=torch.bfloat16, device=device)

    def copies(tensors: dict[str, torch.Tensor], each: int) -> list[dict[str, torch.Tensor]]:
        return [{name: t.to(device, copy=True) for name, t in tensors.items()} for _ in range(2 + cache_bytes(device) // each)]

    ours = [lambda t=t: form.run(x, packed._replace(tensors=t)) for t in copies(packed.tensors, size)]
    plain = copies({"w": torch.randn(n, k, dtype=torch.bfloat16)}, 2 * n * k)
    base = [lambda t=t: torch.nn.functional.linear(x, t["w"]) for t in plain]
    fast, slow = time_call(ours, device, samples), time_call(base, device, samples)
    return {
        "op": op.name, "form": form.name, "n": n, "k": k, "m": m, "us": fast.median * 1e6, "p20": fast.p20 * 1e6, "p80": fast.p80 * 1e6,
        "gb_per_s": (size + 2 * m * (n + k)) / fast.median / 1e9, "bf16_us": slow.median * 1e6, "speedup": slow.median / fast.median,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--check", action="store_true", help="check only")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--samples", type=int, default=20, help="timed rounds a shape")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    checks = check(device)
    timings = []
    if not args.check:
        forms = [(op, op.triton if device.type == "cuda" else op.cpu) for op in ops().values()]
        timings = [measure(op, form, n, k, m, device, args.samples) for op, form in forms for n, k in SHAPES for m in ROWS]
    if args.json:
        print(json.dumps({"device": device_name(device), "torch": torch.__version__, "checks": checks, "timings": timings}, indent=1))
    else:
        show(device, checks, timings)
    return 0 if all(row["ok"] for row in checks) else 1


def show(device: torch.device, checks: list[dict], timings: list[dict]) -> None:
    """The same as text."""
    print(f"{device_name(device)}, torch {torch.__version__}")
    for r in checks:
        print(
            f"{'ok  ' if r['ok'] else 'FAIL'} {r['op']:12s} {r['form']:10s} {r['dtype']:9s} {r['cases']:3d} cases, error {r['worst']:.1e} <= {r['limit']:.0e}"
        )
    for r in timings:
        shape = f"{r['n']}x{r['k']} M={r['m']}"
        spread = f"({r['p20']:.0f} to {r['p80']:.0f})"
        print(f"{r['op']:12s} {shape:18s} {r['us']:9.1f} us {spread:18s} {r['gb_per_s']:7.1f} GB/s, {r['speedup']:.2f}x bf16 linear")


if __name__ == "__main__":
    sys.exit(main())
