"""Object regions go through R's own network beside the image, whichever crops it takes of the image."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

reason = "ensembles are torch modules"
torch = pytest.importorskip("torch", reason=reason)
pytest.importorskip("timm", reason="backbones are loaded beside timm's")
pytest.importorskip("onnxscript", reason="torch exports through onnxscript")
pytest.importorskip("onnxruntime", reason="graphs are run by ONNX Runtime")

from vsa_rt.engines.executor import GraphExecutor
from vsa_rt.export.ensemble import load_ensemble
from vsa_rt.export.graph import graph_from_ensemble
from vsa_rt.export.networks import resnet152v2
from vsa_rt.recipe_file import read_recipe

RECIPE = """\
schema = 1
name = "regions"
task = "binary"
labels = ["a", "b"]

[[backbones]]
name = "r"
architecture = "resnet152-v2"
options = {{ crops = "{crops}" }}

[[backbones]]
name = "s"
architecture = "dual-encoding"
reads = "r"

[[backbones]]
name = "g"
architecture = "object-graph"
reads = "r"
options = {{ objects = "{objects}", count = 5, frame = 96 }}

[head]
kind = "moe"
features = ["r", "s", "g"]
hidden = [8]
"""


@pytest.mark.parametrize("objects", ["boxes", "grid"])
@pytest.mark.parametrize("crops", ["center", "ten"])
def test_one_trunk_encodes_image_and_regions(
    crops: str, objects: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thin network of the same code; its convolutions stand in the graph once."""
    real = resnet152v2.ResNet152V2
    thin = partial(real, units=(1, 1, 1, 1), widths=(8, 16, 32, 64), size=56)
    monkeypatch.setattr(resnet152v2, "ResNet152V2", thin)
    path = tmp_path / "regions.toml"
    path.write_text(RECIPE.format(crops=crops, objects=objects), encoding="utf-8")
    ensemble = load_ensemble(read_recipe(path), tmp_path, random_seed=2)
    trunk = ensemble.module.trunk
    model = graph_from_ensemble(ensemble.module)
    assert (
        sum(n.op_type == "Conv" for n in model.graph.node) == 17
    )  # stem, and 3 and a shortcut in four units
    executor = GraphExecutor(model.SerializeToString())
    rng = np.random.default_rng(0)
    for count in (1, 3):
        inputs = {
            i.name: rng.integers(0, 256, (count, *i.shape), np.uint8)
            for i in ensemble.module.inputs
            if i.resize is not None
        }
        if objects == "boxes":
            corners = rng.uniform(0, 0.5, (count, 5, 2))
            inputs["boxes"] = np.concatenate([corners, corners + 0.4], 2).astype(np.float32)
            inputs["boxes"][:, 3:] = 0
        wanted, found = ensemble.run(inputs), executor.run(inputs)
        for tap, value in wanted.items():
            np.testing.assert_allclose(found[tap], value, rtol=1e-3, atol=1e-4, err_msg=tap)
        # What comes beside the regions is what comes without them.
        given = {name: torch.from_numpy(array) for name, array in inputs.items()}
        with torch.inference_mode():
            alone = trunk(given, {"r"})["r"].numpy()
        np.testing.assert_allclose(alone, wanted["r"], rtol=1e-4, atol=1e-5)
