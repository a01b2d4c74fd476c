"""Every form of every op on its cases against float64, by relative error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kernels.op import REFERENCE, Form, Op, Packed, compute_capability, ops

# ||error|| / ||reference|| against float64 on the dequantized operand, by activation dtype.
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 4e-3, torch.float32: 1e-3}


def moved(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The same tensors on a device."""
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def relative_error(op: Op, form: Form, case: Any, dtype: torch.dtype, device: torch.device) -> float:
    """||y - y_ref|| / ||y_ref|| of one form on one case with random inputs; NaN if any output was not written."""
    x, operand = op.problem(case, torch.Generator().manual_seed(0))
    x, packed = x.to(dtype), form.pack(operand)
    y = op.value(form.run(x.to(device), Packed(moved(packed.tensors, device), packed.meta))).double().cpu()
    expected = op.reference(x, operand)
    return ((y - expected).norm() / expected.norm()).item()


def tolerance(form: Form, dtype: torch.dtype) -> float:
    """The relative error allowed to a form with inputs of this dtype: that of the coarsest dtype its results pass through."""
    return max(TOLERANCE[dtype], TOLERANCE[form.rounds_to or dtype])


def served(op: Op, form: Form) -> list[Any]:
    """The cases of an op that a form does not refuse."""
    return [case for case in op.cases if not form.refuses(op.problem(case, torch.Generator().manual_seed(0))[1])]


def unable(op: Op, form: Form) -> str:
    """Why this machine cannot run a form on any of its op's cases, "" where it can or where the reason is not the machine."""
    reasons = [form.refuses(op.problem(case, torch.Generator().manual_seed(0))[1]) for case in op.cases]
    return next((why for why in reasons if why.startswith(("this CPU", "this torch"))), "") if all(reasons) else ""


def forms_on(op: Op, device: torch.device) -> list[Form]:
    """The forms of an op that this device runs, the reference among them."""
    able = compute_capability(device)
    return [form for form in (op.gpu if device.type == "cuda" else op.cpu) if not 0 < able < form.capability]


def check(device: torch.device, names: tuple[str, ...] = (), every: int = 1) -> Iterator[dict[str, Any]]:
    """The worst relative error of each op, form and dtype on this device; of the named ops only where there are names, of every
    `every`-th case. A form that this machine
    cannot run has no cases and says why.
    """
    for op in ops().values():
        if names and op.name not in names:
            continue
        for form in forms_on(op, device):
            if why := unable(op, form):
                yield {"op": op.name, "form": form.name, "dtype": "", "cases": 0, "why": why, "ok": True}
                continue
            for dtype in (torch.float16, torch.bfloat16) if device.type == "cuda" and form is not REFERENCE else (torch.bfloat16,):
                cases = served(op, form)[::every]
                errors = [relative_error(op, form, case, dtype, device) for case in cases]
                worst, limit = max(errors, key=lambda e: (e != e, e)), tolerance(form, dtype)
                row = {"op": op.name, "form": form.name, "dtype": str(dtype)[6:], "cases": len(cases), "worst": worst, "limit": limit}
                yield row | {"ok": worst <= limit}
