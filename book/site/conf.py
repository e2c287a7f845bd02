"""Settings of Sphinx for `dmlkit site`, which copies this folder and adds the computed pages."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import dmlkit

project = "Deep metric learning, reproduced"
author = "The Deep metric learning, reproduced authors"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # after sphinx.ext.mathjax: it puts MathJax itself into the site
    "sphinxcontrib.bibtex",
]
nb_execution_mode = "off"  # the pages show what was run
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "alpha"
bibtex_reference_style = "author_year"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
python_maximum_signature_line_length = 88

html_theme = "sphinx_book_theme"
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the search field of the left column is enough
    "show_toc_level": 2,
    "toc_title": "On this page",
    "use_download_button": True,
}
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["files"]  # the figures of the results page
html_show_copyright = False
html_show_sphinx = False


def write_modules(app):
    """Write a page per module of dmlkit; that of a package lists what is in it."""
    folder = Path(app.srcdir) / "api"
    folder.mkdir()
    names = ["dmlkit", *(found.name for found in pkgutil.walk_packages(dmlkit.__path__, "dmlkit."))]
    for name in names:
        lines = [name, "=" * len(name), "", f".. automodule:: {name}", "   :members:", ""]
        inside = {part: part.split(".")[-1] for part in names if part.rpartition(".")[0] == name}
        for part, short in inside.items():
            said = inspect.getdoc(importlib.import_module(part)) or ""
            lines.append(f"* :doc:`{short} <{part}>`: " + said.partition("\n")[0])
        lines += ["", ".. toctree::", "   :hidden:", ""] if inside else []
        lines += [f"   {short} <{part}>" for part, short in inside.items()]
        (folder / f"{name}.rst").write_text("\n".join(lines) + "\n")


def read_docstring(app, what, name, obj, options, lines):
    """Make of the plain text of a docstring what Sphinx reads as such.

    Indented blocks are formulas, which would else become one line; tables are those of Markdown;
    and a bar, or what follows upon ``code`` without a space, is no markup.
    """
    made, last, in_formula = [], "", False
    for at, line in enumerate(lines):
        if in_formula and line and not line.startswith("    "):
            in_formula = False
        is_prose = last and not last.startswith((" ", "- ", "|")) and not last.endswith("::")
        if line.startswith("    ") and is_prose and not lines[at - 1] and not in_formula:
            made += ["::", ""]
            in_formula = True
        if line.startswith("|"):
            if not last.startswith("|"):
                made += [".. list-table::", "   :header-rows: 1", ""]
            cells = [] if set(line) <= set("|-: ") else line.strip("|").split("|")
            made += [f"   {'-' if i else '* -':>3} {c.strip()}" for i, c in enumerate(cells)]
        elif in_formula:
            made.append(line)
        else:
            parts = re.split("(``.+?``)", line)
            parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
            parts[2::2] = [
                rf"\ {part}" if re.match(r"[\w^(]", part) else part for part in parts[2::2]
            ]
            made.append("".join(parts))
        last = line or last
    lines[:] = made


def leave_out_fields(app, what, name, obj, skip, options):
    """Leave out the fields of named tuples, of which Python itself says only their number."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field") else None


def setup(app):
    app.connect("builder-inited", write_modules)
    app.connect("autodoc-process-docstring", read_docstring, priority=100)
    app.connect("autodoc-skip-member", leave_out_fields)
