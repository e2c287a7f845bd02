"""Trunks, input conventions, poolings, and the wrong names that are refused."""

from copy import deepcopy
from itertools import repeat

import pytest
import torch
import torchvision
from torch import nn

from dmlkit.models import INPUT_CONVENTIONS, TRUNKS, EmbeddingHead, EmbeddingModel, make_trunk
from dmlkit.training import fit


def normalise(images, convention):
    mean, std = (
        torch.tensor(INPUT_CONVENTIONS[convention][name])[:, None, None] for name in ("mean", "std")
    )
    return (images - mean) / std


@pytest.fixture(scope="module")
def googlenet():
    """Return torchvision's GoogLeNet as its weights make it: rescaling inputs, with statistics."""
    torch.manual_seed(0)
    network = torchvision.models.googlenet(
        aux_logits=True, transform_input=True, init_weights=False
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()(torch.randn(4, 3, 96, 96))
    return network.eval()


@pytest.mark.parametrize(("name", "num_features"), TRUNKS.items())
def test_a_trunk_gives_one_feature_vector_per_image(name, num_features):
    trunk = make_trunk(name).eval()
    assert trunk.out_features == num_features
    assert trunk(torch.rand(2, 3, 33, 33)).shape == (2, num_features)


def test_torchvision_trunks_give_the_features_their_classifier_sees(tmp_path):
    torch.manual_seed(0)
    mobilenet = torchvision.models.mobilenet_v2().eval()
    torch.save(mobilenet.state_dict(), tmp_path / "weights.pth")
    trunk = make_trunk("mobilenet_v2", weights=str(tmp_path / "weights.pth")).eval()
    images = torch.rand(2, 3, 64, 64)
    expected = mobilenet.features(normalise(images, "torchvision")).mean((2, 3))
    assert torch.allclose(trunk(images), expected, atol=1e-5)


@pytest.mark.parametrize("from_imagenet", [False, True])
def test_googlenet_gives_the_features_torchvisions_own_classifier_sees(
    googlenet, tmp_path, monkeypatch, from_imagenet
):
    # Like a published file: auxiliary classifiers and a classifier, but no counts of batches.
    state = {k: v for k, v in googlenet.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "googlenet.pth")
    monkeypatch.setattr(
        torchvision.models.GoogLeNet_Weights,
        "get_state_dict",
        lambda weights, **options: googlenet.state_dict(),
    )
    weights = "imagenet" if from_imagenet else str(tmp_path / "googlenet.pth")
    trunk = make_trunk("googlenet", weights=weights, convention="tensorflow").eval()
    seen = []
    hook = googlenet.fc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.rand(2, 3, 96, 96)
    googlenet(normalise(images, "torchvision"))
    hook.remove()
    assert seen[0].std() > 0.1
    assert torch.allclose(trunk(images), seen[0], atol=1e-4)
    assert not any(name.startswith("aux") for name, _ in trunk.layers.named_modules())


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


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [("average", [2.5, 1.0]), ("max", [4.0, 4.0]), ("average_and_max", [6.5, 5.0])],
)
def test_poolings_of_a_small_map(pooling, expected):
    trunk = make_trunk("small_convnet", pooling=pooling)
    maps = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 4.0]]]])
    trunk.layers = nn.Identity()
    trunk.mean, trunk.std = torch.tensor(0.0), torch.tensor(1.0)
    assert trunk(maps)[0].tolist() == expected


def test_the_average_is_pooled_unless_another_pooling_is_named():
    images = torch.rand(2, 3, 32, 32)
    trunk = make_trunk("small_convnet").eval()
    average = trunk(images)
    trunk.pooling = "max"
    assert trunk(images).shape == average.shape
    assert (trunk(images) >= average).all()
    trunk.pooling = "average"
    assert torch.equal(trunk(images), average)


@pytest.mark.parametrize("name", ["small_convnet", "googlenet", "bn_inception"])
def test_frozen_batch_norms_keep_their_statistics_in_training(name):
    for frozen in (True, False):
        trunk = make_trunk(name, freeze_batch_norm=frozen).train()
        before = {k: v.clone() for k, v in trunk.named_buffers() if "running" in k}
        trunk(torch.rand(4, 3, 64, 64))
        after = dict(trunk.named_buffers())
        assert before
        assert all(torch.equal(v, after[k]) == frozen for k, v in before.items())


@pytest.mark.parametrize("name", ["googlenet", "bn_inception"])
def test_large_trunks_train_through_the_one_loop(name):
    torch.manual_seed(0)
    trunk = make_trunk(name, convention="caffe", pooling="average_and_max")
    model = EmbeddingModel(trunk, EmbeddingHead(trunk.out_features, 8))
    first = next(trunk.parameters()).detach().clone()
    batch = (torch.rand(4, 3, 64, 64), torch.tensor([0, 0, 1, 1]))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def compute_loss(batch):
        similarities = model(batch[0]) @ model(batch[0]).T
        return similarities[:2, 2:].mean() - similarities[:2, :2].mean()

    result = fit([model], repeat(batch), compute_loss, optimizer, steps=2)
    assert result.best_step == 2
    assert not torch.equal(first, next(trunk.parameters()))
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "vgg"}, ValueError, "TRUNK='vgg' is unknown; .*bn_inception"),
        ({"name": "small_convnet", "weights": "imagenet"}, ValueError, "no ImageNet weights"),
        ({"name": "small_convnet", "convention": "opencv"}, ValueError, "INPUT_CONVENTION"),
        ({"name": "small_convnet", "pooling": "gem"}, ValueError, "POOLING='gem'.*average_and_max"),
        ({"name": "resnet50", "weights": "absent.pth"}, FileNotFoundError, "absent.pth"),
        (
            {"name": "bn_inception", "weights": "imagenet", "convention": "caffe"},
            ValueError,
            r"torchvision has no .*bn_inception-52deb4733\.pth",
        ),
        (
            {"name": "bn_inception", "weights": "absent.pth"},
            ValueError,
            "INPUT_CONVENTION='torchvision' .*bn_inception.*set INPUT_CONVENTION=caffe",
        ),
        (
            {"name": "bn_inception", "weights": "absent.pth", "convention": "caffe"},
            FileNotFoundError,
            "absent.pth",
        ),
        (
            {"name": "googlenet", "weights": "imagenet"},
            ValueError,
            "set INPUT_CONVENTION=tensorflow",
        ),
    ],
)
def test_wrong_names_are_refused_with_the_remedy(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        make_trunk(**arguments)
    assert "\n" not in str(caught.value)


def test_a_compiled_trunk_is_translated_once_and_its_copies_again(monkeypatch):
    translated = []

    def compile_in_place(module):
        translated.append(module)
        module._compiled_call_impl = module._call_impl

    monkeypatch.setattr(nn.Module, "compile", compile_in_place)
    trunk = make_trunk("small_convnet", compiled=True)
    images = torch.rand(2, 3, 32, 32)
    expected = trunk.eval()(images)
    assert torch.equal(trunk(images), expected) and translated == [trunk.layers]
    copied = deepcopy(trunk)
    assert torch.equal(copied(images), expected) and translated == [trunk.layers, copied.layers]
    assert trunk.state_dict().keys() == make_trunk("small_convnet").state_dict().keys()
    make_trunk("small_convnet").eval()(images)
    assert len(translated) == 2
