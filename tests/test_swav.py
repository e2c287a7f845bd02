"""SwAV pre-training: its crops, its training as the official code does it, and its checkpoints."""

import math
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.transforms.v2 import functional as reference

from dmlkit import swav
from dmlkit.datasets import ImageSet
from dmlkit.losses import SwAVLoss
from dmlkit.models import SwAVHead, Trunk, make_trunk
from dmlkit.samplers import RandomSampler
from dmlkit.seeding import derive_seed, set_seed
from dmlkit.swav import (
    MultiCrop,
    cosine_factor,
    frozen_steps,
    gaussian_blur,
    load_swav_checkpoint,
    pretrain,
    read_swav_checkpoint,
    train_swav,
)
from dmlkit.transforms import RandomResizedCropFlip

CPU = torch.device("cpu")
PLAIN = {"jittered": 0.0, "grey": 0.0, "blurred": 0.0}
SCALES = ((0.14, 1.0), (0.05, 0.14))


def noise(count=6, side=24):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def small_crops(seed=0, **settings):
    return MultiCrop((20, 16), (2, 3), SCALES, seed=seed, **settings)


def flat_crops(count, **shares):
    """Return (count, 3) colours of crops of a reddish plane, which only colour changes change."""
    plane = torch.tensor([200, 100, 50], dtype=torch.uint8)[None, :, None, None]
    crops = MultiCrop((4,), (1,), ((0.5, 1.0),), seed=0, **(PLAIN | shares))
    (group,) = crops(plane.expand(count, 3, 8, 8))
    assert torch.allclose(group, group[..., :1, :1].expand_as(group), atol=1e-5)
    return group[0, :, :, 0, 0]


# Crops


def test_each_size_has_its_crops_of_each_image_in_float32_from_0_to_1():
    large, small = small_crops()(noise())
    assert large.shape == (2, 6, 3, 20, 20) and small.shape == (3, 6, 3, 16, 16)
    for group in (large, small):
        assert group.dtype == torch.float32
        assert group.min() >= 0 and group.max() <= 1 + 1e-6


def test_the_defaults_are_those_of_the_official_recipe():
    crops = MultiCrop(seed=0)
    assert (crops.sizes, crops.counts) == ((224, 96), (2, 6))
    assert [crop.scale for crop in crops.croppers] == [(0.14, 1.0), (0.05, 0.14)]
    assert crops.shares[:, 0].tolist() == pytest.approx([0.8, 0.2, 0.5])
    assert crops.jitter.low.tolist() == pytest.approx([0.2, 0.2, 0.2, -0.2])
    assert crops.jitter.high.tolist() == pytest.approx([1.8, 1.8, 1.8, 0.2])


@pytest.mark.parametrize("virtual", [None, torch.tensor([[30, 24]] * 6)], ids=["stored", "virtual"])
def test_without_colour_changes_they_are_random_resized_crops(virtual):
    images = noise()
    groups = small_crops(seed=3, **PLAIN)(images, virtual)
    for place, group in enumerate(groups):
        side, scale = (20, 16)[place], SCALES[place]
        crop = RandomResizedCropFlip(side, seed=derive_seed(3, "crop", place), scale=scale)
        for one in group:
            torch.testing.assert_close(one, crop(images, virtual))


def test_shares_of_the_crops_are_jittered_grey_and_blurred():
    colour = torch.tensor([200, 100, 50]) / 255
    jittered = (flat_crops(2000, jittered=0.8) - colour).abs().amax(dim=1) > 1e-4
    assert jittered.float().mean().item() == pytest.approx(0.8, abs=0.03)
    spread = flat_crops(2000, grey=0.2).std(dim=1)
    assert (spread < 1e-6).float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert ((spread < 1e-6) | (spread > 0.2)).all()
    images = noise(500, side=8)
    sharp, some = (
        MultiCrop((8,), (1,), ((1.0, 1.0),), seed=0, **(PLAIN | {"blurred": share}))(images)[0][0]
        for share in (0.0, 0.5)
    )
    # A sigma below a fifth of a pixel changes nothing to speak of.
    changed = (some - sharp).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert changed.float().mean().item() == pytest.approx(0.5 * 1.8 / 1.9, abs=0.06)


def test_the_strength_of_colours_scales_all_four_ranges():
    assert torch.allclose(
        flat_crops(20, jittered=1.0, colour_strength=0.0), flat_crops(20), atol=1e-6
    )
    jitter = MultiCrop(seed=0, colour_strength=0.5).jitter
    assert jitter.high.tolist() == pytest.approx([1.4, 1.4, 1.4, 0.1])


def test_to_leave_out_one_change_leaves_the_others_as_they_are():
    images = noise(40)
    full, coloured = (small_crops(grey=share)(images)[0] for share in (0.2, 0.0))
    same = (full == coloured).flatten(2).all(dim=2)  # (2, 40)
    grey = (full.std(dim=2) < 1e-5).flatten(2).all(dim=2)
    assert torch.equal(same, ~grey)
    assert 4 < grey.sum() < 30
    half, blurred = (small_crops(blurred=share)(images)[0] for share in (0.5, 1.0))
    share = (half == blurred).flatten(2).all(dim=2).float().mean()
    assert 0.3 < share < 0.7


def test_the_same_seed_gives_the_same_crops_and_another_seed_others():
    images, one, same, other = noise(), small_crops(1), small_crops(1), small_crops(2)
    first, second = one(images), one(images)
    torch.manual_seed(0)
    for expected in (first, second):
        for crops, others in zip(expected, same(images), strict=True):
            assert torch.equal(crops, others)
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[0], other(images)[0])
    assert not torch.equal(first[0][0], first[0][1])


def test_packed_crops_are_the_crops():
    groups = small_crops()(noise())
    crops = small_crops()
    packed = crops.packed(noise())
    assert packed.ndim == 1
    for group, unpacked in zip(groups, crops.unpack(packed), strict=True):
        assert torch.equal(group, unpacked)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_torchvisions_away_from_the_border(sigma):
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    blurred = gaussian_blur(images, torch.tensor([sigma, 0.5]))
    expected = reference.gaussian_blur(images[:1], [23, 23], [sigma, sigma])
    inner = slice(11, -11)
    assert torch.allclose(blurred[:1, :, inner, inner], expected[..., inner, inner], atol=1e-5)
    one = torch.ones(1, 3, 40, 40)
    assert torch.allclose(gaussian_blur(one, torch.tensor([sigma])), one, atol=1e-5)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(4, 2, 32), torch.zeros(4, 3, 8, 8), torch.zeros(4, 1, 8, 8, dtype=torch.uint8)],
    ids=["features", "fractions", "one channel"],
)
def test_what_is_no_stored_image_is_refused(images):
    with pytest.raises(ValueError, match=r"cannot be cropped; give \(B, 3, H, W\) uint8"):
        small_crops()(images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes": (20,)}, r"sizes=\[20\], counts=\[2, 6\]"),
        ({"sizes": (), "counts": (), "scales": ()}, "describe no crops"),
        ({"counts": (2, 0)}, r"counts=\[2, 0\]"),
        ({"scales": ((0.1, 1.0),)}, "give each size a count of at least 1 and a range"),
        ({"scales": ((0.1, 1.0), (0.5, 0.1))}, "CROP_SCALE=.* is no range"),
        ({"jittered": 1.2}, "jittered=1.2 is no share"),
        ({"grey": -0.1}, "grey=-0.1 is no share"),
        ({"blurred": math.nan}, "blurred=nan is no share"),
        ({"colour_strength": 3.0}, "hue=.* is not within half a colour circle"),
    ],
    ids=str,
)
def test_crops_that_cannot_be_made_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MultiCrop(seed=0, **settings)


# Training

NUM_PROTOTYPES = 6
LOSS_AND_DIAGNOSIS = {"loss", "relative_loss", "prototypes_used", "usage_entropy"}


def image_set(images=None):
    images = noise(24) if images is None else images
    labels = torch.arange(len(images)) % 3
    return ImageSet(images, labels, tuple("abc"), "0a", torch.arange(len(images)))


def networks(seed=0):
    set_seed(seed)
    trunk = make_trunk("small_convnet")
    return trunk, SwAVHead(trunk.out_features, 16, 8, NUM_PROTOTYPES)


def train(steps=4, *, models=None, images=None, seed=0, crop_seed=0, **options):
    """Train small networks; return them and what the training left behind."""
    trunk, head = models or networks()
    settings = {"batch_size": 8, "learning_rate": 0.05, "frozen_prototype_steps": 0}
    fitted = train_swav(
        trunk,
        head,
        images or image_set(),
        steps=steps,
        crops=MultiCrop((20, 16), (2, 1), SCALES, seed=crop_seed),
        seed=seed,
        device=CPU,
        measure_every=1,
        **(settings | options),
    )
    return trunk, head, fitted


def losses(**options):
    return [entry["loss"] for entry in train(**options)[2].history]


def prototypes_of(head):
    return head.prototypes.weight.detach().clone()


def test_training_goes_on_and_tells_how_the_prototypes_are_used():
    _, head, fitted = train(3)
    assert [entry["step"] for entry in fitted.history] == [1, 2, 3]
    assert [entry["images_seen"] for entry in fitted.history] == [8, 16, 24]
    for entry in fitted.history:
        assert entry.keys() == {"step", "images_seen"} | LOSS_AND_DIAGNOSIS
        assert math.isfinite(entry["loss"])
        assert entry["relative_loss"] == pytest.approx(entry["loss"] / math.log(NUM_PROTOTYPES))
        assert 1 / NUM_PROTOTYPES <= entry["prototypes_used"] <= 1
        assert 0 <= entry["usage_entropy"] <= 1
    assert fitted.best_step == 3
    assert torch.equal(fitted.best_states[1]["prototypes.weight"], prototypes_of(head))


def test_the_first_step_is_the_official_one():
    trunk, head = networks()
    rows = next(RandomSampler(24, batch_size=8, seed=derive_seed(0, "sampler")))
    groups = MultiCrop((20, 16), (2, 1), SCALES, seed=0)(image_set().gather(rows))
    views = [view for group in groups for view in group]  # three of (8, 3, S, S)
    # The trunk, and its batch norms, see all crops of one size at a time, the head those of all.
    features = torch.cat([trunk(torch.cat(views[:2])), trunk(views[2])])
    scores = head(features)[1].view(3, 8, NUM_PROTOTYPES)
    loss = SwAVLoss()(scores)
    nearest = scores[:2].argmax(dim=2).flatten()
    loss.backward()
    rate = 0.05
    weight = head.prototypes.weight
    moved = weight - rate * (weight.grad + 1e-6 * weight)

    _, trained, fitted = train(1)

    assert fitted.history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert fitted.history[0]["prototypes_used"] == len(nearest.unique()) / NUM_PROTOTYPES
    expected = moved / moved.norm(dim=1, keepdim=True)
    torch.testing.assert_close(prototypes_of(trained), expected.detach())


def test_usage_is_that_of_crops_with_codes_and_counted_anew_for_every_entry(monkeypatch):
    monkeypatch.setattr(swav, "diagnose", lambda loss, usage: {"crops": usage.sum().item()})
    assert [entry["crops"] for entry in train(3)[2].history] == [2 * 8] * 3


def test_prototypes_stay_first_and_move_later_at_unit_length():
    before = prototypes_of(networks()[1])
    trunk, head, _ = train(2, frozen_prototype_steps=2)
    torch.testing.assert_close(prototypes_of(head), before)
    start = networks()[0].state_dict()
    assert any((value != start[name]).any() for name, value in trunk.named_parameters())
    _, head, _ = train(3, frozen_prototype_steps=2)
    assert (prototypes_of(head) - before).abs().amax(dim=1).min() > 1e-5
    torch.testing.assert_close(prototypes_of(head).norm(dim=1), torch.ones(NUM_PROTOTYPES))


def test_prototypes_that_an_earlier_run_left_frozen_move_in_the_next():
    trunk, head, _ = train(1, frozen_prototype_steps=1)
    before = prototypes_of(head)
    train(2, models=(trunk, head))
    assert (prototypes_of(head) - before).abs().max() > 1e-5


def test_two_runs_with_one_seed_are_the_same_and_draw_nothing_else():
    models = networks()
    state = torch.get_rng_state()
    trunk, head, fitted = train(models=models)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    other_trunk, other_head, other = train()
    assert fitted.history == other.history
    for one, same in ((trunk, other_trunk), (head, other_head)):
        for name, value in one.state_dict().items():
            assert torch.equal(value, same.state_dict()[name])
    assert losses(seed=1) != losses(crop_seed=1) != losses()


def test_labels_are_not_looked_at():
    images = image_set()
    relabelled = replace(images, labels=torch.zeros_like(images.labels))
    assert losses(images=relabelled) == losses(images=images)


def test_plain_classes_are_told_apart_and_prototypes_stay_in_use():
    colours = torch.tensor([[230, 30, 30], [30, 230, 30], [30, 30, 230]], dtype=torch.uint8)
    images = colours[torch.arange(24) % 3][:, :, None, None].expand(-1, -1, 24, 24)
    images = images // 2 + noise(24) // 2
    trunk, head = networks()
    history = train_swav(
        trunk,
        head,
        image_set(images),
        steps=40,
        batch_size=12,
        learning_rate=0.1,
        frozen_prototype_steps=4,
        crops=MultiCrop((16,), (2,), ((0.3, 1.0),), seed=0, **PLAIN),
        seed=0,
        device=CPU,
        measure_every=20,
    ).history
    assert history[-1]["relative_loss"] < 0.8 * history[0]["relative_loss"] < 0.9
    assert history[-1]["prototypes_used"] >= 0.5
    assert history[-1]["usage_entropy"] > 0.5


@pytest.mark.parametrize(("start", "first"), [(0, 2), (2, 4)], ids=["at once", "later"])
def test_a_queue_counts_from_when_it_is_full(start, first):
    with_queue = losses(steps=6, queue_size=16, queue_start=start)
    without = losses(steps=6)
    assert with_queue[:first] == without[:first]
    assert with_queue[first] != without[first]


def test_the_queue_holds_the_embeddings_of_the_steps_before():
    seen = []

    class Recorder(SwAVLoss):
        def forward(self, scores, queued_scores=None):
            seen.append((scores[:2].detach(), queued_scores))
            return super().forward(scores, queued_scores)

    # Where nothing learns, what is queued has the scores that it had.
    train(4, learning_rate=0.0, queue_size=16, loss_fn=Recorder())
    (first, _), (second, _), (third, early), (_, late) = seen
    torch.testing.assert_close(early, torch.cat([first, second], dim=1))
    torch.testing.assert_close(late, torch.cat([second, third], dim=1))


def test_one_crop_may_get_codes():
    one, two = losses(steps=1, loss_fn=SwAVLoss(num_assigned=1), queue_size=8), losses(steps=1)
    assert one != two


def test_the_optimiser_and_its_rates_are_the_official_ones(monkeypatch):
    seen = {}

    def spy(modules, batches, compute_loss, optimizer, steps, **options):
        group = optimizer.param_groups[0]
        seen.update({name: group[name] for name in ("lr", "momentum", "weight_decay")}, **options)
        return swav.Fit()

    monkeypatch.setattr(swav, "fit", spy)
    train(10, learning_rate=0.6, precision="bfloat16")
    assert (seen["lr"], seen["momentum"], seen["weight_decay"]) == (0.6, 0.9, 1e-6)
    assert seen["precision"] == "bfloat16"
    rates = [0.6 * seen["learning_rate_factor"](step) for step in (0, 5, 10)]
    assert rates == pytest.approx([0.6, 0.3003, 0.0006])


def test_the_learning_rate_falls_along_half_a_cosine():
    factors = [cosine_factor(step, 4, 0.2) for step in range(5)]
    root = math.sqrt(0.5)
    shares = [1, (1 + root) / 2, 0.5, (1 - root) / 2, 0]
    assert factors == pytest.approx([0.2 + 0.8 * share for share in shares])


def test_bfloat16_trains_too():
    assert all(math.isfinite(loss) for loss in losses(steps=2, precision="bfloat16", queue_size=8))


def test_prototypes_are_frozen_for_one_pass_over_the_images():
    assert frozen_steps(1_281_167, 256) == 5005
    assert frozen_steps(64, 64) == 1 and frozen_steps(65, 64) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 25}, "batch_size=25 does not fit 24 items"),
        ({"final_factor": 1.5}, "final_factor=1.5 is no share"),
        ({"steps": 0}, "STEPS=0 trains nothing"),
        ({"queue_size": -1}, "a queue of -1 embeddings"),
        ({"loss_fn": SwAVLoss(num_assigned=4)}, "at least 4 crops"),
        ({"images": image_set(torch.zeros(24, 2, 32).half())}, "cannot be cropped"),
    ],
    ids=["batch", "rate", "steps", "queue", "crops", "features"],
)
def test_training_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        train(**options)


# A trunk from start to end


def pretrained(*, drawn_before=0, seed=0, **options):
    """Return what is kept of a small trunk, and the trunk."""
    trunk = networks()[0]
    torch.rand(drawn_before)
    settings = {
        **{"crop_sizes": (20, 16), "crop_counts": (2, 1), "hidden_features": 16},
        **{"embedding_dim": 8, "num_prototypes": NUM_PROTOTYPES, "epsilon": 0.05},
        **{"steps": 2, "batch_size": 8, "learning_rate": 0.05, "measure_every": 1},
    }
    return pretrain(trunk, image_set(), seed=seed, device=CPU, **(settings | options)), trunk


def loss_of(made):
    return made[0]["history"][0]["loss"]


def test_a_pretrained_trunk_depends_on_the_seed_and_on_nothing_drawn_before():
    (one, _), (same, _) = pretrained(), pretrained(drawn_before=5)
    assert one["history"] == same["history"] and len(one["history"]) == 2
    assert all(torch.equal(value, same["trunk"][name]) for name, value in one["trunk"].items())
    start = networks()[0].state_dict()
    assert any((one["trunk"][name] != value).any() for name, value in start.items())
    assert loss_of(pretrained(seed=1)) != one["history"][0]["loss"]


def test_what_is_kept_of_it_is_on_the_cpu_can_be_saved_and_makes_the_trunk_again(tmp_path):
    made, trunk = pretrained()
    torch.save(made, tmp_path / "stage.pt")
    kept = torch.load(tmp_path / "stage.pt", weights_only=True)
    assert kept.keys() == {"trunk", "history", "seconds"} and kept["seconds"] > 0
    assert {value.device for value in kept["trunk"].values()} == {CPU}
    again = make_trunk("small_convnet")
    again.load_state_dict(kept["trunk"])
    images = torch.rand(2, 3, 20, 20)
    assert torch.equal(again.eval()(images), trunk.eval()(images))


@pytest.mark.parametrize("counts", [(1, 2), (2, 1), (3, 1)])
def test_all_crops_of_the_first_size_get_codes(monkeypatch, counts):
    monkeypatch.setattr(swav, "diagnose", lambda loss, usage: {"crops": usage.sum().item()})
    made, _ = pretrained(crop_counts=counts)
    assert [entry["crops"] for entry in made["history"]] == [counts[0] * 8] * 2


def test_epsilon_and_the_queue_reach_the_loss():
    assert loss_of(pretrained(epsilon=0.5)) != loss_of(pretrained())
    queued = pretrained(queue_size=8)[0]["history"]
    without = pretrained()[0]["history"]
    assert queued[0] == without[0] and queued[1]["loss"] != without[1]["loss"]


@pytest.mark.parametrize(("steps", "still"), [(20, 2), (50, 3)], ids=["a tenth", "one pass"])
def test_prototypes_are_still_for_one_pass_but_at_most_a_tenth(monkeypatch, steps, still):
    seen = {}

    def spy(*_, **options):
        seen.update(options)
        return swav.Fit()

    monkeypatch.setattr(swav, "train_swav", spy)
    pretrained(steps=steps)  # of 24 images in batches of 8
    assert seen["frozen_prototype_steps"] == still
    assert [crop.scale for crop in seen["crops"].croppers] == list(SCALES)


def test_a_trunk_may_be_pretrained_on_crops_of_one_size_but_not_of_three():
    assert math.isfinite(loss_of(pretrained(crop_sizes=(20,), crop_counts=(2,))))
    with pytest.raises(ValueError, match="give each size a count of at least 1 and a range"):
        pretrained(crop_sizes=(20, 16, 12), crop_counts=(2, 1, 1))


# Checkpoints


def small_resnet(seed=0):
    torch.manual_seed(seed)
    network = ResNet(BasicBlock, [1, 1, 1, 1])
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def trunk_of(network):
    layers = nn.Sequential(*list(network.children())[:-2])
    return Trunk(layers, 512, convention="torchvision", freeze_batch_norm=False).eval()


def official(state):
    """Return a state dict as the official code saves it: wrapped, with its head, no classifier."""
    head = {"projection_head.0.weight": torch.ones(2, 2), "prototypes.weight": torch.ones(2, 2)}
    trunk = {name: value for name, value in state.items() if not name.startswith("fc.")}
    return {f"module.{name}": value for name, value in (trunk | head).items()}


@pytest.mark.parametrize("nested", [False, True], ids=["released", "of the training script"])
def test_a_checkpoint_brings_the_trunk_to_the_features_of_the_network(tmp_path, nested):
    network, trunk = small_resnet(), trunk_of(small_resnet(seed=1))
    state = official(network.state_dict())
    torch.save({"epoch": 3, "state_dict": state} if nested else state, tmp_path / "swav.pth.tar")
    images = torch.rand(2, 3, 40, 40)
    expected = trunk_of(network)(images)
    assert not torch.allclose(trunk(images), expected, rtol=0.1)

    load_swav_checkpoint(trunk, tmp_path / "swav.pth.tar")

    torch.testing.assert_close(trunk(images), expected)


def test_the_released_layout_fits_this_projects_resnet50(tmp_path):
    with torch.device("meta"):
        shapes = make_trunk("resnet50").layers.state_dict()
    # A different number in each tensor, in half precision, which takes half the space.
    parts = dict(enumerate(swav.RESNET_PARTS))
    state = {}
    for place, (name, like) in enumerate(shapes.items()):
        part, _, rest = name.partition(".")
        dtype = torch.half if like.is_floating_point() else like.dtype
        state[f"{parts[int(part)]}.{rest}"] = torch.full(like.shape, place, dtype=dtype)
    torch.save(official(OrderedDict(state)), tmp_path / "swav.pth.tar")
    torch.save(read_swav_checkpoint(tmp_path / "swav.pth.tar"), tmp_path / "swav.pth")

    # make_trunk names tensors by torchvision's own network.
    expected = make_trunk("resnet50", weights=str(tmp_path / "swav.pth")).layers.state_dict()
    trunk = make_trunk("resnet50")
    load_swav_checkpoint(trunk, tmp_path / "swav.pth.tar")

    assert all(torch.equal(v, expected[name]) for name, v in trunk.layers.state_dict().items())


def test_head_and_prototypes_are_left_out_and_names_are_torchvisions(tmp_path):
    network = small_resnet()
    torch.save(official(network.state_dict()), tmp_path / "swav.pth.tar")
    state = read_swav_checkpoint(tmp_path / "swav.pth.tar")
    expected = {n: v for n, v in network.state_dict().items() if not n.startswith("fc.")}
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_a_checkpoint_of_an_old_version_without_counts_of_batches_fits(tmp_path):
    network, trunk = small_resnet(), trunk_of(small_resnet(seed=1))
    state = official(network.state_dict())
    state = {name: value for name, value in state.items() if "num_batches" not in name}
    torch.save(state, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    load_swav_checkpoint(trunk, tmp_path / "old.pth.tar")
    assert torch.equal(trunk.layers[0].weight, network.conv1.weight)


def test_a_checkpoint_that_lacks_trunk_tensors_is_refused_and_changes_nothing(tmp_path):
    state, trunk = official(small_resnet().state_dict()), trunk_of(small_resnet(seed=1))
    del state["module.layer3.0.conv2.weight"]
    torch.save(state, tmp_path / "swav.pth.tar")
    before = trunk.layers[0].weight.detach().clone()
    message = r"swav\.pth\.tar does not fit the trunk: 1 of .*, first layer3\.0\.conv2\.weight"
    with pytest.raises(ValueError, match=message):
        load_swav_checkpoint(trunk, tmp_path / "swav.pth.tar")
    assert torch.equal(trunk.layers[0].weight, before)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    torch.save(official(small_resnet().state_dict()), tmp_path / "swav.pth.tar")
    for trunk in (make_trunk("small_convnet"), make_trunk("mobilenet_v2")):
        with pytest.raises(ValueError, match="does not fit the trunk.*TRUNK=resnet50"):
            load_swav_checkpoint(trunk, tmp_path / "swav.pth.tar")


@pytest.mark.parametrize("content", [b"no checkpoint", None], ids=["text", "a list"])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "swav.pth.tar"
    torch.save([1, 2], path)
    if content:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"swav\.pth\.tar is not a SwAV checkpoint"):
        read_swav_checkpoint(path)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no SwAV checkpoint .*missing\.pth\.tar"):
        read_swav_checkpoint(tmp_path / "missing.pth.tar")
