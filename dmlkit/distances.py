"""Similarity and distance between L2-normalised rows.

Both leave autocast and work in float32 at least: in bfloat16 a cosine near 1 moves in steps of
0.004, which is 0.09 in Euclidean distance and more than most margins can bear.
"""

import torch
from torch import Tensor


def cosine_similarity(embeddings: Tensor, others: Tensor | None = None) -> Tensor:
    """Return the cosine of every row with every other row.

    Args:
        embeddings: (B, D), L2-normalised.
        others: (B', D), L2-normalised; ``embeddings`` themselves if not given.

    Returns:
        (B, B'), in [-1, 1] up to rounding; float32, or float64 for float64 rows.
    """
    others = embeddings if others is None else others
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    with torch.autocast(embeddings.device.type, enabled=False):
        return embeddings.to(dtype) @ others.to(dtype).T


def euclidean_distance(embeddings: Tensor, others: Tensor | None = None) -> Tensor:
    """Return the Euclidean distance of every row to every other row, sqrt(2 - 2 s).

    Args:
        embeddings: (B, D), L2-normalised.
        others: (B', D), L2-normalised; ``embeddings`` themselves if not given.

    Returns:
        (B, B'), in [0, 2] up to rounding; exactly 0, with gradient 0, where rows coincide.
    """
    squared = 2 - 2 * cosine_similarity(embeddings, others)  # (B, B')
    # The square root has slope infinity at 0, and inf * 0 would make the gradient NaN. Below
    # this bound 2 - 2 s is rounding noise, so the rows count as equal; 0 is a subgradient there.
    # The inner `where` keeps the infinite slope out of the backward pass.
    # Asked this way round, NaN is not taken for equal and stays NaN.
    is_equal = squared <= 16 * torch.finfo(squared.dtype).eps
    return torch.where(is_equal, 0.0, torch.where(is_equal, 1.0, squared).sqrt())
