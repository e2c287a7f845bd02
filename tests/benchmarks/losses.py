"""What a loss costs beside pytorch-metric-learning: ``python -m tests.benchmarks.losses``.

Prints the time of loss and gradient; with ``--output results/benchmarks/losses.md`` also writes it.
Both sides get the same unit vectors: class centres and much noise, as early in training.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as peers
from pytorch_metric_learning import miners as peer_miners
from torch import Tensor, nn

from dmlkit import losses
from dmlkit.distances import cosine_similarity
from dmlkit.miners import multi_similarity_miner
from dmlkit.paths import PROJECT_ROOT, write_atomically
from dmlkit.provenance import commit, versions
from tests.benchmarks.metrics import DIM, PML, in_turns

PER_CLASS, NUM_CLASSES = 4, 11_318  # images of a class in a batch; training classes of SOP
BATCHES = (32, 128, 512, 2048)
LEAST = 0.7  # times as fast as its counterpart, for a loss without a goal of its own


@dataclass
class Case:
    """Makers of our loss and of its counterpart, if any, and what chooses the pairs of each."""

    ours: Callable[[], nn.Module]
    theirs: Callable[[], nn.Module] | None = None
    our_miner: Callable | None = None
    their_miner: Callable | None = None
    most: int = BATCHES[-1]  # largest batch that fits into memory
    their_most: int = BATCHES[-1]
    goals: dict[int, float] = field(default_factory=dict)  # times as fast as theirs, by batch


class Product(nn.Module):
    def forward(self, rows: Tensor, labels: Tensor, *, pairs: None) -> Tensor:
        return cosine_similarity(rows).sum()


def of_triplets(kind: str, their_miner: Callable | None, **options) -> Case:
    ours = partial(losses.TripletLoss, triplets=kind)
    return Case(ours, partial(peers.TripletMarginLoss, 0.2), their_miner=their_miner, **options)


def of_proxies(
    ours: Callable, theirs: Callable, our_settings: dict | None = None, **options
) -> Case:
    ours = partial(ours, NUM_CLASSES, DIM, **our_settings or {})
    return Case(ours, partial(theirs, NUM_CLASSES, DIM), **options)


SEMIHARD = peer_miners.TripletMarginMiner(0.2, "semihard")
DISTANCE_WEIGHTED = peer_miners.DistanceWeightedMiner()
MS_MINERS = (multi_similarity_miner, peer_miners.MultiSimilarityMiner(0.1))
CASES = {
    "the product alone": Case(Product),
    "Contrastive": Case(losses.ContrastiveLoss, peers.ContrastiveLoss),
    "SimilarityContrastive": Case(losses.SimilarityContrastiveLoss),
    "Triplet, semi-hard": of_triplets("semihard", SEMIHARD, goals={512: 10}),
    "Triplet, all": of_triplets("all", None),
    "Triplet, batch hard": of_triplets("batch_hard", peer_miners.BatchHardMiner()),
    "MultiSimilarity": Case(losses.MultiSimilarityLoss, peers.MultiSimilarityLoss),
    "MultiSimilarity, miner": Case(
        losses.MultiSimilarityLoss, peers.MultiSimilarityLoss, *MS_MINERS, goals={512: 2}
    ),
    "Margin, distance-weighted": Case(
        losses.MarginLoss, peers.MarginLoss, None, DISTANCE_WEIGHTED, goals={512: 5}
    ),
    "NTXent": Case(losses.NTXentLoss, peers.NTXentLoss, their_most=128),
    "FastAP": Case(losses.FastAPLoss, peers.FastAPLoss, goals={512: 3}),
    "LiftedStructure": Case(
        losses.LiftedStructureLoss, peers.LiftedStructureLoss, their_most=128, goals={128: 50}
    ),
    "GeneralizedLiftedStructure": Case(
        losses.GeneralizedLiftedStructureLoss, peers.GeneralizedLiftedStructureLoss
    ),
    "ModifiedLiftedStructure": Case(losses.ModifiedLiftedStructureLoss),
    "BinomialDeviance": Case(losses.BinomialDevianceLoss),
    "HardMining": Case(losses.HardMiningLoss),
    "Weight": Case(losses.WeightLoss),
    "NCA": Case(losses.NCALoss, peers.NCALoss),
    "NormSoftmax": of_proxies(losses.NormSoftmaxLoss, peers.NormalizedSoftmaxLoss),
    "CosFace": of_proxies(losses.CosFaceLoss, peers.CosFaceLoss),
    "ArcFace": of_proxies(losses.ArcFaceLoss, peers.ArcFaceLoss),
    "ProxyNCA": of_proxies(
        losses.ProxyNCALoss, peers.ProxyNCALoss, {"positive_in_denominator": True}
    ),
    "ProxyAnchor": of_proxies(losses.ProxyAnchorLoss, peers.ProxyAnchorLoss),
    "SoftTriple": of_proxies(
        losses.SoftTripleLoss, peers.SoftTripleLoss, {"centre_weight": 0.0}, most=512
    ),
}


def main() -> None:
    """Run all measurements, print the table and, if asked, write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=CASES, help="losses in the table; all if none")
    parser.add_argument("--output", help="file to write, from the project root")
    parser.add_argument("--seconds", type=float, default=5, help="for each line, in 3 to 99 rounds")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = ["| loss | batch | ours | theirs | times as fast | goal |", "|---|---|---|---|---|---|"]
    for name in options.names:
        for row in compare(name, options.batches, options.seconds, options.device):
            lines.append("| " + " | ".join(row) + " |")
            print(time.strftime("%H:%M:%S"), lines[-1], file=sys.stderr, flush=True)
    gpu = "no GPU" if options.device == "cpu" else torch.cuda.get_device_name(options.device)
    lines += [
        "",
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {gpu};",
        f"{versions()}; threads: {options.threads}; commit {commit()}. Theirs: {PML}.",
        f"{DIM} dimensions, {PER_CLASS} images per class, proxies for {NUM_CLASSES:,} classes. "
        f"Medians of 3 to 99 rounds in turns, {options.seconds:g} s for each line.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.output:
        with write_atomically(PROJECT_ROOT / options.output) as path:
            path.write_text(text)


def compare(name: str, batches: list[int], seconds: float, device: str) -> Iterator[list[str]]:
    """Compare one loss with its counterpart at every batch size that fits."""
    case = CASES[name]
    sides = [partial(step, case.ours().to(device), case.our_miner, "pairs")]
    if case.theirs:
        sides.append(partial(step, case.theirs().to(device), case.their_miner, "indices_tuple"))
    for batch in filter(case.most.__ge__, batches):
        rows, labels = make_batch(batch, device)
        fitting = sides if batch <= case.their_most else sides[:1]
        ours, *theirs = in_long_turns([partial(side, rows, labels) for side in fitting], seconds)
        row, goal = [name, f"{batch}", f"{1e3 * ours:.3g} ms"], case.goals.get(batch, LEAST)
        found = [[f"{1e3 * took:.3g} ms", f"{took / ours:.2f}", f">= {goal}"] for took in theirs]
        yield row + (found[0] if found else [""] * 3)


def in_long_turns(steps: list[Callable], seconds: float) -> list[float]:
    """Return the median seconds of each step, repeated for a while in every turn.

    The first step after the other side's much larger tensors pays for the memory they gave back.
    """
    counts = [max(1, int(0.1 / took)) for took, _ in in_turns(2, *steps)]
    turns = [
        lambda do=do, n=n: [do() for _ in range(n)] for do, n in zip(steps, counts, strict=True)
    ]
    rounds = min(max(int(seconds / sum(took for took, _ in in_turns(1, *turns))), 3), 99)
    return [took / n for (took, _), n in zip(in_turns(rounds, *turns), counts, strict=True)]


def step(loss: nn.Module, miner: Callable | None, name: str, rows: Tensor, labels: Tensor) -> None:
    """Compute a loss and its gradients, on pairs that ``miner`` gives the argument ``name``."""
    rows.grad = None
    loss.zero_grad()
    loss(rows, labels, **{name: miner(rows, labels) if miner else None}).backward()
    if rows.is_cuda:
        torch.cuda.synchronize()


def make_batch(batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Return unit rows (B, DIM) that want a gradient, and labels (B,) from among all classes."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randperm(NUM_CLASSES, generator=generator)[: batch // PER_CLASS]
    centres = torch.randn(len(classes), DIM, generator=generator).repeat_interleave(PER_CLASS, 0)
    rows = F.normalize(centres + 3 * torch.randn(batch, DIM, generator=generator))
    return rows.to(device).requires_grad_(), classes.repeat_interleave(PER_CLASS).to(device)


if __name__ == "__main__":
    main()
