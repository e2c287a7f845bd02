"""Chapter 7: all methods side by side, from the rows of the other chapters."""

import json
import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest

from dmlkit.results import finished_rows, read_row, write_row

CHAPTER = "07_all_methods"
COMPARED = ("02_baseline_losses", "03_norm_softmax", "04_self_supervised_ranking", "05_slade")


@pytest.fixture(scope="session")
def table(smoke):
    return pd.read_csv(smoke / CHAPTER / "tables" / "all_methods.csv", index_col="method")


def test_every_method_of_the_main_tables_stands_in_one_table_and_references_once(smoke, table):
    expected, references = [], []
    for chapter in COMPARED:
        rows = finished_rows(smoke / chapter)
        for method in pd.read_csv(smoke / chapter / "tables" / "main.csv")["method"]:
            if method == "swav_trunk" or rows.loc[rows["method"] == method, "steps"].max():
                expected.append(f"{int(chapter[:2])} {method}")
            elif method not in references:
                references.append(method)
    assert table.index.tolist() == references + expected
    assert len(references) > 3 and len(expected) > 20


def test_differences_are_of_the_same_replicates(smoke, table):
    rows = finished_rows(smoke / "04_self_supervised_ranking").set_index(["method", "seed"])
    baseline = finished_rows(smoke / "02_baseline_losses").set_index(["method", "seed"])
    metric = "metric_map_at_r"
    expected = rows.loc["margin", metric] - baseline.loc["contrastive", metric]
    said = table.loc["4 margin", "MAP@R minus 2 contrastive"].split()[0]
    assert float(said) == pytest.approx(100 * expected.mean(), abs=0.055)
    assert table.loc["2 contrastive", "MAP@R minus 2 contrastive"] == "–"


def test_nothing_is_trained_and_all_is_shown(smoke):
    folder = smoke / CHAPTER
    assert not (folder / "runs").exists()
    figures = {path.stem for path in (folder / "figures").iterdir()}
    assert figures == {"differences", "cost", "maps", "extremes", "published"}
    tables = {path.stem for path in (folder / "tables").glob("*.csv")}
    assert tables == {
        "chapters",
        "all_methods",
        "variation",
        "shape",
        "reach",
        "verdicts",
        "ledger",
    }
    assert "A part of the data" in (folder / "tables" / "all_methods.md").read_text()


def test_the_ledger_counts_every_claim_that_the_chapters_judged(smoke):
    judged = pd.concat([pd.read_csv(path) for path in smoke.glob("*/claims.csv")])
    verdicts = pd.read_csv(smoke / CHAPTER / "tables" / "verdicts.csv", index_col="paper")
    assert verdicts.to_numpy().sum() == len(judged) > 10
    ledger = pd.read_csv(smoke / CHAPTER / "tables" / "ledger.csv", index_col="claim")
    assert set(ledger.index) == set(judged["claim"])
    assert ledger[smoke.name].notna().all()


def test_variation_is_what_the_rows_vary_by(smoke):
    found = pd.read_csv(smoke / CHAPTER / "tables" / "variation.csv", index_col="chapter")
    rows = finished_rows(smoke / "02_baseline_losses")
    values = rows[rows["steps"] > 0].pivot(index="seed", columns="method", values="metric_map_at_r")
    main = pd.read_csv(smoke / "02_baseline_losses" / "tables" / "main.csv")["method"]
    values = 100 * values[[method for method in main if method in values]]
    line = found.loc["02_baseline_losses"]
    assert line["methods"] == pytest.approx(values.mean().std(), abs=0.051)
    assert line["class splits"] == pytest.approx(values.std().mean(), abs=0.051)
    pairs = [values[a] - values[b] for a in values for b in values if a < b]
    average = np.sqrt(np.mean([pair.var() for pair in pairs]))
    assert line["splits, of a difference"] == pytest.approx(average, abs=0.051)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (["-p", "BASELINE", "contrastve"], "BASELINE=contrastve is in no main table here; choose"),
        (["-p", "DATASET", "butterflies"], "holds rows of aviary; set DATASET to that"),
    ],
)
def test_a_careless_user_is_told(smoke, tmp_path, run_dmlkit, parameters, message):
    folder = tmp_path / "smoke"
    shutil.copytree(smoke, folder, ignore=shutil.ignore_patterns(".*"))
    finished = run_dmlkit(
        "run", CHAPTER, "--profile", "smoke", "--results-dir", folder, *parameters
    )
    assert finished.returncode == 1
    assert message in finished.stderr and "Traceback" not in finished.stderr


def test_without_rows_it_says_what_to_run(tmp_path, run_dmlkit):
    finished = run_dmlkit("run", CHAPTER, "--profile", "smoke", "--results-dir", tmp_path)
    assert finished.returncode == 1
    assert "holds no rows of 01_evaluation" in finished.stderr


def test_it_is_run_again_when_rows_of_the_official_split_come_and_without_embeddings(
    smoke, tmp_path, run_dmlkit
):
    folder = tmp_path / "smoke"
    shutil.copytree(smoke, folder, ignore=shutil.ignore_patterns(".*"))
    for path in folder.glob("*/embeddings"):
        shutil.rmtree(path)  # as in a clone
    shutil.rmtree(folder / "05_slade")
    arguments = ("run", CHAPTER, "--profile", "smoke", "--results-dir", folder)
    assert run_dmlkit(*arguments).returncode == 0
    executed = folder / CHAPTER / "chapter.ipynb"
    first = executed.stat().st_mtime_ns
    said = "".join(
        output.get("text", "")
        for cell in nbformat.read(executed, as_version=4).cells
        for output in cell.get("outputs", [])
    )
    assert "No embeddings are kept here" in said
    table = pd.read_csv(folder / CHAPTER / "tables" / "all_methods.csv", index_col="method")
    assert not table.index.str.startswith("5 ").any()

    assert run_dmlkit(*arguments).returncode == 0
    assert executed.stat().st_mtime_ns == first  # nothing changed, nothing is done
    official = folder / "official" / "02_baseline_losses"
    shutil.copytree(folder / "02_baseline_losses", official)
    row = next((official / "runs").glob("contrastive-seed0-*.json"))
    parameters = json.loads(row.read_text())["parameters"]
    parameters = json.loads((official / "parameters" / f"{parameters}.json").read_text())
    write_row(row, read_row(row) | {"metric_map_at_r": 0.5}, parameters)
    assert run_dmlkit(*arguments).returncode == 0
    assert executed.stat().st_mtime_ns > first
    rows = finished_rows(folder / "02_baseline_losses").query("method == 'contrastive'")
    by_seed = rows.set_index("seed")["metric_map_at_r"]
    found = pd.read_csv(folder / CHAPTER / "tables" / "official.csv", index_col="method")
    line = found.loc["2 contrastive"]
    assert line["random splits"] == pytest.approx(100 * by_seed.mean(), abs=0.051)
    assert line["random splits, deviation"] == pytest.approx(100 * by_seed.std(), abs=0.051)
    by_seed[0] = 0.5
    assert line["official split"] == pytest.approx(100 * by_seed.mean(), abs=0.051)
    assert line["official split, rank"] == 1  # far above all others
    assert found.loc["frozen_trunk"].isna().sum() == 2  # it has no rank
    said = (folder / CHAPTER / "tables" / "official.md").read_text()
    assert "Kendall's tau: chapter 2: " in said
