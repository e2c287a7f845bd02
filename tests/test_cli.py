"""The command and its refusals. See also tests/book."""

import pytest

from dmlkit import cli
from dmlkit.paths import PROJECT_ROOT


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["99_none"], "there is no chapter '99_none'"),
        (["--profile", "tiny"], "there is no profile 'tiny'"),
        (["-p", "LERNING_RATE", "0.1"], "there is no parameter LERNING_RATE"),
        (["-p", "SEEDS", "[1"], "SEEDS=[1 cannot be read; write lists without spaces"),
        (["-p", "DATASET", "class_folder", "-p", "DATA_DIR", "absent"], "there is no folder"),
        (["-p", "TRUNK", "resnet50", "-p", "WEIGHTS", "absent.pth"], "there is no weights file"),
        (["-p", "STEPS", "few"], "STEPS='few' should be of type int"),
        (["--results-dir", str(PROJECT_ROOT / "LICENSE")], "cannot write to"),
    ],
    ids=[
        *("chapter", "profile", "parameter", "yaml", "data", "weights", "type", "results folder"),
    ],
)
def test_wrong_requests_end_in_one_sentence_before_anything_runs(capsys, arguments, sentence):
    assert cli.main(["run", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("dmlkit: ") and sentence in said


def test_numbers_and_lists_on_the_command_line_are_read_as_yaml(monkeypatch, tmp_path):
    asked = {}

    def run_book(chapters, profile, overrides, **options):
        asked.update(overrides)
        return tmp_path / "index.html", []

    monkeypatch.setattr(cli, "run_book", run_book)
    assert cli.main(["run", "-p", "SEEDS", "[1, 2]", "-p", "RESUME", "false"]) == 0
    assert asked == {"SEEDS": [1, 2], "RESUME": False}


def test_failures_are_said_and_give_a_status_that_scripts_notice(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cli, "run_book", lambda *_, **__: (tmp_path, ["02: no data"]))
    assert cli.main(["run"]) == 1
    said = capsys.readouterr()
    assert "dmlkit: 02: no data" in said.err and "results" not in said.out


def test_a_run_says_first_what_is_edited_and_that_a_notebook_is_not_its_source(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(cli, "run_book", lambda *_, **__: (tmp_path, []))
    monkeypatch.setattr(cli, "edited_chapters", lambda: ["02_baseline_losses"])
    monkeypatch.setattr(cli, "sync_notebooks", lambda check: [PROJECT_ROOT / "book" / "x.ipynb"])
    assert cli.main(["run", "--scheduler", "tcp://host:8786"]) == 0
    edited, different, asking = capsys.readouterr().err.splitlines()
    assert "since the last commit: 02_baseline_losses; parameters that the profile sets" in edited
    assert different.startswith("dmlkit: x.ipynb: not as its .py, which is what runs")
    assert "asking tcp://host:8786" in asking


def test_an_interrupted_run_says_that_it_resumes(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_book", interrupted)
    assert cli.main(["run"]) == 130
    assert "resumes" in capsys.readouterr().err


def test_checking_notebooks_fails_where_one_is_out_of_date(monkeypatch, capsys):
    monkeypatch.setattr(cli, "sync_notebooks", lambda check: [PROJECT_ROOT / "book" / "x.ipynb"])
    assert cli.main(["sync", "--check"]) == 1
    assert "make notebooks" in capsys.readouterr().out
    assert cli.main(["sync"]) == 0
