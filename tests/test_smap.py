"""The shipped recipes of SMAP 2021 and MediaEval 2021 against the papers' figures, and the head they share.

Widths, parameters, schedules and tasks are those of Pournaras et al. 2021 (SMAP 2021, sections 3.1 to 3.3), of the
same authors' MediaEval 2021 paper, and of the code that they build on. No weights are loaded.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest

from vsa_rt.contracts import Task, scores_kind
from vsa_rt.recipe import Backbone, Fit, Recipe, needed_backbones, options_of, tensor_input
from vsa_rt.recipe_file import find_recipe, read_recipe, shipped_names

torch = pytest.importorskip("torch", reason="networks are torch modules")
pytest.importorskip("timm", reason="E is a network of timm")

from vsa_rt.export.head import MoeHead, head_tap_records, head_taps, make_head
from vsa_rt.export.makers import make_network

SMAP = [f"smap2021-{name}" for name in ("moe", "nn", "e", "r", "y", "s", "g")]
MEDIAEVAL = [f"mediaeval2021-{subtask}" for subtask in (1, 2, 3)]
FIVE = ["smap2021-moe", "smap2021-nn", *MEDIAEVAL]
WIDTHS = {"e": 1408, "r": 2048, "y": 3862, "s": 2048, "g": 2048}


def recipe_of(name: str) -> Recipe:
    return read_recipe(find_recipe(name))


@cache
def networks(name: str) -> dict[str, tuple[int, int]]:
    """Width and parameters of every network that a recipe computes, made without memory for weights."""
    found: dict[str, tuple[int, int]] = {}
    with torch.device("meta"):
        for entry in needed_backbones(recipe_of(name)):
            made = make_network(entry, found[entry.reads][0] if entry.reads in found else 0)
            found[entry.name] = made.width, sum(p.numel() for p in made.module.parameters())
    return found


def test_all_recipes_of_the_papers_are_shipped() -> None:
    assert {*SMAP, *MEDIAEVAL} == {n for n in shipped_names() if "2021" in n}


# Backbones


@pytest.mark.parametrize("name", FIVE)
def test_five_features_are_joined_to_11414(name: str) -> None:
    recipe = recipe_of(name)
    assert sorted(recipe.head.features) == sorted(WIDTHS)
    widths = {letter: networks(name)[letter][0] for letter in recipe.head.features}
    assert widths == WIDTHS
    assert sum(widths.values()) == 11_414


@pytest.mark.parametrize("letter", WIDTHS)
def test_a_feature_alone_is_the_same_feature(letter: str) -> None:
    recipe = recipe_of(f"smap2021-{letter}")
    assert recipe.head.features == [letter]
    assert networks(recipe.name)[letter] == networks("smap2021-moe")[letter]


def test_networks_have_the_published_sizes() -> None:
    """Trunks without classifiers: E, R and Inception as their repositories give them, the rest counted by hand."""
    found = {name: parameters for name, (_, parameters) in networks("smap2021-moe").items()}
    # 64 filters of length 3, and a dense layer over 512 positions of 64 filters.
    shallow = 64 * 3 + 64 + 512 * 64 * 3862 + 3862
    # A projection of queries and one of keys with biases; two layers of a matrix and a norm.
    graph = 2 * (2048 * 2048 + 2048) + 2 * (2048 * 2048 + 2 * 2048)
    pca = 2048 + 1024 + 2048 * 1024
    assert (found["y"], found["g"], found["pca"]) == (shallow, graph, pca)
    millions = {name: round(found[name] / 1e6, 2) for name in ("e", "r", "inception", "y", "s", "g")}
    assert millions == {"e": 7.70, "r": 58.14, "inception": 21.79, "y": 126.55, "s": 50.36, "g": 16.79}


@pytest.mark.parametrize("name", FIVE[1:])
def test_five_backbones_are_the_same_everywhere(name: str) -> None:
    """MediaEval's table gives the objects' encoder other weights; else one table stands for all."""
    first, other = ({b.name: b for b in recipe_of(n).backbones} for n in (FIVE[0], name))
    if name in MEDIAEVAL:
        encoder = other.pop("r1k")
        assert (encoder.architecture, options_of(encoder)) == (
            first["r"].architecture,
            options_of(first["r"]),
        )
        assert "imagenet/resnet-152/" in encoder.checkpoint.obtain
        assert "imagenet-11k/" in first["r"].checkpoint.obtain
        assert other["g"].reads == "r1k"
        other["g"] = msgspec.structs.replace(other["g"], reads="r")
    assert other == first
    assert list(other) == list(first)


@pytest.mark.parametrize("letter", WIDTHS)
def test_one_backbones_tables_are_those_of_the_five(letter: str) -> None:
    five = {b.name: b for b in recipe_of(FIVE[0]).backbones}
    alone = recipe_of(f"smap2021-{letter}").backbones
    assert [five[b.name] for b in alone] == alone


def test_who_reads_whom() -> None:
    backbones = {b.name: b for b in recipe_of("smap2021-moe").backbones}
    assert {n: b.reads for n, b in backbones.items() if b.reads} == {
        "pca": "inception",
        "y": "pca",
        "s": "r",
        "g": "r",
    }
    assert tensor_input(backbones["g"]) == ("objects", [50, 2048])
    # Ready objects need no encoder: alone, G computes the graph and nothing else.
    assert [b.name for b in needed_backbones(recipe_of("smap2021-g"))] == ["g"]
    assert {b.name for b in needed_backbones(recipe_of("mediaeval2021-1"))} == {
        "e", "r", "inception", "pca", "y", "s", "g",
    }  # fmt: skip


def test_options_that_are_spelt_out_are_the_defaults() -> None:
    """The recipes show a reader what can be changed, and change nothing."""
    for name in (*SMAP, *MEDIAEVAL):
        for backbone in recipe_of(name).backbones:
            bare = Backbone(name=backbone.name, architecture=backbone.architecture, reads=backbone.reads)
            assert options_of(backbone) == options_of(bare)


# Tasks, labels, schedules


@pytest.mark.parametrize(
    ("name", "task", "labels"),
    [
        *((n, Task.BINARY, "negative positive") for n in SMAP),
        ("mediaeval2021-1", Task.SINGLE_LABEL, "positive negative neutral"),
        ("mediaeval2021-2", Task.MULTI_LABEL, "joy sadness fear disgust anger surprise neutral"),
        (
            "mediaeval2021-3",
            Task.MULTI_LABEL,
            "anger anxiety craving empathetic_pain fear horror joy relief sadness surprise",
        ),
    ],
)
def test_tasks_and_labels(name: str, task: Task, labels: str) -> None:
    recipe = recipe_of(name)
    assert recipe.task is task
    assert recipe.labels == [label.replace("_", " ") for label in labels.split()]
    kind = "independent" if task is Task.MULTI_LABEL else "softmax"
    assert scores_kind(recipe.task, recipe.head.kind) == ("moe" if recipe.head.kind == "moe" else kind)


NN: dict[str, Any] = {"loss": "cross-entropy", "learning_rate": 1e-4, "batch_size": 8, "epochs": 20}
HALVED: dict[str, Any] = {"batch_size": 64, "factor": 0.5, "step": 70}
#: SMAP 2021, section 3.3, and MediaEval 2021, training settings. For two labels, binary cross-entropy of the
#: softmax is the cross-entropy.
SCHEDULES: dict[str, dict[str, Any]] = {
    **{f"smap2021-{n}": NN for n in ("nn", *WIDTHS)},
    "smap2021-moe": {
        "loss": "bce",
        "learning_rate": 1e-4,
        "batch_size": 256,
        "weight_decay": 1e-3,
        "epochs": 120,
        "step": 40,
        "factor": 0.1,
    },
    "mediaeval2021-1": HALVED | {"loss": "cross-entropy", "learning_rate": 1e-5, "epochs": 300},
    "mediaeval2021-2": HALVED | {"loss": "bce", "learning_rate": 3e-6, "epochs": 300},
    "mediaeval2021-3": HALVED | {"loss": "bce", "learning_rate": 5e-6, "epochs": 200},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_recipe_trains_by_its_papers_schedule(name: str) -> None:
    """SMAP's accuracy on Twitter I is the mean over five random splits of 80 and 20 %."""
    found = recipe_of(name).fit
    splits: dict[str, Any] = {"split": "random", "folds": 5, "test": 0.2} if name in SMAP else {}
    assert found == Fit(preset=found.preset, **SCHEDULES[name], **splits)
    assert found.preset in (name, "smap2021-nn" if name in SMAP else name, f"{name}-1")


@pytest.mark.parametrize("name", [*SMAP, *MEDIAEVAL])
def test_only_smaps_dense_head_sees_features_of_unit_norm(name: str) -> None:
    head = recipe_of(name).head
    assert head.unit_norm is (name == "smap2021-nn")
    assert head.dropout == 0.4
    assert head.weights == "", "nobody published a head"


# Heads


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("smap2021-nn", 2_283_402),
        ("smap2021-moe", 2_285_004),  # 11414 x 200 + 200, gates 200 x 6, experts 200 x 4 + 4
        ("smap2021-e", 1408 * 200 + 200 + 402),
        ("smap2021-r", 2048 * 200 + 200 + 402),
        ("smap2021-y", 3862 * 200 + 200 + 402),
        ("smap2021-s", 2048 * 200 + 200 + 402),
        ("smap2021-g", 2048 * 200 + 200 + 402),
        ("mediaeval2021-1", 2_283_000 + 200 * 9 + 200 * 6 + 6),
        ("mediaeval2021-2", 11_616_607),
        ("mediaeval2021-3", 11_617_210),
    ],
)
def test_heads_have_the_papers_parameters(name: str, parameters: int) -> None:
    recipe = recipe_of(name)
    with torch.device("meta"):
        head = make_head(recipe, sum(WIDTHS[letter] for letter in recipe.head.features))
    assert sum(p.numel() for p in head.parameters()) == parameters


def test_a_bias_of_the_gates_is_six_parameters() -> None:
    recipe = recipe_of("smap2021-moe")
    biased = msgspec.structs.replace(recipe, head=msgspec.structs.replace(recipe.head, gate_bias=True))
    with torch.device("meta"):
        head = make_head(biased, 11_414)
    assert sum(p.numel() for p in head.parameters()) == 2_285_010


def moe(classes: int, hidden: int, gate_bias: bool, width: int | None = None) -> Any:
    head = MoeHead(width or hidden, classes, hidden, experts=2, gate_bias=gate_bias, dropout=0.4)
    return head.double().eval().requires_grad_(False)


def test_two_classes_by_hand() -> None:
    """Class c's gate m is column 3 c + m and its expert column 2 c + m; the third gate is the dummy's."""
    head = moe(classes=2, hidden=1, gate_bias=False)
    head.fc.weight[:], head.fc.bias[:] = 1, 0
    logs = [math.log(v) for v in (1, 2, 3, 4, 1, 5)]
    head.gates.weight[:] = torch.tensor(logs, dtype=torch.float64)[:, None]
    head.experts.weight[:] = 0
    # sigmoid(ln(p / (1 - p))) = p
    chances = [1 / 2, 3 / 4, 1 / 5, 9 / 10]
    head.experts.bias[:] = torch.tensor([math.log(p / (1 - p)) for p in chances], dtype=torch.float64)
    gates, experts, scores = head.parts(torch.ones(1, 1, dtype=torch.float64))
    wanted = [1 / 6, 2 / 6, 3 / 6, 4 / 10, 1 / 10, 5 / 10]
    torch.testing.assert_close(gates, torch.tensor([wanted], dtype=torch.float64))
    torch.testing.assert_close(experts, torch.tensor([chances], dtype=torch.float64))
    first = 1 / 6 * 1 / 2 + 2 / 6 * 3 / 4
    second = 4 / 10 * 1 / 5 + 1 / 10 * 9 / 10
    torch.testing.assert_close(scores, torch.tensor([[first, second]], dtype=torch.float64))
    # What the first layer gives is not negative: there every gate is equal and every expert at its bias.
    dark = head(torch.full((1, 1), -7.0, dtype=torch.float64))
    wanted = [(chances[0] + chances[1]) / 3, (chances[2] + chances[3]) / 3]
    torch.testing.assert_close(dark, torch.tensor([wanted], dtype=torch.float64))


def youtube8m(features: Any, state: dict[str, Any], classes: int) -> Any:
    """``MoeModel`` of google/youtube-8m behind one layer, in numpy: rows of gates and experts, class by class."""
    shared = np.maximum(features @ state["fc.weight"].T + state["fc.bias"], 0)
    gates = (shared @ state["gates.weight"].T + state.get("gates.bias", 0)).reshape(-1, 3)
    experts = (shared @ state["experts.weight"].T + state["experts.bias"]).reshape(-1, 2)
    shares = np.exp(gates) / np.exp(gates).sum(1, keepdims=True)
    final = (shares[:, :2] / (1 + np.exp(-experts))).sum(1)
    return final.reshape(-1, classes)


@pytest.mark.parametrize("gate_bias", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_mixture_is_youtube_8ms(classes: int, gate_bias: bool) -> None:
    head = moe(classes, 20, gate_bias, width=11)
    rng = np.random.default_rng(classes)
    state = {k: rng.standard_normal(v.shape) for k, v in head.state_dict().items()}
    assert state["gates.weight"].shape == (3 * classes, 20)
    assert state["experts.weight"].shape == (2 * classes, 20)
    assert ("gates.bias" in state) is gate_bias
    head.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    features = rng.standard_normal((5, 11))
    found = head(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(found, youtube8m(features, state, classes), rtol=1e-12)
    assert (found > 0).all()
    assert (found < 1).all()


def test_the_dummy_takes_from_a_score_and_gives_nothing() -> None:
    """Experts that are sure, and a dummy that has all the gates: the score is 0; without it, 1."""
    head = moe(classes=2, hidden=1, gate_bias=True)
    head.fc.weight[:], head.fc.bias[:] = 0, 0
    head.gates.weight[:] = 0
    head.experts.weight[:], head.experts.bias[:] = 0, 1e3
    for dummy, score in ((1e3, 0.0), (-1e3, 1.0), (0.0, 2 / 3)):
        head.gates.bias[:] = torch.tensor([0, 0, dummy] * 2, dtype=torch.float64)
        scores = head(torch.zeros(1, 1, dtype=torch.float64))
        torch.testing.assert_close(scores, torch.full((1, 2), score, dtype=torch.float64))


@pytest.mark.parametrize("name", ["smap2021-moe", "mediaeval2021-1"])
def test_gates_and_experts_are_taps(name: str) -> None:
    recipe = recipe_of(name)
    classes = len(recipe.labels)
    small = msgspec.structs.replace(recipe, head=msgspec.structs.replace(recipe.head, hidden=[5]))
    head = make_head(small, 7).eval()
    records = head_tap_records(recipe)
    assert [(r.name, r.width, r.kind) for r in records] == [
        ("gates", 3 * classes, "gates"),
        ("experts", 2 * classes, "experts"),
        ("scores", classes, "scores"),
    ]
    features = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        gates, experts, scores = head_taps(head, features, recipe)
    assert [t.shape[1] for t in (gates, experts, scores)] == [r.width for r in records]
    torch.testing.assert_close(gates.reshape(4, classes, 3).sum(2), torch.ones(4, classes))
    joined = (gates.reshape(4, classes, 3)[:, :, :2] * experts.reshape(4, classes, 2)).sum(2)
    torch.testing.assert_close(joined, scores)


def test_a_dense_head_gives_logits_and_what_the_task_makes_of_them() -> None:
    for name, activation in (("smap2021-nn", torch.softmax), ("mediaeval2021-2", None)):
        recipe = recipe_of(name)
        small = msgspec.structs.replace(recipe, head=msgspec.structs.replace(recipe.head, hidden=[5, 4]))
        head = make_head(small, 7).eval()
        with torch.inference_mode():
            logits, scores = head_taps(head, torch.ones(1, 7), recipe)
        wanted = activation(logits, 1) if activation else torch.sigmoid(logits)
        torch.testing.assert_close(scores, wanted)
        assert [r.name for r in head_tap_records(recipe)] == ["logits", "scores"]
