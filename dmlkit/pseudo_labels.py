"""Pseudo labels of SLADE (Duan et al., CVPR 2021), https://arxiv.org/abs/2011.10269.

A teacher's embeddings of unlabelled images are clustered, and the number of its cluster is the
label of an image (section 3.2). Of the pairs of a batch the student learns from those whose
similarity leaves least doubt (eq. 7).
"""

from dataclasses import dataclass

import torch
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from torch import Tensor

from dmlkit.metrics import kmeans
from dmlkit.metrics.inputs import checked_labels
from dmlkit.miners import Pairs, all_pairs


@dataclass(frozen=True)
class PseudoLabels:
    """The cluster of each unlabelled image.

    Args:
        labels: (M,) int64 in 0..C-1, on the device of the embeddings; every number occurs.
        sizes: (C,) int64, images of each cluster, at least one.
    """

    labels: Tensor
    sizes: Tensor


def cluster(
    embeddings: Tensor, num_clusters: int, *, seed: int, iterations: int = 20, restarts: int = 5
) -> PseudoLabels:
    """Number unlabelled images by k-means clusters of their embeddings (section 3.2).

    By :func:`dmlkit.metrics.kmeans`, whose distance is Euclidean and whose centroids are means, not
    made unit. Of the paper's settings the number of clusters is known for NABirds (400); which
    k-means it is, its iterations and its restarts are not known.

    Args:
        embeddings: (M, D) of the teacher, clustered as they are.
        num_clusters: k in the paper; fewer come back if fewer embeddings differ.
        seed: of the initial centroids.
        iterations: most times that the centroids are moved.
        restarts: runs of which the one that fits best is kept.

    Raises:
        ValueError: what ``kmeans`` refuses.
    """
    found = kmeans(embeddings, num_clusters, iterations=iterations, restarts=restarts, seed=seed)
    _, labels, sizes = found.assignments.unique(return_inverse=True, return_counts=True)
    return PseudoLabels(labels, sizes)


def purity(labels: Tensor, truth: Tensor) -> float:
    """Return the fraction of images whose class is the most frequent of their cluster, in (0, 1].

    Higher is better at one number of clusters only: with more of them it grows by itself, to 1
    where each image is its own.

    Args:
        labels: (M,) integer cluster of each image.
        truth: (M,) integer class of each image, any values.

    Raises:
        ValueError: no image, or labels that do not correspond or are no integers.
    """
    labels, truth = _checked(labels, truth)
    _, clusters = labels.unique(return_inverse=True)
    names, classes = truth.unique(return_inverse=True)
    num_clusters = int(clusters.max()) + 1
    counts = (clusters * len(names) + classes).bincount(minlength=num_clusters * len(names))
    majority = counts.view(num_clusters, len(names)).amax(dim=1)  # (C,)
    return majority.sum().item() / len(labels)


def agreement(labels: Tensor, truth: Tensor) -> dict[str, float]:
    """Compare pseudo labels with the classes where these are known; training does not ask.

    Args:
        labels: (M,) integer cluster of each image.
        truth: (M,) integer class of each image, any values.

    Returns:
        ``purity``; ``nmi``, normalised by the arithmetic mean of the entropies, in [0, 1]; ``ami``,
        adjusted for chance, at most 1 and 0 for random labels. Higher is better, and only ``ami``
        compares different numbers of clusters. See :func:`dmlkit.metrics.clustering_metrics`.

    Raises:
        ValueError: no image, or labels that do not correspond or are no integers.
    """
    labels, truth = _checked(labels, truth)
    classes, clusters = truth.cpu().numpy(), labels.cpu().numpy()
    return {
        "purity": purity(labels, truth),
        "nmi": float(normalized_mutual_info_score(classes, clusters, average_method="arithmetic")),
        "ami": float(adjusted_mutual_info_score(classes, clusters)),
    }


def _checked(labels: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as int64 (M,) on one device; ValueError if they are not classes of images."""
    labels = checked_labels("labels", labels, labels)
    if not len(labels):
        raise ValueError("labels are empty; give the cluster of at least one image")
    return labels, checked_labels("truth", truth, labels)


def mine_by_similarity(
    similarity: Tensor, lower: float, upper: float, *, labels: Tensor | None = None
) -> Pairs:
    """Take images of high similarity for positive pairs, and of low for negative ones (eq. 7).

    The thresholds are the running means of both kinds of pair, T1 above and T2 below, as
    :attr:`dmlkit.losses.SimilarityDistributionLoss.thresholds` has them in this order. While the
    means are not known, or the upper is not above the lower, the sets would overlap, and there is
    no pair at all; that is a guard of a third-party implementation and not in the paper. Whether
    the paper asks for pairs of one cluster is not known to us; the third party does not.

    Args:
        similarity: (B, B), of the responses of a feature basis in the paper.
        lower: a pair at or below is negative; T2 in the paper.
        upper: a pair at or above is positive; T1 in the paper.
        labels: (B,) clusters; if given, positives are of one cluster too, and negatives of two.

    Returns:
        The positive and the negative mask, each (B, B) bool. Nothing is in a pair with itself.

    Raises:
        ValueError: if ``similarity`` is not square, or if there is not one label for each row.
    """
    size = len(similarity)
    if similarity.shape != (size, size):
        raise ValueError(f"similarity has shape {tuple(similarity.shape)}; give (B, B)")
    if labels is not None and labels.shape != (size,):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}; give one cluster id for each of the {size} "
            "rows of similarity"
        )
    is_apart = upper > lower  # False for NaN too
    is_other = ~torch.eye(size, dtype=torch.bool, device=similarity.device)
    # Asked this way round, NaN keeps its pairs, and the loss shows it.
    positives = ~(similarity < upper) & is_other & is_apart
    negatives = ~(similarity > lower) & is_other & is_apart
    if labels is None:
        return positives, negatives
    same_cluster, other_cluster = all_pairs(labels)
    return positives & same_cluster, negatives & other_cluster
