"""The index page over whatever chapters have results."""

import json

import pandas as pd

from dmlkit.index import write_index


def test_a_folder_without_results_says_so(tmp_path):
    assert "No results" in write_index(tmp_path, "mini").read_text()


def test_each_chapter_has_its_line_tables_and_figures(tmp_path):
    chapter = tmp_path / "02_x"
    (chapter / "tables").mkdir(parents=True)
    (chapter / "figures").mkdir()
    pd.DataFrame(
        {"dataset": ["aviary"], "method": ["a"], "seed": [0], "seconds": [3.4], "commit": ["1e5"]}
    ).to_csv(chapter / "runs.csv")
    pd.DataFrame({"method": ["a<b"], "MAP@R": ["1.0"]}).to_csv(chapter / "tables" / "main.csv")
    (chapter / "figures" / "umap.png").write_bytes(b"")
    (chapter / "chapter.ipynb").write_text(json.dumps({"metadata": {"dmlkit": {"seconds": 12.5}}}))

    page = write_index(tmp_path, "mini").read_text()

    assert "02_x/figures/umap.png" in page and "12.5" in page
    assert "a&lt;b" in page  # names are text, not markup
