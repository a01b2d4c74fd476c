"""Closure: every module of this project that a result comes from is in its key, and nothing that only shows it."""

from __future__ import annotations

import ast
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from explorer import closure, experiment, metrics, tasks
from explorer.loader import Loader
from explorer.methods import build

ROOMS = [module for room in ("explorer.methods", "explorer.metrics", "kernels") for module in closure.modules_in(room)]


def loaded_by(module: str) -> set[str]:
    """The modules of this project that an imported module has, or has something of, in its namespace; a package has its own without importing them."""
    values = vars(sys.modules[module]).values()
    names = {value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) for value in values}
    return {name for name in names if isinstance(name, str) and name.startswith(("explorer.", "kernels.")) and not name.startswith(f"{module}.")}


@pytest.mark.parametrize("task", tasks.tasks().values(), ids=lambda task: task.name)
def test_whatever_a_task_has_is_in_its_closure(task: tasks.Task) -> None:
    found = closure.closure(task.work.__module__, *ROOMS)
    assert {name for module in found & sys.modules.keys() for name in loaded_by(module)} <= found
    assert not any(name.startswith(("explorer.ui", "explorer.figures", "explorer.learn")) for name in found), "a page's text would empty the store"


@pytest.mark.parametrize("task", ["", *tasks.tasks()])
def test_the_planner_is_in_no_key(task: str) -> None:
    """Of a run, "", and of every task: what a T4 costs, or what a plan counts, would empty the store with each correction. What a run reads of it
    are a board's bandwidth and the bytes of a cache.
    """
    found = closure.closure(tasks.tasks()[task].work.__module__ if task else "explorer.experiment", *ROOMS)
    planning = ("accelerators", "allocate", "fallbacks", "families", "goal", "layouts", "planner", "presets", "published")
    assert not found & {f"explorer.{name}" for name in planning} and {"explorer.boards", "explorer.cache_sizes"} <= found


def test_every_metric_and_method_brings_what_it_imports() -> None:
    gptq, depth = "explorer.methods.gptq", "explorer.metrics.depth"
    assert gptq in closure.closure(*build("quip", {}).modules()) and gptq not in closure.closure(*build("rtn", {}).modules())
    assert gptq in closure.closure(*build("mixed", {"rules": "*: gptq bits=4"}).modules())
    assert "explorer.metrics.layers" in closure.closure(metrics.metrics()["depth"].measure.__module__) >= {depth, "explorer.calibration"}
    assert "explorer.sequential" in closure.closure("explorer.tasks.distinguish")
    with pytest.raises(ValueError, match="no module"):
        closure.closure("explorer.nothing")


def test_a_change_far_down_changes_the_key_and_a_remark_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a project of its own: top imports lower in a function only, which imports lowest."""
    texts = {"top": "def f():\n    from explorer.lower import g\n    return g()\n", "lower": "from explorer import lowest\n", "lowest": "X = 1\n", "other": ""}
    for name, text in {"__init__": "", **texts}.items():
        (tmp_path / "explorer").mkdir(exist_ok=True)
        (tmp_path / "explorer" / f"{name}.py").write_text(text)
    monkeypatch.setattr(closure, "ROOT", tmp_path)

    def version(name: str, text: str) -> str:
        path = tmp_path / "explorer" / f"{name}.py"
        before = path.read_text()
        path.write_text(text)
        for function in (closure._file, closure._read):
            function.cache_clear()
        try:
            return closure.code_version.__wrapped__("explorer.top")
        finally:
            path.write_text(before)

    try:
        same = version("lowest", "X = 1\n")
        assert same == version("lowest", '"""Doc."""\n# note\nX  =  1\n') == version("other", "Y = 2\n")
        assert same != version("lowest", "X = 2\n") and same != version("lower", "from explorer import lowest, other\n")
    finally:
        for function in (closure._file, closure._read):
            function.cache_clear()


def test_no_module_imports_by_a_relative_name() -> None:
    """The closure reads absolute names only."""
    files = [path for room in closure.OWN for path in (closure.ROOT / room).rglob("*.py")]
    assert not [path for path in files for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.ImportFrom) and node.level]


def test_the_libraries_that_compute_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = experiment.made_by.__wrapped__("explorer.experiment")
    monkeypatch.setattr(experiment, "version", lambda name: "0")
    assert experiment.made_by.__wrapped__("explorer.experiment") != before


def test_an_answer_on_the_bundled_text_belongs_to_that_text(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = partial(tasks.task_key, tasks.tasks()["sensitivity"], {"model": "demo"}, Loader())
    before = ask()
    monkeypatch.setattr(tasks.data, "bundled_digest", lambda: "another CPython's")
    assert ask() != before
