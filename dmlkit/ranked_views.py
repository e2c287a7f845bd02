"""Views of an image that differ the more from it, the stronger they are.

Self-supervised ranking (Fu et al., AAAI 2021) learns from their order. It crops images, sees them
in perspective and changes their colours. How strength sets each of these is known only from a
student reproduction whose authors had the paper, CENG501 at METU, Spring 2022, by Ergun and Yilmaz:
https://github.com/CENG501-Projects/CENG501-Spring2022.
"""

import hashlib
import inspect
import math
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dmlkit import transforms
from dmlkit.datasets import ImageSet
from dmlkit.datasets.cache import cached_arrays
from dmlkit.datasets.decoding import DECODER
from dmlkit.models import Trunk, trunks
from dmlkit.seeding import derive_seed, generator_of_images
from dmlkit.transforms import (
    RandomPerspective,
    RandomResizedCropFlip,
    centre_crop,
    corners_of,
    jitter_colours,
    perspective,
    resized_crop,
    virtual_sizes,
)

FAMILIES = ("crop", "perspective", "colour")


def strengths(count: int, coefficient: float = 0.2) -> list[float]:
    """Return tanh(coefficient n) for n = 1..count: growing strengths in (0, 1).

    That is the choice of the student reproduction (CENG501 at METU, Spring 2022, Ergun and Yilmaz);
    what the paper chose is not known to us.

    Args:
        count: number of views, N.
        coefficient: how fast strength grows.

    Raises:
        ValueError: a count below 1 or a coefficient that is not above 0.
    """
    if count < 1 or not coefficient > 0:
        raise ValueError(
            f"{count} views of coefficient {coefficient} have no growing strengths; use at least 1 "
            "view and a coefficient above 0, e.g. 0.2"
        )
    return [math.tanh(coefficient * n) for n in range(1, count + 1)]


class RankedViews:
    """Make N views of each image, of growing strength c: cropped, seen from aside, recoloured.

    In this order:

    - ``crop``: a random box of 1 - c of the area, as ``RandomResizedCropFlip`` draws it, resized to
      the whole; not mirrored.
    - ``perspective``: corners move inwards by up to c of half the side, black where the image does
      not reach.
    - ``colour``: brightness, contrast and saturation change by a factor of 1 + c / 2 or 1 - c / 2,
      each sign and the order of the three at random.

    Args:
        image_size: side of images and views in pixels, S.
        strengths: c of views 1..N, each in [0, 1).
        seed: seed of the views' own generators.
        families: which of ``FAMILIES`` to apply.
        shuffled: permute the N views of each image at random after they are made. That is the
            control of any use of their order: the views are the same, their order says nothing.

    Raises:
        ValueError: no strengths, a strength outside [0, 1), or an unknown family.
    """

    def __init__(
        self,
        image_size: int,
        *,
        strengths: Sequence[float],
        seed: int,
        families: Sequence[str] = FAMILIES,
        shuffled: bool = False,
    ) -> None:
        if not strengths or not all(0 <= c < 1 for c in strengths):
            raise ValueError(
                f"strengths={list(strengths)} are not one or more numbers from 0 to below 1; use "
                "e.g. dmlkit.ranked_views.strengths(4)"
            )
        if unknown := [family for family in families if family not in FAMILIES]:
            raise ValueError(f"families {unknown} are unknown; choose from {', '.join(FAMILIES)}")
        self.image_size = image_size
        self.strengths = tuple(strengths)
        self.families = tuple(family for family in FAMILIES if family in families)
        self.shuffled = shuffled
        # A stream for each, so that to leave one out changes nothing in the others.
        self.crops = [
            RandomResizedCropFlip(
                image_size, seed=derive_seed(seed, "crop", n), scale=(1 - c, 1 - c)
            )
            for n, c in enumerate(strengths)
        ]
        self.perspectives = RandomPerspective(seed=derive_seed(seed, "perspective"))
        self.colours = generator_of_images(derive_seed(seed, "colour"))
        self.orders = generator_of_images(derive_seed(seed, "order"))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return (M, N, 3, S, S) float32 in [0, 1] from ``images`` (M, 3, S, S) float in [0, 1].

        Raises:
            ValueError: images of another shape or of whole numbers.
        """
        side, count = self.image_size, len(self.strengths)
        if images.shape[1:] != (3, side, side) or not images.is_floating_point():
            raise ValueError(
                f"images {tuple(images.shape)} of type {images.dtype} should be (M, 3, {side}, "
                f"{side}), floating, in [0, 1]; centre_crop makes them of stored images"
            )
        views = images.float().repeat_interleave(count, dim=0)  # (M * N, 3, S, S)
        change = {"crop": self._crop, "perspective": self._move, "colour": self._recolour}
        # Autocast would round the products of matrices within to bfloat16.
        with torch.autocast(images.device.type, enabled=False):
            for family in self.families:
                views = change[family](views, len(images))
        views = views.clamp(0, 1).unflatten(0, (len(images), count))
        if not self.shuffled:
            return views
        order = torch.rand(len(images), count, generator=self.orders).argsort(dim=1)
        return views[torch.arange(len(images))[:, None], order]

    def _crop(self, views: Tensor, num_images: int) -> Tensor:
        drawn = [crop.draw_boxes(num_images, *views.shape[-2:]) for crop in self.crops]
        boxes = tuple(torch.stack(sides, dim=1).flatten() for sides in zip(*drawn, strict=True))
        # It takes stored bytes, which it divides by 255.
        return resized_crop(views * 255, boxes, self.image_size, virtual=virtual_sizes(views, None))

    def _move(self, views: Tensor, num_images: int) -> Tensor:
        size = views.shape[-2:]
        drawn = [self.perspectives.draw_corners(num_images, *size, c) for c in self.strengths]
        corners = torch.stack(drawn, dim=1).flatten(0, 1)  # (M * N, 4, 2)
        return perspective(views, corners_of(*size).expand_as(corners), corners)

    def _recolour(self, views: Tensor, num_images: int) -> Tensor:
        change = torch.tensor(self.strengths).repeat(num_images)[:, None] / 2  # (M * N, 1)
        signs = torch.randint(2, (len(views), 3), generator=self.colours) * 2 - 1
        factors = torch.cat([1 + signs * change, torch.zeros(len(views), 1)], dim=1)  # hue stays
        # Ranks of random numbers are a random permutation.
        orders = torch.rand(len(views), 4, generator=self.colours).argsort(dim=1)
        return jitter_colours(views, factors, orders)


class CachedRankedViews:
    """Pick ranked views of each image from what ``cached_ranked_features`` keeps of it.

    Args:
        count: number of views, N, the weakest of those kept.
        seed: seed of the picks' own generators.
        shuffled: see ``RankedViews``.
    """

    def __init__(self, count: int, *, seed: int, shuffled: bool = False) -> None:
        self.count = count
        self.shuffled = shuffled
        # Two, so that shuffled views are the same as unshuffled ones.
        self.draws = generator_of_images(derive_seed(seed, "draws"))
        self.orders = generator_of_images(derive_seed(seed, "order"))

    def __call__(self, features: Tensor) -> Tensor:
        """Return (M, N, F) float32, each view of a random draw, from ``features`` (M, K, N', F).

        Raises:
            ValueError: fewer views are kept than asked for.
        """
        size, draws, kept = features.shape[:3]
        if kept < self.count:
            raise ValueError(f"{self.count} views are asked for, {kept} are kept; lower NUM_VIEWS")
        draw = torch.randint(draws, (size, self.count), generator=self.draws)  # by view
        view = torch.arange(self.count).expand(size, -1)
        image = torch.arange(size)[:, None]
        if self.shuffled:
            view = torch.rand(size, self.count, generator=self.orders).argsort(dim=1)
            draw = draw[image, view]
        chosen = [index.to(features.device) for index in (image, draw, view)]
        return features[chosen[0], chosen[1], chosen[2]].float()


@torch.no_grad()
def cached_ranked_features(
    trunk: Trunk,
    image_set: ImageSet,
    *,
    strengths: Sequence[float],
    draws: int,
    image_size: int,
    device: torch.device,
    families: Sequence[str] = FAMILIES,
    batch_size: int = 32,
) -> Tensor:
    """Return the features of ranked views of every image, computed once and memory-mapped.

    All images of the store are embedded, so every split of it shares one cache, as in
    ``dmlkit.features.cached_features``, whose view 0 is the image that is view 0 here.

    Args:
        trunk: the frozen trunk; used in evaluation mode.
        image_set: images, or a part of them.
        strengths: see ``RankedViews``.
        draws: K, independent sets of the N views of an image.
        image_size: side the trunk sees, pixels.
        device: where the trunk is.
        families: see ``RankedViews``.
        batch_size: images at a time, with N views each.

    Returns:
        (M, K, N, F) float16, for the M rows of the store.

    Raises:
        ValueError: fewer than one draw, or what ``RankedViews`` refuses.
    """
    if draws < 1:
        raise ValueError(f"{draws=} leave no views; use at least 1")
    trunk.eval()
    images, sizes = image_set.images, image_set.sizes
    seed = derive_seed(0, "cached ranked views")
    make_views = RankedViews(image_size, strengths=strengths, seed=seed, families=families)

    def fill(arrays: dict[str, np.ndarray]) -> None:
        total = len(images) * draws * len(strengths)
        progress = tqdm(
            total=total, desc="ranked features", unit=" images", file=sys.stdout, ascii=True
        )
        for rows in torch.arange(len(images)).split(batch_size):
            stored = images.index_select(0, rows).to(device)
            shapes = None if sizes is None else sizes[rows]
            plain = centre_crop(stored, shapes, image_size=image_size)
            for draw in range(draws):
                features = trunk(make_views(plain).flatten(0, 1)).half().cpu()
                arrays["features"][rows, draw] = features.unflatten(0, (len(rows), -1)).numpy()
                progress.update(len(features))

    key = _key(
        trunk,
        image_set.fingerprint,
        tuple(images.shape),
        0 if sizes is None else int(sizes[0].min()),  # the shorter side
        make_views.strengths,
        make_views.families,
        draws,
        image_size,
        batch_size,  # all boxes of a batch are drawn at once
    )
    shape = (len(images), draws, len(strengths), trunk.out_features)
    return cached_arrays(f"features/{key}", {"features": (shape, np.float16)}, fill)["features"]


def _key(trunk: Trunk, *settings: object) -> str:
    """Return a digest of everything the features depend on: images, settings, trunk, this code."""
    inputs = (trunk.reverse_channels, trunk.pooling, DECODER)
    digest = hashlib.sha256(repr((settings, inputs)).encode())
    # Whole modules: too much costs another pass at worst, a forgotten function wrong features.
    for code in (RankedViews, cached_ranked_features, transforms, trunks, type(trunk.layers)):
        digest.update(inspect.getsource(code).encode())
    # Buffers, unlike the state, hold mean and standard deviation of the inputs too.
    for name, values in (*trunk.named_parameters(), *trunk.named_buffers()):
        digest.update(name.encode() + values.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
