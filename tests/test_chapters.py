"""Chapters as files: parameters, profiles, notebooks."""

import os
from pathlib import Path

import nbformat
import pytest
import yaml

from dmlkit.chapters import (
    chapter_names,
    chapter_parameters,
    has_runs,
    parameter_defaults,
    profile_files,
    profile_names,
    read_notebook,
    sync_notebooks,
    up_to_runs,
)

ROOT = Path(__file__).parents[1]
CHAPTER = "02_baseline_losses"
SHARED = {
    *("DATASET", "DATA_DIR", "TRUNK", "WEIGHTS", "INPUT_CONVENTION", "IMAGE_SIZE", "EMBEDDING_DIM"),
    *("FREEZE_BN", "STEPS", "BATCH_SIZE", "LEARNING_RATE", "LOSS_LR", "SEEDS", "SELECTION"),
    *("PROTOCOL", "DEVICE", "PRECISION", "NUM_THREADS", "RESUME", "RESULTS_DIR"),
}


@pytest.mark.parametrize("chapter", chapter_names())
def test_every_chapter_has_the_shared_parameters_each_with_its_meaning(chapter):
    # A chapter that trains nothing has none of training.
    assert set(parameter_defaults(chapter)) >= SHARED or not has_runs(chapter)
    notebook = read_notebook(ROOT / "book" / f"{chapter}.py")
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    for line in cell.source.splitlines():
        # papermill's help shows a parameter's trailing comment, so each has its own line and one.
        assert "#" in line and ":" in line.split("=")[0], line


@pytest.mark.parametrize("profile", profile_names())
@pytest.mark.parametrize("chapter", chapter_names())
def test_every_profile_sets_only_parameters_that_exist_and_its_own_results_folder(profile, chapter):
    values = chapter_parameters(chapter, profile, {})
    assert values["RESULTS_DIR"] == f"results/local/{profile}"


def test_a_chapter_that_trains_nothing_takes_what_it_knows_of_a_profile(copied_book):
    values = chapter_parameters("07_all_methods", "features", {})
    assert values == {"DATASET": "cub200_2010", "RESULTS_DIR": "results/local/features"}
    own = copied_book / "profiles" / "features" / "07_all_methods.yaml"
    own.write_text("STEPS: 1\n")  # its own file is its own
    with pytest.raises(ValueError, match="no parameter STEPS"):
        chapter_parameters("07_all_methods", "features", {})


def test_the_parameters_cell_holds_the_mini_values():
    defaults = parameter_defaults(CHAPTER)
    values = chapter_parameters(CHAPTER, "mini", {})
    assert all(defaults[name] == value for name, value in values.items())


def test_a_chapters_own_profile_file_overrides_the_shared_one(copied_book):
    (copied_book / "profiles" / "smoke.yaml").write_text("STEPS: 1\nBATCH_SIZE: 8\n")
    (copied_book / "profiles" / "smoke" / f"{CHAPTER}.yaml").write_text("STEPS: 2\n")
    values = chapter_parameters(CHAPTER, "smoke", {"BATCH_SIZE": 4})
    assert values == {"STEPS": 2, "BATCH_SIZE": 4}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"LERNING_RATE": 0.1}, "no parameter LERNING_RATE"),
        ({"STEPS": "many"}, "STEPS='many' should be of type int"),
        ({"SEEDS": 3}, "SEEDS=3 should be of type list"),
        ({"RESUME": 1}, "RESUME=1 should be of type bool"),
        ({"STEPS": 1.5}, "STEPS=1.5"),
        ({"NUM_THREADS": 0}, "NUM_THREADS=0 should be positive"),
        ({"CACHED_VIEWS": -1}, "CACHED_VIEWS=-1 should be 0 or more"),
        ({"SEEDS": []}, "SEEDS is an empty list; give at least one"),
        ({"SEEDS": ["a"]}, r"SEEDS=\['a'\] should be a list like"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_unknown_names_and_wrong_types_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        chapter_parameters(CHAPTER, "mini", overrides)


@pytest.mark.parametrize(
    ("chapter", "name"),
    [
        *(("04_self_supervised_ranking", name) for name in ("WEIGHT_DECAY", "TASK_WEIGHT")),
        *(("04_self_supervised_ranking", name) for name in ("ORDER_WEIGHT", "FLOOR_WEIGHT")),
        *(("04_self_supervised_ranking", name) for name in ("ORDER_MARGIN", "FLOOR")),
        ("04_self_supervised_ranking", "TASK_CHANCE"),
        *(("05_slade", name) for name in ("MINED_WEIGHT", "BASIS_WEIGHT", "VARIANCE_WEIGHT")),
        *(("05_slade", name) for name in ("DISTRIBUTION_MARGIN", "MOMENTUM", "WARM_UP_STEPS")),
        ("06_slade_ablations", "WARM_UP_STEPS"),
    ],
)
def test_0_is_a_value_of_weights_and_the_like(chapter, name):
    default = parameter_defaults(chapter)[name]
    values = chapter_parameters(chapter, "mini", {name: 0})
    assert default > values[name] == 0 and type(values[name]) is type(default)
    with pytest.raises(ValueError, match=f"{name}=-1.* should be 0 or more, e.g. {default}"):
        chapter_parameters(chapter, "mini", {name: -1})


@pytest.mark.parametrize(
    ("chapter", "name"),
    [
        # Each would fail late, or leave nothing to learn.
        *(("04_self_supervised_ranking", name) for name in ("VIEW_STRENGTH", "ORDER_SCALE")),
        *(("04_self_supervised_ranking", name) for name in ("RANKED_IMAGES", "LEARNING_RATE")),
        *(("05_slade", name) for name in ("ROUNDS", "NUM_CLUSTERS", "SWAV_STEPS", "SWAV_LR")),
        *(("05_slade", name) for name in ("STEPS", "LOSS_LR", "NEGATIVE_MARGIN")),
    ],
)
def test_0_is_refused_where_nothing_would_be_left(chapter, name):
    with pytest.raises(ValueError, match=rf"{name}=0(\.0)? should be positive, e.g. "):
        chapter_parameters(chapter, "mini", {name: 0})


@pytest.mark.parametrize("written", ["1e-3", "0.001", "1"])
def test_numbers_as_yaml_reads_them_become_the_fractions_they_mean(written):
    values = chapter_parameters(CHAPTER, "mini", {"LEARNING_RATE": yaml.safe_load(written)})
    assert values["LEARNING_RATE"] == float(written)
    assert isinstance(values["LEARNING_RATE"], float)


def test_the_pictured_replicate_is_one_of_those_asked_for():
    assert chapter_parameters(CHAPTER, "mini", {"SEEDS": [4, 5]})["PICTURED_SEED"] == 4
    assert "PICTURED_SEED" not in chapter_parameters(CHAPTER, "mini", {"SEEDS": [4, 0]})


def test_unknown_chapters_and_profiles_are_refused_with_the_choices():
    with pytest.raises(ValueError, match=f"no chapter '99_none'.*{CHAPTER}"):
        parameter_defaults("99_none")
    with pytest.raises(ValueError, match="no profile 'tiny'.*smoke"):
        profile_files("tiny", CHAPTER)


def test_the_committed_notebooks_are_what_their_sources_give():
    assert sync_notebooks(check=True) == []


def test_syncing_changes_only_the_cells_that_changed_and_carries_no_outputs(copied_book):
    before = nbformat.read(copied_book / f"{CHAPTER}.ipynb", as_version=4)
    source = copied_book / f"{CHAPTER}.py"
    source.write_text(source.read_text().replace("# ## The data\n", "# ## The pictures\n"))

    assert [path.name for path in sync_notebooks()] == [f"{CHAPTER}.ipynb"]

    after = nbformat.read(copied_book / f"{CHAPTER}.ipynb", as_version=4)
    changed = [a.id != b.id for a, b in zip(before.cells, after.cells, strict=True)]
    assert sum(changed) == 1
    assert not any(cell.get("outputs") for cell in after.cells)
    assert sync_notebooks(check=True) == []


def test_a_synced_notebook_is_no_newer_than_its_source(copied_book):
    source = copied_book / f"{CHAPTER}.py"
    source.write_text(source.read_text() + "\n# %%\n1 + 1\n")
    (notebook,) = sync_notebooks()
    assert notebook.stat().st_mtime <= source.stat().st_mtime


def test_the_cut_notebook_ends_with_the_cell_that_makes_the_runs():
    cut = up_to_runs(read_notebook(ROOT / "book" / f"{CHAPTER}.py"))
    assert "results.save(run" in cut.cells[-1].source
    assert not any("save_figure" in c.source and "umap" in c.source for c in cut.cells)


def test_an_edit_of_the_notebook_alone_is_not_overwritten(copied_book):
    notebook = copied_book / f"{CHAPTER}.ipynb"
    notebook.write_text(notebook.read_text().replace("## The data", "## My data"))
    later = (copied_book / f"{CHAPTER}.py").stat().st_mtime + 60
    os.utime(notebook, (later, later))
    with pytest.raises(ValueError, match="was edited after"):
        sync_notebooks()
    assert "## My data" in notebook.read_text()


@pytest.mark.parametrize(
    "text",
    ["STEPS: [1", "[1, 2]", "STEPS", "STEPS: 2001-02-31", "STEPS: !!python/name:os.system", "\0"],
)
def test_a_profile_that_is_no_list_of_parameters_is_refused_by_name(text, copied_book):
    (copied_book / "profiles" / "smoke.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"^smoke\.yaml cannot be read \(.*\); give each param"):
        chapter_parameters(CHAPTER, "smoke", {})


@pytest.mark.parametrize("value", [float("nan"), 10**400])
def test_what_is_no_number_for_a_computer_is_refused(value):
    with pytest.raises(ValueError, match="LEARNING_RATE="):
        chapter_parameters(CHAPTER, "smoke", {"LEARNING_RATE": value})
