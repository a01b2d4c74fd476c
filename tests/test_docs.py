"""The generated parts are current, what the pages name is there, and the committed files hold what the page and the README promise."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from explorer.__main__ import parser
from explorer.cache_sizes import GROUP, WINDOW
from explorer.commands.run import parameters
from explorer.docs import CATALOGUE, PARTS, ROOT, WIDTH, catalogue, laid, render, survey_table
from explorer.hub import Hub
from explorer.records import report_from
from explorer.repeats import between

PAGES = {page: (ROOT / page).read_text() for page in ("README.md", "SECURITY.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
SOURCES = "".join(
    path.read_text() for path in (ROOT / "app.py", *(path for room in ("explorer", "kernels", "assets", "tests") for path in (ROOT / room).rglob("*.py")))
)


def prose(page: str) -> str:
    """A page's text without blocks of code."""
    return FENCE.sub("", PAGES[page])


def spans(page: str) -> list[str]:
    """What stands in `code` in a page's text."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def commands(page: str) -> Iterator[tuple[list[str], bool]]:
    """(words, whether they are a whole command) of the commands in a page: lines of blocks, and `code` that starts like one."""
    blocks = [line for kind, block in FENCE.findall(PAGES[page]) if not kind for line in block.splitlines()]
    for text, whole in [*((line, True) for line in blocks), *((code, False) for code in spans(page))]:
        for part in text.split(" && ") if re.match(r"([A-Z_]+=\S+ )*(python|make|bash|docker) ", text) else ():
            words = shlex.split(part, comments=True)
            yield words[next(at for at, word in enumerate(words) if "=" not in word) :], whole


def anchors(page: str) -> set[str]:
    """What a link to a page may name after #: its headings, as the forge that shows them writes them."""
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", prose(page), re.M)}


@pytest.mark.parametrize("page", PARTS)
def test_tables_are_current(page: str) -> None:
    assert render(PAGES[page], PARTS[page], page) == PAGES[page], "run `make docs`"


@pytest.mark.parametrize("page", PAGES)
def test_every_part_is_made(page: str) -> None:
    assert re.findall(r"^<!-- ([\w-]+) -->$", PAGES[page], re.M) == re.findall(r"^<!-- /([\w-]+) -->$", PAGES[page], re.M)
    assert set(re.findall(r"<!-- ([\w-]+) -->", PAGES[page])) == set(PARTS.get(page, ())), page


def test_a_part_that_is_missing_is_named() -> None:
    with pytest.raises(SystemExit, match=r"README.md has no part 'results'"):
        render("no part", PARTS["README.md"], "README.md")


def test_text_is_broken_outside_of_code_and_tables() -> None:
    row, code = "| " + "cell " * 60 + "|", "`" + "word " * 10 + "`"
    text = laid(f"{row}\n\n" + "word " * 29 + code)
    assert text.splitlines()[0] == row and code in text.splitlines() and max(map(len, text.splitlines()[1:])) <= WIDTH


def test_catalogue_is_current() -> None:
    assert CATALOGUE.read_text() == catalogue(), "run `make docs`"


def test_seed_results_are_of_the_bundled_model() -> None:
    from explorer.models import resolve

    reports = [report_from(data) for data in json.loads((ROOT / "assets" / "seed_results.json").read_text())]
    assert reports[0].experiment.spec.method == "none" and len(reports) == 5
    assert {r.experiment.model for r in reports} == {resolve("demo", Hub())}, "the model changed: run `make seeds`"


def test_demo_model_fits_and_did_not_see_the_held_out_text() -> None:
    folder = ROOT / "assets" / "demo-model"
    record = json.loads((folder / "training.json").read_text())
    assert (folder / "model.safetensors").stat().st_size <= 28 * 2**20
    assert 10e6 <= record["parameters"] <= 15e6 and record["text"]["overlapping_documents"] == 0


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in link]
    for link in links:
        name, _, anchor = link.partition("#")
        path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert path.exists(), link
        assert not anchor or anchor in anchors(str(path.relative_to(ROOT))), link


def test_the_readme_links_to_every_page() -> None:
    assert all(f"]({page}" in PAGES["README.md"] for page in PAGES if page != "README.md")


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    rooms = r"(?:explorer|tests|kernels|assets|deploy|docs|\.ci)/[\w./-]*"
    named = [word for code in spans(page) for word in code.split() if re.fullmatch(rooms, word)]
    assert all((ROOT / name).exists() for name in named), named


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_a_page_names_exist(page: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    own = next(action.choices for action in parser()._actions if action.dest == "command")
    for words, whole in commands(page):
        flags = {word for word in words if word.startswith("--")}
        if words[0] == "make":
            assert words[1] in targets, words
        elif words[:3] == ["python", "-m", "explorer"]:
            assert flags <= set(own[words[3]]._option_string_actions), words
            assert not whole or parser().parse_args(words[3:]), words
        elif words[:2] == ["python", "-m"]:
            source = importlib.util.find_spec(words[2] if (ROOT / words[2].replace(".", "/")).with_suffix(".py").exists() else f"{words[2]}.__main__").origin
            assert all(f'"{flag}"' in Path(source).read_text() for flag in flags), words
        elif words[0] in ("python", "bash"):
            assert all(flag == "--help" or f'"{flag}"' in (ROOT / words[1]).read_text() for flag in flags), words
        elif words[:2] == ["docker", "compose"]:
            assert (ROOT / words[3]).is_file(), words


@pytest.mark.parametrize("page", PAGES)
def test_flags_that_a_page_names_exist(page: str) -> None:
    own = next(action.choices for action in parser()._actions if action.dest == "command").values()
    known = {flag for command in own for flag in command._option_string_actions} | set(re.findall(r'"(--[\w-]+)"', SOURCES))
    named = {word for code in spans(page) if code.startswith("--") for word in code.split() if word.startswith("--")}
    assert named <= known, named - known


@pytest.mark.parametrize("page", sorted({*PAGES} - {"SECURITY.md"}))
def test_a_page_can_be_read(page: str) -> None:
    """No line is wider than a screen but those of tables, no paragraph and no point of a list is longer than six lines."""
    lines = [line for line in PAGES[page].split("---\n", 2)[-1].splitlines() if not line.startswith("|")]
    assert max(map(len, lines)) <= WIDTH, max(lines, key=len)
    told = [line for line in prose(page).split("---\n", 2)[-1].splitlines() if not line.startswith(("<!--", "|"))]
    points = [0]
    for line in told:
        points = [*points, 0] if not line or line.startswith(("- ", "#")) else points
        points[-1] += bool(line)
    assert max(points) <= 6


def test_a_stranger_gets_through_the_readme() -> None:
    """It is short, not counting tables and code that are made or run."""
    written = re.sub(r"<!-- ([\w-]+) -->.*?<!-- /\1 -->", "", prose("README.md"), flags=re.S)
    assert len(written.splitlines()) <= 160


def test_the_readme_says_of_the_results_what_they_say() -> None:
    """8 bits change nothing measurable, GPTQ loses less than RTN, 2 bits break the model, 4 bits are faster; as many types of models load as it says."""
    from explorer.checkpoint import SUPPORTED

    _, eight, rounded, gptq, two = [report_from(data) for data in json.loads((ROOT / "assets" / "seed_results.json").read_text())]
    assert eight.find("perplexity_delta").low < 0 < eight.find("perplexity_delta").high
    assert gptq.find("kld_mean").high < rounded.find("kld_mean").low and two.value("perplexity_delta") > 1000
    assert all(report.find("decode_speedup").low > between() for report in (rounded, gptq))
    assert f"{len(SUPPORTED)} architectures load" in PAGES["README.md"] and {"gpt2", "qwen3"} <= {*SUPPORTED}


def test_the_methods_example_is_a_method() -> None:
    """What the README shows as a whole file: it runs, its two bits cost what it says, zeros stay zeros, and the kernel multiplies by it."""
    import torch

    from kernels.op import multiply

    source = PAGES["README.md"].split("```python\n")[1].split("```")[0]
    space: dict = {}
    exec(compile(source, "midrise.py", "exec", dont_inherit=True), space)
    method = space["MidRise"]()
    weight, x = torch.randn(48, 128, generator=torch.Generator().manual_seed(0)), torch.randn(3, 128, generator=torch.Generator().manual_seed(1))
    q = method.quantize(weight, None)
    assert q.stored_bits() / weight.numel() == 2.25 and torch.unique(q.codes).tolist() == [0, 1, 2, 3]
    assert method.quantize(torch.zeros(8, 128), None).dequantize().abs().max() < 1e-6
    exact = x @ q.dequantize().T
    assert (multiply(x.bfloat16(), q.weight()).float() - exact).norm() < 0.02 * exact.norm()


def test_the_survey_shows_what_its_speeds_are_of() -> None:
    """QuIP# stores two bits a weight and runs in codes of four."""
    lines = [line.strip("| ").split(" | ") for line in survey_table().splitlines() if line.startswith("|")]
    stored, held = map(lines[0].index, ("bits/weight, stored", "bits/weight in memory"))
    quip = next(line for line in lines if line[0] == "QuIP# 2-bit")
    assert float(quip[stored]) < 2.1 and float(quip[held]) > 4 and len({line.count("|") for line in survey_table().splitlines() if "|" in line}) == 1


def test_the_cache_is_called_kivis_with_the_window_that_it_has() -> None:
    told = f"KIVI's layout; window {WINDOW} here, 128 in the paper"
    asking = [(ROOT / "explorer" / name).read_text() for name in ("commands/run.py", "ui/app.py")]
    story = (ROOT / "assets/learn/stories/13_kv-cache.toml").read_text()
    assert all(told in text.replace("\\'", "'") for text in (*asking, story)) and f"the window is {WINDOW} here, 128 in the paper" in PAGES["docs/KERNELS.md"]
    assert f"newest {WINDOW} to {WINDOW + GROUP - 1} tokens" in asking[1] and f"in groups of {GROUP};" in PAGES["docs/KERNELS.md"]


def test_every_documented_run_is_one_whose_parameters_are_used() -> None:
    """`run` and its like refuse a parameter that another switches off."""
    asked = [words for page in PAGES for words, whole in commands(page) if whole and words[:3] == ["python", "-m", "explorer"]]
    read = [args for words in asked if "--method" in (args := words[3:]) and args[0] in ("run", "save", "speed", "profile", "choices")]
    assert len(read) > 5
    for args in read:
        parameters(parser().parse_args(args))
