"""Cold starts: fresh processes of the tiny bundle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vsa_rt.bench import coldstart
from vsa_rt.bench.coldstart import cold_start
from vsa_rt.errors import EnvironmentUnusable, UsageError

TARGET = "onnxruntime:cpu"


def test_every_process_tells_its_times_and_its_own_memory(tiny_bundle: Path) -> None:
    # More than the child needs: a figure that it inherits from this process would be above it.
    ballast = bytearray(b"x") * (600 << 20)
    found = cold_start(tiny_bundle, "a plan", TARGET, "fp32", 1, 2)
    assert len(ballast) == 600 << 20
    assert found.plan == "a plan"
    assert found.capture_ms is None
    for times in (found.process_ms, found.load_ms, found.first_ms, found.second_ms):
        assert len(times) == 2
        assert all(t > 0 for t in times)
    assert len(found.peak_rss_mib) == 2
    assert all(20 < mib < 600 for mib in found.peak_rss_mib)


def test_the_fresh_process_loads_neither_torch_nor_onnx(tiny_bundle: Path) -> None:
    code = coldstart._PROGRAM + (
        "; import sys; print(*sorted({'torch', 'onnx', 'timm', 'sklearn', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_bundle), "--target", TARGET, "--threads", "1"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[0] == "ready"
    assert done.stdout.splitlines()[-1] == "onnxruntime"


def test_what_the_load_imports_is_not_imported_before_it() -> None:
    code = (
        "import vsa_rt, sys; before = set(sys.modules); import vsa_rt.bench.coldstart, vsa_rt.bench.clock;"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before} & {'numpy', 'msgspec', 'PIL'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_process_that_fails_passes_its_message_on(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentUnusable, match=r"cold start of a plan: .*exit code 1: .*not a bundle"):
        cold_start(tmp_path, "a plan", None, None, 1, 1)


def test_a_process_that_cannot_even_start_passes_its_message_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coldstart, "_PROGRAM", "raise RuntimeError('planted')")
    with pytest.raises(EnvironmentUnusable, match="RuntimeError: planted"):
        cold_start(tmp_path, "a plan", None, None, 1, 1)


def test_a_process_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coldstart, "_PROGRAM", "print('ready', flush=True); import time; time.sleep(600)")
    monkeypatch.setattr(coldstart, "_PATIENCE", 0.5)
    with pytest.raises(EnvironmentUnusable, match=r"no answer within 0\.5 s"):
        cold_start(tmp_path, "a plan", None, None, 1, 1)


def test_no_process_is_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected at least 1"):
        cold_start(tmp_path, "a plan", None, None, 1, 0)
