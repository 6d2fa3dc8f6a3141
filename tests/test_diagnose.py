"""What doctor says of precisions, by the speeds that it measured and by nothing else."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vsa_rt.bench import clock
from vsa_rt.bench.layer_kinds import kind_of_word
from vsa_rt.bench.probe import CHANNELS, LAYERS, PROBED, SIZE, probe_graph
from vsa_rt.contracts import Precision, Target, TensorSpec
from vsa_rt.doctor import describe_machine
from vsa_rt.engines import table
from vsa_rt.engines.backend import OpenOptions
from vsa_rt.engines.compiling import CompileOptions, Source
from vsa_rt.pipeline import diagnose

if TYPE_CHECKING:
    import subprocess

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
OPENVINO = Target("openvino", "cpu")


def test_a_precision_that_is_no_faster_will_not_pay() -> None:
    assert diagnose.pays("openvino:cpu", Precision.INT8, 0.9) == (
        "int8 will not pay on openvino:cpu here: 0.90 of fp32's speed on convolutions."
    )
    assert diagnose.pays("openvino:cpu", Precision.BF16, 1.19) == (
        "bf16 will not pay on openvino:cpu here: only 1.19 times fp32's speed on convolutions, "
        "and a network gains less."
    )
    assert diagnose.pays("openvino:cpu", Precision.BF16, 4.64) == (
        "bf16 pays on openvino:cpu: 4.6 times fp32's speed on convolutions."
    )


@pytest.mark.parametrize("precision", [p for p in PROBED if p is not Precision.FP32])
def test_each_precision_pays_from_its_own_bound_on(precision: Precision) -> None:
    bound = diagnose.PAYS[precision]
    assert "will not pay" in diagnose.pays("x:y", precision, bound - 0.01)
    assert " pays " in diagnose.pays("x:y", precision, bound)


def test_int8_does_not_pay_at_what_a_processor_without_vnni_gives() -> None:
    """64 products take vpmaddubsw, vpmaddwd and vpaddd there, and four fused multiply-adds in fp32."""
    assert "will not pay" in diagnose.pays("openvino:cpu", Precision.INT8, 4 / 3)
    assert " pays " in diagnose.pays("openvino:cpu", Precision.INT8, 4.0)


def plant(monkeypatch: pytest.MonkeyPatch, speeds: list[diagnose.Speed]) -> None:
    """Let every measurement say this."""
    monkeypatch.setattr(diagnose, "_measure", lambda target: speeds)


FAST = diagnose.Speed("fp32", 400.0, 1.0, "", 1.0)


def test_advice_follows_planted_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="a target has to be usable for advice on it")
    plant(
        monkeypatch,
        [FAST, diagnose.Speed("bf16", 360.0, 1.0, "", 0.9), diagnose.Speed("int8", 1600.0, 1.0, "", 4.0)],
    )
    advice = diagnose.diagnose().advice
    assert "bf16 will not pay on openvino:cpu here: 0.90 of fp32's speed on convolutions." in advice
    assert "int8 pays on openvino:cpu: 4.0 times fp32's speed on convolutions." in advice
    assert not any(line.startswith("fp32") for line in advice)


def test_paying_has_what_runs_below_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(
        monkeypatch,
        [FAST, diagnose.Speed("bf16", 900.0, 1.0, "", 2.25), diagnose.Speed("int8", None, None, "refused")],
    )
    assert diagnose.paying(OPENVINO) == {Precision.BF16: 2.25}


def test_a_speed_is_the_median_of_the_pairs_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="the probes are opened with it")

    def measure(calls: dict[str, object], rounds: int) -> dict[str, list[float]]:
        # The medians are 10 and 4; that of the pairs is 2.
        return {name: [8.0, 10.0, 30.0] if name == "fp32" else [4.0, 10.0, 4.0] for name in calls}

    monkeypatch.setattr(clock, "measure", measure)
    found = diagnose.paying(OPENVINO)
    assert found
    assert set(found.values()) == {2.0}


def test_every_probe_that_ships_is_the_one_that_is_made() -> None:
    pytest.importorskip("onnx", reason="the probes are made with it")
    folder = Path(str(table.__file__)).parent
    assert {p.name for p in folder.glob("probe.*.onnx")} == {f"probe.{p}.onnx" for p in PROBED}
    for precision in PROBED:
        assert (folder / f"probe.{precision}.onnx").read_bytes() == probe_graph(precision)


def test_openvino_runs_the_probe_of_int8_in_bytes() -> None:
    """Its own counters say so; weights that it folded to fp32 first would be measured as fp32."""
    pytest.importorskip("openvino", reason="its convolutions are looked at")
    backend = table.backend("openvino")
    with tempfile.TemporaryDirectory() as folder:
        source = Source(probe_graph(Precision.INT8))
        made = backend.build(source, Path(folder), "cpu", CompileOptions(4))
        files = [(Path(folder) / name).read_bytes() for name in made.files]
    inputs = [TensorSpec("image", "float32", (None, CHANNELS, SIZE, SIZE))]
    outputs = [TensorSpec("features", "float32", (None, CHANNELS))]
    profiler = backend.profiler(files, inputs, outputs, OpenOptions(max_batch=4, threads=1))
    try:
        profiler.run({"image": np.zeros((4, CHANNELS, SIZE, SIZE), np.float32)})
        profiler.collect()
    finally:
        layers = profiler.finish()
    ran = [layer.precision for layer in layers if kind_of_word(layer.kind) == "convolution"]
    assert len(ran) == LAYERS
    assert set(ran) <= {"int8", "uint8"}


def test_onnxruntime_takes_the_probe_of_int8() -> None:
    pytest.importorskip("onnxruntime", reason="it opens the probe")
    diagnose._open(Target("onnxruntime", "cpu"), Precision.INT8).close()


@pytest.mark.skipif(
    not any("BF16" in words for words in describe_machine().instruction_sets),
    reason="the processor has no bf16 instructions to hide",
)
def test_doctor_finds_out_that_bf16_does_not_pay_where_its_instructions_are_hidden(vsa: Cli) -> None:
    """The library's list of capabilities still names them: only a measurement tells."""
    pytest.importorskip("openvino", reason="its convolutions are measured")
    done = vsa("doctor", "--json", env={"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"})
    found = json.loads(done.stdout)
    [target] = [t for t in found["targets"] if t["target"] == "openvino:cpu"]
    [speed] = [s for s in target["speeds"] if s["precision"] == "bf16"]
    assert speed["times"] < 1, "emulated bf16 was measured five times slower than fp32"
    assert any(line.startswith("bf16 will not pay on openvino:cpu here") for line in found["advice"])
