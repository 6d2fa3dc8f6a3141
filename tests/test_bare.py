"""The gap to the backend's own bare call and to its own program."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vsa_rt
from vsa_rt.bench import bare, clock
from vsa_rt.bench.bare import (
    BARE,
    bare_call,
    bare_gaps,
    benchmark_app_options,
    find_tool,
    read_benchmark_app,
    request_gap,
    tool_gap,
)
from vsa_rt.bench.candidate import Tensors
from vsa_rt.bench.workload import from_golden
from vsa_rt.bundle import Bundle
from vsa_rt.errors import EnvironmentUnusable
from vsa_rt.runtime.fused import Runtime

#: What benchmark_app of OpenVINO 2026.4.1 wrote with -json_stats, its options left out.
REPORT = (
    b'{"cmd_options": {}, "configuration_setup": {"topology": "Model1", "API": "sync", "batch size": "1"}, '
    b'"execution_results": {"read model time (ms)": "99.22", "compile model time (ms)": "329.82", '
    b'"first inference time (ms)": "26.06", "total execution time (ms)": "2004.74", '
    b'"total number of iterations": "93", "latency (ms)": "19.79", "avg latency": "21.32", '
    b'"min latency": "19.19", "max latency": "41.66", "throughput": "46.39"}}'
)


@pytest.fixture
def inputs(tiny_bundle: Path) -> Tensors:
    return from_golden(Bundle.open(tiny_bundle)).tensors(3)[0]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a program in the place of every tool; its arguments end up in ``arguments.json`` beside it."""

    def install(body: str) -> Path:
        path = tmp_path / "tool"
        lines = [
            f"#!{sys.executable}",
            "import json, pathlib, sys",
            "pathlib.Path(__file__).with_name('arguments.json').write_text(json.dumps(sys.argv[1:]))",
            "folder = pathlib.Path(sys.argv[sys.argv.index('-report_folder') + 1])",
            body,
        ]
        path.write_text("\n".join(lines), encoding="utf-8")
        path.chmod(0o755)
        monkeypatch.setattr(bare, "find_tool", lambda name: path)
        return path

    return install


@pytest.mark.parametrize("target", ["openvino:cpu", "onnxruntime:cpu"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_bare_request_is_measured_beside_the_runtime(tiny_bundle: Path, target: str, batch: int) -> None:
    inputs = from_golden(Bundle.open(tiny_bundle)).tensors(batch)[0]
    with vsa_rt.load(tiny_bundle, target=target, threads=1) as runtime:
        gap = request_gap("plan", runtime, inputs, rounds=10)
    assert (gap.plan, gap.batch, gap.tool, gap.command, gap.pairs) == ("plan", batch, BARE, "", 10)
    assert gap.confidence is not None
    assert gap.confidence >= 0.99
    assert gap.low <= gap.gap_ms <= gap.high
    assert gap.ours_ms > 0
    assert gap.tool_ms > 0


def test_the_gap_is_ours_less_theirs(
    tiny_bundle: Path, inputs: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = {"ours": [3.0 + i for i in range(9)], "tool": [2.0 + i for i in range(9)]}
    monkeypatch.setattr(clock, "measure", lambda calls, rounds: series)
    with vsa_rt.load(tiny_bundle, threads=1) as runtime:
        gap = request_gap("plan", runtime, inputs, rounds=9)
    assert (gap.gap_ms, gap.low, gap.high, gap.ours_ms, gap.tool_ms) == (1.0, 1.0, 1.0, 7.0, 6.0)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_bare_openvino_request_computes_the_same(
    tiny_bundle: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ov = pytest.importorskip("openvino")
    inputs = from_golden(Bundle.open(tiny_bundle)).tensors(batch)[0]
    made = []
    real = ov.CompiledModel.create_infer_request

    def spy(compiled: object) -> object:
        made.append(real(compiled))
        return made[-1]

    with vsa_rt.load(tiny_bundle, target="openvino:cpu", threads=1) as runtime:
        expected = runtime.infer(inputs)["scores"]
        monkeypatch.setattr(ov.CompiledModel, "create_infer_request", spy)
        bare_call(runtime, inputs)()
        rows = [row for request in made for row in request.get_tensor("scores").data.tolist()]
    assert rows == expected.tolist()


def test_an_unknown_backend_has_no_bare_call(tiny_bundle: Path, inputs: Tensors) -> None:
    with vsa_rt.load(tiny_bundle, threads=1) as runtime:
        session, runtime.session = runtime.session, _Foreign()  # type: ignore[assignment]
        try:
            with pytest.raises(EnvironmentUnusable, match="bare call of this backend is not known"):
                bare_call(runtime, inputs)
        finally:
            runtime.session = session


class _Foreign:
    """A session of a backend that nobody knows."""


def test_the_report_of_the_program_is_read() -> None:
    assert read_benchmark_app(REPORT) == 19.79


@pytest.mark.parametrize(
    "report",
    [b"", b"[]", b"{}", b'{"execution_results": {"latency (ms)": "fast"}}', b'{"execution_results": 1}'],
)
def test_another_report_is_refused(report: bytes) -> None:
    with pytest.raises(EnvironmentUnusable, match="its report has another form"):
        read_benchmark_app(report)


def test_the_program_is_told_to_do_the_same(inputs: Tensors) -> None:
    options = benchmark_app_options(inputs, threads=2, seconds=5)
    told = dict(zip(options[::2], options[1::2], strict=True))
    assert told["-nthreads"] == "2"
    assert (told["-nstreams"], told["-hint"], told["-api"]) == ("1", "none", "sync")
    assert told["-infer_precision"] == "f32"
    assert told["-shape"] == ",".join(f"{n}[{','.join(map(str, a.shape))}]" for n, a in inputs.items())
    assert all("[3," in shape for shape in told["-shape"].split("],"))


def open_openvino(bundle: Path) -> Runtime:
    return vsa_rt.load(bundle, target="openvino:cpu", threads=1)


def test_openvinos_own_program_takes_the_engine(tiny_bundle: Path, inputs: Tensors) -> None:
    try:
        find_tool("benchmark_app")
    except EnvironmentUnusable as error:
        pytest.skip(str(error))
    with open_openvino(tiny_bundle) as runtime:
        gap = tool_gap("plan", runtime, tiny_bundle, inputs, threads=1, seconds=1, pairs=1)
        engine = runtime.choice.engine
    assert gap.tool == "benchmark_app"
    assert gap.tool_ms > 0
    assert (gap.pairs, gap.confidence) == (1, None)
    assert gap.command.startswith(f"benchmark_app -m {engine.files[0]} -d CPU ")
    assert str(tiny_bundle) not in gap.command


def test_rounds_of_both_are_pairs(tiny_bundle: Path, inputs: Tensors, program: Callable[[str], Path]) -> None:
    path = program(f"(folder / 'benchmark_report.json').write_bytes({REPORT!r})")
    with open_openvino(tiny_bundle) as runtime:
        gap = tool_gap("plan", runtime, tiny_bundle, inputs, threads=1, seconds=0, pairs=3)
        engine = runtime.choice.engine
    assert (gap.pairs, gap.tool_ms, gap.batch) == (3, 19.79, 3)
    assert gap.gap_ms == pytest.approx(gap.ours_ms - 19.79)
    arguments = json.loads(path.with_name("arguments.json").read_text(encoding="utf-8"))
    assert arguments[:2] == ["-m", str(tiny_bundle / engine.files[0])]
    assert "-json_stats" in arguments


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("sys.exit('the plugin is gone')", r"failed \(1\): the plugin is gone"),
        ("", r"failed \(0\): silent"),
        ("(folder / 'benchmark_report.json').write_text('{}')", "another form"),
    ],
    ids=["it fails", "it writes nothing", "it writes something else"],
)
def test_a_program_that_fails_is_named_with_its_reason(
    body: str, words: str, tiny_bundle: Path, inputs: Tensors, program: Callable[[str], Path]
) -> None:
    program(body)
    with open_openvino(tiny_bundle) as runtime, pytest.raises(EnvironmentUnusable, match=words):
        tool_gap("plan", runtime, tiny_bundle, inputs, threads=1, seconds=0)


def test_a_program_that_cannot_start_is_named(
    tiny_bundle: Path, inputs: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bare, "find_tool", lambda name: tmp_path / "gone")
    with open_openvino(tiny_bundle) as runtime, pytest.raises(EnvironmentUnusable, match="cannot be run"):
        tool_gap("plan", runtime, tiny_bundle, inputs, threads=1, seconds=0)


def test_what_is_not_installed_is_absent_with_its_reason(
    tiny_bundle: Path, inputs: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with vsa_rt.load(tiny_bundle, target="onnxruntime:cpu", threads=1) as runtime:
        found, absent = bare_gaps("plan", runtime, tiny_bundle, inputs, 1, budget=0.1)
    assert [g.tool for g in found] == [BARE]
    assert absent == {
        "onnxruntime_perf_test": "onnxruntime_perf_test is neither beside this Python nor on the path"
    }


def test_a_program_whose_output_nobody_verified_is_not_run(
    tiny_bundle: Path, inputs: Tensors, program: Callable[[str], Path]
) -> None:
    path = program("")
    with vsa_rt.load(tiny_bundle, target="onnxruntime:cpu", threads=1) as runtime:
        _, absent = bare_gaps("plan", runtime, tiny_bundle, inputs, 1, budget=0.1)
    assert "never verified" in absent["onnxruntime_perf_test"]
    assert not path.with_name("arguments.json").exists()


def test_a_program_beside_python_goes_before_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(shutil, "which", lambda name: f"/elsewhere/{name}")
    assert find_tool("benchmark_app") == Path("/elsewhere/benchmark_app")
    (tmp_path / "benchmark_app").touch()
    assert find_tool("benchmark_app") == tmp_path / "benchmark_app"
