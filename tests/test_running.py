"""What the runner does when notebooks fail, and what it keeps of them. See also tests/book."""

import base64
import errno
import io
import json
import os
import re
from contextlib import contextmanager

import nbformat
import pytest
from distributed import Client, LocalCluster
from distributed.utils import key_split
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from dmlkit import running, workers
from tests.official_trees import make_tree

CHAPTER = "02_baseline_losses"
TABLE = "<table>\n  <tr>\n    <th>a</th>\n    <td>b</td>\n  </tr>\n</table>"


def executed(*outputs, tags=()):
    cell = nbformat.v4.new_code_cell("1", metadata={"tags": list(tags)}, outputs=list(outputs))
    return nbformat.v4.new_notebook(cells=[cell])


def drawn():
    """Return a figure as the notebook gets it."""
    Image.new("RGBA", (3, 2), "white").save(png := io.BytesIO(), "PNG")
    return base64.b64encode(png.getvalue()).decode()


@pytest.fixture
def parameters(tmp_path):
    return {"RESULTS_DIR": str(tmp_path)}


@pytest.fixture
def cluster(monkeypatch):
    """Let notebooks be executed by two threads of this process, so that parts can be replaced."""

    @contextmanager
    def connect(*_):
        options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
        with LocalCluster(processes=False, **options) as local, Client(local) as client:
            yield client

    monkeypatch.setattr(workers, "connect", connect)


def test_kernels_get_the_environment_of_the_caller_with_kept_memory(monkeypatch, tmp_path, cluster):
    seen = []
    monkeypatch.setattr(running, "execute", lambda *_: seen.append(dict(os.environ)))
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")
    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)

    class Disturbing(Client):  # as Dask does, here and in its workers
        def __init__(self, *arguments, **options):
            os.environ |= {"MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
            super().__init__(*arguments, **options)

    monkeypatch.setitem(globals(), "Client", Disturbing)
    running.run_book([CHAPTER], "smoke", {"RESULTS_DIR": str(tmp_path)})
    os.environ.clear()
    os.environ |= before
    assert seen[0]["MALLOC_MMAP_MAX_"] == "0" and seen[0]["MALLOC_TRIM_THRESHOLD_"] == "1000"
    assert "OMP_NUM_THREADS" not in seen[0]


def test_replicates_of_a_chapter_are_of_one_kind_for_dask_so_that_no_worker_idles(
    monkeypatch, tmp_path, cluster
):
    keys = []

    class Noting(Client):
        def submit(self, *arguments, key, **options):
            keys.append(key)
            return super().submit(*arguments, key=key, **options)

    monkeypatch.setitem(globals(), "Client", Noting)
    monkeypatch.setattr(running, "execute", lambda *_: None)
    parameters = {"RESULTS_DIR": str(tmp_path), "SEEDS": [0, 1, 2], "STEPS": 200}
    running.run_book([CHAPTER], "smoke", parameters)
    assert len(set(keys)) == 4 and {key_split(key) for key in keys} == {CHAPTER}


def test_a_chapter_that_reads_others_comes_after_them(monkeypatch, tmp_path, cluster):
    order = []
    monkeypatch.setattr(running, "execute", lambda chapter, *_: order.append(chapter))
    monkeypatch.setattr(running, "chapter_names", lambda: ["07_all_methods", CHAPTER])
    smoke = {"RESULTS_DIR": str(tmp_path)}
    running.run_book([], "smoke", smoke)
    assert order == [CHAPTER, "07_all_methods"]
    # Nothing is stale but what it reads: then it is, too.
    monkeypatch.setattr(running, "is_up_to_date", lambda chapter, _: chapter != CHAPTER)
    order.clear()
    running.run_book([], "smoke", smoke)
    assert order == [CHAPTER, "07_all_methods"]
    monkeypatch.setattr(running, "is_up_to_date", lambda chapter, _: True)
    order.clear()
    running.run_book([], "smoke", smoke)
    assert order == []


@pytest.mark.parametrize("place", [".", "official"])
def test_what_a_chapter_reads_makes_it_stale(tmp_path, place):
    parameters = {"RESULTS_DIR": str(tmp_path), "CHAPTERS": [CHAPTER]}
    before = running._inputs("07_all_methods", parameters)
    (tmp_path / place / CHAPTER).mkdir(parents=True)
    (tmp_path / place / CHAPTER / "runs.csv").write_text("run_id\n")
    assert running._inputs("07_all_methods", parameters) != before


def test_a_kernel_that_dies_is_tried_once_more(monkeypatch, parameters, tmp_path):
    outcomes = [DeadKernelError("died"), executed()]

    def attempt(*_):
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(running, "_papermill", attempt)
    assert running.execute(CHAPTER, parameters) is None
    assert (tmp_path / CHAPTER / "chapter.ipynb").exists()


def test_a_kernel_that_dies_twice_is_reported_and_leaves_no_notebook(
    monkeypatch, parameters, tmp_path
):
    def attempt(*_):
        raise DeadKernelError("died")

    monkeypatch.setattr(running, "_papermill", attempt)
    assert "died twice" in running.execute(CHAPTER, parameters)
    assert not (tmp_path / CHAPTER / "chapter.ipynb").exists()


def test_a_part_of_the_replicates_runs_the_cut_notebook_and_keeps_none(
    monkeypatch, parameters, tmp_path
):
    seen = []
    monkeypatch.setattr(running, "_papermill", lambda notebook, *_: seen.append(notebook))
    assert running.execute(CHAPTER, parameters, "seed0") is None
    assert "runs" in seen[0].cells[-1].metadata["tags"]
    assert not list((tmp_path / CHAPTER).glob("*.ipynb"))


def test_an_executed_chapter_is_up_to_date_until_parameters_change(
    monkeypatch, parameters, tmp_path
):
    monkeypatch.setattr(running, "_papermill", lambda *_: executed())
    assert not running.is_up_to_date(CHAPTER, parameters)
    running.execute(CHAPTER, parameters)
    assert not running.is_up_to_date(CHAPTER, parameters)  # it has no rows
    (tmp_path / CHAPTER / "runs.csv").write_text("run_id,method\na-seed0-1,a\n")
    assert not running.is_up_to_date(CHAPTER, parameters)  # one is listed and gone
    (tmp_path / CHAPTER / "runs").mkdir()
    (tmp_path / CHAPTER / "runs" / "a-seed0-1.json").write_text("{}")
    assert running.is_up_to_date(CHAPTER, parameters)
    assert not running.is_up_to_date(CHAPTER, parameters | {"STEPS": 1})
    assert not running.is_up_to_date(CHAPTER, parameters | {"RESUME": False})


@pytest.mark.parametrize(
    ("dataset", "is_kept"), [("aviary", True), ("cub200_2010", False)], ids=["drawn", "photographs"]
)
def test_photographs_are_stripped_from_notebooks_that_may_be_committed(
    monkeypatch, parameters, tmp_path, dataset, is_kept
):
    picture = nbformat.v4.new_output("display_data", {"image/png": drawn()})
    monkeypatch.setattr(running, "_papermill", lambda *_: executed(picture, tags=["pictures"]))
    if not is_kept:
        make_tree(dataset, tmp_path / "data")
    running.execute(CHAPTER, parameters | {"DATASET": dataset, "DATA_DIR": str(tmp_path / "data")})
    kept = nbformat.read(tmp_path / CHAPTER / "chapter.ipynb", as_version=4)
    assert bool(kept.cells[0].outputs) == is_kept


def test_kept_figures_are_compressed_and_nothing_else_is_changed(monkeypatch, parameters, tmp_path):
    cells = []
    for tags in ((), ("pictures",)):
        data = {"image/png": drawn(), "text/plain": "shown"}
        cells += executed(nbformat.v4.new_output("display_data", data), tags=tags).cells
    notebook = nbformat.v4.new_notebook(cells=cells)
    monkeypatch.setattr(running, "_papermill", lambda *_: notebook)
    running.execute(CHAPTER, parameters)
    kept = nbformat.read(tmp_path / CHAPTER / "chapter.ipynb", as_version=4)
    for cell, kind in zip(kept.cells, ("png", "jpeg"), strict=True):
        data = cell.outputs[0].data
        assert data.keys() == {f"image/{kind}", "text/plain"} and data["text/plain"] == "shown"
        with Image.open(io.BytesIO(base64.b64decode(data[f"image/{kind}"]))) as image:
            assert image.format == kind.upper()
            assert (image.mode, image.size) == ("P" if kind == "png" else "RGB", (3, 2))


def test_tables_are_kept_once_and_a_row_per_line(monkeypatch, parameters, tmp_path):
    table = nbformat.v4.new_output("display_data", {"text/html": TABLE, "text/plain": "a  b"})
    value = nbformat.v4.new_output("display_data", {"text/plain": "3"})
    monkeypatch.setattr(running, "_papermill", lambda *_: executed(table, value))
    running.execute(CHAPTER, parameters)
    kept = nbformat.read(tmp_path / CHAPTER / "chapter.ipynb", as_version=4).cells[0].outputs
    assert [dict(output.data) for output in kept] == [
        {"text/html": "<table>\n  <tr><th>a</th><td>b</td>\n  </tr>\n</table>"},
        {"text/plain": "3"},
    ]


def test_only_the_last_state_of_a_progress_bar_is_kept(monkeypatch, parameters, tmp_path):
    bar = nbformat.v4.new_output("stream", name="stdout", text="\r 10%\r 50%")
    rest = nbformat.v4.new_output("stream", name="stdout", text="\r100%\nnext\n")
    monkeypatch.setattr(running, "_papermill", lambda *_: executed(bar, rest))
    running.execute(CHAPTER, parameters)
    kept = nbformat.read(tmp_path / CHAPTER / "chapter.ipynb", as_version=4)
    assert kept.cells[0].outputs[0].text == "100%\nnext\n"


def test_links_lead_from_where_the_executed_notebook_lies(tmp_path):
    text = (
        "[one](01_evaluation.ipynb), [claims](claims.csv), [losses](../dmlkit/losses), "
        "[away](https://example.org), $[f](x)$ and [no file](none.md)"
    )

    def links(folder):
        return re.findall(r"\]\(([^)]+)\)", running._with_links_from(folder, text))

    folder = running.PROJECT_ROOT / "results" / "mini" / CHAPTER
    one, claims, losses, *rest = links(folder)
    assert one == "../01_evaluation/chapter.ipynb"
    assert (folder / claims).resolve() == running.BOOK / "claims.csv"
    assert (folder / losses).resolve() == running.PROJECT_ROOT / "dmlkit" / "losses"
    assert rest == ["https://example.org", "x", "none.md"]
    # Outside the project the way back would name this machine's folders.
    assert links(tmp_path / CHAPTER) == [one, "claims.csv", "../dmlkit/losses", *rest]


def test_changed_weights_or_data_files_are_noticed(monkeypatch, parameters, tmp_path, class_tree):
    monkeypatch.setattr(running, "_papermill", lambda *_: executed())
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"one")
    parameters |= {"DATASET": "class_folder", "DATA_DIR": str(class_tree), "WEIGHTS": str(weights)}
    for change in (lambda: weights.write_bytes(b"three"), (class_tree / "class 0/0.jpg").unlink):
        running.execute(CHAPTER, parameters)
        (tmp_path / CHAPTER / "runs.csv").write_text("")
        assert running.is_up_to_date(CHAPTER, parameters)
        change()
        assert not running.is_up_to_date(CHAPTER, parameters)


SLADE = "05_slade"


@pytest.fixture
def pooled(tmp_path, parameters):
    """Return parameters of a data set and another one, elsewhere, that is its pool."""
    make_tree("cub200_2010", tmp_path / "data")
    make_tree("nabirds", tmp_path / "pool")
    parameters |= {"DATASET": "cub200_2010", "DATA_DIR": str(tmp_path / "data")}
    return parameters | {"POOL": "nabirds", "POOL_ROOT": str(tmp_path / "pool")}


def test_a_changed_pool_of_another_data_set_is_noticed(monkeypatch, pooled, tmp_path):
    monkeypatch.setattr(running, "_papermill", lambda *_: executed())
    running.execute(SLADE, pooled)
    (tmp_path / SLADE / "runs.csv").write_text("")
    assert running.is_up_to_date(SLADE, pooled)
    os.utime(next((tmp_path / "pool" / "nabirds" / "images").rglob("*.jpg")), ns=(0, 0))
    assert not running.is_up_to_date(SLADE, pooled)


def test_a_pool_lies_in_data_dir_unless_it_has_a_folder_of_its_own(pooled, tmp_path):
    apart = running._data_stamp(pooled)
    (tmp_path / "pool" / "nabirds").rename(tmp_path / "data" / "nabirds")
    for nowhere in ("none", ""):
        beside = running._data_stamp(pooled | {"POOL_ROOT": nowhere})
        assert len(beside) == len(apart)
        assert beside != apart  # of which the folder is a part
    with pytest.raises(FileNotFoundError):
        running._data_stamp(pooled)


@pytest.mark.parametrize("pool", ["none", "other_classes", "labelled_classes", "test_classes"])
def test_a_pool_of_the_data_set_itself_adds_no_files(pooled, pool):
    without = {name: value for name, value in pooled.items() if not name.startswith("POOL")}
    assert running._data_stamp(pooled | {"POOL": pool}) == running._data_stamp(without)
    assert running._data_stamp(pooled) != running._data_stamp(without)
    assert running._data_stamp(pooled | {"DATASET": "aviary", "POOL": pool}) == ""


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("absent", r"^POOL=nabirds: there is no folder .*absent; set POOL_ROOT to the folder"),
        ("data", r"^POOL=nabirds: .*data does not hold nabirds: .* run `dmlkit data nabirds`"),
    ],
)
def test_a_missing_pool_is_refused_before_any_run(monkeypatch, pooled, tmp_path, root, message):
    monkeypatch.setattr(running, "execute", lambda *_: pytest.fail("a notebook was run"))
    pooled |= {"POOL_ROOT": str(tmp_path / root)}
    with pytest.raises(FileNotFoundError, match=message):
        running.run_book([SLADE], "smoke", pooled, workers=1)


def test_rendering_after_filled_rows_never_trains_again(monkeypatch, tmp_path, cluster):
    asked = []
    note = lambda chapter, parameters, part: asked.append((part, parameters["RESUME"]))  # noqa: E731
    monkeypatch.setattr(running, "execute", note)
    overrides = {"RESULTS_DIR": str(tmp_path), "STEPS": 100, "RESUME": False}
    running.run_book([CHAPTER], "smoke", overrides)
    assert sorted(asked[:2]) == [("seed0", False), ("seed1", False)]
    assert asked[2:] == [("", True)]


def test_a_chapter_without_all_its_rows_is_not_rendered(monkeypatch, tmp_path, cluster):
    asked = []

    def fail(chapter, parameters, part):
        asked.append(part)
        return f"{chapter}: no data"

    monkeypatch.setattr(running, "execute", fail)
    overrides = {"RESULTS_DIR": str(tmp_path), "STEPS": 100}
    _, failures = running.run_book([CHAPTER], "smoke", overrides)
    assert sorted(asked) == ["seed0", "seed1"]
    assert failures == [f"{CHAPTER}: no data"]  # of several workers, said once


def test_a_full_disk_of_one_chapter_does_not_stop_others(monkeypatch, tmp_path, cluster):
    def execute(chapter, parameters, part):
        if chapter == CHAPTER:
            raise OSError(errno.ENOSPC, "No space left on device", "/results/a.csv")

    monkeypatch.setattr(running, "execute", execute)
    monkeypatch.setattr(running, "chapter_names", lambda: [CHAPTER, "03_norm_softmax"])
    _, failures = running.run_book([], "smoke", {"RESULTS_DIR": str(tmp_path)})
    assert failures == [
        f"{CHAPTER}: no space is left for /results/a.csv; make room, and the same command resumes"
    ]


def test_a_log_tells_what_was_asked_and_what_went_wrong(monkeypatch, parameters, tmp_path):
    def refuse(*_, stdout_file, **__):
        stdout_file.write("step 1\n")
        raise PapermillExecutionError(0, 1, "", "KeyError", "'a'", ["Traceback: there"])

    monkeypatch.setattr(running.papermill, "execute_notebook", refuse)
    failure = running.execute(CHAPTER, parameters, "seed0")
    log = tmp_path / CHAPTER / "logs" / "seed0.log"
    assert failure == f"{CHAPTER}: KeyError: 'a' (see {log})"
    asked, step, *told = log.read_text().splitlines()
    assert asked.endswith(json.dumps(parameters)) and step == "step 1"
    assert "Traceback: there" in told and told[-1].endswith("ended")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"workers": 0}, "one worker or more"),
        ({"processes_per_run": 0}, "one process or more"),
        ({"workers": 2, "scheduler": "tcp://host:8786"}, "leave it out, or --scheduler"),
    ],
)
def test_workers_that_cannot_be_are_refused(arguments, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        running.run_book([CHAPTER], "smoke", {"RESULTS_DIR": str(tmp_path)}, **arguments)
    assert list(tmp_path.iterdir()) == []
