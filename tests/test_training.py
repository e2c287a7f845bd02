"""The training loop: what it counts, measures, selects, holds still and refuses."""

import math
import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dmlkit.losses import NormSoftmaxLoss
from dmlkit.training import choose_device, fit


def blobs(batch_size=12, seed=0):
    """Endless batches of three well-separated clusters in five dimensions."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        labels = torch.randint(3, (batch_size,), generator=generator)
        noise = torch.randn(batch_size, 5, generator=generator)
        yield 0.3 * noise + torch.eye(5)[labels], labels


def counted(batches, seen):
    for batch in batches:
        seen.append(batch)
        yield batch


def networks(seed=0):
    """A trunk with a batch norm, a head, and a loss with parameters of its own."""
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU())
    model = nn.Sequential(trunk, nn.Linear(8, 4))
    return model, NormSoftmaxLoss(3, 4, temperature=0.1)


def train(model, loss_fn, steps=40, *, batches=None, optimizer=None, **options):
    parameters = [*model.parameters(), *loss_fn.parameters()]

    def compute_loss(batch):
        features, labels = batch
        return loss_fn(F.normalize(model(features), dim=1), labels)

    return fit(
        [model, loss_fn],
        batches or blobs(),
        compute_loss,
        optimizer or torch.optim.Adam(parameters, lr=0.02),
        steps,
        **options,
    )


def copy_of(module):
    return {name: values.clone() for name, values in module.state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert torch.equal(values, other[name]), name


class Counter(nn.Module):
    """One weight that falls by the learning rate in each step of SGD."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))


def count_down(steps, *, learning_rate=1.0, **options):
    """Train a Counter: after step s its weight is -s, if the learning rate stays 1."""
    counter = Counter()
    optimizer = torch.optim.SGD(counter.parameters(), lr=learning_rate)
    return counter, fit(
        [counter], blobs(), lambda _: 1 * counter.weight, optimizer, steps, **options
    )


def scripted_scores(scores):
    remaining = iter(scores)
    return lambda: {"recall_at_1": 0.5, "map_at_r": next(remaining)}


def test_the_loss_goes_down_on_a_problem_that_can_be_learned():
    result = train(*networks(), steps=60, measure_every=10)
    losses = [entry["loss"] for entry in result.history]
    assert losses[-1] < 0.3 * losses[0]
    assert result.seconds > 0


def test_steps_and_images_are_counted_and_no_batch_is_wasted():
    seen = []
    model, loss_fn = networks()
    result = train(model, loss_fn, 10, batches=counted(blobs(7), seen), measure_every=4)
    assert [entry["step"] for entry in result.history] == [4, 8, 10]
    assert [entry["images_seen"] for entry in result.history] == [28, 56, 70]
    assert len(seen) == 10


def test_a_last_step_that_is_due_anyway_is_measured_once():
    _, result = count_down(8, measure_every=4)
    assert [entry["step"] for entry in result.history] == [4, 8]


def test_the_history_holds_the_mean_loss_since_the_last_entry():
    # The loss of step s is the weight before it, -(s - 1): 0, -1, -2, -3, | -4, -5.
    _, result = count_down(6, measure_every=4)
    assert [entry["loss"] for entry in result.history] == [-1.5, -4.5]


@pytest.mark.parametrize(("value", "word"), [(math.nan, "nan"), (math.inf, "inf")])
@pytest.mark.parametrize("bad_step", [1, 5, 7, 10, 11])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_first_step(bad_step, value, word):
    model, calls = Counter(), []

    def compute_loss(batch):
        calls.append(batch)
        return model.weight * 0 + (value if len(calls) >= bad_step else 1.0)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    message = (
        rf"training: the loss is {word} at step {bad_step} for a batch of classes 0, 1, 2; lower L"
    )
    with pytest.raises(FloatingPointError, match=message):
        fit([model], blobs(), compute_loss, optimizer, 11, measure_every=5)
    assert len(calls) == {1: 5, 5: 5, 7: 10, 10: 10, 11: 11}[bad_step]


def test_validation_keeps_the_state_of_the_best_step():
    scores = [0.1, 0.7, 0.3]
    counter, result = count_down(6, validate=scripted_scores(scores), measure_every=2)
    assert result.best_step == 4
    assert result.best_states[0]["weight"] == -4
    assert counter.weight == -6
    assert [entry["validation_map_at_r"] for entry in result.history] == scores
    assert result.history[0]["validation_recall_at_1"] == 0.5


def test_all_modules_are_kept_as_they_were_at_the_best_step():
    model, loss_fn = networks()
    states, scores = [], iter([0.1, 0.9, 0.8])

    def validate():
        states.append((copy_of(model), copy_of(loss_fn)))
        return {"map_at_r": next(scores)}

    result = train(model, loss_fn, 9, validate=validate, measure_every=3)
    for kept, then, last in zip(result.best_states, states[1], states[2], strict=True):
        assert_equal(kept, then)
        assert any(not torch.equal(kept[name], last[name]) for name in kept)


def test_ties_of_the_validation_score_keep_the_earlier_step():
    _, result = count_down(8, validate=scripted_scores([0.2, 0.6, 0.6, 0.6]), measure_every=2)
    assert result.best_step == 4
    assert result.best_states[0]["weight"] == -4


def test_any_metric_may_select_and_a_negative_one_as_well():
    values = iter([(0.9, -3.0), (0.1, -1.0), (0.5, -2.0)])

    def validate():
        return dict(zip(("map_at_r", "minus_loss"), next(values), strict=True))

    _, result = count_down(3, validate=validate, measure_every=1, select_by="minus_loss")
    assert result.best_step == 2


def test_without_validation_the_last_state_is_kept():
    counter, result = count_down(7, measure_every=3)
    assert result.best_step == 7
    assert result.best_states[0]["weight"] == counter.weight == -7
    assert result.history[-1].keys() == {"step", "images_seen", "loss"}


def test_the_state_of_a_step_that_was_asked_for_is_kept_whatever_validation_says():
    options = {"validate": scripted_scores([0.1, 0.2, 0.9]), "measure_every": 2}
    _, result = count_down(6, keep_step=4, **options)
    assert result.best_step == 4
    assert result.best_states[0]["weight"] == -4


@pytest.mark.parametrize("step", [3, 8])
def test_a_step_that_is_not_measured_cannot_be_kept(step):
    with pytest.raises(ValueError, match=f"keep_step={step} is not one of the steps"):
        count_down(6, keep_step=step, measure_every=2)


def test_what_is_observed_stands_in_the_history_and_chooses_nothing():
    observed = iter([0.9, 0.1, 0.2])
    _, result = count_down(
        6,
        validate=scripted_scores([0.1, 0.2, 0.3]),
        observe=lambda: {"map_at_r": next(observed)},
        measure_every=2,
    )
    assert result.best_step == 6
    assert [entry["test_map_at_r"] for entry in result.history] == [0.9, 0.1, 0.2]


def test_two_runs_with_equal_seeds_are_identical():
    (one, one_loss), (two, two_loss) = networks(), networks()
    first = train(one, one_loss, measure_every=5)
    torch.manual_seed(99)  # the loop draws nothing from the global generator
    second = train(two, two_loss, measure_every=5)
    assert first.history == second.history
    assert_equal(one.state_dict(), two.state_dict())
    assert_equal(one_loss.state_dict(), two_loss.state_dict())


def test_every_parameter_of_every_module_moves():
    model, loss_fn = networks()
    before = copy_of(model), copy_of(loss_fn)
    train(model, loss_fn, 5)
    for module, earlier in zip((model, loss_fn), before, strict=True):
        for name, values in module.named_parameters():
            assert not torch.equal(values, earlier[name]), name
    assert [name for name, _ in loss_fn.named_parameters()] == ["proxies"]


@pytest.mark.parametrize("validated", [False, True], ids=["plain", "validated at each step"])
def test_still_modules_stay_as_they_are_for_the_given_steps_and_then_move(validated):
    model, loss_fn = networks()
    trunk, states = model[0], []  # the state of the model before each step
    model(next(blobs())[0]).sum().backward()  # gradients left over from before the run

    def compute_loss(batch):
        states.append(copy_of(model))
        return loss_fn(F.normalize(model(batch[0]), dim=1), batch[1])

    # Momentum and weight decay would move parameters even where their gradient is zero.
    optimizer = torch.optim.SGD(
        [*model.parameters(), *loss_fn.parameters()], lr=0.1, momentum=0.9, weight_decay=0.1
    )
    fit(
        [model, loss_fn],
        blobs(),
        compute_loss,
        optimizer,
        6,
        still_modules=[trunk],
        still_steps=3,
        validate=(lambda: {"map_at_r": 0.0}) if validated else None,
        measure_every=1,
    )
    for name in ("0.0.weight", "0.1.weight"):
        for step in range(3):
            assert torch.equal(states[step][name], states[step + 1][name]), (name, step)
        for step in range(3, 5):
            assert not torch.equal(states[step][name], states[step + 1][name]), (name, step)
    # Meanwhile the head learns, and the batch norms of the trunk go on.
    assert not torch.equal(states[0]["1.weight"], states[1]["1.weight"])
    assert not torch.equal(states[0]["0.1.running_mean"], states[1]["0.1.running_mean"])


def test_still_modules_learn_from_the_first_step_when_the_warm_up_has_no_steps():
    model, loss_fn = networks()
    before = copy_of(model[0])
    train(model, loss_fn, 1, still_modules=[model[0]], still_steps=0)
    assert not torch.equal(model[0][0].weight, before["0.weight"])


def test_modules_train_in_training_mode_even_after_a_validation():
    model, loss_fn = networks()
    model.eval()
    modes = []
    model.register_forward_pre_hook(lambda module, _: modes.append(module[0][1].training))

    def validate():
        model.eval()
        return {"map_at_r": 0.0}

    train(model, loss_fn, 4, validate=validate, measure_every=2)
    assert modes == [True] * 4


def test_the_learning_rate_is_multiplied_by_the_factor_of_each_step_from_zero():
    asked = {0: 1.0, 1: 0.5, 2: 0.25, 3: 2.0}
    counter, _ = count_down(
        4, learning_rate=0.5, learning_rate_factor=lambda step: asked.get(step, 100.0)
    )
    assert counter.weight.item() == pytest.approx(-0.5 * (1.0 + 0.5 + 0.25 + 2.0))


def test_the_factor_applies_to_every_group_at_its_own_rate():
    modules = [Counter(), Counter()]
    optimizer = torch.optim.SGD(
        [
            {"params": modules[0].parameters(), "lr": 1.0},
            {"params": modules[1].parameters(), "lr": 10.0},
        ]
    )
    fit(
        modules,
        blobs(),
        lambda _: modules[0].weight + modules[1].weight,
        optimizer,
        2,
        learning_rate_factor=lambda step: 1 / (1 + step),
    )
    assert [m.weight.item() for m in modules] == pytest.approx([-1.5, -15.0])


def test_what_the_caller_froze_stays_frozen():
    model, loss_fn = networks()
    model[1].requires_grad_(False)
    before = copy_of(model[1])
    train(model, loss_fn, 5, still_modules=[model], still_steps=2)
    assert_equal(copy_of(model[1]), before)
    assert model[0][0].weight.requires_grad


@pytest.mark.parametrize(
    ("steps", "batches", "message"),
    [(0, None, "STEPS=0"), (3, [next(blobs())] * 2, "ended before step 3")],
    ids=["no steps", "too few batches"],
)
def test_a_training_that_cannot_be_whole_is_refused(steps, batches, message):
    with pytest.raises(ValueError, match=message):
        train(*networks(), steps, batches=batches)


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="PRECISION='float8' is unknown; choose float32 or bfloat"):
        count_down(1, precision="float8")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_the_model_computes_in_the_asked_for_precision_and_its_parameters_stay_float32(
    precision, dtype
):
    model, loss_fn = networks()
    dtypes = []
    model.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    result = train(model, loss_fn, 30, precision=precision, measure_every=10)
    assert set(dtypes) == {dtype}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]


def test_auto_is_cuda_if_there_is_one_and_else_the_cpu():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto").type == expected
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", f"cuda:{torch.cuda.device_count()}"])
def test_a_device_that_is_not_there_is_refused_with_the_remedy(name):
    with pytest.raises(ValueError, match=f"DEVICE='{name}' is not available; set DEVICE=auto"):
        choose_device(name)


def test_deterministic_operations_are_asked_for(monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        choose_device("cpu", deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    finally:
        torch.use_deterministic_algorithms(False)
