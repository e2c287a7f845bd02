"""Rows, results by class and what makes a run the same run."""

import io
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dmlkit import results as module
from dmlkit.chapters import chapter_source, parameter_defaults, read_notebook
from dmlkit.evaluation import evaluate_embeddings
from dmlkit.paths import PROJECT_ROOT
from dmlkit.results import (
    ChapterResults,
    FailedRunsError,
    compressed,
    markdown,
    read_row,
    read_scores,
    write_scores,
)
from dmlkit.search import Trial
from dmlkit.training import Fit

CHAPTER = "02_baseline_losses"
NAMES = ("w", "x", "y", "z")  # of the four classes


@pytest.fixture
def make(tmp_path):
    """Return a function that opens the chapter's results with some parameters changed."""

    def open_results(**changes):
        namespace = parameter_defaults(CHAPTER) | {"RESULTS_DIR": str(tmp_path)} | changes
        return ChapterResults(CHAPTER, namespace | {"torch": torch, "NOT_A_PARAMETER": 1})

    return open_results


@pytest.fixture
def evaluation():
    generator = torch.Generator().manual_seed(0)
    return evaluate_embeddings(
        torch.randn(6, 4, generator=generator), torch.tensor([0, 0, 1, 1, 2, 3]), ks=(1, 2)
    )


def test_a_row_holds_metrics_identity_and_circumstances(make, evaluation):
    results = make(EMBEDDING_DIM=4)
    run = results.run("contrastive", 1, "fingerprint")
    fit = Fit([{"step": 5, "images_seen": 40, "loss": 1.23456789}], best_step=5, seconds=1.234)

    row = results.save(run, NAMES, evaluation, fit=fit)

    assert read_row(results.folder / "runs" / f"{run.run_id}.json") == row
    assert row["metric_map_at_r"] == row["metric_map_at_r_last"]
    assert (row["steps"], row["images_seen"], row["seconds"]) == (5, 40, 1.23)
    assert row["history"] == [{"step": 5, "images_seen": 40, "loss": 1.234568}]
    assert (row["num_queries"], row["num_lone_queries"]) == (4, 2)
    assert row["params"]["EMBEDDING_DIM"] == 4
    assert "NOT_A_PARAMETER" not in row["params"] and "RESULTS_DIR" not in row["params"]


def test_rows_share_the_parameters_of_the_chapter_and_their_circumstances(make, evaluation):
    results = make(LEARNING_RATE=0.5)
    runs = [results.run("a", seed, "f", LEARNING_RATE=rate) for seed, rate in ((0, 0.5), (1, 2.0))]
    rows = [results.save(run, NAMES, evaluation) for run in runs]
    paths = [results.folder / "runs" / f"{run.run_id}.json" for run in runs]
    stored = [json.loads(path.read_text()) for path in paths]
    assert [row["params"] for row in stored] == [{}, {"LEARNING_RATE": 2.0}]
    assert "code" not in stored[0] and stored[0]["made"] == stored[1]["made"]
    shared = results.folder / "parameters" / f"{stored[0]['parameters']}.json"
    assert json.loads(shared.read_text()) == results.settings
    assert stored[0]["metrics"] == stored[1]["metrics"] and "metric_map_at_r" not in stored[0]
    assert len([*shared.parent.iterdir()]) == 3  # the metrics' names are the third
    assert [read_row(path) for path in paths] == rows
    assert results.is_finished(runs[1])
    shared.unlink()  # a row without its parameters is made again
    assert not results.is_finished(runs[1])


@pytest.mark.parametrize("of", ["parameters", "made", "metrics"])
def test_what_rows_share_is_written_again_with_a_row_where_it_was_changed(make, evaluation, of):
    results = make()
    run = results.run("contrastive", 0, "f")
    row = results.save(run, NAMES, evaluation)
    path = results.folder / "runs" / f"{run.run_id}.json"
    shared = path.parents[1] / "parameters" / f"{json.loads(path.read_text())[of]}.json"
    shared.write_bytes(shared.read_bytes().replace(b"\n", b"\r\n"))  # layout does not count
    assert results.is_finished(run) and read_row(path) == row
    shared.write_text(shared.read_text().replace("1", "2").replace("recall", "precision"))
    assert not results.is_finished(run)
    with pytest.raises(ValueError, match=f"{shared.name} was changed; restore it, or all rows"):
        read_row(path)
    again = results.save(run, NAMES, evaluation)
    assert results.is_finished(run) and read_row(path) == again == row | {
        "peak_mib": again["peak_mib"]
    }


def test_selected_and_last_results_are_kept_apart(make, evaluation):
    results = make()
    other = evaluate_embeddings(torch.eye(6), torch.tensor([0, 0, 1, 1, 2, 3]), ks=(1, 2))
    row = results.save(results.run("contrastive", 0, "f"), NAMES, evaluation, last=other)
    assert row["metric_recall_at_1"] == evaluation.metrics["recall_at_1"]
    assert row["metric_recall_at_1_last"] == other.metrics["recall_at_1"]
    assert read_row(next((results.folder / "runs").glob("*.json"))) == row


def test_a_row_that_chose_its_last_step_stores_its_metrics_once(make, evaluation):
    results = make()
    row = results.save(results.run("contrastive", 0, "f"), NAMES, evaluation)
    (path,) = (results.folder / "runs").glob("*.json")
    stored = json.loads(path.read_text())
    names = json.loads((path.parents[1] / "parameters" / f"{stored['metrics']}.json").read_text())
    assert len(stored["values"]) == len(names["metrics"]) == len(evaluation.metrics)
    assert [*read_row(path)] == [*row] and "metric_map_at_r_last" in row


def test_rows_of_other_cells_never_replace_those_of_the_chapter(make, evaluation, capsys):
    cells = read_notebook(chapter_source(CHAPTER)).cells
    executed = [cell.source for cell in cells if cell.cell_type == "code"]
    results = make(In=executed)
    run = results.run("contrastive", 0, "f")
    row = results.save(run, NAMES, evaluation)
    assert results.is_finished(run) and not row["code"].startswith("edited")

    executed.append("losses.clear()")
    other = results.run("contrastive", 0, "f")
    assert other.run_id != run.run_id and not results.is_finished(other)
    assert "Restart the kernel" in capsys.readouterr().out
    assert results.save(other, NAMES, evaluation)["code"].startswith("edited")
    assert read_row(results.folder / "runs" / f"{run.run_id}.json") == row
    results.run("contrastive", 1, "f")
    assert capsys.readouterr().out == ""  # told once


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"STEPS": "40"}, "STEPS='40' should be of type int"),
        ({"SEEDS": 0}, "SEEDS=0 should be of type list"),
        ({"SEEDS": []}, "SEEDS is an empty list"),
        ({"MEASURE_EVERY": 0}, "MEASURE_EVERY=0 should be positive"),
    ],
)
def test_parameters_set_in_a_notebook_are_checked_like_those_of_a_command(make, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**changes)


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({"LEARNING_RATE": 0.5}, False),
        ({"NUM_THREADS": 2}, False),
        ({"SEEDS": [7]}, True),
        ({"METHODS": ["contrastive"]}, True),
        ({"DATA_DIR": "/elsewhere"}, True),
        ({"RESUME": False}, True),
    ],
    ids=lambda value: str(value),
)
def test_a_run_is_the_same_run_if_nothing_that_determines_it_changed(make, change, is_same):
    runs = [results.run("contrastive", 0, "f").run_id for results in (make(), make(**change))]
    assert (runs[0] == runs[1]) == is_same


def test_other_data_seeds_and_methods_are_other_runs(make):
    results = make()
    runs = {
        results.run(*arguments).run_id
        for arguments in [("a", 0, "f"), ("a", 0, "g"), ("a", 1, "f"), ("b", 0, "f")]
    }
    assert len(runs) == 4


def test_settings_folds_and_the_content_of_weights_are_part_of_a_run(make, tmp_path):
    results = make()
    runs = {
        results.run("a", 0, "f").run_id,
        results.run("a", 0, "f", margin=0.1).run_id,
        results.run("a", 0, "f", margin=0.2).run_id,
        results.run("a", 0, "f", fold=1).run_id,
    }
    for content in (b"one", b"two"):
        (tmp_path / "weights.pth").write_bytes(content)
        runs.add(make(WEIGHTS=str(tmp_path / "weights.pth")).run("a", 0, "f").run_id)
    assert len(runs) == 6


def test_a_run_is_finished_once_saved_unless_code_or_resume_changed(make, evaluation, monkeypatch):
    results = make()
    run = results.run("contrastive", 0, "f")
    assert not results.is_finished(run)
    results.save(run, NAMES, evaluation)
    assert results.is_finished(run)
    assert not make(RESUME=False).is_finished(run)
    monkeypatch.setattr(module, "code_fingerprint", lambda chapter, executed: "changed")
    assert not results.is_finished(run)


def test_only_the_pictured_replicate_keeps_and_needs_its_embeddings(make, evaluation):
    results = make(SEEDS=[0, 1], PICTURED_SEED=1)
    runs = [results.run("contrastive", seed, "f") for seed in (0, 1)]
    for run in runs:
        results.save(run, NAMES, evaluation)
    (kept,) = (results.folder / "embeddings").iterdir()
    assert kept.stem == runs[1].run_id
    kept.unlink()
    assert [results.is_finished(run) for run in runs] == [True, False]
    # A worker that was given this replicate alone asks for no more than the whole chapter does.
    assert make(SEEDS=[0], PICTURED_SEED=1).is_finished(runs[0])


def test_the_row_is_written_last(make, evaluation, monkeypatch):
    results = make()
    run = results.run("contrastive", 0, "f")
    monkeypatch.setattr(module.np, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        results.save(run, NAMES, evaluation)
    assert not list(results.folder.glob("runs/*.json"))
    assert not results.is_finished(run)


def test_loading_gives_the_asked_for_rows_sorted_and_writes_them(make, evaluation):
    results = make()
    runs = [results.run(method, seed, "f") for method in ("b", "a") for seed in (1, 0)]
    for run in [*runs, results.run("not asked for", 0, "f")]:
        results.save(run, NAMES, evaluation)

    rows = results.load(runs)

    assert list(zip(rows["method"], rows["seed"], strict=True)) == [
        ("a", 0), ("a", 1), ("b", 0), ("b", 1)
    ]  # fmt: skip
    written = pd.read_csv(results.folder / "runs.csv")
    assert written["run_id"].tolist() == rows["run_id"].tolist()


def test_the_table_of_runs_leaves_to_json_what_nobody_compares_and_more_than_six_decimals(
    make, evaluation
):
    results = make()
    run = results.run("contrastive", 0, "f")
    evaluation.of_the_set["nmi"] = 2 / 3
    results.save(run, NAMES, evaluation, fit=Fit([{"step": 2, "images_seen": 12345678, "loss": 1}]))
    rows = results.load([run])
    assert {"params", "versions", "data_fingerprint", "history"} <= set(rows.columns)
    assert rows.loc[0, "metric_nmi"] == 0.6666667
    written = pd.read_csv(results.folder / "runs.csv", dtype=str).loc[0]
    assert not {"params", "versions", "data_fingerprint", "history"} & set(written.index)
    assert "metric_nmi_last" in rows.columns and "metric_nmi_last" not in written.index
    assert written["metric_nmi"] == "0.666667"
    assert (written["images_seen"], written["commit"]) == ("12345678", rows.loc[0, "commit"])


def test_results_by_class_and_embeddings_come_back(make, evaluation):
    results = make()
    run = results.run("contrastive", 0, "f")
    results.save(run, NAMES, evaluation)
    stored = results.by_class(run.run_id)
    assert stored["labels"].tolist() == [0, 1]
    assert stored["queries"].tolist() == [2, 2]
    assert stored["classes"].tolist() == list(NAMES)
    of_queries = evaluation.retrieval.per_query["map_at_r"]
    of_classes = of_queries.reshape(2, 2).mean(1).tolist()
    assert stored["map_at_r"].tolist() == pytest.approx(of_classes, abs=2e-5)
    assert torch.allclose(results.embeddings(run), evaluation.embeddings, atol=1e-3)


def test_methods_tested_on_the_same_classes_share_the_list_of_these(tmp_path):
    scores = {
        "labels": np.array([0, 2]),
        "classes": np.array(["finch", "gull", "wren"]),
        "queries": np.array([3, 4]),
        "recall_at_1": np.array([1 / 3, 0.75]),
        "map_at_r": np.array([0.1, 0.2]),
    }
    others = scores | {"queries": np.array([4, 4])}
    for name, written in (("one", scores), ("two", scores), ("three", others)):
        write_scores(tmp_path / f"{name}.npz", written)
    assert len(list(tmp_path.glob("tested-*.npz"))) == 2
    for name, written in (("one", scores), ("two", scores), ("three", others)):
        read = read_scores(tmp_path / f"{name}.npz")
        assert list(read) == list(written)
        for kind, values in written.items():
            assert read[kind].dtype == values.dtype
            if values.dtype.kind == "f":  # to half a step of 1/32767
                assert np.allclose(read[kind], values, rtol=0, atol=1.6e-5)
            else:
                assert np.array_equal(read[kind], values)


@pytest.mark.parametrize("value", [float("nan"), 1.01, -1.01])
def test_results_by_class_outside_of_their_range_are_refused(tmp_path, value):
    tested = {"labels": np.array([0]), "classes": np.array(["wren"]), "queries": np.array([2])}
    with pytest.raises(ValueError, match="by class of order are not between -1 and 1"):
        write_scores(tmp_path / "one.npz", tested | {"order": np.array([value])})
    assert not (tmp_path / "one.npz").exists()


def test_signed_results_and_those_of_an_earlier_version_are_read(tmp_path):
    tested = {"labels": np.array([0]), "classes": np.array(["wren"]), "queries": np.array([2])}
    write_scores(tmp_path / "one.npz", tested | {"order": np.array([-1.0])})
    assert read_scores(tmp_path / "one.npz")["order"].tolist() == [-1.0]
    with np.load(tmp_path / "one.npz") as stored:
        (shared,) = stored.files
    values = np.array([(-0.25,)], [("order", np.float32)])
    np.savez_compressed(tmp_path / "two.npz", **{shared: values})
    read = read_scores(tmp_path / "two.npz")["order"]
    assert read.tolist() == [-0.25] and read.dtype == np.float64


def test_a_results_folder_that_cannot_be_written_is_refused_at_once(make, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match="cannot write to"):
        make(RESULTS_DIR=str(tmp_path / "file"))


def test_tables_are_written_as_csv_and_as_markdown_with_their_note(make):
    results = make()
    table = pd.DataFrame({"MAP@R": ["1.0"]}, index=pd.Index(["x"], name="method"))
    results.save_table("main", table, note="Quick look.")
    assert (results.folder / "tables" / "main.md").read_text() == (
        "| method | MAP@R |\n| --- | --- |\n| x | 1.0 |\n\nQuick look.\n"
    )
    assert markdown(table).count("|") == 9


@pytest.mark.parametrize(
    ("changes", "fingerprint", "stamp"),
    [
        ({}, "f", ""),
        ({"MAX_CLASSES": 4}, "f", "A part of the data, for a quick look: the numbers say little."),
        (
            {"MAX_IMAGES_PER_CLASS": 4},
            "f",
            "A part of the data, for a quick look: the numbers say little.",
        ),
        ({}, "generated-f", "Not run: random images in the layout of the data set."),
    ],
)
def test_every_table_and_figure_says_what_its_rows_do_not_stand_for(
    make, evaluation, changes, fingerprint, stamp
):
    results = make(**changes)
    run = results.run("contrastive", 0, fingerprint)
    results.save(run, NAMES, evaluation)
    results.load([run])
    table = pd.DataFrame({"MAP@R": ["1.0"]}, index=pd.Index(["x"], name="method"))
    results.save_table("main", table, note="A note.")
    text = (results.folder / "tables" / "main.md").read_text()
    assert text.endswith(f"\n**{stamp}** A note.\n" if stamp else "\nA note.\n")
    figure = plt.figure()
    results.save_figure("plot", figure)
    assert [t.get_text() for t in figure.texts] == [stamp][: bool(stamp)]
    # What does not come from the images is whole, whatever part of them there is.
    results.save_table("simulated", table, note="A note.", of_data=False)
    results.save_figure("simulated", plain := plt.figure(), of_data=False)
    assert (results.folder / "tables" / "simulated.md").read_text().endswith("\nA note.\n")
    assert not plain.texts
    plt.close("all")


def test_photographs_go_where_they_are_not_committed(make):
    results = make()
    figure = plt.figure()
    results.save_figure("plot", figure)
    results.save_figure("birds", figure, keep_local=True)
    plt.close(figure)
    assert (results.folder / "figures" / "plot.png").exists()
    assert (results.folder / "pictures" / "birds.png").exists()
    ignored = (PROJECT_ROOT / ".gitignore").read_text()
    assert "/results/**/pictures/" in ignored


def test_a_search_is_made_once_for_each_method_and_replicate_and_kept(make):
    made = []

    def search():
        made.append(1)
        return [Trial({"margin": 0.1, "IMAGES_PER_CLASS": 4}, {10: 0.25, 20: float("nan")})]

    first = make().trials("contrastive", 0, "f", search)
    again = make().trials("contrastive", 0, "f", search)
    assert again[0].settings == first[0].settings
    assert again[0].scores.keys() == {10, 20} and again[0].scores[10] == 0.25
    assert again[0].best_step == 10
    assert len(made) == 1
    make().trials("contrastive", 1, "f", search)
    make(SEARCH_TRIALS=3).trials("contrastive", 0, "f", search)
    make(RESUME=False).trials("contrastive", 0, "f", search)
    assert len(made) == 4


def test_a_search_found_again_chooses_the_same(make):
    def search():
        return [Trial({"margin": 0.1}, {10: 0.25000000001}), Trial({"margin": 0.2}, {20: 0.25})]

    first = make().trials("contrastive", 0, "f", search)
    assert [trial.score for trial in first] == [0.25, 0.25]
    assert make().trials("contrastive", 0, "f", search) == first


def test_a_search_by_other_code_is_made_anew(make, monkeypatch):
    made = []

    def search():
        made.append(1)
        return [Trial({}, {1: 0.5})]

    make().trials("contrastive", 0, "f", search)
    monkeypatch.setattr(module, "code_fingerprint", lambda *of: "other")
    make().trials("contrastive", 0, "f", search)
    assert len(made) == 2


class Stage:
    """Makes a stage and notes how often."""

    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1
        weights = torch.full((2, 3), float(self.count))
        return {"chosen": {"layer.weight": weights}, "history": [{"step": 1, "loss": 0.5}]}


@pytest.fixture
def stage():
    return Stage()


def files_of(results):
    return sorted(path.name for path in results.folder.glob("stages/*"))


def test_a_stage_is_made_once_and_read_by_whoever_resumes(make, stage):
    results = make()
    made = results.stage("teacher", 0, "f", stage)
    assert results.stage("teacher", 0, "f", stage)["history"] == made["history"]
    (name,) = files_of(results)
    assert name.startswith("teacher-seed0-") and name.endswith(".pt")
    resumed = make().stage("teacher", 0, "f", lambda: pytest.fail("it was made again"))
    assert torch.equal(resumed["chosen"]["layer.weight"], torch.ones(2, 3))
    assert resumed["history"] == [{"step": 1, "loss": 0.5}]
    assert stage.count == 1


def test_a_stage_of_another_replicate_data_set_or_setting_is_another_stage(make, stage):
    made = [
        make().stage("teacher", 0, "f", stage),
        make().stage("student", 0, "f", stage),
        make().stage("teacher", 1, "f", stage),
        make().stage("teacher", 0, "g", stage),
        make().stage("teacher", 0, "f", stage, start="swav"),
        make(LEARNING_RATE=0.5).stage("teacher", 0, "f", stage),
    ]
    found = [stages["chosen"]["layer.weight"][0, 0].item() for stages in made]
    assert found == [1, 2, 3, 4, 5, 6]
    assert len(files_of(make())) == 6
    # What only says which runs to make is no setting of a stage.
    assert make(SEEDS=[0], METHODS=["margin"]).stage("teacher", 0, "f", stage)
    assert stage.count == 6


def test_a_stage_by_other_code_is_made_anew_in_its_place(make, stage, monkeypatch):
    results = make()
    results.stage("teacher", 0, "f", stage)
    monkeypatch.setattr(module, "code_fingerprint", lambda *of: "other")
    for resumed in (results, make()):
        found = resumed.stage("teacher", 0, "f", stage)
        assert torch.equal(found["chosen"]["layer.weight"], torch.full((2, 3), 2.0))
    assert stage.count == 2
    assert len(files_of(results)) == 1


def test_without_resume_a_stage_is_made_once_by_each_process(make, stage):
    make().stage("teacher", 0, "f", stage)
    results = make(RESUME=False)
    for _ in range(2):  # for one student and for another
        found = results.stage("teacher", 0, "f", stage)
        assert torch.equal(found["chosen"]["layer.weight"], torch.full((2, 3), 2.0))
    assert stage.count == 2
    assert make().stage("teacher", 0, "f", stage)["chosen"]["layer.weight"][0, 0] == 2


@pytest.mark.parametrize("where", ["making", "writing"])
def test_a_stage_that_is_interrupted_leaves_no_file(make, stage, monkeypatch, where):
    results = make()

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        if where == "writing":
            patched.setattr(module.torch, "save", interrupt)
        results.stage("teacher", 0, "f", interrupt if where == "making" else stage)
    assert files_of(results) == []
    results.stage("teacher", 0, "f", stage)
    assert len(files_of(results)) == 1


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_stage_that_is_cut_short_is_named_and_kept_until_somebody_deletes_it(make, stage, share):
    results = make()
    results.stage("teacher", 0, "f", stage)
    (path,) = results.folder.glob("stages/*.pt")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=rf"^{path} cannot be read \(\w+\); delete it to make"):
        make().stage("teacher", 0, "f", stage)
    make(RESUME=False).stage("teacher", 0, "f", stage)  # which asks for none made before
    assert path.read_bytes()[:4] == content[:4] and stage.count == 2


def test_pictures_are_jpeg_and_plots_png_of_few_colours(make):
    results = make()
    figure, axis = plt.subplots()
    axis.plot([0, 1])
    results.save_figure("plot", figure)
    axis.imshow(np.random.default_rng(0).random((40, 40, 3)))
    results.save_figure("picture", figure)
    plt.close(figure)
    assert {path.name for path in (results.folder / "figures").iterdir()} == {
        "plot.png",
        "picture.jpg",
    }
    with Image.open(results.folder / "figures" / "plot.png") as plot:
        assert (plot.format, plot.mode) == ("PNG", "P")
    with Image.open(results.folder / "figures" / "picture.jpg") as picture:
        assert picture.format == "JPEG"
        assert len(picture.getcolors(2**24)) > 1600


@pytest.mark.parametrize("shows_images", [True, False])
def test_a_compressed_figure_keeps_thin_coloured_lines(shows_images):
    figure = np.full((64, 64, 3), 255, np.uint8)
    figure[:, 20] = (213, 94, 0)
    Image.fromarray(figure).save(drawn := io.BytesIO(), "PNG")
    stored = compressed(drawn.getvalue(), shows_images=shows_images)
    with Image.open(io.BytesIO(stored)) as image:
        difference = np.asarray(image.convert("RGB")) - figure.astype(float)
    assert np.abs(difference[:, 20]).mean() < 10


def test_a_run_that_diverges_or_fills_a_gpu_lets_the_others_go_on(make):
    results = make()
    one, other = (results.run(name, 3, "data") for name in ("margin", "contrastive"))
    made = []
    with results.attempt(one):
        raise FloatingPointError("margin, seed 3: the loss is nan at step 7")
    with results.attempt(other):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with results.attempt(one):
        made.append(one)
    assert made
    with pytest.raises(FailedRunsError) as refused:
        results.complete()
    assert str(refused.value) == (
        "margin, seed 3: the loss is nan at step 7; contrastive, seed 3: the GPU has too little "
        "memory; lower BATCH_SIZE. All other runs are finished and kept"
    )
    results.complete()  # the cell may be executed again


def test_other_errors_of_a_run_are_not_swallowed(make):
    results = make()
    with pytest.raises(KeyError), results.attempt(results.run("margin", 0, "data")):
        raise KeyError("a mistake in the chapter")
