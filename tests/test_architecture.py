"""The house rules that a machine can check: who imports whom, sizes, nothing at import, every module says its job."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [*sorted(p for folder in ("explorer", "kernels", "assets", "tests") for p in (ROOT / folder).rglob("*.py")), ROOT / "app.py"]
# Lower layers first; a module may import from its own layer and from those below it, except where FORBIDDEN says otherwise.
LAYERS = tuple(
    layer.split()
    for layer in """
kernels
explorer.records explorer.closure explorer.version explorer.vocabulary
explorer.boards explorer.cache_sizes explorer.grid explorer.families explorer.layouts explorer.presets explorer.published explorer.planner explorer.accelerators
    explorer.fallbacks explorer.goal explorer.allocate explorer.sequential
explorer.qtensor explorer.rotation explorer.floats explorer.lattice explorer.block_search explorer.input_statistics
explorer.rights explorer.writing explorer.pieces explorer.sizes explorer.hub explorer.downloads explorer.checkpoint explorer.turns explorer.limits
explorer.devices explorer.offload explorer.models explorer.data explorer.qlinear explorer.flow explorer.calibration explorer.kvcache explorer.packed_cache
    explorer.likelihood explorer.products explorer.llama explorer.decode explorer.architectures
explorer.store explorer.metrics explorer.methods
explorer.held explorer.bugs explorer.faults explorer.repetition explorer.paired explorer.recorded explorer.repeats explorer.speeds explorer.findings
    explorer.detectors
explorer.quantizing explorer.loader explorer.experiment explorer.provenance explorer.subjects explorer.request explorer.profiling explorer.reproduce
    explorer.folding explorer.saving explorer.tasks
    explorer.figures explorer.chips explorer.export explorer.report_page explorer.wide explorer.link explorer.table
    explorer.verdict
explorer.learn
explorer.worker
explorer.child explorer.zerogpu
explorer.job
explorer.jobs
explorer.server
explorer.ui
app explorer.__main__ explorer.commands explorer.docs explorer.recordings assets
""".strip()
    .replace("\n    ", " ")
    .splitlines()
)
FORBIDDEN = {
    "explorer.methods": ("explorer.metrics", "explorer.store", "explorer.models"),
    "explorer.metrics": ("explorer.methods", "explorer.store"),
    "explorer.store": ("explorer.methods", "explorer.metrics", "torch"),
    "explorer.figures": (
        "torch",
        "gradio",
        "explorer.methods",
        "explorer.metrics",
        "explorer.store",
        "explorer.experiment",
        "explorer.tasks",
        "explorer.qtensor",
    ),
    "explorer.ui": ("torch", "explorer.store", "explorer.experiment", "explorer.tasks", "explorer.models", "explorer.metrics"),
    "explorer.learn": ("torch", "gradio", "explorer.methods", "explorer.metrics", "explorer.store", "explorer.experiment", "explorer.tasks", "explorer.models"),
    "explorer.server": ("torch", "gradio", "explorer.experiment", "explorer.models", "explorer.store"),
    "explorer.child": ("torch", "gradio", "explorer.experiment"),
    "explorer.jobs": ("torch", "gradio", "explorer.experiment"),
    "explorer.export": ("torch", "gradio", "explorer.methods", "explorer.experiment"),
    "explorer.report_page": ("torch", "gradio", "explorer.methods", "explorer.experiment"),
    "explorer.wide": ("torch", "gradio", "explorer.methods", "explorer.experiment"),
    "explorer.table": ("torch", "gradio", "plotly", "explorer.methods", "explorer.experiment"),
    "explorer.verdict": ("torch", "gradio", "plotly", "explorer.methods", "explorer.experiment"),
    "explorer.link": ("torch", "gradio", "plotly", "explorer.methods", "explorer.figures"),
    "explorer.records": ("torch", "numpy", "explorer"),
    "explorer.vocabulary": ("torch", "numpy", "explorer"),
    "kernels": ("explorer", "transformers", "gradio"),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_in(module: str, place: str) -> bool:
    return module == place or module.startswith(place + ".")


def layer_of(module: str) -> int | None:
    return next((i for i, layer in enumerate(LAYERS) if any(is_in(module, place) for place in layer)), None)


PRODUCT = [p for p in FILES if "tests" not in p.relative_to(ROOT).parts]


@pytest.mark.parametrize("path", PRODUCT, ids=module_name)
def test_imports_go_down(path: Path) -> None:
    module = module_name(path)
    own = layer_of(module)
    for imported in imports_of(path):
        theirs = layer_of(imported)
        assert own is None or theirs is None or theirs <= own, f"{module} must not import {imported}: it lives in a higher layer"
        for place, banned in FORBIDDEN.items():
            if is_in(module, place):
                wrong = [b for b in banned if is_in(imported, b) and not is_in(imported, place)]
                assert not wrong, f"{module} must not import {imported}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_sizes_and_first_line(path: Path) -> None:
    source = path.read_text()
    tree = ast.parse(source)
    assert ast.get_docstring(tree), "the first line of a module says its job"
    assert len(source.splitlines()) <= (400 if "kernels" in path.parts else 300), "a file that long is two ideas"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, f"{node.name} is too long"


def names_given(path: Path) -> set[str]:
    """Names that a module's statements bind, imports aside."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    return defined | {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def test_a_name_is_imported_from_where_it_is_defined() -> None:
    """Else who moves or renames it finds half of those who use it."""
    given = {module_name(path): names_given(path) for path in FILES}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in given:
                elsewhere = [a.name for a in node.names if a.name not in given[node.module] and f"{node.module}.{a.name}" not in given]
                assert not elsewhere, f"{module_name(path)} imports {', '.join(elsewhere)} by way of {node.module}"


# Functions that keep every answer, because they are asked about few things: names in the code, devices, formats, widths of layers, handlers of the page.
ASKED_LITTLE = {
    "explorer.closure": {"_file", "_read"},
    "explorer.learn.handout": {"handout_link"},
    "explorer.models": {"_cache_argument"},
    "explorer.repeats": {"between"},
    "explorer.rotation": {"hadamard"},
    "explorer.tasks.sensitivity": {"together"},
    "explorer.ui.forms": {"model"},
    "kernels.codes": {"assembly"},
    "kernels.cpu_forms": {"digits"},
    "kernels.floats": {"float_values"},
    "kernels.table": {"tiles", "_name"},
    "kernels.w8a8_int8_matmul": {"exact"},
}


def test_what_visitors_may_ask_without_end_is_not_kept_without_end() -> None:
    kept: dict[str, set[str]] = {}
    for path in PRODUCT:
        for one in ast.walk(ast.parse(path.read_text())):
            endless = isinstance(one, ast.FunctionDef) and {ast.unparse(by) for by in one.decorator_list} & {
                "cache",
                "functools.cache",
                "lru_cache(maxsize=None)",
            }
            if endless and one.args.args:
                kept.setdefault(module_name(path), set()).add(one.name)
    assert kept == ASKED_LITTLE, "lru_cache with a size, unless what it takes are few"


def test_gradio_only_in_ui() -> None:
    users = {module_name(p) for p in PRODUCT if any(is_in(i, "gradio") for i in imports_of(p))}
    assert all(is_in(m, "explorer.ui") or m == "app" for m in users), users


def test_importing_the_core_touches_no_gpu_and_needs_no_gradio() -> None:
    """The core is imported with gradio and plotly made unimportable, and CUDA must stay uninitialised."""
    code = (
        "import sys; sys.modules['gradio'] = None; sys.modules['plotly'] = None\n"
        "import explorer.experiment, explorer.methods, explorer.metrics, explorer.tasks, explorer.commands, kernels.op, torch\n"
        "explorer.methods.methods(); explorer.metrics.metrics(); explorer.tasks.tasks(); explorer.commands.commands(); kernels.op.ops()\n"
        "assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_another_distribution_called_kernels_is_not_taken_for_ours(tmp_path: Path) -> None:
    """Hugging Face's, which transformers uses where it is installed, has the name of our package."""
    from transformers.utils.import_utils import KERNELS_MIN_VERSION

    told = tmp_path / f"kernels-{KERNELS_MIN_VERSION}.dist-info" / "METADATA"
    told.parent.mkdir()
    told.write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {KERNELS_MIN_VERSION}\n")
    run = partial(subprocess.run, cwd=ROOT, timeout=120, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert "cannot import name" in run([sys.executable, "-c", "import transformers.integrations.hub_kernels"]).stderr, "transformers no longer asks for it"
    done = run([sys.executable, "-c", "import explorer.checkpoint, transformers.integrations.hub_kernels, kernels.op"])
    assert not done.returncode, done.stderr
