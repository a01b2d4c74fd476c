"""Gathers the training text of the demo model from packages anyone can install; the text itself is never committed.

Sources are documentation packages of Debian, fetched by name with `apt-get download` and unpacked into a work folder, and the
docstrings of the installed Python packages this project depends on. Every source states its licence. The held-out text
(`pydoc_data.topics`) must not leak in: a paragraph that shares any run of eight words with it is dropped, and `check_overlap`
proves afterwards that none is left.
"""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from pydoc_data.topics import topics

OVERLAP_WORDS = 8


@dataclass(frozen=True)
class Source:
    """One Debian documentation package: its name, its licence, and which of its paths are read (a regular expression)."""

    package: str
    licence: str
    paths: str = r".*"


SOURCES = (
    Source("python3.11-doc", "PSF-2.0", r"/(tutorial|howto|faq|library|distutils|extending|installing|using|whatsnew)/"),
    Source("postgresql-doc-15", "PostgreSQL"),
    Source("sqlite3-doc", "public domain"),
    Source("python-django-doc", "BSD-3-Clause"),
    Source("python-sqlalchemy-doc", "MIT"),
    Source("apache2-doc", "Apache-2.0", r"/en/|\.en\.html|html\.en$"),
    Source("nodejs-doc", "MIT"),
    Source("llvm-14-doc", "Apache-2.0 WITH LLVM-exception", r"/html/(?!doxygen)"),
    Source("rust-doc", "MIT OR Apache-2.0", r"/html/(book|reference|rust-by-example|nomicon|rustc|cargo|edition-guide|unstable-book)/"),
    Source("python-flask-doc", "BSD-3-Clause"),
    Source("python-werkzeug-doc", "BSD-3-Clause"),
    Source("python-jinja2-doc", "BSD-3-Clause"),
    Source("python-tornado-doc", "Apache-2.0"),
    Source("python-kombu-doc", "BSD-3-Clause"),
    Source("python-h5py-doc", "BSD-3-Clause"),
    Source("python-ipython-doc", "BSD-3-Clause"),
    Source("python-cryptography-doc", "Apache-2.0 OR BSD-3-Clause"),
    Source("python-dask-doc", "BSD-3-Clause"),
    Source("python-scipy-doc", "BSD-3-Clause"),
    Source("python-sympy-doc", "BSD-3-Clause"),
    Source("python-statsmodels-doc", "BSD-3-Clause"),
    Source("python-pandas-doc", "BSD-3-Clause"),
    Source("python-astropy-doc", "BSD-3-Clause"),
    Source("twisted-doc", "MIT", r"/(?!api/)"),
    Source("bind9-doc", "MPL-2.0"),
)
DOCSTRING_PACKAGES = {
    "torch": "BSD-3-Clause", "transformers": "Apache-2.0", "numpy": "BSD-3-Clause", "pandas": "BSD-3-Clause",
    "datasets": "Apache-2.0", "accelerate": "Apache-2.0", "gradio": "Apache-2.0", "tokenizers": "Apache-2.0",
    "triton": "MIT", "huggingface_hub": "Apache-2.0", "fastapi": "MIT", "pydantic": "MIT",
}  # fmt: skip
_SKIP_FILES = re.compile(r"(genindex|search|py-modindex|_modules|_static|/toc|doxygen|glossary-index|/changelogs?/)", re.I)
_BLOCKS = {"p", "li", "dd", "dt", "pre", "h1", "h2", "h3", "h4", "td", "blockquote"}
_DROP = {"script", "style", "nav", "head", "svg", "footer", "form", "table", "button"}


def words(text: str) -> list[str]:
    """The lower-case words of a text: what overlap is counted on."""
    return re.findall(r"[a-z0-9_]+", text.lower())


def ngrams(text: str) -> set[int]:
    """Hashes of all runs of OVERLAP_WORDS words."""
    w = words(text)
    return {hash(tuple(w[i : i + OVERLAP_WORDS])) for i in range(len(w) - OVERLAP_WORDS + 1)}


def held_out_ngrams() -> set[int]:
    """The runs of words that training text must not contain."""
    return set().union(*(ngrams(text) for text in topics.values()))


class _TextBuilder(HTMLParser):
    """HTML to plain text in the manner of documentation text builders: wrapped paragraphs, underlined headings, indented code."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.paragraphs: list[str] = []
        self._buffer: list[str] = []
        self._block = "p"
        self._dropped = 0

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag in _DROP:
            self._dropped += 1
        elif tag in _BLOCKS:
            self.flush()
            self._block = tag
        elif self._block != "pre" and not self._dropped:
            self._buffer.append({"code": '"', "tt": '"', "em": "*", "strong": "**", "br": "\n"}.get(tag, ""))

    def handle_endtag(self, tag: str) -> None:
        if tag in _DROP:
            self._dropped = max(0, self._dropped - 1)
        elif tag in _BLOCKS:
            self.flush()
            self._block = "p"
        elif self._block != "pre" and not self._dropped:
            self._buffer.append({"code": '"', "tt": '"', "em": "*", "strong": "**"}.get(tag, ""))

    def handle_data(self, data: str) -> None:
        if not self._dropped:
            self._buffer.append(data)

    def flush(self) -> None:
        raw, self._buffer = "".join(self._buffer).replace("¶", ""), []
        if self._block == "pre":
            if raw.strip():
                self.paragraphs.append(textwrap.indent(textwrap.dedent(raw.strip("\n")).rstrip()[:1500], "   "))
            return
        text = " ".join(raw.split()).replace('""', '"')
        if len(text) < 2:
            return
        if self._block in ("h1", "h2", "h3", "h4"):
            line = {"h1": "*", "h2": "=", "h3": "-", "h4": "~"}[self._block] * len(text)
            self.paragraphs.append(f"{text}\n{line}")
        elif self._block == "li":
            self.paragraphs.append(textwrap.fill("* " + text, 70, subsequent_indent="  "))
        elif self._block == "dd":
            self.paragraphs.append(textwrap.fill(text, 70, initial_indent="   ", subsequent_indent="   "))
        else:
            self.paragraphs.append(textwrap.fill(text, 70))


def html_paragraphs(html: str) -> list[str]:
    """The paragraphs of one HTML page, from its main content where it is marked."""
    start = re.search(r'<(div|main|section)[^>]*(role="main"|id="content"|class="(body|sect1|chapter)")', html)
    builder = _TextBuilder()
    builder.feed(html[start.start() :] if start else html)
    builder.flush()
    return builder.paragraphs


def docstring_paragraphs(code: str) -> list[str]:
    """The docstrings of one Python file, dedented, short ones left out."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [p for doc in found if doc and len(doc) > 80 for p in doc.split("\n\n")]


def _read(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8", errors="ignore")
    except OSError:
        return []
    if len(text) > 3_000_000:
        return []
    return docstring_paragraphs(text) if path.suffix == ".py" else html_paragraphs(text)


def fetch(source: Source, work: Path) -> Path:
    """Downloads and unpacks one package with the system's own client; returns its folder. Raises CalledProcessError."""
    folder = work / "packages" / source.package
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-q", source.package], cwd=folder.parent, check=True, stdout=subprocess.DEVNULL)
        deb = next(folder.parent.glob(f"{source.package}_*.deb"))
        subprocess.run(["dpkg", "-x", deb.name, folder.name], cwd=folder.parent, check=True)
        deb.unlink()
    return folder


def source_files(work: Path) -> Iterator[tuple[str, str, list[Path]]]:
    """(name, licence, files) of each source, in a fixed order."""
    for source in SOURCES:
        try:
            folder = fetch(source, work)
        except (subprocess.CalledProcessError, StopIteration, OSError) as error:
            print(f"left out {source.package}: {error}", file=sys.stderr)
            continue
        files = sorted(p for p in folder.rglob("*") if p.is_file() and re.search(r"\.html?(\.en)?$", p.name))
        yield source.package, source.licence, [p for p in files if re.search(source.paths, str(p)) and not _SKIP_FILES.search(str(p))]
    site = Path(__import__("numpy").__file__).parent.parent
    for package, licence in DOCSTRING_PACKAGES.items():
        yield f"docstrings of {package}", licence, sorted((site / package).rglob("*.py"))


def gather(work: Path, processes: int = 4, cap: int = 24_000_000) -> Iterator[tuple[str, str, str]]:
    """Yields (source, licence, document) with duplicate paragraphs and paragraphs that overlap the held-out text removed.

    A source gives at most `cap` characters, so that none drowns the others.
    """
    forbidden, seen = held_out_ngrams(), set()
    with ProcessPoolExecutor(processes) as pool:
        for name, licence, files in source_files(work):
            taken = dropped = 0
            for paragraphs in pool.map(_read, files, chunksize=16):
                kept = []
                for paragraph in paragraphs:
                    digest = hashlib.blake2b(paragraph.encode(), digest_size=8).digest()
                    if digest in seen:
                        continue
                    seen.add(digest)
                    if ngrams(paragraph) & forbidden:
                        dropped += 1
                        continue
                    kept.append(paragraph)
                document = "\n\n".join(kept)
                if len(document) > 400 and taken < cap:
                    taken += len(document)
                    yield name, licence, document + "\n"
            print(f"{name:32s} {licence:32s} {taken / 1e6:7.1f} MB, {dropped} overlapping paragraphs dropped", file=sys.stderr)


def check_overlap(documents: list[str]) -> int:
    """How many documents hold a paragraph that shares a run of OVERLAP_WORDS words with the held-out text; must be 0."""
    forbidden = held_out_ngrams()
    return sum(any(ngrams(p) & forbidden for p in document.split("\n\n")) for document in documents)
