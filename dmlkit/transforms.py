"""Image transforms in batches on the training device, with the semantics of torchvision's v2.

Each image of a batch gets its own crop, flip, perspective and colours. Randomness is drawn on the
CPU from the transform's own generator, so a run sees the same augmentations on every device.

A store keeps every photograph as a square of CACHE_SIZE pixels a side, which distorts all that were
not square. The crops take a second argument ``sizes``, (B, 2) int64: height and width of the
*virtual images* that the squares stand for, which are the photographs in their own shape after
torchvision's ``Resize(SHORT_SIDE)``. Boxes are whole pixels of the virtual image and become
fractional in the store. Of a long side the store holds only CACHE_SIZE samples; where the virtual
image has more, a result has less detail along that side than torchvision's, and a larger CACHE_SIZE
is the remedy. Without ``sizes`` the stored array is the image.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlkit.seeding import generator_of_images

Boxes = tuple[Tensor, Tensor, Tensor, Tensor]  # integer top, left, height, width, each (B,)


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
        ValueError: a scale that is no range within (0, 1], a ratio that is no range above 0, or a
            flip outside [0, 1].
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
        if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError(
                f"ratio={list(ratio)} is no range of widths over heights; use e.g. [0.75, 1.33]"
            )
        _check_share("flip", flip)
        self.image_size = image_size
        self.scale = scale
        self.ratio = ratio
        self.flip = flip
        self.generator = generator_of_images(seed)

    def __call__(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Return (B, 3, S, S) float32 in [0, 1] from ``images`` (B, 3, H, W) uint8.

        Args:
            images: as stored.
            sizes: (B, 2) height and width of the virtual images; None if ``images`` are the images.
        """
        virtual = virtual_sizes(images, sizes)
        boxes = self.draw_boxes(len(images), *virtual.unbind(1))
        mirrored = torch.rand(len(images), generator=self.generator) < self.flip
        return resized_crop(images, boxes, self.image_size, virtual=virtual, mirrored=mirrored)

    def draw_boxes(self, count: int, height: int | Tensor, width: int | Tensor) -> Boxes:
        """Return integer (top, left, height, width), each (B,), of ``count`` random crops.

        Args:
            count: number of crops, B.
            height: of all images, or (B,) of each, in pixels.
            width: of all images, or (B,) of each, in pixels.
        """
        height, width = (torch.as_tensor(side).expand(count) for side in (height, width))
        tries = (count, 10)
        area = (height * width)[:, None] * _uniform(self.generator, tries, *self.scale)
        ratio = _uniform(self.generator, tries, *map(math.log, self.ratio)).exp()
        widths = (area * ratio).sqrt().round().long()
        heights = (area / ratio).sqrt().round().long()
        fits = (widths > 0) & (widths <= width[:, None])
        fits &= (heights > 0) & (heights <= height[:, None])
        first = fits.int().argmax(dim=1, keepdim=True)  # the first try that fits
        fitted = fits.any(dim=1)
        clipped_width = torch.minimum(width, (height.double() * self.ratio[1]).round().long())
        clipped_height = torch.minimum(height, (width.double() / self.ratio[0]).round().long())
        w = torch.where(fitted, widths.gather(1, first).squeeze(1), clipped_width)
        h = torch.where(fitted, heights.gather(1, first).squeeze(1), clipped_height)
        top = _uniform(self.generator, (count,)).mul(height - h + 1).long()
        left = _uniform(self.generator, (count,)).mul(width - w + 1).long()
        # The fallback box is centred, as torchvision's is.
        top = torch.where(fitted, top, (height - h) // 2)
        left = torch.where(fitted, left, (width - w) // 2)
        return top, left, h, w


class RandomCropFlip:
    """A random square of the image at its own scale, mirrored with probability ``flip``.

    Follows torchvision's ``RandomCrop`` without padding, and ``RandomHorizontalFlip``.

    Args:
        image_size: side of the square in pixels, S.
        seed: seed of the transform's own generator.
        flip: probability of mirroring.

    Raises:
        ValueError: a flip outside [0, 1].
    """

    def __init__(self, image_size: int, *, seed: int, flip: float = 0.5) -> None:
        _check_share("flip", flip)
        self.image_size = image_size
        self.flip = flip
        self.generator = generator_of_images(seed)

    def __call__(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Return (B, 3, S, S) float32 in [0, 1] from ``images`` (B, 3, H, W) uint8.

        Args:
            images: as stored.
            sizes: (B, 2) height and width of the virtual images; None if ``images`` are the images.

        Raises:
            ValueError: the images are smaller than ``image_size``.
        """
        virtual = virtual_sizes(images, sizes)
        _refuse_to_enlarge(images, virtual, self.image_size)
        places = virtual - self.image_size + 1  # (B, 2) possible tops and lefts
        corners = (_uniform(self.generator, (len(images), 2)) * places).long()
        mirrored = torch.rand(len(images), generator=self.generator) < self.flip
        if sizes is None:
            return self._cut(images, corners.to(images.device), mirrored.to(images.device))
        boxes = (*corners.unbind(1), *torch.full_like(corners, self.image_size).unbind(1))
        return resized_crop(
            images, boxes, self.image_size, virtual=virtual, mirrored=mirrored, crop_first=False
        )

    def _cut(self, images: Tensor, corners: Tensor, mirrored: Tensor) -> Tensor:
        """Return the stored pixels themselves, (B, 3, S, S) float32 in [0, 1]."""
        windows = images.unfold(2, self.image_size, 1).unfold(3, self.image_size, 1)  # a view
        every = torch.arange(len(images), device=images.device)
        squares = windows[every, :, corners[:, 0], corners[:, 1]]  # (B, 3, S, S)
        return torch.where(mirrored[:, None, None, None], squares.flip(-1), squares) / 255


class ColourJitter:
    """Random brightness, contrast, saturation and hue, in an order random for each image.

    Follows torchvision's ``ColorJitter``: factors are uniform in [max(0, 1 - x), 1 + x] and the
    shift of the hue in [-x, x].

    Args:
        seed: seed of the transform's own generator.
        brightness: range of the factor of all values; 0 leaves them.
        contrast: range of the factor of differences from the image's mean grey; 0 leaves them.
        saturation: range of the factor of differences from the pixel's grey; 0 leaves them.
        hue: range of the shift as a share of the colour circle, at most 0.5; 0 leaves it.

    Raises:
        ValueError: a range below 0, or a hue above 0.5.
    """

    def __init__(
        self,
        *,
        seed: int,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
    ) -> None:
        ranges = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        for name, value in ranges.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} is no width of a range; use 0 or more, e.g. 0.4")
        if not 0 <= hue <= 0.5:
            raise ValueError(f"hue={hue} is not within half a colour circle; use 0 to 0.5")
        self.low = torch.tensor([*(max(0.0, 1 - x) for x in ranges.values()), -hue])
        self.high = torch.tensor([*(1.0 + x for x in ranges.values()), hue])
        self.generator = generator_of_images(seed)

    def __call__(self, images: Tensor) -> Tensor:
        """Return (B, 3, S, S) in [0, 1] from ``images`` of the same shape and range."""
        return jitter_colours(images, *self.draw(len(images)))

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Return random factors and orders, each (B, 4), for ``jitter_colours``."""
        factors = _uniform(self.generator, (count, 4), self.low, self.high)
        # Ranks of random numbers are a random permutation.
        return factors, torch.rand((count, 4), generator=self.generator).argsort(dim=1)


class RandomPerspective:
    """See the image as if from aside, with probability ``p``: its corners move inwards at random.

    Follows torchvision's ``RandomPerspective``, bilinear, black where the image does not reach.

    Args:
        seed: seed of the transform's own generator.
        distortion_scale: how far corners move at most, as a share of half the side, in [0, 1].
        p: probability of a change.

    Raises:
        ValueError: a distortion_scale or a p outside [0, 1].
    """

    def __init__(self, *, seed: int, distortion_scale: float = 0.5, p: float = 0.5) -> None:
        _check_share("distortion_scale", distortion_scale)
        _check_share("p", p)
        self.distortion_scale = distortion_scale
        self.p = p
        self.generator = generator_of_images(seed)

    def __call__(self, images: Tensor) -> Tensor:
        """Return (B, 3, H, W) in [0, 1] from ``images`` of the same shape and range."""
        count, _, height, width = images.shape
        corners = corners_of(height, width).expand(count, 4, 2)
        moved = self.draw_corners(count, height, width, self.distortion_scale)
        chosen = (torch.rand(count, generator=self.generator) < self.p).nonzero()[:, 0]
        if not len(chosen):
            return images
        there = chosen.to(images.device)
        return images.index_copy(
            0, there, perspective(images[there], corners[chosen], moved[chosen])
        )

    def draw_corners(self, count: int, height: int, width: int, distortion_scale: float) -> Tensor:
        """Return (B, 4, 2) random integer corners, in the order of ``corners_of``.

        Args:
            count: number of images, B.
            height: of the images, in pixels.
            width: of the images, in pixels.
            distortion_scale: how far corners move at most, as a share of half the side.
        """
        farthest = [int(distortion_scale * (side // 2)) for side in (width, height)]
        moves = [torch.randint(far + 1, (count, 4), generator=self.generator) for far in farthest]
        inwards = torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])
        return corners_of(height, width) + inwards * torch.stack(moves, dim=-1)


class RandomView:
    """Pick one of the V cached feature views of each image at random.

    Args:
        seed: seed of the transform's own generator.
    """

    def __init__(self, *, seed: int) -> None:
        self.generator = generator_of_images(seed)

    def __call__(self, features: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Return (B, F) float32 from ``features`` (B, V, F); view 0, the plain image, is one.

        ``sizes`` change nothing: the views have been cropped.
        """
        view = torch.randint(features.shape[1], (len(features),), generator=self.generator)
        return features[torch.arange(len(features)), view.to(features.device)].float()


def centre_crop(images: Tensor, sizes: Tensor | None = None, *, image_size: int) -> Tensor:
    """Return the central (B, 3, S, S) of ``images`` (B, 3, H, W) uint8 as float32 in [0, 1].

    Args:
        images: as stored.
        sizes: (B, 2) height and width of the virtual images; None if ``images`` are the images.
        image_size: side of the result in pixels, S.

    Raises:
        ValueError: the images are smaller than ``image_size``.
    """
    virtual = virtual_sizes(images, sizes)
    _refuse_to_enlarge(images, virtual, image_size)
    if sizes is None:
        # Halves to even, as in torchvision.
        top, left = (round((side - image_size) / 2) for side in images.shape[-2:])
        return images[..., top : top + image_size, left : left + image_size] / 255
    corners = ((virtual - image_size) / 2).round().long()
    boxes = (*corners.unbind(1), *torch.full_like(corners, image_size).unbind(1))
    return resized_crop(images, boxes, image_size, virtual=virtual, crop_first=False)


def first_view(features: Tensor, sizes: Tensor | None = None) -> Tensor:
    """Return (B, F) float32 features of the plain images, from ``features`` (B, V, F).

    ``sizes`` change nothing: the views have been cropped.
    """
    return features[:, 0].float()


def virtual_sizes(images: Tensor, sizes: Tensor | None) -> Tensor:
    """Return (B, 2) int64 height and width of the virtual images, on the CPU.

    Args:
        images: (B, 3, H, W) as stored.
        sizes: the same on any device; None gives H and W.

    Raises:
        ValueError: sizes that are not two whole numbers above 0 for each image.
    """
    if sizes is None:
        return torch.tensor(images.shape[-2:]).expand(len(images), 2)
    sizes = sizes.cpu()
    if sizes.shape != (len(images), 2) or sizes.is_floating_point() or (sizes < 1).any():
        raise ValueError(
            f"sizes of shape {tuple(sizes.shape)} and type {sizes.dtype} are no heights and widths "
            f"of {len(images)} images; give two whole numbers above 0 for each"
        )
    return sizes


def resized_crop(
    images: Tensor,
    boxes: Boxes,
    image_size: int,
    *,
    virtual: Tensor,
    mirrored: Tensor | None = None,
    crop_first: bool = True,
) -> Tensor:
    """Return (B, 3, S, S) float32 in [0, 1]: a box of each image, resized as torchvision does.

    Cropping and antialiased bilinear resizing are separable and linear, so both are one matrix per
    image and axis; the flip reverses the order of the second's rows.

    Args:
        images: (B, 3, H, W) uint8, as stored.
        boxes: of each image, in pixels of the virtual image.
        image_size: side of the result in pixels, S.
        virtual: (B, 2) height and width of the virtual images.
        mirrored: (B,) whether to flip left and right; None flips no image.
        crop_first: whether nothing beside a box is seen. False lets the pixels beside it blend into
            its border, as where torchvision makes the virtual image and crops that.
    """
    top, left, height, width = (sides.to(images.device) for sides in boxes)
    tall, wide = images.shape[-2:]
    # Stored pixels for each virtual one; products first, so that whole numbers stay whole.
    virtual_tall, virtual_wide = virtual.to(images.device).unbind(1)
    top, height = top * tall / virtual_tall, height * tall / virtual_tall
    left, width = left * wide / virtual_wide, width * wide / virtual_wide
    if mirrored is not None:
        mirrored = mirrored.to(images.device)
    rows = resize_matrix(top, height, image_size, tall, bounded=crop_first)  # (B, S, H)
    columns = resize_matrix(
        left, width, image_size, wide, bounded=crop_first, mirrored=mirrored
    )  # (B, S, W)
    return resample(images, rows, columns)


def resize_matrix(
    start: Tensor,
    length: Tensor,
    size: int,
    total: int,
    *,
    bounded: bool = True,
    mirrored: Tensor | None = None,
) -> Tensor:
    """Return (B, size, total) weights that crop one axis and resize it, bilinear and antialiased.

    Args:
        start: (B,) where the crop begins, in pixels, whole or fractional.
        length: (B,) pixels of the crop, whole or fractional.
        size: number of pixels of the result.
        total: number of pixels of the source axis.
        bounded: whether only those source pixels count of which some lies in the crop.
        mirrored: (B,) whether the result begins at the end of the crop; None mirrors nothing.
    """
    scale = length / size  # (B,)
    # Shrinking widens the triangle filter, so that every source pixel counts; enlarging does not.
    support = scale.clamp_min(1.0)[:, None, None]
    target = torch.arange(size, device=start.device)
    centre = start[:, None] + (target + 0.5) * scale[:, None]  # (B, size)
    if mirrored is not None:
        centre = torch.where(mirrored[:, None], centre.flip(1), centre)
    pixel = torch.arange(total, device=start.device)
    # In place from here: memory, not arithmetic, takes the time.
    weights = pixel + 0.5 - centre[..., None]  # (B, size, total)
    weights.div_(support).abs_().neg_().add_(1).clamp_min_(0)
    if bounded:
        end = (start + length)[:, None]
        # Less than a thousandth of a pixel is rounding.
        inside = (pixel + 0.999 > start[:, None]) & (pixel + 0.001 < end)  # (B, total)
        weights.mul_(inside[:, None])
    return weights.div_(weights.sum(dim=-1, keepdim=True))


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return (B, 3, S, S') float32 in [0, 1]: ``rows`` @ image @ ``columns``^T for each channel.

    Args:
        images: (B, 3, H, W) uint8.
        rows: (B, S, H) weights.
        columns: (B, S', W) weights.

    Returns:
        A view; its rows lie channel by channel in memory.
    """
    count, channels, height, width = images.shape
    size, size_across = rows.shape[1], columns.shape[1]
    # Channels side by side make one product of three, and no copies of the matrices.
    pixels = images.transpose(1, 2).reshape(count, height, channels * width) / 255
    resized = (rows @ pixels).view(count, size * channels, width)
    resized = resized @ columns.transpose(1, 2)  # (B, S * 3, S')
    return resized.view(count, size, channels, size_across).transpose(1, 2)


def jitter_colours(images: Tensor, factors: Tensor, orders: Tensor) -> Tensor:
    """Return (B, 3, H, W) in [0, 1]: each image changed by its own factors, in its own order.

    Args:
        images: (B, 3, H, W) float RGB in [0, 1].
        factors: (B, 4) factors of brightness, contrast and saturation, and shift of the hue as a
            share of the colour circle, on the CPU. Factors of 1 and shifts of 0 change nothing.
        orders: (B, 4) permutations of 0 to 3: which of the four comes first, second, ...
    """
    changes = (change_brightness, change_contrast, change_saturation, shift_hue)
    neutral = torch.tensor([1, 1, 1, 0])
    jittered, amounts = images.clone(), factors.to(images)
    for turn in range(4):
        for index, change in enumerate(changes):
            due = (orders[:, turn] == index) & (factors[:, index] != neutral[index])
            chosen = due.nonzero()[:, 0].to(images.device)
            if len(chosen):
                amount = amounts[chosen, index, None, None, None]  # (b, 1, 1, 1)
                jittered.index_copy_(0, chosen, change(jittered[chosen], amount))
    return jittered


def change_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Return ``images`` (B, 3, H, W) in [0, 1] times ``factor`` (B, 1, 1, 1), clipped."""
    return (images * factor).clamp_(0, 1)


def change_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Return ``images`` (B, 3, H, W), ``factor`` (B, 1, 1, 1) times as far from their mean grey."""
    mean_grey = _grey(images).mean(dim=(-2, -1), keepdim=True)
    return torch.lerp(mean_grey, images, factor).clamp_(0, 1)


def change_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Return ``images`` (B, 3, H, W), each pixel ``factor`` (B, 1, 1, 1) times as far from grey."""
    return torch.lerp(_grey(images), images, factor).clamp_(0, 1)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Return ``images`` (B, 3, H, W) with hues turned by ``shift`` (B, 1, 1, 1) colour circles.

    To hue, saturation and value, and back, in which neither of the last two changes:
    https://en.wikipedia.org/wiki/HSL_and_HSV.
    """
    red, green, blue = images.unbind(1)  # (B, H, W)
    highest = torch.maximum(torch.maximum(red, green), blue)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    chroma = highest - lowest
    divisor = torch.where(chroma > 0, chroma, 1)  # grey has no hue; any will do
    from_green = torch.where(
        highest == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor
    )
    hue = torch.where(highest == red, (green - blue) / divisor, from_green)
    hue = (hue + 6 * shift[:, 0]) % 6  # in sixths of the circle, from red by green and blue
    pure = [(hue - 3).abs() - 1, 2 - (hue - 2).abs(), 2 - (hue - 4).abs()]
    return lowest[:, None] + chroma[:, None] * torch.stack(pure, dim=1).clamp_(0, 1)


def corners_of(height: int, width: int) -> Tensor:
    """Return (4, 2) x and y of the corner pixels, clockwise from the top left."""
    right, bottom = width - 1, height - 1
    return torch.tensor([[0, 0], [right, 0], [right, bottom], [0, bottom]])


def perspective(images: Tensor, start_points: Tensor, end_points: Tensor) -> Tensor:
    """Return (B, 3, H, W): each image seen so that its start points move to its end points.

    As torchvision's function of this name with ``fill=0``: bilinear, and black where the image does
    not reach.

    Args:
        images: (B, 3, H, W) float.
        start_points: (B, 4, 2) x and y of four points in the image, in pixels.
        end_points: (B, 4, 2) where these points go.
    """
    height, width = images.shape[-2:]
    maps = _perspective_maps(start_points, end_points).to(images)  # (B, 3, 3)
    y, x = (torch.arange(side, device=images.device) + 0.5 for side in (height, width))
    centres = torch.cartesian_prod(y, x).flip(1)  # (H * W, 2)
    sources = F.pad(centres, (0, 1), value=1.0) @ maps.transpose(1, 2)  # (B, H * W, 3)
    half = torch.tensor([width / 2, height / 2], device=images.device)
    grid = sources[..., :2] / sources[..., 2:] / half - 1
    # On the horizon a source is infinitely far; 2 is outside the image, which ends at 1.
    grid = grid.nan_to_num_(2.0, 2.0, -2.0).view(-1, height, width, 2)
    padded = F.pad(images, (0, 0, 0, 0, 0, 1), value=1.0)  # a fourth channel: how much is image
    sampled = F.grid_sample(padded, grid, align_corners=False)
    # Zeros outside have darkened the border already; torchvision darkens it once more.
    return sampled[:, :3] * sampled[:, 3:]


def _perspective_maps(start_points: Tensor, end_points: Tensor) -> Tensor:
    """Return (B, 3, 3) float64 homographies from results to sources, on the CPU."""
    x, y = end_points.cpu().double().unbind(-1)  # (B, 4)
    start = start_points.cpu().double()  # (B, 4, 2)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    ahead = torch.stack([x, y, one, zero, zero, zero], dim=-1)  # (B, 4, 6)
    linear = torch.stack([ahead, ahead.roll(3, dims=-1)], dim=2)  # (B, 4, 2, 6)
    projective = -start[..., None] * torch.stack([x, y], dim=-1)[:, :, None]  # (B, 4, 2, 2)
    systems = torch.cat([linear, projective], dim=-1).flatten(1, 2)  # (B, 8, 8)
    # Least squares on the CPU also take corners that fell in one line, where solving would fail.
    solutions = torch.linalg.lstsq(systems, start.flatten(1)[..., None]).solution[..., 0]
    return F.pad(solutions, (0, 1), value=1.0).view(-1, 3, 3)


def _grey(images: Tensor) -> Tensor:
    """Return (B, 1, H, W) luminance of ``images`` (B, 3, H, W)."""
    red, green, blue = images.split(1, dim=1)
    return (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)  # as in torchvision


def _uniform(
    generator: torch.Generator,
    shape: tuple[int, ...],
    low: float | Tensor = 0.0,
    high: float | Tensor = 1.0,
) -> Tensor:
    # float64, so that the product with an image side never rounds up to the side itself.
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} is no share; use a number from 0 to 1, e.g. 0.5")


def _refuse_to_enlarge(images: Tensor, virtual: Tensor, image_size: int) -> None:
    height, width = images.shape[-2:]
    if min(height, width) < image_size:
        raise ValueError(
            f"cannot crop {image_size} px out of images of {height} x {width} px; "
            "set CACHE_SIZE to at least IMAGE_SIZE"
        )
    if (virtual < image_size).any():
        raise ValueError(
            f"cannot crop {image_size} px out of photographs with a shorter side of "
            f"{virtual.min().item()} px; set SHORT_SIDE to at least IMAGE_SIZE"
        )
