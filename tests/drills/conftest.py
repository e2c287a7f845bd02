"""What drills share: photographs, a run that nothing disturbs, and a table of the outcome.

Run by name, ``pytest tests/drills``; all of them take about an hour on one core. DRILLS_REPORT
names the file of a table: drill, how many survived, what was checked. Drills that were not run keep
their line, so ``DRILLS_REPORT=results/benchmarks/drills.md`` may be brought up to date in parts.
"""

import os
import platform
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmlkit.provenance import commit, versions
from tests.drills.breaking import ONE_LOSS, TWO_LOSSES, TWO_WORKERS, processes, run, said

outcomes = defaultdict(lambda: {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0, "said": {}})


def draw_photographs(folder: Path) -> Path:
    """Make 20 classes of 6 JPEGs each, large enough that decoding takes a moment."""
    random = np.random.RandomState(0)
    for label in range(20):
        (folder / f"class {label}").mkdir(parents=True)
        colour = random.randint(64, 192, size=3)
        for image in range(6):
            pixels = colour + random.randint(-64, 64, size=(300, 400, 3))
            picture = Image.fromarray(pixels.astype(np.uint8))
            picture.save(folder / f"class {label}" / f"{image}.jpg")
    return folder


def of(photographs: Path) -> tuple[str, ...]:
    """Return arguments that train heads on cached features of these photographs."""
    data = ("-p", "DATASET", "class_folder", "-p", "DATA_DIR", str(photographs))
    return (*data, "-p", "CACHED_VIEWS", "2")


@pytest.fixture(autouse=True)
def leave_no_process(tmp_path):
    """Kill what a failed or interrupted drill has left running."""
    yield
    for process in processes(tmp_path):
        process.kill()


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """Return a folder of class folders with photographs."""
    return draw_photographs(tmp_path_factory.mktemp("data") / "photographs")


@pytest.fixture(scope="session")
def on_photographs(photographs):
    """Return the arguments of a command that decodes, caches features and trains two losses."""
    return (*TWO_LOSSES, *of(photographs))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, on_photographs):
    """Return the folder of that command, run by two workers undisturbed, and the seconds taken."""
    where = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    assert run(where, *on_photographs, *TWO_WORKERS) == 0, said(where)
    return where, time.monotonic() - started


@pytest.fixture(scope="session")
def one_loss(tmp_path_factory):
    """Return the folder of one loss run on drawn birds without disturbance."""
    where = tmp_path_factory.mktemp("one_loss")
    assert run(where, *ONE_LOSS) == 0, said(where)
    return where


def pytest_runtest_setup(item):
    item.user_properties.append(("checked", " ".join((item.function.__doc__ or "").split())))


def pytest_runtest_logreport(report):
    name = report.nodeid.rpartition("::")[2].partition("[")[0]
    outcome = outcomes[name]
    outcome["seconds"] += report.duration
    outcome["said"] |= dict(report.user_properties)
    if report.when == "call" or report.outcome != "passed":
        outcome[report.outcome] += 1


def pytest_sessionfinish():
    if not (path := os.environ.get("DRILLS_REPORT")):
        return
    heading = ["| drill | survived | what was checked | s | commit |", "|---|---|---|---|---|"]
    lines = {}
    if Path(path).exists():
        for line in Path(path).read_text().splitlines()[2:]:
            if line.startswith("| "):
                lines[line.split(" | ")[0].removeprefix("| ")] = line
    for name, outcome in outcomes.items():
        tried = outcome["passed"] + outcome["failed"]
        survived = f"{outcome['passed']} of {tried}" if tried else "skipped"
        if not outcome["failed"]:
            survived = outcome["said"].get("survived", survived)
        drill = name.removeprefix("test_").replace("_", " ")
        checked = outcome["said"].get("checked", "")
        told = (drill, survived, checked, f"{outcome['seconds']:.0f}", commit())
        lines[drill] = f"| {' | '.join(told)} |"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, other work beside; {versions()}."
    Path(path).write_text("\n".join([*heading, *lines.values(), "", machine]) + "\n")
