"""What each option makes of a training step: ``python -m tests.benchmarks.training_speed``.

Writes ``results/benchmarks/training_speed.md``: the options take turns within one run, so ratios
hold on a busy machine too. On a CPU set ``MALLOC_MMAP_MAX_=0
MALLOC_TRIM_THRESHOLD_=17179869184``, as the runner does for its kernels.
"""

import argparse
import os
import platform
import time
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Adam

from dmlkit.losses import NormSoftmaxLoss
from dmlkit.models import EmbeddingHead, EmbeddingModel, make_trunk
from dmlkit.paths import PROJECT_ROOT, write_atomically
from dmlkit.provenance import commit, versions
from tests.benchmarks.metrics import in_turns

BATCH, CLASSES = 64, 100
CASES = {"small_convnet": 48, "mobilenet_v2": 129, "resnet50": 224}  # side of the images, pixels


class Option(NamedTuple):
    """How the trunk is computed."""

    precision: torch.dtype = torch.float32
    channels_last: bool = True
    compiled: bool = False


OPTIONS = {
    "as the chapters": Option(),
    "not channels_last": Option(channels_last=False),
    "bfloat16": Option(torch.bfloat16),
    "torch.compile": Option(compiled=True),
    "bfloat16, torch.compile": Option(torch.bfloat16, compiled=True),
}


def main() -> None:
    """Run all measurements and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="results/benchmarks/training_speed.md")
    parser.add_argument("--rounds", type=int, default=9, help="of which the median counts")
    parser.add_argument("--trunks", nargs="+", default=list(CASES), help="resnet50 wants a GPU")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines = [
        "| trunk | px | option | step | images / s | times as fast | first step |",
        "|---|---|---|---|---|---|---|",
    ]
    for trunk in options.trunks:
        for cells in measure(trunk, CASES[trunk], device, options.rounds):
            line = "| " + " | ".join(cells) + " |"
            print(line, flush=True)
            lines.append(line)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU used"
    lines += [
        "",
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {name}; "
        f"{versions()}; threads: 1; commit {commit()}; freed memory "
        f"{'kept' if os.environ.get('MALLOC_MMAP_MAX_') == '0' else 'given back'}.",
        f"A step is NormSoftmax of {CLASSES} classes on {BATCH} images that lie on the device, "
        "with Adam, batch norms in training mode. The chapters compute in float32 and "
        "channels_last; `-p PRECISION bfloat16` and `-p COMPILE true` are the options. First step: "
        f"with the translation. Medians of {options.rounds} steps in turns.",
    ]
    with write_atomically(PROJECT_ROOT / options.output) as path:
        path.write_text("\n".join(lines) + "\n")


def measure(name: str, size: int, device: torch.device, rounds: int) -> list[list[str]]:
    """Return a line per option: times of a step, and ratios to the first."""
    images = torch.rand(BATCH, 3, size, size, device=device)
    labels = torch.randint(CLASSES, (BATCH,), device=device)
    steps, first = [], []
    for option in OPTIONS.values():
        trunk = make_trunk(name, compiled=option.compiled)
        model = EmbeddingModel(trunk, EmbeddingHead(trunk.out_features, 128)).to(device).train()
        if not option.channels_last:
            _undo_channels_last(model)
        loss_fn = NormSoftmaxLoss(CLASSES, 128).to(device)
        optimizer = Adam([*model.parameters(), *loss_fn.parameters()], lr=1e-4)
        steps.append(partial(step, model, loss_fn, optimizer, images, labels, option))
        started = time.perf_counter()
        steps[-1]()
        first.append(time.perf_counter() - started)
    in_turns(1, *steps)
    medians = [median for median, _ in in_turns(rounds, *steps)]
    return [
        [
            *(name, str(size), label, f"{1000 * median:,.0f} ms", f"{BATCH / median:,.0f}"),
            *(f"{medians[0] / median:.2f}", f"{started:.1f} s"),
        ]
        for label, median, started in zip(OPTIONS, medians, first, strict=True)
    ]


def _undo_channels_last(model: EmbeddingModel) -> None:
    """Let the layers compute in PyTorch's own order of dimensions."""
    layers = model.trunk.layers.to(memory_format=torch.contiguous_format)
    layers.register_forward_pre_hook(lambda _, inputs: inputs[0].contiguous())


def step(
    model: EmbeddingModel,
    loss_fn: NormSoftmaxLoss,
    optimizer: Adam,
    images: Tensor,
    labels: Tensor,
    option: Option,
) -> None:
    """Take one optimiser step, and wait for it."""
    is_mixed = option.precision != torch.float32
    with torch.autocast(images.device.type, option.precision, enabled=is_mixed):
        loss = loss_fn(model(images), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    if images.is_cuda:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
