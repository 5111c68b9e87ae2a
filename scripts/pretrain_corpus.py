"""The English found on any machine with CPython: its reference topics and its docstrings.

Source files are read, never imported. The order is fixed, so the text of one Python version has
one SHA-256, whatever the machine.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

PINNED_PYTHON = "3.11.7"
"""The reference topics and the docstrings change with every release of CPython."""
PINNED_SHA256 = "0c2511ac8d6c4c4e704c084f9b0838b5255b750c28af5ed881e570a7f6107b1d"

SKIPPED_FOLDERS = {"__pycache__", "ensurepip", "idle_test", "site-packages", "test", "tests"}
"""Tests are not English; the others are not CPython's own text."""

DOCUMENT_SENTENCES = 12
"""Longer texts are cut; twelve sentences are about two rows of the model's."""


@dataclass(frozen=True, slots=True)
class Document:
    """A title and the English sentences found under it."""

    title: str
    sentences: tuple[str, ...]


def collect_documents() -> list[Document]:
    """All documents in a fixed order; no paragraph comes twice."""
    seen: set[str] = set()
    documents = []
    for title, texts in itertools.chain(reference_topics(), standard_library_docstrings()):
        sentences: list[str] = []
        for paragraph in itertools.chain.from_iterable(map(english_paragraphs, texts)):
            if paragraph not in seen:
                seen.add(paragraph)
                sentences += split_sentences(paragraph)
        for start in range(0, len(sentences), DOCUMENT_SENTENCES):
            part = sentences[start : start + DOCUMENT_SENTENCES]
            documents.append(Document(title, tuple(part)))
    return documents


def reference_topics() -> Iterator[tuple[str, list[str]]]:
    for name in sorted(topics):
        yield f"Topic {name}", [topics[name]]


def standard_library_docstrings() -> Iterator[tuple[str, list[str]]]:
    """Docstrings read from source files: nothing is imported, so the order is the files' own."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS.isdisjoint(relative.parts) and not path.name.startswith("_sysconfig"):
            module = ".".join(relative.with_suffix("").parts)
            yield f"Module {module}", docstrings(path.read_text(encoding="utf-8"))


def docstrings(source: str) -> list[str]:
    """The docstrings of the module, its classes and its functions."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return [text for text in map(ast.get_docstring, nodes) if text]


def english_paragraphs(text: str) -> list[str]:
    blocks = re.split(r"\n\s*\n", text.translate(ASCII_QUOTES))
    candidates = (strip_markup(block) for block in blocks if not NOT_PROSE.search(block))
    return [paragraph for paragraph in candidates if is_english(paragraph)]


ASCII_QUOTES = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "…": "...", "—": "-", "–": "-"})

NOT_PROSE = re.compile(
    r">>>|::=|^\s*\.\. |[=*~^-]{4,}|^\s*[+|]|^\s*:\w+ |[Cc]opyright|[Ll]icense"
    r"|^\s*(def|class) \w+.*:$|^\s*import \w|^\s*from \S+ import ",
    re.MULTILINE,
)
"""Doctests, grammar, directives, rulers, tables, field lists, notices and code."""


def strip_markup(block: str) -> str:
    """One line of text without ReST's roles, literals, emphasis and bullets."""
    line = " ".join(block.split())
    line = re.sub(r"^([*-]|\d+\.|Note:|\[\d+\]) ", "", line)
    line = re.sub(r":[\w:]+:`[~!]?([^`<]+)[^`]*`", r"\1", line)
    line = re.sub(r"`+([^`]+)`+_?", r"\1", line)
    line = re.sub(r"\*+(\w[^*]*)\*+", r"\1", line)
    return re.sub(r"::$", ":", line).replace("`", "")


def is_english(paragraph: str) -> bool:
    """True for whole sentences most of whose words are plain words."""
    words = paragraph.split()
    if len(words) < 5 or not paragraph.isascii():
        return False
    plain = sum(bool(re.fullmatch(r"[\"'(]?[A-Za-z][a-z'-]*[\"')]?[,.;:?!]?", word)) for word in words)
    return paragraph[0].isupper() and paragraph[-1] in ".:?!" and plain >= 0.75 * len(words)


def split_sentences(paragraph: str) -> list[str]:
    return re.split(r"(?<=[.?!]) (?=[A-Z\"'(])", paragraph)


def write_corpus(documents: Sequence[Document], path: Path) -> None:
    path.write_text(json.dumps([(d.title, d.sentences) for d in documents]), encoding="utf-8")


def read_corpus(path: Path) -> list[Document]:
    pairs = json.loads(path.read_text(encoding="utf-8"))
    return [Document(title, tuple(sentences)) for title, sentences in pairs]


def corpus_sha256(documents: Sequence[Document]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update("\n".join((document.title, *document.sentences, "\n")).encode())
    return digest.hexdigest()
