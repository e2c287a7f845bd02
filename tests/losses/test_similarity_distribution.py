"""SimilarityDistributionLoss against its equations, by hand and pair by pair, and what it keeps."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from dmlkit.losses import SimilarityDistributionLoss, hyperparameters, response_similarity
from dmlkit.training import fit

# Rows of lengths 2, 1, 5 and 0.1, of directions (1, 0), (0.6, 0.8), (0, 1) and (-0.6, 0.8).
# Cosines within clusters: 0.6 and 0.8, of mean 0.7 and variance 0.1^2.
# Across: 0, -0.6, 0.8 and -0.36 + 0.64 = 0.28, of mean 0.48 / 4 = 0.12 and
# variance (0 + 0.36 + 0.64 + 0.0784) / 4 - 0.12^2 = 0.2552.
FIRST = torch.tensor([[2.0, 0.0], [0.6, 0.8], [0.0, 5.0], [-0.06, 0.08]]), [7, 7, 3, 3]
# Within: 0.8. Across: 0 and 0.6, of mean 0.3 and variance 0.3^2.
SECOND = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), [4, 4, 0]
# Within: 0.28 alone; across: 0 alone.
ONLY_POSITIVE = torch.tensor([[1.0, 0.0], [0.28, 0.96]]), [5, 5]
ONLY_NEGATIVE = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), [5, 6]
NEITHER = torch.tensor([[1.0, 0.0]]), [5]

STATISTICS = ("mean_positive", "variance_positive", "mean_negative", "variance_negative")
both_gradients = pytest.mark.parametrize("gradient", ["damped", "full"])


def call(loss_fn, batch):
    responses, labels = batch
    return loss_fn(responses, torch.tensor(labels))


def statistics(loss_fn):
    return [getattr(loss_fn, name).item() for name in STATISTICS]


def random_batches(count=5, rows=9, dim=4):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        responses = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
        yield responses, torch.randint(3, (rows,), generator=generator)


def gradient_of(loss_fn, responses, labels):
    responses = responses.detach().clone().requires_grad_()
    loss_fn(responses, labels).backward()
    return responses.grad


class Reference:
    """The equations, one pair at a time."""

    def __init__(self, margin, variance_weight, momentum):
        self.margin, self.variance_weight, self.momentum = margin, variance_weight, momentum
        self.running = {}

    def __call__(self, responses, labels):
        similarity = {True: [], False: []}
        for one, other in itertools.combinations(range(len(labels)), 2):
            cosine = F.cosine_similarity(responses[one], responses[other], dim=0).item()
            similarity[bool(labels[one] == labels[other])].append(cosine)
        for kind, values in similarity.items():
            if not values:
                continue
            mean = sum(values) / len(values)
            variance = sum((value - mean) ** 2 for value in values) / len(values)
            if kind in self.running:
                before = self.running[kind]
                mean = self.momentum * before[0] + (1 - self.momentum) * mean
                variance = self.momentum * before[1] + (1 - self.momentum) * variance
            self.running[kind] = mean, variance
        spread = sum(variance for _, variance in self.running.values())
        overlap = 0.0
        if len(self.running) == 2:
            overlap = max(self.running[False][0] - self.running[True][0] + self.margin, 0)
        return overlap + self.variance_weight * spread


# --- Its value


@both_gradients
def test_two_batches_by_hand(gradient):
    loss_fn = SimilarityDistributionLoss(margin=1.0, gradient=gradient)
    # [0.12 - 0.7 + 1]_+ + 0.01 + 0.2552
    assert call(loss_fn, FIRST).item() == pytest.approx(0.6852)
    assert statistics(loss_fn) == pytest.approx([0.7, 0.01, 0.12, 0.2552])
    # 0.99 * 0.7 + 0.01 * 0.8, 0.99 * 0.01 + 0, 0.99 * 0.12 + 0.01 * 0.3 and
    # 0.99 * 0.2552 + 0.01 * 0.09; [0.1218 - 0.701 + 1]_+ + 0.0099 + 0.253548
    assert call(loss_fn, SECOND).item() == pytest.approx(0.684248)
    assert statistics(loss_fn) == pytest.approx([0.701, 0.0099, 0.1218, 0.253548])


def test_means_apart_by_the_margin_leave_the_variances():
    # [0.12 - 0.7 + 0.5]_+ = 0, and 3 (0.01 + 0.2552)
    loss = call(SimilarityDistributionLoss(variance_weight=3.0), FIRST)
    assert loss.item() == pytest.approx(0.7956)
    loss = call(SimilarityDistributionLoss(margin=0.6, variance_weight=0.0), FIRST)
    assert loss.item() == pytest.approx(0.02, abs=1e-6)


@both_gradients
@pytest.mark.parametrize(
    "settings", [(0.5, 1.0, 0.99), (1.5, 0.3, 0.6), (2.0, 1.0, 0.0)], ids=["defaults", "b", "c"]
)
def test_matches_the_equations_pair_by_pair(settings, gradient):
    margin, variance_weight, momentum = settings
    loss_fn = SimilarityDistributionLoss(
        margin=margin, variance_weight=variance_weight, momentum=momentum, gradient=gradient
    )
    reference = Reference(*settings)
    for responses, labels in random_batches():
        expected = reference(responses, labels)
        # What is kept has single precision.
        assert loss_fn(responses, labels).item() == pytest.approx(expected, rel=1e-5)


def test_defaults_are_the_stated_ones():
    expected = {"margin": 0.5, "variance_weight": 1.0, "momentum": 0.99, "gradient": "damped"}
    assert hyperparameters(SimilarityDistributionLoss()) == expected


def test_the_length_of_a_response_and_the_names_of_clusters_do_not_matter():
    responses, labels = next(random_batches())
    loss = SimilarityDistributionLoss()(responses, labels)
    stretched = responses * torch.arange(1, 10)[:, None]
    torch.testing.assert_close(SimilarityDistributionLoss()(stretched, labels), loss)
    renamed = torch.tensor([2**60, -3, 5])[labels]
    assert torch.equal(SimilarityDistributionLoss()(responses, renamed), loss)


def test_equal_images_of_a_cluster_are_pairs_and_an_image_with_itself_is_none():
    # Cosines within: 1 of the equal two, and twice 0; with themselves the mean would be higher.
    responses = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    loss_fn = SimilarityDistributionLoss()
    loss_fn(responses, torch.zeros(3, dtype=torch.long))
    assert loss_fn.thresholds[0] == pytest.approx(1 / 3)
    assert loss_fn.variance_positive.item() == pytest.approx(2 / 9)


def test_similarity_is_the_cosine_of_the_responses():
    similarity = response_similarity(FIRST[0])
    expected = [[1, 0.6, 0, -0.6], [0.6, 1, 0.8, 0.28], [0, 0.8, 1, 0.8], [-0.6, 0.28, 0.8, 1]]
    torch.testing.assert_close(similarity, torch.tensor(expected), atol=1e-6, rtol=0)
    assert response_similarity(FIRST[0].bfloat16()).dtype == torch.float32


# --- What it keeps


@both_gradients
def test_a_kind_of_which_a_batch_has_no_pair_stays_as_it_was(gradient):
    loss_fn = SimilarityDistributionLoss(margin=1.0, gradient=gradient)
    call(loss_fn, FIRST)
    # [0.12 - (0.99 * 0.7 + 0.01 * 0.28) + 1]_+ + 0.99 * 0.01 + 0.2552
    assert call(loss_fn, ONLY_POSITIVE).item() == pytest.approx(0.4242 + 0.0099 + 0.2552)
    assert statistics(loss_fn) == pytest.approx([0.6958, 0.0099, 0.12, 0.2552])
    # [0.99 * 0.12 + 0 - 0.6958 + 1]_+ + 0.0099 + 0.99 * 0.2552
    assert call(loss_fn, ONLY_NEGATIVE).item() == pytest.approx(0.423 + 0.0099 + 0.252648)
    kept = statistics(loss_fn)
    assert kept == pytest.approx([0.6958, 0.0099, 0.1188, 0.252648])
    assert call(loss_fn, NEITHER).item() == pytest.approx(0.423 + 0.0099 + 0.252648)
    assert statistics(loss_fn) == kept


def test_each_kind_starts_with_the_first_batch_that_has_it():
    loss_fn = SimilarityDistributionLoss(margin=1.0)
    assert all(math.isnan(value) for value in (*statistics(loss_fn), *loss_fn.thresholds))
    # Nothing to keep apart, and one pair has no variance.
    assert call(loss_fn, NEITHER).item() == 0
    assert call(loss_fn, ONLY_POSITIVE).item() == 0
    assert loss_fn.thresholds[0] == pytest.approx(0.28)
    assert math.isnan(loss_fn.thresholds[1])
    # 0.99 * 0.28 + 0.01 * 0.7 = 0.2842 and 0.01 * 0.01, but 0.12 and 0.2552 as they are.
    assert call(loss_fn, FIRST).item() == pytest.approx(0.12 - 0.2842 + 1 + 0.0001 + 0.2552)
    assert statistics(loss_fn) == pytest.approx([0.2842, 0.0001, 0.12, 0.2552])


def test_a_kind_that_is_alone_adds_its_variance():
    responses, _ = FIRST
    for labels in ([0, 0, 0, 0], [0, 1, 2, 3]):
        # All six cosines: mean (1.4 + 0.48) / 6, mean square (1 + 1.0784) / 6.
        loss = call(SimilarityDistributionLoss(margin=2.0), (responses, labels))
        assert loss.item() == pytest.approx(2.0784 / 6 - (1.88 / 6) ** 2)


def test_thresholds_are_the_running_means_of_positives_and_then_of_negatives():
    loss_fn = SimilarityDistributionLoss()
    call(loss_fn, FIRST)
    assert loss_fn.thresholds == pytest.approx((0.7, 0.12))
    assert all(type(value) is float for value in loss_fn.thresholds)


def test_evaluation_moves_nothing_and_returns_the_same():
    loss_fn = SimilarityDistributionLoss(margin=1.0).eval()
    assert call(loss_fn, FIRST).item() == pytest.approx(0.6852)
    assert all(math.isnan(value) for value in statistics(loss_fn))
    call(loss_fn.train(), FIRST)
    kept = statistics(loss_fn)
    assert call(loss_fn.eval(), SECOND).item() == pytest.approx(0.684248)
    assert statistics(loss_fn) == kept


def test_its_state_is_saved_and_taken_up_again(tmp_path):
    loss_fn = SimilarityDistributionLoss()
    call(loss_fn, ONLY_NEGATIVE)
    torch.save(loss_fn.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state.keys() == {*STATISTICS, "has_positive", "has_negative"}
    assert not list(loss_fn.parameters())

    resumed = SimilarityDistributionLoss()
    resumed.load_state_dict(state)

    for batch in (NEITHER, FIRST, SECOND):
        assert torch.equal(call(resumed, batch), call(loss_fn, batch))
        assert str(statistics(resumed)) == str(statistics(loss_fn))
    assert math.isnan(state["mean_positive"])  # a state once taken does not move on


@both_gradients
def test_what_is_kept_has_no_gradient_and_every_batch_its_own(gradient):
    loss_fn = SimilarityDistributionLoss(gradient=gradient)
    losses = []
    for responses, labels in random_batches():
        losses.append(loss_fn(responses.requires_grad_(), labels))
        assert not any(value.requires_grad for value in loss_fn.state_dict().values())
    for loss in losses:
        loss.backward()
    copy.deepcopy(loss_fn)


def test_a_nan_shows_from_then_on():
    for kind in (slice(0, 2), slice(1, 3)):  # of a positive pair, of a negative one
        loss_fn = SimilarityDistributionLoss()
        responses, labels = (part[kind] for part in FIRST)
        spoilt = responses.clone()
        spoilt[0, 0] = torch.nan
        assert call(loss_fn, (spoilt, labels)).isnan()
        assert call(loss_fn, FIRST).isnan()


# --- Its gradient


def test_damped_gradients_are_those_of_the_value():
    loss_fn = SimilarityDistributionLoss(margin=1.5, momentum=0.7).double()
    batches = list(random_batches(3))
    for responses, labels in batches[:2]:
        loss_fn(responses, labels)
    loss_fn.eval()  # for the gradient is measured by calling it again
    responses, labels = batches[2]
    assert torch.autograd.gradcheck(lambda r: loss_fn(r, labels), responses.requires_grad_())


@pytest.mark.parametrize(("gradient", "factor"), [("damped", 0.3), ("full", 1.0)])
def test_after_the_first_batch_damped_gradients_are_a_fraction_and_full_ones_whole(
    gradient, factor
):
    first, second = random_batches(2)
    settings = {"margin": 2.0, "momentum": 0.7}  # at this margin the means are never far apart
    loss_fn = SimilarityDistributionLoss(gradient=gradient, **settings)
    alone = [gradient_of(SimilarityDistributionLoss(**settings), *b) for b in (first, second)]
    torch.testing.assert_close(gradient_of(loss_fn, *first), alone[0])
    torch.testing.assert_close(gradient_of(loss_fn, *second), factor * alone[1])


@both_gradients
def test_a_kind_that_is_absent_has_no_gradient(gradient):
    loss_fn = SimilarityDistributionLoss(margin=2.0, gradient=gradient)
    assert (gradient_of(loss_fn, NEITHER[0], torch.tensor(NEITHER[1])) == 0).all()
    call(loss_fn, FIRST)
    assert (gradient_of(loss_fn, NEITHER[0], torch.tensor(NEITHER[1])) == 0).all()
    # More similar to a second image of the cluster lowers the loss, whatever negatives were.
    responses, labels = ONLY_POSITIVE
    gradient = gradient_of(loss_fn, responses, torch.tensor(labels))
    assert gradient[0, 1] < 0 < gradient[0, 0] + 1e-6


@both_gradients
@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [0, 0, 1]], ids=str)
def test_identical_and_zero_responses_have_a_finite_gradient(labels, gradient):
    for value in (1.0, 0.0):
        loss_fn = SimilarityDistributionLoss(gradient=gradient)
        with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
            for _ in range(2):
                found = gradient_of(loss_fn, torch.full((3, 2), value), torch.tensor(labels))
                assert found.isfinite().all()


@both_gradients
def test_descent_draws_the_similarities_of_clusters_apart(gradient):
    torch.manual_seed(0)
    labels = torch.arange(12) % 3
    basis = torch.nn.Linear(8, 8, bias=False)
    loss_fn = SimilarityDistributionLoss(gradient=gradient)
    images = torch.randn(12, 8) + 0.3 * torch.eye(3, 8)[labels]

    def batches():
        while True:
            yield images, labels

    optimizer = torch.optim.Adam(basis.parameters(), lr=0.05)
    fitted = fit([basis, loss_fn], batches(), lambda b: loss_fn(basis(b[0]), b[1]), optimizer, 100)

    similarity = response_similarity(basis(images))
    same = labels[:, None] == labels
    within = similarity[same & ~torch.eye(12, dtype=torch.bool)]
    assert within.mean() - similarity[~same].mean() > 0.5
    assert within.var() < 0.05
    # The running mean comes after, and is kept with the module.
    upper, lower = loss_fn.thresholds
    assert upper > lower
    assert fitted.best_states[1]["mean_positive"].item() == upper


# --- Numbers, and what it refuses


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_coarsen_the_loss(dtype):
    responses, labels = next(random_batches())
    responses = responses.to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        inside = SimilarityDistributionLoss()(responses, labels)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, SimilarityDistributionLoss()(responses.float(), labels))


@pytest.mark.parametrize("shapes", [((4,), (4,)), ((4, 2), (3,)), ((4, 2), (4, 1))], ids=str)
def test_other_shapes_are_refused(shapes):
    responses, labels = torch.ones(shapes[0]), torch.zeros(shapes[1], dtype=torch.long)
    with pytest.raises(ValueError, match=r"give \(B, K\) and one cluster id per row"):
        SimilarityDistributionLoss()(responses, labels)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"margin": -0.1}, "margin=-0.1 is no difference of two cosines; use 0 to 2"),
        ({"margin": 2.1}, "margin=2.1 is no difference of two cosines; use 0 to 2"),
        ({"variance_weight": -1.0}, "variance_weight=-1.0 is no weight"),
        ({"variance_weight": math.inf}, "variance_weight=inf is no weight"),
        ({"momentum": 1.0}, "momentum=1.0 must be from 0 to below 1"),
        ({"momentum": -0.1}, "momentum=-0.1 must be from 0 to below 1"),
        ({"gradient": "half"}, "gradient='half' is unknown; choose damped or full"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        SimilarityDistributionLoss(**setting)
