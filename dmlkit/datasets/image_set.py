"""What every data set is read into: labelled images, and their class-disjoint splits."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dmlkit.seeding import derive_seed


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
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    fingerprint: str
    index: Tensor

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return len(self.class_names)

    def gather(self, positions: Tensor) -> Tensor:
        """Return the stored images at ``positions`` (B,) of this set: (B, 3, S, S) or (B, V, F)."""
        return self.images[self.index[positions]]

    def all_images(self) -> Tensor:
        """Return all N stored images; a copy, so for sets that fit into memory."""
        return self.images[self.index]

    def with_images(self, images: Tensor) -> "ImageSet":
        """Return this set with another store of the same M rows, e.g. of features."""
        return replace(self, images=images)

    def keep_classes(self, classes: Tensor) -> "ImageSet":
        """Return the images of ``classes`` (C',), relabelled 0..C'-1 in ascending class order."""
        classes = classes.sort().values
        keep = torch.isin(self.labels, classes)
        return replace(
            self,
            labels=torch.searchsorted(classes, self.labels[keep]),
            class_names=tuple(self.class_names[c] for c in classes.tolist()),
            index=self.index[keep],
        )

    def keep_images_per_class(self, limit: int) -> "ImageSet":
        """Return at most ``limit`` images of each class, the first in stored order."""
        order = self.labels.argsort(stable=True)
        sizes = self.labels.bincount(minlength=self.num_classes)
        starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        rank_in_class = torch.arange(len(self)) - starts
        keep = order[rank_in_class < limit].sort().values
        return replace(self, labels=self.labels[keep], index=self.index[keep])


@dataclass(frozen=True)
class Splits:
    """Sets with disjoint classes: nothing that is trained on is ever a class of the test set.

    A data set either has ``test`` (each image queries all the others) or ``query`` and
    ``gallery`` (their labels share one numbering).
    """

    train: ImageSet
    test: ImageSet | None = None
    validation: ImageSet | None = None
    query: ImageSet | None = None
    gallery: ImageSet | None = None
    unlabelled: ImageSet | None = None


def split_classes(
    everything: ImageSet,
    num_train: int,
    *,
    protocol: str = "official",
    seed: int = 0,
    validation_fraction: float = 0.0,
) -> Splits:
    """Split by class into train, validation and test.

    Args:
        everything: all labelled images, classes in official order.
        num_train: number of training classes C; the others are test classes.
        protocol: ``official`` takes the first C classes, ``random`` C classes drawn by ``seed``.
        seed: which random split; the same seed gives every method the same classes.
        validation_fraction: share of the training classes, the last of their order, held out for
            choosing steps and settings. 0 trains on all of them and leaves ``validation`` None.

    Raises:
        ValueError: unknown protocol, or too few classes for the asked-for parts.
    """
    if protocol not in ("official", "random"):
        raise ValueError(f"PROTOCOL={protocol!r} is unknown; choose official or random")
    order = torch.arange(everything.num_classes)
    if protocol == "random":
        generator = torch.Generator().manual_seed(derive_seed(seed, "class split"))
        order = torch.randperm(everything.num_classes, generator=generator)
    num_validation = round(num_train * validation_fraction)
    if num_train < 2:
        raise ValueError(f"{num_train} training class(es) hold no negative pair; use more classes")
    if validation_fraction and num_validation < 2 or num_train - num_validation < 2:
        raise ValueError(
            f"{num_train} training classes are too few to hold out {validation_fraction:.0%} of "
            "them for validation; use more classes or SELECTION=last"
        )
    if everything.num_classes - num_train < 2:
        raise ValueError(
            f"{everything.num_classes} classes leave fewer than 2 for the test after {num_train} "
            "for training; use more classes"
        )
    fit_classes, validation_classes, test_classes = order.split(
        [num_train - num_validation, num_validation, everything.num_classes - num_train]
    )
    return Splits(
        train=everything.keep_classes(fit_classes),
        validation=everything.keep_classes(validation_classes) if num_validation else None,
        test=everything.keep_classes(test_classes),
    )
