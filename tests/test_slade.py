"""Teacher and student of SLADE: their loss by hand, and what each stage may depend on."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dmlkit.datasets import ImageSet, Splits
from dmlkit.losses import (
    ContrastiveLoss,
    LocalCrossEntropyLoss,
    SimilarityDistributionLoss,
    response_similarity,
)
from dmlkit.miners import all_pairs
from dmlkit.models import FeatureBasis
from dmlkit.pseudo_labels import mine_by_similarity
from dmlkit.slade import (
    Replicate,
    Settings,
    StudentLoss,
    join,
    self_train,
    train_student,
    train_teacher,
    with_labels,
)

DIM, CLASSES, CLUSTERS = 5, 4, 3
LABELS, OF_POOL = torch.arange(8) % CLASSES, torch.arange(6) % CLUSTERS
SETTINGS = Settings(
    steps=3,
    batch_size=8,
    images_per_class=2,
    learning_rate=0.1,
    loss_rate=0.1,
    num_clusters=4,
    warm_up_steps=2,
)


def unit_rows(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, DIM, generator=generator), dim=1)


def student_loss(**settings):
    torch.manual_seed(0)
    basis = FeatureBasis(CLASSES, DIM)
    return StudentLoss(ContrastiveLoss(), basis, num_clusters=CLUSTERS, **settings)


def pool_rows():
    """Embeddings of the pool, near those of their cluster."""
    return F.normalize(unit_rows(CLUSTERS, seed=2)[OF_POOL] + 0.5 * unit_rows(6, seed=1), dim=1)


def call(loss_fn, **options):
    return loss_fn(unit_rows(8), LABELS, pool_rows(), OF_POOL, **options)


def points(count=24, classes=6, seed=0, name="points"):
    """Features that tell ``classes`` apart, as images are stored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, 1, DIM, generator=generator)
    images = centres[labels] + 0.3 * torch.randn(count, 1, DIM, generator=generator)
    names = tuple(f"{name} {number}" for number in range(classes))
    return ImageSet(images, labels, names, f"of {name}", torch.arange(count))


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)

    def forward(self, features):
        return F.normalize(self.linear(features), dim=1)


def new_head():
    torch.manual_seed(3)
    return Head()


def as_stored(images, sizes=None):
    return images[:, 0]


class Noisy:
    def __init__(self, *, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, images, sizes=None):
        noise = torch.randn(images.shape[0], DIM, generator=self.generator)
        return images[:, 0] + 0.1 * noise


# The loss of the student


def test_the_loss_is_the_weighted_sum_of_its_parts():
    loss_fn = student_loss(mined_weight=2.0, basis_weight=0.5)
    embeddings, pool = unit_rows(8), pool_rows()
    responses = loss_fn.basis(pool)
    statistics = SimilarityDistributionLoss()
    compared = statistics(responses, OF_POOL)
    upper, lower = statistics.thresholds
    pairs = mine_by_similarity(response_similarity(responses), lower, upper)
    assert pairs[0].any() and pairs[1].any() and pairs[0].sum() < 29
    base = ContrastiveLoss()
    expected = (
        base(embeddings, LABELS)
        + 2 * base(pool, OF_POOL, pairs=pairs)
        + 0.5 * (F.cross_entropy(embeddings @ loss_fn.basis.vectors.T, LABELS) + compared)
    )
    torch.testing.assert_close(call(loss_fn), expected)


@pytest.mark.parametrize("mining", ["similarity_and_cluster", "cluster"])
def test_mining_says_which_pairs_of_the_pool_count(mining):
    loss_fn = student_loss(mining=mining)
    seen = []
    loss_fn.base_loss.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["pairs"]), with_kwargs=True
    )
    call(loss_fn)
    of_labelled, (positives, negatives) = seen
    assert of_labelled is None
    same, other = all_pairs(OF_POOL)
    assert (positives <= same).all() and (negatives <= other).all()
    everything = torch.equal(positives, same) and torch.equal(negatives, other)
    assert everything == (mining == "cluster")


def test_given_pairs_are_those_of_the_labelled_images():
    nothing = (torch.zeros(8, 8, dtype=torch.bool),) * 2
    without = student_loss(mined_weight=0.0)
    difference = call(without) - call(student_loss(mined_weight=0.0), pairs=nothing)
    torch.testing.assert_close(difference, ContrastiveLoss()(unit_rows(8), LABELS))


def test_without_weights_only_the_labels_count_and_the_basis_learns_nothing():
    loss_fn = student_loss(mining="cluster", mined_weight=0.0, basis_weight=0.0)
    torch.testing.assert_close(call(loss_fn), ContrastiveLoss()(unit_rows(8), LABELS))
    pseudo_labels_alone = student_loss(mining="cluster", basis_weight=0.0)
    embeddings = pool_rows().requires_grad_()
    pseudo_labels_alone(unit_rows(8), LABELS, embeddings, OF_POOL).backward()
    assert pseudo_labels_alone.basis.vectors.grad is None
    assert embeddings.grad.abs().sum() > 0


def test_another_comparison_is_learned_from_and_the_thresholds_are_kept_all_the_same():
    local, usual = student_loss(comparison="local_cross_entropy"), student_loss()
    difference = call(local) - call(usual)
    responses = local.basis(pool_rows())
    parts = (
        LocalCrossEntropyLoss()(responses, OF_POOL),
        SimilarityDistributionLoss()(responses, OF_POOL),
    )
    torch.testing.assert_close(difference, 0.25 * (parts[0] - parts[1]))
    assert local.statistics.thresholds == usual.statistics.thresholds
    assert call(student_loss(comparison="global_cross_entropy")).isfinite()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mining": "all"}, "mining='all' is unknown; choose from similarity,"),
        ({"comparison": "ce"}, "comparison='ce' is unknown; choose from distribution,"),
        ({"mined_weight": -1.0}, "must be 0 or more"),
        ({"basis_weight": 0.0}, "a basis of weight 0 learns nothing; mining='similarity'"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        student_loss(**settings)


# Training


def test_in_the_warm_up_the_basis_alone_learns():
    model = new_head()
    loss_fn = StudentLoss(ContrastiveLoss(), FeatureBasis(6, DIM), num_clusters=4)
    weights, vectors = [], []

    def record(*_):
        weights.append(model.linear.weight.clone())
        vectors.append(loss_fn.basis.vectors.clone())

    loss_fn.register_forward_pre_hook(record)
    train_student(
        model,
        loss_fn,
        points(),
        with_labels(points(seed=1), torch.arange(24) % 4),
        replace(SETTINGS, warm_up_steps=3, steps=2),
        transform=as_stored,
        pool_transform=as_stored,
        seed=0,
    )
    assert [torch.equal(weight, weights[0]) for weight in weights] == [True] * 4 + [False]
    assert not any(torch.equal(*pair) for pair in zip(vectors[1:], vectors, strict=False))


def test_the_history_of_a_student_tells_the_running_statistics():
    loss_fn = StudentLoss(ContrastiveLoss(), FeatureBasis(6, DIM), num_clusters=4)
    fitted = train_student(
        new_head(),
        loss_fn,
        points(),
        with_labels(points(seed=1), torch.arange(24) % 4),
        SETTINGS,
        transform=as_stored,
        pool_transform=as_stored,
        seed=0,
        measure_every=1,
    )
    assert [entry["step"] for entry in fitted.history] == [1, 2, 3]  # without the warm-up
    assert fitted.history[-1]["mean_positive"] == pytest.approx(loss_fn.statistics.thresholds[0])
    assert fitted.history[0]["mean_negative"] != fitted.history[1]["mean_negative"]
    assert all(entry["variance_positive"] >= 0 for entry in fitted.history)
    assert fitted.history[-1]["images_seen"] == 3 * 16  # labelled ones and as many of the pool


def learn(model, *, settings=SETTINGS, **options):
    options = {"transform": as_stored, "pool_transform": as_stored, "seed": 0} | options
    return self_train(
        model,
        ContrastiveLoss(),
        points(),
        points(seed=1, name="pool"),
        settings,
        plain_view=as_stored,
        **options,
    )


def test_a_student_learns_under_the_labels_that_a_control_gives():
    students = {}
    for name, relabel in {
        "clusters": lambda clusters: clusters,
        "truth": lambda clusters: torch.arange(24) % 6,
    }.items():
        students[name] = new_head()
        fitted, told = learn(students[name], relabel=relabel)
        assert told[0]["clusters"] == (4 if name == "clusters" else 6)
        assert (told[0]["purity"] == 1) == (name == "truth")
    assert not torch.equal(students["clusters"].linear.weight, students["truth"].linear.weight)


def test_rounds_go_on_from_the_chosen_student_and_ask_for_clusters_anew():
    asked = []

    def relabel(clusters):
        asked.append(clusters)
        return clusters

    model = new_head()
    fitted, told = learn(model, settings=replace(SETTINGS, rounds=2), relabel=relabel)
    once = new_head()
    learn(once)
    assert len(asked) == len(told) == 2
    assert [entry["step"] for entry in fitted.history] == [3, 6] and fitted.best_step == 6
    assert not torch.equal(model.linear.weight, once.linear.weight)
    with pytest.raises(ValueError, match="rounds=0 train no student"):
        learn(new_head(), settings=replace(SETTINGS, rounds=0))


def test_a_student_may_begin_where_its_teacher_began():
    teacher = new_head()
    nn.init.eye_(teacher.linear.weight)
    begun = {name: torch.zeros_like(value) for name, value in new_head().state_dict().items()}
    begun["linear.bias"] += 1
    still = replace(SETTINGS, learning_rate=0.0)
    learn(teacher, settings=still, first_state=begun)
    assert torch.equal(teacher.linear.weight, begun["linear.weight"])


def history_of(base_loss=None, **changes):
    """Learning curve of a student under changed settings, step by step."""
    fitted, _ = self_train(
        new_head(),
        base_loss or ContrastiveLoss(),
        points(),
        points(seed=1),
        replace(SETTINGS, **changes),
        transform=Noisy(seed=5),
        pool_transform=Noisy(seed=6),
        plain_view=as_stored,
        seed=0,
        measure_every=1,
    )
    return fitted.history


def test_the_basis_may_begin_at_the_class_means():
    alone = {"warm_up_steps": 0, "mined_weight": 0.0, "comparison": "none", "mining": "cluster"}
    first, second = (
        history_of(basis_start=start, basis_weight=10.0, **alone)[0]["loss"]
        for start in ("random", "class_means")
    )
    assert second < first  # its cross-entropy begins lower


def test_students_see_the_same_batches_however_long_the_basis_warms_up():
    class Spy(ContrastiveLoss):
        def forward(self, embeddings, labels, *, pairs=None):
            seen.append((embeddings.detach().clone(), labels))
            return super().forward(embeddings, labels, pairs=pairs)

    of_warm_ups = []
    for steps in (0, 3):
        seen = []
        history_of(Spy(), warm_up_steps=steps, learning_rate=0.0)
        of_warm_ups.append(seen)
    none, three = of_warm_ups
    assert len(three) == len(none) + 2 * 3
    for (embeddings, labels), (others, other_labels) in zip(none, three[6:], strict=True):
        assert torch.equal(embeddings, others) and torch.equal(labels, other_labels)
    assert not torch.equal(three[0][0], three[6][0])  # the warm-up has draws of its own


def test_the_history_tells_what_was_mined():
    entry = history_of()[-1]
    assert 0 < entry["mined_positive"] < 1 and 0 < entry["mined_negative"] < 1
    assert 0 <= entry["mined_precision"] <= 1
    agreeing = history_of(mining="similarity_and_cluster")[-1]
    assert agreeing["mined_precision"] == 1
    assert "mined_positive" not in history_of(mining="cluster")[-1]


def replicate(**options):
    splits = Splits(points(), points(seed=2), unlabelled=points(seed=1, name="pool"), **options)
    return Replicate(
        splits, new_head(), Noisy, as_stored, lambda model, part: {"map_at_r": 0.5}, seed=0
    )


def test_a_stage_is_the_same_whatever_was_drawn_before_and_from_where_it_was_kept(tmp_path):
    one = replicate()
    teacher = one.teach(ContrastiveLoss(), SETTINGS)
    student = one.learn(teacher, ContrastiveLoss(), SETTINGS)
    torch.save(teacher, tmp_path / "teacher.pt")
    kept = torch.load(tmp_path / "teacher.pt", weights_only=True)
    torch.rand(7)
    again = replicate().learn(kept, ContrastiveLoss(), SETTINGS)
    for name, value in student["chosen"].items():
        assert torch.equal(value, again["chosen"][name])
    assert student["pseudo_labels"] == again["pseudo_labels"]
    assert [entry["loss"] for entry in student["history"]] == [
        entry["loss"] for entry in again["history"]
    ]
    assert torch.equal(one.start.linear.weight, new_head().linear.weight)  # stays where it was


def test_a_teacher_can_be_trained_on_and_is_validated_where_classes_are_held_out():
    one = replicate(validation=points(seed=4))
    teacher = one.teach(ContrastiveLoss(), SETTINGS)
    assert teacher["history"][-1]["validation_map_at_r"] == 0.5
    longer = one.teach(ContrastiveLoss(), SETTINGS, state=teacher["chosen"], name="longer")
    moved = [
        (run["last"]["linear.weight"] - before).norm()
        for run, before in ((teacher, new_head().linear.weight), (longer, new_head().linear.weight))
    ]
    assert not torch.equal(teacher["last"]["linear.weight"], longer["last"]["linear.weight"])
    assert all(distance > 0 for distance in moved)


def test_a_teacher_learns_its_labels():
    model = new_head()
    loss_fn = ContrastiveLoss()
    before = loss_fn(model(as_stored(points().images)), points().labels)
    settings = replace(SETTINGS, steps=40, batch_size=12)
    train_teacher(model, loss_fn, points(), settings, transform=as_stored, seed=0)
    assert loss_fn(model(as_stored(points().images)), points().labels) < 0.8 * before


# Sets


def test_joined_sets_hold_the_images_of_both_under_labels_of_their_own():
    first, second = points(10, classes=3), points(8, classes=2, seed=1, name="pool")
    second = second.keep_images(torch.arange(8) % 3 != 0)
    both = join(first, second)
    assert len(both) == 10 + len(second) and both.num_classes == 5
    assert both.labels.tolist() == [*first.labels, *(3 + second.labels)]
    places = torch.tensor([12, 0, 10, 9, 14])
    expected = torch.cat([first.all_images(), second.all_images()])[places]
    assert torch.equal(both.gather(places), expected)
    assert both.fingerprint == "of points+of pool"


def test_parts_of_one_store_are_joined_without_another():
    whole = points(12, classes=4)
    parts = [whole.keep_classes(torch.tensor(c)) for c in ([0, 2], [1, 3])]
    both = join(*parts)
    assert both.images is whole.images
    assert torch.equal(both.all_images(), torch.cat([p.all_images() for p in parts]))


def test_images_of_two_sizes_are_not_joined():
    wide = replace(points(), images=torch.zeros(24, 2, DIM))
    with pytest.raises(ValueError, match="same CACHE_SIZE"):
        join(points(), wide)


def test_a_basis_that_learns_nothing_is_not_warmed_up():
    loss_fn = StudentLoss(
        ContrastiveLoss(), FeatureBasis(6, DIM), num_clusters=4, mining="cluster", basis_weight=0.0
    )
    pool = with_labels(points(seed=1), torch.arange(24) % 4)
    transforms = {"transform": as_stored, "pool_transform": as_stored}
    with pytest.raises(ValueError, match="set warm_up_steps to 0"):
        train_student(new_head(), loss_fn, points(), pool, SETTINGS, seed=0, **transforms)
    settings = replace(SETTINGS, warm_up_steps=0)
    fitted = train_student(new_head(), loss_fn, points(), pool, settings, seed=0, **transforms)
    assert fitted.best_step == SETTINGS.steps


def test_without_a_comparison_the_thresholds_are_kept_all_the_same():
    nothing, usual = student_loss(comparison="none"), student_loss()
    compared = SimilarityDistributionLoss()(usual.basis(pool_rows()), OF_POOL)
    torch.testing.assert_close(call(usual) - call(nothing), 0.25 * compared)
    assert nothing.statistics.thresholds == usual.statistics.thresholds
