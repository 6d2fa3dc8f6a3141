"""Ceilings are of the precision that they name, and floors are what they and the graph's work make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the chains are written with onnx")
pytest.importorskip("ml_dtypes", reason="bfloat16 weights are ml_dtypes'")
from vsa_rt.bench import ceilings as module
from vsa_rt.bench.ceilings import WORK, Kind, ceilings, chain_graph, ran_in
from vsa_rt.bench.cost import HEAD, Graph, Node, read_graph
from vsa_rt.bench.limits import WHOLE, limits
from vsa_rt.bench.records.limits import Ceiling, Layer, Profile
from vsa_rt.bench.records.timing import Plan
from vsa_rt.contracts import Target, TensorSpec
from vsa_rt.engines import table
from vsa_rt.engines.backend import OpenOptions, RawLayer, Tensors
from vsa_rt.engines.compiling import CompileOptions, Source
from vsa_rt.engines.openvino import OpenVino
from vsa_rt.errors import EnvironmentUnusable

OPENVINO = Target("openvino", "cpu")
ORT = Target("onnxruntime", "cpu")
KINDS: list[Kind] = ["convolution", "matmul"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of a few megabytes and the least rounds: these tests look at what is reported, not how fast."""
    monkeypatch.setattr(module, "_COPY_BYTES", 8 << 20)
    monkeypatch.setattr(module, "_last_level_cache", lambda: 0)
    monkeypatch.setattr(module, "_SECONDS", 0.0)


def by_kind(found: Sequence[Ceiling]) -> dict[tuple[str, str], Ceiling]:
    return {(c.kind, c.precision): c for c in found}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_does_the_work_that_its_ceiling_divides_by(kind: Kind, precision: str) -> None:
    work = WORK[kind]
    assert read_graph(chain_graph(kind, precision), work.shape[0]).macs == work.macs


@pytest.mark.parametrize("kind", KINDS)
def test_lower_precisions_compute_the_same_function(kind: Kind, tmp_path: Path) -> None:
    """Weights and scales keep the values in range: a chain of zeros or of clipped values would measure nothing."""
    pytest.importorskip("openvino", reason="the chains are run by OpenVINO")
    shape = WORK[kind].shape
    given = {"x": np.random.default_rng(3).standard_normal(shape, np.float32)}
    made: dict[str, Any] = {}
    for precision in ("fp32", "bf16", "int8"):
        folder = tmp_path / precision
        folder.mkdir()
        backend = table.backend("openvino")
        source = Source(chain_graph(kind, precision))
        names = backend.build(source, folder, "cpu", CompileOptions(shape[0])).files
        session = backend.open(
            [(folder / n).read_bytes() for n in names],
            [TensorSpec("x", "float32", (None, *shape[1:]))],
            [TensorSpec("out", "float32", (None, shape[1]))],
            OpenOptions(max_batch=shape[0], threads=1, first=shape[0]),
        )
        made[precision] = session.slots[0].run(given)["out"].copy().ravel()
        session.close()
    assert made["fp32"].std() > 0.1
    for precision in ("bf16", "int8"):
        assert np.corrcoef(made["fp32"], made[precision])[0, 1] > 0.9, precision


@pytest.mark.usefixtures("quick")
def test_openvino_has_a_ceiling_of_fp32_and_of_every_precision_that_it_really_runs() -> None:
    pytest.importorskip("openvino", reason="the ceilings are OpenVINO's")
    found = ceilings(OPENVINO, threads=1)
    assert [(c.kind, c.precision) for c in found] == [
        *((k, p) for p in ("fp32", "bf16", "int8") for k in KINDS),
        ("copy", "bytes"),
    ]
    for ceiling in found:
        assert ceiling.threads == 1
        if ceiling.precision in ("fp32", "bytes"):
            assert ceiling.value is not None
        if ceiling.value is None:
            assert "the library runs this" in ceiling.note or "refuses" in ceiling.note
        else:
            assert ceiling.value > 0
            assert "interleaved rounds" in ceiling.note
    assert {c.library for c in found} == {"openvino:cpu", "numpy"}
    assert "read and bytes written" in by_kind(found)["copy", "bytes"].note


@pytest.mark.usefixtures("quick")
def test_a_precision_that_the_library_refuses_has_no_ceiling_and_says_why() -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime's CPU kernels know no bf16 convolution")
    found = by_kind(ceilings(ORT, threads=1, precisions=["bf16"]))
    assert found["convolution", "bf16"].value is None
    assert "onnxruntime refuses the graph" in found["convolution", "bf16"].note
    assert found["copy", "bytes"].value is not None


class Pretender(OpenVino):
    """OpenVINO whose counters say that products ran in fp32, as on a processor without the instructions."""

    def profiler(self, *arguments: Any) -> Any:
        inner = super().profiler(*arguments)

        class Counters:
            source = inner.source

            def run(self, inputs: Tensors) -> None:
                inner.run(inputs)

            def collect(self) -> None:
                inner.collect()

            def finish(self) -> list[RawLayer]:
                return [replace(layer, precision="fp32") for layer in inner.finish()]

        return Counters()


@pytest.mark.usefixtures("quick")
def test_a_graph_that_silently_ran_in_another_precision_has_no_ceiling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("openvino", reason="the pretender is OpenVINO underneath")
    monkeypatch.setattr(table, "backend", lambda name: Pretender())
    found = by_kind(ceilings(OPENVINO, threads=1, precisions=["bf16", "fp32"]))
    for kind in KINDS:
        assert found[kind, "bf16"].value is None
        assert "the library runs this bf16 graph in fp32" in found[kind, "bf16"].note
        assert found[kind, "fp32"].value is not None


def test_an_absent_library_is_an_environment_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(EnvironmentUnusable, match="onnxruntime is not installed"):
        ceilings(ORT, threads=1)


@pytest.mark.parametrize(
    ("precision", "found", "expected"),
    [
        ("fp32", ["fp32", "fp32"], True),
        ("int8", ["int8", "uint8"], True),
        ("bf16", ["bf16", "fp32"], False),
        ("int8", ["fp32"], False),
        ("fp32", [""], False),
        ("fp32", [], False),
    ],
)
def test_one_product_in_another_precision_spoils_a_ceiling(
    precision: str, found: list[str], expected: bool
) -> None:
    assert ran_in(precision, found) is expected


def plan(precision: str = "bf16") -> Plan:
    return Plan(
        name="p",
        bundle="b",
        target="openvino:cpu",
        precision=precision,
        achieved=1.0,
        threads=2,
        why="the only one",
    )


def ceiling(
    kind: Literal["convolution", "matmul", "copy"],
    value: float | None,
    precision: str = "bf16",
    library: str = "openvino:cpu",
    threads: int = 2,
    note: str = "",
) -> Ceiling:
    copy = kind == "copy"
    return Ceiling(
        kind=kind,
        precision="bytes" if copy else precision,
        value=value,
        unit="GB/s" if copy else "GMAC/s",
        library="numpy" if copy else library,
        threads=threads,
        note=note,
    )


def node(name: str, inputs: tuple[str, ...], output: str, macs: int) -> Node:
    return Node(
        name=name,
        op="MatMul",
        kind="matmul",
        inputs=inputs,
        outputs=(output,),
        macs=macs,
        nbytes=0,
        folded=False,
    )


#: 400 million multiply-adds in backbone ``a``; 300 MB of weights and 1 million multiply-adds in the head.
GRAPH = Graph(
    nodes={"n": node("n", ("x", "w"), "a", 400_000_000), "m": node("m", ("a", "v"), "scores", 1_000_000)},
    inputs=("x",),
    outputs=("a", "scores"),
    weights={"w": 1_000_000, "v": 300_000_000},
    tensors={"x": 1000, "a": 2000, "scores": 8},
)
PARTS = {"n": "a", "m": HEAD}
CEILINGS = [
    ceiling("convolution", 200.0),
    ceiling("matmul", 150.0),
    ceiling("convolution", 90.0, precision="fp32"),
    ceiling("convolution", 900.0, library="onnxruntime:cpu"),
    ceiling("convolution", 999.0, threads=1),
    ceiling("copy", 50.0),
]


def layers(**ms: float) -> Profile:
    made = [
        Layer(name=part, nodes=[], backbone=part.strip("_"), kind="matmul", precision="bf16", ms=spent)
        for part, spent in ms.items()
    ]
    return Profile(plan="p", batch=1, source="counters", calls=1, call_ms=99.0, layers=made)


def test_a_floor_is_the_longer_of_compute_and_memory() -> None:
    found = limits(plan(), 1, GRAPH, PARTS, CEILINGS, call_ms=20.0, profile=layers(a=6.0, head=18.0))
    a, head, whole = found.floors
    assert [f.part for f in found.floors] == ["a", HEAD, WHOLE]
    # 0.4 GMAC at 200 GMAC/s; its bytes would take 1.003 MB / 50 GB/s = 0.02 ms.
    assert a.floor_ms == pytest.approx(2.0)
    assert a.bound == "compute"
    assert a.nbytes == 1_000_000 + 1000 + 2000
    # 300.002 MB at 50 GB/s.
    assert head.floor_ms == pytest.approx(300_002_008 / 50e6)
    assert head.bound == "memory"
    # The whole: weights once, x read, a and scores written. Less than its parts together, which pass ``a`` on.
    assert whole.nbytes == 301_003_008
    assert whole.floor_ms == pytest.approx(301_003_008 / 50e6)
    assert whole.macs == a.macs + head.macs


def test_parts_take_their_share_of_the_call_without_counters() -> None:
    found = limits(plan(), 1, GRAPH, PARTS, CEILINGS, call_ms=20.0, profile=layers(a=6.0, head=18.0))
    a, head, whole = found.floors
    assert [f.measured_ms for f in (a, head, whole)] == [pytest.approx(5.0), pytest.approx(15.0), 20.0]
    assert a.share == pytest.approx(2.0 / 5.0)


def test_layers_of_nobody_are_in_no_part_and_are_named() -> None:
    found = limits(plan(), 1, GRAPH, PARTS, CEILINGS, 20.0, profile=layers(a=6.0, head=12.0, _=6.0))
    assert [f.measured_ms for f in found.floors] == [pytest.approx(5.0), pytest.approx(10.0), 20.0]
    assert "25.0% of whose time is nobody's" in found.note


def test_without_a_profile_only_the_whole_has_a_time() -> None:
    found = limits(plan(), 1, GRAPH, PARTS, CEILINGS, call_ms=20.0)
    assert [f.measured_ms for f in found.floors] == [None, None, 20.0]
    assert [f.share is None for f in found.floors] == [True, True, False]
    assert "without a layer profile" in found.note


def test_the_ceiling_is_of_the_plans_own_precision_library_and_threads() -> None:
    slow = limits(plan("fp32"), 1, GRAPH, PARTS, CEILINGS, call_ms=20.0).floors[0]
    assert slow.precision == "fp32"
    assert slow.floor_ms == pytest.approx(0.4e9 / 90e6)


def test_a_missing_ceiling_gives_no_floors_and_the_reason() -> None:
    refused = [ceiling("convolution", None, note="no such instructions"), ceiling("copy", 50.0)]
    found = limits(plan(), 1, GRAPH, PARTS, refused, call_ms=20.0)
    assert found.floors == []
    assert "convolution or product in bf16 by openvino:cpu" in found.note
    assert "no such instructions" in found.note
    assert "of a copy" in limits(plan(), 1, GRAPH, PARTS, CEILINGS[:2], call_ms=20.0).note


def test_a_time_below_its_floor_is_said_aloud() -> None:
    found = limits(plan(), 1, GRAPH, PARTS, CEILINGS, call_ms=1.0)
    assert found.floors[-1].share is not None
    assert found.floors[-1].share > 1
    assert "a share above 1" in found.note
    assert "a share above 1" not in limits(plan(), 1, GRAPH, PARTS, CEILINGS, call_ms=20.0).note


def test_nodes_that_were_not_counted_are_named() -> None:
    graph = replace(GRAPH, unknown={"odd": "operator acme.Fancy is not ONNX's own"})
    note = limits(plan(), 1, graph, PARTS, CEILINGS, call_ms=20.0).note
    assert "not counted: 1, such as odd: operator acme.Fancy" in note
