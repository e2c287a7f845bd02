"""Which images make up each training batch.

A sampler is an endless iterator of int64 index tensors (batch,). It draws from its own generator,
so equal seeds give equal batches whatever else the process draws; a new sampler starts over.
"""

from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import Tensor

BATCHES_AHEAD = 32  # A, batches drawn at a time


class MPerClassSampler:
    """Draw a few classes per batch and the same number of images from each.

    Classes are drawn uniformly, without replacement within a batch and anew for each batch.
    Images are drawn without replacement within their class, or with replacement where the
    class has fewer than ``images_per_class``. A batch lists its classes one after another.

    Args:
        labels: (N,), integer class id of each image; any ids will do.
        batch_size: images per batch, B; a multiple of ``images_per_class``.
        images_per_class: images per drawn class, at least 1.
        seed: seed of the sampler's own generator.

    Raises:
        ValueError: if the batch cannot be made up as asked.
    """

    def __init__(
        self, labels: Tensor | Sequence[int], *, batch_size: int, images_per_class: int, seed: int
    ) -> None:
        labels = torch.as_tensor(labels)
        if images_per_class < 1:
            raise ValueError(f"images_per_class={images_per_class} is below 1; use 1 or more")
        if batch_size < 1 or batch_size % images_per_class:
            raise ValueError(
                f"batch_size={batch_size} is not a positive multiple of images_per_class="
                f"{images_per_class}; change one of them"
            )
        self._sizes = labels.unique(return_counts=True)[1]  # (C,), images of each class
        self._classes_per_batch = batch_size // images_per_class
        if self._classes_per_batch > len(self._sizes):
            raise ValueError(
                f"batch_size={batch_size} with images_per_class={images_per_class} needs "
                f"{self._classes_per_batch} classes but the labels have {len(self._sizes)}; "
                "lower batch_size or raise images_per_class"
            )
        self._images_per_class = images_per_class
        self._by_class = labels.argsort(stable=True)  # (N,), images sorted by class
        self._starts = self._sizes.cumsum(0) - self._sizes  # (C,), where each class begins
        self._generator = torch.Generator().manual_seed(seed)
        self._batches = self._draw_batches()

    def __iter__(self) -> Self:
        """Return the sampler itself: iterating again goes on with the next batch."""
        return self

    def __next__(self) -> Tensor:
        """Return the image indices of the next batch: (B,) int64."""
        return next(self._batches)

    def _draw_batches(self) -> Iterator[Tensor]:
        """Draw several batches at a time: many small tensors cost more than a few large ones."""
        while True:
            classes = torch.tensor([self._draw_classes() for _ in range(BATCHES_AHEAD)]).flatten()
            rank = self._draw_ranks(self._sizes[classes][:, None])  # (A K, M)
            images = self._by_class[self._starts[classes][:, None] + rank]  # (A K, M)
            yield from images.view(BATCHES_AHEAD, -1)

    def _draw_classes(self) -> list[int]:
        """Return K distinct classes: the first K different ones of draws with replacement."""
        drawn: dict[int, None] = {}
        while len(drawn) < self._classes_per_batch:
            shape = (2 * self._classes_per_batch,)
            more = torch.randint(len(self._sizes), shape, generator=self._generator)
            drawn |= dict.fromkeys(more.tolist())
        return list(drawn)[: self._classes_per_batch]

    def _draw_ranks(self, sizes: Tensor) -> Tensor:
        """Return positions within classes of ``sizes`` (K, 1): (K, M), all classes at once."""
        count = self._images_per_class
        width = max(int(sizes.max()), count)
        keys = torch.rand(len(sizes), width, generator=self._generator)  # (K, width)
        # The M largest of random keys are a draw without replacement; -1 loses to every key.
        distinct = keys.masked_fill(torch.arange(width) >= sizes, -1).topk(count).indices  # (K, M)
        repeated = (torch.rand(len(sizes), count, generator=self._generator) * sizes).long()
        return torch.where(sizes >= count, distinct, repeated)


class RandomSampler:
    """Run through random permutations of all images, whatever their classes.

    Each epoch is a new permutation; the images that would not fill its last batch are left out.

    Args:
        labels_or_num_items: the labels (N,), of which only the number counts, or N itself.
        batch_size: images per batch, B; at most N.
        seed: seed of the sampler's own generator.

    Raises:
        ValueError: if ``batch_size`` is below 1 or above N.
    """

    def __init__(
        self, labels_or_num_items: Tensor | Sequence[int] | int, *, batch_size: int, seed: int
    ) -> None:
        is_number = isinstance(labels_or_num_items, int)
        num_items = labels_or_num_items if is_number else len(labels_or_num_items)
        if not 1 <= batch_size <= num_items:
            raise ValueError(
                f"batch_size={batch_size} does not fit {num_items} items; "
                f"choose it between 1 and {num_items}"
            )
        self._num_items = num_items
        self._batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)
        self._left = torch.empty(0, dtype=torch.int64)  # what the running epoch has yet to give

    def __iter__(self) -> Self:
        """Return the sampler itself: iterating again goes on with the next batch."""
        return self

    def __next__(self) -> Tensor:
        """Return the image indices of the next batch: (B,) int64."""
        if len(self._left) < self._batch_size:
            self._left = torch.randperm(self._num_items, generator=self._generator)
        batch, self._left = self._left[: self._batch_size], self._left[self._batch_size :]
        return batch
