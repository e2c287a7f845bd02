"""What the ranking task costs a step: ``python -m tests.benchmarks.ranking_step``.

Writes ``results/benchmarks/ranking_step.md``: steps with and without the task, in turns, and the
time that making the views takes, apart. Expected is how many more images the trunk sees. On a CPU
set ``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184``, as the runner does for its kernels:
else the larger step pays for clearing its memory anew.
"""

import argparse
import os
import platform
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from dmlkit.losses import MultiSimilarityLoss, SelfSupervisedRankingLoss
from dmlkit.miners import multi_similarity_miner
from dmlkit.models import EmbeddingHead, EmbeddingModel, MLPHead, make_trunk
from dmlkit.paths import PROJECT_ROOT, write_atomically
from dmlkit.provenance import commit, versions
from dmlkit.ranked_views import RankedViews, strengths
from tests.benchmarks.metrics import in_turns

BATCH, PER_CLASS, IMAGES, VIEWS, CHANCE = 120, 4, 20, 4, 0.8  # the paper's B, M, N and p
CASES = {"small_convnet": 48, "mobilenet_v2": 129, "resnet50": 224}  # side of the images, pixels


def main() -> None:
    """Run all measurements and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="results/benchmarks/ranking_step.md")
    parser.add_argument("--rounds", type=int, default=7, help="of which the median counts")
    parser.add_argument("--trunks", nargs="+", default=list(CASES), help="resnet50 wants a GPU")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines = [
        "| trunk | px | step without | view 0 | with, every step | ratio | expected "
        f"| ratio at p = {CHANCE} | expected | the views |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for trunk in options.trunks:
        for reuse in (True, False):
            cells = measure(trunk, CASES[trunk], reuse, device, options.rounds)
            line = "| " + " | ".join(cells) + " |"
            print(line, flush=True)
            lines.append(line)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU used"
    lines += [
        "",
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {name}; "
        f"{versions()}; threads: 1; commit {commit()}; freed memory "
        f"{'kept' if os.environ.get('MALLOC_MMAP_MAX_') == '0' else 'given back'}.",
        f"A step is Multi-Similarity with its miner on {BATCH} images, AdamW; the task ranks "
        f"{VIEWS} views of {IMAGES} of them, which are made beforehand. View 0 is the batch's own "
        "image; its features are reused or computed again. Expected: (B + M N) / B, or M (N + 1). "
        f"At p: 1 + p (ratio - 1). Medians of {options.rounds} steps in turns.",
    ]
    with write_atomically(PROJECT_ROOT / options.output) as path:
        path.write_text("\n".join(lines) + "\n")


def measure(name: str, size: int, reuse: bool, device: torch.device, rounds: int) -> list[str]:
    """Return one line: times of steps and of views, and ratios beside what is expected."""
    trunk = make_trunk(name).to(device)
    model = EmbeddingModel(trunk, EmbeddingHead(trunk.out_features, 128)).to(device).train()
    auxiliary = MLPHead(trunk.out_features, 512, 128).to(device)
    optimizer = AdamW([*model.parameters(), *auxiliary.parameters()], lr=1e-4)
    images = torch.rand(BATCH, 3, size, size, device=device)
    labels = torch.arange(BATCH, device=device) // PER_CLASS
    make_views = RankedViews(size, strengths=strengths(VIEWS), seed=0)
    views = make_views(images[:IMAGES])
    seen = views if reuse else torch.cat([images[:IMAGES, None], views], dim=1)
    both = (model, auxiliary, optimizer, images, labels)
    sides = [partial(step, *both, shown) for shown in (None, seen)]
    sides.append(partial(make_views, images[:IMAGES]))
    in_turns(1, *sides)
    (alone, _), (ranked, _), (making, _) = in_turns(rounds, *sides)
    ratio, expected = ranked / alone, 1 + IMAGES * (VIEWS + (not reuse)) / BATCH
    shares = [f"{1 + chance * (r - 1):.2f}" for chance in (1, CHANCE) for r in (ratio, expected)]
    times = [f"{1000 * seconds:,.0f} ms" for seconds in (alone, ranked, making)]
    which = "reused" if reuse else "again"
    return [name, str(size), times[0], which, times[1], *shares, times[2]]


def step(
    model: EmbeddingModel,
    auxiliary: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    views: Tensor | None,
) -> None:
    """Take a step of the metric loss, with the task if there are views (M, N or 1 + N, ...)."""
    # In one pass, as in chapter 4.
    seen = images if views is None else torch.cat([images, views.flatten(0, 1)])
    features = model.trunk(seen)
    embeddings = model.head(features[:BATCH])
    pairs = multi_similarity_miner(embeddings, labels)
    loss = MultiSimilarityLoss()(embeddings, labels, pairs=pairs)
    if views is not None:
        of_views = features[BATCH:].unflatten(0, views.shape[:2])
        if views.shape[1] == VIEWS:
            of_views = torch.cat([features[:IMAGES, None], of_views], dim=1)
        loss = loss + 0.8 * SelfSupervisedRankingLoss()(auxiliary(of_views))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    if images.is_cuda:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
