"""SampledNormSoftmaxLoss against NormSoftmaxLoss, its own soft-max by hand, and its statistics."""

import math

import pytest
import torch
import torch.nn.functional as F

from dmlkit.losses import NormSoftmaxLoss, SampledNormSoftmaxLoss, hyperparameters
from dmlkit.losses.sampled_norm_softmax import add_random_classes
from dmlkit.miners import all_pairs

NUM_CLASSES, DIM = 60, 5
LABELS = torch.tensor([7, 31, 2, 7, 2, 44])
OF_BATCH = [2, 7, 31, 44]
# A small subset is drawn class by class, a large one by a permutation.
every_size = pytest.mark.parametrize("size", [10, 40], ids=["small", "large"])
every_correction = pytest.mark.parametrize("corrected", [False, True], ids=["plain", "corrected"])


def unit_rows(rows=6, dim=DIM, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64))


def build(num_sampled=10, num_classes=NUM_CLASSES, dim=DIM, **settings):
    torch.manual_seed(0)
    return SampledNormSoftmaxLoss(num_classes, dim, num_sampled=num_sampled, **settings).double()


def build_full(num_classes=NUM_CLASSES, dim=DIM, **settings):
    torch.manual_seed(0)
    return NormSoftmaxLoss(num_classes, dim, **settings).double()


def call(loss_fn, embeddings, labels=LABELS, seed=0):
    """Return the loss and the gradients of embeddings and proxies, after a draw by ``seed``."""
    embeddings = embeddings.clone().requires_grad_()
    loss_fn.zero_grad()
    torch.manual_seed(seed)
    loss = loss_fn(embeddings, labels)
    loss.backward()
    return loss.detach(), embeddings.grad, loss_fn.proxies.grad


def rows_that_move(gradient):
    """Return the classes whose proxies have a gradient."""
    return (gradient.to_dense() != 0).any(dim=1).nonzero().flatten().tolist()


def values(loss_fn, draws):
    """Return the loss of the same embeddings at each of many draws: (draws,)."""
    torch.manual_seed(1)
    embeddings = unit_rows()
    with torch.no_grad():
        return torch.stack([loss_fn(embeddings, LABELS) for _ in range(draws)])


# --- The subset is everything


@pytest.mark.parametrize("size", [NUM_CLASSES, 10 * NUM_CLASSES], ids=["all", "more than all"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@every_correction
def test_with_all_classes_it_is_norm_softmax_to_the_last_bit(size, sparse, corrected):
    full, sampled = build_full(), build(size, sparse=sparse, corrected=corrected)
    for ours, expected in zip(call(sampled, unit_rows()), call(full, unit_rows()), strict=True):
        assert torch.equal(ours.to_dense(), expected)


def test_its_proxies_start_as_those_of_norm_softmax_and_load_from_it():
    full, sampled = build_full(), build()
    assert torch.equal(sampled.proxies, full.proxies)
    sampled.load_state_dict(full.state_dict())


def test_with_all_classes_it_draws_nothing():
    loss_fn, embeddings = build(NUM_CLASSES), unit_rows()
    before = torch.get_rng_state()
    loss_fn(embeddings, LABELS)
    assert torch.equal(torch.get_rng_state(), before)


# --- The soft-max over a subset


def reference_loss(embeddings, labels, proxies, subset, temperature, weight):
    """The soft-max over ``subset``, one item and one class at a time."""
    total = 0.0
    for embedding, label in zip(embeddings, labels.tolist(), strict=True):
        terms = {}
        for one in subset.tolist():
            cosine = F.cosine_similarity(embedding, proxies[one], dim=0).item()
            counts = 1 if one in labels else weight
            terms[one] = counts * math.exp(cosine / temperature)
        # The own class is one of the batch, so it counts once.
        total -= math.log(terms[label] / sum(terms.values()))
    return total / len(labels)


@every_size
@every_correction
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_matches_the_soft_max_over_the_drawn_classes(size, corrected, temperature):
    loss_fn = build(size, corrected=corrected, temperature=temperature)
    embeddings = unit_rows()
    torch.manual_seed(3)
    subset = add_random_classes(LABELS.unique(), size, NUM_CLASSES)
    weight = (NUM_CLASSES - len(OF_BATCH)) / (size - len(OF_BATCH)) if corrected else 1
    expected = reference_loss(embeddings, LABELS, loss_fn.proxies, subset, temperature, weight)

    loss, _, gradient = call(loss_fn, embeddings, seed=3)

    assert loss.item() == pytest.approx(expected)
    assert rows_that_move(gradient) == subset.tolist()


@pytest.mark.parametrize(("corrected", "others"), [(False, 1), (True, 3)])
def test_orthogonal_proxies_by_hand(corrected, others):
    loss_fn = build(2, 4, 4, corrected=corrected, temperature=1.0)
    loss_fn.proxies.data = 7 * torch.eye(4, dtype=torch.float64)

    loss, *_ = call(loss_fn, torch.eye(4, dtype=torch.float64)[:1], torch.tensor([0]))

    # Whichever of the three others is drawn has cosine 0, and stands for all three if corrected.
    assert loss.item() == pytest.approx(math.log(math.e + others) - 1)


@every_correction
@pytest.mark.parametrize("size", [2, 3, 4], ids=["fewer", "one less", "as many"])
def test_a_batch_of_as_many_classes_or_more_compares_with_no_others(size, corrected):
    loss, of_embeddings, of_proxies = call(build(size, corrected=corrected), unit_rows())
    few = build_full(len(OF_BATCH))
    few.proxies.data = build().proxies.data[OF_BATCH]
    expected, expected_gradient, _ = call(few, unit_rows(), torch.tensor([1, 2, 0, 1, 0, 3]))

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(of_embeddings, expected_gradient)
    assert rows_that_move(of_proxies) == OF_BATCH


def test_a_subset_that_the_batch_exceeds_may_be_a_large_share():
    classes = torch.arange(3)
    assert add_random_classes(classes, 2, 5).tolist() == [0, 1, 2]


# --- The draw


@every_size
def test_the_classes_of_the_batch_are_always_there_and_all_are_distinct(size):
    torch.manual_seed(0)
    for _ in range(200):
        subset = add_random_classes(torch.tensor(OF_BATCH), size, NUM_CLASSES).tolist()
        assert set(OF_BATCH) <= set(subset)
        assert subset == sorted(set(subset)) and len(subset) == size
        assert set(subset) <= set(range(NUM_CLASSES))


@every_size
def test_the_other_classes_are_uniform(size):
    torch.manual_seed(0)
    draws = 4000
    drawn = [add_random_classes(torch.tensor(OF_BATCH), size, NUM_CLASSES) for _ in range(draws)]
    times = torch.cat(drawn).bincount(minlength=NUM_CLASSES).double()

    is_other = torch.ones(NUM_CLASSES, dtype=torch.bool)
    is_other[OF_BATCH] = False
    share = (size - len(OF_BATCH)) / (NUM_CLASSES - len(OF_BATCH))
    deviation = (times[is_other] - draws * share) / math.sqrt(draws * share * (1 - share))
    assert (times[~is_other] == draws).all()
    assert deviation.abs().max() < 4
    assert deviation.std().item() == pytest.approx(1, abs=0.3)


def test_it_draws_anew_at_every_call_and_the_seed_decides():
    loss_fn, embeddings = build(), unit_rows()
    one, two = (call(loss_fn, embeddings, seed=seed)[0] for seed in (0, 1))
    assert one != two
    assert call(loss_fn, embeddings, seed=0)[0] == one


def test_a_draw_from_a_million_million_classes_needs_no_list_of_them():
    torch.manual_seed(0)
    subset = add_random_classes(torch.tensor([5, 10**12 - 1]), 1000, 10**12)
    assert len(subset.unique()) == 1000
    assert torch.isin(torch.tensor([5, 10**12 - 1]), subset).all()


# --- Below the full loss


@every_size
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_without_correction_it_is_never_above_the_full_loss(size, temperature):
    full = build_full(temperature=temperature)(unit_rows(), LABELS)
    assert (values(build(size, temperature=temperature), 300) < full).all()


@every_size
def test_with_correction_the_denominator_is_right_on_average(size):
    embedding, label = unit_rows(1), torch.tensor([31])
    full, sampled = build_full(temperature=0.5), build(size, temperature=0.5, corrected=True)
    torch.manual_seed(1)
    with torch.no_grad():
        cosines = F.cosine_similarity(embedding, full.proxies)
        draws = torch.stack([sampled(embedding, label) for _ in range(3000)])
    # The loss is the logarithm of the denominator less the logit of the own class.
    denominators = (draws + cosines[31] / 0.5).exp()

    error = denominators.mean() - (cosines / 0.5).exp().sum()
    assert error.abs() < 3 * denominators.std() / math.sqrt(len(draws))
    assert denominators.std() / math.sqrt(len(draws)) < 0.01 * denominators.mean()


@every_size
def test_with_correction_it_is_on_average_nearer_to_the_full_loss_and_still_below(size):
    full = build_full(temperature=0.1)(unit_rows(), LABELS)
    plain = values(build(size, temperature=0.1), 2000) - full
    corrected = values(build(size, temperature=0.1, corrected=True), 2000) - full
    error = corrected.std() / math.sqrt(len(corrected))

    assert plain.mean() < corrected.mean() - 10 * error
    assert corrected.mean() < -3 * error
    assert corrected.max() > 0  # a draw of near classes counts them for all


# --- Gradients


@every_size
@every_correction
def test_the_sparse_gradient_is_the_dense_one(size, corrected):
    dense = call(build(size, corrected=corrected), unit_rows())
    sparse = call(build(size, corrected=corrected, sparse=True), unit_rows())

    assert sparse[2].is_sparse and not dense[2].is_sparse
    assert sparse[2].coalesce().indices().numel() == size
    for ours, expected in zip(sparse, dense, strict=True):
        assert torch.equal(ours.to_dense(), expected)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.SparseAdam])
def test_a_sparse_step_moves_only_the_proxies_of_the_subset(optimizer):
    loss_fn = build(sparse=True)
    start = loss_fn.proxies.detach().clone()
    stepper = optimizer(loss_fn.parameters(), lr=0.1)

    *_, gradient = call(loss_fn, unit_rows())
    stepper.step()

    moved = rows_that_move(loss_fn.proxies.detach() - start)
    assert moved == rows_that_move(gradient) and len(moved) == 10


@every_correction
@pytest.mark.parametrize(
    "labels",
    [[0, 0, 0, 0], [0, 1, 2, 3], [2]],
    ids=["one class", "all singletons", "one image"],
)
@pytest.mark.parametrize("identical", [False, True], ids=["spread", "identical embeddings"])
def test_gradient_is_finite_for_a_degenerate_batch(labels, identical, corrected):
    rows = unit_rows(1).repeat(len(labels), 1) if identical else unit_rows(len(labels))
    found = call(build(2, corrected=corrected), rows, torch.tensor(labels))
    assert all(value.isfinite().all() for value in found)


def test_where_there_is_only_one_class_it_is_0():
    loss, of_embeddings, _ = call(build(2, 1, corrected=True), unit_rows(), 0 * LABELS)
    assert loss == 0 and (of_embeddings == 0).all()


# --- What it refuses


def test_pairs_are_refused():
    with pytest.raises(ValueError, match="SampledNormSoftmaxLoss.*leave pairs out"):
        build()(unit_rows(), LABELS, pairs=all_pairs(LABELS))


@every_size
@pytest.mark.parametrize("bad", [60, -1, -100], ids=["too high", "negative", "ignore_index"])
def test_a_label_outside_the_classes_is_named(size, bad):
    labels = LABELS.clone()
    labels[2] = bad
    with pytest.raises(ValueError, match=rf"{bad}.*num_classes=60"):
        build(size)(unit_rows(), labels)


@pytest.mark.parametrize("bad", [1, 0, -5])
def test_a_subset_of_fewer_than_two_classes_is_refused(bad):
    with pytest.raises(ValueError, match=f"num_sampled={bad} leaves no class.*at least 2"):
        SampledNormSoftmaxLoss(4, 5, num_sampled=bad)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_above_0_is_refused(bad):
    with pytest.raises(ValueError, match=f"temperature={bad} must be above 0"):
        SampledNormSoftmaxLoss(4, 5, num_sampled=2, temperature=bad)


@every_correction
def test_autocast_does_not_coarsen_the_loss(corrected):
    loss_fn, embeddings = build(corrected=corrected).float(), unit_rows().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = call(loss_fn, embeddings)[0]
    torch.testing.assert_close(inside, call(loss_fn, embeddings)[0], rtol=0, atol=0)


def test_its_settings_are_in_the_row_of_a_run():
    expected = {"num_sampled": 10, "temperature": 0.05, "corrected": True, "sparse": False}
    assert hyperparameters(build(corrected=True)) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_size
def test_on_a_gpu_it_draws_there_and_refuses_the_same_labels(size):
    loss_fn, embeddings = build(size, sparse=True).cuda(), unit_rows().cuda()
    loss, _, gradient = call(loss_fn, embeddings, LABELS.cuda())
    assert loss.is_cuda and loss.isfinite()
    assert len(rows_that_move(gradient)) == size
    with pytest.raises(ValueError, match="num_classes=60"):
        loss_fn(embeddings, LABELS.cuda() - 100)


def test_in_evaluation_the_loss_is_the_full_one_and_draws_nothing():
    torch.manual_seed(0)
    sampled = SampledNormSoftmaxLoss(50, 8, num_sampled=5, corrected=True).eval()
    full = NormSoftmaxLoss(50, 8)
    full.load_state_dict(sampled.state_dict())
    embeddings, labels = F.normalize(torch.randn(6, 8)), torch.arange(6) // 2
    state = torch.get_rng_state()
    assert sampled(embeddings, labels) == full(embeddings, labels)
    assert torch.equal(torch.get_rng_state(), state)
