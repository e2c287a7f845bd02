"""Whether similarity follows an order that is known: of a factor within a class, or of views."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from dmlkit.distances import cosine_similarity
from dmlkit.metrics.inputs import check_finite, check_rows, checked_labels


@torch.no_grad()
def rank_correlation_within_classes(
    embeddings: Tensor,
    labels: Tensor,
    factors: Mapping[str, Tensor],
    *,
    angles: Collection[str] = (),
) -> dict[str, Tensor]:
    """Return how well each query orders the images of its own class by a known factor.

    That is, over the other images of its class, Spearman's rank correlation of the similarity to
    the query with minus the absolute difference of the factor; ties share their mean rank. 1: the
    nearer in the factor, the more similar; 0: no relation; -1: the reverse.

    Args:
        embeddings: (Q, D), of unit length.
        labels: (Q,) integer class of each, any values.
        factors: name of each factor, such as the pose, to its values (Q,), real numbers.
        angles: names of factors in degrees, of which 359 and 1 are 2 apart.

    Returns:
        Name of each factor to (Q,) float64 in [-1, 1]; NaN for a query with fewer than three other
        images, or where all of them are equally similar or equally different.

    Raises:
        ValueError: no rows, NaN or infinity, labels or factors that do not correspond to the rows.
    """
    check_rows("embeddings", embeddings)
    check_finite("embeddings", embeddings)
    labels = checked_labels("labels", labels, embeddings)
    values = {}
    for name, factor in factors.items():
        if factor.shape != labels.shape:
            raise ValueError(
                f"factor {name} {tuple(factor.shape)} does not correspond to the rows "
                f"{tuple(embeddings.shape)}; it should be ({len(labels)},)"
            )
        values[name] = factor.to(labels.device, torch.float64)
        check_finite(f"factor {name}", values[name][:, None])
    found = {name: torch.full_like(factor, torch.nan) for name, factor in values.items()}
    for members in labels.argsort().split(labels.unique(return_counts=True)[1].tolist()):
        if len(members) < 4:
            continue
        similarity_ranks = _ranks_of_others(cosine_similarity(embeddings[members]))
        for name, factor in values.items():
            apart = (factor[members, None] - factor[members]).abs()
            if name in angles:
                apart = torch.minimum(apart % 360, 360 - apart % 360)
            found[name][members] = _correlation(similarity_ranks, _ranks_of_others(-apart))
    return found


@torch.no_grad()
def similarity_to_views(views: Tensor) -> Tensor:
    """Return (N,) the mean cosine of views 1..N with view 0, over the images.

    Where strength orders the views and the embedding follows, it falls from first to last.

    Args:
        views: (M, 1 + N, D), of unit length; view 0 is the image itself.

    Raises:
        ValueError: another shape, no image, or no view beside the image itself.
    """
    if views.ndim != 3 or not len(views) or views.shape[1] < 2:
        raise ValueError(
            f"views have shape {tuple(views.shape)}; give (M, 1 + N, D) embeddings of at least "
            "one image, itself first, and at least one view of it"
        )
    views = views.to(torch.promote_types(views.dtype, torch.float32))
    return (views[:, 1:] * views[:, :1]).sum(dim=2).mean(dim=0)


def _ranks_of_others(scores: Tensor) -> Tensor:
    """Return (n, n - 1) float64 ranks within each row of ``scores`` (n, n), the diagonal aside.

    Equal scores share the mean of their ranks. Ranks are centred on 0: a row of equals is all 0.
    """
    size = len(scores)
    # Without its first value, a flat square matrix has the diagonal at the end of each row.
    others = scores.flatten()[1:].view(size - 1, size + 1)[:, :-1].reshape(size, size - 1)
    ascending = others.sort(dim=1).values
    below = torch.searchsorted(ascending, others)
    up_to = torch.searchsorted(ascending, others, right=True)
    return (below + up_to - (size - 1)).double() / 2


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    """Return (n,) correlations of rows centred on 0, (n, L); NaN where one of them is constant."""
    return (one * other).sum(dim=1) / (one.square().sum(dim=1) * other.square().sum(dim=1)).sqrt()
