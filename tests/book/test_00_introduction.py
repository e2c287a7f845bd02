"""The opening chapter, executed on the smoke profile: what it shows, keeps and may do twice."""

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
import torch
import yaml

from dmlkit.chapters import (
    BOOK,
    chapter_parameters,
    chapter_source,
    parameter_defaults,
    profile_names,
    read_notebook,
)
from dmlkit.datasets import load
from dmlkit.evaluation import embed
from dmlkit.metrics import retrieval_metrics
from dmlkit.saving import load_model
from dmlkit.transforms import centre_crop

CHAPTER = "00_introduction"
PICTURES = {
    *("question", "answer", "neighbours_before", "neighbours_after", "splits", "ranking"),
    "gallery",
}
PLOTS = {"learning_curve", "circle", "class_splits", "by_species", "verdicts", "replicates"}
TABLES = {
    *("before_and_after", "data_sets", "walk", "by_hand", "main", "verdicts", "replicates"),
    "gallery",
}


@pytest.fixture(scope="module")
def chapter(smoke):
    return smoke / CHAPTER


def read_table(chapter, name, **how):
    return pd.read_csv(chapter / "tables" / f"{name}.csv", **how)


def test_figures_and_tables_are_there_and_stand_in_the_notebook(chapter):
    figures = {path.name for path in (chapter / "figures").iterdir()}
    assert figures == {f"{name}.jpg" for name in PICTURES} | {f"{name}.png" for name in PLOTS}
    assert {path.stem for path in (chapter / "tables").iterdir()} == TABLES
    notebook = nbformat.read(chapter / "chapter.ipynb", as_version=4)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    shown = [output.data for output in outputs if "data" in output]
    assert sum("image/jpeg" in data for data in shown) == len(PICTURES)
    assert sum("image/png" in data for data in shown) == len(PLOTS)
    assert not any(output.output_type == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)


def test_every_figure_is_described_for_those_who_do_not_see_it(chapter):
    notebook = nbformat.read(chapter / "chapter.ipynb", as_version=4)
    for cell in notebook.cells:
        if any(
            "image/" in str(output.get("data", {}).keys()) for output in cell.get("outputs", [])
        ):
            assert len(cell.metadata["mystnb"]["image"]["alt"]) > 40


def test_nothing_of_this_machine_is_shown(chapter):
    text = (chapter / "chapter.ipynb").read_text()
    assert str(BOOK.parent) not in text
    notebook = nbformat.reads(text, as_version=4)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert str(chapter.parent) not in str(outputs)  # but in the parameters


def test_the_metrics_by_hand_are_those_of_the_package(chapter):
    table = read_table(chapter, "by_hand", index_col="metric")
    assert table["by hand"].tolist() == table["dmlkit.metrics"].tolist()
    walk = read_table(chapter, "walk")
    right = (walk["right?"] == "✓").tolist()
    r = len(walk)
    so_far = [sum(right[:rank]) for rank in range(1, r + 1)]
    assert walk["right so far"].tolist() == so_far
    precisions = [so_far[i] / (i + 1) for i in range(r) if right[i]]
    assert table.loc["recall_at_1", "by hand"] == right[0]
    assert table.loc["r_precision", "by hand"] == pytest.approx(sum(right) / r, abs=1e-3)
    assert table.loc["map_at_r", "by hand"] == pytest.approx(sum(precisions) / r, abs=1e-3)


def test_each_verdict_is_met_once_and_agrees_with_its_interval(chapter):
    table = read_table(chapter, "verdicts", index_col="verdict")
    assert list(table.index) == ["held", "reversed", "equivalent", "not resolved"]
    assert table.loc["held", "low"] > 0 > table.loc["reversed", "high"]
    assert -1 < table.loc["equivalent", "low"] < table.loc["equivalent", "high"] < 1
    assert table.loc["not resolved", "low"] < 0 < table.loc["not resolved", "high"]


def test_more_replicates_resolve_more_and_shared_species_leave_a_floor(chapter):
    table = read_table(chapter, "replicates", index_col="replicates")
    assert (table.diff().iloc[1:] < 0).all().all()
    # Random halves share training species, too, which their interval allows for.
    assert table.loc[50, "new species"] < table.loc[50, "the same species"]
    assert table.loc[50, "the same species"] < table.loc[50, "random halves"]


def test_the_saved_model_is_found_and_gives_the_same_neighbours(chapter):
    saved = load_model(chapter / "stages" / "birds.pt")
    values = parameter_defaults(CHAPTER) | chapter_parameters(CHAPTER, "smoke", {})
    limits = {name: values[name.upper()] for name in ("max_classes", "max_images_per_class")}
    how = {"protocol": "random", "selection": values["SELECTION"], **limits}
    test = load("aviary", image_size=saved.cache_size, seed=values["SEEDS"][0], **how).test

    def view(images, sizes):
        return centre_crop(images, sizes, image_size=saved.image_size)

    embeddings = embed(saved.model, test, view, device=torch.device("cpu"))
    found = retrieval_metrics(embeddings, test.labels, ks=(1,)).means()
    shown = read_table(chapter, "main", index_col="method")
    mean = float(shown.loc["contrastive", "R@1"].split(" [")[0])
    assert mean == pytest.approx(100 * found["recall_at_1"], abs=0.055)
    mean = float(shown.loc["contrastive", "MAP@R"].split(" [")[0])
    assert mean == pytest.approx(100 * found["map_at_r"], abs=0.055)

    # The search of the folder, from the images themselves: own file left out, nearest first.
    answers = read_table(chapter, "gallery")
    positions = {  # as the chapter names its files
        f"{name}/{number}.png" if number else f"{name}.png": position
        for label, name in enumerate(test.class_names[:10])
        for number, position in enumerate((test.labels == label).nonzero().squeeze(1)[:12].tolist())
    }
    in_folder = [file for file in positions if "/" in file]
    searched = embeddings[[positions[file] for file in in_folder]]
    for query, lines in answers.groupby("query"):
        similarity = searched @ embeddings[positions[query]]
        best = similarity.topk(len(lines))
        assert lines["path"].tolist() == [in_folder[row] for row in best.indices]
        assert lines["similarity"].tolist() == pytest.approx(best.values.tolist(), abs=1e-3)


@pytest.mark.parametrize("profile", sorted({*profile_names()} - {"smoke", "full"}))
def test_it_teaches_on_drawn_birds_whatever_the_profile(profile):
    defaults = parameter_defaults(CHAPTER)
    values = defaults | chapter_parameters(CHAPTER, profile, {})
    # Of the replicates only the classes of two are pictured.
    changed = {name for name, value in values.items() if value != defaults[name]}
    assert changed <= {"RESULTS_DIR", "SEEDS"}


@pytest.mark.parametrize("profile", profile_names())
def test_a_profile_file_of_its_own_repeats_nothing(profile):
    own = BOOK / "profiles" / profile / f"{CHAPTER}.yaml"
    shared = yaml.safe_load((BOOK / "profiles" / f"{profile}.yaml").read_text())
    given = yaml.safe_load(own.read_text()) if own.exists() else {}
    before = parameter_defaults(CHAPTER) | shared
    assert not {name for name, value in given.items() if before[name] == value}


@pytest.mark.slow
@pytest.mark.parametrize("data", ["drawn", "own"])
def test_every_cell_may_be_run_again_and_on_a_readers_own_images(
    data, tmp_path, class_tree, monkeypatch
):
    plt.switch_backend("agg")
    changes = {"RESULTS_DIR": str(tmp_path / "results"), "WEIGHTS": "imagenet"}
    if data == "own":
        monkeypatch.setenv("DMLKIT_CACHE", str(tmp_path / "cache"))
        changes |= {"DATASET": "class_folder", "DATA_DIR": str(class_tree), "SELECTION": "last"}
        changes |= {"MAX_CLASSES": 0, "BATCH_SIZE": 8, "IMAGES_PER_CLASS": 2}
    values = chapter_parameters(CHAPTER, "smoke", changes)
    namespace, found = {}, []
    for cell in read_notebook(chapter_source(CHAPTER)).cells:
        for _ in range(2 if cell.cell_type == "code" else 0):
            exec(cell.source, namespace)
            if "parameters" in cell.metadata.get("tags", []):
                namespace |= values
            if "after" in namespace:
                found.append(namespace["after"].embeddings)
            plt.close("all")
    assert all(torch.equal(embeddings, found[0]) for embeddings in found)
    folder = tmp_path / "results" / CHAPTER
    kept = {path.stem for path in (folder / "figures").iterdir()}
    local = {path.stem for path in folder.glob("pictures/*.jpg")}
    assert (kept, local) == (
        (PLOTS, PICTURES) if data == "own" else (PLOTS | PICTURES, set())  # photographs stay local
    )
