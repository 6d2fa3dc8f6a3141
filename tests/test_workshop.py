"""The workshop where memory is short: nothing that was compiled is lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vsa_rt.contracts import Precision, Target
from vsa_rt.errors import EnvironmentUnusable
from vsa_rt.pipeline.build import BuildOptions, build
from vsa_rt.pipeline.precision.workshop import Workshop

CPU = Target("onnxruntime", "cpu")


@pytest.fixture
def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two engines cannot be open at once where they are measured; how many were asked for, call by call."""
    honest = Workshop._side_by_side
    asked: list[int] = []

    def limited(self: Workshop, engines: Sequence[Any], batch: int, seconds: float) -> Any:
        asked.append(len(engines))
        if len(engines) > 1:
            raise EnvironmentUnusable("out of memory")
        return honest(self, engines, batch, seconds)

    monkeypatch.setattr(Workshop, "_side_by_side", limited)
    return asked


def test_engines_that_do_not_fit_beside_each_other_are_measured_one_after_the_other(
    tiny_bundle: Path, toy_data: Path, tmp_path: Path, short_of_memory: list[int]
) -> None:
    said: list[str] = []
    targets = [CPU, Target("openvino", "cpu")]
    options = BuildOptions(
        data=toy_data, targets=targets, precision=Precision.FP32, max_batch=1, progress=said.append
    )
    manifest = build(str(tiny_bundle), tmp_path / "b", options)
    assert all(e.latency_ms for e in manifest.engines)
    assert short_of_memory == [2, 1, 1]
    assert any(line.startswith("warning: engines are measured one after the other") for line in said)


def test_an_engine_that_cannot_be_opened_beside_itself_stays_undivided(
    tiny_bundle: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Workshop, built: Any) -> Any:
        raise EnvironmentUnusable("out of memory")

    monkeypatch.setattr(Workshop, "_faster", full)
    said: list[str] = []
    options = BuildOptions(
        data=toy_data, targets=[CPU], precision=Precision.FP32, max_batch=1, progress=said.append
    )
    manifest = build(str(tiny_bundle), tmp_path / "b", options)
    assert manifest.engines[0].division == {}
    assert any("stays undivided: out of memory" in line for line in said)
