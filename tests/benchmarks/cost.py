"""Where the time of the book goes: ``python -m tests.benchmarks.cost``.

Writes ``results/benchmarks/cost.md``: the hours that the rows in ``results/`` took, what a training
run of each rung spends them on, and what the two largest savings save, both sides in one run. The
runs see random images, whose content takes no part in the time.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch.optim import Adam

from dmlkit.batches import Batch, image_batches
from dmlkit.chapters import all_parameters, chapter_parameters, profile_names
from dmlkit.datasets import ImageSet
from dmlkit.evaluation import evaluate
from dmlkit.features import CachedTrunk
from dmlkit.losses import NormSoftmaxLoss
from dmlkit.models import EmbeddingHead, EmbeddingModel, make_trunk
from dmlkit.paths import PROJECT_ROOT, write_atomically
from dmlkit.provenance import commit, versions
from dmlkit.running import KEEP_MEMORY, LOCAL_RESULTS
from dmlkit.samplers import MPerClassSampler
from dmlkit.training import fit
from dmlkit.transforms import RandomResizedCropFlip, RandomView, centre_crop, first_view
from tests.benchmarks.class_subsampling import in_child, table

CHAPTER = "02_baseline_losses"
RUNGS = {"features": 2, "birds": 1, "omniglot": 2}  # entries of the learning curve to run for
CLASSES, PER_CLASS = 50, 15  # of the random images; as many are measured
FEATURES = 1280  # of mobilenet_v2
PARTS = ("waiting for input", "forward, loss", "backward, rest", "optimiser", "measuring")


def main() -> None:
    """Run all measurements and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="results/benchmarks/cost.md")
    parser.add_argument("--rounds", type=int, default=3, help="of each side of a saving, in turns")
    options = parser.parse_args()
    lines = [
        "Hours of training, and of the searches before it, by device:",
        "",
        "| profile | chapter | runs | device | training, h | search, h |",
        "| --- | --- | --- | --- | --- | --- |",
        *table(hours()),
        "",
        "What a run of NormSoftmax spends its time on:",
        "",
        f"| profile | trunk | px | s / step | {' | '.join(PARTS)} |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *table(shares()),
        "",
        "The largest savings, seconds of a step:",
        "",
        "| what | without | with | times as fast |",
        "| --- | --- | --- | --- |",
        *table(savings(options.rounds)),
        "",
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, no GPU used; "
        f"{versions()}; threads: 1, with one that prepares batches; commit {commit()}.",
        "Hours: of all rows in `results/`, of which references take none, some made beside other "
        "work; without decoding, features, SwAV and pictures. A run measures "
        f"{CLASSES * PER_CLASS} images as often as its profile says, about as many as a search "
        "does. Caching features takes one pass of the trunk for each image and view, once for all "
        "runs of a profile.",
    ]
    with write_atomically(PROJECT_ROOT / options.output) as path:
        path.write_text("\n".join(lines) + "\n")


def hours() -> Iterator[list[str]]:
    """Yield a line per profile, or part of one, and chapter of the committed results."""
    total, results = defaultdict(float), PROJECT_ROOT / "results"
    parts = [profile for name in profile_names() for profile in (name, f"{name}/*")]
    tables = [path for part in parts for path in sorted(results.glob(f"{part}/*/runs.csv"))]
    for folder in (path.parent for path in tables if not path.is_relative_to(LOCAL_RESULTS)):
        rows = pd.read_csv(folder / "runs.csv")
        searches = [json.loads(path.read_text()) for path in folder.glob("searches/*.json")]
        found = rows["seconds"].sum() / 3600, sum(s["seconds"] for s in searches) / 3600
        for name, value in zip(("training", "search"), found, strict=True):
            total[name] += value
        device = ", ".join(sorted(rows["device"].unique()))
        of_what = [folder.parent.relative_to(results).as_posix(), folder.name]
        yield [*of_what, str(len(rows)), device, *(f"{value:.2f}" for value in found)]
    yield ["all", "", "", "", f"{total['training']:.1f}", f"{total['search']:.1f}"]


def shares() -> Iterator[list[str]]:
    """Yield a line per rung: seconds of a step, and the share of each of its parts."""
    for profile, entries in RUNGS.items():
        p = all_parameters(CHAPTER, chapter_parameters(CHAPTER, profile, {}))
        every = p["MEASURE_EVERY"]
        found = spent_in_child(profile, entries * every, every)
        whole = sum(found.values())
        yield [
            *(profile, p["TRUNK"], str(p["IMAGE_SIZE"]), f"{whole / (entries * every):.3f}"),
            *(f"{found.get(part, 0) / whole:.0%}" for part in PARTS),
        ]


def savings(rounds: int) -> Iterator[list[str]]:
    """Yield a line per saving."""
    sides = {
        "freed memory is kept for the next step (`birds`)": (
            {"profile": "birds", "steps": 8, "keep_memory": False},
            {"profile": "birds", "steps": 8},
        ),
        "features of a frozen trunk are computed once (`features`)": (
            {"profile": "features", "steps": 3, "cached": False},
            {"profile": "features", "steps": 200},
        ),
    }
    for what, both in sides.items():
        seconds = [
            [sum(spent_in_child(**side).values()) / side["steps"] for side in both]
            for _ in range(rounds)
        ]
        without, given = map(statistics.median, zip(*seconds, strict=True))
        yield [what, f"{without:.3f} s", f"{given:.3f} s", f"{without / given:.1f}"]


def spent_in_child(*arguments: Any, keep_memory: bool = True, **options: Any) -> dict[str, float]:
    """Return what ``spent`` does in a fresh process, whose memory is kept as in the chapters."""
    before = {name: os.environ.pop(name, None) for name in KEEP_MEMORY}
    os.environ.update(KEEP_MEMORY if keep_memory else {})
    try:
        return in_child(partial(spent, *arguments, **options))
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def spent(
    profile: str, steps: int, measure_every: int | None = None, *, cached: bool = True
) -> dict[str, float]:
    """Train as chapter 2 does under a profile; return the seconds of each part.

    Args:
        profile: whose sizes and settings.
        steps: optimiser steps.
        measure_every: steps between measurements on as many images; None measures nothing.
        cached: whether features are cached where the profile says so; else they are computed.
    """
    torch.set_num_threads(1)
    p = all_parameters(CHAPTER, chapter_parameters(CHAPTER, profile, {}))
    views, size = p["CACHED_VIEWS"], p["IMAGE_SIZE"]
    is_cached = cached and views > 0
    if is_cached:
        store = torch.rand(CLASSES * PER_CLASS, views, FEATURES).half()
        trunk, random_view, plain_view = CachedTrunk(FEATURES), RandomView(seed=0), first_view
    else:
        shape = (CLASSES * PER_CLASS, 3, p["CACHE_SIZE"], p["CACHE_SIZE"])
        store = torch.randint(256, shape, dtype=torch.uint8)
        trunk = make_trunk(p["TRUNK"], freeze_batch_norm=p["FREEZE_BN"])
        trunk.requires_grad_(views == 0)
        random_view = RandomResizedCropFlip(size, scale=p["CROP_SCALE"], seed=0)
        plain_view = partial(centre_crop, image_size=size)
    labels = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    names = tuple(map(str, range(CLASSES)))
    images = ImageSet(store, labels, names, "random", torch.arange(len(labels)))
    model = EmbeddingModel(trunk, EmbeddingHead(trunk.out_features, p["EMBEDDING_DIM"]))
    loss_fn = NormSoftmaxLoss(CLASSES, p["EMBEDDING_DIM"])
    sampler = MPerClassSampler(
        labels, batch_size=p["BATCH_SIZE"], images_per_class=p["IMAGES_PER_CLASS"], seed=0
    )
    optimizer = Adam([*model.parameters(), *loss_fn.parameters()], lr=p["LEARNING_RATE"])
    seconds: dict[str, float] = defaultdict(float)
    device = torch.device("cpu")
    batches = _timed_batches(image_batches(images, sampler, random_view, device), seconds)
    measure = partial(evaluate, model, images, plain_view, device=device, ks=(1,))
    started = []
    optimizer.register_step_pre_hook(lambda *_: started.append(time.perf_counter()))
    optimizer.register_step_post_hook(
        lambda *_: _add(seconds, "optimiser", time.perf_counter() - started.pop())
    )
    train = partial(
        fit,
        [model, loss_fn],
        batches,
        _timed(lambda batch: loss_fn(model(batch[0]), batch[1]), seconds, "forward, loss"),
        optimizer,
    )
    train(1)  # what is done once, such as starting threads
    seconds.clear()
    validate = _timed(lambda: measure().metrics, seconds, "measuring") if measure_every else None
    fitted = train(steps, measure_every=measure_every or steps, validate=validate)
    seconds["backward, rest"] = fitted.seconds - sum(seconds.values())
    return seconds


def _add(seconds: dict[str, float], part: str, value: float) -> None:
    seconds[part] += value


def _timed(compute: Callable, seconds: dict[str, float], part: str) -> Callable:
    """Return the function, whose time is added to a part."""

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        found = compute(*arguments)
        _add(seconds, part, time.perf_counter() - start)
        return found

    return timed


def _timed_batches(batches: Iterator[Batch], seconds: dict[str, float]) -> Iterator[Batch]:
    """Yield the batches; the time of waiting for them is added to the input."""
    follow = _timed(lambda: next(batches), seconds, "waiting for input")
    while True:
        yield follow()


if __name__ == "__main__":
    main()
