"""Networks: ``model.trunk(images) -> (B, F)``, ``model.head(features) -> (B, D)``, unit rows."""

from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from dmlkit.paths import resolve

TRUNKS = ("small_convnet", "mobilenet_v2", "resnet50")

# mean and std of RGB values in [0, 1], then the channel order and range a network was trained on.
INPUT_CONVENTIONS = {
    "torchvision": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "tensorflow": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    # BGR in 0..255 minus (104, 117, 128), written for RGB in 0..1.
    "caffe": {"mean": (128 / 255, 117 / 255, 104 / 255), "std": (1 / 255,) * 3},
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
    """A convolutional network from RGB images in [0, 1] to average-pooled features.

    Args:
        layers: network from normalised images to a feature map (B, F, H', W').
        out_features: number of features, F.
        convention: key of ``INPUT_CONVENTIONS``.
        freeze_batch_norm: keep batch norms in evaluation mode, their statistics fixed.
    """

    def __init__(
        self, layers: nn.Module, out_features: int, *, convention: str, freeze_batch_norm: bool
    ) -> None:
        super().__init__()
        if convention not in INPUT_CONVENTIONS:
            raise ValueError(
                f"INPUT_CONVENTION={convention!r} is unknown; "
                f"choose one of {', '.join(INPUT_CONVENTIONS)}"
            )
        # Channels last is two to six times as fast on a CPU, and what tensor cores want.
        self.layers = layers.to(memory_format=torch.channels_last)
        self.out_features = out_features
        self.freeze_batch_norm = freeze_batch_norm
        self.reverse_channels = convention == "caffe"
        for name, values in INPUT_CONVENTIONS[convention].items():
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, F) of ``images`` (B, 3, S, S), RGB in [0, 1]."""
        normalised = (images - self.mean) / self.std
        if self.reverse_channels:
            normalised = normalised.flip(1)
        normalised = normalised.contiguous(memory_format=torch.channels_last)
        return self.layers(normalised).mean(dim=(2, 3))

    def train(self, mode: bool = True) -> "Trunk":
        """Set training mode, except for batch norms that are to stay frozen."""
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


class EmbeddingHead(nn.Module):
    """Linear map to D dimensions, then unit length.

    Args:
        in_features: size of the trunk's features, F.
        embedding_dim: size of the embedding, D.
        layer_norm: normalise the features first, without learned scale or shift (Zhai and Wu,
            2019, for NormSoftmax).
        bias: add a learned bias; Zhai and Wu have none.
    """

    def __init__(
        self, in_features: int, embedding_dim: int, *, layer_norm: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_features, elementwise_affine=False) if layer_norm else None
        self.linear = nn.Linear(in_features, embedding_dim, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return unit-length embeddings (B, D) of ``features`` (B, F)."""
        if self.norm is not None:
            features = self.norm(features)
        # Unit length in float32 even under bfloat16, or similarities would carry three digits.
        return F.normalize(self.linear(features).float(), dim=1)


class EmbeddingModel(nn.Module):
    """A trunk and an embedding head; calling it applies both.

    Args:
        trunk: images (B, 3, S, S), or cached features (B, F), to features (B, F).
        head: features (B, F) to embeddings (B, D).
    """

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return unit-length embeddings (B, D)."""
        return self.head(self.trunk(images))


def make_trunk(
    name: str,
    *,
    weights: str = "none",
    convention: str = "torchvision",
    freeze_batch_norm: bool = False,
) -> Trunk:
    """Build a trunk, optionally with pre-trained weights.

    Args:
        name: ``small_convnet`` (32 features), ``mobilenet_v2`` (1280) or ``resnet50`` (2048).
        weights: ``none`` for random weights from the current seed, ``imagenet`` for
            torchvision's first ImageNet weights (downloaded on first use), or the path of a state
            dict with torchvision's names; a classifier in it is ignored.
        convention: how images are normalised, a key of ``INPUT_CONVENTIONS``; it belongs to the
            weights.
        freeze_batch_norm: keep batch norms in evaluation mode.

    Raises:
        ValueError: unknown names, weights of another network, or weights with folded batch norms
            without ``freeze_batch_norm``.
        FileNotFoundError: no file at the path given as ``weights``.
    """
    if name not in TRUNKS:
        raise ValueError(f"TRUNK={name!r} is unknown; choose one of {', '.join(TRUNKS)}")
    if name == "small_convnet":
        network = layers = SmallConvNet()
        out_features = layers.out_features
    else:
        network = torchvision.models.get_model(
            name, weights="IMAGENET1K_V1" if weights == "imagenet" else None
        )
        if name == "resnet50":
            layers = nn.Sequential(*list(network.children())[:-2])  # without pooling and classifier
            out_features = network.fc.in_features
        else:
            layers, out_features = network.features, network.last_channel
    if weights == "imagenet" and name == "small_convnet":
        raise ValueError("small_convnet has no ImageNet weights; set WEIGHTS=none or a path")
    if weights not in ("none", "imagenet"):
        load_weights(network, resolve(weights), freeze_batch_norm=freeze_batch_norm)
    return Trunk(layers, out_features, convention=convention, freeze_batch_norm=freeze_batch_norm)


def load_weights(network: nn.Module, path: Path, *, freeze_batch_norm: bool) -> None:
    """Load a state dict into ``network``, refusing anything that does not fit it exactly.

    The file is read without running code from it. Half-precision weights become float32.

    Args:
        network: a torchvision network, classifier included.
        path: file written by ``torch.save(network.state_dict())``.
        freeze_batch_norm: whether training will keep batch norms in evaluation mode.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no weights file {path}; set WEIGHTS to a path, to imagenet "
            "(with INPUT_CONVENTION=torchvision) or to none"
        )
    try:
        state = dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise ValueError(
            f"{path} is not a PyTorch state dict ({type(error).__name__}); set WEIGHTS to one"
        ) from error
    wanted = {k: v for k, v in network.state_dict().items() if not _is_classifier(k)}
    wrong = [k for k, v in wanted.items() if k not in state or state[k].shape != v.shape]
    if wrong:
        raise ValueError(
            f"{path} holds weights of another network: {len(wrong)} of {len(wanted)} tensors of "
            f"{type(network).__name__} are missing or of another shape, first {wrong[0]}; "
            "set TRUNK to the network the file was made for"
        )
    if has_folded_batch_norm(state) and not freeze_batch_norm:
        raise ValueError(
            f"the batch norms of {path} are folded into its convolutions, and training their "
            "statistics would destroy the network; set FREEZE_BN=True"
        )
    network.load_state_dict({k: state[k] for k in wanted}, strict=False)


def has_folded_batch_norm(state: dict[str, Tensor]) -> bool:
    """Whether all batch norms only add a bias: mean 0, variance 1, scale 1, shifts not all 0."""
    layers = [k.removesuffix("running_var") for k in state if k.endswith("running_var")]
    identity = all(
        (state[k + "running_mean"] == 0).all()
        and (state[k + "running_var"] == 1).all()
        and (state[k + "weight"] == 1).all()
        for k in layers
    )
    return bool(layers) and identity and any(state[k + "bias"].any() for k in layers)


def _is_classifier(key: str) -> bool:
    return key.startswith(("classifier.", "fc."))
