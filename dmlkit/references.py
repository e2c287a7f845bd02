"""Reference embeddings that no loss was trained for: what a trained one has to beat.

Each takes plain tensors and returns embeddings of the test images; ``evaluate_reference`` brings
them to unit length and measures them.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dmlkit.datasets import ImageSet, Splits
from dmlkit.evaluation import Evaluation, evaluate_embeddings
from dmlkit.transforms import first_view

OF_PIXELS = ("colour_histogram", "raw_pixels")
OF_FEATURES = ("frozen_trunk", "pca", "half_whitened_pca", "within_class_whitening")


def evaluate_reference(
    name: str, images: Splits, features: Splits, *, embedding_dim: int, ks: tuple[int, ...]
) -> Evaluation:
    """Return the test results of a reference.

    Args:
        name: one of ``OF_PIXELS`` and ``OF_FEATURES``: colours, pixels, the trunk's features as
            they are, their principal components (as many as an embedding has), up to 512 of them
            half-whitened, or all features whitened by what differs within classes.
        images: the parts as pixels.
        features: the same parts as features of the frozen trunk.
        embedding_dim: size of an embedding, D.
        ks: numbers of neighbours for Recall@K.

    Raises:
        ValueError: an unknown name.
    """
    if name not in OF_PIXELS + OF_FEATURES:
        known = ", ".join(OF_PIXELS + OF_FEATURES)
        raise ValueError(f"there is no reference {name!r}; choose from {known}")
    splits = images if name in OF_PIXELS else features

    def represent(part: ImageSet) -> Tensor:
        if name == "colour_histogram":
            return colour_histogram(part.all_images())
        if name == "raw_pixels":
            return raw_pixels(part.all_images())
        train, test = (normalize(first_view(p.all_images())) for p in (splits.train, part))
        if name == "pca":
            return pca(train, test, embedding_dim)
        if name == "half_whitened_pca":
            return pca(train, test, 512, whiten=0.5)
        if name == "within_class_whitening":
            return within_class_whitening(train, splits.train.labels, test)
        return test

    gallery = splits.gallery and (represent(splits.gallery), splits.gallery.labels)
    return evaluate_embeddings(represent(splits.test), splits.test.labels, ks=ks, gallery=gallery)


def colour_histogram(images: Tensor, bins: int = 4) -> Tensor:
    """Return (N, bins^3) shares of pixels per RGB cell of ``images`` (N, 3, H, W) uint8.

    Square roots of the shares, so that the cosine of two histograms is their Bhattacharyya
    coefficient.
    """
    cell = (images.long() * bins // 256).flatten(2)  # (N, 3, H * W)
    cell = (cell[:, 0] * bins + cell[:, 1]) * bins + cell[:, 2]  # (N, H * W)
    counts = torch.zeros(len(images), bins**3)
    counts.scatter_add_(1, cell, torch.ones_like(cell, dtype=counts.dtype))
    return (counts / cell.shape[1]).sqrt()


def raw_pixels(images: Tensor) -> Tensor:
    """Return (N, 3 H W) pixels of ``images`` (N, 3, H, W) uint8, each channel's mean removed."""
    pixels = images.float() / 255
    return (pixels - pixels.mean(dim=(2, 3), keepdim=True)).flatten(1)


def pca(train: Tensor, test: Tensor, dim: int, *, whiten: float = 0.0) -> Tensor:
    """Project ``test`` (N, F) on the leading principal components of ``train`` (M, F).

    Args:
        train: features the components are fitted on.
        test: features to project.
        dim: number of components kept, at most F.
        whiten: each component is divided by its standard deviation to this power: 0 is plain PCA,
            0.5 half-whitened, 1 fully whitened.
    """
    mean, variance, axes = _principal_axes(train)
    axes, variance = axes[:, -dim:], variance[-dim:]
    return ((test.double() - mean) @ (axes * variance.clamp_min(1e-12) ** (-whiten / 2))).float()


def within_class_whitening(
    train: Tensor, labels: Tensor, test: Tensor, *, shrinkage: float = 0.5
) -> Tensor:
    """Whiten ``test`` (N, F) by the within-class covariance of ``train`` (M, F), in closed form.

    The linear map under which the training classes are round: directions in which images of one
    class differ count less (the first step of linear discriminant analysis).

    Args:
        train: features of the training classes.
        labels: (M,) their classes, 0..C-1.
        test: features to map.
        shrinkage: share of the mean variance mixed into the covariance, which is near singular.
    """
    train = train.double()
    sizes = labels.bincount().double()
    sums = torch.zeros(len(sizes), train.shape[1], dtype=torch.float64)
    class_means = sums.index_add_(0, labels, train) / sizes[:, None]
    _, variance, axes = _principal_axes(train - class_means[labels])
    variance = (1 - shrinkage) * variance + shrinkage * variance.mean()
    return ((test.double() - train.mean(0)) @ (axes / variance.sqrt())).float()


def _principal_axes(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (F,), variances (F,) ascending and axes (F, F) as columns, in float64."""
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    variance, axes = torch.linalg.eigh(centred.T @ centred / len(features))
    return mean, variance, axes
