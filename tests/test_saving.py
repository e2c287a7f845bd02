"""Saved models: what comes back, what is refused, and what a file cannot do."""

import os
import pickle

import pytest
import torch
from torch import nn

from dmlkit.features import CachedTrunk
from dmlkit.models import EmbeddingHead, EmbeddingModel, MLPHead, make_trunk
from dmlkit.saving import SavedModel, load_model, save_model

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def make_model(trunk="small_convnet", *, embedding_dim=5, head=None, **of_trunk):
    """A model whose batch norms have seen images, and so differ from new ones."""
    torch.manual_seed(0)
    network = make_trunk(trunk, **of_trunk)
    options = head or {}
    model = EmbeddingModel(network, EmbeddingHead(network.out_features, embedding_dim, **options))
    model.train()(IMAGES)
    return model.eval()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "models" / "birds.pt"


@pytest.fixture
def saved(path):
    """The path of a saved model."""
    save_model(path, make_model(), trunk="small_convnet", image_size=32)
    return path


@pytest.mark.parametrize(
    ("trunk", "how"),
    [
        ("small_convnet", {}),
        ("small_convnet", {"convention": "caffe", "pooling": "max"}),
        ("small_convnet", {"head": {"layer_norm": True, "bias": False}}),
        ("small_convnet", {"head": {"project": False}, "embedding_dim": 32}),
        ("mobilenet_v2", {"convention": "tensorflow", "freeze_batch_norm": True}),
        ("resnet50", {"pooling": "average_and_max"}),
    ],
    ids=lambda value: str(value),
)
def test_a_model_comes_back_with_the_same_embeddings_to_the_last_bit(path, trunk, how):
    model = make_model(trunk, **how)
    save_model(path, model, trunk=trunk, image_size=32, cache_size=40, note="of birds")
    found = load_model(path)
    with torch.no_grad():
        assert torch.equal(found.model(IMAGES), model(IMAGES))
    assert (found.trunk, found.image_size, found.cache_size, found.short_side) == (trunk, 32, 40, 0)
    assert found.note == "of birds" and found.embedding_dim == how.get("embedding_dim", 5)
    assert not found.model.training and found.device == torch.device("cpu")


def test_frozen_batch_norms_stay_frozen_when_a_loaded_model_trains_on(path):
    save_model(path, make_model(freeze_batch_norm=True), trunk="small_convnet", image_size=32)
    model = load_model(path).model
    before = model.trunk.layers[1].running_mean.clone()
    model.train()(IMAGES)
    assert torch.equal(model.trunk.layers[1].running_mean, before)


def test_neither_saving_nor_loading_draws_random_numbers_or_changes_the_model(path):
    model = make_model().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    save_model(path, model, trunk="small_convnet", image_size=32)
    load_model(path)
    drawn = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(4))
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_digest_tells_models_apart_that_embed_differently(tmp_path):
    def digest(name, model=None, **how):
        how = {"image_size": 32} | how
        save_model(tmp_path / name, model or make_model(), trunk="small_convnet", **how)
        return load_model(tmp_path / name).digest

    changed = make_model()
    changed.head.linear.bias.data[0] += 1e-6
    alike = {digest("a"), digest("b"), digest("c", note="other words", cache_size=32)}
    assert len(alike) == 1
    others = [
        digest("d", changed),
        digest("e", image_size=16),
        digest("f", short_side=64),
        digest("g", make_model(convention="tensorflow")),
        digest("h", make_model(pooling="max")),
    ]
    assert len({*alike, *others}) == 6


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        (lambda: nn.Linear(2, 2), {}, "cannot save a Linear: only an EmbeddingModel"),
        (
            lambda: EmbeddingModel(CachedTrunk(4), EmbeddingHead(4, 2)),
            {},
            "EmbeddingModel of CachedTrunk and EmbeddingHead.* put the head on the trunk",
        ),
        (
            lambda: EmbeddingModel(make_trunk("small_convnet"), MLPHead(32, 8, 4)),
            {},
            "EmbeddingModel of Trunk and MLPHead",
        ),
        (make_model, {"trunk": "mobilenet_v2"}, "not those of trunk='mobilenet_v2'"),
        (make_model, {"trunk": "smallconvnet"}, "choose one of small_convnet"),
        (lambda: make_model().half(), {}, "is torch.float16; make it float32 first"),
        (make_model, {"image_size": 0}, "image_size=0"),
        (make_model, {"cache_size": 16}, "image_size=32 cannot be cut out of cache_size=16"),
        (make_model, {"short_side": 16}, "with short_side=16"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_could_not_be_loaded_is_not_saved(path, model, more, message):
    with pytest.raises(ValueError, match=message):
        save_model(path, model(), **{"trunk": "small_convnet", "image_size": 32} | more)
    assert not path.exists()


def test_a_diverged_model_is_refused_and_an_older_file_stays(saved):
    before = saved.read_bytes()
    model = make_model()
    model.head.linear.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"head.linear.weight holds NaN or infinity"):
        save_model(saved, model, trunk="small_convnet", image_size=32)
    assert saved.read_bytes() == before
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


def test_a_missing_file_is_named(path):
    with pytest.raises(FileNotFoundError, match=r"no file .*birds.pt; give one that .*save_model"):
        load_model(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        load_model(path.parents[1])  # a folder


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_half_a_file_is_refused(saved, share):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"birds.pt cannot be read .*damaged, or no file that"):
        load_model(saved)


def test_a_flipped_bit_is_noticed(saved):
    weights = load_model(saved).model.trunk.layers[4].weight
    data = bytearray(saved.read_bytes())
    value = weights.detach().contiguous().numpy().tobytes()[:64]
    at = data.index(value)  # stored as they are
    data[at] ^= 1
    saved.write_bytes(data)
    with pytest.raises(ValueError, match="birds.pt is damaged"):
        load_model(saved)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"head.weight": torch.ones(2)}, "holds no dmlkit model; .*there is WEIGHTS"),
        ([1, 2], "holds no dmlkit model"),
        ({"kind": "dmlkit gallery", "version": 1}, "holds no dmlkit model"),
        ({"kind": "dmlkit model", "version": 2}, "newer dmlkit .version 2.*up to 1.*update"),
        ({"kind": "dmlkit model", "version": 1}, "is damaged"),
    ],
    ids=["state dict", "list", "gallery", "newer", "empty"],
)
def test_other_files_are_refused_in_one_sentence(path, stored, message):
    path.parent.mkdir()
    torch.save(stored, path)
    with pytest.raises(ValueError, match=message) as refused:
        load_model(path)
    assert "\n" not in str(refused.value)


def test_a_trunk_that_only_a_newer_version_knows_is_named(saved, monkeypatch):
    monkeypatch.delitem(__import__("dmlkit.models").models.trunks.TRUNKS, "small_convnet")
    with pytest.raises(ValueError, match="cannot be used: TRUNK='small_convnet' is unknown"):
        load_model(saved)


class Harm:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("save", [torch.save, lambda harm, path: path.write_bytes(harm)])
def test_a_file_runs_no_code(path, tmp_path, save):
    path.parent.mkdir()
    harm = {"kind": "dmlkit model", "version": 1, "about": Harm(f"touch {tmp_path / 'harmed'}")}
    save(harm if save is torch.save else pickle.dumps(harm), path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_model(path)
    assert not (tmp_path / "harmed").exists()


def test_a_saved_model_says_briefly_what_it_is(saved):
    found = load_model(saved)
    assert isinstance(found, SavedModel)
    assert repr(found).startswith("SavedModel(trunk='small_convnet', image_size=32, cache_size=32")
    assert len(repr(found)) < 200


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("about", "embedding_dim", 10**9, "weights are not those of small_convnet"),
        ("about", "image_size", 10**8, "whole numbers of pixels, up to 10,000"),
        ("about", "image_size", "32", "whole numbers of pixels"),
        ("state", "head.linear.weight", torch.zeros(1).expand(5, 32), "weights are not those of"),
        ("state", "head.linear.bias", "text", "weights are not those of"),
        ("state", "more", torch.zeros(1).expand(10**6, 10**6), "weights are not those of"),
    ],
)
def test_a_file_that_claims_more_than_it_holds_is_refused(saved, part, name, value, message):
    stored = torch.load(saved, weights_only=True)
    stored[part][name] = value
    torch.save(stored, saved)
    with pytest.raises(ValueError, match=rf"birds.pt cannot be used: .*{message}"):
        load_model(saved)
