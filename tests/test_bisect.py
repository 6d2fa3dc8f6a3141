"""Bisection names the nodes whose lowering breaks the budget, and no others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vsa_rt.budget import Budget
from vsa_rt.bundle import Bundle, hash_file
from vsa_rt.cli.options import excluded_of
from vsa_rt.contracts import Precision, Target
from vsa_rt.errors import UsageError
from vsa_rt.plan import Plan

ORT = Target("onnxruntime", "cpu")
#: A convolution in each backbone whose input nothing else reads, with nothing but ReLU before it.
SMALL, OTHER, LATER = "node_Conv_434", "node_Conv_461", "node_Conv_463"


# On a bundle


@pytest.fixture(scope="module")
def photos(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two parts of each labelled photograph: int8 is calibrated on at least 16."""
    folder = tmp_path_factory.mktemp("parts") / "photographs"
    for path in sorted(toy_data.rglob("*.png")):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        with Image.open(path) as picture:
            width, height = picture.size
            boxes = [(0, 0, 3 * width // 4, 3 * height // 4), (width // 4, height // 4, width, height)]
            for number, box in enumerate(boxes):
                picture.crop(box).save(folder / path.parent.name / f"{path.stem}-{number}.png")
    return folder


@pytest.fixture(scope="module")
def exported(tiny_recipe: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe, exported and not built. Shared: leave it as it is."""
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library, reason=f"exporting the tiny recipe needs {library}")
    from vsa_rt.pipeline.export import ExportOptions, export
    from vsa_rt.recipe_file import read_recipe

    out = tmp_path_factory.mktemp("exported") / "tiny"
    export(read_recipe(tiny_recipe), tiny_recipe.parent, out, ExportOptions(data=toy_data, max_batch=2))
    return out


def plant(graph: Any, reader: str, gain: float) -> None:
    """Make the first channel that a convolution reads larger, and its weights smaller: in fp32 nothing changes."""
    from onnx import numpy_helper

    weights = {t.name: t for t in graph.graph.initializer}
    makers = {o: n for n in graph.graph.node for o in n.output}

    def scale(name: str, where: Any, factor: float) -> None:
        values = numpy_helper.to_array(weights[name]).copy()
        values[where] *= np.float32(factor)
        weights[name].CopyFrom(numpy_helper.from_array(values, name))

    node = next(n for n in graph.graph.node if n.name == reader)
    maker = makers[node.input[0]]
    while maker.op_type == "Relu":
        maker = makers[maker.input[0]]
    alone = [n.name for n in graph.graph.node if node.input[0] in n.input]
    assert (maker.op_type, alone) == ("Conv", [reader])
    for name in maker.input[1:]:
        scale(name, 0, gain)
    scale(node.input[1], (slice(None), 0), 1 / gain)


@pytest.fixture(scope="module")
def some(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third of them: plans are judged on these."""
    folder = tmp_path_factory.mktemp("some") / "photographs"
    for path in sorted(photos.rglob("*.png"))[::3]:
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.parent.name)
    return folder


Planted = Callable[..., Path]


@pytest.fixture
def with_outliers(exported: Path, tmp_path: Path, reseal: Callable[..., None]) -> Planted:
    """The exported bundle with an outlier channel in what some convolutions read."""
    import onnx

    def make(*readers: str) -> Path:
        root = Path(shutil.copytree(exported, tmp_path / "planted"))
        graph = onnx.load(root / "graph.onnx")
        for reader in readers:
            plant(graph, reader, 1024.0)
        (root / "graph.onnx").write_bytes(graph.SerializeToString())
        files = Bundle.open(exported).manifest.files
        reseal(root, files=files | {"graph.onnx": hash_file(root / "graph.onnx")})
        return root

    return make


@pytest.fixture
def bisected(photos: Path, some: Path, tiny_weights: dict[str, Path]) -> Callable[..., Any]:
    """Bisects int8 on ONNX Runtime."""
    from vsa_rt.pipeline.bisect import BisectOptions, bisect

    def run(root: Path, data: Path = some, **options: Any) -> Any:
        given: dict[str, Any] = {
            "target": ORT,
            "precision": Precision.INT8,
            "calib": photos,
            "weights": tiny_weights,
            "seconds": 0.1,
        }
        return bisect(Bundle.open(root), data, BisectOptions(**given | options))

    return run


def nodes(found: Any) -> list[str]:
    return [n for g in found.nodes for n in g.unit.nodes]


def test_the_layer_that_reads_an_outlier_channel_is_found_and_the_list_heals_the_build(
    with_outliers: Planted,
    photos: Path,
    some: Path,
    tiny_weights: dict[str, Path],
    tmp_path: Path,
) -> None:
    from vsa_rt.pipeline.bisect import BisectOptions, bisect
    from vsa_rt.pipeline.build import BuildOptions, build

    forced, out = tmp_path / "forced", tmp_path / "out"
    given: dict[str, Any] = {
        "targets": [ORT],
        "precision": Precision.INT8,
        "data": some,
        "weights": tiny_weights,
    }
    root = with_outliers(OTHER)
    made = build(str(root), forced, BuildOptions(**given, calib=photos, method="minmax", force=True))
    assert [e.gate.passed for e in made.engines] == [False]
    # Nobody names the engine: it is the one that failed, with the calibration that it was built with.
    found = bisect(Bundle.open(forced), some, BisectOptions(out=out, weights=tiny_weights, seconds=0.1))
    assert (found.suspect.target, str(found.suspect.plan)) == (ORT, "all int8")
    assert "failed its gate" in found.suspect.source
    assert (found.outcome, found.backbones, nodes(found), found.minimal) == (
        "found",
        ["other"],
        [OTHER],
        True,
    )
    [guilty] = found.nodes
    assert (guilty.unit.op, guilty.unit.weights, found.lowered) == ("Conv", (16, 16, 3, 3), 15)
    assert guilty.lowered is not None
    assert found.verified is not None
    assert guilty.lowered.harm > Budget().kl > found.verified.trial.harm
    assert found.verified.before_ms.keys() == found.verified.after_ms.keys() == {"1", "2"}
    excluded = excluded_of(out / "exclude.txt")
    assert excluded == found.exclude == [OTHER]
    assert sorted(p.name.partition("-")[0] for p in out.iterdir()) == ["exclude.txt", "trials"]
    healed = build(str(forced), tmp_path / "healed", BuildOptions(**given, method="minmax", exclude=excluded))
    assert [(e.gate.passed, e.exclude) for e in healed.engines] == [(True, [OTHER])]


@pytest.mark.parametrize(
    ("readers", "backbones"), [([SMALL, OTHER], ["small", "other"]), ([OTHER, LATER], ["other"])]
)
def test_two_guilty_layers_are_both_found(
    with_outliers: Planted, bisected: Callable[..., Any], readers: list[str], backbones: list[str]
) -> None:
    found = bisected(with_outliers(*readers))
    assert (found.outcome, sorted(found.backbones), nodes(found)) == ("found", sorted(backbones), readers)
    assert all(g.lowered is not None and not g.lowered.passed for g in found.nodes)


def test_nothing_is_guilty_where_the_plan_holds(
    exported: Path, bisected: Callable[..., Any], tmp_path: Path
) -> None:
    found = bisected(exported, out=tmp_path / "out")
    assert (found.outcome, found.passed, found.nodes, found.exclude) == ("holds", True, [], [])
    assert [t.role for t in found.trials] == ["whole"]
    assert excluded_of(tmp_path / "out" / "exclude.txt") == []


def test_a_budget_that_nothing_keeps_is_said_to_be_impossible(
    exported: Path, bisected: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A target that is wrong in fp32, too."""
    from vsa_rt.engines.onnxruntime import OnnxRuntimeSlot

    run = OnnxRuntimeSlot.run

    def wrong(self: Any, inputs: Any) -> Any:
        return {name: np.roll(values, 1, axis=1) for name, values in run(self, inputs).items()}

    monkeypatch.setattr(OnnxRuntimeSlot, "run", wrong)
    found = bisected(exported, out=tmp_path / "out")
    assert (found.outcome, found.passed, found.exclude) == ("impossible", False, [])
    assert excluded_of(tmp_path / "out" / "exclude.txt") == []


def test_a_list_that_holds_once_and_not_again_is_not_given_out_as_found(
    with_outliers: Planted, bisected: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vsa_rt.pipeline.precision.workshop import Workshop

    built: list[Any] = []
    trial, build = Workshop.trial, Workshop.build

    def note(self: Any, target: Target, plan: Plan) -> Any:
        built.append(build(self, target, plan))
        return built[-1]

    def flaky(self: Any, target: Target, plan: Plan, sizes: bool = False) -> Any:
        return built[-1] if built else trial(self, target, plan, sizes)

    monkeypatch.setattr(Workshop, "build", note)
    monkeypatch.setattr(Workshop, "trial", flaky)
    found = bisected(with_outliers(OTHER))
    assert (found.outcome, found.passed) == ("not reproducible", False)


def test_a_calibration_of_another_graph_is_worth_nothing(
    exported: Path,
    photos: Path,
    some: Path,
    bisected: Callable[..., Any],
    reseal: Callable[..., None],
    tmp_path: Path,
) -> None:
    import onnx

    from vsa_rt.pipeline.build import BuildOptions, build

    root = tmp_path / "built"
    options = BuildOptions(data=some, calib=photos, targets=[ORT], precision=Precision.FP32)
    made = build(str(exported), root, options)
    graph = onnx.load(root / "graph.onnx")
    graph.doc_string = "another one"
    (root / "graph.onnx").write_bytes(graph.SerializeToString())
    reseal(root, files=made.files | {"graph.onnx": hash_file(root / "graph.onnx")})
    with pytest.raises(UsageError, match=r"calibration\.npz is not of graph\.onnx; calibrate again"):
        bisected(root, calib=None)
    assert bisected(root).outcome == "holds"


# Going on where it was


class Killed(Exception):
    """Stands for a kill: nothing catches it."""


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """Every plan that was built and judged, in order."""
    from vsa_rt.pipeline.precision.workshop import Workshop

    plans: list[Plan] = []
    trial = Workshop.trial

    def note(self: Any, target: Target, plan: Plan, sizes: bool = False) -> Any:
        plans.append(plan)
        return trial(self, target, plan, sizes)

    monkeypatch.setattr(Workshop, "trial", note)
    return plans


def test_an_interrupted_search_goes_on_and_tries_nothing_twice(
    with_outliers: Planted, bisected: Callable[..., Any], counted: list[Plan], tmp_path: Path
) -> None:
    root, out = with_outliers(OTHER), tmp_path / "out"
    whole = bisected(root)
    alone, seen = len(counted), len(whole.trials)
    counted.clear()

    def die_at(number: int) -> Callable[[str], None]:
        def progress(step: str) -> None:
            if step.startswith(f"trial {number}:"):
                raise Killed

        return progress

    for number in (1, 4):
        with pytest.raises(Killed):
            bisected(root, out=out, progress=die_at(number))
    assert len(counted) == 4
    found = bisected(root, out=out)
    assert (found.resumed, len(found.trials)) == (4, seen)
    assert (nodes(found), found.exclude, found.trials) == (nodes(whole), whole.exclude, whole.trials)
    assert len(counted) == alone
    text = (out / "exclude.txt").read_bytes()
    again = bisected(root, out=out)
    assert len(counted) == alone
    assert (again.resumed, again.trials, again.verified) == (seen, found.trials, found.verified)
    assert (out / "exclude.txt").read_bytes() == text


def test_what_a_killed_run_left_does_not_matter(
    exported: Path, bisected: Callable[..., Any], tmp_path: Path
) -> None:
    scratch = tmp_path / "out" / ".vsa-rt-bisect"
    (scratch / "trial").mkdir(parents=True)
    (scratch / "graph.onnx").write_bytes(b"half")
    assert bisected(exported, out=tmp_path / "out").outcome == "holds"
    assert not scratch.exists()


def test_trials_of_another_budget_or_other_photographs_are_not_used(
    exported: Path, bisected: Callable[..., Any], counted: list[Plan], some: Path, tmp_path: Path
) -> None:
    out, fewer = tmp_path / "out", Path(shutil.copytree(some, tmp_path / "fewer"))
    bisected(exported, out=out)
    next(fewer.rglob("*.png")).unlink()
    others: list[dict[str, Any]] = [{"budget": Budget(kl=0.5)}, {"data": fewer}, {"method": "minmax"}]
    for number, other in enumerate(others, start=2):
        found = bisected(exported, out=out, **other)
        assert (len(counted), found.resumed) == (number, 0)
        assert any("not used" in note for note in found.notes)
    assert bisected(exported, out=out).resumed == 1
    assert len(counted) == 4


@pytest.mark.parametrize("spoil", [b"", b"{", b"[]", b'{"schema": 1, "key": {}}', b"\xff"])
def test_a_damaged_state_is_said_and_made_anew(tmp_path: Path, spoil: bytes) -> None:
    from vsa_rt.bench.parity import Parity
    from vsa_rt.pipeline.search.trials import Basis, Trials

    plan, made = Plan.uniform(["a"], Precision.INT8), []

    def judge() -> Parity:
        made.append(plan)
        # Infinity and NaN have no JSON: a trial that is read back is the trial all the same.
        return Parity("s", "torch", 4, [], [], None, [], ["not a number in the outputs"])

    def opened() -> Trials:
        trials = Trials(tmp_path, {"graph": "1"}, 1, lambda step: None)
        trials.basis = Basis(reference="torch", why="", stand_ins=0, rejected=[("a.png", "cut off")])
        return trials

    first = opened().trial(plan, "whole", "all", judge)
    assert opened().trial(plan, "whole", "all", judge) == first
    assert len(made) == 1
    [state] = tmp_path.iterdir()
    state.write_bytes(spoil)
    again = opened()
    assert any("made again" in note for note in again.notes)
    assert again.trial(plan, "whole", "all", judge) == first
    assert (len(made), opened().notes) == (2, [])


def test_a_folder_that_another_run_works_in_is_refused(
    exported: Path, bisected: Callable[..., Any], tmp_path: Path
) -> None:
    from vsa_rt.pipeline.search.trials import held

    with held(tmp_path / "out"), pytest.raises(UsageError, match="another run"):
        bisected(exported, out=tmp_path / "out")


# What is lowered together


@pytest.mark.parametrize("plan", [Plan.uniform(["small", "other"], Precision.BF16), Plan.uniform(["small", "other"], Precision.FP16), Plan.uniform(["small", "other"], Precision.INT8), Plan.uniform(["small", "other"], Precision.INT8, around=Precision.FP16)], ids=str)  # fmt: skip
def test_units_are_everything_that_a_plan_lowers_each_node_once(exported: Path, plan: Plan) -> None:
    import onnx

    from vsa_rt.export.lowering.lower import activations, lower
    from vsa_rt.export.lowering.units import units_of

    graph = onnx.load(exported / "graph.onnx")
    ranges = dict.fromkeys(activations(graph, plan.backbones), 1.0)
    units = units_of(graph, plan, ranges=ranges)
    named = [n for u in units for n in u.nodes]
    assert len(named) == len(set(named))
    assert {u.backbone for u in units} == {"small", "other"}
    by_name = {n.name: n.op_type for n in graph.graph.node}
    assert all(by_name[u.name] == u.op for u in units)
    if plan.precision is Precision.INT8 and plan.around is Precision.FP32:
        assert {by_name[n] for n in named} == {"Conv"}
        assert all(len(u.nodes) == 1 for u in units)
    else:
        first = next(u for u in units if u.name == OTHER)
        assert [by_name[n] for n in first.nodes] == ["Conv", "Relu"]
    # Without any one of them something is lowered less, and without all of them nothing is.
    with pytest.raises(UsageError, match="nothing to lower"):
        lower(graph, plan.without(named), ranges=ranges)
    assert units_of(graph, plan.without(units[0].nodes), ranges=ranges) == units[1:]


# Which plan


def test_a_plan_that_was_left_out_of_the_bundle_comes_before_engines_that_held(
    exported: Path, tmp_path: Path, reseal: Callable[..., None]
) -> None:
    from vsa_rt.manifest import PlanRecord
    from vsa_rt.pipeline.search.suspects import suspect_of

    def measured(role: Any, small: str, other: str, reasons: list[str]) -> PlanRecord:
        return PlanRecord(
            target="onnxruntime:cpu",
            backbones={"small": small, "other": other},
            exclude=0,
            role=role,
            latency_ms={"1": 1.0},
            speedup={"1": 1.0},
            images=8,
            flips=0,
            ties=0,
            widest=0.0,
            kl=0.2,
            kl_worst=0.2,
            accuracy=[],
            reasons=reasons,
            chosen=False,
        )

    over = ["scores: mean KL 0.2 nats, the budget is 0.01"]
    plans = [
        measured("uniform", "fp32", "fp32", over),
        measured("one backbone", "int8", "fp32", over),
        measured("uniform", "int8", "int8", []),
        measured("composed", "int8", "bf16", over),
    ]
    root = Path(shutil.copytree(exported, tmp_path / "planned"))
    reseal(root, plans=plans, budget=Budget())
    opened = Bundle.open(root)
    found = suspect_of(opened)
    assert (found.target, {t: str(p) for t, p in found.plan.backbones.items()}) == (ORT, plans[3].backbones)
    assert suspect_of(opened, ORT, Precision.INT8).source == "not in the bundle: lowered anew"


def test_what_cannot_be_looked_into_is_said(
    exported: Path, bisected: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="name a --precision"):
        bisected(exported, precision=None)
    with pytest.raises(UsageError, match="nothing is lowered"):
        bisected(exported, precision=Precision.FP32)
    with pytest.raises(UsageError, match="no mixed engine"):
        bisected(exported, precision=Precision.MIXED)
    with pytest.raises(UsageError, match="has the precision bf16"):
        bisected(exported, precision=Precision.BF16)
    with pytest.raises(UsageError, match="--calib"):
        bisected(exported, calib=None)
    with pytest.raises(UsageError, match="method"):
        bisected(exported, method="guess")
    with pytest.raises(UsageError, match="is a bundle"):
        bisected(exported, out=exported)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file"):
        bisected(exported, out=tmp_path / "file")
