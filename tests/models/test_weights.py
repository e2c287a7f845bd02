"""What is read from a weights file, and what is refused when it does not fit."""

import pytest
import torch
import torchvision

from dmlkit.models import make_trunk


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


def test_weights_of_old_pytorch_versions_fit(mobilenet, tmp_path):
    state = mobilenet.state_dict()
    batch_norms = {key.removesuffix("running_var") for key in state if key.endswith("running_var")}
    old = {
        key: value[None] if key.rpartition(".")[0] + "." in batch_norms else value
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save(old, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    layers = make_trunk("mobilenet_v2", weights=str(tmp_path / "old.pth")).layers
    assert old["features.0.1.running_var"].shape == (1, 32)
    assert all(torch.equal(v, state[f"features.{k}"]) for k, v in layers.state_dict().items())


def test_a_tensor_with_an_extra_axis_of_another_size_is_refused(mobilenet, tmp_path):
    state = dict(mobilenet.state_dict())
    state["features.0.1.bias"] = state["features.0.1.bias"].expand(2, -1)
    torch.save(state, tmp_path / "twice.pth")
    with pytest.raises(ValueError, match=r"1 of .* tensors .*, first features\.0\.1\.bias"):
        make_trunk("mobilenet_v2", weights=str(tmp_path / "twice.pth"))


@pytest.mark.parametrize(
    ("name", "convention", "network"),
    [
        ("resnet50", "torchvision", "ResNet"),
        ("googlenet", "tensorflow", "GoogLeNet"),
        ("bn_inception", "caffe", "BNInception"),
    ],
)
def test_weights_of_another_trunk_are_refused_by_name(
    mobilenet, tmp_path, name, convention, network
):
    path = tmp_path / "mobilenet.pth"
    torch.save(mobilenet.state_dict(), path)
    with pytest.raises(
        ValueError, match=rf"mobilenet\.pth holds weights of another network.*{network}"
    ):
        make_trunk(name, weights=str(path), convention=convention)


def test_a_file_that_is_no_state_dict_is_refused_without_running_it(tmp_path):
    (tmp_path / "notes.pth").write_text("not weights")
    with pytest.raises(ValueError, match="not a PyTorch state dict"):
        make_trunk("mobilenet_v2", weights=str(tmp_path / "notes.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="not a PyTorch state dict"):
        make_trunk("mobilenet_v2", weights=str(tmp_path / "list.pth"))


@pytest.mark.parametrize(
    "value",
    [
        "text",
        None,
        torch.ones(32, dtype=torch.complex64),
        torch.ones(32, device="meta"),
    ],
    ids=["text", "none", "complex", "without values"],
)
def test_what_cannot_become_weights_is_refused(mobilenet, value, tmp_path):
    torch.save(mobilenet.state_dict() | {"features.0.1.bias": value}, tmp_path / "odd.pth")
    with pytest.raises(
        ValueError, match=r"odd\.pth .* 1 of .* tensors .*, first features\.0\.1\.b"
    ):
        make_trunk("mobilenet_v2", weights=str(tmp_path / "odd.pth"))
