"""Clustering an embedding with k-means, and how well the clusters agree with the classes."""

from dataclasses import dataclass
from math import frexp

import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from torch import Tensor

from dmlkit.metrics.inputs import check_finite, check_positive, check_rows, checked_labels
from dmlkit.seeding import derive_seed

CHUNK_ROWS = 1024  # points compared at once: few enough for their scores to stay in the cache
PERMUTATIONS = 5  # for the chance level; at 5,924 images of 100 classes their mean varies by 0.001


@dataclass(frozen=True)
class Clusters:
    """The best of several runs of k-means.

    Args:
        assignments: (N,) int64, the nearest centroid of each point, 0..k-1; a centroid may have
            no point where there are fewer distinct points than centroids.
        centroids: (k, D) float32.
        objective: sum of the squared Euclidean distances of the points to their centroids.
        objectives: the same of each restart, of which ``objective`` is the least.
        iterations: times that the centroids were moved before no assignment changed, at most as
            many as asked for.
    """

    assignments: Tensor
    centroids: Tensor
    objective: float
    objectives: tuple[float, ...]
    iterations: int


def clustering_metrics(
    embeddings: Tensor, labels: Tensor, *, iterations: int = 20, restarts: int = 5, seed: int = 0
) -> dict[str, float]:
    """Compare the classes with as many k-means clusters, by mutual information.

    With I the mutual information of clusters and classes, and H their entropies:

    - ``nmi_arithmetic``: 2 I / (H(clusters) + H(classes)), in [0, 1]; scikit-learn since 0.22.
    - ``nmi_geometric``: I / sqrt(H(clusters) H(classes)), in [0, 1] and never less; scikit-learn
      before 0.22, and with it most papers before 2020.
    - ``ami``: (I - E) / ((H(clusters) + H(classes)) / 2 - E), at most 1, with E the expectation
      of I under random labels: 0 is chance whatever the number of classes (Vinh et al., 2010).
    - ``nmi_arithmetic_of_random_labels``, ``nmi_geometric_of_random_labels``: the chance level of
      NMI, the mean when the same assignments are dealt to the images at random. It is not 0, and
      with few images per class it is most of the score.

    All are better when higher. Published code runs 300 iterations of 10 restarts (NormSoftmax) or
    20 of 1 (pytorch-metric-learning). Most of the objective is gained in 20 iterations; what
    remains is the luck of the initial centroids, hence more than one restart. At the size of
    Stanford Online Products (60,502 images, 11,316 classes) one restart is enough, as the luck
    of so many clusters averages out; there the expectation E takes another 25 s of a processor.

    Args:
        embeddings: (N, D), clustered as they are; the papers cluster L2-normalised rows.
        labels: (N,) integer class of each embedding, any values; at least two classes.
        iterations: see ``kmeans``.
        restarts: see ``kmeans``.
        seed: of the initial centroids and of the random labels.

    Raises:
        ValueError: what ``kmeans`` refuses, labels that do not correspond or are no integers, a
            single class, no class with two images.
    """
    check_rows("embeddings", embeddings)
    labels = checked_labels("labels", labels, embeddings)
    num_classes = len(labels.unique())
    if num_classes == 1:
        raise ValueError(f"all labels are {labels[0].item()}; NMI needs at least two classes")
    if num_classes == len(labels):
        raise ValueError(
            "each class has a single image, which any clustering into as many clusters gets right; "
            "NMI needs a class with two"
        )
    found = kmeans(embeddings, num_classes, iterations=iterations, restarts=restarts, seed=seed)
    classes, clusters = labels.cpu().numpy(), found.assignments.cpu().numpy()

    generator = torch.Generator().manual_seed(derive_seed(seed, "random labels"))
    orders = [torch.randperm(len(classes), generator=generator) for _ in range(PERMUTATIONS)]
    metrics = {}
    for mean in ("arithmetic", "geometric"):
        by_chance = [
            normalized_mutual_info_score(classes, clusters[order], average_method=mean)
            for order in orders
        ]
        score = normalized_mutual_info_score(classes, clusters, average_method=mean)
        metrics[f"nmi_{mean}"] = float(score)
        metrics[f"nmi_{mean}_of_random_labels"] = float(sum(by_chance) / PERMUTATIONS)
    return metrics | {"ami": float(adjusted_mutual_info_score(classes, clusters))}


@torch.no_grad()
def kmeans(
    points: Tensor,
    k: int,
    *,
    iterations: int = 20,
    restarts: int = 1,
    seed: int = 0,
    memory_mib: float = 128,
) -> Clusters:
    """Cluster ``points`` (N, D) by Lloyd's algorithm, from k random points, on their device.

    The initial centroids depend on the seed alone. From there two runs on one device with the same
    number of threads agree exactly; another device or chunk size may round a near tie otherwise.

    Args:
        points: any floating type, computed in float32; not normalised here.
        k: number of clusters, 1..N.
        iterations: most times that the centroids are moved; fewer if no assignment changes.
        restarts: runs from other initial centroids, of which the least objective is kept.
        seed: any integer.
        memory_mib: bound on the scores held at once; the points are also copied once.

    Raises:
        ValueError: no points, NaN or infinity, k, iterations, restarts or memory out of range.
    """
    check_rows("points", points)
    check_finite("points", points)
    if not 1 <= k <= len(points):
        raise ValueError(f"k = {k} clusters of {len(points)} points; choose k in 1..{len(points)}")
    check_positive(iterations=iterations, restarts=restarts, memory_mib=memory_mib)
    # In units of a power of two about their size, squares stay in the range of float32 and nothing
    # is rounded. Scores lose the digits that a common offset takes, so the points are centred.
    points = points.to(torch.promote_types(points.dtype, torch.float32))
    unit = 2.0 ** (frexp(max(map(abs, torch.stack(points.aminmax()).tolist())))[1] - 1)
    points = points / unit
    mean = points.mean(0)
    points = (points - mean).float()

    rows = max(1, min(CHUNK_ROWS, len(points), int(memory_mib * 2**20) // (4 * k)))
    buffer = points.new_empty(rows, k)
    best, objectives = None, []
    for restart in range(restarts):
        generator = torch.Generator().manual_seed(derive_seed(seed, "k-means", restart))
        chosen = torch.randperm(len(points), generator=generator)[:k].to(points.device)
        *found, objective = _lloyd(points, points[chosen], iterations, buffer)
        if not objectives or objective < min(objectives):
            best = found
        objectives.append(objective)
    assignments, centroids, done = best
    centroids = ((centroids + mean) * unit).float()
    objectives = tuple(objective * unit**2 for objective in objectives)
    return Clusters(assignments, centroids, min(objectives), objectives, done)


def _lloyd(
    points: Tensor, centroids: Tensor, iterations: int, buffer: Tensor
) -> tuple[Tensor, Tensor, int, float]:
    """Return assignments, centroids, number of moves and objective from given centroids (k, D)."""
    assignments, scores = _nearest(points, None, centroids, buffer)
    for done in range(1, iterations + 1):  # noqa: B007, the last one is returned
        previous, before = assignments, centroids
        centroids = _centroids(points, assignments, scores, len(centroids))
        moved = (centroids != before).any(dim=1)
        assignments, scores = _reassign(points, centroids, moved, assignments, scores, buffer)
        if torch.equal(assignments, previous):
            break
    # By differences: |x|^2 - 2 score would leave rounding noise where points and centroids meet.
    parts = zip(points.split(CHUNK_ROWS), assignments.split(CHUNK_ROWS), strict=True)
    objective = sum((part - centroids[own]).square().sum().double() for part, own in parts)
    return assignments, centroids, done, objective.item()


def _reassign(
    points: Tensor,
    centroids: Tensor,
    moved: Tensor,
    assignments: Tensor,
    scores: Tensor,
    buffer: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return what ``_nearest`` of all points would, given it before the ``moved`` (k,) moved.

    A point whose centroid stayed can only leave it for one that moved, so it is compared with
    these alone. In late iterations few centroids move, and this saves most of the time.
    """
    all_anew = moved[assignments]
    anew = all_anew.nonzero().squeeze(1)
    if len(anew) > 0.9 * len(points):  # picking the rows would cost more than it saves
        return _nearest(points, None, centroids, buffer)
    assignments, scores = assignments.clone(), scores.clone()
    assignments[anew], scores[anew] = _nearest(points, anew, centroids, buffer)

    kept, candidates = (~all_anew).nonzero().squeeze(1), moved.nonzero().squeeze(1)
    if len(candidates):
        nearest, best = _nearest(points, kept, centroids[candidates], buffer)
        closer = best > scores[kept]
        assignments[kept[closer]] = candidates[nearest[closer]]
        scores[kept[closer]] = best[closer]
    return assignments, scores


def _nearest(
    points: Tensor, rows: Tensor | None, centroids: Tensor, buffer: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the nearest centroid of the points ``rows`` (R,) and its score x.c - |c|^2 / 2.

    The score orders centroids as the distance does, |x - c|^2 = |x|^2 - 2 score. ``rows`` is None
    for all points; ``buffer`` (B, k) takes the scores of B points at a time.
    """
    offset = centroids.square().sum(1) / -2
    count = len(points) if rows is None else len(rows)
    nearest = torch.empty(count, dtype=torch.int64, device=points.device)
    best = points.new_empty(count)
    for start in range(0, count, len(buffer)):
        span = slice(start, min(start + len(buffer), count))
        part = points[span] if rows is None else points[rows[span]]
        scores = buffer.view(-1)[: len(part) * len(centroids)].view(len(part), -1)
        torch.addmm(offset, part, centroids.T, out=scores)
        torch.max(scores, dim=1, out=(best[span], nearest[span]))
    return nearest, best


def _centroids(points: Tensor, assignments: Tensor, scores: Tensor, k: int) -> Tensor:
    """Return (k, D) the mean of each cluster; an empty one gets a point far from its centroid."""
    sizes = assignments.bincount(minlength=k)
    # Sums in the order of the points, on a GPU as well, where index_add_ would vary by the run.
    order = assignments.argsort(stable=True)
    centroids = F.embedding_bag(order, points, sizes.cumsum(0) - sizes, mode="mean")
    empty = (sizes == 0).nonzero().squeeze(1)
    if len(empty):
        squared_distance = torch.linalg.vector_norm(points, dim=1) ** 2 - 2 * scores
        farthest = squared_distance.argsort(descending=True, stable=True)
        centroids[empty] = points[farthest[: len(empty)]]
    return centroids
