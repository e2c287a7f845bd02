"""The executed chapters of a profile as web pages: what was run, with nothing run again.

``book/site`` holds the pages that are written by hand, the references and the settings of Sphinx.
Here they are joined, in a temporary folder, with the executed notebooks, whose links then lead to
other pages; with what :mod:`dmlkit.index` shows of the results; with the claims and the verdicts of
all profiles; and with a page for each module of dmlkit.
"""

import html
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pandas as pd

from dmlkit.chapters import (
    BOOK,
    chapter_names,
    chapter_source,
    chapters_read,
    has_runs,
    parameter_defaults,
    profile_files,
    read_notebook,
)
from dmlkit.fingerprint import code_fingerprint
from dmlkit.index import LEGEND, ledger, overview, sections
from dmlkit.paths import PROJECT_ROOT, check_writable, resolve
from dmlkit.running import LOCAL_RESULTS

TOOLS = ("sphinx", "myst_nb", "sphinx_book_theme", "sphinxcontrib", "sphinx-mathjax-offline")
BENCHMARKS = PROJECT_ROOT / "results" / "benchmarks"
MARK = ".dmlkit-site"  # a folder with such a file is a site made before
LINK = re.compile(r"(?<!!)\[([^][]*)\]\(([^()\s#]+)(?:#[^()\s]*)?\)")
INTERVAL, UNBROKEN = re.compile(r"\[(\S+), (\S+)\]"), r"[\1,&nbsp;\2]"


def build_site(
    profile: str, results_dir: str | None = None, output: Path | None = None
) -> tuple[Path, Path]:
    """Render the executed chapters of a profile, and return the front page and the folder shown.

    Args:
        profile: name of a file in ``book/profiles``.
        results_dir: folder with the executed chapters; by default ``results/local/<profile>`` if
            a chapter was executed there, else the committed ``results/<profile>``.
        output: folder of the site, replaced as a whole; ``site/<profile>`` by default.

    Raises:
        ValueError: an unknown profile, or an output folder that holds something else.
        FileNotFoundError: no chapter was executed, or Sphinx is not installed.
        OSError: Sphinx failed, or the output folder cannot be written to.
    """
    profile_files(profile, "")  # raises if there is no such profile
    folder = _results(profile, results_dir)
    output = output or PROJECT_ROOT / "site" / profile
    if output.exists() and not (output / MARK).exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not a site made before; choose an empty folder for --output")
    if missing := [tool for tool in TOOLS if importlib.util.find_spec(tool) is None]:
        raise FileNotFoundError(
            f"the site needs {missing[0]}; `make site` installs it, and so does "
            "`pip install -c constraints.txt -e '.[site]'`"
        )
    check_writable(output.parent)
    with tempfile.TemporaryDirectory(prefix="dmlkit-site-") as temporary:
        source, pages = Path(temporary) / "source", Path(temporary) / "pages"
        shutil.copytree(BOOK / "site", source)
        _write_sources(source, folder, profile)
        title = f"-Dhtml_title=Deep metric learning, reproduced: {profile}"
        sphinx = [sys.executable, "-m", "sphinx", "-q", "-b", "html", title, source, pages]
        if subprocess.run(sphinx, cwd=PROJECT_ROOT).returncode:
            raise OSError("Sphinx could not build the site; its message is above")
        shutil.rmtree(pages / ".doctrees")
        (pages / MARK).write_text("This folder is replaced as a whole by dmlkit site.\n")
        if output.exists():
            shutil.rmtree(output)
        shutil.move(pages, output)
    return output / "index.html", folder


def _results(profile: str, results_dir: str | None) -> Path:
    """Return the folder to show: the one asked for, the reader's own, or the committed one."""
    folders = [LOCAL_RESULTS / profile, PROJECT_ROOT / "results" / profile]
    folders = [resolve(results_dir)] if results_dir else folders
    for folder in folders:
        if any((folder / name / "chapter.ipynb").exists() for name in chapter_names()):
            return folder
    raise FileNotFoundError(
        f"there is no executed chapter in {' or '.join(map(str, folders))}; "
        f"run `dmlkit run --profile {profile}` first, or name another folder with --results-dir"
    )


def _write_sources(source: Path, folder: Path, profile: str) -> None:
    """Add to the copied ``book/site`` all pages that are computed."""
    names = [name for name in chapter_names() if (folder / name / "chapter.ipynb").exists()]
    papers = cited_as(source / "references.bib")
    lines, parts = [], []
    for name in names:
        notebook = nbformat.read(folder / name / "chapter.ipynb", as_version=4)
        state, *mark = _state(name, folder / name, notebook, profile)
        for cell in (cell for cell in notebook.cells if cell.cell_type == "markdown"):
            text = _with_links_to_pages(cell.source, folder / name, names)
            cell.source = with_citations(text, papers)
        heading, _, rest = notebook.cells[0].source.partition("\n")
        notebook.cells[0].source = "\n".join([heading, *mark, rest])
        title = heading.removeprefix("# ")
        _dress_outputs(notebook)
        nbformat.write(notebook, source / f"{name}.ipynb")
        line = {"chapter": f"<a href='{name}.html'>{html.escape(title)}</a>"}
        line |= overview(folder / name)
        lines.append(line | {"made by": state})
        parts.append(f"## [{title}]({name}.ipynb)\n")
        for what, shown in sections(folder / name):
            parts += [f"### {what}\n", _raw(shown)] if what else [_raw(shown)]
        if (folder / name / "figures").exists():
            shutil.copytree(folder / name / "figures", source / "files" / name / "figures")

    absent = [_title(name) for name in chapter_names() if name not in names]
    table = pd.DataFrame(lines).rename(columns={"last execution, s": "execution, s"})
    values = {
        "profile": profile,
        "chapters": _raw(table.to_html(index=False, escape=False, border=0)),
        "absent": f"Not run in this profile: {'; '.join(absent)}." if absent else "",
        "legend": LEGEND,
        "pages": "\n".join(names),
        "results": "\n".join(parts),
        "claims": "\n".join(f"## {_title(c)}\n\n{_raw(t)}" for c, t in ledger(folder, profile)),
        "benchmarks": "\n".join(_copy_benchmarks(source, names)),
    }
    for page in source.glob("*.md"):
        text = _with_links_to_pages(page.read_text(), BOOK, names)
        for name, value in values.items():
            text = text.replace(f"<!-- {name} -->", value)
        page.write_text(text)


def _title(name: str) -> str:
    """Return the title of a chapter as it stands in the book."""
    return read_notebook(chapter_source(name)).cells[0].source.partition("\n")[0].removeprefix("# ")


def _raw(shown: str) -> str:
    """Return HTML as a block of Markdown, which scrolls if it is wider than the page."""
    whole = INTERVAL.sub(UNBROKEN, shown)
    return f"````{{raw}} html\n<div class='wide'>\n{whole}\n</div>\n````\n"


def _state(name: str, chapter: Path, notebook: nbformat.NotebookNode, profile: str) -> list[str]:
    """Return by what a chapter was made and, unless that is what stands here, a mark that says so.

    Its rows may be of other code; or its text, tables and figures of an earlier version.
    """
    again = f"`dmlkit run {name} --profile {profile}` makes"
    read = [name] if has_runs(name) else chapters_read(parameter_defaults(name))
    found = [(one, chapter.parent / one / "runs.csv") for one in read]
    rows_of = {one: pd.read_csv(path, dtype=str) for one, path in found if path.exists()}
    if rows_of:
        rows = pd.concat(rows_of.values())
        old_of = {one: r[r["code"] != code_fingerprint(one)] for one, r in rows_of.items()}
        old = pd.concat(old_of.values())
        if len(old):
            anew = dict.fromkeys([*(one for one, r in old_of.items() if len(r)), name])
            part = "Made" if len(old) == len(rows) else f"{len(old)} of {len(rows)} rows were made"
            commits = ", ".join(sorted(old["commit"].unique()))
            said = (
                f"{part} by an earlier version of the code: commit {commits}. What makes the "
                "numbers of this chapter has changed since, so they may come out otherwise; "
                f"`dmlkit run {' '.join(anew)} --profile {profile}` makes them anew."
            )
            return ["earlier code", f"\n```{{warning}}\n{said}\n```\n"]
    if _text(notebook) != _text(read_notebook(chapter_source(name))):
        said = (
            "Executed before the chapter was last edited: its text, and what draws its tables and "
            f"figures, are shown as they were. The rows are up to date; {again} the rest anew."
        )
        return ["earlier text", f"\n```{{note}}\n{said}\n```\n"]
    return ["present code" if rows_of else "present text"]  # what trains nothing has no digest


def _text(notebook: nbformat.NotebookNode) -> list[str]:
    """Return the cells of a chapter, without the targets of links and without set parameters."""
    return [
        re.sub(r"\]\([^)\s]+\)", "]", cell.source)
        for cell in notebook.cells
        if "injected-parameters" not in cell.metadata.get("tags", [])
    ]


def _with_links_to_pages(text: str, folder: Path, names: list[str], up: str = "") -> str:
    """Return Markdown with its links to files of the project leading to pages of the site.

    Args:
        text: Markdown.
        folder: where its links start; older notebooks have them from ``book/``.
        names: chapters of the site.
        up: the way from the page to the front page, such as ``../``.
    """

    def moved(link: re.Match[str]) -> str:
        label, target = link.groups()
        for start in (folder, BOOK):
            page = _page(Path(os.path.normpath(start / target)), names)
            if page is not None:
                return f"[{label}]({up}{page})" if page else label
        return link[0]  # an address, or brackets of a formula

    return LINK.sub(moved, text)


def cited_as(references: Path) -> dict[str, str]:
    """Return the key of each paper by how the text names it.

    That is ``Zhai and Wu, 2019`` or ``Yi et al., 2014``; three authors may all be named. Papers
    that would be named alike are left out.
    """
    # It comes with the tools of the site.
    from pybtex.database import parse_file

    found: dict[str, list[str]] = {}
    for key, entry in parse_file(references).entries.items():
        names = [str(person.rich_last_names[-1]) for person in entry.persons["author"]]
        forms = {" and ".join(names)} if len(names) < 3 else {f"{names[0]} et al."}
        if len(names) == 3:
            forms.add(f"{names[0]}, {names[1]} and {names[2]}")
        for form in forms:
            found.setdefault(f"{form}, {entry.fields['year']}", []).append(key)
    return {form: keys[0] for form, keys in found.items() if len(keys) == 1}


def with_citations(text: str, papers: dict[str, str]) -> str:
    """Return Markdown in which papers, named as ``cited_as`` says, are citations of them."""
    if not papers:
        return text
    longest_first = sorted(papers, key=len, reverse=True)  # B and C, 2000 ends A, B and C, 2000
    named = "|".join(map(re.escape, longest_first)).replace(r"\ ", r"\s+")
    return re.sub(
        rf"(?<!\w)(?:{named})(?!\d)",
        lambda match: f"{{cite:alp}}`{papers[' '.join(match[0].split())]}`",
        text,
    )


def _page(path: Path, names: list[str]) -> str | None:
    """Return the page that shows a file of the project: empty if none does, None without a file."""
    name = path.parent.name if path.name == "chapter.ipynb" else path.stem
    if path.suffix == ".ipynb" and name in chapter_names():
        return f"{name}.ipynb" if name in names else ""
    if not path.exists():
        return None
    if path == BOOK / "claims.csv":
        return "claims.md"
    if path.parent == BENCHMARKS:
        return f"benchmarks/{path.name}"
    return f"api/{_module(path)}.rst" if path.is_relative_to(PROJECT_ROOT / "dmlkit") else ""


def _dress_outputs(notebook: nbformat.NotebookNode) -> None:
    """Describe figures by the heading above where nothing else does; keep intervals in one line."""
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE) or [heading])[-1]
            continue
        # Of chapters that were executed before their figures had a description.
        cell.metadata.setdefault("mystnb", {"image": {"alt": f"Figure: {heading}"}})
        for data in (output.data for output in cell.outputs if "data" in output):
            if "text/html" in data:
                data["text/html"] = INTERVAL.sub(UNBROKEN, "".join(data["text/html"]))


def _copy_benchmarks(source: Path, names: list[str]) -> list[str]:
    """Copy the pages of measured times, which have no titles, and return their names."""
    pages = sorted(BENCHMARKS.glob("*.md"))
    (source / "benchmarks").mkdir()
    for picture in BENCHMARKS.glob("*.png"):
        shutil.copy(picture, source / "benchmarks")
    for page in pages:
        text = _with_links_to_pages(page.read_text(), page.parent, names, up="../")
        title = page.stem.replace("_", " ").capitalize()
        (source / "benchmarks" / page.name).write_text(f"# {title}\n\n{text}")
    return [f"benchmarks/{page.stem}" for page in pages]


def _module(path: Path) -> str:
    """Return the dotted name of a module, or of the package that a folder is."""
    parts = path.relative_to(PROJECT_ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
