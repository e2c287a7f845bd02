"""What the metrics cost, as ratios of one run: ``python -m tests.benchmarks.metrics``.

Writes ``results/benchmarks/metrics.md``. The embeddings are made up, at the sizes of the test
halves of the data sets. The floor is the matrix product and ``torch.topk``, without any metric.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch import Tensor

from dmlkit.metrics import kmeans, retrieval_metrics
from dmlkit.paths import PROJECT_ROOT, write_atomically
from tests.benchmarks.input_path import anonymous_mib, timed

DIM = 512
PARTS = ("CUB", "Cars", "In-Shop", "SOP", "memory", "growth", "clustering", "gpu")
PML = "pytorch-metric-learning"
SAME_METRICS = {  # our names and theirs
    "recall_at_1": "precision_at_1",
    "r_precision": "r_precision",
    "map_at_r": "mean_average_precision_at_r",
}
OML = """
import json, sys, time, torch
from oml.interfaces.datasets import IQueryGalleryLabeledDataset
from oml.metrics.embeddings import calc_retrieval_metrics_rr
from oml.retrieval import RetrievalResults

class Labelled(IQueryGalleryLabeledDataset):
    extra_data = {}
    def __len__(self): return len(labels)
    def get_labels(self): return labels
    def get_query_ids(self): return queries
    def get_gallery_ids(self): return gallery

case, depth, rounds = torch.load(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
points, labels, ks = case["embeddings"], case["labels"], case["ks"]
queries = gallery = torch.arange(len(points))
if case["gallery"] is not None:
    points = torch.cat([points, case["gallery"]])
    labels = torch.cat([labels, case["gallery_labels"]])
    gallery = torch.arange(len(queries), len(points))
seconds = []
for _ in range(rounds):
    start = time.perf_counter()
    found = RetrievalResults.from_embeddings(points, Labelled(), n_items=max(depth, *ks))
    means = calc_retrieval_metrics_rr(
        found, cmc_top_k=ks, precision_top_k=(depth,), map_top_k=(depth,), verbose=False
    )
    seconds.append(time.perf_counter() - start)
print(json.dumps({"seconds": seconds, "torch": torch.__version__,
    "recall": [float(means["cmc"][k]) for k in ks]}))
"""  # runs in an environment of its own


@dataclass(frozen=True)
class Size:
    """How large a test half is; ``noise`` is such that Recall@1 is 60 to 75 %."""

    queries: int
    classes: int
    class_sizes: tuple[int, int]  # smallest, largest
    ks: tuple[int, ...]
    noise: float
    gallery: int = 0  # 0: the queries search one another


SIZES = {
    "CUB": Size(5924, 100, (59, 60), (1, 2, 4, 8, 16, 32), 1.85),
    "Cars": Size(8131, 98, (60, 97), (1, 2, 4, 8, 16, 32), 1.9),
    "In-Shop": Size(14218, 3985, (1, 10), (1, 10, 20, 30, 40, 50), 1.15, gallery=12612),
    "SOP": Size(60502, 11316, (2, 12), (1, 10, 100, 1000), 1.15),
}


@dataclass(frozen=True)
class Case:
    """Embeddings to rank."""

    embeddings: Tensor
    labels: Tensor
    gallery: Tensor | None
    gallery_labels: Tensor | None
    ks: tuple[int, ...]

    @property
    def searched(self) -> Tensor:
        """The (M, D) items among which the queries search."""
        return self.embeddings if self.gallery is None else self.gallery

    @property
    def depth(self) -> int:
        """The largest R, to which a ranking is needed."""
        labels = self.labels if self.gallery is None else self.gallery_labels
        return int(labels.bincount().max()) - (self.gallery is None)

    def __str__(self) -> str:
        if self.gallery is None:
            return f"{len(self.embeddings):,} x {DIM}"
        return f"{len(self.embeddings):,} queries, {len(self.gallery):,} items x {DIM}"


def main() -> None:
    """Run the measurements and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="results/benchmarks/metrics.md")
    parser.add_argument("--rounds", type=int, default=5, help="half as many for SOP")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--quick", action="store_true", help="a tenth of each size, to try it out")
    parser.add_argument("--oml-python", help="interpreter that has open-metric-learning")
    options = parser.parse_args()
    if options.quick:
        for name, size in SIZES.items():
            queries, classes, gallery = size.queries // 10, size.classes // 10, size.gallery // 10
            SIZES[name] = replace(size, queries=queries, classes=classes, gallery=gallery)
    rounds, long_rounds = options.rounds, max(1, options.rounds // 2)
    lines = ["| what | measured | against | ratio | goal |", "|---|---|---|---|---|"]
    measurements = {
        "SOP": partial(retrieval, "SOP", long_rounds, options.oml_python),
        "memory": memory,
        "growth": growth,
        "clustering": partial(clustering, rounds, long_rounds),
        "gpu": partial(gpu, rounds),
    }
    for part in options.parts:
        measurement = measurements.get(part, partial(retrieval, part, rounds, options.oml_python))
        for row in measurement():
            lines.append("| " + " | ".join(row) + " |")
            print(time.strftime("%H:%M:%S"), lines[-1], file=sys.stderr, flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    lines += [
        "",
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {device};",
        f"torch {torch.__version__} with {torch.get_num_threads()} threads, faiss "
        f"{faiss.__version__} with {faiss.omp_get_max_threads()}. Medians of {rounds} rounds in "
        f"turns, {long_rounds} for SOP; one where it says once, for memory and growth.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    with write_atomically(PROJECT_ROOT / options.output) as path:
        path.write_text(text)


def retrieval(name: str, rounds: int, oml_python: str | None) -> Iterator[list[str]]:
    """Compare the time of all metrics together with the floor and with two libraries."""
    case = make_case(SIZES[name])
    depth, title = case.depth, f"{name}, {case}"
    shape = best_shape(case, depth)
    (ours, means), (floor, _), (theirs, their_means) = in_turns(
        rounds,
        lambda: evaluate(case),
        lambda: multiply_and_rank(case, depth, shape),
        lambda: evaluate_pml(case),
    )
    yield time_row(title, ours, floor, floor_name(depth, shape), "<= 1.15")
    if name == "SOP":
        deep, quarter = max(case.ks), len(case.embeddings) // 4
        shape = best_shape(case, deep)
        deeper = timed(lambda: multiply_and_rank(case, deep, shape, stop=quarter))
        deeper *= len(case.embeddings) / quarter
        against = floor_name(deep, shape) + ", a quarter of the queries once"
        yield time_row(title, ours, deeper, against, "<= 1.15")
    yield time_row(title, ours, theirs, PML, ">= 2.3" if name == "SOP" else ">= 1.5")
    yield time_row(f"{title}: not ours but the floor", floor, theirs, PML, "")
    yield difference_row(name, means, their_means)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.pt"
        torch.save(vars(case), path)
        if name == "CUB":
            seconds = timed(lambda: evaluate(case, rank_all=True))
            yield [f"{title}, with average precision, once", f"{seconds:.2f} s", "", "", ""]
            against, limits = f"{PML}, k=None, once", {"most_mib": 12_000, "most_seconds": 400}
            theirs, mib, their_means = in_child(partial(evaluate_pml, k=None), path, **limits)
            if their_means:
                yield time_row(title, ours, theirs, f"{against}, {mib:,.0f} MiB", ">= 20")
            else:
                yield [title, f"{ours:.2f} s", f"{against}: killed at {limits}", "", ">= 20"]
        if oml_python:
            yield oml_row(title, ours, means, case, path, oml_python, rounds)


def oml_row(
    title: str, ours: float, means: dict, case: Case, path: Path, python: str, rounds: int
) -> list[str]:
    """Return the comparison with open-metric-learning, in an interpreter that has it.

    Its precision and MAP are at a fixed K; only CMC@K, our Recall@K, is the same metric.
    """
    depth, name = case.depth, "open-metric-learning"
    rounds = 1 if len(case.labels) > 50_000 else rounds
    command = [python, "-c", OML, str(path), str(depth), str(rounds)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        error = (run.stderr.splitlines() or ["killed"])[-1]
        return [title, f"{ours:.3g} s", f"{name}: {error}", "", ">= 3"]
    done = json.loads(run.stdout)
    theirs = dict(zip(case.ks, done["recall"], strict=True))
    off = max(abs(means[f"recall_at_{k}"] - recall) for k, recall in theirs.items())
    against = f"{name}, torch {done['torch']}; CMC@K, differs by {off:.0e}; precision, MAP@{depth}"
    return time_row(title, ours, statistics.median(done["seconds"]), against, ">= 3")


def memory() -> Iterator[list[str]]:
    """Compare how much memory an evaluation of the size of SOP takes beside its embeddings."""
    sides = {
        "ours": (evaluate, "<= 350 MiB"),
        "ours, memory_mib=32": (partial(evaluate, memory_mib=32), ""),
        PML: (evaluate_pml, ""),
    }
    case = make_case(SIZES["SOP"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.pt"
        torch.save(vars(case), path)
        for name, (side, goal) in sides.items():
            seconds, mib, means = in_child(side, path)
            what = f"most anonymous memory beside the embeddings, SOP, {case}, {name}"
            found = f"{mib:,.0f} MiB" if means else "killed, see watch()"
            yield [what, found, f"in {seconds:.1f} s", "", goal]


def growth() -> Iterator[list[str]]:
    """Measure the cost of a multiply-add as the gallery grows; the number of queries does not."""
    queries, first = SIZES["SOP"].queries // 4, None
    for times in (1, 2, 4):
        case = make_case(SIZES["SOP"], queries, times)
        pace = timed(lambda: evaluate(case)) / (queries * len(case.gallery) * DIM / 1e12)  # noqa: B023
        first = first or pace
        against = f"{first:.1f} s per 10^12 (size of SOP)"
        what, ours = f"growth, SOP x {times}: {case}", f"{pace:.1f} s per 10^12 multiply-adds"
        yield [what, ours, against, f"{pace / first:.2f}", "flat"]


def clustering(rounds: int, long_rounds: int) -> Iterator[list[str]]:
    """Compare k-means with faiss, including the assignment to the final centroids."""
    for name, passes in {"CUB": 20, "Cars": 20, "SOP": 2}.items():  # 20 by default
        points, k = make_case(SIZES[name]).embeddings, SIZES[name].classes
        (ours, objective), (theirs, their_objective) = in_turns(
            long_rounds if name == "SOP" else 3 * rounds,  # of a fifth of a second
            lambda: kmeans(points, k, iterations=passes, restarts=1, seed=0).objective,  # noqa: B023
            lambda: cluster_by_faiss(points, k, passes),  # noqa: B023
        )
        what = f"k-means per pass, {name}, {k:,} clusters, objective {objective:,.1f}"
        against = f"faiss, objective {their_objective:,.1f}"
        # The last assignment is a pass as well: it computes all distances.
        yield time_row(what, ours / (passes + 1), theirs / (passes + 1), against, "<= 1.25")


def gpu(rounds: int) -> Iterator[list[str]]:
    """Compare the time of all metrics with the product alone, on a GPU if there is one."""
    for name in SIZES if torch.cuda.is_available() else ():
        case = make_case(SIZES[name], device="cuda")
        shape = best_shape(case, 0)
        (ours, _), (floor, _) = in_turns(
            rounds,
            lambda: evaluate(case),  # noqa: B023
            lambda: multiply_and_rank(case, 0, shape),  # noqa: B023
        )
        against = f"product alone, in blocks of {shape[0]} x {shape[1]}"
        yield time_row(f"GPU, {name}, {case}", ours, floor, against, "")


def make_case(size: Size, queries: int = 0, times: int = 1, device: str = "cpu") -> Case:
    """Return class centres plus noise.

    Args:
        size: numbers of items and classes.
        queries: if not 0, so many items search the others instead of all one another.
        times: how many times as many items and classes.
        device: of the tensors.
    """
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    classes = size.classes * times
    spectrum = torch.arange(1, DIM + 1) ** -0.5  # few directions hold most, as after training
    centres = torch.randn(classes, DIM, generator=generator)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.from_numpy(draw_labels(rng, count, classes, *size.class_sizes))
        points = torch.randn(count, DIM, generator=generator).mul_(size.noise)
        points = F.normalize(points.add_(centres[labels]).mul_(spectrum))
        return points.to(device), labels.to(device)

    embeddings, labels = draw(size.queries * times)
    gallery = draw(size.gallery * times) if size.gallery else (None, None)
    if queries:
        gallery = embeddings[queries:], labels[queries:]
        embeddings, labels = embeddings[:queries], labels[:queries]
    return Case(embeddings, labels, *gallery, size.ks)


def draw_labels(
    rng: np.random.Generator, count: int, classes: int, smallest: int, largest: int
) -> np.ndarray:
    """Return (count,) labels in random order, of classes whose sizes spread between limits."""
    free = np.repeat(np.arange(classes), largest - smallest)  # places beyond the smallest size
    order = np.argsort(rng.random(len(free)) * rng.uniform(0.3, 1, classes)[free])
    filled = free[order[: count - classes * smallest]]
    return rng.permutation(np.concatenate([np.repeat(np.arange(classes), smallest), filled]))


def evaluate(case: Case, **options) -> dict[str, float]:
    """Return our means."""
    return retrieval_metrics(**vars(case), **options).means()


def evaluate_pml(case: Case, k: str | None = "max_bin_count") -> dict[str, float]:
    """Return the means of pytorch-metric-learning, which searches with faiss."""
    names = tuple(SAME_METRICS.values())
    calculator = AccuracyCalculator(include=names, k=k, device=torch.device("cpu"))
    arguments = (case.embeddings, case.labels, case.gallery, case.gallery_labels)
    return calculator.get_accuracy(*arguments)


def cluster_by_faiss(points: Tensor, k: int, passes: int) -> float:
    """Return the objective of faiss."""
    found = faiss.Kmeans(DIM, k, niter=passes, seed=0, min_points_per_centroid=1)
    found.train(points.numpy())
    return float(found.index.search(points.numpy(), 1)[0].sum(dtype=np.float64))


def multiply_and_rank(
    case: Case, depth: int, shape: tuple[int, int], stop: int | None = None
) -> None:
    """Do what no exact evaluation can avoid: the product, and the ``depth`` best unless 0.

    Args:
        case: what to rank.
        depth: how many of each query.
        shape: queries at once, and items that are multiplied at once, which suits the caches.
        stop: how many queries, None for all.
    """
    chunk, block = shape
    buffer = case.embeddings.new_empty(chunk, len(case.searched))
    for rows in case.embeddings[:stop].split(chunk):
        scores = buffer[: len(rows)]
        for items, out in zip(case.searched.split(block), scores.split(block, 1), strict=True):
            torch.mm(rows, items.T, out=out)
        if depth:
            scores.topk(depth, dim=1)
    if buffer.is_cuda:
        torch.cuda.synchronize()


def best_shape(case: Case, depth: int) -> tuple[int, int]:
    """Return at which shape, of at most 256 MiB, the floor is fastest for some of the queries."""
    num_items = len(case.searched)
    chunks = [chunk for chunk in (128, 256, 512, 1024, 4096) if chunk * num_items * 4 <= 2**28]
    shapes = [(chunk, block) for chunk in chunks for block in (1024, num_items)]
    seconds = in_turns(2, *(partial(multiply_and_rank, case, depth, s, stop=2048) for s in shapes))
    return min(zip(seconds, shapes, strict=True), key=lambda pair: pair[0][0])[1]


def in_turns(rounds: int, *sides: Callable) -> list[tuple[float, object]]:
    """Return median seconds and the last result of functions that take turns."""
    seconds, results = [[] for _ in sides], [None for _ in sides]
    for _ in range(rounds):
        for place, side in enumerate(sides):
            start = time.perf_counter()
            results[place] = side()
            seconds[place].append(time.perf_counter() - start)
    return list(zip(map(statistics.median, seconds), results, strict=True))


def in_child(side: Callable, path: Path, **limits: float) -> tuple[float, float, dict | None]:
    """Return seconds, memory and result of ``side`` in a fresh process; no result if killed."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(watch, side, path, **limits).result()
        except BrokenProcessPool:
            return 0.0, 0.0, None


def watch(
    side: Callable, path: Path, most_mib: float = 20_000, most_seconds: float = 1200
) -> tuple[float, float, dict]:
    """Return seconds, most anonymous memory beyond the case, and result; exit above a limit."""
    case = Case(**torch.load(path))
    done, samples, start = threading.Event(), [anonymous_mib()], time.perf_counter()

    def sample() -> None:
        while not done.wait(0.02):
            samples.append(anonymous_mib())
            if samples[-1] > most_mib or time.perf_counter() - start > most_seconds:
                os._exit(1)

    watcher = threading.Thread(target=sample)
    watcher.start()
    try:
        result = side(case)
        seconds = time.perf_counter() - start
    finally:
        done.set()
        watcher.join()
    return seconds, max(samples) - samples[0], result


def floor_name(depth: int, shape: tuple[int, int]) -> str:
    """Return what the floor does."""
    return f"floor: product in blocks of {shape[0]} x {shape[1]}, {depth} best"


def time_row(what: str, ours: float, theirs: float, against: str, goal: str) -> list[str]:
    """Return a line: times as long as a floor, or times as fast as a library."""
    ratio = theirs / ours if goal.startswith(">") else ours / theirs
    return [what, f"{ours:.3g} s", f"{theirs:.3g} s ({against})", f"{ratio:.2f}", goal]


def difference_row(name: str, ours: dict[str, float], theirs: dict[str, float]) -> list[str]:
    """Return a line that says how far two libraries' values are apart."""
    off = max(abs(ours[our] - theirs[their]) for our, their in SAME_METRICS.items())
    level = f"P@1 {ours['recall_at_1']:.1%}, MAP@R {ours['map_at_r']:.1%}"
    return [
        f"{name}, most that P@1, RP or MAP@R differ ({level})",
        f"{off:.0e}",
        PML,
        "",
        "about 0",
    ]


if __name__ == "__main__":
    main()
