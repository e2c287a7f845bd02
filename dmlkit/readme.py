"""Keep the results tables of README.md equal to the committed results."""

import re

from dmlkit.paths import PROJECT_ROOT, write_atomically

BLOCK = re.compile(r"(<!-- (results/\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def readme_text() -> str:
    """Return README.md with each ``<!-- results/... -->`` block filled from the file it names.

    Raises:
        FileNotFoundError: a named results file is missing.
    """
    text = (PROJECT_ROOT / "README.md").read_text()
    return BLOCK.sub(
        lambda match: match[1] + (PROJECT_ROOT / match[2]).read_text() + match[3], text
    )


def update_readme() -> None:
    """Rewrite README.md with the committed results."""
    text = readme_text()
    with write_atomically(PROJECT_ROOT / "README.md") as path:
        path.write_text(text)
