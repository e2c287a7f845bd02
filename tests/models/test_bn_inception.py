"""BN-Inception against the published layout, known sizes and a plain computation of its blocks."""

import pytest
import torch
import torch.nn.functional as F

from dmlkit.models import make_trunk
from dmlkit.models.bn_inception import BNInception

REDUCTION = ["3x3_reduce", "3x3", "double_3x3_reduce", "double_3x3_1", "double_3x3_2"]
ORDINARY = ["1x1", *REDUCTION, "pool_proj"]


def published_names():
    """Return all tensor names of the published file but those of the classifier."""
    units = ["conv1_7x7_s2", "conv2_3x3_reduce", "conv2_3x3"]
    for block in ("3a", "3b", "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        suffixes = REDUCTION if block in ("3c", "4e") else ORDINARY
        units += [f"inception_{block}_{suffix}" for suffix in suffixes]
    batch_norm = ("weight", "bias", "running_mean", "running_var")
    return {f"{unit}.{part}" for unit in units for part in ("weight", "bias")} | {
        f"{unit}_bn.{part}" for unit in units for part in batch_norm
    }


@pytest.fixture(scope="module")
def network():
    """Return a network of random weights in which no two batch norms are alike."""
    torch.manual_seed(0)
    network = BNInception().eval()
    for name, value in network.state_dict().items():
        if name.endswith("running_var") or "_bn.weight" in name:
            value.uniform_(0.5, 2.0)
        elif name.endswith("running_mean") or "_bn.bias" in name:
            value.uniform_(-0.5, 0.5)
    return network


def plain_unit(state, name, x, stride=1):
    """Convolve, normalise with stored statistics and rectify, written out."""
    weight = state[f"{name}.weight"]
    x = F.conv2d(x, weight, state[f"{name}.bias"], stride, padding=weight.shape[2] // 2)
    scale, shift, mean, variance = (
        state[f"{name}_bn.{part}"][:, None, None]
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    return ((x - mean) / (variance + 1e-5).sqrt() * scale + shift).clamp(min=0)


def plain_pool(x, kind, stride):
    """Pool windows of 3x3: zeros count in averages; stride 2 starts in the corner, unpadded."""
    border = (1, 1, 1, 1) if stride == 1 else (0, 2, 0, 2)
    padded = F.pad(x, border, value=0.0 if kind == "average" else -torch.inf)
    windows = padded.unfold(2, 3, stride).unfold(3, 3, stride)
    return windows.mean((-2, -1)) if kind == "average" else windows.amax((-2, -1))


def test_sizes_are_the_published_ones():
    network = BNInception()
    # 11,295,240 with the classifier of 1000 classes.
    assert sum(p.numel() for p in network.parameters()) == 11_295_240 - 1000 * 1024 - 1000
    assert network.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 1024, 7, 7)
    assert {m.eps for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {1e-5}


def test_parameters_have_the_published_names_and_shapes(network):
    state = network.state_dict()
    assert {name for name in state if not name.endswith("num_batches_tracked")} == published_names()
    assert state["conv1_7x7_s2.weight"].shape == (64, 3, 7, 7)
    assert state["inception_3a_1x1.weight"].shape == (64, 192, 1, 1)
    assert state["inception_3c_3x3.weight"].shape == (160, 128, 3, 3)
    assert state["inception_4a_1x1.weight"].shape == (224, 576, 1, 1)
    assert state["inception_4e_double_3x3_1.weight"].shape == (256, 192, 3, 3)
    assert state["inception_5a_1x1.weight"].shape == (352, 1056, 1, 1)
    assert state["inception_5b_pool_proj.weight"].shape == (128, 1024, 1, 1)


@pytest.mark.parametrize(
    ("block", "channels", "pool", "size"),
    [
        ("3a", 192, "average", 7),
        ("3c", 320, "max", 8),
        ("4d", 608, "average", 4),
        ("4e", 608, "max", 6),
        ("4e", 608, "max", 5),
        ("5b", 1024, "max", 5),
    ],
)
def test_a_block_equals_its_plain_computation(network, block, channels, pool, size):
    state, name = network.state_dict(), f"inception_{block}"
    x = torch.rand(2, channels, size, size)
    stride = 2 if block in ("3c", "4e") else 1
    pooled = plain_pool(x, pool, stride)
    single = plain_unit(state, f"{name}_3x3_reduce", x)
    double = plain_unit(state, f"{name}_double_3x3_reduce", x)
    double = plain_unit(state, f"{name}_double_3x3_1", double)
    expected = [
        plain_unit(state, f"{name}_3x3", single, stride),
        plain_unit(state, f"{name}_double_3x3_2", double, stride),
        pooled,
    ]
    if stride == 1:
        expected[-1] = plain_unit(state, f"{name}_pool_proj", pooled)
        expected.insert(0, plain_unit(state, f"{name}_1x1", x))
    output = network.inception(x, name)
    assert torch.allclose(output, torch.cat(expected, 1), atol=1e-4)
    assert output.std() > 0.1


def test_the_stem_is_convolution_pooling_convolutions_pooling(network, monkeypatch):
    state = network.state_dict()
    images = torch.randn(2, 3, 64, 64)
    monkeypatch.setattr(network, "inception", lambda x, name: x)
    x = plain_pool(plain_unit(state, "conv1_7x7_s2", images, stride=2), "max", 2)
    x = plain_unit(state, "conv2_3x3", plain_unit(state, "conv2_3x3_reduce", x))
    assert torch.allclose(network(images), plain_pool(x, "max", 2), atol=1e-4)


@pytest.mark.parametrize("size", [64, 65, 72, 80, 129, 227])
def test_images_of_any_size_fit(network, size):
    features = network(torch.rand(1, 3, size, size + 16))
    assert features.shape[1] == 1024
    assert features.isfinite().all()


def test_a_file_of_the_published_layout_loads(network, tmp_path):
    state = {name: network.state_dict()[name].clone() for name in published_names()}
    # Older files of these weights hold batch norms as one row.
    published = {name: v[None] if "_bn." in name else v for name, v in state.items()}
    published |= {
        "last_linear.weight": torch.rand(1000, 1024),
        "last_linear.bias": torch.rand(1000),
    }
    torch.save(published, tmp_path / "bn_inception.pth", _use_new_zipfile_serialization=False)
    weights = str(tmp_path / "bn_inception.pth")
    trunk = make_trunk("bn_inception", weights=weights, convention="caffe").eval()
    loaded = trunk.layers.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    images = torch.rand(2, 3, 64, 64)
    centred = 255 * images.flip(1) - torch.tensor([104.0, 117.0, 128.0])[:, None, None]
    expected = network(centred).mean((2, 3))
    assert torch.allclose(trunk(images), expected, rtol=1e-3, atol=1e-3)


def test_its_first_convolution_sees_blue_green_red_up_to_255():
    trunk = make_trunk("bn_inception", convention="caffe").eval()
    seen = []
    trunk.layers.conv1_7x7_s2.register_forward_pre_hook(lambda module, x: seen.append(x[0]))
    red = torch.zeros(1, 3, 64, 64)
    red[:, 0] = 1.0
    trunk(red)
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx([-104.0, -117.0, 127.0], abs=1e-3)
    assert (seen[0] == seen[0][:, :, :1, :1]).all()
