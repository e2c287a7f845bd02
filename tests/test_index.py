"""The index page over whatever chapters have results."""

import json
import re
import subprocess
import sys

import pandas as pd

from dmlkit.claims import JUDGED
from dmlkit.index import write_index


def test_the_runner_which_writes_it_spares_every_worker_the_import_of_torch():
    code = "import sys, dmlkit.running; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_folder_without_results_says_so(tmp_path):
    assert "No results" in write_index(tmp_path, "mini", {}).read_text()


def test_each_chapter_has_its_line_tables_and_figures(tmp_path):
    chapter = tmp_path / "02_x"
    (chapter / "tables").mkdir(parents=True)
    (chapter / "figures").mkdir()
    pd.DataFrame(
        {"dataset": ["aviary"], "method": ["a"], "seed": [0], "seconds": [3.4], "commit": ["1e5"]}
    ).to_csv(chapter / "runs.csv")
    pd.DataFrame({"method": ["a<b"], "MAP@R": ["1.0"]}).to_csv(chapter / "tables" / "main.csv")
    for name in ("umap.png", "neighbours.jpg", "Thumbs.db"):
        (chapter / "figures" / name).write_bytes(b"")
    (chapter / "chapter.ipynb").write_text(json.dumps({"metadata": {"dmlkit": {"seconds": 12.5}}}))

    page = write_index(tmp_path, "mini", {}).read_text()

    assert re.findall("img src='(.*?)'", page) == [
        "02_x/figures/neighbours.jpg",
        "02_x/figures/umap.png",
    ]
    assert "12.5" in page
    assert "a&lt;b" in page  # names are text, not markup


def test_what_a_kill_left_half_written_is_neither_read_nor_shown(tmp_path):
    (tmp_path / "02_x" / "tables").mkdir(parents=True)
    (tmp_path / "02_x" / "figures").mkdir()
    (tmp_path / "02_x" / "chapter.ipynb").write_text(json.dumps({"metadata": {}}))
    (tmp_path / "02_x" / "tables" / ".main-x1y2.csv").write_text("")
    (tmp_path / "02_x" / "figures" / ".umap-x1y2.png").write_bytes(b"half")
    page = write_index(tmp_path, "mini", {}).read_text()
    assert "x1y2" not in page and "<img" not in page


def test_changed_parameters_stand_in_the_title(tmp_path):
    page = write_index(tmp_path, "mini", {"STEPS": 200}).read_text()
    assert "profile, STEPS = 200</h1>" in page


def test_a_chapter_without_claims_says_so(tmp_path):
    (tmp_path / "02_x").mkdir()
    columns = ["dataset", "method", "seed", "seconds", "commit"]
    pd.DataFrame([["own", "a", 0, 1.0, "x"]], columns=columns).to_csv(tmp_path / "02_x/runs.csv")
    pd.DataFrame(columns=JUDGED).to_csv(tmp_path / "02_x" / "claims.csv", index=False)
    assert "No claim is judged" in write_index(tmp_path, "mini", {}).read_text()
