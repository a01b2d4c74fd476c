"""Which code decides a result: all modules of this project that some modules import, at once or later, and C beside them, as one hash. Runs nothing.

Rather a module too many than one too few: what only waits or downloads is in the hash of what it is imported beside. What a module finds by folder
is not: who asks names it, by `modules_in` where it may be any of them.
"""

from __future__ import annotations

import ast
import gc
import hashlib
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
OWN = ("explorer", "kernels")
INSIDE = ("body", "orelse", "finalbody", "handlers", "cases")  # where statements have statements; an expression has none


@lru_cache(256)  # a visitor's rules name any set of methods
def code_version(*modules: str) -> str:
    """A hash of what modules and all that they import compute: syntax trees without docstrings and comments."""
    collecting = gc.isenabled()
    gc.disable()  # trees have no cycles, and a collection walks all of torch again and again: 0.1 s for 56 files, 0.3 s with it
    try:
        parts = [f"{module} {_read(module)[0]}" for module in sorted(closure(*modules))]
    finally:
        if collecting:
            gc.enable()
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def closure(*modules: str) -> set[str]:
    """These modules, the packages they are in, and whatever of this project those import, in functions too. Raises ValueError for one that is not here."""
    found, ahead = set[str](), list(modules)
    while ahead:
        module = ahead.pop()
        if module not in found:
            found.add(module)
            ahead += _read(module)[1]
    return found


def modules_in(package: str) -> list[str]:
    """The modules of a package, as whoever discovers them by folder finds them; none of the packages in it, and not its command line."""
    paths = sorted(_file(package).parent.glob("*.py"))
    return [package, *(f"{package}.{path.stem}" for path in paths if not path.stem.startswith("__"))]


def computes(tree: ast.Module) -> str:
    """What a module's statements compute, as a text that comments, docstrings and layout do not change. Changes the tree."""
    for statement in (tree, *_statements(tree)):
        match getattr(statement, "body", []):
            case [ast.Expr(value=ast.Constant()), *_]:
                del statement.body[0]
    return ast.dump(tree)


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    ahead = [tree]
    while ahead:
        node = ahead.pop()
        inside = [child for name in INSIDE for child in getattr(node, name, ())]
        yield from inside
        ahead += inside


@cache
def _file(module: str) -> Path | None:
    """The file of a module of this project, None when there is no such module."""
    if module.partition(".")[0] not in OWN:
        return None
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def _read(module: str) -> tuple[str, frozenset[str]]:
    """(hash of what a module computes, the modules that it imports and the package it is in)."""
    file = _file(module)
    if file is None:
        raise ValueError(f"{module} is no module of this project")
    tree = ast.parse(file.read_bytes())
    names = {module.rpartition(".")[0]}
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    beside = sorted(file.parent.glob(f"{file.stem}*.[ch]"))  # a module may be the door of sources in C, named after it
    code = computes(tree).encode() + b"".join(source.read_bytes() for source in beside)
    return hashlib.sha256(code).hexdigest(), frozenset(name for name in names if _file(name))
