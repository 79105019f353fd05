"""The text that a Python installation carries: help topics, sources, docstrings, its licence."""

import ast
import importlib
import inspect
import pydoc_data.topics
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

SKIPPED_PARTS = frozenset(
    {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
    | {"_bundled", "idlelib", "turtledemo", "lib2to3", "__phello__"}
)
"""Folders of tests, of tables, of other people's packages, and of code about code long gone."""

MAX_LITERAL_LINES = 40
"""A literal longer than this is a table, from which a language model learns nothing."""


@dataclass(frozen=True)
class Document:
    """One text, and where in the installation it comes from."""

    name: str
    text: str


@dataclass(frozen=True)
class Definition:
    """A documented module, class or function. `source` is empty for what is written in C."""

    name: str
    kind: str
    doc: str
    source: str


def topics() -> list[Document]:
    """The language reference's chapters, as `help('with')` prints them."""
    return [Document(f"topic {name}", text) for name, text in pydoc_data.topics.topics.items()]


def licence() -> Document:
    """Python's licence and history."""
    path = Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"
    return Document("licence", path.read_text(encoding="utf-8"))


@cache
def sources() -> tuple[Document, ...]:
    """The standard library's modules, long literal tables taken out, sorted by name."""
    return tuple(Document(name, _without_tables(text)) for name, text in sorted(_modules()))


@cache
def definitions() -> tuple[Definition, ...]:
    """All documented modules, classes and functions: first Python's sources, then C's."""
    written = [found for name, text in sorted(_modules()) for found in _documented(name, text)]
    names = sorted(sys.builtin_module_names) + _extension_names()
    compiled = [found for name in names for found in _compiled(name)]
    return (*written, *compiled)


def _modules() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED_PARTS.isdisjoint(parts) and not parts[0].startswith("config-"):
            yield ".".join(parts).removesuffix(".__init__"), path.read_text(encoding="utf-8")


def _extension_names() -> list[str]:
    folder = Path(sysconfig.get_path("stdlib")) / "lib-dynload"
    names = {path.name.split(".")[0] for path in folder.glob("*.so")}
    return sorted(name for name in names if not name.startswith(("_test", "xx")))


def _without_tables(text: str) -> str:
    lines = text.splitlines(keepends=True)
    for node in reversed(ast.parse(text).body):
        is_table = isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr)
        last = node.end_lineno or node.lineno
        if is_table and last - node.lineno > MAX_LITERAL_LINES and not _is_docstring(node):
            del lines[node.lineno - 1 : last]
    return "".join(lines)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _documented(module: str, text: str) -> Iterator[Definition]:
    tree = ast.parse(text)
    if doc := ast.get_docstring(tree):
        yield Definition(module, "module", doc, "")
    yield from _members(module, tree, text.splitlines())


def _members(
    prefix: str, parent: ast.Module | ast.ClassDef, lines: list[str]
) -> Iterator[Definition]:
    for node in parent.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        name = f"{prefix}.{node.name}"
        is_class = isinstance(node, ast.ClassDef)
        source = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
        if doc := ast.get_docstring(node):
            yield Definition(name, "class" if is_class else "function", doc, source)
        if isinstance(node, ast.ClassDef):
            yield from _members(name, node, lines)


def _compiled(module_name: str) -> Iterator[Definition]:
    module: ModuleType = importlib.import_module(module_name)
    public = module_name.removeprefix("_")
    for name, member in sorted(vars(module).items()):
        if name.startswith("_") or inspect.ismodule(member):
            continue
        yield from _described(f"{public}.{name}", member)
        if inspect.isclass(member):
            for attribute, method in sorted(vars(member).items()):
                if not attribute.startswith("_"):
                    yield from _described(f"{public}.{name}.{attribute}", method)


def _described(name: str, member: object) -> Iterator[Definition]:
    doc = inspect.getdoc(member) if callable(member) or inspect.isdatadescriptor(member) else None
    if doc:
        signature = getattr(member, "__text_signature__", None) or ""
        kind = "class" if inspect.isclass(member) else "function"
        title = f"{name}{signature}\n\n" if signature else ""
        yield Definition(name, kind, title + doc, "")
