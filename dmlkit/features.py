"""Features of a frozen trunk, computed once: training a head on them takes seconds, not hours."""

import hashlib
import inspect
import sys
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from dmlkit.datasets import ImageSet, Splits
from dmlkit.datasets.cache import cached_arrays
from dmlkit.datasets.decoding import DECODER
from dmlkit.models import Trunk
from dmlkit.seeding import derive_seed
from dmlkit.transforms import (
    RandomResizedCropFlip,
    centre_crop,
    resample,
    resize_matrix,
    resized_crop,
    virtual_sizes,
)


class CachedTrunk(nn.Identity):
    """Stands in for a frozen trunk where the images have been replaced by its features.

    Args:
        out_features: number of features, F.
    """

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features


def cache_views(
    splits: Splits,
    trunk: Trunk,
    views: int,
    *,
    image_size: int,
    scale: Sequence[float],
    device: torch.device,
) -> tuple[Splits, nn.Module]:
    """Freeze the trunk: replace the images of all parts by its features, and it by an identity.

    Args:
        splits: parts of one data set, images as pixels.
        trunk: the trunk to freeze.
        views: V, cached views per image, the plain one included; 0 freezes and changes nothing.
        image_size: side the trunk sees, pixels.
        scale: range of a random crop's share of the image area.
        device: where the trunk is.

    Returns:
        The splits and the trunk to train with.
    """
    if not views:
        return splits, trunk
    parts = {
        name: cached_features(
            trunk, part, views=views, image_size=image_size, scale=scale, device=device
        )
        for name, part in vars(splits).items()
        if part is not None
    }
    return Splits(**parts), CachedTrunk(trunk.out_features)


@torch.no_grad()
def cached_features(
    trunk: Trunk,
    image_set: ImageSet,
    *,
    views: int,
    image_size: int,
    scale: Sequence[float],
    device: torch.device,
    batch_size: int = 64,
) -> ImageSet:
    """Return ``image_set`` with its images replaced by features of several augmented views.

    View 0 is the plain image, centre-cropped; the others are random resized crops, mirrored half of
    the time. All images of the store are embedded, so every split of it shares one cache.

    Args:
        trunk: the frozen trunk; used in evaluation mode.
        image_set: images, or a part of them.
        views: V, views per image, the plain one included.
        image_size: side the trunk sees, pixels.
        scale: range of a random crop's share of the image area.
        device: where the trunk is.
        batch_size: images at a time.

    Returns:
        The same set with a store of (M, V, F) float16 features.
    """
    trunk.eval()
    images, sizes = image_set.images, image_set.sizes
    seed = derive_seed(0, "cached views")
    augment = RandomResizedCropFlip(image_size, scale=scale, seed=seed)
    plain = partial(centre_crop, image_size=image_size)

    def fill(arrays: dict[str, np.ndarray]) -> None:
        progress = tqdm(
            total=views * len(images), desc="features", unit=" images", file=sys.stdout, ascii=True
        )
        for rows in torch.arange(len(images)).split(batch_size):
            stored = images.index_select(0, rows).to(device)
            shapes = None if sizes is None else sizes[rows]
            for view in range(views):
                pixels = augment(stored, shapes) if view else plain(stored, shapes)
                arrays["features"][rows, view] = trunk(pixels).half().cpu().numpy()
                progress.update(len(rows))

    identity = (
        image_set.fingerprint,
        tuple(images.shape),
        0 if sizes is None else int(sizes[0].min()),  # the shorter side
        views,
        image_size,
        tuple(scale),
        _fingerprint(trunk),
    )
    key = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    shape = (len(images), views, trunk.out_features)
    arrays = cached_arrays(f"features/{key}", {"features": (shape, np.float16)}, fill)
    return image_set.with_images(arrays["features"])


def _fingerprint(trunk: Trunk) -> str:
    """Return a digest of everything the features depend on: weights, normalisation, this code."""
    digest = hashlib.sha256()
    crops = (centre_crop, RandomResizedCropFlip, virtual_sizes, resized_crop)
    for part in (cached_features, Trunk, type(trunk.layers), *crops, resize_matrix, resample):
        digest.update(inspect.getsource(part).encode())
    digest.update(DECODER.encode())
    for name, values in sorted(trunk.state_dict().items()):
        digest.update(name.encode() + values.cpu().numpy().tobytes())
    inputs = (trunk.mean.tolist(), trunk.std.tolist(), trunk.reverse_channels)
    digest.update(repr((inputs, trunk.pooling)).encode())
    return digest.hexdigest()
