"""From image sets to batches on the device, the next of which is read while one is worked on."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from dmlkit.datasets import ImageSet

Batch = tuple[Tensor, Tensor]
# From stored images (B, ...) and the sizes (B, 2) they stand for, or None, to a model's input.
Transform = Callable[[Tensor, Tensor | None], Tensor]
Item = TypeVar("Item")


def image_batches(
    image_set: ImageSet, sampler: Iterable[Tensor], transform: Transform, device: torch.device
) -> Iterator[Batch]:
    """Yield (images, labels) on ``device``, transformed there, for each batch of positions.

    A second thread prepares the next batch, so a training step waits neither for the disk nor,
    where a core is free, for the transform.

    Args:
        image_set: the images.
        sampler: positions (B,) within the set, batch by batch.
        transform: see ``dmlkit.transforms``.
        device: where the model is.
    """

    def batches() -> Iterator[Batch]:
        for positions in sampler:
            images = image_set.gather(positions)
            if device.type == "cuda":  # from pinned memory the copy does not hold up the GPU
                images = images.pin_memory()
            images = transform(images.to(device, non_blocking=True), image_set.sizes_of(positions))
            yield images, image_set.labels[positions].to(device)

    return ahead(batches())


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield ``items``, the next of which a thread prepares while the caller works on one."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = pool.submit(next, items, None)
            yield item
