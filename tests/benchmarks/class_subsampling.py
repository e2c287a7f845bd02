"""What class subsampling saves, and costs: ``python -m tests.benchmarks.class_subsampling``.

Writes ``results/benchmarks/class_subsampling.md``. First the time and memory of a training step of
NormSoftmax with all classes and with some, then how far the loss with some is from that with all.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlkit.losses import NormSoftmaxLoss, SampledNormSoftmaxLoss
from dmlkit.paths import PROJECT_ROOT, write_atomically
from dmlkit.provenance import commit, versions
from tests.benchmarks.losses import in_long_turns
from tests.benchmarks.metrics import DIM

BATCH, PER_CLASS = 75, 5
SIZES = (11_318, 100_000, 1_000_000)  # training classes of SOP; of larger shops
SUBSETS = (1_000, 10_000)  # classes of a step
SHARES = (0.01, 0.05, 0.1, 0.25, 0.5)  # of the classes, where the loss is compared
ALL = 0  # stands for a subset of all classes
# Arrays of the size of the normalised weights at the peak of a step, in the gradient of their
# division by their lengths: the weights, the gradient that arrives, that of the dividend, and four
# factors of that of the divisor, -g * ((w / n) / n), before it is summed over dimensions.
ARRAYS_AT_PEAK = 7
SPARE = 2**30  # bytes to leave free
# How far proxies and embeddings lie from the centre of their class, as tangents of the angle: of
# 11,318 proxies the own one is the nearest, at a cosine of about 0.7, yet the loss is not over.
PROXY_NOISE, EMBEDDING_NOISE = 0.3, 1.0


def main() -> None:
    """Run all measurements and write both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="results/benchmarks/class_subsampling.md")
    parser.add_argument("--seconds", type=float, default=30, help="for each line, 3 to 99 steps")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="classes")
    parser.add_argument("--subsets", type=int, nargs="+", default=SUBSETS, help="classes of a step")
    parser.add_argument("--draws", type=int, default=500, help="of classes, for each difference")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = ["| classes | of a step | time | as fast as all | memory, expected | measured |"]
    lines += ["|---|---|---|---|---|---|"]
    for size in options.sizes:
        lines += table(steps(size, options.subsets, options.seconds, options.threads))
    header = "classes of a step | loss - full | the same, corrected | cosine of gradients"
    lines += ["", f"| proxies | full loss | {header} | the same, corrected |"]
    lines += ["|---|---|---|---|---|---|---|"]
    lines += table(differences(options.sizes[0], options.draws))
    lines += [
        "",
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, no GPU used;",
        f"{versions()}; threads: {options.threads}; commit {commit()}.",
        f"A step is loss, gradients and plain SGD on the proxies, for {BATCH} embeddings of "
        f"{BATCH // PER_CLASS} classes in {DIM} dimensions; with some classes the gradient of the "
        f"proxies is sparse. Times: medians of 3 to 99 steps in {options.seconds:g} s, each line "
        "in a process of its own.",
        "Memory: most resident memory (VmHWM) of two steps in a fresh process, beyond what it had "
        f"before the loss was made. Expected from sizes: {ARRAYS_AT_PEAK} arrays of 4 C D bytes "
        f"with all classes; one of them and {ARRAYS_AT_PEAK} of 4 S D bytes with S.",
        f"Differences: of {options.sizes[0]:,} classes, at equal proxies and embeddings, mean of "
        f"{options.draws} draws +- its standard error; the gradients are those of the embeddings. "
        "*Made up, apart*: nothing was trained; proxies and embeddings lie around centres drawn at "
        "random, each embedding nearest to its own proxy, as after training.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    with write_atomically(PROJECT_ROOT / options.output) as path:
        path.write_text(text)


def table(rows: Iterator[list[str]]) -> Iterator[str]:
    """Yield rows as lines of a table; standard error shows them as they come."""
    for row in rows:
        line = "| " + " | ".join(row) + " |"
        print(time.strftime("%H:%M:%S"), line, file=sys.stderr, flush=True)
        yield line


# --- Time and memory of a step


def two_digits(value: float) -> float:
    """Return ``value`` rounded to two significant digits."""
    return float(f"{value:.2g}")


def steps(size: int, subsets: list[int], seconds: float, threads: int) -> Iterator[list[str]]:
    """Compare steps over all of ``size`` classes and over subsets of them, if memory suffices."""
    subsets = [ALL, *(subset for subset in subsets if subset < size)]
    fitting = [s for s in subsets if expected_bytes(size, s) + SPARE <= available_bytes()]
    # Each in a process of its own: after a step over all classes gigabytes are being given back.
    times = {s: in_child(seconds_of_step, size, s, seconds, threads) for s in fitting}
    for subset in subsets:
        row, expected = (
            [f"{size:,}", f"{subset:,}" if subset else "all"],
            expected_bytes(size, subset),
        )
        if subset in times:
            peak = in_child(peak_of_steps, size, subset, threads)
            ratio = f"{two_digits(times[ALL] / times[subset]):,g}" if ALL in times else ""
            yield [*row, f"{1e3 * times[subset]:,.0f} ms", ratio, mib(expected), mib(peak)]
        else:
            yield [*row, f"not run: {mib(available_bytes())} available", "", mib(expected), ""]


def expected_bytes(size: int, subset: int) -> int:
    """Return the most memory that a step should need, without logits and other small arrays."""
    weights = 4 * size * DIM
    return ARRAYS_AT_PEAK * 4 * subset * DIM + weights if subset else ARRAYS_AT_PEAK * weights


def available_bytes() -> int:
    """Return how much memory can still be had without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def in_child(function: Callable, *arguments: object) -> object:
    """Return what a function returns in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def seconds_of_step(size: int, subset: int, seconds: float, threads: int) -> float:
    """Return the median seconds of a step over a subset of the classes."""
    torch.set_num_threads(threads)
    loss = make_loss(size, subset)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    return in_long_turns([partial(step, loss, optimizer, *make_batch(size))], seconds)[0]


def peak_of_steps(size: int, subset: int, threads: int) -> int:
    """Return the most memory of two steps, in bytes beyond what there was before the loss."""
    torch.set_num_threads(threads)
    batch = make_batch(size)
    take_steps(2 * BATCH, subset and BATCH, make_batch(2 * BATCH))  # loads code that all steps use
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that from here on
    before = resident_bytes("VmRSS")
    take_steps(size, subset, batch)
    return resident_bytes("VmHWM") - before


def take_steps(size: int, subset: int, batch: tuple[Tensor, Tensor]) -> None:
    """Make a loss and take two steps."""
    loss = make_loss(size, subset)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    for _ in range(2):
        step(loss, optimizer, *batch)


def step(
    loss: nn.Module, optimizer: torch.optim.Optimizer, embeddings: Tensor, labels: Tensor
) -> None:
    """Compute a loss and its gradients, and move the proxies."""
    embeddings.grad = None
    optimizer.zero_grad()
    loss(embeddings, labels).backward()
    optimizer.step()


def resident_bytes(name: str) -> int:
    """Return a memory size of this process, VmRSS (now) or VmHWM (at most)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def make_loss(size: int, subset: int, **settings: bool) -> nn.Module:
    """Return a loss over all classes, or one over a subset with a sparse gradient."""
    if subset == ALL:
        return NormSoftmaxLoss(size, DIM)
    return SampledNormSoftmaxLoss(size, DIM, num_sampled=subset, sparse=True, **settings)


def make_batch(size: int) -> tuple[Tensor, Tensor]:
    """Return random unit embeddings (B, D) that want a gradient, and labels (B,)."""
    generator = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(BATCH, DIM, generator=generator)).requires_grad_()
    return embeddings, draw_labels(size, generator)


def draw_labels(size: int, generator: torch.Generator) -> Tensor:
    """Return labels (B,) of random distinct classes, each several times."""
    classes = torch.randperm(size, generator=generator)[: BATCH // PER_CLASS]
    return classes.repeat_interleave(PER_CLASS)


def mib(size: float) -> str:
    """Return a number of bytes in MiB."""
    return f"{size / 2**20:,.0f} MiB"


# --- How far the loss over a subset is from that over all classes


def differences(size: int, draws: int) -> Iterator[list[str]]:
    """Compare loss and gradient over random subsets with those over all classes."""
    for name, make in {"at random": random_scene, "made up, apart": separated_scene}.items():
        proxies, embeddings, labels = make(size)
        full, gradient = loss_and_gradient(make_loss(1, ALL), proxies, embeddings, labels)
        for share in SHARES:
            subset = max(2, round(share * size))
            shifts, cosines = [], []
            for corrected in (False, True):
                loss = make_loss(1, subset, corrected=corrected)
                torch.manual_seed(0)  # the same draws with and without correction
                values, gradients = zip(
                    *(loss_and_gradient(loss, proxies, embeddings, labels) for _ in range(draws)),
                    strict=True,
                )
                shifts.append(with_error(torch.stack(values) - full))
                cosine = F.cosine_similarity(torch.stack(gradients), gradient)
                cosines.append(f"{cosine.mean():.4f}")
            yield [name, f"{full:.4f}", f"{subset:,} ({share:.0%})", *shifts, *cosines]


def random_scene(size: int) -> tuple[nn.Parameter, Tensor, Tensor]:
    """Return proxies as they start, random embeddings and labels."""
    torch.manual_seed(0)
    return make_loss(size, ALL).proxies, *make_batch(size)


def separated_scene(size: int) -> tuple[nn.Parameter, Tensor, Tensor]:
    """Return proxies and embeddings near the centres of their classes, and labels."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, DIM + 1) ** -0.5  # few directions hold most, as after training

    def directions(count: int) -> Tensor:
        return F.normalize(torch.randn(count, DIM, generator=generator) * spectrum)

    centres, labels = directions(size), draw_labels(size, generator)
    proxies = F.normalize(centres + PROXY_NOISE * directions(size))
    embeddings = F.normalize(centres[labels] + EMBEDDING_NOISE * directions(BATCH))
    return nn.Parameter(proxies), embeddings.requires_grad_(), labels


def loss_and_gradient(
    loss: nn.Module, proxies: nn.Parameter, embeddings: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the loss with these proxies and the gradient of the embeddings (B D,)."""
    loss.proxies = proxies
    value = loss(embeddings, labels)
    return value.detach().double(), torch.autograd.grad(value, embeddings)[0].flatten()


def with_error(samples: Tensor) -> str:
    """Return a mean and its standard error."""
    return f"{samples.mean():+.4f} +- {samples.std() / len(samples) ** 0.5:.4f}"


if __name__ == "__main__":
    main()
