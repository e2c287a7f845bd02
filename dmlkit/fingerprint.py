"""A digest of all code that can change the numbers of a chapter's runs.

That is the chapter's code cells up to the one tagged ``runs``, the parameters aside, whose values
stand in the row; and those modules of dmlkit that these cells import, directly or through others,
with the packages they are in. Modules that store, read or show rows do not count, nor do the lines
that import from them; nor do docstrings. So a new figure, a corrected sentence, or a loss that the
chapter does not use makes no result stale.
"""

import ast
import hashlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import nbformat

from dmlkit.chapters import chapter_source, parameter_defaults, read_notebook, up_to_runs
from dmlkit.paths import PROJECT_ROOT

OF_ROWS = {
    *("dmlkit.chapters", "dmlkit.fingerprint", "dmlkit.results", "dmlkit.tables", "dmlkit.claims"),
    *("dmlkit.published", "dmlkit.intervals", "dmlkit.simulation", "dmlkit.plots", "dmlkit.cli"),
    *("dmlkit.running", "dmlkit.index", "dmlkit.readme", "dmlkit.provenance"),
}
# What readers list and what is drawn stands in the data fingerprint of a row.
OF_DATA = ("dmlkit.datasets.readers", "dmlkit.datasets.drawings", "dmlkit.datasets.checking")

# What only looks: a cell that calls nothing else may be executed between those of a chapter.
LOOKING = {
    *("print", "display", "len", "type", "help", "vars", "head", "tail", "describe", "info"),
    *("keys", "values", "items", "unique", "nunique", "value_counts", "sort_values", "groupby"),
    *("mean", "sum", "min", "max", "round", "sorted", "list", "set", "sample", "reset_index"),
}

Import = tuple[str, str | None]  # a module, and the name taken from it, if one is


class Module(NamedTuple):
    """Digest of a module's code, what that imports, and the names that it only passes on.

    These are imported as ``from module import name as name``; their lines are not in the digest,
    and their modules count only for who asks for these names, unless the module uses them itself.
    """

    digest: str
    imports: list[Import]
    passed_on: dict[str, str]


def _read_module(path: Path) -> Module:
    """Return what the fingerprint needs to know of the module at ``path``."""
    text = path.read_text()
    tree = ast.parse(text)
    passing = [
        node
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and all(a.name == a.asname for a in node.names)
    ]
    passed_on = {alias.name: node.module for node in passing for alias in node.names}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    imports = [found for found in _imports(tree) if found[1] not in passed_on.keys() - used]
    kept = _without(text, passing + _docstrings(tree))
    return Module(hashlib.sha256(kept.encode()).hexdigest(), imports, passed_on)


def _docstrings(tree: ast.Module) -> list[ast.stmt]:
    """Return the docstrings of a module, its classes and its functions."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    owners = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return [node.body[0] for node in owners if ast.get_docstring(node, clean=False) is not None]


def _without(text: str, nodes: list[ast.stmt]) -> str:
    """Return source text without the lines of some statements, and without empty ones."""
    lines = text.splitlines()
    for node in nodes:
        lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "\n".join(line for line in lines if line)


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
    """Return the modules of dmlkit that can change numbers, by dotted name."""
    found = {}
    for path in (PROJECT_ROOT / "dmlkit").rglob("*.py"):
        parts = path.relative_to(PROJECT_ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if not _is_outside(name):
            found[name] = _read_module(path)
    return found


def _is_outside(module: str) -> bool:
    """Whether a module cannot change the numbers of a run."""
    return module in OF_ROWS or module.startswith(OF_DATA)


# Taken when this module is imported: one that is edited later is not the one that runs.
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
        if module not in MODULES:
            continue
        passed_on = MODULES[module].passed_on
        if name in passed_on:
            pending.append((passed_on[name], name))
        elif name in (None, "*"):  # the module itself, from which any name may be taken
            pending += [(home, passed) for passed, home in passed_on.items()]
        for part in _with_packages(module) - found:
            found.add(part)
            pending += MODULES[part].imports
    return found


def _with_packages(module: str) -> set[str]:
    """Return a module and the packages around it, which are executed before it."""
    parts = module.split(".")
    return {".".join(parts[:length]) for length in range(1, len(parts) + 1)}


def code_fingerprint(chapter: str, executed: Sequence[str] | None = None) -> str:
    """Return the digest for ``chapter``.

    Args:
        chapter: name of the chapter.
        executed: what the kernel has executed so far, where there is one. If that is not the
            chapter as it stands on disk, the fingerprint begins with ``edited`` and matches none
            made before. Cells that only look at something do not count.

    Raises:
        ValueError: parameters were set after cells that had used their earlier values, and these
            were not executed again.
    """
    notebook = read_notebook(chapter_source(chapter))
    wanted = _code(up_to_runs(notebook))
    if executed is not None:
        cells = [cell.strip() for cell in executed if cell.strip()]
        others = [cell for cell in cells if not _assigns_parameters(cell)]
        foreign = {cell for cell in set(others) - set(_code(notebook)) if not _only_looks(cell)}
        if foreign or not set(wanted) <= set(others):
            return f"edited-{_digest(others)}"
        set_last = _parameters_changed_at(cells, parameter_defaults(chapter))
        above = wanted[: wanted.index(cells[-1])] if cells[-1] in wanted else wanted
        if set(above) & set(cells[:set_last]) - set(cells[set_last:]):
            raise ValueError(
                "parameters were set again after other cells had used them, so results would not "
                "be what their rows say; run all cells from the first one (Run > Run All Cells)"
            )
    return _digest(wanted)


def _digest(cells: list[str]) -> str:
    """Return twelve digits that change with the cells and the modules behind them."""
    modules = [f"{name} {MODULES[name].digest}" for name in sorted(modules_behind(cells))]
    texts = modules + [_without_showing(cell) for cell in cells]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def _without_showing(cell: str) -> str:
    """Return a cell without the lines that import what only stores, reads or shows rows."""
    try:
        statements = ast.parse(cell).body
    except SyntaxError:  # a magic
        return cell
    imports = [node for node in statements if isinstance(node, ast.ImportFrom)]
    return _without(cell, [node for node in imports if _is_outside(node.module or "")])


def _code(notebook: nbformat.NotebookNode) -> list[str]:
    """Return the sources of the code cells, the parameters aside."""
    return [
        cell.source.strip()
        for cell in notebook.cells
        if cell.cell_type == "code" and not _assigns_parameters(cell.source)
    ]


def _parameters_changed_at(cells: Sequence[str], names: Collection[str]) -> int:
    """Return which of the cells executed is the last that gave a parameter another value."""
    values, place = {}, 0
    for number, cell in enumerate(cells):
        if _assigns_parameters(cell):
            given = {n: v for n, v in _assigned(ast.parse(cell).body) if n in names}
            if given != {name: values.get(name) for name in given}:
                place = number
            values |= given
    return place


def _only_looks(source: str) -> bool:
    """Whether a cell is expressions that call at most what is in ``LOOKING``, or did nothing."""
    if source.startswith("get_ipython().run_line_magic('pinfo") and "\n" not in source:
        return True  # name?
    try:
        statements = ast.parse(source).body
    except SyntaxError:  # magics are Python by the time they are executed
        return True
    nodes = [node for statement in statements for node in ast.walk(statement)]
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    names = {getattr(f, "attr", getattr(f, "id", "")) for f in called}
    return (
        all(isinstance(statement, ast.Expr) for statement in statements)
        and not any(isinstance(node, ast.NamedExpr | ast.Await) for node in nodes)
        and names <= LOOKING
    )


def _assigned(statements: list[ast.stmt]) -> list[tuple[str, str]]:
    """Return names and values, as text, of assignments."""
    return [
        (getattr(target, "id", ""), ast.dump(statement.value) if statement.value else "")
        for statement in statements
        for target in getattr(statement, "targets", [getattr(statement, "target", None)])
    ]


def _assigns_parameters(source: str) -> bool:
    """Whether a cell only gives values to UPPER_CASE names, as that of the parameters does."""
    try:
        statements = ast.parse(source).body
    except SyntaxError:  # a cell that failed
        return False
    if not statements or not all(isinstance(s, ast.Assign | ast.AnnAssign) for s in statements):
        return False
    calls = any(isinstance(node, ast.Call) for s in statements for node in ast.walk(s))
    return not calls and all(name.isupper() for name, _ in _assigned(statements))
