from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vsa_rt.contracts import Resample, ResizeSpec
from vsa_rt.errors import ItemError
from vsa_rt.runtime import preprocess
from vsa_rt.runtime.preprocess import Preprocessor
from vsa_rt.runtime.resample import resize

Pixels = NDArray[np.uint8]

SIZES = [
    (600, 450),
    (450, 600),
    (600, 600),
    (337, 599),
    (1200, 500),
    (500, 1100),
    (224, 224),
    (61, 90),
    (1, 1),
]


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photograph(height: int, width: int) -> bytes:
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    smooth = (
        np.stack([np.sin(x / 17) + y / 300, np.cos(y / 11) + x / 400, np.sin((x + y) / 23)], -1) * 60 + 128
    )
    file = io.BytesIO()
    Image.fromarray(smooth.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=92)
    return file.getvalue()


def buffers(specs: dict[str, ResizeSpec]) -> dict[str, Pixels]:
    return {name: np.full((spec.height, spec.width, 3), 77, np.uint8) for name, spec in specs.items()}


def spec_of(config: dict[str, Any]) -> ResizeSpec:
    """A timm data config as a resize spec."""
    height, width = config["input_size"][1:]
    kernel: Literal["bicubic", "bilinear"] = config["interpolation"]
    if config["crop_mode"] == "squash" and config["crop_pct"] == 1.0:
        return ResizeSpec(height=height, width=width, fit="warp", kernel=kernel)
    scale = int(height / config["crop_pct"])
    return ResizeSpec(height=height, width=width, fit="shortest", kernel=kernel, scale=scale)


@pytest.mark.parametrize(
    "config",
    [
        {"input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"},
        {"input_size": (3, 240, 240), "interpolation": "bicubic", "crop_pct": 0.882, "crop_mode": "center"},
        {"input_size": (3, 260, 260), "interpolation": "bicubic", "crop_pct": 0.890, "crop_mode": "center"},
        {"input_size": (3, 224, 224), "interpolation": "bilinear", "crop_pct": 0.875, "crop_mode": "center"},
        {"input_size": (3, 299, 299), "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"},
        {"input_size": (3, 288, 288), "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"},
        {"input_size": (3, 224, 224), "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"},
        {"input_size": (3, 96, 96), "interpolation": "bicubic", "crop_pct": 0.5, "crop_mode": "center"},
    ],
    ids=lambda config: (
        f"{config['input_size'][1]}-{config['interpolation']}-{config['crop_pct']}-{config['crop_mode']}"
    ),
)
def test_it_equals_timms_own_transform(config: dict[str, Any]) -> None:
    data = pytest.importorskip("timm.data")
    transforms = pytest.importorskip("torchvision.transforms")
    whole = data.create_transform(**config, mean=(0, 0, 0), std=(1, 1, 1), is_training=False)
    geometry = transforms.Compose(
        [
            step
            for step in whole.transforms
            if type(step).__name__ not in ("MaybeToTensor", "ToTensor", "Normalize")
        ]
    )
    assert 1 <= len(geometry.transforms) <= 2
    specs = {"input": spec_of(config)}
    preprocessor, outputs = Preprocessor(specs), buffers(specs)
    for size in SIZES:
        image = noise(*size)
        preprocessor.write(image, outputs, item="x")
        np.testing.assert_array_equal(
            outputs["input"], np.asarray(geometry(Image.fromarray(image))), err_msg=str(size)
        )


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"])
def test_the_quickstarts_backbones(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    config = timm.get_pretrained_cfg(name).to_dict()
    config = timm.data.resolve_data_config({}, pretrained_cfg=config)
    whole = timm.data.create_transform(**config, is_training=False)
    path = tmp_path / "a.jpg"
    path.write_bytes(photograph(450, 600))
    specs = {"input": spec_of(config)}
    outputs = buffers(specs)
    Preprocessor(specs).write(path, outputs, item="x")
    image: Any = Image.open(path)
    for step in whole.transforms[:2]:
        image = step(image)
    np.testing.assert_array_equal(outputs["input"], np.asarray(image))


WARP = ResizeSpec(height=20, width=30, fit="warp", kernel="bilinear")
SHORTEST = ResizeSpec(height=20, width=30, fit="shortest", kernel="bicubic", scale=32)


def test_inputs_that_share_a_spec_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[ResizeSpec]] = []

    def spy(image: Pixels, targets: list[tuple[ResizeSpec, Pixels]]) -> None:
        calls.append([spec for spec, _ in targets])
        resize(image, targets)

    monkeypatch.setattr(preprocess, "resize", spy)
    specs = {"a": WARP, "b": SHORTEST, "c": WARP, "d": WARP}
    outputs = buffers(specs)
    Preprocessor(specs).write(noise(50, 60), outputs, item="x")
    assert calls == [[WARP, SHORTEST]]
    np.testing.assert_array_equal(outputs["a"], outputs["c"])
    np.testing.assert_array_equal(outputs["a"], outputs["d"])
    assert not np.array_equal(outputs["a"], outputs["b"])


def test_an_array_of_the_final_size_passes_unchanged() -> None:
    image = noise(20, 30)
    outputs = buffers({"a": WARP})
    Preprocessor({"a": WARP}).write(image, outputs, item="x")
    np.testing.assert_array_equal(outputs["a"], image)


def test_rows_of_a_batch_are_written_in_place() -> None:
    batch = np.full((3, 20, 30, 3), 9, np.uint8)
    Preprocessor({"a": WARP}).write(noise(50, 60), {"a": batch[1]}, item="x")
    assert (batch[0] == 9).all()
    assert (batch[2] == 9).all()
    assert not (batch[1] == 9).all()


def test_bad_items_become_item_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    preprocessor, outputs = Preprocessor({"a": SHORTEST}), buffers({"a": SHORTEST})
    with pytest.raises(ItemError, match=r"^item 3: not an image") as caught:
        preprocessor.write(b"nonsense", outputs, item="item 3")
    assert caught.value.item == "item 3"
    with pytest.raises(ItemError, match="too elongated") as caught:
        preprocessor.write(np.zeros((1, 2_000_000, 3), np.uint8), outputs, item="x")
    assert "\n" not in caught.value.reason

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(preprocess, "resize", fail)
    with pytest.raises(ItemError, match="not enough memory to resize it"):
        preprocessor.write(noise(4, 4), outputs, item="x")


def test_mistakes_of_the_caller_are_not_item_errors() -> None:
    preprocessor = Preprocessor({"a": WARP})
    with pytest.raises(KeyError):
        preprocessor.write(noise(4, 4), {}, item="x")
    with pytest.raises(ValueError, match="expected a uint8 target"):
        preprocessor.write(noise(4, 4), {"a": np.zeros((20, 30), np.uint8)}, item="x")


def test_fast_decodes_large_photographs_at_a_fraction() -> None:
    specs = {"a": ResizeSpec(height=56, width=56, fit="shortest", kernel="bicubic", scale=64), "b": WARP}
    exact, fast = Preprocessor(specs), Preprocessor(specs, Resample.FAST)
    large, small = photograph(400, 520), photograph(180, 200)
    for data, same in ((large, False), (small, True)):
        wanted, got = buffers(specs), buffers(specs)
        exact.write(data, wanted, item="x")
        fast.write(data, got, item="x")
        for name in specs:
            difference = np.abs(wanted[name].astype(int) - got[name])
            assert bool(difference.max() == 0) is same
            assert difference.mean() < 2


def test_threads_share_one_preprocessor() -> None:
    specs = {"a": WARP, "b": SHORTEST, "c": SHORTEST}
    preprocessor = Preprocessor(specs)
    sources: list[Any] = [photograph(90 + i, 120) if i % 2 else noise(90 + i, 100, i) for i in range(8)]
    wanted = [buffers(specs) for _ in sources]
    for source, out in zip(sources, wanted, strict=True):
        preprocessor.write(source, out, item="x")
    wrong: list[int] = []

    def work() -> None:
        for index, source in enumerate(sources):
            out = buffers(specs)
            preprocessor.write(source, out, item="x")
            wrong.extend(index for name in specs if not np.array_equal(out[name], wanted[index][name]))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
