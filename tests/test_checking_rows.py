"""Committed results pass; each way in which rows may be wrong is found, named and alone."""

import json
import shutil
from pathlib import Path

import pytest

from dmlkit import checking_rows, cli
from dmlkit.checking_rows import check_rows
from dmlkit.results import CIRCUMSTANCES, read_row, write_row

ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "results" / "mini" / "02_baseline_losses"
FEATURES = ROOT / "results" / "features"


@pytest.fixture
def folder(tmp_path):
    """Return a copy of committed results, of three replicates on drawn birds."""
    return shutil.copytree(COMMITTED, tmp_path / COMMITTED.name)


def a_row(folder, method="contrastive", seed=1):
    return next((folder / "runs").glob(f"{method}-seed{seed}-*.json"))


def edit(path, **changes):
    shared = {*CIRCUMSTANCES, *(name for name in changes if name.startswith("metric_"))}
    if made := {name: changes.pop(name) for name in shared if name in changes}:
        parameters = json.loads(path.read_text())["parameters"]
        of_chapter = (path.parents[1] / "parameters" / f"{parameters}.json").read_text()
        write_row(path, read_row(path) | made, json.loads(of_chapter))
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_all(folder, **changes):
    for path in (folder / "runs").glob("*.json"):
        edit(path, **changes)


@pytest.mark.parametrize("profile", ["birds", "butterflies", "features", "mini", "omniglot"])
def test_committed_rows_pass(profile):
    problems, remarks = check_rows(ROOT / "results" / profile)
    assert problems == []
    assert remarks[-1].endswith(", 0 problems")


@pytest.mark.parametrize(
    ("chapter", "method"),
    [("02_baseline_losses", "nca"), ("05_slade", "contrastive_oracle")],  # which leaves some out
)
def test_rows_after_a_search_pass_and_the_search_is_compared(tmp_path, chapter, method):
    folder = tmp_path / chapter
    for part, pattern in (("runs", "*"), ("searches", f"{method}-*"), ("parameters", "*")):
        (folder / part).mkdir(parents=True)
        for path in (FEATURES / chapter / part).glob(pattern):
            if part != "runs" or path.name.startswith((f"{method}-", "pca-", "tested")):
                shutil.copy(path, folder / part)
    said = [line for line in check_rows(folder)[0] if "/runs/" in line]
    assert said == []
    path = next((folder / "searches").glob(f"{method}-seed3-*"))
    record = json.loads(path.read_text())
    record["trials"][0]["scores"] = {"25": 0.99}
    record["trials"][0]["settings"]["LEARNING_RATE"] = 3.0
    path.write_text(json.dumps(record))
    said = [line for line in check_rows(folder)[0] if "/runs/" in line]
    assert len(said) == 1 and f"{method}-seed3" in said[0]
    assert "not what its search chose" in said[0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"metric_map_at_r": float("nan")}, "metric_map_at_r = nan is not between 0 and 1"),
        ({"metric_recall_at_1_last": 1.5}, "metric_recall_at_1_last = 1.5 is not between 0 and 1"),
        ({"metric_map_at_r": 0.4}, "metric_map_at_r = 0.400000 but 0."),
        ({"num_queries": 7}, "num_queries is not that of its .npz"),
        ({"code": "edited-0123"}, "its chapter was edited while it ran"),
        ({"params": {"positive_margin": 0.2}}, "its settings are not those it is named after"),
        ({"data_fingerprint": "0"}, "its settings are not those it is named after"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_row_that_was_changed_is_named(folder, changes, sentence):
    path = a_row(folder)
    edit(path, **changes)
    said = check_rows(folder)[0]
    assert any(f"{folder.name}/runs/{path.name}: {sentence}" in line for line in said), said


def test_a_row_without_its_results_by_class_cannot_be_read(folder):
    path = a_row(folder)
    path.with_suffix(".npz").unlink()
    (line,) = check_rows(folder)[0]
    assert path.name in line and "cannot be read" in line and str(folder) not in line


def test_rows_of_the_official_split_are_checked_with_those_beside_them(folder):
    official = folder.parent / "official" / folder.name
    shutil.copytree(folder, official)
    (official / "chapter.ipynb").unlink()
    problems, _ = check_rows(official)
    assert [line.split(":")[0] for line in problems] == [f"{folder.name}/chapter.ipynb"]
    shutil.rmtree(official / "tables")  # rows alone need none
    one, two = "1 chapter", "2 chapters"
    for place, chapters in ((official, one), (official.parent, one), (folder.parent, two)):
        problems, remarks = check_rows(place)
        assert problems == [] and f" rows of {chapters}, " in remarks[-1]
    with pytest.raises(FileNotFoundError, match="holds no results"):
        check_rows(folder.parents[1])  # of several profiles
    edit(a_row(official), seed=7)
    problems, _ = check_rows(folder.parent)
    assert problems and all(line.startswith(f"official/{folder.name}/") for line in problems)


def test_half_a_row_cannot_be_read(folder):
    path = a_row(folder)
    path.write_text(path.read_text()[:100])
    (line,) = check_rows(folder)[0]
    assert path.name in line and "send it and its .npz again" in line


def test_a_replicate_that_one_method_lacks_is_missed(folder):
    a_row(folder).unlink()
    assert any("contrastive lacks seed 1" in line for line in check_rows(folder)[0])


def test_rows_of_two_versions_of_the_code_do_not_stand_together(folder):
    edit(a_row(folder), code="0123456789ab")
    assert any("several versions of the code" in line for line in check_rows(folder)[0])


def test_earlier_code_is_a_remark_and_a_wrong_commit_a_problem(folder, monkeypatch):
    edit_all(folder, code="0123456789ab", commit="abc1234")
    problems, remarks = check_rows(folder)
    assert any("33 rows by earlier code 0123456789ab, commit abc1234" in r for r in remarks)
    assert not any("commit abc1234" in line for line in problems)
    monkeypatch.setattr(checking_rows, "commit", lambda: "abc1234")
    assert any("not by the code of commit abc1234" in line for line in check_rows(folder)[0])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dataset": "my_birds"}, "there is no data set my_birds"),
        ({"data_fingerprint": "generated-12"}, "made on random images in the layout"),
        ({"dataset": "cars196"}, "rows of different data"),
    ],
    ids=["unknown", "generated", "different"],
)
def test_data_that_cannot_count_are_refused(folder, changes, sentence):
    edit_all(folder, **changes)
    assert any(sentence in line for line in check_rows(folder)[0])


def test_other_images_than_those_of_rows_already_here_are_noticed(tmp_path):
    folder = shutil.copytree(ROOT / "results/birds/02_baseline_losses", tmp_path / "02_baseline")
    edit_all(folder, data_fingerprint="0" * 64)
    said = check_rows(folder)[0]
    assert any("other images than those of cub200_2010 in results/" in line for line in said)


def test_a_folder_without_rows_is_refused(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="holds no results"):
        check_rows(tmp_path)
    assert cli.main(["check-rows", str(tmp_path)]) == 2
    assert "holds no results" in capsys.readouterr().err


def test_the_command_prints_each_problem_and_has_a_status_that_scripts_notice(folder, capsys):
    assert cli.main(["check-rows", str(folder)]) == 0
    assert capsys.readouterr().out.endswith("33 rows of 1 chapter, 0 problems\n")
    a_row(folder).unlink()
    assert cli.main(["check-rows", str(folder)]) == 1
    assert f"{folder.name}/runs: contrastive lacks seed 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes", [{"method": 1}, {"seed": "0"}, {"run_id": None}, {"params": []}], ids=str
)
def test_a_row_of_other_types_cannot_be_read(folder, changes):
    path = a_row(folder)
    edit(path, **changes)
    (line,) = check_rows(folder)[0]
    assert f"{path.name}: cannot be read" in line


@pytest.mark.parametrize("content", ["", "[]", '{"trials": []}', '{"trials": [{"settings": 1}]}'])
def test_a_search_that_cannot_be_read_is_named(folder, content):
    (folder / "searches").mkdir()
    (folder / "searches" / "contrastive-seed0-0.json").write_text(content)
    said = check_rows(folder)[0]
    assert any("searches/contrastive-seed0-0.json: cannot be read" in line for line in said)
