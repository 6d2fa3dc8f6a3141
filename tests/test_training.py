"""Training of heads: losses that mean what they say, schedules that run as written, and the same bits every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.contracts import Task
from vsa_rt.errors import RecipeError
from vsa_rt.recipe import Backbone, Fit, Head, Recipe
from vsa_rt.schedules import PRESETS

for _name in ("torch", "sklearn", "safetensors"):
    pytest.importorskip(_name, reason="heads are trained with torch and scikit-learn")

import torch

from vsa_rt.export import training
from vsa_rt.export.head import LinearHead, MoeHead, NNHead

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Kind = Literal["linear", "nn", "moe"]
LABELS = ["a", "b", "c"]


def make_recipe(
    kind: Kind, classes: int = 2, multi: bool = False, threshold: float = 0.5, **fit: Any
) -> Recipe:
    """A recipe of which only the head is of interest, small and without dropout."""
    task = Task.MULTI_LABEL if multi else Task.BINARY if classes == 2 else Task.SINGLE_LABEL
    return Recipe(
        schema=1,
        name="toy",
        task=task,
        labels=LABELS[:classes],
        backbones=[Backbone(name=name, architecture="timm:test_resnet") for name in ("one", "two")],
        head=Head(kind=kind, features=["one", "two"], hidden=[16], dropout=0),
        fit=Fit(**fit),
        threshold=threshold,
    )


def predicted(recipe: Recipe, head: Any, rows: Floats) -> Ints:
    return training.predict(head, rows, recipe)


def clouds(classes: int, each: int = 40, width: int = 6, seed: int = 0) -> tuple[Floats, Ints]:
    """Separable clouds, one per class, with wildly different scales per column."""
    rng = np.random.default_rng(seed)
    targets = np.arange(classes).repeat(each)
    centres = rng.standard_normal((classes, width)) * 6
    rows = (centres[targets] + rng.standard_normal((classes * each, width))) * 10.0 ** np.arange(
        -3, width - 3
    )
    return rows.astype(np.float32), targets.astype(np.int64)


def several(count: int = 120, width: int = 6, seed: int = 0) -> tuple[Floats, Ints]:
    """Rows whose first three columns decide, each by its sign, whether a label applies."""
    rows = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return rows, (rows[:, :3] > 0).astype(np.int64)


# Heads


@pytest.mark.parametrize("classes", [2, 3])
def test_a_linear_head_learns_separable_clouds(classes: int) -> None:
    recipe = make_recipe("linear", classes)
    rows, targets = clouds(classes)
    head = training.train_head(recipe, rows, targets, 0)
    assert (predicted(recipe, head, rows) == targets).all()
    assert (predicted(recipe, head, rows * 1.001) == targets).mean() > 0.95


@pytest.mark.parametrize("classes", [2, 3])
def test_a_linear_head_folds_its_standardisation_in(classes: int) -> None:
    """Scores of the folded layer are scikit-learn's own probabilities."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    recipe = make_recipe("linear", classes, regularisation=0.1)
    rows, targets = clouds(classes, each=15)
    rows = rows + clouds(classes, each=15, seed=5)[0]
    head = training.train_head(recipe, rows, targets, 0)
    scaler = StandardScaler().fit(rows.astype(np.float64))
    model = LogisticRegression(C=0.1, max_iter=10_000, tol=1e-8)
    model.fit(scaler.transform(rows.astype(np.float64)), targets)
    wanted = model.predict_proba(scaler.transform(rows.astype(np.float64)))
    found = head(torch.from_numpy(rows)).softmax(1).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_multi_label_linear_head_is_one_regression_per_label() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    recipe = make_recipe("linear", 3, multi=True, regularisation=0.1)
    rows, targets = several()
    scaled = StandardScaler().fit_transform(rows.astype(np.float64))
    head = training.train_head(recipe, rows, targets, 0)
    found = torch.sigmoid(head(torch.from_numpy(rows))).numpy()
    for column in range(3):
        model = LogisticRegression(C=0.1, max_iter=10_000, tol=1e-8).fit(scaled, targets[:, column])
        np.testing.assert_allclose(found[:, column], model.predict_proba(scaled)[:, 1], atol=1e-4)


@pytest.mark.parametrize("kind", ["nn", "moe"])
@pytest.mark.parametrize("multi", [False, True])
def test_a_head_that_is_trained_by_steps_learns(kind: Kind, multi: bool) -> None:
    recipe = make_recipe(kind, 3, multi, epochs=30, learning_rate=0.01)
    rows, targets = several() if multi else clouds(3)
    rows = rows / rows.std(0)
    head = training.train_head(recipe, rows, targets, 0)
    assert (predicted(recipe, head, rows) == targets).mean() > 0.95
    assert not head.training
    assert not any(p.requires_grad for p in head.parameters())


def test_a_label_is_given_above_the_threshold_and_not_at_it() -> None:
    head = LinearHead(1, 2).eval()
    with torch.no_grad():
        head.fc.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        head.fc.bias.zero_()
    rows = np.array([[0.0], [2.0], [-2.0]], np.float32)
    at = training.predict(head, rows, make_recipe("linear", multi=True))
    below = training.predict(head, rows, make_recipe("linear", multi=True, threshold=0.49))
    assert at.tolist() == [[0, 0], [1, 0], [0, 1]]
    assert below.tolist() == [[1, 1], [1, 0], [0, 1]]
    assert training.predict(head, rows, make_recipe("linear"))[1:].tolist() == [0, 1]


def test_scores_are_those_of_the_head_in_the_type_of_the_runtime() -> None:
    """float32's 0.4 lies above 0.4: the runtime gives its label."""
    head, rows = LinearHead(4, 3).eval(), np.ones((2, 4), np.float32)
    with torch.no_grad():
        head.fc.weight.zero_()
        head.fc.bias.copy_(torch.logit(torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64)))
    scores = training.scores_of(head, rows, make_recipe("linear", 3, multi=True))
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, [[0.4, 0.3, 0.3]] * 2, rtol=1e-6)
    softmax = training.scores_of(head, rows, make_recipe("linear", 3))
    np.testing.assert_allclose(softmax.sum(1), 1, rtol=1e-6)
    stored = np.full((1, 3), np.float32(0.4)).astype(np.float64)
    assert training.decide(stored, Task.MULTI_LABEL, 0.4).tolist() == [[1, 1, 1]]
    assert training.decide(np.array([[0.2, 0.4, 0.4]]), Task.DISTRIBUTION, 0.5).tolist() == [1]


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("kind", ["linear", "nn", "moe"])
def test_training_repeats_to_the_last_bit_and_leaves_the_generators_alone(kind: Kind, multi: bool) -> None:
    recipe = make_recipe(kind, 3, multi, epochs=3, weight_decay=1e-3)
    recipe = msgspec.structs.replace(recipe, head=msgspec.structs.replace(recipe.head, dropout=0.4))
    rows, targets = several(30) if multi else clouds(3, each=10)
    torch.manual_seed(7)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    one, two = (training.train_head(recipe, rows, targets, 3).state_dict() for _ in range(2))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    if kind != "linear":
        other = training.train_head(recipe, rows, targets, 4).state_dict()
        assert not all(torch.equal(one[k], other[k]) for k in one)


def test_features_are_joined_in_the_heads_order_and_normed_one_by_one() -> None:
    recipe = make_recipe("linear")
    parts = {"one": clouds(2, width=3)[0] + 1, "two": clouds(2, width=5, seed=1)[0] + 1}
    head = msgspec.structs.replace(recipe.head, features=["two", "one"])
    joined = training.join_features(msgspec.structs.replace(recipe, head=head), parts)
    np.testing.assert_array_equal(joined, np.concatenate([parts["two"], parts["one"]], 1))
    for part in parts.values():
        part.flags.writeable = False  # as the cache gives them
    unit = msgspec.structs.replace(head, unit_norm=True)
    joined = training.join_features(msgspec.structs.replace(recipe, head=unit), parts)
    np.testing.assert_allclose(np.linalg.norm(joined[:, :5], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(joined[:, 5:], axis=1), 1, atol=1e-5)


def test_a_label_that_nothing_or_everything_has_cannot_be_learnt() -> None:
    rows, targets = clouds(2)
    with pytest.raises(RecipeError, match="no photograph is labelled b"):
        training.train_head(make_recipe("linear"), rows, targets * 0, 0)
    rows, targets = several()
    for constant, says in ((0, "no photograph is labelled b"), (1, "every photograph is labelled b")):
        targets[:, 1] = constant
        with pytest.raises(RecipeError, match=says):
            training.train_head(make_recipe("nn", 3, multi=True), rows, targets, 0)


# Losses


def mixture(scale: float = 1, width: int = 4, classes: int = 3) -> MoeHead:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = MoeHead(width, classes, 8, 2, True, 0.0).double()
    with torch.no_grad():
        for layer in (head.gates, head.experts):
            layer.weight.mul_(scale)
    return head


def batch(width: int = 4, classes: int = 3, count: int = 10) -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    rows = torch.from_numpy(rng.standard_normal((count, width)))
    return rows, torch.from_numpy(rng.integers(0, classes, count))


def binary_cross_entropy(scores: Any, wanted: Any) -> Any:
    """As written in SMAP 2021, section 3.3; mean over images and labels."""
    return -(wanted * scores.log() + (1 - wanted) * (1 - scores).log()).mean()


def test_what_a_mixture_says_is_its_raw_gates_and_experts_activated() -> None:
    head, (rows, _) = mixture(), batch()
    raw_gates, raw_experts = head.raw(rows)
    assert raw_gates.shape == (10, 3, 3)
    assert raw_experts.shape == (10, 3, 2)
    gates, experts, scores = head.parts(rows)
    torch.testing.assert_close(gates, raw_gates.softmax(2).reshape(10, 9))
    torch.testing.assert_close(experts, raw_experts.sigmoid().reshape(10, 6))
    wanted = (raw_gates.softmax(2)[:, :, :2] * raw_experts.sigmoid()).sum(2)
    torch.testing.assert_close(scores, wanted)
    torch.testing.assert_close(training._log_mixture(head, rows)[0].exp(), wanted)


def test_losses_of_a_mixture_are_those_of_its_scores() -> None:
    head, (rows, targets) = mixture(), batch()
    scores = head(rows)
    one_hot = torch.eye(3, dtype=torch.float64)[targets]
    picked = (torch.arange(len(rows)), targets)
    several = (scores > scores.median()).double()
    wanted = {
        "bce": binary_cross_entropy(scores, one_hot),
        "cross-entropy": -scores.softmax(1)[picked].log().mean(),
        "nll": -(scores / scores.sum(1, keepdim=True))[picked].log().mean(),
    }
    for loss, value in wanted.items():
        found = training.head_loss(head, rows, targets, Task.SINGLE_LABEL, loss)
        assert found.item() == pytest.approx(value.item(), rel=1e-12)
    found = training.head_loss(head, rows, several.long(), Task.MULTI_LABEL, "bce")
    assert found.item() == pytest.approx(binary_cross_entropy(scores, several).item(), rel=1e-12)


def test_losses_of_a_dense_head_are_those_of_its_scores() -> None:
    head, (rows, targets) = NNHead(4, 3, [8], 0).double(), batch()
    logits = head(rows)
    one_hot = torch.eye(3, dtype=torch.float64)[targets]
    wanted = {
        "bce": binary_cross_entropy(logits.softmax(1), one_hot),
        "cross-entropy": -(one_hot * logits.softmax(1).log()).sum(1).mean(),
    }
    for loss, value in wanted.items():
        found = training.head_loss(head, rows, targets, Task.SINGLE_LABEL, loss)
        assert found.item() == pytest.approx(value.item(), rel=1e-12)
    found = training.head_loss(head, rows, one_hot.long(), Task.MULTI_LABEL, "bce")
    assert found.item() == pytest.approx(binary_cross_entropy(logits.sigmoid(), one_hot).item(), rel=1e-12)


def test_for_two_labels_binary_cross_entropy_of_the_softmax_is_the_cross_entropy() -> None:
    """Which is why SMAP 2021's two-output network has one preset."""
    head, (rows, targets) = NNHead(4, 2, [8], 0).double(), batch(classes=2)
    bce, cross = (
        training.head_loss(head, rows, targets, Task.BINARY, loss).item() for loss in ("bce", "cross-entropy")
    )
    assert bce == pytest.approx(cross, rel=1e-12)


@pytest.mark.parametrize("loss", ["bce", "cross-entropy", "nll"])
def test_saturated_gates_and_experts_still_learn(loss: str) -> None:
    """Their scores are exactly 0 or 1 in float32, where a plain logarithm has no value."""
    head, (rows, _) = mixture(scale=1e5).float(), batch()
    rows = rows.float()
    wrong = head(rows).argmin(1)
    value = training.head_loss(head, rows, wrong, Task.SINGLE_LABEL, loss)
    value.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in head.parameters() if p.grad is not None]
    assert torch.isfinite(value)
    assert all(torch.isfinite(g).all() for g in gradients)
    if loss != "cross-entropy":  # which is flat there: its scores enter a softmax as they are
        assert max(float(g.abs().max()) for g in gradients) > 0
        assert not torch.isfinite(binary_cross_entropy(head(rows), torch.eye(3)[wrong]))


@pytest.mark.parametrize("kind", ["nn", "moe"])
@pytest.mark.parametrize("loss", ["bce", "cross-entropy", "nll"])
def test_a_step_against_the_gradient_raises_the_score_of_the_target(kind: Kind, loss: str) -> None:
    head: Any = mixture() if kind == "moe" else NNHead(4, 3, [8], 0).double()
    rows, targets = batch(count=1)

    def share() -> float:
        with torch.no_grad():
            scores = head(rows) if kind == "moe" else head(rows).softmax(1)
        return float((scores / scores.sum(1, keepdim=True))[0, targets[0]])

    before = share()
    training.head_loss(head, rows, targets, Task.SINGLE_LABEL, loss).backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.sub_(0.05 * parameter.grad)
    assert share() > before


@pytest.mark.parametrize(
    ("kind", "loss", "optimum"),
    [
        # Rows that are all alike: the best a head can say is how often each label applies.
        ("nn", "cross-entropy", lambda scores: scores),
        ("nn", "bce", lambda scores: scores),
        ("moe", "bce", lambda scores: scores),
        ("moe", "nll", lambda scores: scores / scores.sum(1, keepdims=True)),
        ("moe", "cross-entropy", lambda scores: np.exp(scores) / np.exp(scores).sum(1, keepdims=True)),
    ],
)
def test_the_optimum_of_a_loss_is_the_labels_frequency(kind: Kind, loss: str, optimum: Any) -> None:
    rows, targets = np.ones((20, 3), np.float32), np.arange(20) % 5 // 3  # 60 and 40 %
    recipe = make_recipe(kind, loss=loss, epochs=300, batch_size=20, learning_rate=0.02, step=200)
    head = training.train_head(recipe, rows, targets.astype(np.int64), 0)
    scores = head(torch.from_numpy(rows[:1]))
    found = scores.numpy() if kind == "moe" else scores.softmax(1).numpy()
    np.testing.assert_allclose(optimum(found), [[0.6, 0.4]], atol=0.005)


@pytest.mark.parametrize("kind", ["nn", "moe"])
def test_the_optimum_of_several_labels_is_the_frequency_of_each(kind: Kind) -> None:
    rows = np.ones((20, 3), np.float32)
    targets = (np.arange(20)[:, None] < [4, 10, 15]).astype(np.int64)
    recipe = make_recipe(kind, 3, True, epochs=400, batch_size=20, learning_rate=0.02, step=300)
    head = training.train_head(recipe, rows, targets, 0)
    scores = head(torch.from_numpy(rows[:1]))
    found = scores if kind == "moe" else torch.sigmoid(scores)
    np.testing.assert_allclose(found.numpy(), [[0.2, 0.5, 0.75]], atol=0.01)


# Schedules


@contextmanager
def steps() -> Iterator[list[tuple[str, float, float]]]:
    """Optimiser, learning rate and weight decay of every step that is taken inside."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    taken: list[tuple[str, float, float]] = []

    def note(optimiser: Any, *_: Any) -> None:
        group = optimiser.param_groups[0]
        taken.append((type(optimiser).__name__, group["lr"], group["weight_decay"]))

    handle = register_optimizer_step_pre_hook(note)
    try:
        yield taken
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", ["nn", "moe"])
def test_the_learning_rate_falls_by_the_factor_after_every_step(kind: Kind) -> None:
    fit: dict[str, Any] = {
        "epochs": 7,
        "step": 3,
        "factor": 0.5,
        "learning_rate": 0.01,
        "weight_decay": 0.125,
    }
    recipe = make_recipe(kind, batch_size=8, **fit)
    rows, targets = clouds(2, each=10)  # 20 rows: batches of 8, 8 and 4
    with steps() as taken:
        training.train_head(recipe, rows, targets, 0)
    rates = [0.01] * 9 + [0.005] * 9 + [0.0025] * 3
    assert [rate for _, rate, _ in taken] == pytest.approx(rates)
    assert {(name, decay) for name, _, decay in taken} == {("Adam", 0.125)}
    with steps() as taken:
        training.train_head(make_recipe(kind, epochs=2, batch_size=20), rows, targets, 0)
    assert taken == [("Adam", 1e-4, 0.0)] * 2


def test_a_rate_that_fell_to_nothing_ends_the_learning() -> None:
    rows, targets = clouds(2, each=10)

    def weights(**fit: Any) -> Any:
        recipe = make_recipe("moe", learning_rate=0.01, batch_size=20, **fit)
        return training.train_head(recipe, rows, targets, 0).state_dict()["experts.weight"]

    torch.testing.assert_close(weights(epochs=5, step=1, factor=1e-12), weights(epochs=1))
    assert not torch.allclose(weights(epochs=5), weights(epochs=1))


def test_weight_decay_keeps_weights_small() -> None:
    rows, targets = clouds(2, each=10)
    norms = [
        float(
            training.train_head(
                make_recipe("moe", epochs=30, learning_rate=0.01, weight_decay=decay), rows, targets, 0
            )
            .state_dict()["experts.weight"]
            .norm()
        )
        for decay in (0.0, 0.1, 1.0)
    ]
    assert norms == sorted(norms, reverse=True)
    assert norms[2] < 0.5 * norms[0]


#: SMAP 2021, section 3.3, and MediaEval 2021, section on training, as printed there.
PAPERS = {
    "smap2021-nn": ("cross-entropy", 1e-4, 8, 0.0, 20, 0, 0.1),
    "smap2021-moe-1": ("bce", 1e-4, 256, 1e-3, 120, 40, 0.1),
    "smap2021-moe-2": ("bce", 1e-4, 256, 1e-3, 60, 20, 0.1),
    "mediaeval2021-1": ("cross-entropy", 1e-5, 64, 0.0, 300, 70, 0.5),
    "mediaeval2021-2": ("bce", 3e-6, 64, 0.0, 300, 70, 0.5),
    "mediaeval2021-3": ("bce", 5e-6, 64, 0.0, 200, 70, 0.5),
}


def test_presets_are_the_papers_schedules() -> None:
    found = {}
    for name, keys in PRESETS.items():
        fit = msgspec.convert(keys, Fit)
        found[name] = (
            fit.loss,
            fit.learning_rate,
            fit.batch_size,
            fit.weight_decay,
            fit.epochs,
            fit.step,
            fit.factor,
        )
    assert found == PAPERS
