"""Class-disjoint parts of a data set: training, validation, unlabelled and test classes."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from dmlkit.datasets.image_set import ImageSet
from dmlkit.seeding import derive_seed

PROTOCOLS = ("official", "random", "reality_check")
POOLS = ("none", "other_classes", "labelled_classes", "test_classes")
FOLDS = 4


@dataclass(frozen=True)
class Splits:
    """Parts with disjoint classes: nothing that is trained on is a class of the test set.

    Args:
        train: labelled images to train on.
        test: images that query, all the others or the gallery.
        validation: images of held-out training classes; None when all of them are trained on.
        gallery: images that the test images are compared with; None where each test image queries
            all the others. Its labels have the numbering of ``test``.
        unlabelled: a pool to learn from without its labels, which serve checks and ceilings only.
            Its classes may be those of the test set: on purpose, or because another data set has
            them too (NABirds holds species of CUB-200-2011).
    """

    train: ImageSet
    test: ImageSet
    validation: ImageSet | None = None
    gallery: ImageSet | None = None
    unlabelled: ImageSet | None = None

    @property
    def fingerprint(self) -> str:
        """Hex digest of the content of all parts; that of the data set if it is one."""
        parts = {part.fingerprint for part in vars(self).values() if part is not None}
        if len(parts) == 1:
            return parts.pop()
        generated = "generated-" * any(part.startswith("generated-") for part in parts)
        return generated + hashlib.sha256("".join(sorted(parts)).encode()).hexdigest()


def split_classes(
    everything: ImageSet,
    num_train: int,
    *,
    protocol: str = "official",
    fold: int | None = None,
    seed: int = 0,
    validation_fraction: float = 0.0,
    groups: Tensor | None = None,
    is_gallery: Tensor | None = None,
    pool: str = "none",
    pool_share: float = 0.0,
    set_aside: float = 0.0,
) -> Splits:
    """Split by class into labelled training, validation, unlabelled and test images.

    Args:
        everything: all labelled images, classes in official order, training classes first.
        num_train: number of training classes C; the others are test classes.
        protocol: ``official`` takes the first C classes for training, ``random`` as many drawn by
            ``seed``, ``reality_check`` the first half of all classes (Musgrave et al., 2020).
        fold: 0 to 3 takes a quarter of the training classes for validation, as the Reality Check's
            cross-validation: contiguous, from class ``int(fold / 4 * C)`` on three quarters for
            training and then one for validation, wrapping around.
        seed: which random split; the same seed gives every method the same classes.
        validation_fraction: share of the training classes, the last of their order, held out for
            choosing steps and settings, where ``fold`` is None. 0 leaves ``validation`` None.
        groups: (classes,) which classes stay together in a split; None: each is by itself.
        is_gallery: (N,) bool, which images of official test classes form the gallery. Random test
            classes have none: each of their images queries all the others.
        pool: images that become the unlabelled pool: ``none``, ``other_classes`` (those that
            ``pool_share`` takes), or on purpose further images of the ``labelled_classes`` or
            the ``test_classes`` (those that ``set_aside`` takes).
        pool_share: share of the training classes, the last of their order, whose labels are hidden.
        set_aside: share of the images of every class, drawn by ``seed``, that is neither trained on
            nor tested, but kept for pools; two of a class are always left. With it all three pools
            have the same number of classes and about the same number of images, so that they can
            be compared.

    Raises:
        ValueError: an unknown choice, or too few classes for the asked-for parts.
    """
    check_choices(protocol, fold, pool, pool_share, set_aside)
    if groups is None:
        groups = torch.arange(everything.num_classes)
    if protocol == "reality_check":
        num_train = everything.num_classes // 2
    training, test = _order_groups(groups, num_train, protocol, seed)
    training, other = _cut(training, round(len(training) * pool_share))
    labelled, validation = _hold_out(training, fold, validation_fraction)
    parts = {"train": labelled, "validation": validation, "other": other, "test": test}
    classes = {name: _classes_of(part, groups) for name, part in parts.items()}
    if pool == "other_classes" and not len(other):
        raise ValueError(f"POOL_SHARE={pool_share} takes none of {num_train} classes; use more")
    _check_sizes(classes, num_train, validation_fraction, fold)

    kept = torch.ones(len(everything), dtype=torch.bool)
    if set_aside:
        # Queries and gallery apart, so that neither is left without the other.
        keys = everything.labels if is_gallery is None else 2 * everything.labels + is_gallery
        fewest_left = 2 if is_gallery is None else 1  # a query needs something to find
        kept = ~_draw_share(keys, set_aside, derive_seed(seed, "set aside"), fewest_left)
        if kept.all():
            raise ValueError(
                f"SET_ASIDE={set_aside} takes no image of classes this small; use more"
            )
    has_gallery = is_gallery is not None and protocol == "official"
    queries = ~is_gallery if has_gallery else torch.ones_like(kept)

    def take(name: str, where: Tensor) -> ImageSet | None:
        chosen = classes[name]
        return everything.keep_images(where).keep_classes(chosen) if len(chosen) else None

    return Splits(
        train=take("train", kept),
        validation=take("validation", kept),
        test=take("test", kept & queries),
        gallery=take("test", kept & ~queries) if has_gallery else None,
        unlabelled=_pool(everything, classes, kept, pool) if pool != "none" else None,
    )


def _order_groups(
    groups: Tensor, num_train: int, protocol: str, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the groups for training and for testing, in the order of the protocol."""
    training, test = groups[:num_train].unique(), groups[num_train:].unique()
    if protocol != "random":
        return training, test[~torch.isin(test, training)]
    generator = torch.Generator().manual_seed(derive_seed(seed, "class split"))
    every = groups.unique()
    order = every[torch.randperm(len(every), generator=generator)]
    return order[: len(training)], order[len(training) :]


def _cut(order: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return all but the last ``count`` items, and these."""
    return order[: len(order) - count], order[len(order) - count :]


def _hold_out(training: Tensor, fold: int | None, fraction: float) -> tuple[Tensor, Tensor]:
    """Return the groups to train on and those to validate on."""
    if fold is None:
        return _cut(training, round(len(training) * fraction))
    start = int(fold / FOLDS * len(training))
    return _cut(training.roll(-start), len(training) // FOLDS)


def _classes_of(part: Tensor, groups: Tensor) -> Tensor:
    """Return the classes of some groups, in the order of the groups."""
    place = torch.full((int(groups.max()) + 1,), len(part))
    place[part] = torch.arange(len(part))
    place = place[groups]
    return place.argsort(stable=True)[: (place < len(part)).sum()]


def _pool(
    everything: ImageSet, classes: dict[str, Tensor], kept: Tensor, pool: str
) -> ImageSet | None:
    """Return the unlabelled images."""
    sources = {"other_classes": "other", "labelled_classes": "train", "test_classes": "test"}
    chosen = classes[sources[pool]]
    if kept.all():
        return everything.keep_classes(chosen)
    fewest = min(len(classes[name]) for name in sources.values() if len(classes[name]))
    return everything.keep_images(~kept).keep_classes(chosen[:fewest])


def _draw_share(labels: Tensor, share: float, seed: int, fewest_left: int) -> Tensor:
    """Return (N,) bool, true for a random share of the images of each label."""
    order = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed)).argsort()
    order = order[labels[order].argsort(stable=True)]
    sizes = labels.bincount()
    rank = torch.arange(len(order)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    drawn = torch.zeros(len(order), dtype=torch.bool)
    taken = (share * sizes).round().minimum(sizes - fewest_left)
    drawn[order[rank < taken.repeat_interleave(sizes)]] = True
    return drawn


def check_choices(
    protocol: str, fold: int | None, pool: str, pool_share: float, set_aside: float
) -> None:
    """Raise if a choice is unknown or two do not go together."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"PROTOCOL={protocol!r} is unknown; choose {', '.join(PROTOCOLS)}")
    if fold is not None and fold not in range(FOLDS):
        raise ValueError(f"FOLD={fold} is unknown; choose 0 to {FOLDS - 1}")
    if pool not in POOLS:
        raise ValueError(f"POOL={pool!r} is unknown; choose {', '.join(POOLS)}")
    if not (0 <= pool_share < 1 and 0 <= set_aside < 1):
        raise ValueError(
            f"POOL_SHARE={pool_share} and SET_ASIDE={set_aside} are shares; use 0 to below 1"
        )
    if pool == "other_classes" and not pool_share:
        raise ValueError("POOL='other_classes' needs POOL_SHARE above 0, e.g. 0.5")
    if pool in ("labelled_classes", "test_classes") and not set_aside:
        raise ValueError(f"POOL={pool!r} needs SET_ASIDE above 0, e.g. 0.5")


def _check_sizes(
    classes: dict[str, Tensor], num_train: int, validation_fraction: float, fold: int | None
) -> None:
    """Raise if a part has too few classes to hold a negative pair."""
    if len(classes["train"]) + len(classes["validation"]) < 2:
        raise ValueError(f"{num_train} training class(es) hold no negative pair; use more classes")
    few_validation = len(classes["validation"]) < 2 and (validation_fraction or fold is not None)
    if few_validation or len(classes["train"]) < 2:
        raise ValueError(
            f"{num_train} training classes are too few to hold out "
            f"{validation_fraction or 1 / FOLDS:.0%} of them for validation; use more classes or "
            "SELECTION=last"
        )
    if len(classes["test"]) < 2:
        raise ValueError(
            f"{sum(map(len, classes.values()))} classes leave fewer than 2 for the test after "
            f"{num_train} for training; use more classes"
        )
