"""`vsa-rt build` and `vsa-rt export`: recipes, exports and bare ONNX files."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from outcome import fails
from PIL import Image

import vsa_rt
from vsa_rt.bundle import Bundle
from vsa_rt.errors import UsageError

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).resolve().parents[1]
KEYS = ["path", "label", "labels", "scores", "scores_kind", "error"]
COMMANDS = ["doctor", "recipes", "fit", "export", "build", "inspect", "run", "check"]


# Build and export


@pytest.fixture(scope="module")
def exported(tiny_recipe: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe, exported and not built."""
    for library in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(library, reason=f"exporting the tiny recipe needs {library}")
    from vsa_rt.pipeline.export import ExportOptions, export
    from vsa_rt.recipe_file import read_recipe

    out = tmp_path_factory.mktemp("exported") / "tiny"
    export(read_recipe(tiny_recipe), tiny_recipe.parent, out, ExportOptions(data=toy_data, max_batch=4))
    return out


def test_an_exported_directory_is_built(
    here: Cli, exported: Path, tiny_bundle: Path, toy_data: Path, tmp_path: Path
) -> None:
    done = here("build", exported, "-o", tmp_path / "b", "--data", toy_data, "--max-batch", "2", "--json")
    assert done.returncode == 0, done
    manifest = Bundle.open(tmp_path / "b").manifest
    assert manifest.max_batch == 2
    assert {e.folder for e in manifest.engines} == {
        e.folder for e in Bundle.open(tiny_bundle).manifest.engines
    }
    with vsa_rt.load(tmp_path / "b", precision="fp32") as rt:
        assert [
            r.label for r in rt(sorted((toy_data / "dark").iterdir())) if not isinstance(r, vsa_rt.ItemError)
        ] == ["dark"] * 6
    again = here(
        "build", tmp_path / "b", "-o", tmp_path / "b", "--target", "onnxruntime:cpu", "--data", toy_data
    )
    assert again.returncode == 0
    assert [e.target for e in Bundle.open(tmp_path / "b").manifest.engines] == ["onnxruntime:cpu"]
    assert not list(tmp_path.glob(".b.partial*"))


def test_an_exported_directory_is_no_runtime_and_its_check_says_what_it_did(
    here: Cli, exported: Path, toy_data: Path, coffee: Path
) -> None:
    fails(here("run", exported, coffee), 3, "exported but not built")
    fails(here("check", exported), 3, "exported but not built")
    done = here("check", exported, "--data", toy_data, "--json")
    assert done.returncode == 0
    assert [s["stage"] for s in json.loads(done.stdout)["stages"]] == ["onnx"]
    assert "tiny" in here("inspect", exported).stdout


def test_random_weights_are_recorded_and_printed(
    here: Cli, tiny_recipe: Path, toy_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "b"
    done = here(
        "build",
        tiny_recipe,
        "-o",
        out,
        "--random-weights",
        "7",
        "--data",
        toy_data,
        "--target",
        "onnxruntime:cpu",
    )
    assert done.returncode == 0, done.stderr
    assert "random weights (seed 7)" in done.stdout
    assert {c.random_seed for c in Bundle.open(out).manifest.checkpoints.values()} == {7}
    assert "random weights (seed 7)" in here("inspect", out).stdout
    for more in ([], ["--data", toy_data]):
        check = here("check", out, *more)
        assert check.returncode == 0, check.stdout
        assert "random weights" in check.stdout + check.stderr


def test_an_ensemble_of_one_network_is_built(
    here: Cli, tiny_recipe: Path, toy_data: Path, tmp_path: Path
) -> None:
    """And one of two networks that share a resize: either has a single graph input."""
    both = tiny_recipe.read_text(encoding="utf-8").replace("test_resnet", "test_byobnet")
    one = re.sub(r'\[\[backbones\]\]\nname = "other".*?\n\n', "", both, flags=re.DOTALL).replace(
        ', "other"', ""
    )
    for number, text in enumerate((one, both)):
        path = tmp_path / f"{number}.toml"
        path.write_text(text, encoding="utf-8")
        out = tmp_path / f"b{number}"
        more = ["--random-weights", "3", "--data", toy_data, "--target", "onnxruntime:cpu"]
        done = here("build", path, "-o", out, *more)
        assert done.returncode == 0, done.stderr
        assert len(Bundle.open(out).manifest.inputs) == 1


@pytest.mark.parametrize("name", ["mean", "image_160x160", "a_bf16", "relu", "conv2d", "features_2"])
def test_a_backbone_may_be_called_anything_that_a_recipe_allows(
    here: Cli, tiny_recipe: Path, toy_data: Path, tmp_path: Path, name: str
) -> None:
    """Or the recipe is refused; a name never spoils the graph."""
    text = tiny_recipe.read_text(encoding="utf-8")
    text = text.replace('"small"', '"a"').replace('"other"', f'"{name}"')
    path = tmp_path / "named.toml"
    path.write_text(text, encoding="utf-8")
    done = here("export", path, "-o", tmp_path / "e", "--random-weights", "3", "--data", toy_data)
    if done.returncode == 2:
        fails(done, 2, name)
    else:
        assert done.returncode == 0, done
        taps = [t.name for t in Bundle.open(tmp_path / "e").manifest.taps]
        assert taps[:2] == ["a", name]


def test_a_target_that_cannot_be_used_here_exits_with_three(
    here: Cli, tiny_recipe: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vsa_rt.engines import table
    from vsa_rt.engines.backend import Probe
    from vsa_rt.engines.onnxruntime import OnnxRuntime

    gone = Probe(False, reason="onnxruntime is not installed", install="pip install 'vsa-rt[onnxruntime]'")
    monkeypatch.setattr(OnnxRuntime, "probe", lambda self, device: gone)
    assert not table.probe(next(t for t in table.targets() if t.backend == "onnxruntime")).usable
    out = tmp_path / "b"
    fails(
        here("build", tiny_recipe, "-o", out, "--data", toy_data, "--target", "onnxruntime:cpu"),
        3,
        "pip install",
    )
    done = here("build", tiny_recipe, "-o", out, "--data", toy_data, "--precision", "fp32")
    assert done.returncode == 0
    manifest = Bundle.open(out).manifest
    assert [e.target for e in manifest.engines] == ["openvino:cpu"]
    assert [(r.target, "pip install" in r.reason) for r in manifest.rejected] == [("onnxruntime:cpu", True)]
    assert "left out: onnxruntime:cpu" in done.stdout


# A bare ONNX file


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody else's small classifier: float NCHW in, features and logits out, an old opset."""
    onnx = pytest.importorskip("onnx", reason="the foreign model is made with onnx")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)) / 5,
        "b": rng.standard_normal(4) / 5,
        "fw": rng.standard_normal((2, 4)),
        "fb": rng.standard_normal(2),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["feat"]),
        helper.make_node("Gemm", ["feat", "fw", "fb"], ["out"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("feat", TensorProto.FLOAT, [1, 4]), helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = tmp_path_factory.mktemp("foreign") / "model.onnx"
    onnx.save(model, path)
    return path


GRAPH = """\
schema = 1
name = "foreign"
task = "binary"
labels = ["no", "yes"]

[graph]
logits = "out"

[[graph.inputs]]
name = "x"
mean = [0.4, 0.5, 0.6]
std = [0.2, 0.3, 0.25]
resize = {height = 32, width = 32, fit = "warp", kernel = "bilinear"}
"""


def test_the_projects_own_graph_builds_without_a_recipe(
    here: Cli, tiny_bundle: Path, toy_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "b"
    done = here("build", tiny_bundle / "graph.onnx", "-o", out, "--data", toy_data, "--max-batch", "4")
    assert done.returncode == 0, done.stderr
    manifest = Bundle.open(out).manifest
    assert (manifest.recipe, manifest.labels) == (None, ["dark", "bright"])
    picture = toy_data / "bright" / "coffee.png"
    with vsa_rt.load(out, precision="fp32") as one, vsa_rt.load(tiny_bundle, precision="fp32") as other:
        np.testing.assert_allclose(
            one.features([picture])["scores"], other.features([picture])["scores"], atol=1e-5
        )
    check = json.loads(here("check", out, "--data", toy_data, "--json").stdout)
    assert (check["reference"], check["passed"]) == ("onnx", True)
    assert check["why"]


def test_a_foreign_graph_with_a_recipe_gives_labels(
    here: Cli, foreign: Path, coffee: Path, toy_data: Path, tmp_path: Path
) -> None:
    ort = pytest.importorskip("onnxruntime", reason="runs the foreign model as it came")
    recipe = tmp_path / "foreign.toml"
    recipe.write_text(GRAPH, encoding="utf-8")
    out = tmp_path / "b"
    done = here("build", foreign, "-o", out, "--recipe", recipe, "--data", toy_data, "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    with vsa_rt.load(out) as rt:
        [result] = rt([coffee])
        features = rt.features([coffee, coffee])
    assert isinstance(result, vsa_rt.Sentiment)
    with Image.open(coffee) as picture:
        small = picture.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    pixels = (np.asarray(small) / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.25]
    session = ort.InferenceSession(foreign.read_bytes(), providers=["CPUExecutionProvider"])
    [feat, logits] = session.run(["feat", "out"], {"x": pixels.astype(np.float32).transpose(2, 0, 1)[None]})
    scores = np.exp(logits[0] - logits[0].max())
    np.testing.assert_allclose(list(result.scores.values()), scores / scores.sum(), atol=1e-5)
    np.testing.assert_allclose(features["feat"], np.concatenate([feat, feat]), rtol=1e-4, atol=1e-5)
    assert list(result.scores) == ["no", "yes"]


def test_a_foreign_graph_without_a_recipe_takes_ready_tensors(
    here: Cli, foreign: Path, coffee: Path, toy_data: Path, tmp_path: Path
) -> None:
    ort = pytest.importorskip("onnxruntime", reason="runs the foreign model as it came")
    out = tmp_path / "b"
    done = here("build", foreign, "-o", out, "--precision", "fp32", "--max-batch", "4")
    assert done.returncode == 0, done.stderr
    assert "features only" in done.stdout
    x = np.random.default_rng(1).standard_normal((3, 3, 32, 32)).astype(np.float32)
    session = ort.InferenceSession(foreign.read_bytes(), providers=["CPUExecutionProvider"])
    with vsa_rt.load(out) as rt:
        found = rt.infer({"x": x})
        wanted = [session.run(["feat", "out"], {"x": row[None]}) for row in x]
        np.testing.assert_allclose(
            found["feat"], np.concatenate([w[0] for w in wanted]), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(found["out"], np.concatenate([w[1] for w in wanted]), rtol=1e-4, atol=1e-5)
        with pytest.raises(UsageError, match=r"rt\.infer|ready tensors"):
            rt([coffee])
        with pytest.raises(UsageError, match="ready tensors"):
            rt.features([coffee])
    fails(here("run", out, coffee), 2)
    assert here("check", out).returncode == 0
    fails(here("check", out, "--data", toy_data), 2, "without --data")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('logits = "out"', 'logits = "elsewhere"', "graph.logits.*feat, out"),
        ('name = "x"', 'name = "y"', "graph.inputs"),
        ("height = 32", "height = 33", "graph.inputs"),
        ('["no", "yes"]', '["no", "yes", "perhaps"]\n#', "labels|graph.logits"),
        ('logits = "out"', 'logits = "feat"', "labels|graph.logits"),
    ],
)
def test_a_recipe_that_does_not_fit_a_foreign_graph_names_the_key(
    here: Cli, foreign: Path, toy_data: Path, tmp_path: Path, old: str, new: str, says: str
) -> None:
    text = GRAPH.replace(old, new)
    assert text != GRAPH
    if "perhaps" in new:
        text = text.replace('"binary"', '"single-label"')
    recipe = tmp_path / "foreign.toml"
    recipe.write_text(text, encoding="utf-8")
    fails(here("build", foreign, "-o", tmp_path / "b", "--recipe", recipe, "--data", toy_data), 2, says)
    assert not (tmp_path / "b").exists()


def test_a_recipe_of_checkpoints_does_not_fit_a_graph_nor_one_of_a_graph_checkpoints(
    here: Cli, foreign: Path, tiny_recipe: Path, toy_data: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "foreign.toml"
    recipe.write_text(GRAPH, encoding="utf-8")
    out = tmp_path / "b"
    fails(here("build", foreign, "-o", out, "--recipe", tiny_recipe, "--data", toy_data), 2, "graph")
    fails(here("build", recipe, "-o", out, "--data", toy_data), 2, "graph|ONNX")
    fails(here("export", recipe, "-o", out, "--data", toy_data), 2, "graph|ONNX")
    fails(here("fit", recipe, "--data", toy_data, "-o", out), 2)


def test_what_is_no_onnx_file_is_one_line(here: Cli, foreign: Path, tmp_path: Path) -> None:
    whole = foreign.read_bytes()
    path = tmp_path / "bad.onnx"
    for data in (b"", b"rubbish", whole[: len(whole) // 2]):
        path.write_bytes(data)
        fails(here("build", path, "-o", tmp_path / "b"), 2, r"bad\.onnx")


def test_a_graph_whose_weights_lie_in_other_files_is_refused_unread(
    here: Cli, foreign: Path, tmp_path: Path
) -> None:
    import onnx

    secret = tmp_path / "secret"
    secret.write_bytes(bytes(1000))
    model = onnx.load(foreign)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../secret"), ("offset", "0"), ("length", "432")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    path = tmp_path / "external.onnx"
    path.write_bytes(model.SerializeToString())
    fails(here("build", path, "-o", tmp_path / "b"), 2, "another file")
