"""What the processes that share one training run tell each other; with one, nothing.

All execute the same code and take the same decisions. Each sees its share of every batch; the loss
of the whole batch is computed by all of them, from the embeddings of all. So any loss, of pairs, of
proxies, with running statistics or Sinkhorn's iterations, has the value and the gradient that one
process would find. ``dmlkit.torchrun`` starts them.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Value = TypeVar("Value")


def world_size() -> int:
    """Return how many processes share this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among them, from 0; that one writes what is kept."""
    return dist.get_rank() if dist.is_initialized() else 0


def share_of(positions: Tensor) -> Tensor:
    """Return the part of ``positions`` (B,) that this process works on: neighbours, in order."""
    return positions.tensor_split(world_size())[rank()]


def of_all(rows: Tensor, total: int | None = None) -> Tensor:
    """Return the rows (B, ...) of all processes, in the order of the batch they share.

    A loss of these has, once ``in_parallel`` has averaged gradients, the gradient of one process.

    Args:
        rows: what this process made of its share.
        total: number of rows of all, B; None where all have as many.
    """
    count = world_size()
    if count == 1:
        return rows
    sizes = [len(part) for part in torch.arange(total or count * len(rows)).tensor_split(count)]
    _Step.has_gathered |= rows.is_floating_point()
    # All send as many rows as the first, which has the most.
    padded = rows.new_zeros(sizes[0], *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    received = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(received, padded)
    parts = [part[:size] for part, size in zip(received, sizes, strict=True)]
    parts[rank()] = _Own.apply(rows, count) if rows.requires_grad else rows
    return torch.cat(parts)


class _Own(torch.autograd.Function):
    """Rows as they are, whose gradient is multiplied, since the mean over processes divides it."""

    @staticmethod
    def forward(ctx, rows: Tensor, count: int) -> Tensor:
        """Return ``rows``."""
        ctx.count = count
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        """Return as many times the gradient as there are processes."""
        return gradient * ctx.count, None


def in_parallel(
    modules: Sequence[nn.Module], compute_loss: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """Return ``compute_loss`` such that gradients are averaged over processes on the way back.

    Made anew when other parameters of the modules begin to learn.

    Args:
        modules: what learns.
        compute_loss: scalar loss of a batch, of embeddings that went through ``of_all``; with
            several processes it raises RuntimeError if none did.
    """
    if world_size() == 1:
        return compute_loss
    for module in modules:
        if any(parameter.is_cuda for parameter in module.parameters()):  # it knows GPUs alone
            nn.SyncBatchNorm.convert_sync_batchnorm(module)
    # A step may leave out a head that another one uses.
    return DistributedDataParallel(_Step(modules, compute_loss), find_unused_parameters=True)


class _Step(nn.Module):
    """The computation of a loss as a module, which is what DistributedDataParallel wraps."""

    has_gathered = False  # in the step under way

    def __init__(self, modules: Sequence[nn.Module], compute_loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.compute_loss = compute_loss

    def forward(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the loss of ``batch``."""
        _Step.has_gathered = False
        loss = self.compute_loss(batch)
        if not _Step.has_gathered:
            raise RuntimeError(
                "the loss is of one process's share of the batch alone; let compute_loss take what "
                "dmlkit.processes.of_all returns of embeddings and labels"
            )
        return loss


def check_shares(count: int) -> None:
    """Raise if the processes have different numbers of images of a batch; this one has ``count``.

    Raises:
        ValueError: they have.
    """
    if world_size() > 1:
        counts: list[int] = [0] * world_size()
        dist.all_gather_object(counts, count)
        if len(set(counts)) > 1:
            raise ValueError(
                f"batches of {sum(counts)} images cannot be shared equally by {world_size()} "
                "processes; let BATCH_SIZE be a multiple of their number"
            )


def mean_of_all(values: Tensor) -> Tensor:
    """Return the mean of ``values`` over processes; NaN if one has it."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()


def of_first(value: Value) -> Value:
    """Return what the first process gives, so that all go on alike whatever they saw or found."""
    if world_size() == 1:
        return value
    told = [value]
    dist.broadcast_object_list(told)
    return told[0]


def share_buffers(modules: Sequence[nn.Module]) -> None:
    """Give all processes the buffers of the first, such as running statistics of batch norms.

    On CPUs each batch norm sees its process's share of a batch alone; on GPUs, the whole.
    """
    if world_size() > 1:
        for module in modules:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)


def wait_for_all() -> None:
    """Return when all processes are here, such as after the first one has written a file."""
    if world_size() > 1:
        dist.barrier()
