"""A bundle's graph lowered for GPUs, and the proof of it that needs none."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from vsa_rt.budget import Budget
from vsa_rt.bundle import Bundle, seal_folder
from vsa_rt.contracts import Precision
from vsa_rt.errors import GateError, UsageError
from vsa_rt.manifest import InputRecord, Manifest, manifest_from_json
from vsa_rt.plan import Plan

for library in ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "ml_dtypes"):
    pytest.importorskip(library, reason=f"exporting and rounding need {library}: vsa-rt[export]")

import onnx
from onnx import TensorProto, helper, numpy_helper

from vsa_rt.export.half import HalfExecutor
from vsa_rt.export.lowering.lower import lower, prepared
from vsa_rt.pipeline.lower import LowerOptions, lower_bundle, trtexec_command
from vsa_rt.pipeline.precision.lowered import backbone_taps, exact_taps
from vsa_rt.pipeline.precision.narrowed import exact_nodes, float_activations, narrowed_nodes
from vsa_rt.pipeline.precision.proof import Lowered
from vsa_rt.pipeline.precision.rounding import Rounding, guilty_nodes

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
FLOATS = (FLOAT, HALF, TensorProto.BFLOAT16, TensorProto.DOUBLE)
FP16 = LowerOptions(images=2)
BF16 = LowerOptions(precision=Precision.BF16, images=2)


@pytest.fixture(scope="session")
def photos(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 photographs: calibration asks for 16."""
    folder = tmp_path_factory.mktemp("photos")
    for path in sorted(toy_data.rglob("*.png")):
        with Image.open(path) as picture:
            picture.save(folder / f"{path.parent.name}-{path.name}")
            picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
                folder / f"{path.parent.name}-m-{path.name}"
            )
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_recipe: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny ensemble exported. Shared: leave it as it is."""
    from vsa_rt.pipeline.export import ExportOptions, export
    from vsa_rt.recipe_file import read_recipe

    out = tmp_path_factory.mktemp("exported") / "tiny"
    export(read_recipe(tiny_recipe), tiny_recipe.parent, out, ExportOptions(data=toy_data, max_batch=4))
    return out


@pytest.fixture(scope="session")
def wired(wired_recipe: Path, wired_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wired ensemble exported. Shared: leave it as it is."""
    from vsa_rt.pipeline.export import ExportOptions, export
    from vsa_rt.recipe_file import read_recipe

    out = tmp_path_factory.mktemp("exported") / "wired"
    options = ExportOptions(
        data=wired_data,
        max_batch=4,
        random_seed=7,
        weights={"head": wired_recipe.parent / "head.safetensors"},
    )
    export(read_recipe(wired_recipe), wired_recipe.parent, out, options)
    return out


@pytest.fixture
def own(tiny: Path, tmp_path: Path) -> Path:
    """The tiny ensemble, this test's own."""
    return Path(shutil.copytree(tiny, tmp_path / "own"))


@pytest.fixture(scope="session")
def lowered_tiny(tiny: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lowered]:
    """The tiny ensemble in half. Shared: leave it as it is."""
    out = tmp_path_factory.mktemp("lowered") / "out"
    return out, run(tiny, out, photos)


def run(bundle: Path, out: Path, data: Path, options: LowerOptions = FP16, **changed: Any) -> Lowered:
    return lower_bundle(Bundle.open(bundle), out, dataclasses.replace(options, data=data, **changed))


def graph_of(root: Path) -> Any:
    return onnx.load_from_string((root / "graph.onnx").read_bytes())


def plant(root: Path, edit: Callable[[Any], None]) -> None:
    """Change a bundle's graph; its hashes fit again."""
    graph = graph_of(root)
    edit(graph)
    onnx.checker.check_model(graph, full_check=True)
    (root / "graph.onnx").write_bytes(graph.SerializeToString())
    seal_folder(root, manifest_of(root))


def manifest_of(root: Path) -> Manifest:
    return manifest_from_json((root / "manifest.json").read_bytes(), "manifest")


def types_of(graph: Any) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {v.name: v.type.tensor_type.elem_type for v in values} | {
        t.name: t.data_type for t in inferred.initializer
    }


def typing_faults(graph: Any) -> list[str]:
    """What a strongly typed network would refuse or waste: nodes of two float types, and casts that are no border.

    It looks at the types alone, and asks neither onnx's checker nor the code that lowers.
    """
    types, made_by = types_of(graph), {o: n for n in graph.graph.node for o in n.output}
    read = {i for n in graph.graph.node for i in n.input} | {o.name for o in graph.graph.output}
    faults = []
    for node in graph.graph.node:
        kinds = {types.get(n) for n in (*node.input, *node.output) if n} & set(FLOATS)
        if node.op_type != "Cast":
            if len(kinds) > 1:
                faults.append(f"{node.name} ({node.op_type}) reads and makes {len(kinds)} float types")
            continue
        source, result = types[node.input[0]], types[node.output[0]]
        before = made_by.get(node.input[0])
        if source == result:
            faults.append(f"{node.name} casts to the type that is there")
        if before is not None and before.op_type == "Cast" and types[before.input[0]] == result:
            faults.append(f"{node.name} casts back what was just cast")
        if node.output[0] not in read:
            faults.append(f"{node.name} is read by nobody")
    return faults


def signature(graph: Any) -> list[tuple[str, int, list[Any]]]:
    return [
        (
            v.name,
            v.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
        )
        for v in (*graph.graph.input, *graph.graph.output)
    ]


# What is written


def test_a_graph_in_half_is_written_with_its_proof(
    lowered_tiny: tuple[Path, Lowered], tiny: Path, photos: Path
) -> None:
    out, found = lowered_tiny
    assert sorted(p.name for p in out.iterdir()) == ["graph.fp16.onnx", "lowered.json"]
    record = json.loads((out / "lowered.json").read_text(encoding="utf-8"))
    assert (record["schema"], record["kind"], record["verdict"]) == (1, "lowered", "holds")
    assert record["reasons"] == found.parity.reasons == []
    assert record["plan"]["backbones"] == {"small": "fp16", "other": "fp16"}
    assert (record["plan"]["head"], record["plan"]["exclude"]) == ("fp16", [])
    assert found.source == manifest_of(tiny).digest
    assert len(list(photos.iterdir())) == found.ranges.photographs == 24  # type: ignore[union-attr]
    assert found.rounding.photographs == found.parity.images == 2
    assert found.rounding.rounds[0].overflows == []
    assert found.nbytes == (out / "graph.fp16.onnx").stat().st_size
    assert {t.tap for t in found.parity.taps} >= {"small", "other", "features", "scores"}


def test_numbers_are_those_of_the_graph_that_is_written(
    lowered_tiny: tuple[Path, Lowered], tiny: Path
) -> None:
    """Its own half tensors, and peaks that the FP32 graph has."""
    out, found = lowered_tiny
    graph = onnx.load_from_string((out / "graph.fp16.onnx").read_bytes())
    halves = [n for n, kind in types_of(graph).items() if kind == HALF]
    weights = {t.name for t in graph.graph.initializer}
    assert found.rounding.tensors == len([n for n in halves if n not in weights])
    assert found.ranges is not None
    model = prepared(graph_of(tiny))
    assert found.rounding.largest == pytest.approx(max(found.ranges.peaks.values()), rel=0.2)
    assert set(found.ranges.peaks) <= {o for n in model.graph.node for o in n.output}


def test_the_same_command_twice_writes_the_same_bytes(
    lowered_tiny: tuple[Path, Lowered], tiny: Path, photos: Path, tmp_path: Path
) -> None:
    run(tiny, tmp_path / "again", photos)
    for name in ("graph.fp16.onnx", "lowered.json"):
        assert (tmp_path / "again" / name).read_bytes() == (lowered_tiny[0] / name).read_bytes()


def test_it_is_the_graph_that_build_would_lower(lowered_tiny: tuple[Path, Lowered], tiny: Path) -> None:
    plan = Plan.uniform(["small", "other"], Precision.FP16, head=Precision.FP16)
    assert (
        lower(graph_of(tiny), plan).SerializeToString() == (lowered_tiny[0] / "graph.fp16.onnx").read_bytes()
    )


def test_every_node_that_stays_in_fp32_is_listed_with_its_reason(
    lowered_tiny: tuple[Path, Lowered],
) -> None:
    out, found = lowered_tiny
    graph = onnx.load_from_string((out / "graph.fp16.onnx").read_bytes())
    types = types_of(graph)
    single = {
        n.name
        for n in graph.graph.node
        if n.op_type != "Cast" and any(types.get(x) == FLOAT for x in (*n.input, *n.output))
    }
    pixels = {
        n.name for n in graph.graph.node if n.op_type == "Cast" and types[n.input[0]] == TensorProto.UINT8
    }
    assert {k.node for k in found.kept} == single | pixels
    assert {k.op: k.cause for k in found.kept}["Softmax"] == "operator"
    assert all(k.reason for k in found.kept)
    assert {k.cause for k in found.kept} == {"input", "operator"}


@pytest.mark.parametrize(
    ("precision", "head", "single"),
    [
        (Precision.BF16, None, True),
        (Precision.BF16, Precision.FP16, False),
        (Precision.FP16, Precision.FP32, True),
    ],
)
def test_the_head_has_its_own_type(
    tiny: Path, photos: Path, tmp_path: Path, precision: Precision, head: Precision | None, single: bool
) -> None:
    found = run(tiny, tmp_path / "out", photos, BF16, precision=precision, head=head, images=1)
    graph = onnx.load_from_string((tmp_path / "out" / found.graph).read_bytes())
    types = types_of(graph)
    product = next(
        n for n in graph.graph.node if n.op_type in ("Gemm", "MatMul") and n.name.endswith("linear")
    )
    assert (types[product.input[1]] == FLOAT) is single
    assert ({k.cause for k in found.kept} >= {"head"}) is single
    # Half alone has ranges to leave.
    assert (found.ranges is None) is (precision is Precision.BF16 and single)


# Strong types


def calibrated(photos: Path, options: LowerOptions) -> LowerOptions:
    return dataclasses.replace(options, calib=photos) if options.precision is Precision.INT8 else options


INT8 = LowerOptions(precision=Precision.INT8, images=1)
EVERY = {
    "fp16": LowerOptions(images=1),
    "fp16 with a head of fp32": LowerOptions(images=1, head=Precision.FP32),
    "bf16": LowerOptions(precision=Precision.BF16, images=1),
    "bf16 with a head of fp16": LowerOptions(precision=Precision.BF16, head=Precision.FP16, images=1),
    "int8": INT8,
    "int8 in fp32": dataclasses.replace(INT8, around=Precision.FP32, head=Precision.FP32),
    "int8 in bf16": dataclasses.replace(INT8, around=Precision.BF16),
}


@pytest.mark.parametrize(
    ("bundle", "case"),
    [*(("tiny", case) for case in EVERY), ("wired", "fp16"), ("wired", "bf16"), ("wired", "int8")],
)
def test_what_is_written_is_strongly_typed_and_keeps_its_inputs_and_outputs(
    bundle: str, case: str, photos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(bundle)
    # The wired networks have random weights: what int8 does to their decisions says nothing about types.
    options = dataclasses.replace(calibrated(photos, EVERY[case]), force=True)
    found = run(source, tmp_path / "out", photos, options)
    graph = onnx.load_from_string((tmp_path / "out" / found.graph).read_bytes())
    onnx.checker.check_model(graph, full_check=True)
    assert typing_faults(graph) == []
    assert signature(graph) == signature(graph_of(source))
    assert {o.type.tensor_type.elem_type for o in graph.graph.output} == {FLOAT}
    if bundle == "tiny":
        assert found.verdict == "holds"


@pytest.mark.slow
def test_the_quickstarts_graph_is_strongly_typed(photographs: list[Path]) -> None:
    """Exported once, with seeded weights: types do not depend on them."""
    from lowered import Lowering

    from vsa_rt.recipe_file import find_recipe, read_recipe

    path = find_recipe("quickstart")
    source = Lowering.of_recipe(read_recipe(path), path.parent, photographs, 0)
    for plan in ("fp16 throughout", "bf16", "int8 in fp16 throughout"):
        assert typing_faults(onnx.load_from_string(source.graph(plan))) == [], plan


def of_two_types() -> Any:
    """An addition of float32 and half."""
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], "CAST", to=HALF),
        helper.make_node("Where", ["yes", "h", "h"], ["z"], "WHERE"),
        helper.make_node("Cast", ["z"], ["y"], "BACK", to=FLOAT),
    ]
    inputs = [info("x", FLOAT, ["n", 4]), info("yes", TensorProto.BOOL, ["n", 4])]
    graph = helper.make_graph(nodes, "g", inputs, [info("y", FLOAT, ["n", 4])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def test_the_types_checker_passes_borders() -> None:
    assert typing_faults(of_two_types()) == []


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda g: g.node[1].input.__setitem__(2, "x"), "WHERE"),
        (lambda g: g.node.insert(1, helper.make_node("Cast", ["h"], ["i"], "AGAIN", to=HALF)), "AGAIN casts to the"),
        (lambda g: g.node.insert(1, helper.make_node("Cast", ["h"], ["i"], "UNREAD", to=FLOAT)), "UNREAD is read by"),
        (lambda g: g.node.insert(1, helper.make_node("Cast", ["h"], ["i"], "UNDO", to=FLOAT)), "UNDO casts back"),
    ],
)  # fmt: skip
def test_the_types_checker_catches(
    fault: Callable[[Any], None], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fault by itself; onnx's own checker is not asked, which would refuse the first."""
    graph = of_two_types()
    fault(graph.graph)
    plain = onnx.shape_inference.infer_shapes
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", lambda model, **_: plain(model))
    assert any(says in found for found in typing_faults(graph)), typing_faults(graph)


@pytest.mark.parametrize("case", EVERY)
def test_the_nodes_that_are_judged_are_the_ones_that_are_typed(tiny: Path, photos: Path, case: str) -> None:
    options, manifest = EVERY[case], manifest_of(tiny)
    taps, exact = backbone_taps(manifest), exact_taps(manifest)
    model = prepared(graph_of(tiny))
    plan = Plan.uniform(
        taps, options.precision, around=options.around or Precision.FP32, head=options.head or Precision.FP32
    )
    ranges = dict.fromkeys((n for node in model.graph.node for n in node.input), 1.0)
    low = lower(graph_of(tiny), plan, exact, ranges)
    types, known = types_of(low), {n.name for n in model.graph.node}
    for precision, kind in ((Precision.FP16, HALF), (Precision.BF16, TensorProto.BFLOAT16)):
        typed = {
            n.name
            for n in low.graph.node
            if n.name in known and any(types.get(x) == kind for x in (*n.input, *n.output))
        }
        assert narrowed_nodes(model, plan, exact, [precision]) == typed


# Hazards


def test_lowering_starts_from_a_prepared_graph_as_from_the_graph_itself(wired: Path) -> None:
    graph, manifest = graph_of(wired), manifest_of(wired)
    plan = Plan.uniform(backbone_taps(manifest), Precision.FP16, head=Precision.FP16)
    made = [lower(g, plan, exact_taps(manifest)).SerializeToString() for g in (graph, prepared(graph))]
    assert made[0] == made[1]


def outlier(graph: Any) -> None:
    """One channel between two convolutions 200,000 times as large, and taken back by the second: nothing changes."""
    known = {t.name: t for t in graph.graph.initializer}
    first, second = (next(n for n in graph.graph.node if n.name == name) for name in OUTLIER[::2])
    for name, place, factor in (
        (first.input[1], 0, 2e5),
        (first.input[2], 0, 2e5),
        (second.input[1], (slice(None), 0), 1 / 2e5),
    ):
        values = numpy_helper.to_array(known[name]).copy()
        values[place] *= np.float32(factor)
        known[name].CopyFrom(numpy_helper.from_array(values, name))


#: A convolution, the activation behind it, and the convolution that reads that.
OUTLIER = ["node_Conv_461", "node_relu_1", "node_Conv_463"]


@pytest.fixture
def with_outlier(own: Path) -> Path:
    plant(own, outlier)
    return own


def test_an_outlier_channel_stays_in_fp32_and_the_rest_is_right_in_half(
    with_outlier: Path, tiny: Path, photos: Path, tmp_path: Path
) -> None:
    found = run(with_outlier, tmp_path / "out", photos)
    kept = {k.node: k for k in found.kept if k.cause == "ranges"}
    assert list(kept) == found.plan.exclude == OUTLIER
    assert all("half ends at 65504" in k.reason for k in kept.values())
    assert found.verdict == "holds"
    assert found.rounding.rounds[0].overflows == []
    graph = onnx.load_from_string((tmp_path / "out" / "graph.fp16.onnx").read_bytes())
    assert typing_faults(graph) == []
    # The same network as the tiny one, which is in half throughout: the executor says so on pixels of our own.
    pixels = np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)
    inputs = {i.name: pixels for i in graph.graph.input}
    there, here = (HalfExecutor(g).run(inputs)["other"] for g in (graph_of(tiny), graph))
    np.testing.assert_allclose(here, there, atol=0.01 * float(np.abs(there).max()))


def without_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """The range analysis says that everything is safe."""
    monkeypatch.setattr("vsa_rt.export.lowering.hazards.hazards", lambda *_: {})


def test_the_executor_by_itself_catches_what_overflows(
    with_outlier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ranges(monkeypatch)
    with pytest.raises(GateError, match=r"overflow: %getitem_42 of node 'node_Conv_461' \(Conv\).*--force"):
        run(with_outlier, tmp_path / "out", photos, rounds=0)
    assert [p.name for p in tmp_path.iterdir()] == ["own"]


def test_what_overflows_goes_back_to_fp32_until_nothing_does(
    with_outlier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ranges(monkeypatch)
    found = run(with_outlier, tmp_path / "out", photos)
    assert found.verdict == "holds"
    assert sorted(found.plan.exclude) == sorted(OUTLIER)
    assert {k.cause for k in found.kept if k.node in OUTLIER} == {"overflow"}
    first, *_, last = found.rounding.rounds
    assert first.overflows[0].node == "node_Conv_461"
    assert first.excluded == OUTLIER[:2]
    assert (last.overflows, last.excluded) == ([], [])
    assert len(found.rounding.rounds) == 3


def test_it_is_tried_again_only_so_often(
    with_outlier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ranges(monkeypatch)
    with pytest.raises(GateError, match="overflow"):
        run(with_outlier, tmp_path / "out", photos, rounds=1)


def test_a_graph_that_fails_is_written_where_that_is_forced_and_says_so(
    with_outlier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ranges(monkeypatch)
    found = run(with_outlier, tmp_path / "out", photos, rounds=0, force=True)
    assert found.verdict == "failed parity"
    text = (tmp_path / "out" / "lowered.json").read_text(encoding="utf-8")
    record = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert record["verdict"] == "failed parity"
    assert "overflow" in record["reasons"][0]
    assert record["rounding"]["largest"] is None
    assert (tmp_path / "out" / "graph.fp16.onnx").is_file()


def test_squares_and_lrn_are_not_lowered(own: Path, photos: Path, tmp_path: Path) -> None:
    """A tensor of at least 0, times 300, squared, its root taken, and divided again; and an LRN that does nothing."""

    def edit(graph: Any) -> None:
        nodes = list(graph.graph.node)
        place = next(i for i, n in enumerate(nodes) if n.name == "node_Conv_473")
        made = [
            helper.make_node("Mul", ["%relu_5", "large"], ["scaled"], "SCALE"),
            helper.make_node("Mul", ["scaled", "scaled"], ["squared"], "SQUARE"),
            helper.make_node("Sqrt", ["squared"], ["root"], "ROOT"),
            helper.make_node("Mul", ["root", "small_"], ["same"], "BACK"),
            helper.make_node("LRN", ["same"], ["normed"], "LRN", size=1, alpha=1e-9),
        ]
        nodes[place].input[0] = "normed"
        del graph.graph.node[:]
        graph.graph.node.extend([*nodes[:place], *made, *nodes[place:]])
        for name, value in (("large", 300), ("small_", 1 / 300)):
            graph.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))

    plant(own, edit)
    found = run(own, tmp_path / "out", photos)
    kept = {k.node: (k.cause, k.reason) for k in found.kept}
    assert kept["SQUARE"][0] == "ranges"
    assert "squared" in kept["SQUARE"][1]
    assert kept["ROOT"][0] == kept["LRN"][0] == "operator"
    assert "SCALE" not in kept
    types = types_of(onnx.load_from_string((tmp_path / "out" / "graph.fp16.onnx").read_bytes()))
    assert {types[n] for n in ("squared", "root", "normed")} == {FLOAT}
    assert found.verdict == "holds"


def test_what_moves_numbers_without_an_overflow_fails_as_well(
    tiny: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backbone scaled by 4 %, as if weights had been rounded wrongly."""

    def scaled(*arguments: Any) -> Any:
        made = lower(*arguments)
        name = next(n for n in made.graph.node if n.name == "node_Conv_454").input[1]
        tensor = next(t for t in made.graph.initializer if t.name == name)
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((values * 1.04).astype(values.dtype), name))
        return made

    monkeypatch.setattr("vsa_rt.export.lowering.lower.lower", scaled)
    with pytest.raises(GateError, match="small: "):
        run(tiny, tmp_path / "out", photos)
    assert not (tmp_path / "out").exists()


def test_other_inputs_or_outputs_than_before_are_refused(
    tiny: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def renamed(*arguments: Any) -> Any:
        made = lower(*arguments)
        made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        return made

    monkeypatch.setattr("vsa_rt.export.lowering.lower.lower", renamed)
    with pytest.raises(GateError, match="takes or gives"):
        run(tiny, tmp_path / "out", photos, force=True)
    assert not (tmp_path / "out").exists()


def of_nodes(nodes: list[Any], weights: dict[str, Any], outputs: dict[str, int], kind: int = FLOAT) -> Any:
    info = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [info("x", kind, ["n", 4])],
            [info(name, kind, ["n", width]) for name, width in outputs.items()],
            [numpy_helper.from_array(np.asarray(v, np.float32), n) for n, v in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 22)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def product(name: str, inputs: str, output: str) -> Any:
    return helper.make_node("MatMul", inputs.split(), [output], name)


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
def test_where_a_cast_overflows_whoever_reads_it_is_guilty(precision: Precision) -> None:
    weights = {"w": np.eye(4) * 1e-3, "v": np.eye(4)}
    model = prepared(of_nodes([product("FIRST", "x w", "a"), product("NEXT", "a v", "y")], weights, {"y": 4}))
    plan = Plan.uniform(
        ["y"], precision, around=Precision.FP16 if precision is Precision.INT8 else Precision.FP32
    )
    low = lower(model, plan, {}, {"x": 1e6, "a": 1e3})
    seen = Rounding(low, ["a photograph"], lambda _: None)
    seen.run({"x": np.full((1, 4), 1e6, np.float32)})
    overflow = next(iter(seen.overflows.values()))
    assert (overflow.op, overflow.image) == ("Cast", "a photograph")
    assert guilty_nodes(low, seen, narrowed_nodes(model, plan, {})) == ["FIRST"]


def test_where_a_step_inside_a_node_overflows_that_node_alone_is_guilty() -> None:
    nodes = [
        helper.make_node("LpNormalization", ["x"], ["z"], "NORM"),
        helper.make_node("Relu", ["z"], ["y"], "RELU"),
    ]
    model = of_nodes(nodes, {}, {"y": 4}, HALF)
    seen = Rounding(model, ["a photograph"], lambda _: None)
    seen.run({"x": np.full((1, 4), 300, np.float16)})
    assert guilty_nodes(model, seen, {"NORM", "RELU"}) == ["NORM"]


def test_what_cancels_stays_in_fp32_under_a_head_in_half() -> None:
    nodes = [
        product("READ", "x w", "read"),
        helper.make_node("Sub", ["read", "mean"], ["centred"], "CENTRE"),
        product("WHITEN", "centred v", "exact"),
        helper.make_node("Relu", ["exact"], ["scores"], "HEAD"),
    ]
    weights = {"w": np.eye(4), "v": np.eye(4), "mean": np.ones(4)}
    model = prepared(of_nodes(nodes, weights, {"read": 4, "exact": 4, "scores": 4}))
    plan = Plan.uniform(["read", "exact"], Precision.FP16, head=Precision.FP16)
    exact = {"exact": "read"}
    assert exact_nodes(model, plan, exact) == ["CENTRE", "WHITEN"]
    plan = plan.without(exact_nodes(model, plan, exact))
    assert narrowed_nodes(model, plan, exact) == {"READ", "HEAD"}
    types = types_of(lower(model, plan, exact))
    assert types["centred"] == types["exact"] == FLOAT


def test_only_float_activations_are_measured(wired: Path) -> None:
    """Neither indices and shapes, nor weights."""
    model = prepared(graph_of(wired))
    types = types_of(model)
    tensors = float_activations(model, [n.name for n in model.graph.node])
    assert {types[name] for name in tensors} == {FLOAT}
    assert not set(tensors) & {t.name for t in model.graph.initializer}
    assert "objects" in tensors


# What people ask for


def test_excluded_nodes_stay_in_fp32(tiny: Path, photos: Path, tmp_path: Path) -> None:
    found = run(tiny, tmp_path / "out", photos, exclude=["node_Conv_454"])
    assert found.plan.exclude == ["node_Conv_454"]
    assert [(k.cause, k.op) for k in found.kept if k.node == "node_Conv_454"] == [("asked", "Conv")]
    graph = onnx.load_from_string((tmp_path / "out" / "graph.fp16.onnx").read_bytes())
    node = next(n for n in graph.graph.node if n.name == "node_Conv_454")
    assert {types_of(graph)[n] for n in (*node.input, *node.output)} == {FLOAT}


def test_a_node_that_is_not_there_is_named_with_those_that_are_like_it(
    tiny: Path, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"'node_Conv_4540': the graph has none.*there are .*node_Conv_454"):
        run(tiny, tmp_path / "out", photos, exclude=["node_Conv_4540"])
    assert not (tmp_path / "out").exists()


def test_a_graph_that_is_quantised_already_is_refused(own: Path, photos: Path, tmp_path: Path) -> None:
    def edit(graph: Any) -> None:
        taps = ["small", "other"]
        ranges = dict.fromkeys((n for node in graph.graph.node for n in node.input), 1.0)
        graph.CopyFrom(lower(graph, Plan.uniform(taps, Precision.INT8), {}, ranges))

    plant(own, edit)
    for options in (FP16, calibrated(photos, INT8)):
        with pytest.raises(UsageError, match=r"quantised already: node .*QuantizeLinear"):
            run(own, tmp_path / "out", photos, options)
    assert not (tmp_path / "out").exists()


def test_int8_takes_the_ranges_and_the_method_of_its_bundle(
    tiny_recipe: Path, photos: Path, tmp_path: Path
) -> None:
    from vsa_rt.contracts import Target
    from vsa_rt.pipeline.build import BuildOptions, build

    built = tmp_path / "built"
    build(
        str(tiny_recipe),
        built,
        BuildOptions(
            data=photos,
            calib=photos,
            method="percentile:99.9",
            targets=[Target("onnxruntime", "cpu")],
            precision=Precision.FP32,
        ),
    )
    found = run(built, tmp_path / "out", photos, INT8, budget=Budget(kl=0.1))
    assert found.calibration is not None
    assert (found.calibration.method, found.calibration.images) == ("percentile:99.9", 24)
    stored = (tmp_path / "out" / found.calibration.path).read_bytes()
    assert stored == (built / "calibration.npz").read_bytes()
    assert (found.plan.around, found.plan.head) == (Precision.FP16, Precision.FP16)
    assert found.ranges is not None
    # Of another graph, they are worth nothing.
    plant(built, outlier)
    with pytest.raises(UsageError, match="calibrate again"):
        run(built, tmp_path / "other", photos, INT8)
    assert not (tmp_path / "other").exists()


def test_int8_without_ranges_is_refused(tiny: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--calib DIR"):
        run(tiny, tmp_path / "out", photos, INT8)


@pytest.mark.parametrize("option", [{"around": Precision.FP16}, {"calib": Path()}, {"method": "mse"}])
def test_an_option_that_would_do_nothing_is_refused(
    tiny: Path, photos: Path, tmp_path: Path, option: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="only int8"):
        run(tiny, tmp_path / "out", photos, **option)


@pytest.mark.parametrize(
    "option", [{"precision": Precision.FP32}, {"precision": Precision.MIXED}, {"images": 0}]
)
def test_what_proves_nothing_is_refused(
    tiny: Path, photos: Path, tmp_path: Path, option: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="expected"):
        run(tiny, tmp_path / "out", photos, **option)


def test_what_lies_under_the_name_already_is_left_alone(
    tiny: Path, own: Path, photos: Path, tmp_path: Path
) -> None:
    before = sorted(p.name for p in own.iterdir())
    for taken in (own, own / "graph.onnx"):
        with pytest.raises(UsageError, match="exists"):
            run(tiny, taken, photos)
    assert sorted(p.name for p in own.iterdir()) == before


def test_photographs_that_cannot_be_read_are_counted(tiny: Path, toy_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in sorted((toy_data / "bright").iterdir())[:3]:
        shutil.copy(path, data)
    (data / "a.png").write_bytes(b"no picture")
    found = run(tiny, tmp_path / "out", data, images=4)
    assert found.ranges is not None
    assert (found.ranges.photographs, found.ranges.skipped, found.rounding.photographs) == (3, 1, 3)


def test_labels_of_a_random_head_are_not_judged(
    own: Path, photos: Path, tmp_path: Path, reseal: Callable[..., None]
) -> None:
    known = manifest_of(own).checkpoints
    reseal(own, checkpoints=known | {"head": msgspec.structs.replace(known["head"], random_seed=1)})
    found = run(own, tmp_path / "out", photos, images=1)
    assert (found.decides, found.parity.flips, found.parity.kl) == (False, [], None)
    assert found.verdict == "holds"


def test_the_budget_gates(tiny: Path, photos: Path, tmp_path: Path) -> None:

    with pytest.raises(GateError, match="mean KL"):
        run(tiny, tmp_path / "out", photos, BF16, budget=Budget(kl=0.0))


def test_the_command_of_trtexec_has_every_input_in_its_shapes() -> None:
    inputs = [
        InputRecord(name="image_224x224", dtype="uint8", shape=[224, 224, 3]),
        InputRecord(name="objects", dtype="float32", shape=[50, 2048], rows=True),
    ]
    assert trtexec_command("graph.fp16.onnx", inputs, 8) == (
        "trtexec --stronglyTyped --noTF32 --onnx=graph.fp16.onnx --saveEngine=graph.fp16.engine "
        "--minShapes=image_224x224:1x224x224x3,objects:1x50x2048 "
        "--optShapes=image_224x224:8x224x224x3,objects:8x50x2048 "
        "--maxShapes=image_224x224:8x224x224x3,objects:8x50x2048"
    )
