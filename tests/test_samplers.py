"""What batches hold, how often, and that equal seeds give equal batches."""

from itertools import islice

import pytest
import torch

from dmlkit.samplers import MPerClassSampler, RandomSampler

# Ids need be neither sorted nor contiguous; the sizes are 6, 1, 4 and 2.
LABELS = torch.tensor([7, -3, 7, 50, 7, 50, 9, 7, 50, 9, 7, 50, 7])


def batches(sampler, count):
    return torch.stack(list(islice(sampler, count)))  # (count, B)


def m_per_class(labels=LABELS, batch_size=6, images_per_class=3, seed=0):
    return MPerClassSampler(
        labels, batch_size=batch_size, images_per_class=images_per_class, seed=seed
    )


@pytest.mark.parametrize(("batch_size", "images_per_class"), [(6, 3), (8, 2), (12, 3), (4, 1)])
def test_a_batch_holds_distinct_classes_with_equally_many_images(batch_size, images_per_class):
    drawn = batches(m_per_class(LABELS, batch_size, images_per_class), 200)

    assert drawn.shape == (200, batch_size) and drawn.dtype == torch.int64
    groups = LABELS[drawn].unflatten(1, (-1, images_per_class))  # (200, K, M)
    assert (groups == groups[:, :, :1]).all()
    classes = groups[:, :, 0].sort(dim=1).values
    assert (classes[:, 1:] != classes[:, :-1]).all()


def test_images_repeat_within_a_class_only_if_it_is_too_small():
    repeated = {label: False for label in LABELS.tolist()}
    for batch in batches(m_per_class(), 300):
        for group in batch.split(3):
            has_repeat = len(group.unique()) < 3
            repeated[LABELS[group[0]].item()] |= has_repeat
    assert repeated == {7: False, 50: False, 9: True, -3: True}


def test_a_class_of_exactly_the_asked_size_comes_whole():
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    for batch in batches(m_per_class(labels), 50):
        for group in batch.split(3):
            if labels[group[0]] == 0:
                assert sorted(group.tolist()) == [0, 1, 2]


def test_classes_are_uniform_whatever_their_size_and_images_uniform_within_their_class():
    num_batches = 4000
    drawn = batches(m_per_class(batch_size=4, images_per_class=2), num_batches)
    counts = drawn.flatten().bincount(minlength=len(LABELS))

    for label in LABELS.unique():
        members = counts[label == LABELS]
        # Half of the four classes are in each batch, two images each: one image per batch.
        assert members.sum().item() == pytest.approx(num_batches, rel=0.06)
        assert members.max() < 1.2 * members.min()


def test_classes_are_drawn_anew_for_each_batch():
    drawn = batches(m_per_class(batch_size=2, images_per_class=1), 100)
    classes = {tuple(sorted(pair)) for pair in LABELS[drawn].tolist()}
    assert len(classes) == 6  # every pair of the four classes


def test_labels_may_be_a_plain_list():
    assert torch.equal(next(m_per_class(LABELS.tolist())), next(m_per_class(LABELS)))


BUILDERS = [
    pytest.param(lambda seed: m_per_class(seed=seed), id="m per class"),
    pytest.param(lambda seed: RandomSampler(LABELS, batch_size=5, seed=seed), id="random"),
]


@pytest.mark.parametrize("build", BUILDERS)
def test_equal_seeds_give_equal_batches_whatever_the_global_state(build):
    torch.manual_seed(1)
    first = batches(build(3), 20)
    torch.manual_seed(2)
    assert torch.equal(first, batches(build(3), 20))
    assert not torch.equal(first, batches(build(4), 20))


@pytest.mark.parametrize("build", BUILDERS)
def test_the_global_state_is_left_alone(build):
    before = torch.get_rng_state()
    batches(build(0), 20)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("build", BUILDERS)
def test_iterating_again_goes_on_with_the_next_batch(build):
    sampler, whole = build(0), batches(build(0), 6)
    assert torch.equal(torch.cat([batches(sampler, 2), batches(sampler, 4)]), whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images_per_class": 0}, "images_per_class=0 is below 1"),
        ({"batch_size": 7}, "batch_size=7 is not a positive multiple of images_per_class=3"),
        ({"batch_size": 0}, "batch_size=0 is not a positive multiple"),
        ({"batch_size": 15}, "needs 5 classes but the labels have 4; lower batch_size"),
        ({"labels": torch.tensor([], dtype=torch.long)}, "needs 2 classes but the labels have 0"),
    ],
)
def test_a_batch_that_cannot_be_made_up_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        m_per_class(**settings)


def test_stanford_online_products_in_miniature_draws_from_all_of_many_small_classes():
    sizes = torch.randint(2, 13, (11_318,), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(11_318).repeat_interleave(sizes)
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]

    drawn = batches(m_per_class(labels, batch_size=80, images_per_class=5), 100)

    groups = labels[drawn].unflatten(1, (16, 5))
    assert (groups == groups[:, :, :1]).all()
    assert groups.max() > 11_000 and groups.min() < 300


@pytest.mark.parametrize("items", [13, LABELS, LABELS.tolist()], ids=["number", "tensor", "list"])
def test_an_epoch_is_a_permutation_that_leaves_out_the_remainder(items):
    epochs = batches(RandomSampler(items, batch_size=5, seed=0), 20).unflatten(0, (10, 2))

    for epoch in epochs.flatten(1):  # 2 batches of 5 out of 13 items
        assert len(epoch.unique()) == 10
        assert epoch.min() >= 0 and epoch.max() < 13
    assert len(epochs.flatten(1).unique(dim=0)) == 10
    assert len(epochs.unique()) == 13


def test_a_batch_of_all_items_is_the_whole_epoch():
    for batch in batches(RandomSampler(4, batch_size=4, seed=0), 3):
        assert sorted(batch.tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("batch_size", [0, 14])
def test_a_random_batch_that_does_not_fit_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size} does not fit 13 items"):
        RandomSampler(LABELS, batch_size=batch_size, seed=0)
