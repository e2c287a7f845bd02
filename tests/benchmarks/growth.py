"""How time and memory grow with a data set: ``python -m tests.benchmarks.growth``.

Writes ``results/benchmarks/growth.md`` and ``growth.png``: each stage from files to a table, at a
quarter, a half and all of the images and classes of Stanford Online Products, which are made up
here. Each size runs in a process of its own, the smallest a second time, to see what chance does.
"""

import argparse
import ctypes
import gc
import io
import math
import os
import platform
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, TypeVar

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim import Adam

from dmlkit.batches import image_batches
from dmlkit.chapters import chapter_source, parameter_defaults, read_notebook
from dmlkit.datasets import ImageSet, Splits, list_images, load, read_images, split_classes
from dmlkit.datasets.decoding import decoded_images, fingerprint
from dmlkit.evaluation import Evaluation, embed, evaluate_embeddings
from dmlkit.intervals import paired_difference
from dmlkit.losses import MultiSimilarityLoss, NormSoftmaxLoss
from dmlkit.metrics import (
    Retrieval,
    binarise,
    clustering_metrics,
    code_metrics,
    kmeans,
    retrieval_metrics,
)
from dmlkit.miners import multi_similarity_miner
from dmlkit.models import EmbeddingHead, EmbeddingModel, make_trunk
from dmlkit.paths import PROJECT_ROOT, write_atomically
from dmlkit.plots import nearest_neighbours, set_style, spread_queries
from dmlkit.provenance import commit, versions
from dmlkit.results import ChapterResults
from dmlkit.running import KEEP_MEMORY
from dmlkit.samplers import MPerClassSampler
from dmlkit.seeding import set_seed
from dmlkit.tables import summarise
from dmlkit.training import Fit, fit
from dmlkit.transforms import RandomResizedCropFlip, centre_crop
from tests.official_trees import OFFICIAL

WHOLE = OFFICIAL["stanford_online_products"]  # images and classes of each part
WARM_UP = 0.02  # share of it that each process runs through first, for what is done only once
PIXELS, CELLS, NOISE = 32, 4, 90.0  # side of a picture; squares of colour along it; grey levels
DIM, STEPS, BATCH, PER_CLASS, BATCHES = 512, 100, 64, 4, 1000
KS = (1, 10, 100, 1000)
SPREAD = 1.15  # of made-up embeddings around their class
FEWER = 16  # of so many queries one is asked where all would take long
CHAPTER, METHODS, SEEDS = "02_baseline_losses", ("norm_softmax", "multi_similarity"), (0, 1, 2)
LEAST_SECONDS, LEAST_MIB = 0.2, 16.0  # below them at full size a line says nothing
TOLERANCE = 0.2  # of an exponent, above theory
Result = TypeVar("Result")


class Cost(NamedTuple):
    """CPU seconds of a stage, and MiB of anonymous memory at most beyond those before it."""

    seconds: float
    mib: float


class Stage(NamedTuple):
    """Which part of the work a stage belongs to, and exponents of growth by theory, at most."""

    part: str
    seconds: int
    mib: int


# Classes grow with the images. What sorts counts as linear: the logarithm adds 0.1 here.
STAGES = {
    "list class folders": Stage("data", 1, 1),
    "list by list files": Stage("data", 1, 1),
    "fingerprint": Stage("data", 1, 1),
    "fingerprint again": Stage("data", 1, 1),
    "decode": Stage("data", 1, 0),
    "load again": Stage("data", 1, 1),
    "split classes": Stage("data", 1, 1),
    f"sampler, {BATCHES:,} batches": Stage("training", 0, 1),
    f"Multi-Similarity, {STEPS} steps": Stage("training", 0, 1),
    f"NormSoftmax, {STEPS} steps": Stage("training", 1, 1),
    "embed the test set": Stage("testing", 1, 1),
    "R@K, RP, MAP@R": Stage("testing", 2, 1),
    f"R@K, crowded, 1/{FEWER}": Stage("testing", 2, 1),
    f"mAP, 1/{FEWER}": Stage("testing", 2, 1),
    f"binary codes, 1/{FEWER}": Stage("testing", 2, 1),
    "k-means, 2 passes": Stage("testing", 2, 1),
    "k-means, NMI and AMI": Stage("testing", 2, 1),
    "save a row": Stage("results", 1, 1),
    "read 6 rows": Stage("results", 1, 1),
    "table of 6 intervals": Stage("results", 1, 1),
    "paired difference": Stage("results", 1, 1),
    "picture of neighbours": Stage("results", 0, 1),
}
Costs = dict[str, Cost]  # by stage
# What was found to make a stage grow faster, said where it does.
REASONS = {
    ("list by list files", "mib"): "the first of its memory had been freed by the stage before; "
    "from size to size each image adds as much",
}


def main() -> None:
    """Measure all sizes, and write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="results/benchmarks/growth.md")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.25, 0.5, 1.0])
    options = parser.parse_args()
    shares = sorted(options.shares)
    os.environ |= KEEP_MEMORY
    found = {share: in_own_process(share) for share in shares}
    write(found, in_own_process(shares[0]), PROJECT_ROOT / options.output)


def in_own_process(share: float) -> Costs:
    """Make files, and return what each stage costs on them; the two have a process each."""
    with tempfile.TemporaryDirectory() as folder:
        for do in (make_trees, run_stages):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                costs = pool.submit(do, Path(folder), share).result()
    for stage, cost in costs.items():
        print(f"{share:g} {stage}: {cost.seconds:.3f} s, {cost.mib:.1f} MiB", flush=True)
    return costs


def make_trees(folder: Path, share: float) -> None:
    """Make a small tree of images for warming up, and one of ``share`` of the whole size."""
    for name, size in {"warm_up": WARM_UP, "tree": share}.items():
        make_tree(folder / name, size)


def make_tree(root: Path, share: float) -> None:
    """Make images with a pattern of colours per class, in folders by class and in list files."""
    random, first = np.random.default_rng(0), 0
    for part, (images, classes) in counts(share).items():
        # Two to about twelve of each class, as there.
        chances = np.full(classes, 1 / classes)
        sizes = 2 + random.multinomial(images - 2 * classes, chances)
        lines = []
        for label, size in enumerate(sizes, start=first):
            (root / f"{label:05}").mkdir(parents=True)
            pattern = random.integers(256, size=(CELLS, CELLS, 3))
            pattern = pattern.repeat(PIXELS // CELLS, axis=0).repeat(PIXELS // CELLS, axis=1)
            for number in range(size):
                pixels = pattern + NOISE * random.standard_normal(pattern.shape, dtype=np.float32)
                name = f"{label:05}/{number}.jpg"
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name, quality=90)
                lines.append(f"{name} {label}\n")
        (root / f"{part}.txt").write_text("".join(lines))
        first += classes


def counts(share: float) -> dict[str, tuple[int, int]]:
    """Return images and classes of each part at ``share`` of the whole size."""
    return {part: tuple(round(share * number) for number in WHOLE[part]) for part in WHOLE}


def run_stages(folder: Path, share: float) -> Costs:
    """Run all stages on the small tree, then on the other, and return what these cost."""
    torch.set_num_threads(1)
    set_style()
    with redirect_stdout(io.StringIO()):  # no progress bars
        for name in ("warm_up", "tree"):
            os.environ["DMLKIT_CACHE"] = str(folder / f"{name}_cache")
            costs = run_on(folder / name, folder / f"{name}_results")
    return costs


def run_on(root: Path, results_dir: Path) -> Costs:
    """Run all stages on the images below ``root``."""
    costs: Costs = {}
    names = iter(STAGES)

    def stage(do: Callable[..., Result], *arguments, **options) -> Result:
        """Do what the next stage does, keep what it costs and return what it returns."""
        result, costs[next(names)] = measured(partial(do, *arguments, **options))
        return result

    stage(list_images, "class_folder", root)
    listing = stage(list_images, "list_files", root)
    stage(fingerprint, listing)
    content = stage(fingerprint, listing)
    stage(decoded_images, listing, content, PIXELS)
    stage(load, "list_files", root, image_size=PIXELS, protocol="random")
    everything = read_images(listing, PIXELS)
    split = partial(split_classes, everything, listing.num_train, protocol="random")
    splits = stage(split, seed=0)

    stage(draw_batches, splits.train)
    stage(train, splits, MultiSimilarityLoss(), multi_similarity_miner)
    make_loss = partial(NormSoftmaxLoss, splits.train.num_classes, DIM)
    model, fitted = stage(lambda: train(splits, make_loss()))

    plain = partial(centre_crop, image_size=PIXELS)
    test, labels = splits.test, splits.test.labels
    embedded = stage(embed, model, test, plain, device=torch.device("cpu"))
    asked = torch.arange(len(labels)) % FEWER == 0
    sides = {"labels": labels[asked], "gallery_labels": labels[~asked], "ks": KS}
    trained = spread_out(labels)
    found = stage(evaluate_embeddings, trained, labels, ks=KS)
    del trained
    few, many = found.embeddings[asked], found.embeddings[~asked]
    stage(retrieval_metrics, embedded[asked], gallery=embedded[~asked], **sides)
    stage(retrieval_metrics, few, gallery=many, rank_all=True, **sides)
    few, many = binarise(few), binarise(many)
    stage(code_metrics, few, gallery=many, **sides)
    del few, many, embedded
    stage(kmeans, found.embeddings, test.num_classes, iterations=1)
    stage(clustering_metrics, found.embeddings, labels, iterations=1, restarts=1)

    parameters = {"RESULTS_DIR": str(results_dir), "DATASET": "list_files", "SEEDS": [*SEEDS]}
    # As in a kernel that has executed the chapter, which finds the fingerprint of its code once.
    chapter = read_notebook(chapter_source(CHAPTER))
    parameters["In"] = [cell.source for cell in chapter.cells if cell.cell_type == "code"]
    results = ChapterResults(CHAPTER, parameter_defaults(CHAPTER) | parameters)
    runs = {
        (method, seed): results.run(method, seed, content) for method in METHODS for seed in SEEDS
    }
    stage(results.save, runs[METHODS[0], 0], test.class_names, found, fit=fitted)
    for (_, seed), run in [*runs.items()][1:]:
        other = split(seed=seed).test
        results.save(run, other.class_names, made_up(other.labels, found), fit=fitted)
    rows, by_class = stage(
        lambda: (
            results.load([*runs.values()]),
            [results.by_class(r.run_id) for r in runs.values()],
        )
    )
    of_run = {run.run_id: scores for run, scores in zip(runs.values(), by_class, strict=True)}
    stage(summarise, rows, of_run, [*METHODS])
    stage(paired_difference, by_class[: len(SEEDS)], by_class[len(SEEDS) :], "map_at_r")

    def picture() -> None:
        recall = found.retrieval.per_query["recall_at_1"].numpy()
        shown = spread_queries(recall, 6)
        neighbours, queries = found.retrieval.neighbours[shown], found.retrieval.queries[shown]
        figure = nearest_neighbours(test, neighbours, queries)
        results.save_figure("neighbours", figure, keep_local=True)
        plt.close(figure)

    stage(picture)
    return costs


def draw_batches(image_set: ImageSet) -> None:
    """Make a sampler and draw batches."""
    sampler = MPerClassSampler(
        image_set.labels, batch_size=BATCH, images_per_class=PER_CLASS, seed=0
    )
    for _ in islice(sampler, BATCHES):
        pass


def train(splits: Splits, loss: nn.Module, miner: Callable | None = None) -> tuple[nn.Module, Fit]:
    """Train a small network for a fixed number of steps."""
    set_seed(0)
    trunk = make_trunk("small_convnet")
    model = EmbeddingModel(trunk, EmbeddingHead(trunk.out_features, DIM))
    labels = splits.train.labels
    sampler = MPerClassSampler(labels, batch_size=BATCH, images_per_class=PER_CLASS, seed=0)
    augment = RandomResizedCropFlip(PIXELS, scale=(0.5, 1.0), seed=0)
    batches = image_batches(splits.train, sampler, augment, torch.device("cpu"))
    optimizer = Adam([*model.parameters(), *loss.parameters()], lr=0.003)

    def compute_loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        images, of_batch = batch
        embeddings = model(images)
        return loss(embeddings, of_batch, pairs=miner and miner(embeddings, of_batch))

    modules = [model, loss] if [*loss.parameters()] else [model]
    return model, fit(modules, batches, compute_loss, optimizer, STEPS)


def spread_out(labels: Tensor) -> Tensor:
    """Return embeddings (N, D) as those of a trained network, with Recall@1 of 65 to 75 %."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(int(labels.max()) + 1, DIM, generator=generator)[labels]
    points += SPREAD * torch.randn(points.shape, generator=generator)
    return normalize(points * torch.arange(1, DIM + 1) ** -0.5)  # few directions hold most


def made_up(labels: Tensor, like: Evaluation) -> Evaluation:
    """Return results of chance for queries of the classes ``labels`` (Q,)."""
    per_query = {name: torch.rand(len(labels)) for name in like.retrieval.per_query}
    every = torch.arange(len(labels))
    retrieval = Retrieval(every, labels, per_query, 0, every[:, None])
    return Evaluation(torch.zeros(1, DIM), retrieval)


def measured(do: Callable[[], Result]) -> tuple[Result, Cost]:
    """Return what ``do`` returns, and what it costs."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would hide what is taken now
    before, done = anonymous_mib(), threading.Event()
    most, watching = [before], []

    def watch() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], anonymous_mib())
        watching.append(time.thread_time())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = cpu_seconds()
    try:
        result = do()
    finally:
        done.set()
        watcher.join()
    seconds = cpu_seconds() - start - watching[0]
    return result, Cost(seconds, max(most[0], anonymous_mib()) - before)


def cpu_seconds() -> float:
    """Return what this process and its children have used of all processors."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(times.ru_utime + times.ru_stime for times in used)


def anonymous_mib() -> float:
    """Return the memory of this process and its children that no file backs."""
    pids = ["self"]
    for task in Path("/proc/self/task").iterdir():
        try:
            pids += (task / "children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            continue
    kib = 0
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        kib += sum(
            int(line.split()[1]) for line in status.split("\n") if line.startswith("RssAnon")
        )
    return kib / 1024


def exponent(values: dict[float, float]) -> float:
    """Return the least-squares slope of the logarithm of a value against that of the size."""
    logs = [np.log(list(side)) for side in (values, values.values())]
    return float(np.polyfit(*logs, 1)[0])


def write(found: dict[float, Costs], again: Costs, output: Path) -> None:
    """Write the table and the figure.

    Args:
        found: by share of the whole size.
        again: those of the smallest, from another process.
        output: of the table; the figure is beside it.
    """
    figure = output.with_suffix(".png")
    text = "\n".join([*table(found), "", *circumstances(found, again, figure.name)]) + "\n"
    print(text)
    with write_atomically(output) as path:
        path.write_text(text)
    set_style()
    draw(found).savefig(drawn := io.BytesIO(), format="png", dpi=80)
    few_colours = Image.open(drawn).convert("RGB").quantize(96)
    with write_atomically(figure) as path:
        few_colours.save(path, optimize=True)


def table(found: dict[float, Costs]) -> list[str]:
    """Return a line per stage: costs, exponents beside those of theory, and whether they exceed."""
    head = ["stage"]
    for unit in ("CPU s", "MiB"):
        head += [f"{unit} x {share:g}" for share in found] + ["exponent", "theory", "exceeds"]
    lines = [head, ["---"] * len(head)]
    for name in STAGES:
        line = [name]
        for kind in Cost._fields:
            values = of_stage(found, name, kind)
            shown = (f"{value:,.{2 if value < 10 else 0}f}" for value in values.values())
            grown, verdict = judged(name, kind, values)
            line += [*shown, grown, str(getattr(STAGES[name], kind)), verdict]
        lines.append(line)
    return ["| " + " | ".join(line) + " |" for line in lines]


def of_stage(found: dict[float, Costs], name: str, kind: str) -> dict[float, float]:
    """Return ``seconds`` or ``mib`` of a stage by share of the whole size."""
    return {share: getattr(costs[name], kind) for share, costs in found.items()}


def judged(name: str, kind: str, values: dict[float, float]) -> tuple[str, str]:
    """Return the exponent of a stage and whether it exceeds theory, or that it is too small."""
    if is_small(kind, values):
        return "–", "too short" if kind == "seconds" else "too small"
    grown = exponent(values)
    exceeds = grown > getattr(STAGES[name], kind) + TOLERANCE
    return f"{grown:.2f}", "**yes**" if exceeds else "no"


def is_small(kind: str, values: dict[float, float]) -> bool:
    """Whether a stage costs so little at full size that how it grows cannot be told."""
    return values[max(values)] < (LEAST_SECONDS if kind == "seconds" else LEAST_MIB)


def circumstances(found: dict[float, Costs], again: Costs, figure: str) -> list[str]:
    """Return what stands below the table."""
    shares = list(found)
    sizes = ", ".join(
        f"{sum(images for images, _ in counts(share).values()):,} images of "
        f"{sum(classes for _, classes in counts(share).values()):,} classes"
        for share in shares
    )
    exceeding = [
        (name, kind)
        for kind in Cost._fields
        for name in STAGES
        if judged(name, kind, of_stage(found, name, kind))[1] == "**yes**"
    ]
    verdict = "No stage grows faster than theory says."
    if exceeding:
        named = (
            f"{name} ({'time' if kind == 'seconds' else 'memory'})" for name, kind in exceeding
        )
        verdict = f"Faster than theory says grow: {'; '.join(named)}."
    reasons: dict[str, list[str]] = {}
    for case in exceeding:
        reasons.setdefault(REASONS.get(case, "not known"), []).append(case[0])
    why = (f"Why {' and '.join(names)}: {reason}." for reason, names in reasons.items())
    spreads = [spread_of(found[shares[0]], again, kind) for kind in Cost._fields]
    one_pass = found[shares[-1]]["k-means, 2 passes"].seconds / 2 / 3600
    return [
        f"![CPU seconds and anonymous memory of each stage against the number of images, on "
        f"logarithmic axes, with slopes 1 and 2 beside. {verdict}]({figure})",
        "",
        f"**{verdict}** Sizes: {sizes}; half of the classes train, half test. " + " ".join(why),
        "",
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, no GPU used; "
        f"{versions()}; threads: 1, with one that prepares batches and {os.cpu_count()} that read "
        f"and decode; commit {commit()}; freed memory kept within a stage, as in the chapters.",
        f"Images are JPEGs of {PIXELS} px, {CELLS} x {CELLS} colours per class plus noise, just "
        "written and so in the memory of the disk; pixels enter all the same way, so a larger "
        "side would change the factor and not the exponent. "
        f"Trunk: small_convnet; embeddings: {DIM}; batches of {BATCH}. Each size has a process of "
        f"its own, which first runs through all stages with {WARM_UP:g} of the whole size. CPU "
        "seconds are user and system time of the process and its children, not the clock, as the "
        "machine is shared. MiB: most RssAnon, asked every 20 ms, beyond that before the stage; "
        "the cache of images is a file and so not in it.",
        "Exponent: slope of log cost against log images, by least squares; with these three sizes "
        "that is log(cost at full size / cost at the smallest) / log 4. Theory is an upper "
        "bound: fixed costs lower a slope. Exceeds: more than "
        f"{TOLERANCE} above it, that is {4**TOLERANCE - 1:.0%} more at full size than "
        "theory has from the smallest. A second process of the smallest size differed by "
        f"{' and by '.join(spreads)} (stages large enough to count). Below {LEAST_SECONDS} s "
        f"or {LEAST_MIB:g} MiB at full size a line says nothing.",
        "Theory: reading, splitting, embedding and results by class take each image or class once; "
        "a step of Multi-Similarity sees its batch alone, one of NormSoftmax all classes besides; "
        "ranking compares all pairs of images; k-means compares images with as many centroids as "
        "classes, and AMI each class with each cluster. Memory: a few numbers for each image "
        "or class, an embedding of it in testing, five to seven times a weight per class in "
        "NormSoftmax; similarities are held a block at a time.",
        "R@K, mAP, binary codes and k-means are those of made-up embeddings with Recall@1 of 65 to "
        "75 %. *Crowded* are those of the network after its few steps, whose similarities lie so "
        "close together that many queries are ranked anew, exactly.",
        "Left out: k-means of the chapters has 20 iterations of 5 starts and here 1 of 1, up "
        f"to 105 passes, {105 * one_pass:.1f} CPU hours at full size by the table (one start is "
        f"enough there, see `clustering_metrics`). Lines with 1/{FEWER} ask one query in {FEWER}; "
        "all of them take as many times as long. Searches repeat the training; maps of embeddings "
        "show ten classes whatever the size. Rows beside the first one are made up.",
    ]


def spread_of(first: Costs, again: Costs, kind: str) -> str:
    """Return by how much two runs of one size differ."""
    least = (LEAST_SECONDS if kind == "seconds" else LEAST_MIB) / 4
    pairs = {name: (getattr(first[name], kind), getattr(again[name], kind)) for name in STAGES}
    ratios = {name: max(p) / min(p) - 1 for name, p in pairs.items() if min(p) >= least}
    what = "CPU time" if kind == "seconds" else "memory"
    if not ratios:
        return f"nothing large enough in {what}"
    most = max(ratios, key=ratios.get)
    middle = np.median([*ratios.values()])
    return f"{middle:.0%} (median) to {ratios[most]:.0%} (most: {most}) in {what}"


def draw(found: dict[float, Costs]) -> Figure:
    """Draw costs against images, a panel for time and one for memory, a line per stage."""
    images = [sum(count for count, _ in counts(share).values()) for share in found]
    parts = dict.fromkeys(stage.part for stage in STAGES.values())
    palette = sns.color_palette("colorblind")
    colours = dict(zip(parts, [palette[number] for number in (0, 1, 2, 4)], strict=True))
    figure, axes = plt.subplots(1, 2, figsize=(13, 6.8))
    titles = {"seconds": "CPU seconds", "mib": "most anonymous memory, MiB"}
    for axis, (kind, title) in zip(axes, titles.items(), strict=True):
        lines = {name: of_stage(found, name, kind) for name in STAGES}
        lines = {name: line for name, line in lines.items() if not is_small(kind, line)}
        draw_panel(axis, images, lines, kind, colours)
        axis.set_title(title, loc="left")
    keys = [
        Line2D([], [], color=colour, marker="o", label=part) for part, colour in colours.items()
    ]
    for style, slope in ((":", "as the images"), ("--", "as their square")):
        keys.append(Line2D([], [], color="0.6", linestyle=style, linewidth=0.8, label=slope))
    title = f"behind a name its exponent, bold where more than {TOLERANCE} above that of theory"
    figure.legend(
        handles=keys, loc="outside lower center", ncols=len(keys), fontsize=10, title=title
    )
    return figure


def draw_panel(
    axis: plt.Axes, images: list[int], lines: dict[str, dict], kind: str, colours: dict[str, tuple]
) -> None:
    """Draw a line per stage, each with its name and exponent beside its end."""
    small = (LEAST_SECONDS if kind == "seconds" else LEAST_MIB) / 32
    every = [max(value, small) for line in lines.values() for value in line.values()]
    low, high = min(every) / 1.4, max(every) * 1.4
    axis.set(xscale="log", yscale="log", xlabel="images", ylim=(low, high))
    axis.set_xlim(images[0] / 1.1, images[-1] * 1.1)
    axis.set_xticks(images, [f"{count:,}" for count in images])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter("{x:,g}")
    axis.grid(visible=False, axis="x")
    ends = np.array([images[0], images[-1]])
    for slope, style in ((1, ":"), (2, "--")):
        for start in np.geomspace(low / 4**slope, high, 4 + slope):
            slanted = start * (ends / ends[0]) ** slope
            axis.plot(ends, slanted, style, color="0.6", linewidth=0.6, zorder=0)
    heights = apart({name: math.log(line[max(line)]) for name, line in lines.items()}, low, high)
    for number, (name, line) in enumerate(lines.items()):
        colour, values = colours[STAGES[name].part], [max(value, small) for value in line.values()]
        axis.plot(images, values, color=colour, marker="osv^D*Xp"[number % 8], markersize=5)
        grown, verdict = judged(name, kind, line)
        exceeds = verdict not in ("no", "")
        said = f"{name}  {grown}" + f" > {getattr(STAGES[name], kind)}" * exceeds
        axis.annotate(
            said,
            (images[-1], values[-1]),
            (images[-1] * 1.22, math.exp(heights[name])),
            color=colour,
            fontsize=10,
            fontweight="bold" if exceeds else "normal",
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.7,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )


def apart(wanted: dict[str, float], low: float, high: float) -> dict[str, float]:
    """Return heights near the ``wanted`` ones, apart enough for a line of text each."""
    names = sorted(wanted, key=wanted.get)
    gap = math.log(high / low) / 27
    places = gap * np.arange(len(names))
    heights = np.array([wanted[name] for name in names]) - places
    # Moved up as little as needed, and down; between the two the lines are as far apart.
    up, down = np.maximum.accumulate(heights), np.minimum.accumulate(heights[::-1])[::-1]
    between = ((up + down) / 2 + places).clip(math.log(low) + places + gap / 2)
    return dict(zip(names, between.tolist(), strict=True))


if __name__ == "__main__":
    main()
