"""What every data set is read into: labelled images and what is known of each."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dmlkit.datasets.decoding import ImagesOnDisk


@dataclass(frozen=True)
class ImageSet:
    """Labelled images that share one store.

    Args:
        images: the store, usually memory-mapped and shared between the sets cut from it:
            (M, 3, S, S) uint8 RGB, or (M, V, F) float16 features of V augmented views.
        labels: (N,) int64, contiguous from 0.
        class_names: name of each label.
        fingerprint: hex digest of the content of the data set the images come from.
        index: (N,) int64, the row of the store that holds each image.
        sizes: (M, 2) int64 height and width of the image that a stored square stands for: the
            photograph in its own shape, its shorter side resized. None: the square itself.
        factors: what a drawn image is known to show (pose, light, ...), each (M,) int16.
    """

    images: "Tensor | ImagesOnDisk"
    labels: Tensor
    class_names: tuple[str, ...]
    fingerprint: str
    index: Tensor
    sizes: Tensor | None = None
    factors: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return len(self.class_names)

    def gather(self, positions: Tensor) -> Tensor:
        """Return the stored images at ``positions`` (B,) of this set: (B, 3, S, S) or (B, V, F)."""
        return self.images.index_select(0, self.index[positions])

    def sizes_of(self, positions: Tensor) -> Tensor | None:
        """Return (B, 2) heights and widths of the images that the stored squares stand for."""
        return None if self.sizes is None else self.sizes[self.index[positions]]

    def factor(self, name: str) -> Tensor:
        """Return (N,) the values of the factor called ``name``."""
        return self.factors[name][self.index]

    def all_images(self) -> Tensor:
        """Return all N stored images; a copy, so for sets that fit into memory."""
        return self.gather(torch.arange(len(self)))

    def with_images(self, images: Tensor) -> "ImageSet":
        """Return this set with another store of the same M rows, e.g. of features."""
        return replace(self, images=images, sizes=None)

    def keep_images(self, chosen: Tensor) -> "ImageSet":
        """Return the images for which ``chosen`` (N,) is true, with all classes."""
        return replace(self, labels=self.labels[chosen], index=self.index[chosen])

    def keep_classes(self, classes: Tensor) -> "ImageSet":
        """Return the images of ``classes`` (C',), relabelled 0..C'-1 in ascending class order."""
        classes = classes.sort().values
        kept = self.keep_images(torch.isin(self.labels, classes))
        return replace(
            kept,
            labels=torch.searchsorted(classes, kept.labels),
            class_names=tuple(self.class_names[c] for c in classes.tolist()),
        )
