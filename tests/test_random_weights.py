"""Seeded weights: the seed alone decides them, and what comes out of them is as lively as trained weights make it."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from outcome import fails

from vsa_rt.bundle import MANIFEST, Bundle
from vsa_rt.contracts import Precision
from vsa_rt.errors import CheckpointAbsent, RecipeError
from vsa_rt.manifest import Manifest
from vsa_rt.recipe import Backbone
from vsa_rt.recipe_file import read_recipe

reason = "seeded weights are torch's"
torch = pytest.importorskip("torch", reason=reason)
pytest.importorskip("timm", reason="one of the networks is timm's")
pytest.importorskip("skimage", reason="statistics are taken of the photographs that scikit-image ships")

from torch import nn

from vsa_rt.export import random_weights
from vsa_rt.export.backbones import LoadedBackbone, load_backbone
from vsa_rt.export.ensemble import load_backbones, load_ensemble
from vsa_rt.export.networks import dual_encoding, resnet152v2
from vsa_rt.export.photographs import shipped_photographs
from vsa_rt.export.random_weights import Samples
from vsa_rt.pipeline.gate import Judged, Reference, comparison_of, decides, judge
from vsa_rt.pipeline.images import PreparedBatch, as_photographs
from vsa_rt.pipeline.reference import find_reference

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

#: A wiring of every architecture but Inception, by name.
WIRING = {
    "r": Backbone(name="r", architecture="timm:test_resnet"),
    "deep": Backbone(name="deep", architecture="resnet152-v2"),
    "pca": Backbone(name="pca", architecture="youtube8m-pca", reads="r"),
    "y": Backbone(name="y", architecture="shallow-cnn", reads="pca", options={"classes": 50}),
    "s": Backbone(name="s", architecture="dual-encoding", reads="r"),
    "clip": Backbone(
        name="clip", architecture="dual-encoding", reads="r", options={"frames": 4, "features": 96}
    ),
    "g": Backbone(name="g", architecture="object-graph", reads="r", options={"features": 96, "count": 6}),
}


@contextmanager
def narrow() -> Iterator[None]:
    """As deep as the published networks, but narrow: depth is what makes a signal die out or explode."""
    with pytest.MonkeyPatch.context() as patch:
        made = partial(resnet152v2.ResNet152V2, widths=(16, 32, 64, 128), size=56)
        patch.setattr(resnet152v2, "ResNet152V2", made)
        for name in ("DualEncoding", "DualEncodingFrames"):
            form = getattr(dual_encoding, name)
            patch.setattr(dual_encoding, name, partial(form, hidden=32, filters=16, mapping=64))
        yield


def loaded(*names: str, seed: int = 7, samples: Samples | None = None) -> dict[str, LoadedBackbone]:
    """Backbones with the weights of a seed, each one after what it reads."""
    samples = samples or Samples()
    with narrow():
        return {
            name: load_backbone(WIRING[name], Path(), random_seed=seed, samples=samples)
            for name in names or WIRING
        }


def hashes(*names: str, seed: int = 7) -> dict[str, str]:
    return {name: b.record.sha256 for name, b in loaded(*names, seed=seed).items()}


# The seed alone


@pytest.fixture(scope="module")
def of_seed_7() -> dict[str, str]:
    return hashes()


def test_a_seed_gives_the_same_weights_again(of_seed_7: dict[str, str]) -> None:
    assert hashes() == of_seed_7
    assert all(len(v) == 64 for v in of_seed_7.values())


def test_another_seed_gives_other_weights(of_seed_7: dict[str, str]) -> None:
    other = hashes(seed=8)
    assert not set(other.values()) & set(of_seed_7.values())


def test_a_name_gives_other_weights_and_neighbours_do_not(of_seed_7: dict[str, str]) -> None:
    twin = msgspec.structs.replace(WIRING["r"], name="twin")
    found = load_backbone(twin, Path(), random_seed=7).record.sha256
    assert found != of_seed_7["r"]
    # Loaded alone, without the backbones that stood before it in the other recipe.
    assert hashes("deep") == {"deep": of_seed_7["deep"]}
    assert hashes("r", "s") == {name: of_seed_7[name] for name in ("r", "s")}


def test_the_record_says_that_the_weights_are_random() -> None:
    for backbone in loaded("r", "g").values():
        assert (backbone.record.found, backbone.record.random_seed) == ("random weights", 7)
        assert not backbone.network.training
        assert not any(p.requires_grad for p in backbone.network.parameters())


def test_the_callers_threads_do_not_matter_and_stay(of_seed_7: dict[str, str]) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert hashes() == of_seed_7
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def generators() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())]


def test_the_callers_generators_do_not_matter_and_stay(of_seed_7: dict[str, str]) -> None:
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    names = ("r", "deep", "s", "g")
    try:
        for seed in (1, 2):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            before = generators()
            assert hashes(*names) == {name: of_seed_7[name] for name in names}
            assert generators() == before
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def test_a_failure_leaves_the_caller_as_it_was() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        before = generators()
        with pytest.raises(RecipeError):
            load_backbone(Backbone(name="a", architecture="timm:no_such"), Path(), random_seed=7)
        assert (generators(), torch.get_num_threads()) == (before, 2)
    finally:
        torch.set_num_threads(threads)


# What comes out


@pytest.fixture(scope="module", params=[1, 7])
def seen(request: pytest.FixtureRequest) -> tuple[dict[str, LoadedBackbone], Samples]:
    """The wired networks of a seed, and what they see of the shipped photographs."""
    samples = Samples()
    return loaded(seed=request.param, samples=samples), samples


@pytest.mark.parametrize("name", WIRING)
def test_features_of_different_photographs_differ(seen: Any, name: str) -> None:
    features = seen[1].features(name).double()
    # Two of the photographs are one scene, seen by both eyes.
    other_scene = [i for i, p in enumerate(shipped_photographs()[:16]) if p.stem != "motorcycle_right"]
    features = features[other_scene]
    assert len(features) == 15
    assert torch.isfinite(features).all()
    size = features.pow(2).mean().sqrt()
    assert 0.02 < size < 5, "a signal that vanishes, or explodes"
    apart = torch.cdist(features, features) / features.norm(dim=1)
    apart = apart[~torch.eye(len(features), dtype=torch.bool)]
    assert apart.min() > 0.1
    assert apart.median() > 0.3
    moves = features.std(0) > 1e-3 * size
    assert moves.double().mean() > 0.8, "features that no photograph changes"
    if name in ("r", "s", "clip"):
        unit = features / features.norm(dim=1, keepdim=True)
        cosines = (unit @ unit.T)[~torch.eye(len(unit), dtype=torch.bool)]
        assert cosines.max() < 0.97


def normalised_by(norm: Any, values: Any) -> Any:
    """What a normalisation layer makes of its input before its own scale and shift, ``(C, everything else)``."""
    rows = values.double().transpose(0, 1).flatten(1)
    return (rows - norm.running_mean.double()[:, None]) / (norm.running_var.double() + norm.eps).sqrt()[
        :, None
    ]


@pytest.mark.parametrize(("name", "count"), [("r", 15), ("deep", 153), ("s", 1), ("clip", 1)])
def test_norms_have_the_statistics_of_the_photographs(seen: Any, name: str, count: int) -> None:
    backbone = seen[0][name]
    norms = [m for m in backbone.network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    found: list[Any] = []
    hooks = [m.register_forward_hook(lambda m, i, _: found.append(normalised_by(m, i[0]))) for m in norms]
    spreads: list[float] = []
    hooks += [m.register_forward_pre_hook(lambda _, i: spreads.append(float(i[0].std()))) for m in norms]
    with torch.inference_mode():
        backbone.network(*seen[1].inputs(backbone.entry, backbone.made))
    for hook in hooks:
        hook.remove()
    assert len(found) == len(norms) == count
    # The first norm sees what it saw; behind others that now use these statistics instead of the batch's own, a
    # little less exactly.
    for rows, mean, variance in ((found[0], 1e-5, 5e-3), *((rows, 0.06, 0.08) for rows in found)):
        assert rows.mean(1).abs().max() < mean
        assert (rows.var(1) - 1).abs().max() < variance
    # From layer to layer the signal keeps its size. What the deep network's first norm sees are pixels.
    assert all(0.1 < s < 10 for s in spreads[1:])


def test_layers_without_a_norm_behind_them_give_unit_variance(seen: Any) -> None:
    backbones, samples = seen
    for name, layers in (("y", ["dense"]), ("g", ["wq", "wk"])):
        backbone = backbones[name]
        spreads: list[float] = []
        hooks = [
            backbone.network.get_submodule(layer).register_forward_hook(
                lambda m, i, o, spreads=spreads: spreads.append(float(o.std()))
            )
            for layer in layers
        ]
        with torch.inference_mode():
            backbone.network(*samples.inputs(backbone.entry, backbone.made))
        for hook in hooks:
            hook.remove()
        assert spreads == pytest.approx([1.0] * len(layers), rel=1e-3), name


def test_the_pca_whitens_what_it_saw(seen: Any) -> None:
    backbones, samples = seen
    state = backbones["pca"].network.state_dict()
    features = samples.features("r").double()
    torch.testing.assert_close(state["mean"].double(), features.mean(0), rtol=1e-5, atol=1e-6)
    whitened = (features - features.mean(0)) @ state["eigenvecs"].double()
    whitened /= (state["eigenvals"].double() + 1e-4).sqrt()
    assert (whitened.var(0) - 1).abs().max() < 1e-2
    assert samples.features("pca").abs().max() <= 2  # the dataset's range
    assert (samples.features("pca").abs() < 2).double().mean() > 0.8


def test_a_network_without_shortcuts_lets_the_signal_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inception at its full depth and width, over four photographs."""
    monkeypatch.setattr(random_weights, "_PHOTOGRAPHS", 4)
    samples = Samples()
    load_backbone(Backbone(name="i", architecture="inception-2015"), Path(), random_seed=1, samples=samples)
    features = samples.features("i")
    assert features.shape == (4, 2048)
    assert torch.isfinite(features).all()
    assert 0.1 < features.std() < 5
    apart = (torch.cdist(features, features) / features.norm(dim=1))[~torch.eye(4, dtype=torch.bool)]
    assert apart.min() > 0.2
    assert (features.std(0) > 0).double().mean() > 0.9


def test_weights_that_are_named_are_not_random(wired_recipe: Path, tmp_path: Path) -> None:
    """A seed fills in for what --weights does not name, and for nothing else."""
    recipe = read_recipe(wired_recipe)
    encoder = load_backbones(recipe, wired_recipe.parent, {}, 7)[0]
    file = tmp_path / "r.pth"
    torch.save(encoder.made.weights.state_dict(), file)  # type: ignore[union-attr]
    ensemble = load_ensemble(recipe, wired_recipe.parent, {"r": file}, 8)
    seeds = {name: record.random_seed for name, record in ensemble.checkpoints.items()}
    assert seeds == {"r": None, "s": 8, "g": 8, "head": 8}
    assert ensemble.checkpoints["r"].found == str(file)


# What is said of it


@pytest.fixture
def with_random_head(wired_bundle: Path, tmp_path: Path, reseal: Callable[..., None]) -> Path:
    """The wired bundle, its head said to be random too."""

    def link(source: str, target: str) -> None:
        os.link(source, target)

    copy = Path(shutil.copytree(wired_bundle, tmp_path / "copy", copy_function=link))
    (copy / MANIFEST).unlink()
    shutil.copy(wired_bundle / MANIFEST, copy / MANIFEST)
    reseal(copy, checkpoints=all_random(Bundle.open(copy).manifest).checkpoints)
    return copy


def all_random(manifest: Manifest) -> Manifest:
    head = msgspec.structs.replace(manifest.checkpoints["head"], random_seed=7, found="random weights")
    return msgspec.structs.replace(manifest, checkpoints=manifest.checkpoints | {"head": head})


def test_a_bundle_says_so_wherever_it_is_shown(here: Cli, wired_bundle: Path, with_random_head: Path) -> None:
    records = Bundle.open(wired_bundle).manifest.checkpoints
    assert {n: (r.found, r.random_seed) for n, r in records.items() if n != "head"} == dict.fromkeys(
        ("r", "s", "g"), ("random weights", 7)
    )
    assert records["head"].random_seed is None
    fitted, random_head = (here("inspect", b).stdout for b in (wired_bundle, with_random_head))
    assert "random weights (seed 7): the labels are those of the fitted head" in fitted
    assert "random weights (seed 7): the labels mean nothing" in random_head
    one = ["--target", "onnxruntime:cpu"]
    fitted, random_head = (here("check", b, *one).stdout for b in (wired_bundle, with_random_head))
    assert "random weights under a fitted head: the labels are its own" in fitted
    assert "random weights: judged at the taps only, the labels mean nothing" in random_head
    found = json.loads(here("check", with_random_head, *one, "--json").stdout)
    assert (found["random_weights"], found["passed"]) == (True, True)
    assert all(stage["kl"] is None and stage["flips"] == [] for stage in found["stages"])


def test_a_bundle_that_was_just_built_holds_on_its_own_golden_tensors(here: Cli, wired_bundle: Path) -> None:
    """Its gate passed at the build, on more photographs; fewer of them allow more, not less."""
    found = json.loads(here("check", wired_bundle, "--json").stdout)
    assert {stage["stage"]: stage["reasons"] for stage in found["stages"]} == {
        f"{e.target} {e.precision}": [] for e in Bundle.open(wired_bundle).manifest.engines
    }


def test_labels_of_a_fitted_head_count_and_those_of_a_random_one_do_not(wired_bundle: Path) -> None:
    """Every photograph gets another label inside the scores' tolerance: a gate of decisions must see that."""
    fitted = Bundle.open(wired_bundle).manifest
    assert decides(fitted)
    assert not decides(all_random(fitted))
    taps = {t.name: np.ones((4, t.width), np.float32) for t in fitted.taps}
    taps["scores"] = np.array([[0.52, 0.48]] * 4, np.float32)
    batch = PreparedBatch(as_photographs([Path(f"{i}.png") for i in range(4)]), {}, {"x": np.zeros((4, 1))})
    reference = Reference("torch", "", list(fitted.labels), lambda picture: {}, lambda inputs: {})

    def swapped(inputs: dict[str, Any]) -> dict[str, Any]:
        count = len(inputs["x"])
        return {n: a[:count, ::-1] if n == "scores" else a[:count] for n, a in taps.items()}

    for manifest, passes in ((fitted, False), (all_random(fitted), True)):
        comparison = comparison_of("candidate", reference, manifest, Precision.BF16)
        parity = judge(comparison, Judged([(batch, taps)]), swapped, 4)
        assert parity.passed is passes, parity.reasons
        assert parity.reasons == ([] if passes else ["labels: 4 of 4 flip, allowed 1 %"])
        assert len(parity.flips) == (0 if passes else 4)


# Another machine


def test_weights_that_come_out_differently_here_are_no_reference(
    here: Cli, wired_bundle: Path, wired_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_reference(Bundle.open(wired_bundle)).name == "torch"
    from vsa_rt.export.checkpoint import hash_state as real

    monkeypatch.setattr(random_weights, "hash_state", lambda module: real(module)[::-1])
    found = find_reference(Bundle.open(wired_bundle))
    assert found.name == "onnx"
    assert "random weights of 'r' come out differently on this machine" in found.why
    one = ["--data", wired_data, "--target", "onnxruntime:cpu"]
    done = here("check", wired_bundle, *one, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["reference"], said["passed"]) == ("onnx", True)
    assert "come out differently on this machine" in said["why"]
    # Whoever names weights wants torch and nothing else.
    weights = wired_bundle / "head.safetensors"
    with pytest.raises(CheckpointAbsent, match="come out differently"):
        find_reference(Bundle.open(wired_bundle), {"head": weights})
    fails(here("check", wired_bundle, *one, "--weights", f"head={weights}"), 2, "come out differently")
