"""The one training loop of the book. A chapter supplies the loss of a batch; all else is here."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dmlkit.batches import Batch
from dmlkit.processes import (
    check_shares,
    in_parallel,
    mean_of_all,
    of_first,
    rank,
    share_buffers,
    world_size,
)

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Fit:
    """What a training run leaves behind.

    Args:
        history: one entry per measurement: step, images_seen, loss (mean since the last entry),
            ``validation_<metric>`` where validated, and ``test_<metric>`` where observed.
        best_step: step of the best validation score, or the step asked for; else the last.
        best_states: state dict of each module at ``best_step``.
        seconds: wall time, validation included.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    best_states: list[dict[str, Tensor]] = field(default_factory=list)
    seconds: float = 0.0


def fit(
    modules: Sequence[nn.Module],
    batches: Iterable[Batch],
    compute_loss: Callable[[Batch], Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    precision: str = "float32",
    learning_rate_factor: Callable[[int], float] = lambda step: 1.0,
    still_modules: Sequence[nn.Module] = (),
    still_steps: int = 0,
    validate: Callable[[], dict[str, float]] | None = None,
    measure_every: int = 50,
    select_by: str = "map_at_r",
    keep_step: int | None = None,
    observe: Callable[[], dict[str, float]] | None = None,
    description: str = "training",
) -> Fit:
    """Train for a number of optimiser steps and keep the state with the best validation score.

    Args:
        modules: the model, the loss if it has parameters, further heads: set to training mode, and
            their states kept together.
        batches: endless batches on the training device; where several processes share the run,
            this one's share of each.
        compute_loss: scalar loss of a batch, from what ``dmlkit.processes.of_all`` gathers.
        optimizer: over all parameters to train.
        steps: number of optimiser steps.
        precision: ``float32``, or ``bfloat16`` for automatic mixed precision.
        learning_rate_factor: factor on every group's learning rate, by step from 0.
        still_modules: modules that do not learn in the first ``still_steps`` steps (the warm-up of
            new parameters: the trunk stays still, its batch norms go on).
        still_steps: length of that warm-up.
        validate: returns metrics of the current state on validation classes; None selects nothing
            and keeps the last state.
        measure_every: steps between entries of the history; the last step is always measured.
        select_by: the metric of ``validate`` to maximise; ties keep the earlier step.
        keep_step: keep the state of this step instead, one that is measured.
        observe: returns metrics of the current state on test classes, for the history: they show
            what a step chosen on them would have gained, and choose nothing.
        description: label of the progress bar.

    Raises:
        FloatingPointError: the loss is NaN or infinite, with the step where it became so and the
            classes in its batch.
        ValueError: unknown precision, no steps, a ``keep_step`` that is not measured, batches that
            end, or that processes cannot share equally.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"PRECISION={precision!r} is unknown; choose float32 or bfloat16")
    if steps < 1:
        raise ValueError(f"STEPS={steps} trains nothing; use at least 1")
    if keep_step and (keep_step > steps or (keep_step % measure_every and keep_step != steps)):
        raise ValueError(f"keep_step={keep_step} is not one of the steps that are measured")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor)
    device = next(modules[0].parameters()).device
    autocast = torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "float32")
    result, best_score, images_seen = Fit(), float("-inf"), 0
    losses, labels = [], []  # of the steps since the last entry
    start = time.perf_counter()
    still = [p for module in still_modules for p in module.parameters() if p.requires_grad]
    _train_mode(modules)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # so that the peak is this run's

    progress = tqdm(
        range(1, steps + 1),
        description,
        file=sys.stdout,
        ascii=True,
        mininterval=1,
        leave=False,
        disable=rank() > 0,
    )
    for step, batch in zip(progress, batches, strict=False):
        if step == 1:
            check_shares(len(batch[1]))
        if step in (1, still_steps + 1):
            for parameter in still:
                parameter.requires_grad_(step > still_steps)
            loss_of = in_parallel(modules, compute_loss)
        with autocast:
            loss = loss_of(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())  # not .item(): reading it each step would stall a GPU
        labels.append(batch[1])
        images_seen += len(batch[1]) * world_size()

        if step % measure_every == 0 or step == steps:
            share_buffers(modules)
            loss = _mean(losses, labels, step, description)
            entry = {"step": step, "images_seen": images_seen, "loss": loss}
            losses, labels = [], []
            score = step  # without validation the last step is the best
            if validate is not None:
                metrics = of_first(validate())
                _train_mode(modules)
                entry |= {f"validation_{name}": value for name, value in metrics.items()}
                score = metrics[select_by]
            if keep_step:
                score = float(step == keep_step)
            if observe is not None:
                entry |= {f"test_{name}": value for name, value in of_first(observe()).items()}
                _train_mode(modules)
            result.history.append(entry)
            if score > best_score:
                best_score, result.best_step = score, step
                result.best_states = [deepcopy(m.state_dict()) for m in modules]
    if not result.history or result.history[-1]["step"] < steps:
        raise ValueError(f"the batches ended before step {steps}; give endless ones")
    result.seconds = time.perf_counter() - start
    return result


def choose_device(name: str, *, deterministic: bool = False) -> torch.device:
    """Return the device called ``name``; ``auto`` is CUDA if there is one, else the CPU.

    Args:
        name: auto, cpu or cuda.
        deterministic: from now on use only operations that give the same result each time, which a
            CPU does anyway; PyTorch raises for one that has none.

    Raises:
        ValueError: the name is unknown, or that device is not there.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at its first use
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"DEVICE={name!r} is not available; set DEVICE=auto") from error
    return device


def _train_mode(modules: Sequence[nn.Module]) -> None:
    for module in modules:
        module.train()


def _mean(losses: list[Tensor], labels: list[Tensor], step: int, description: str) -> float:
    """Return the mean loss of the steps up to ``step``, naming the first that is not finite."""
    values = mean_of_all(torch.stack(losses))
    if not values.isfinite().all():
        at = int((~values.isfinite()).int().argmax())
        classes = ", ".join(map(str, labels[at].unique().tolist()[:20]))
        raise FloatingPointError(
            f"{description}: the loss is {values[at].item()} at step {step - len(losses) + 1 + at} "
            f"for a batch of classes {classes}; lower LEARNING_RATE or LOSS_LR"
        )
    return values.double().mean().item()
