"""What is computed once keeps its place: who reads it, what stays exact behind it, and what gates were run on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vsa_rt.bundle import Bundle
from vsa_rt.contracts import Resample
from vsa_rt.runtime.resample import effective

reason = "ensembles are torch modules"
torch = pytest.importorskip("torch", reason=reason)
onnx = pytest.importorskip("onnx", reason="graphs are ONNX")
pytest.importorskip("timm", reason="the encoder is a small network of timm")
pytest.importorskip("safetensors", reason="checkpoints are written as safetensors")
from safetensors.torch import save_file

from vsa_rt.contracts import Precision
from vsa_rt.export.ensemble import LoadedEnsemble, load_ensemble
from vsa_rt.export.graph import graph_from_ensemble
from vsa_rt.export.lowering.lower import lower
from vsa_rt.plan import Plan
from vsa_rt.recipe_file import read_recipe

RECIPE = """\
schema = 1
name = "twins"
task = "binary"
labels = ["a", "b"]

[[backbones]]
name = "one"
architecture = "timm:test_resnet"

[[backbones]]
name = "twin"
architecture = "timm:test_resnet"

[[backbones]]
name = "pca"
architecture = "youtube8m-pca"
reads = "twin"

[head]
kind = "linear"
features = ["one", "pca"]
"""


@pytest.fixture
def twins(tmp_path: Path) -> LoadedEnsemble:
    """A PCA over a backbone that is computed under another one's name."""
    import timm

    network = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    save_file(network.state_dict(), tmp_path / "same.safetensors")
    (tmp_path / "twins.toml").write_text(RECIPE, encoding="utf-8")
    files = dict.fromkeys(("one", "twin"), tmp_path / "same.safetensors")
    return load_ensemble(read_recipe(tmp_path / "twins.toml"), tmp_path, files, random_seed=3)


def test_a_tap_says_what_it_reads_under_the_name_that_is_computed(twins: LoadedEnsemble) -> None:
    found = {t.name: t.reads for t in twins.module.taps if t.kind == "backbone"}
    assert found == {"one": "", "pca": "one"}


def test_a_pca_behind_a_shared_backbone_stays_in_float32(twins: LoadedEnsemble) -> None:
    model = graph_from_ensemble(twins.module)
    taps = {t.name: t.reads for t in twins.module.taps if t.kind == "backbone"}
    lowered = lower(model, Plan.uniform(taps, Precision.BF16), {"pca": taps["pca"]})
    low = {t.name for t in lowered.graph.initializer if t.data_type == onnx.TensorProto.BFLOAT16}
    products = [n for n in lowered.graph.node if n.op_type == "MatMul"]
    assert products
    assert not any(low.intersection(n.input) for n in products)
    everything = lower(model, Plan.uniform(taps, Precision.BF16))
    low = {t.name for t in everything.graph.initializer if t.data_type == onnx.TensorProto.BFLOAT16}
    assert any(low.intersection(n.input) for n in everything.graph.node if n.op_type == "MatMul")


def test_a_bundle_says_on_how_many_stand_ins_its_gates_ran(
    wired_bundle: Path, wired_recipe: Path, toy_data: Path, tmp_path: Path
) -> None:
    from vsa_rt.pipeline.export import ExportOptions, export

    pytest.importorskip("onnxruntime", reason="the export is compared by ONNX Runtime")
    given = Bundle.open(wired_bundle).manifest
    assert {gate.stand_ins for gate in given.gates} == {0}
    head = {"head": wired_recipe.parent / "head.safetensors"}
    options = ExportOptions(data=toy_data, random_seed=7, weights=head, max_batch=2)
    made = export(read_recipe(wired_recipe), wired_recipe.parent, tmp_path / "out", options)
    assert [(gate.stand_ins, gate.images) for gate in made.gates] == [(12, 12)]


def test_photographs_that_cannot_be_read_are_counted(
    here: Any, tiny_recipe: Path, toy_data: Path, tmp_path: Path
) -> None:
    import shutil

    pytest.importorskip("onnxruntime", reason="the export is compared by ONNX Runtime")
    data = Path(shutil.copytree(toy_data, tmp_path / "data"))
    (data / "dark" / "broken.png").write_bytes(b"no picture")
    done = here("export", tiny_recipe, "--data", data, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "on 12 images, 1 could not be read" in done.stdout


@pytest.mark.parametrize(
    ("kernels", "mode"),
    [
        (["bilinear", "bicubic"], Resample.FAST),
        (["bilinear", "opencv-bilinear"], Resample.EXACT),
        (["tf-bilinear"], Resample.EXACT),
        ([], Resample.FAST),
    ],
)
def test_fast_is_fast_only_where_it_changes_something(kernels: list[str], mode: Resample) -> None:
    assert effective(Resample.FAST, kernels) is mode
    assert effective(Resample.EXACT, kernels) is Resample.EXACT


def test_a_tap_of_tiny_numbers_can_fail() -> None:
    from vsa_rt.bench.parity import TOLERANCES, Comparison
    from vsa_rt.contracts import Precision

    reference = np.full((4, 100), 4e-6, np.float32)
    wrong = reference.copy()
    wrong[:, :50] *= 2
    wrong[:, 50:] = 0
    for candidate, passes in ((reference, True), (wrong, False)):
        comparison = Comparison("x", "y", TOLERANCES[Precision.FP32])
        comparison.add_taps(list("abcd"), {"tap": reference}, {"tap": candidate})
        assert comparison.result().passed is passes


def test_a_tap_that_is_zero_must_be_zero() -> None:
    from vsa_rt.bench.parity import TOLERANCES, Comparison
    from vsa_rt.contracts import Precision

    zeros = np.zeros((2, 3), np.float32)
    for candidate, passes in ((zeros, True), (zeros + 1e-9, False)):
        comparison = Comparison("x", "y", TOLERANCES[Precision.FP32])
        comparison.add_taps(["a", "b"], {"tap": zeros}, {"tap": candidate})
        assert comparison.result().passed is passes


def test_a_ready_tensor_must_be_the_same_whatever_the_resample() -> None:
    """Fast resizes may move pixels by levels; a box has nothing to do with them."""
    from vsa_rt.bench.parity import Comparison
    from vsa_rt.contracts import Precision
    from vsa_rt.pipeline.gate import tolerance_for

    boxes = np.full((2, 3, 4), 0.5, np.float32)
    for candidate, passes in ((boxes, True), (boxes + np.float32(0.01), False)):
        comparison = Comparison("x", "y", tolerance_for(Precision.FP32, Resample.FAST))
        comparison.add_inputs(["a", "b"], {"boxes": boxes}, {"boxes": candidate})
        comparison.add_taps(["a", "b"], {"t": boxes[:, 0]}, {"t": boxes[:, 0]})
        assert comparison.result().passed is passes
