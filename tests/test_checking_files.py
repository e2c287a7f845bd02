"""Files that must not be passed on, and tables that the rows do not give, are named."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from dmlkit.checking_files import check_files, check_tables
from dmlkit.results import read_row, read_scores

COMMITTED = Path(__file__).parents[1] / "results" / "mini" / "02_baseline_losses"


@pytest.fixture
def folder(tmp_path):
    """Return a copy of committed results on drawn birds, with pictures."""
    return shutil.copytree(COMMITTED, tmp_path / COMMITTED.name)


def tables_said(folder):
    paths = sorted((folder / "runs").glob("*.json"))
    rows = pd.DataFrame([read_row(path) for path in paths])
    by_class = {path.stem: read_scores(path.with_suffix(".npz")) for path in paths}
    rows = rows.sort_values(["method", "seed"], ignore_index=True)
    return list(check_tables(folder, rows, by_class))


def change(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_committed_files_pass_and_what_stays_local_is_not_looked_at(folder):
    for local in ("embeddings", "logs", "pictures", "stages", ".ipynb_checkpoints"):
        (folder / local).mkdir(exist_ok=True)
        (folder / local / "neighbours.jpg").write_bytes(b"")
    assert list(check_files(folder, "aviary")) == []
    assert tables_said(folder) == []


def test_photographs_are_found_in_figures_and_in_the_notebook(folder):
    (folder / "figures" / "test_classes.jpg").write_bytes(b"")
    said = "\n".join(check_files(folder, "cub200_2011"))
    for name in ("neighbours", "test_classes"):
        assert f"figures/{name}.jpg: cub200_2011 may not be passed on; delete" in said
    assert "chapter.ipynb: 2 pictures of data that may not be passed on" in said


def test_photographs_are_found_as_png_as_attachments_and_in_html(folder):
    notebook = json.loads((folder / "chapter.ipynb").read_text())
    notebook["cells"] = [
        {
            "cell_type": "code",
            "metadata": {"tags": ["pictures"]},
            "source": [],
            "outputs": [
                {"data": {"image/png": "AAAA"}},
                {"data": {"text/html": ["data:image/png"]}},
            ],
        },
        {"cell_type": "code", "metadata": {}, "outputs": [{"data": {"image/png": "AAAA"}}]},
        {"cell_type": "markdown", "metadata": {}, "attachments": {"a.png": {"image/png": "AAAA"}}},
    ]
    notebook["cells"][0]["outputs"][1]["data"]["text/html"] = "<img src='data:image/png;base64,A'>"
    (folder / "chapter.ipynb").write_text(json.dumps(notebook))
    said = [line for line in check_files(folder, "cars196") if "chapter.ipynb" in line]
    assert said == [
        "chapter.ipynb: 3 pictures of data that may not be passed on; run it by `dmlkit run`"
    ]


@pytest.mark.parametrize("path", ["/home/me/data/cub", "/mnt/d/x.pth", "C:\\data", "~/data"])
@pytest.mark.parametrize("where", ["row", "notebook", "table"])
def test_paths_of_a_machine_are_found(folder, path, where):
    if where == "row":
        file = next((folder / "parameters").glob("*.json"))
        file.write_text(json.dumps(json.loads(file.read_text()) | {"WEIGHTS": path}))
    elif where == "notebook":
        file = folder / "chapter.ipynb"
        notebook = json.loads(file.read_text())
        notebook["cells"][1]["source"] = ["STEPS = 1\n", f"DATA_DIR = '{path}'"]
        file.write_text(json.dumps(notebook))
    else:
        file = folder / "tables" / "main.md"
        file.write_text(file.read_text() + f"\nmade in {path}\n")
    (line,) = check_files(folder, "aviary")
    assert file.name in line and f"names {path[:2]}" in line


def test_a_file_that_no_chapter_writes_is_found(folder):
    (folder / "figures" / "photo.gif").write_bytes(b"")
    (folder / "notes.txt").write_text("")
    said = list(check_files(folder, "aviary"))
    assert [line.split(":")[0] for line in said] == ["figures/photo.gif", "notes.txt"]


def test_a_table_of_runs_that_lacks_a_column_is_named(folder):
    listed = pd.read_csv(folder / "runs.csv")
    listed.drop(columns="seconds").to_csv(folder / "runs.csv", index=False)
    assert any("runs.csv: not what runs/ holds" in line for line in tables_said(folder))


@pytest.mark.parametrize(
    ("file", "old", "new", "sentence"),
    [
        ("runs.csv", "contrastive,aviary", "contrastive,cub", "runs.csv: not what runs/ holds"),
        ("tables/main.csv", "39.2 [", "49.2 [", "tables/main.csv: not what the rows give"),
        ("tables/main.csv", "contrastive,", "my_loss,", "tables/main.csv: not what the rows give"),
        ("claims.csv", "\nB1a,", "\nB0,", "claims.csv: book/claims.csv has no B0"),
    ],
)
def test_a_table_that_was_changed_is_named(folder, file, old, new, sentence):
    change(folder / file, old, new)
    assert any(sentence in line for line in tables_said(folder))


def test_a_claim_that_the_rows_do_not_give_is_named(folder):
    claims = pd.read_csv(folder / "claims.csv")
    claims.loc[claims["claim"] == "B1a", "difference"] += 0.01
    claims.to_csv(folder / "claims.csv", index=False)
    (line,) = tables_said(folder)
    assert line.startswith("claims.csv: B1a is not what the rows give")


def test_a_row_that_no_table_uses_is_named(folder):
    listed = pd.read_csv(folder / "runs.csv")
    listed[listed["seed"] < 2].to_csv(folder / "runs.csv", index=False)
    assert any("not in runs.csv, nor 10 others" in line for line in tables_said(folder))


def test_missing_files_are_named(folder):
    (folder / "runs.csv").unlink()
    (folder / "chapter.ipynb").unlink()
    said = tables_said(folder)
    assert [line.split(":")[0] for line in said] == ["runs.csv", "chapter.ipynb"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b'a,"b\n', b"a,b\n1,2\n"])
@pytest.mark.parametrize("file", ["runs.csv", "claims.csv", "tables/main.csv"])
def test_a_table_that_is_none_is_named(folder, file, content):
    (folder / file).write_bytes(content)
    assert any(line.startswith(f"{file}: ") for line in tables_said(folder))


def test_a_text_that_is_none_and_a_notebook_that_is_none_are_named(folder):
    (folder / "tables" / "main.md").write_bytes(b"\xff\xfe")
    for content in ("[1]", '{"cells": 1}', '{"cells": [{"outputs": [2]}]}', "[" * 10**5):
        (folder / "chapter.ipynb").write_text(content)
        said = list(check_files(folder, "aviary"))
        assert len(said) == 2 and said[0].startswith("chapter.ipynb: ")
        assert said[1].startswith("tables/main.md: cannot be read")
