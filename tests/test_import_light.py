"""A machine that only runs bundles needs numpy, Pillow, typer and one engine library, and loads nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = [
    "torch",
    "onnx",
    "timm",
    "sklearn",
    "skimage",
    "openvino",
    "onnxruntime",
    "cv2",
    "tensorrt",
    "tensorrt_rtx",
]
#: Runs in a fresh process before anything else: these modules cannot be found.
BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {names!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
        return None
sys.meta_path.insert(0, Blocked())
"""


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def command(*arguments: str) -> str:
    return (
        f"import sys; sys.argv = ['vsa-rt', *{list(arguments)!r}]\n"
        "from vsa_rt.cli import main\n"
        "try:\n    main()\nexcept SystemExit as leave:\n    assert not leave.code, leave.code\n"
    )


@pytest.mark.parametrize(
    "code",
    [
        "import vsa_rt",
        "import vsa_rt.runtime",
        "import vsa_rt.runtime.load",
        "import vsa_rt\nvsa_rt.load",
        command("--help"),
        command("recipes"),
        command("recipes", "quickstart"),
        command("run", "--help"),
    ],
    ids=["vsa_rt", "runtime", "runtime.load", "load", "--help", "recipes", "recipes-one", "run--help"],
)
def test_it_imports_nothing_heavy(code: str) -> None:
    out = fresh(f"{code}\nimport sys\nprint()\nprint(*sorted(set(sys.modules) & set({HEAVY!r})))")
    assert out.splitlines()[-1].split() == []


def test_the_block_of_these_tests_blocks() -> None:
    code = BLOCK.format(names=["timm"]) + "try:\n    import timm\nexcept ImportError as e:\n    print(e.name)"
    assert fresh(code).strip() == "timm"


@pytest.mark.parametrize("target", ["openvino:cpu", "onnxruntime:cpu"])
def test_a_bundle_runs_with_one_engine_library_alone(tiny_bundle: Path, toy_data: Path, target: str) -> None:
    library = target.partition(":")[0]
    names = [n for n in [*HEAVY, "safetensors", "onnxscript", "ml_dtypes", "torchvision"] if n != library]
    picture = str(toy_data / "bright" / "coffee.png")
    code = BLOCK.format(names=names) + (
        "import json, vsa_rt\n"
        f"with vsa_rt.load({str(tiny_bundle)!r}) as rt:\n"
        f"    [said] = rt([{picture!r}])\n"
        "print(json.dumps([rt.choice.engine.target, said.label, said.scores['bright']]))"
    )
    used, label, score = json.loads(fresh(code).splitlines()[-1])
    assert (used, label) == (target, "bright")
    assert score > 0.5


def test_without_any_engine_library_the_error_says_what_to_install(tiny_bundle: Path) -> None:
    code = BLOCK.format(names=HEAVY) + (
        "import vsa_rt\n"
        f"try:\n    vsa_rt.load({str(tiny_bundle)!r})\n"
        "except vsa_rt.VsaError as error:\n    print(error.exit_code, error)"
    )
    out = fresh(code)
    assert out.startswith("3 ")
    assert "vsa-rt[openvino]" in out
    assert "vsa-rt[onnxruntime]" in out


def test_building_without_torch_says_what_to_install(tiny_recipe: Path, tmp_path: Path) -> None:
    code = BLOCK.format(names=["torch", "timm", "onnx"]) + (
        f"import sys; sys.argv = ['vsa-rt', 'build', {str(tiny_recipe)!r}, '-o', {str(tmp_path / 'b')!r}]\n"
        "from vsa_rt.cli import main\n"
        "try:\n    main()\nexcept SystemExit as leave:\n    print(leave.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "3"
    assert "vsa-rt[export]" in done.stderr
    assert not list(tmp_path.iterdir())


def test_fitting_without_scikit_learn_says_what_to_install(tiny_recipe: Path, toy_data: Path) -> None:
    arguments = ["vsa-rt", "fit", str(tiny_recipe), "--data", str(toy_data), "-o", "never.safetensors"]
    code = BLOCK.format(names=["sklearn"]) + (
        f"import sys; sys.argv = {arguments!r}\n"
        "from vsa_rt.cli import main\n"
        "try:\n    main()\nexcept SystemExit as leave:\n    print(leave.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "3"
    assert "vsa-rt[export]" in done.stderr


def test_a_graph_is_lowered_and_cut_without_torch() -> None:
    """A Jetson builds from an export: PyTorch is gigabytes of nothing there."""
    pytest.importorskip("onnx", reason="graphs are lowered with onnx")
    pytest.importorskip("onnxruntime", reason="ranges are measured with it")
    fresh(
        BLOCK.format(names=["torch", "timm", "torchvision"])
        + """
import vsa_rt.export.foreign, vsa_rt.export.lowering.lower, vsa_rt.export.lowering.hazards, vsa_rt.export.partition
import vsa_rt.pipeline.build, vsa_rt.pipeline.precision.half_plans
"""
    )
