"""CONTRIBUTING.md, applied to a copy of the project as it is written."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE))
BLOCK = re.compile(
    r"(?P<before>.*?)^```(?P<kind>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
FINGERPRINTS = (
    "import json; from dmlkit.chapters import chapter_names, has_runs; "
    "from dmlkit.fingerprint import code_fingerprint; "
    "print(json.dumps({c: code_fingerprint(c) for c in chapter_names() if has_runs(c)}))"
)


@pytest.fixture
def copy(tmp_path):
    """Return a copy of the project, without results."""
    for name in ("dmlkit", "tests", "book"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__py*", ".*"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run(command, folder):
    """Run a command of the text in ``folder``, on the package there, and return what it printed."""
    words = shlex.split(command)
    words = {
        "dmlkit": [sys.executable, "-m", "dmlkit.cli"],
        "python": [sys.executable],
    }[words[0]] + words[1:]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    finished = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    said = finished.stdout + finished.stderr
    assert finished.returncode == 0, f"{command}\n{said}"
    return said


def fingerprints(folder):
    return json.loads(run(f'python -c "{FINGERPRINTS}"', folder))


@pytest.fixture(scope="module")
def before():
    """Return the fingerprint of every chapter that trains, as it is."""
    return fingerprints(ROOT)


def follow(section, folder):
    """Apply the blocks of a section, in order; return what its commands printed, by command."""
    path, said = None, {}
    for match in BLOCK.finditer(SECTIONS[section]):
        if named := re.findall(r"\bIn `([^`]+)`", match["before"]):
            path = folder / named[-1]
        code = match["code"]
        if match["kind"] == "console":
            said |= {command: run(command, folder) for command in code.splitlines()}
        elif match["kind"] == "diff":
            lines = code.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if line[0] in " -")
            after = "".join(line[1:] for line in lines if line[0] in " +")
            text = path.read_text()
            assert text.count(before) == 1, f"{path.name} does not hold once:\n{before}"
            path.write_text(text.replace(before, after))
        elif match["kind"] == "csv":
            path.write_text(path.read_text() + code)
        else:
            assert match["kind"] == "python" and named and not path.exists(), path
            path.write_text(code)
    return said


def changed(before, folder):
    """Return the chapters whose rows have become stale."""
    after = fingerprints(folder)
    return {chapter for chapter in before if after[chapter] != before[chapter]}


def lint(folder, *files):
    ruff = ["check", "format --check"]
    return [run(f"python -m ruff {how} {' '.join(files)}", folder) for how in ruff]


@pytest.mark.slow
def test_a_loss(copy, before):
    said = follow("Add a loss", copy)
    tests = next(text for command, text in said.items() if "pytest" in command)
    assert int(re.search(r"(\d+) passed", tests)[1]) > 20  # those of every loss too
    table = (copy / "results/local/smoke/02_baseline_losses/tables/main.md").read_text()
    assert "| sup_con |" in table and "| contrastive |" in table
    assert changed(before, copy) == {"02_baseline_losses"}
    lint(copy, "dmlkit/losses", "tests/losses/test_sup_con.py", "book/02_baseline_losses.py")


def test_a_trunk(copy, before):
    said = follow("Add a trunk", copy)
    tests, shape = said.values()
    assert "1 passed" in tests
    assert "torch.Size([2, 1280])" in shape
    assert changed(before, copy) == before.keys()
    lint(copy, "dmlkit/models/trunks.py")


@pytest.mark.slow
def test_a_data_set(copy, before):
    *_, tests, _, data = follow("Add a data set", copy).values()
    assert int(re.search(r"(\d+) passed", tests)[1]) > 5  # those of every tree too
    assert "stanford_dogs: Stanford Dogs" in data and "as generated" in data
    assert changed(before, copy) == set()
    lint(copy, "dmlkit/datasets/readers", "tests/official_trees.py")


@pytest.mark.slow
def test_a_paper(copy, before):
    said = follow("Add a paper", copy)
    folder = copy / "results/local/smoke/08_my_paper"
    assert "| norm_softmax |" in (folder / "tables" / "main.md").read_text()
    assert "X1,My paper" in (folder / "claims.csv").read_text()
    assert "4 rows of 1 chapter, 0 problems" in list(said.values())[-1]
    assert changed(before, copy) == set()
    lint(copy, "book/08_my_paper.py")


def test_how_many_replicates():
    (block,) = BLOCK.finditer(SECTIONS["How many replicates do I need?"])
    finished = subprocess.run(
        [sys.executable, "-c", block["code"]], cwd=ROOT, capture_output=True, text=True
    )
    assert re.match(r"difference .*; 5 replicates can show 0\.\d{3}\n", finished.stdout), finished


def test_every_command_and_file_that_the_text_names_exists():
    from dmlkit.chapters import chapter_names, profile_names

    for chapter, profile in re.findall(r"dmlkit run (\S+) --profile (\w+)", TEXT):
        assert chapter in chapter_names() or chapter == "08_my_paper"
        assert profile in profile_names()
    new = {"sup_con", "stanford_dogs", "my_paper"}
    for name in re.findall(r"`((?:dmlkit|tests|book)/[\w/.]+\.\w+)`", TEXT):
        assert (ROOT / name).exists() or any(word in name for word in new), name
