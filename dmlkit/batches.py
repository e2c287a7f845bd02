"""From image sets to batches on the device, the next of which is read while one is worked on."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from dmlkit.datasets import ImageSet
from dmlkit.processes import share_of

Batch = tuple[Tensor, Tensor]
# From stored images (B, ...) and the sizes (B, 2) they stand for, or None, to a model's input.
Transform = Callable[[Tensor, Tensor | None], Tensor]
Item = TypeVar("Item")


def image_batches(
    image_set: ImageSet, sampler: Iterable[Tensor], transform: Transform, device: torch.device
) -> Iterator[Batch]:
    """Yield (images, labels) on ``device``, transformed there, for each batch of positions.

    Of a run that several processes share, each gets its share of every batch.

    A second thread prepares the next batch, so a training step waits neither for the disk nor,
    where a core is free, for the transform. On a GPU it works in a stream of its own, beside the
    kernels of the running step. It takes one batch more from the sampler than is used.

    Args:
        image_set: the images.
        sampler: positions (B,) within the set, batch by batch.
        transform: see ``dmlkit.transforms``.
        device: where the model is.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def batches() -> Iterator[tuple[Batch, torch.cuda.Event | None]]:
        for positions in map(share_of, sampler):
            images, labels = image_set.gather(positions), image_set.labels[positions]
            sizes = image_set.sizes_of(positions)
            if stream is None:
                yield (transform(images, sizes), labels), None
                continue
            with torch.cuda.stream(stream):
                images = transform(images.pin_memory().to(device, non_blocking=True), sizes)
                batch = images, labels.to(device)
                done = stream.record_event()
            yield batch, done

    for batch, done in ahead(batches()):
        if done is not None:
            torch.cuda.current_stream(device).wait_event(done)
            for tensor in batch:  # or the stream above might reuse their memory too early
                tensor.record_stream(torch.cuda.current_stream(device))
        yield batch


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield ``items``, the next of which a thread prepares while the caller works on one."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = pool.submit(next, items, None)
            yield item
