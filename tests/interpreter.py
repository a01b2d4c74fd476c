"""Triton's interpreter as the tests use it: it reads block scales as what they are, and leaves out work whose result it drops."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest
import torch
from triton import language
from triton.runtime import interpreter

SCANNED = (language, language.core, language.tensor, language.math, language.core.tensor_descriptor_base)  # what a launch looks through for built-ins


def read_block_scales(patch: pytest.MonkeyPatch) -> None:
    """It takes every block scale of a scaled product for a power of two; E4M3 ones, as NVFP4 has, are read here as what they are."""
    powers = interpreter._dot_scaled_scale_to_f32

    def read(handle, compute_type):
        if handle.dtype is not language.float8e4nv:
            return powers(handle, compute_type)
        return torch.from_numpy(handle.data).view(torch.float8_e4m3fn).float().numpy()

    patch.setattr(interpreter, "_dot_scaled_scale_to_f32", read)


def drop_idle_work(patch: pytest.MonkeyPatch) -> None:
    """More than half of a launch's time, and nothing that a test could see: a sum is computed anew in 64 bits for an assertion that is off without `debug`,
    modules are looked through for built-ins at each launch and call, and a table of types is made at each look into it.
    """
    builder = interpreter.interpreter_builder
    assert not builder.options.debug, "the overflow check would be heard"
    patch.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))
    builtins = {id(part): [name for name, member in inspect.getmembers(part) if language.core.is_builtin(member)] for part in SCANNED}

    def patch_builtin(part, builder, scope) -> None:
        for name in builtins[id(part)]:
            member = getattr(part, name)
            if language.core.is_builtin(member):  # not yet replaced by the launch that calls this function
                interpreter._patch_attr(part, name, member, builder, scope)

    plain, kept = interpreter._get_np_dtype, dict[str, np.dtype]()

    def np_dtype(kind) -> np.dtype:
        kind = kind.element_ty if isinstance(kind, language.block_type) else kind
        if isinstance(kind, language.pointer_type):
            return plain(kind)
        return kept.get(kind.name) or kept.setdefault(kind.name, plain(kind))

    patch.setattr(interpreter, "_patch_builtin", patch_builtin)
    patch.setattr(interpreter, "_get_np_dtype", np_dtype)
