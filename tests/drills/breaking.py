"""How drills start the dmlkit command, break it on purpose, and compare what it leaves."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import nbformat
import numpy as np
import pandas as pd
import psutil
from PIL import Image

ROOT = Path(__file__).parents[2]
CHAPTER = "02_baseline_losses"
PATIENCE = 900  # seconds; a run takes half a minute on a core of its own
TWO_LOSSES = ("--workers", "1", "-p", "METHODS", "[contrastive,norm_softmax]")
TWO_LOSSES += ("-p", "REFERENCES", "[pca]", "-p", "STEPS", "100", "-p", "MEASURE_EVERY", "20")
# Two kernels fill rows, then a third draws.
TWO_WORKERS = ("--workers", "2")
ONE_LOSS = ("--workers", "1", "-p", "METHODS", "[contrastive]", "-p", "REFERENCES", "[]")
ONE_LOSS += ("-p", "SEEDS", "[0]")

# Executed by every Python started with it on its path: changes one module after its import. Files
# stay as they are, and with them the fingerprint of the code that rows are resumed by.
INJECTION = '''
import importlib.abc
import importlib.machinery
import pathlib
import sys
import time

REACHED = pathlib.Path({reached!r})

def pause():
    """Stop here until killed."""
    REACHED.touch()
    time.sleep(3600)

class Changed(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != {module!r}:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def load_and_change(module):
            load(module)
            exec({code!r}, vars(module))
        spec.loader.exec_module = load_and_change
        return spec

sys.meta_path.insert(0, Changed())
'''


def inject(where: Path, module: str, code: str) -> Path:
    """Let the next commands execute ``code`` in a module behind its import; return its marker.

    ``code`` may call ``pause()``, which makes the marker and waits to be killed.
    """
    reached = where / "reached"
    reached.unlink(missing_ok=True)
    code = "from sitecustomize import REACHED, pause\n" + dedent(code)
    (where / "injected").mkdir(exist_ok=True)
    text = INJECTION.format(reached=str(reached), module=module, code=code)
    (where / "injected" / "sitecustomize.py").write_text(text)
    return reached


def heal(where: Path) -> None:
    """Undo ``inject``."""
    (where / "injected" / "sitecustomize.py").unlink(missing_ok=True)


def start(where: Path, *arguments: object) -> subprocess.Popen:
    """Start ``dmlkit run`` on the smoke profile, with results, cache and logs below ``where``."""
    # Or children of a job in the background would ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    (where / "tmp").mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "DMLKIT_CACHE": str(where / "cache"),
        "PYTHONPATH": f"{where / 'injected'}:{ROOT}",
        "TMPDIR": str(where / "tmp"),
    }
    command = [sys.executable, "-m", "dmlkit.cli", "run", CHAPTER, "--profile", "smoke"]
    command += ["--results-dir", str(where / "results"), *map(str, arguments)]
    with (where / "output").open("w") as output, (where / "errors").open("w") as errors:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )


def run(where: Path, *arguments: object) -> int:
    """Run ``dmlkit run`` to its end and return its exit status."""
    return start(where, *arguments).wait(PATIENCE)


def said(where: Path) -> list[str]:
    """Return the sentences of the last command on the terminal, without progress bars."""
    text = re.sub(r"\d+%\|[^|]*\|[^\[]*\[[^\]]*\]", "\n", (where / "errors").read_text())
    return [line.strip() for line in text.splitlines() if line.strip()]


def assert_one_sentence(where: Path, *words: str) -> None:
    """Check that the last command said one sentence, for a reader, with all of ``words``."""
    sentences = said(where)
    assert len(sentences) == 1, sentences
    assert sentences[0].startswith("dmlkit: ")
    for jargon in ("Traceback", "Errno", "Error:", "Exception"):
        assert jargon not in sentences[0], sentences[0]
    for word in words:
        assert word in sentences[0], sentences[0]


def processes(where: Path) -> list[psutil.Process]:
    """Return all processes that the commands started below ``where`` have left."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("DMLKIT_CACHE", "").startswith(str(where)):
                found.append(process)
        except psutil.Error:  # it has ended, or is somebody else's
            continue
    return [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def wait_until(condition, seconds: float = PATIENCE) -> None:
    """Wait for ``condition()``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def kill(runner: subprocess.Popen, where: Path, *, kernels_too: bool = True) -> None:
    """Kill a runner with its workers; without ``kernels_too`` its kernels have to end alone."""
    others = processes(where)
    os.killpg(runner.pid, signal.SIGKILL)
    for process in others if kernels_too else ():
        process.kill()
    runner.wait()
    wait_until(lambda: not processes(where), seconds=30)


def row_files(folder: Path) -> dict[str, object]:
    """Return what a run must make again exactly: rows but for times, results, tables of rows."""
    found: dict[str, object] = {}
    for path in sorted(folder.glob("*/runs/[!.]*.json")):
        row = json.loads(path.read_text())
        for measured in ("seconds", "peak_mib", "made"):  # made names the commit, too
            del row[measured]
        found[path.name] = row
    for path in sorted(folder.glob("*/runs/[!.]*.npz")):
        found[path.name] = path.read_bytes()
    for path in sorted(folder.glob("*/embeddings/[!.]*.npy")):
        found[path.name] = path.read_bytes()
    for path in sorted(folder.glob("*/runs.csv")):
        rows = pd.read_csv(path, dtype=str)
        metrics = ["run_id", *(name for name in rows if name.startswith("metric_"))]
        found[f"{path.parent.name}/runs.csv"] = rows[metrics].to_dict("records")
    return found


def assert_whole(where: Path) -> None:
    """Check that every file there, temporary ones aside, can be read to its end."""
    for folder in ("results", "cache"):
        for path in sorted((where / folder).rglob("*")):
            if path.is_file() and not any(p.startswith(".") for p in path.relative_to(where).parts):
                _read(path)


def _read(path: Path) -> None:
    kind = path.suffix
    if kind == ".json":
        json.loads(path.read_text())
    elif kind == ".npz":
        with np.load(path) as arrays:
            assert [arrays[name] for name in arrays]
    elif kind == ".npy":
        np.load(path)
    elif kind in (".png", ".jpg"):
        with Image.open(path) as image:
            image.load()
    elif kind == ".ipynb":
        nbformat.validate(nbformat.read(path, as_version=4))
    elif kind == ".csv":
        assert len(pd.read_csv(path).columns)
    elif kind == ".html":
        assert path.read_text().endswith("</html>\n")
    elif kind == ".md":
        assert path.read_text().endswith("\n")
    elif kind != ".log":  # which is written line by line
        assert kind == ".lock" or path.parent.name == "fingerprints", path
        assert kind == ".lock" or len(path.read_text()) == 64, path


def cached(where: Path) -> dict[str, bytes]:
    """Return the content of all cached arrays, by folder and name."""
    paths = (where / "cache").glob("*/[!.]*/*.npy")
    return {"/".join(path.parts[-3:]): path.read_bytes() for path in paths}
