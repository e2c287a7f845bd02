"""Image transforms in batches on the training device, with the semantics of torchvision's.

Each image of a batch gets its own crop and flip. Cropping and antialiased bilinear resizing are
separable and linear, so both are one matrix per image and axis; the flip reverses the columns
of the second. Randomness is drawn on the CPU from the transform's own generator, so a run sees the
same crops on every device.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class RandomResizedCropFlip:
    """Random area and aspect ratio, resized to a square, mirrored with probability ``flip``.

    Follows torchvision's ``RandomResizedCrop`` (ten tries to fit a box, then the whole image
    clipped to the ratio range) and ``RandomHorizontalFlip``.

    Args:
        image_size: side of the result in pixels, S.
        seed: seed of the transform's own generator.
        scale: range of the crop's share of the image area. 0.16 to 1 is the field's convention.
        ratio: range of the crop's width / height.
        flip: probability of mirroring.

    Raises:
        ValueError: a scale that is no range within (0, 1].
    """

    def __init__(
        self,
        image_size: int,
        *,
        seed: int,
        scale: Sequence[float] = (0.16, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
    ) -> None:
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(
                f"CROP_SCALE={list(scale)} is no range of shares; use e.g. [0.16, 1.0]"
            )
        self.image_size = image_size
        self.scale = scale
        self.ratio = ratio
        self.flip = flip
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, images: Tensor) -> Tensor:
        """Return (B, 3, S, S) float32 in [0, 1] from ``images`` (B, 3, H, W) uint8."""
        boxes = self.draw_boxes(len(images), *images.shape[-2:])
        mirrored = torch.rand(len(images), generator=self.generator) < self.flip
        top, left, height, width = (b.to(images.device) for b in boxes)
        rows = resize_matrix(top, height, self.image_size, images.shape[-2])  # (B, S, H)
        columns = resize_matrix(left, width, self.image_size, images.shape[-1])  # (B, S, W)
        mirrored = mirrored[:, None, None].to(images.device)
        columns = torch.where(mirrored, columns.flip(1), columns)
        return resample(images, rows, columns)

    def draw_boxes(self, count: int, height: int, width: int) -> tuple[Tensor, ...]:
        """Return integer (top, left, height, width), each (B,), of ``count`` random crops."""
        tries = (count, 10)
        area = height * width * self._uniform(tries, *self.scale)
        ratio = self._uniform(tries, *map(math.log, self.ratio)).exp()
        widths = (area * ratio).sqrt().round().long()
        heights = (area / ratio).sqrt().round().long()
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        first = fits.int().argmax(dim=1, keepdim=True)  # the first try that fits
        fitted = fits.any(dim=1)
        clipped_width = min(width, round(height * self.ratio[1]))
        clipped_height = min(height, round(width / self.ratio[0]))
        w = torch.where(fitted, widths.gather(1, first).squeeze(1), clipped_width)
        h = torch.where(fitted, heights.gather(1, first).squeeze(1), clipped_height)
        top = self._uniform((count,), 0, 1).mul(height - h + 1).long()
        left = self._uniform((count,), 0, 1).mul(width - w + 1).long()
        # The fallback box is centred, as torchvision's is.
        top = torch.where(fitted, top, (height - h) // 2)
        left = torch.where(fitted, left, (width - w) // 2)
        return top, left, h, w

    def _uniform(self, shape: tuple[int, ...], low: float, high: float) -> Tensor:
        # float64, so that the product with an image side never rounds up to the side itself.
        drawn = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return low + (high - low) * drawn


class RandomView:
    """Pick one of the V cached feature views of each image at random.

    Args:
        seed: seed of the transform's own generator.
    """

    def __init__(self, *, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, features: Tensor) -> Tensor:
        """Return (B, F) float32 from ``features`` (B, V, F); view 0, the plain image, is one."""
        view = torch.randint(features.shape[1], (len(features),), generator=self.generator)
        return features[torch.arange(len(features)), view.to(features.device)].float()


def centre_crop(images: Tensor, image_size: int) -> Tensor:
    """Return the central (B, 3, S, S) of ``images`` (B, 3, H, W) uint8 as float32 in [0, 1].

    Raises:
        ValueError: the images are smaller than ``image_size``.
    """
    height, width = images.shape[-2:]
    if min(height, width) < image_size:
        raise ValueError(
            f"cannot crop {image_size} px out of images of {height} x {width} px; "
            "set CACHE_SIZE to at least IMAGE_SIZE"
        )
    top, left = (height - image_size) // 2, (width - image_size) // 2
    return images[..., top : top + image_size, left : left + image_size].float() / 255


def first_view(features: Tensor) -> Tensor:
    """Return (B, F) float32 features of the plain images, from ``features`` (B, V, F)."""
    return features[:, 0].float()


def resize_matrix(start: Tensor, length: Tensor, size: int, total: int) -> Tensor:
    """Return (B, size, total) weights that crop one axis and resize it, bilinear and antialiased.

    Args:
        start: (B,) first pixel of the crop.
        length: (B,) number of pixels of the crop.
        size: number of pixels of the result.
        total: number of pixels of the source axis.
    """
    scale = length / size  # (B,)
    # Shrinking widens the triangle filter, so that every source pixel counts; enlarging does not.
    support = scale.clamp_min(1.0)[:, None, None]
    target = torch.arange(size, device=start.device)
    centre = start[:, None] + (target + 0.5) * scale[:, None]  # (B, size)
    pixel = torch.arange(total, device=start.device)
    weights = 1 - ((pixel + 0.5 - centre[..., None]) / support).abs()  # (B, size, total)
    inside = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])  # (B, total)
    weights = weights.clamp_min(0) * inside[:, None]
    return weights / weights.sum(dim=-1, keepdim=True)


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return (B, 3, S, S') float32 in [0, 1]: ``rows`` @ image @ ``columns``^T for each channel.

    Args:
        images: (B, 3, H, W) uint8.
        rows: (B, S, H) weights.
        columns: (B, S', W) weights.
    """
    pixels = images.float() / 255
    return rows[:, None] @ pixels @ columns[:, None].transpose(-1, -2)
