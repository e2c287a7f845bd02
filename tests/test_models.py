"""Trunks, heads, input conventions, and what is refused when weights do not fit."""

import pytest
import torch
import torchvision
from torch import nn

from dmlkit.models import INPUT_CONVENTIONS, EmbeddingHead, EmbeddingModel, make_trunk


@pytest.fixture(scope="module")
def mobilenet():
    torch.manual_seed(0)
    return torchvision.models.mobilenet_v2()


def fold_batch_norms(network):
    """Return the state dict with batch norms that only add a bias, as a converter leaves them."""
    state = {key: value.clone() for key, value in network.state_dict().items()}
    for key in state:
        if key.endswith("running_var"):
            state[key].fill_(1.0)
            state[key.replace("running_var", "running_mean")].zero_()
            state[key.replace("running_var", "weight")].fill_(1.0)
            state[key.replace("running_var", "bias")].normal_()
    return state


@pytest.mark.parametrize(
    ("name", "num_features"), [("small_convnet", 32), ("mobilenet_v2", 1280), ("resnet50", 2048)]
)
def test_a_trunk_gives_one_feature_vector_per_image(name, num_features):
    trunk = make_trunk(name).eval()
    assert trunk.out_features == num_features
    assert trunk(torch.rand(2, 3, 33, 33)).shape == (2, num_features)


def test_torchvision_trunks_give_the_features_their_classifier_sees(mobilenet, tmp_path):
    torch.save(mobilenet.state_dict(), tmp_path / "weights.pth")
    trunk = make_trunk("mobilenet_v2", weights=str(tmp_path / "weights.pth")).eval()
    images = torch.rand(2, 3, 64, 64)
    mean, std = (
        torch.tensor(INPUT_CONVENTIONS["torchvision"][name])[:, None, None]
        for name in ("mean", "std")
    )
    expected = mobilenet.eval().features((images - mean) / std).mean((2, 3))
    assert torch.allclose(trunk(images), expected, atol=1e-5)


def test_embeddings_have_unit_length():
    model = EmbeddingModel(make_trunk("small_convnet"), EmbeddingHead(32, 8))
    assert torch.allclose(model(torch.rand(4, 3, 32, 32)).norm(dim=1), torch.ones(4), atol=1e-6)


def test_the_layer_norm_head_ignores_the_level_and_scale_of_features():
    head = EmbeddingHead(6, 4, layer_norm=True, bias=False)
    features = torch.randn(3, 6)
    assert head.linear.bias is None
    assert torch.allclose(head(features), head(5 * features + 7), atol=1e-5)


@pytest.mark.parametrize(
    ("convention", "expected"),
    [
        ("torchvision", [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]),
        ("tensorflow", [1.0, -1.0, -1.0]),
        ("caffe", [-104.0, -117.0, 255 - 128.0]),
    ],
)
def test_input_conventions_normalise_a_red_image_as_documented(convention, expected):
    trunk = make_trunk("small_convnet", convention=convention)
    trunk.layers = nn.Identity()
    red = torch.zeros(1, 3, 2, 2)
    red[:, 0] = 1.0
    assert trunk(red)[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_frozen_batch_norms_keep_their_statistics_in_training():
    frozen, free = (make_trunk("small_convnet", freeze_batch_norm=f).train() for f in (True, False))
    for trunk in (frozen, free):
        trunk(torch.rand(4, 3, 32, 32))
    assert frozen.layers[1].running_mean.abs().sum() == 0
    assert free.layers[1].running_mean.abs().sum() > 0


def test_folded_weights_are_refused_unless_batch_norms_are_frozen(mobilenet, tmp_path):
    path = tmp_path / "folded.pth"
    torch.save(fold_batch_norms(mobilenet), path)
    with pytest.raises(ValueError, match="folded.*FREEZE_BN=True"):
        make_trunk("mobilenet_v2", weights=str(path))
    make_trunk("mobilenet_v2", weights=str(path), freeze_batch_norm=True)


def test_half_precision_weights_become_float32(mobilenet, tmp_path):
    half = {k: v.half() if v.is_floating_point() else v for k, v in mobilenet.state_dict().items()}
    torch.save(half, tmp_path / "half.pth")
    trunk = make_trunk("mobilenet_v2", weights=str(tmp_path / "half.pth"))
    assert {p.dtype for p in trunk.parameters()} == {torch.float32}


def test_weights_of_another_trunk_are_refused_by_name(mobilenet, tmp_path):
    torch.save(mobilenet.state_dict(), tmp_path / "mobilenet.pth")
    with pytest.raises(
        ValueError, match=r"mobilenet\.pth holds weights of another network.*ResNet"
    ):
        make_trunk("resnet50", weights=str(tmp_path / "mobilenet.pth"))


def test_a_file_that_is_no_state_dict_is_refused_without_running_it(tmp_path):
    (tmp_path / "notes.pth").write_text("not weights")
    with pytest.raises(ValueError, match="not a PyTorch state dict"):
        make_trunk("mobilenet_v2", weights=str(tmp_path / "notes.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="not a PyTorch state dict"):
        make_trunk("mobilenet_v2", weights=str(tmp_path / "list.pth"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "vgg"}, ValueError, "TRUNK='vgg'"),
        ({"name": "small_convnet", "weights": "imagenet"}, ValueError, "no ImageNet weights"),
        ({"name": "small_convnet", "convention": "opencv"}, ValueError, "INPUT_CONVENTION"),
        ({"name": "resnet50", "weights": "absent.pth"}, FileNotFoundError, "absent.pth"),
    ],
)
def test_wrong_names_are_refused_with_the_remedy(arguments, error, message):
    with pytest.raises(error, match=message):
        make_trunk(**arguments)
