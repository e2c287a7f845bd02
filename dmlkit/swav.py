"""Pre-training by SwAV (Caron et al., NeurIPS 2020), https://arxiv.org/abs/2006.09882.

SLADE (Duan et al., CVPR 2021) begins with a trunk that learned this way from ImageNet and then from
all images of its domain, labelled or not. With what settings is not known to us; the official ones
stand in the docstrings: https://github.com/facebookresearch/swav.
"""

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmlkit.batches import Batch, image_batches
from dmlkit.datasets import ImageSet
from dmlkit.losses.swav import EmbeddingQueue, SwAVLoss, count_usage, diagnose
from dmlkit.models import SwAVHead, Trunk
from dmlkit.models.weights import fits
from dmlkit.paths import resolve
from dmlkit.processes import of_all
from dmlkit.samplers import RandomSampler
from dmlkit.seeding import derive_seed, generator_of_images
from dmlkit.training import Fit, fit
from dmlkit.transforms import (
    ColourJitter,
    RandomResizedCropFlip,
    change_saturation,
    jitter_colours,
    resample,
)

UNCHANGED = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)  # factors of jitter_colours

# Children of torchvision's ResNet, in the order in which a Trunk holds them.
RESNET_PARTS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


class MultiCrop:
    """Cut several crops of several sizes out of each image and change their colours.

    A random box resized to a square, mirrored half of the time; then colours jittered as by
    ``ColourJitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)``, all colour lost, and
    blurred by a Gaussian of 0.1 to 2 pixels, each for a share of the crops. The defaults are the
    official recipe. Unlike there, blurring weighs pixels near the border more instead of mirroring
    the image beyond it, and has no kernel size (there 23 pixels, over 5 sigma to each side).

    Args:
        sizes: side of the crops in pixels, size by size; those that get codes first.
        counts: crops of each size and image.
        scales: of each size, range of the crop's share of the image area.
        seed: seed of the transform's own generators; a new ``MultiCrop`` starts over.
        colour_strength: factor on the four ranges of the jitter, at most 2.5.
        jittered: share of the crops whose colours are jittered.
        grey: share of the crops that lose all colour.
        blurred: share of the crops that are blurred.

    Raises:
        ValueError: sizes, counts and scales of different number, a count below 1, a share outside
            [0, 1], or what ``RandomResizedCropFlip`` and ``ColourJitter`` refuse.
    """

    def __init__(
        self,
        sizes: Sequence[int] = (224, 96),
        counts: Sequence[int] = (2, 6),
        scales: Sequence[Sequence[float]] = ((0.14, 1.0), (0.05, 0.14)),
        *,
        seed: int,
        colour_strength: float = 1.0,
        jittered: float = 0.8,
        grey: float = 0.2,
        blurred: float = 0.5,
    ) -> None:
        if not sizes or not len(sizes) == len(counts) == len(scales) or min(counts) < 1:
            raise ValueError(
                f"sizes={list(sizes)}, counts={list(counts)} and scales={list(scales)} describe no "
                "crops; give each size a count of at least 1 and a range of shares"
            )
        for name, share in {"jittered": jittered, "grey": grey, "blurred": blurred}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share} is no share; use a number from 0 to 1, e.g. 0.5")
        self.sizes = tuple(sizes)
        self.counts = tuple(counts)
        self.shares = torch.tensor([jittered, grey, blurred])[:, None]
        self.croppers = [
            RandomResizedCropFlip(size, seed=derive_seed(seed, "crop", place), scale=scale)
            for place, (size, scale) in enumerate(zip(sizes, scales, strict=True))
        ]
        ranges = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
        ranges = {name: colour_strength * width for name, width in ranges.items()}
        self.jitter = ColourJitter(seed=derive_seed(seed, "colour"), **ranges)
        self.generator = generator_of_images(derive_seed(seed, "choice"))

    def __call__(self, images: Tensor, sizes: Tensor | None = None) -> list[Tensor]:
        """Return, for each size S, its C crops of each image: (C, B, 3, S, S) float32 in [0, 1].

        Args:
            images: (B, 3, H, W) uint8, as stored.
            sizes: (B, 2) height and width of the virtual images, see ``dmlkit.transforms``; None if
                ``images`` are the images.

        Raises:
            ValueError: images of another shape or type, such as cached features.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise ValueError(
                f"images {tuple(images.shape)} of type {images.dtype} cannot be cropped; give "
                "(B, 3, H, W) uint8, as stored"
            )
        groups = []
        for crop, count in zip(self.croppers, self.counts, strict=True):
            crops = torch.cat([crop(images, sizes) for _ in range(count)])  # (C * B, 3, S, S)
            groups.append(self._change(crops).unflatten(0, (count, len(images))))
        return groups

    def packed(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Return the crops one after another in one flat tensor, as ``image_batches`` needs it."""
        return torch.cat([group.flatten() for group in self(images, sizes)])

    def unpack(self, packed: Tensor) -> list[Tensor]:
        """Return the crops as called for, from what ``packed`` made of them."""
        shapes = [(c, 3, s, s) for c, s in zip(self.counts, self.sizes, strict=True)]
        num_images = len(packed) // sum(map(math.prod, shapes))
        parts = packed.split([num_images * math.prod(shape) for shape in shapes])
        return [
            part.view(count, num_images, *rest)
            for part, (count, *rest) in zip(parts, shapes, strict=True)
        ]

    def _change(self, crops: Tensor) -> Tensor:
        """Return ``crops`` (N, 3, S, S) with their colours jittered, or lost, and blurred."""
        # All are drawn whatever the shares, so that to leave one out changes none of the others.
        chosen = torch.rand(3, len(crops), generator=self.generator) < self.shares
        sigmas = 0.1 + 1.9 * torch.rand(len(crops), generator=self.generator)
        jittered, grey, blurred = chosen
        factors, orders = self.jitter.draw(len(crops))
        crops = jitter_colours(crops, torch.where(jittered[:, None], factors, UNCHANGED), orders)
        colour = (~grey).to(crops)[:, None, None, None]
        crops = change_saturation(crops, colour)
        where = blurred.nonzero()[:, 0]
        there = where.to(crops.device)
        return crops.index_copy(0, there, gaussian_blur(crops[there], sigmas[where]))


def gaussian_blur(images: Tensor, sigmas: Tensor) -> Tensor:
    """Return ``images`` (B, 3, S, S) in [0, 1], each blurred by its own Gaussian.

    Args:
        images: float.
        sigmas: (B,) standard deviations in pixels, above 0.
    """
    pixel = torch.arange(images.shape[-1], device=images.device)
    distance = (pixel[:, None] - pixel) / sigmas.to(images)[:, None, None]  # (B, S, S)
    weights = (-(distance**2) / 2).softmax(dim=2)
    return resample(images * 255, weights, weights)  # it takes stored bytes, which it divides


def frozen_steps(num_images: int, batch_size: int) -> int:
    """Return how long the prototypes stay as they are: one pass over all images, in steps.

    The official recipe for small batches, 5,005 steps, is one pass over ImageNet's 1,281,167 images
    in batches of 256.
    """
    return math.ceil(num_images / batch_size)


def train_swav(
    trunk: Trunk,
    head: SwAVHead,
    images: ImageSet,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    frozen_prototype_steps: int,
    crops: MultiCrop,
    seed: int,
    device: torch.device,
    loss_fn: SwAVLoss | None = None,
    final_factor: float = 0.001,
    weight_decay: float = 1e-6,
    queue_size: int = 0,
    queue_start: int = 0,
    precision: str = "float32",
    measure_every: int = 50,
) -> Fit:
    """Train trunk and head on images without their labels.

    By SGD with momentum 0.9, the learning rate falling along half a cosine. The official recipe for
    small batches: batch_size 256, learning_rate 0.6 to 0.0006 in 400 epochs, weight_decay 1e-6,
    3,000 prototypes, frozen for 5,005 steps (see ``frozen_steps``), a queue of 3,840 from epoch 15.
    Left out of it: LARC, by which the official code sets the rate of each layer, so that its rates
    are far too high here; batch norms over several GPUs; and its standard deviation of red, 0.228,
    for which trunks have torchvision's 0.229.

    Args:
        trunk: the trunk, on ``device``; its frozen batch norms stay frozen.
        head: the head, on ``device``.
        images: labelled and unlabelled images, as pixels.
        steps: number of optimiser steps.
        batch_size: images per step, B; of each there are as many crops as ``crops`` cuts.
        learning_rate: at the first step.
        frozen_prototype_steps: steps in which the prototypes get no gradient.
        crops: makes the crops.
        seed: seed of the order of the images. Crops have their own; nothing else is drawn.
        device: where trunk and head are.
        loss_fn: None for ``SwAVLoss()``.
        final_factor: learning rate towards the last step, as a share of that at the first.
        weight_decay: of all parameters.
        queue_size: earlier embeddings assigned together with a batch's; 0 for none.
        queue_start: first step, from 0, whose embeddings enter the queue.
        precision: see ``fit``.
        measure_every: see ``fit``.

    Returns:
        What ``fit`` returns, the state of the last step and the history, each entry of which also
        holds what ``diagnose`` says of all crops with codes since the last one.

    Raises:
        FloatingPointError: the loss is NaN or infinite.
        ValueError: a batch larger than the set, a final_factor outside [0, 1], or what ``fit``,
            ``SwAVLoss`` or ``MultiCrop`` refuse.
    """
    if not 0 <= final_factor <= 1:
        raise ValueError(f"{final_factor=} is no share; use a number from 0 to 1, e.g. 0.001")
    loss_fn = loss_fn or SwAVLoss()
    num_prototypes, embedding_dim = head.prototypes.weight.shape
    queue = None
    if queue_size:
        queue = EmbeddingQueue(queue_size, embedding_dim, num_assigned=loss_fn.num_assigned)
    usage = torch.zeros(num_prototypes, dtype=torch.int64, device=device)
    usages: list[Tensor] = []  # of each measurement
    steps_done = itertools.count()

    def compute_loss(batch: Batch) -> Tensor:
        groups = crops.unpack(batch[0])
        features = torch.cat([trunk(group.flatten(0, 1)) for group in groups])  # (V * B, F)
        by_image = (
            rows.unflatten(0, (-1, len(batch[1]))).transpose(0, 1) for rows in head(features)
        )
        embeddings, scores = (of_all(rows).transpose(0, 1) for rows in by_image)  # (V, B, ...)
        usage.add_(count_usage(scores[: loss_fn.num_assigned]))
        queued_scores = None
        if queue is not None and next(steps_done) >= queue_start:
            if queue.is_full:
                queued_scores = head.score(queue.embeddings).detach()
            queue.push(embeddings[: loss_fn.num_assigned])
        return loss_fn(scores, queued_scores)

    def observe() -> dict[str, float]:
        usages.append(usage.clone())
        usage.zero_()
        return {}

    sampler = RandomSampler(len(images), batch_size=batch_size, seed=derive_seed(seed, "sampler"))
    head.normalise_prototypes()
    head.prototypes.requires_grad_(True)  # an earlier run may have ended with them frozen
    parameters = [*trunk.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(
        parameters, lr=learning_rate, momentum=0.9, weight_decay=weight_decay
    )
    # Before each step, in effect; and the states that are kept have unit prototypes too.
    optimizer.register_step_post_hook(lambda *_: head.normalise_prototypes())
    fitted = fit(
        [trunk, head],
        image_batches(images, sampler, crops.packed, device),
        compute_loss,
        optimizer,
        steps,
        precision=precision,
        learning_rate_factor=lambda step: cosine_factor(step, steps, final_factor),
        still_modules=[head.prototypes],
        still_steps=frozen_prototype_steps,
        observe=observe,
        measure_every=measure_every,
        description="SwAV",
    )
    for entry, counted in zip(fitted.history, usages, strict=True):
        entry |= diagnose(entry["loss"], counted)
    return fitted


def pretrain(
    trunk: Trunk,
    images: ImageSet,
    *,
    crop_sizes: Sequence[int],
    crop_counts: Sequence[int],
    hidden_features: int,
    embedding_dim: int,
    num_prototypes: int,
    epsilon: float,
    steps: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    **options: Any,
) -> dict[str, Any]:
    """Train ``trunk`` by SwAV and return what can be kept of it by ``torch.save``.

    As ``train_swav`` does, with a head that is thrown away, the shares of the official crops for
    one size or two, and prototypes that are still for a pass over the images, but at most for a
    tenth of the steps.

    Args:
        trunk: the trunk, on ``device``.
        images: labelled and unlabelled images.
        crop_sizes: side of the crops in pixels, at most two; all crops of the first get codes.
        crop_counts: crops of each size and image.
        hidden_features: see ``SwAVHead``.
        embedding_dim: see ``SwAVHead``.
        num_prototypes: see ``SwAVHead``.
        epsilon: see ``sinkhorn``.
        steps: see ``train_swav``.
        batch_size: see ``train_swav``.
        seed: of the head, the crops and the order of the images.
        device: see ``train_swav``.
        options: further ones of ``train_swav``.

    Returns:
        ``trunk``, its weights; ``history`` and ``seconds`` of the ``Fit``.

    Raises:
        ValueError: what ``train_swav`` refuses.
    """
    torch.manual_seed(derive_seed(seed, "head"))
    head = SwAVHead(trunk.out_features, hidden_features, embedding_dim, num_prototypes)
    shares = ((0.14, 1.0), (0.05, 0.14))[: len(crop_sizes)]
    fitted = train_swav(
        trunk,
        head.to(device),
        images,
        steps=steps,
        batch_size=batch_size,
        frozen_prototype_steps=min(frozen_steps(len(images), batch_size), steps // 10),
        crops=MultiCrop(crop_sizes, crop_counts, shares, seed=derive_seed(seed, "crops")),
        loss_fn=SwAVLoss(num_assigned=crop_counts[0], epsilon=epsilon),
        seed=seed,
        device=device,
        **options,
    )
    weights = {name: tensor.cpu() for name, tensor in trunk.state_dict().items()}
    return {"trunk": weights, "history": fitted.history, "seconds": fitted.seconds}


def cosine_factor(step: int, steps: int, final_factor: float) -> float:
    """Return 1 at step 0, ``final_factor`` at ``steps``, and half a cosine between them."""
    return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * step / steps)) / 2


def read_swav_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Return the trunk's weights from an official SwAV checkpoint, under torchvision's names.

    Reads released files, such as swav_800ep_pretrain.pth.tar, and those of the official training
    script, which hold the weights as ``state_dict``, without running code from them. Projection
    head and prototypes are left out. Saved with ``torch.save``, the result is a file for the
    parameter WEIGHTS. Released weights are for research only (CC BY-NC 4.0).

    Args:
        path: the file; relative to the project root.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no named tensors.
    """
    path = resolve(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no SwAV checkpoint {path}; get swav_800ep_pretrain.pth.tar from "
            "https://dl.fbaipublicfiles.com/deepcluster/ or give the path of another"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        if not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise TypeError("not only tensors")
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise ValueError(
            f"{path} is not a SwAV checkpoint ({type(error).__name__}); give one of "
            "https://github.com/facebookresearch/swav"
        ) from error
    ignored = ("projection_head.", "prototypes.")
    return {name: tensor for name, tensor in state.items() if not name.startswith(ignored)}


def load_swav_checkpoint(trunk: Trunk, path: str | Path) -> None:
    """Load an official SwAV checkpoint into a ResNet trunk, see ``read_swav_checkpoint``.

    The official network pads images before a first convolution that pads less: the same function as
    torchvision's. The trunk's convention should be ``torchvision``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, or of another network.
    """
    state = read_swav_checkpoint(path)
    # The trunk's layers under torchvision's names, by which the checkpoint knows them.
    layers = nn.Sequential(OrderedDict(zip(RESNET_PARTS, trunk.layers.children(), strict=False)))
    wanted = layers.state_dict()
    wrong = [
        name
        for name, tensor in wanted.items()
        if not fits(state.get(name), tensor)
        # Files of old PyTorch versions lack them.
        and not (name.endswith("num_batches_tracked") and name not in state)
    ]
    if wrong:
        raise ValueError(
            f"{path} does not fit the trunk: {len(wrong)} of {len(wanted)} tensors are missing or "
            f"of another shape, first {wrong[0]}; give a SwAV checkpoint of the trunk's network, "
            "such as swav_800ep_pretrain.pth.tar for TRUNK=resnet50"
        )
    layers.load_state_dict(state, strict=False)
