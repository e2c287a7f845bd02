"""Trunks: convolutional networks from images to one vector of features."""

import torch
import torchvision
from torch import Tensor, nn

from dmlkit.models.bn_inception import BNInception
from dmlkit.models.weights import load_weights
from dmlkit.paths import resolve

# Name and number of features, F.
TRUNKS = {
    "small_convnet": 32,
    "mobilenet_v2": 1280,
    "resnet50": 2048,
    "googlenet": 1024,
    "bn_inception": 1024,
}

# mean and std of RGB values in [0, 1], then the channel order and range a network was trained on.
INPUT_CONVENTIONS = {
    "torchvision": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "tensorflow": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    # BGR in 0..255 minus (104, 117, 128), written for RGB in 0..1.
    "caffe": {"mean": (128 / 255, 117 / 255, 104 / 255), "std": (1 / 255,) * 3},
}

# Networks whose published weights all want another convention than torchvision's. torchvision's
# own GoogLeNet came from TensorFlow and rescales its inputs to [-1, 1] itself (transform_input).
PUBLISHED_CONVENTIONS = {"googlenet": "tensorflow", "bn_inception": "caffe"}

# From a feature map (B, F, H', W') to features (B, F). Deep_Metric pools the maximum;
# Proxy-Anchor (Kim et al., 2020) adds average and maximum.
POOLINGS = {
    "average": lambda maps: maps.mean(dim=(2, 3)),
    "max": lambda maps: maps.amax(dim=(2, 3)),
    "average_and_max": lambda maps: maps.mean(dim=(2, 3)) + maps.amax(dim=(2, 3)),
}


class SmallConvNet(nn.Sequential):
    """Four blocks of 3x3 convolution, batch norm, ReLU and 2x2 max pooling, from scratch.

    The trunk of few-shot learning's small experiments (Vinyals et al., 2016, section 4.1),
    with global average pooling. Inputs of at least 16 px.

    Args:
        width: channels of every block, F.
    """

    def __init__(self, width: int = 32) -> None:
        blocks = []
        for channels in (3, width, width, width):
            blocks += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        super().__init__(*blocks)
        self.out_features = width


class Trunk(nn.Module):
    """A convolutional network from RGB images in [0, 1] to pooled features.

    Args:
        layers: network from normalised images to a feature map (B, F, H', W').
        out_features: number of features, F.
        convention: key of ``INPUT_CONVENTIONS``.
        freeze_batch_norm: keep batch norms in evaluation mode, their statistics fixed.
        pooling: key of ``POOLINGS``.
        compiled: let ``torch.compile`` translate the layers at their first batch.
    """

    def __init__(
        self,
        layers: nn.Module,
        out_features: int,
        *,
        convention: str,
        freeze_batch_norm: bool,
        pooling: str = "average",
        compiled: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"POOLING={pooling!r} is unknown; choose one of {', '.join(POOLINGS)}")
        if convention not in INPUT_CONVENTIONS:
            raise ValueError(
                f"INPUT_CONVENTION={convention!r} is unknown; "
                f"choose one of {', '.join(INPUT_CONVENTIONS)}"
            )
        # Channels last is two to six times as fast on a CPU, and what tensor cores want.
        self.layers = layers.to(memory_format=torch.channels_last)
        self.out_features = out_features
        self.freeze_batch_norm = freeze_batch_norm
        self.pooling = pooling
        self.compiled = compiled
        self.reverse_channels = convention == "caffe"
        for name, values in INPUT_CONVENTIONS[convention].items():
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, F) of ``images`` (B, 3, S, S), RGB in [0, 1]."""
        normalised = (images - self.mean) / self.std
        if self.reverse_channels:
            normalised = normalised.flip(1)
        normalised = normalised.contiguous(memory_format=torch.channels_last)
        if self.compiled and self.layers._compiled_call_impl is None:  # at first, and in a copy
            self.layers.compile()
        return POOLINGS[self.pooling](self.layers(normalised))

    def train(self, mode: bool = True) -> "Trunk":
        """Set training mode, except for batch norms that are to stay frozen."""
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


def make_trunk(
    name: str,
    *,
    weights: str = "none",
    convention: str = "torchvision",
    freeze_batch_norm: bool = False,
    pooling: str = "average",
    compiled: bool = False,
) -> Trunk:
    """Build a trunk, optionally with pre-trained weights.

    Args:
        name: key of ``TRUNKS``.
        weights: ``none`` for random weights from the current seed, ``imagenet`` for
            torchvision's first ImageNet weights (downloaded on first use), or the path of a state
            dict with torchvision's names, for ``bn_inception`` with the published ones; a
            classifier in it is ignored.
        convention: how images are normalised, a key of ``INPUT_CONVENTIONS``; it belongs to the
            weights: ``tensorflow`` for those of ``googlenet``, ``caffe`` for ``bn_inception``.
        freeze_batch_norm: keep batch norms in evaluation mode.
        pooling: from the feature map to features, a key of ``POOLINGS``.
        compiled: translate the layers by ``torch.compile``, which takes a minute at first.

    Raises:
        ValueError: unknown names, weights that do not exist, of another network or another
            convention, or weights with folded batch norms without ``freeze_batch_norm``.
        FileNotFoundError: no file at the path given as ``weights``.
    """
    if name not in TRUNKS:
        raise ValueError(f"TRUNK={name!r} is unknown; choose one of {', '.join(TRUNKS)}")
    if weights == "imagenet" and name == "small_convnet":
        raise ValueError("small_convnet has no ImageNet weights; set WEIGHTS=none or a path")
    if weights == "imagenet" and name == "bn_inception":
        raise ValueError(
            "torchvision has no ImageNet weights for bn_inception; set WEIGHTS to the path of the "
            "published file, bn_inception-52deb4733.pth, with INPUT_CONVENTION=caffe"
        )
    wanted = PUBLISHED_CONVENTIONS.get(name, convention)
    if weights != "none" and convention != wanted:
        raise ValueError(
            f"INPUT_CONVENTION={convention!r} is not what weights of {name} were trained on; "
            f"set INPUT_CONVENTION={wanted}"
        )
    network = _new_network(name, with_imagenet_weights=weights == "imagenet")
    if weights not in ("none", "imagenet"):
        load_weights(network, resolve(weights), freeze_batch_norm=freeze_batch_norm)
    return Trunk(
        _without_classifier(network),
        TRUNKS[name],
        convention=convention,
        freeze_batch_norm=freeze_batch_norm,
        pooling=pooling,
        compiled=compiled,
    )


def _new_network(name: str, *, with_imagenet_weights: bool) -> nn.Module:
    if name == "small_convnet":
        return SmallConvNet()
    if name == "bn_inception":
        return BNInception()
    if with_imagenet_weights:
        return torchvision.models.get_model(name, weights="IMAGENET1K_V1")
    # torchvision's GoogLeNet asks to be told how it starts; auxiliary classifiers would be idle.
    options = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    return torchvision.models.get_model(name, weights=None, **options)


def _without_classifier(network: nn.Module) -> nn.Module:
    """Return the part of a network that ends in the feature map, before pooling."""
    if isinstance(network, torchvision.models.MobileNetV2):
        return network.features
    if isinstance(network, torchvision.models.ResNet):
        return nn.Sequential(*list(network.children())[:-2])  # avgpool, fc
    if isinstance(network, torchvision.models.GoogLeNet):
        return nn.Sequential(*list(network.children())[:-3])  # avgpool, dropout, fc
    return network
