"""BN-Inception (Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167), as ported from Caffe.

Most metric-learning papers up to 2020 start from one set of ImageNet weights for it, the file
``bn_inception-52deb4733.pth``: trained in Caffe and ported by Y. Xiong
(https://github.com/Cadene/tensorflow-model-zoo.torch/pull/2), published by R. Cadene
(https://github.com/Cadene/pretrained-models.pytorch). Parameters here have the names of that file.
It wants BGR inputs in 0..255 minus (104, 117, 128): ``INPUT_CONVENTION=caffe``.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Inception(NamedTuple):
    """Output channels of the four branches of one block.

    Without the first branch a block halves the map: the last convolutions of the others have
    stride 2, and the input itself passes through max pooling.

    Args:
        one: 1x1 convolution; 0 for none.
        single: 1x1 convolution that reduces, then one 3x3 convolution.
        double: 1x1 convolution that reduces, then each of two 3x3 convolutions.
        pool: 3x3 pooling of the input, ``average`` (zeros of the border included) or ``max``.
        projection: 1x1 convolution of the pooled input; 0 for none.
    """

    one: int
    single: tuple[int, int]
    double: tuple[int, int]
    pool: str
    projection: int

    def convolutions(self, channels: int) -> list[tuple[str, int, int, int, int]]:
        """Return (name, channels in, channels out, kernel size, stride) of each convolution.

        Args:
            channels: of the block's input.
        """
        stride = 1 if self.one else 2
        (reduced, single), (double_reduced, double) = self.single, self.double
        rows = [
            ("1x1", channels, self.one, 1, 1),
            ("3x3_reduce", channels, reduced, 1, 1),
            ("3x3", reduced, single, 3, stride),
            ("double_3x3_reduce", channels, double_reduced, 1, 1),
            ("double_3x3_1", double_reduced, double, 3, 1),
            ("double_3x3_2", double, double, 3, stride),
            ("pool_proj", channels, self.projection, 1, 1),
        ]
        return [row for row in rows if row[2]]

    def out_channels(self, channels: int) -> int:
        """Return the channels of the block's output, given those of its input."""
        return self.one + self.single[1] + self.double[1] + (self.projection or channels)


BLOCKS = {
    "inception_3a": Inception(64, (64, 64), (64, 96), "average", 32),
    "inception_3b": Inception(64, (64, 96), (64, 96), "average", 64),
    "inception_3c": Inception(0, (128, 160), (64, 96), "max", 0),
    "inception_4a": Inception(224, (64, 96), (96, 128), "average", 128),
    "inception_4b": Inception(192, (96, 128), (96, 128), "average", 128),
    "inception_4c": Inception(160, (128, 160), (128, 160), "average", 128),
    "inception_4d": Inception(96, (128, 192), (160, 192), "average", 128),
    "inception_4e": Inception(0, (128, 192), (192, 256), "max", 0),
    "inception_5a": Inception(352, (192, 320), (160, 224), "average", 128),
    "inception_5b": Inception(352, (192, 320), (192, 224), "max", 128),
}


class BNInception(nn.Module):
    """The convolutions of BN-Inception, 10.3 million parameters; the classifier is left out.

    Every convolution has a bias and a batch norm of its own, then a ReLU. The modules lie flat, not
    in blocks, so that their names are the published ones (``inception_3a_1x1``,
    ``inception_3a_1x1_bn``). Batch norms take a tenth of each batch into their statistics, as in
    the present code beside the published weights; its older copies in metric-learning code say
    0.9, which matters only where batch norms are not frozen.
    """

    out_features = 1024

    def __init__(self) -> None:
        super().__init__()
        self._add("conv1_7x7_s2", 3, 64, 7, 2)
        self._add("conv2_3x3_reduce", 64, 64, 1, 1)
        self._add("conv2_3x3", 64, 192, 3, 1)
        channels = 192
        for name, block in BLOCKS.items():
            for suffix, *sizes in block.convolutions(channels):
                self._add(f"{name}_{suffix}", *sizes)
            channels = block.out_channels(channels)

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map (B, 1024, H / 32, W / 32) of ``images`` (B, 3, H, W)."""
        x = self._units(images, "conv1_7x7_s2")
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        x = self._units(x, "conv2_3x3_reduce", "conv2_3x3")
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        for name in BLOCKS:
            x = self.inception(x, name)
        return x

    def inception(self, x: Tensor, name: str) -> Tensor:
        """Return the output of the block called ``name``, branches joined along the channels.

        Args:
            x: the block's input (B, C, H, W), not negative.
            name: key of ``BLOCKS``.
        """
        block = BLOCKS[name]
        if block.pool == "average":
            pooled = F.avg_pool2d(x, 3, 1, padding=1)
        elif block.one:
            pooled = F.max_pool2d(x, 3, 1, padding=1)
        else:
            # Caffe's sizes fit only even maps; a row of zeros at the end, which no maximum of ReLU
            # outputs sees, makes the pooled map as large as the convolved ones.
            even = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
            pooled = F.max_pool2d(even, 3, 2, ceil_mode=True)
        branches = [
            self._units(x, f"{name}_3x3_reduce", f"{name}_3x3"),
            self._units(x, *(f"{name}_double_3x3_{part}" for part in ("reduce", "1", "2"))),
            self._units(pooled, f"{name}_pool_proj") if block.projection else pooled,
        ]
        if block.one:
            branches.insert(0, self._units(x, f"{name}_1x1"))
        return torch.cat(branches, dim=1)

    def _add(self, name: str, channels: int, out: int, kernel_size: int, stride: int) -> None:
        convolution = nn.Conv2d(channels, out, kernel_size, stride, padding=kernel_size // 2)
        self.add_module(name, convolution)
        self.add_module(f"{name}_bn", nn.BatchNorm2d(out))

    def _units(self, x: Tensor, *names: str) -> Tensor:
        """Apply convolution, batch norm and ReLU of each name in turn."""
        for name in names:
            convolution, batch_norm = self.get_submodule(name), self.get_submodule(f"{name}_bn")
            x = F.relu(batch_norm(convolution(x)), inplace=True)
        return x
