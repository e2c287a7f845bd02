"""What every metric asks of its input, refused in one sentence that says how to mend it."""

import torch
from torch import Tensor


def check_rows(name: str, rows: Tensor, remedy: str = "torch.from_numpy makes one of an array"):
    """Raise ValueError unless ``rows`` is a tensor (N, D) that is not empty."""
    if not isinstance(rows, Tensor):
        raise ValueError(f"{name}: give a torch tensor, not {type(rows).__name__}; {remedy}")
    if rows.ndim != 2:
        raise ValueError(f"{name} {tuple(rows.shape)} should be (N, D), a row per image")
    if not rows.numel():
        raise ValueError(f"{name} {tuple(rows.shape)} is empty; give at least one row")


def check_finite(name: str, rows: Tensor) -> None:
    """Raise ValueError naming the first row of ``rows`` (N, D) that holds NaN or infinity."""
    # The least and the largest value show NaN and infinity in a third of the time.
    if not torch.stack(rows.aminmax()).isfinite().all():
        first = int((~rows.isfinite().all(dim=1)).nonzero()[0])
        raise ValueError(
            f"row {first} of {name} holds NaN or infinity (in float32); look where it was computed"
        )


def checked_labels(name: str, labels: Tensor, rows: Tensor) -> Tensor:
    """Return ``labels`` (N,) as int64 on the device of ``rows`` (N, D); ValueError if not so."""
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"{name}: give an integer tensor, not {type(labels).__name__}; torch.as_tensor(labels) "
            "makes one of numbers, numpy.unique(labels, return_inverse=True)[1] numbers of names"
        )
    if labels.shape != rows.shape[:1]:
        hint = "; labels.squeeze(1), or argmax(1) of one-hot rows" if labels.ndim == 2 else ""
        raise ValueError(
            f"{name} {tuple(labels.shape)} do not correspond to the rows {tuple(rows.shape)}; "
            f"they should be ({len(rows)},){hint}"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"{name} are {labels.dtype}; give integers, such as labels.long()")
    return labels.to(rows.device, torch.int64).contiguous()


def checked_ks(ks: tuple[int, ...], num_items: int) -> tuple[int, ...]:
    """Return the numbers of neighbours K of Recall@K; ValueError unless 1 <= K <= num_items."""
    if not isinstance(ks, tuple | list) or not all(isinstance(k, int) for k in ks):
        raise ValueError(f"ks = {ks!r} should be a tuple of integers, such as (1, 10)")
    if not ks or min(ks) < 1:
        raise ValueError(f"Recall@K is not defined for K in {ks}; give at least one K, from 1")
    if max(ks) > num_items:
        raise ValueError(
            f"Recall@{max(ks)} needs at least {max(ks)} items to retrieve, there are {num_items}; "
            "leave it out of ks"
        )
    return tuple(ks)


def check_gallery(gallery: Tensor | None, gallery_labels: Tensor | None) -> None:
    """Raise ValueError if only one of the two is given."""
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("give gallery and gallery_labels together, or neither")


def check_positive(**values: float) -> None:
    """Raise ValueError naming the first of ``values`` that is not above zero."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} = {value} should be above 0")


def no_relevant_item(is_one_set: bool) -> ValueError:
    """Return the error of a set in which no query has anything to find."""
    return ValueError(
        "no query has a relevant item: each class has a single image"
        if is_one_set
        else "no query has a relevant item: no class of labels occurs in gallery_labels; "
        "number the classes of both alike"
    )
