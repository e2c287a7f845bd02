"""Sums over some of the pairs of each anchor, which losses share."""

import torch
from torch import Tensor


def log_sum_exp(logits: Tensor, keep: Tensor) -> Tensor:
    """Return log(sum of exp over the kept entries): (B, B) -> (B,), hugely negative if none."""
    is_empty = ~keep.any(dim=1)  # (B,)
    # An empty row keeps all its entries at first: of -inf alone, the gradient would be NaN.
    keep = keep | is_empty[:, None]
    total = logits.masked_fill(~keep, -torch.inf).logsumexp(dim=1)  # (B,)
    return total.masked_fill(is_empty, torch.finfo(logits.dtype).min)
