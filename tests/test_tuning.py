"""The options of ``build`` that only TensorRT has."""

from __future__ import annotations

from pathlib import Path

import pytest

from vsa_rt.cli.tuning import Fusion, Hardware, tuning_of
from vsa_rt.contracts import Target
from vsa_rt.engines.compiling import Tuning
from vsa_rt.errors import UsageError

RTX, CPU = Target("tensorrt-rtx", "sm_89"), Target("openvino", "cpu")
NOTHING = {"fusion": None, "aux_streams": None, "strip": False, "workspace": None}


def test_without_options_nothing_is_tuned() -> None:
    assert tuning_of(NOTHING, [CPU]) == Tuning() == tuning_of(NOTHING, [RTX])


def test_every_option_becomes_the_compiler_s() -> None:
    given = {
        "fusion": Fusion.STREAMS,
        "min_batch": 2,
        "opt_batch": 4,
        "timing_cache": Path("cache.bin"),
        "aux_streams": 0,
        "workspace": 0.5,
        "level": 0,
        "version_compatible": True,
        "hardware": Hardware.SAME_CAPABILITY,
        "strip": True,
    }
    assert tuning_of(given, [CPU, RTX]) == Tuning(
        min_batch=2,
        opt_batch=4,
        fusion="streams",
        timing_cache=Path("cache.bin"),
        aux_streams=0,
        workspace=2**29,
        level=0,
        version_compatible=True,
        hardware="same capability",
        strip=True,
    )


def test_an_option_that_nothing_would_read_is_refused() -> None:
    with pytest.raises(UsageError, match="--optimisation-level: only TensorRT has that"):
        tuning_of({**NOTHING, "level": 0}, [CPU])
    with pytest.raises(UsageError, match="--strip-weights"):
        tuning_of({**NOTHING, "strip": True}, [CPU])


def test_where_no_target_is_named_the_machine_may_have_one_of_tensorrt_s() -> None:
    assert tuning_of({**NOTHING, "level": 5}, []).level == 5


@pytest.mark.parametrize(
    ("built", "asked", "covers"),
    [
        ("tensorrt-rtx:sm_86+sm_89", "tensorrt-rtx:sm_89", True),
        ("tensorrt-rtx:sm_86+sm_89", "tensorrt-rtx:sm_86+sm_89", True),
        ("tensorrt-rtx:sm_86+sm_89", "tensorrt-rtx:sm_8", False),
        ("tensorrt-rtx:sm_86+sm_89", "tensorrt:sm_89", False),
        ("openvino:cpu", "openvino:cpu", True),
        ("openvino:cpu", "onnxruntime:cpu", False),
    ],
)
def test_an_engine_for_several_devices_is_one_for_each(built: str, asked: str, covers: bool) -> None:
    assert Target.parse(built).covers(Target.parse(asked)) is covers
