"""A digest of all code that can change the numbers of a chapter's runs.

That is the chapter's code cells up to the one tagged ``runs``, the parameters aside, whose values
stand in the row; and those modules of dmlkit that these cells import, directly or through others,
but for modules that only read rows. So a new figure, a corrected sentence, or a loss that the
chapter does not use makes no result stale.
"""

import ast
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import nbformat

from dmlkit.chapters import chapter_source, read_notebook, up_to_runs
from dmlkit.paths import PROJECT_ROOT

READING_ROWS = {
    *("checking", "chapters", "fingerprint", "results", "tables", "published", "intervals"),
    *("simulation", "claims", "plots", "running", "index", "readme", "cli", "provenance"),
}
# What readers list and what is drawn stands in the data fingerprint of a row.
OF_DATA = {"readers", "drawings"}

Import = tuple[str, str | None]  # a module, and the name taken from it, if one is


class Module(NamedTuple):
    """Digest of a module's text, what that imports, and the names that it only passes on.

    These are imported as ``from module import name as name``; their lines are not in the digest,
    and their modules count only for who asks for these names.
    """

    digest: str
    imports: list[Import]
    passed_on: dict[str, str]


def _read_module(path: Path) -> Module:
    """Return what the fingerprint needs to know of the module at ``path``."""
    text = path.read_text()
    lines, tree = text.splitlines(), ast.parse(text)
    passed_on = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and all(a.name == a.asname for a in node.names):
            passed_on |= {alias.name: node.module for alias in node.names}
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    kept = "\n".join(line for line in lines if line)
    imports = [found for found in _imports(tree) if found[1] not in passed_on]
    return Module(hashlib.sha256(kept.encode()).hexdigest(), imports, passed_on)


def _imports(tree: ast.AST) -> list[Import]:
    """Return what a syntax tree imports from dmlkit."""
    found: list[Import] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found += [(node.module or "", alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
    return [(module, name) for module, name in found if module.split(".")[0] == "dmlkit"]


def _read_package() -> dict[str, Module]:
    """Return the modules of dmlkit by dotted name."""
    found = {}
    for path in (PROJECT_ROOT / "dmlkit").rglob("*.py"):
        parts = path.relative_to(PROJECT_ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = _read_module(path)
    return found


# Taken when dmlkit is imported: a module edited later is not the one that runs.
MODULES = _read_package()


def modules_behind(cells: Iterable[str]) -> set[str]:
    """Return the names of the modules of dmlkit that can change what code cells compute.

    Args:
        cells: sources; where one is not Python, for a magic of Jupyter's, all modules count.
    """
    found, pending = set(), []
    for cell in cells:
        try:
            pending += _imports(ast.parse(cell))
        except SyntaxError:
            pending += [(module, None) for module in MODULES]
    while pending:
        module, name = pending.pop()
        if f"{module}.{name}" in MODULES:  # a module taken from its package
            module, name = f"{module}.{name}", None
        if module not in MODULES or _is_outside(module):
            continue
        if name in MODULES[module].passed_on:
            pending.append((MODULES[module].passed_on[name], name))
        elif module not in found:
            found.add(module)
            pending += MODULES[module].imports
    return found


def _is_outside(module: str) -> bool:
    """Whether a module cannot change the numbers of a run."""
    parts = module.split(".")
    return parts[-1] in READING_ROWS or bool(OF_DATA & set(parts))


def code_fingerprint(chapter: str, executed: Sequence[str] | None = None) -> str:
    """Return the digest for ``chapter``.

    Args:
        chapter: name of the chapter.
        executed: what the kernel has executed so far, where there is one. If that is not the
            chapter as it stands on disk, the fingerprint begins with ``edited`` and matches none
            made before.
    """
    notebook = read_notebook(chapter_source(chapter))
    wanted = _code(up_to_runs(notebook))
    if executed is not None:
        cells = [cell.strip() for cell in executed if cell.strip()]
        cells = [cell for cell in cells if not _assigns_parameters(cell)]
        if not set(wanted) <= set(cells) <= set(_code(notebook)):
            return f"edited-{_digest(cells)}"
    return _digest(wanted)


def _digest(cells: list[str]) -> str:
    """Return twelve digits that change with the cells and the modules behind them."""
    modules = [f"{name} {MODULES[name].digest}" for name in sorted(modules_behind(cells))]
    return hashlib.sha256("\n".join(modules + cells).encode()).hexdigest()[:12]


def _code(notebook: nbformat.NotebookNode) -> list[str]:
    """Return the sources of the code cells, the parameters aside."""
    return [
        cell.source.strip()
        for cell in notebook.cells
        if cell.cell_type == "code" and not _assigns_parameters(cell.source)
    ]


def _assigns_parameters(source: str) -> bool:
    """Whether a cell only assigns UPPER_CASE names, as the parameters and injected cells do."""
    try:
        statements = ast.parse(source).body
    except SyntaxError:  # a magic, or a cell that failed
        return False
    names = [
        getattr(target, "id", "")
        for statement in statements
        for target in getattr(statement, "targets", [getattr(statement, "target", None)])
    ]
    return all(isinstance(s, ast.Assign | ast.AnnAssign) for s in statements) and all(
        name.isupper() for name in names
    )
