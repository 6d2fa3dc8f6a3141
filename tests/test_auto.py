"""``--precision auto``, ``--calib``, ``--budget``, ``--exclude`` and ``--force``: what build makes of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vsa_rt.budget import Budget
from vsa_rt.bundle import Bundle, hash_file
from vsa_rt.contracts import Precision, Target
from vsa_rt.doctor import describe_machine
from vsa_rt.errors import DatasetError, GateError, UsageError
from vsa_rt.manifest import EngineRecord, GateRecord, Manifest
from vsa_rt.pipeline.build import BuildOptions, build, ranked

if TYPE_CHECKING:
    import subprocess

for library in ("torch", "timm", "onnx", "onnxruntime", "openvino"):
    pytest.importorskip(library, reason=f"bundles are built with {library}")

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
OPENVINO = Target("openvino", "cpu")
#: Without the instructions OpenVINO computes a graph of bf16 in fp32.
BF16_HERE = any("BF16" in words for words in describe_machine().instruction_sets)
#: Seeded networks of three blocks are rougher than real ones: what is tested here is the way, not their numbers.
LOOSE = Budget(flips=1.0, margin=1.0, kl=10.0, accuracy=None)


@pytest.fixture(scope="module")
def exported(tiny_recipe: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe as a bundle without engines."""
    from vsa_rt.pipeline.export import ExportOptions, export
    from vsa_rt.recipe_file import read_recipe

    out = tmp_path_factory.mktemp("exported") / "tiny"
    export(read_recipe(tiny_recipe), tiny_recipe.parent, out, ExportOptions(data=toy_data, max_batch=2))
    return out


@pytest.fixture(scope="module")
def calibrated(
    exported: Path, toy_data: Path, calibration_photographs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Built with int8 among the precisions, under a budget that everything keeps."""
    out = tmp_path_factory.mktemp("calibrated") / "bundle"
    build(
        str(exported),
        out,
        BuildOptions(data=toy_data, calib=calibration_photographs, budget=LOOSE, targets=[OPENVINO]),
    )
    return out


def manifest_of(root: Path) -> Manifest:
    bundle = Bundle.open(root)
    bundle.verify()
    return bundle.manifest


# What is measured and kept


def test_every_precision_of_every_backbone_is_measured_and_in_the_manifest(calibrated: Path) -> None:
    plans = manifest_of(calibrated).plans
    uniform = [set(p.backbones.values()) for p in plans if p.role == "uniform"]
    assert uniform == [{"fp32"}, {"bf16"}, {"int8"}]
    alone = {
        (tap, precision)
        for p in plans
        if p.role == "one backbone"
        for tap, precision in p.backbones.items()
        if precision != "fp32"
    }
    assert alone == {(tap, p) for tap in ("small", "other") for p in ("bf16", "int8")}
    for plan in plans:
        assert set(plan.latency_ms) == set(plan.speedup) == {"1", "2"}
        assert plan.images == 12
        assert plan.kl is not None
        assert len(plan.accuracy) == 3


def test_what_an_engine_was_built_from_lies_in_the_bundle_and_nothing_else_does(calibrated: Path) -> None:
    manifest = manifest_of(calibrated)
    folders = {e.folder for e in manifest.engines}
    assert {e.precision for e in manifest.engines} >= {"fp32", "bf16", "int8"}
    engines = {name for name in manifest.files if name.startswith("engines/")}
    assert {name.rsplit("/", 1)[0] for name in engines} == folders
    graphs = {name for name in manifest.files if name.endswith(".onnx") and "/" not in name}
    assert graphs == {g.path for g in manifest.graphs} == {e.graph for e in manifest.engines}
    assert not (calibrated / "trial").exists()


def test_the_default_is_the_plan_that_is_marked_as_chosen(calibrated: Path) -> None:
    manifest = manifest_of(calibrated)
    [chosen] = [p for p in manifest.plans if p.chosen]
    assert chosen.backbones == manifest.engines[0].plan


def test_the_engine_in_the_bundle_computes_what_its_graph_says(calibrated: Path) -> None:
    manifest = manifest_of(calibrated)
    for engine in manifest.engines:
        graph = (calibrated / engine.graph).read_bytes()
        assert (b"QuantizeLinear" in graph) == ("int8" in engine.plan.values())
        if "bf16" not in engine.plan.values() or BF16_HERE:
            assert engine.achieved == 1.0


def test_inspect_prints_the_plans(calibrated: Path, vsa: Cli) -> None:
    done = vsa("inspect", calibrated, env={"COLUMNS": "160"})
    assert done.returncode == 0
    for words in ("plans on openvino:cpu", "all int8", "small bf16", "chosen", "budget: flips=100%"):
        assert words in done.stdout, words


def test_a_graph_of_one_network_needs_no_plan_put_together(tmp_path: Path, toy_data: Path) -> None:
    recipe = tmp_path / "one.toml"
    recipe.write_text(
        'schema = 1\nname = "one"\ntask = "single-label"\nlabels = ["bright", "dark"]\n'
        '[[backbones]]\nname = "r"\narchitecture = "timm:test_resnet"\n'
        '[head]\nkind = "linear"\nfeatures = ["r"]\n',
        encoding="utf-8",
    )
    options = BuildOptions(data=toy_data, random_seed=1, max_batch=1, targets=[OPENVINO])
    manifest = build(str(recipe), tmp_path / "out", options)
    assert {p.role for p in manifest.plans} == {"uniform"}
    assert {p.kl for p in manifest.plans} == {None}, "the labels of a random head decide nothing"


# Engines that are open


@dataclass
class Opened:
    """What was opened and closed during a build.

    Attributes:
        steps: What progress was told, with the number of engines that were open then.
        opened: Engines in the order in which they were opened, each with the number of those open before it.
        closed: The same engines in the order in which they were closed.
    """

    steps: list[tuple[str, int]] = field(default_factory=list)
    opened: list[tuple[object, int]] = field(default_factory=list)
    closed: list[object] = field(default_factory=list)

    @property
    def alive(self) -> int:
        return len(self.opened) - len(self.closed)

    def progress(self, step: str) -> None:
        self.steps.append((step, self.alive))


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Every engine of OpenVINO that is opened from now on."""
    from vsa_rt.engines.openvino import OpenVino, OpenVinoSession

    seen, open_one, close_one = Opened(), OpenVino.open, OpenVinoSession.close

    def note_open(self: OpenVino, *arguments: Any) -> OpenVinoSession:
        before = seen.alive
        made = open_one(self, *arguments)
        seen.opened.append((made, before))
        return made

    def note_close(self: OpenVinoSession) -> None:
        if self not in seen.closed:
            seen.closed.append(self)
        close_one(self)

    monkeypatch.setattr(OpenVino, "open", note_open)
    monkeypatch.setattr(OpenVinoSession, "close", note_close)
    return seen


def test_fp32_stays_open_beside_one_plan_at_a_time_while_plans_are_tried(
    exported: Path, toy_data: Path, tmp_path: Path, watched: Opened
) -> None:
    options = BuildOptions(data=toy_data, budget=LOOSE, targets=[OPENVINO], progress=watched.progress)
    manifest = build(str(exported), tmp_path / "out", options)
    words = ("building ", "trying ")
    tried = [alive for step, alive in watched.steps if step.startswith(words)]
    assert tried == [0, *[1] * (len(manifest.plans) - 1)], "fp32 alone is open when the next plan comes"
    # Each was opened once, judged and timed; what follows opens engines anew.
    search, later = watched.opened[: len(tried)], watched.opened[len(tried) :]
    assert [before for _, before in search] == tried
    assert later[0][1] == 0
    sessions = [session for session, _ in search]
    assert watched.closed[: len(tried)] == [*sessions[1:], sessions[0]]
    assert watched.alive == 0


@pytest.mark.parametrize("when", ["gate: openvino:cpu all bf16", "trying openvino:cpu small fp32"])
def test_a_search_that_fails_closes_what_it_opened(
    exported: Path, toy_data: Path, tmp_path: Path, watched: Opened, when: str
) -> None:
    def fail(step: str) -> None:
        watched.progress(step)
        if step.startswith(when):
            raise KeyboardInterrupt

    options = BuildOptions(data=toy_data, budget=LOOSE, targets=[OPENVINO], progress=fail)
    with pytest.raises(KeyboardInterrupt):
        build(str(exported), tmp_path / "out", options)
    assert len(watched.opened) > 1
    assert watched.alive == 0
    assert not (tmp_path / "out").exists()


# Calibration


def test_without_photographs_to_calibrate_on_the_manifest_says_why_there_is_no_int8(
    tiny_bundle: Path,
) -> None:
    manifest = manifest_of(tiny_bundle)
    assert "int8" not in {e.precision for e in manifest.engines}
    reasons = {(r.target, r.precision): r.reason for r in manifest.rejected}
    assert reasons["openvino:cpu", "int8"] == "int8 needs ranges: --calib DIR with at least 16 photographs"
    assert manifest.calibration is None


def test_a_calibration_of_another_graph_is_left_out_and_the_manifest_says_so(
    calibrated: Path, toy_data: Path, tmp_path: Path, reseal: Callable[..., None]
) -> None:
    import onnx

    root = Path(shutil.copytree(calibrated, tmp_path / "other"))
    graph = onnx.load_from_string((root / "graph.onnx").read_bytes())
    graph.doc_string = "another one"
    (root / "graph.onnx").write_bytes(graph.SerializeToString())
    reseal(root, files=manifest_of(calibrated).files | {"graph.onnx": hash_file(root / "graph.onnx")})
    steps: list[str] = []
    options = BuildOptions(data=toy_data, budget=LOOSE, targets=[OPENVINO], progress=steps.append)
    manifest = build(str(root), tmp_path / "out", options)
    [reason] = [r.reason for r in manifest.rejected if r.precision == "int8"]
    assert "calibration.npz is not of graph.onnx; calibrate again with --calib DIR" in reason
    assert any(step.startswith("warning: calibration.npz is left out") for step in steps)
    assert manifest.calibration is None
    assert "calibration.npz" not in manifest.files
    with pytest.raises(UsageError, match="calibrate again with --calib DIR"):
        build(str(root), tmp_path / "int8", replace(options, precision=Precision.INT8))
    assert not (tmp_path / "int8").exists()


def test_int8_by_name_without_photographs_is_wrong_use(
    exported: Path, toy_data: Path, tmp_path: Path
) -> None:
    options = BuildOptions(data=toy_data, precision=Precision.INT8, targets=[OPENVINO])
    with pytest.raises(UsageError, match="int8 needs ranges: --calib DIR"):
        build(str(exported), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_the_same_command_twice_gives_the_same_graphs_to_the_byte(
    exported: Path, toy_data: Path, calibration_photographs: Path, tmp_path: Path
) -> None:
    options = BuildOptions(
        data=toy_data,
        calib=calibration_photographs,
        precision=Precision.INT8,
        budget=LOOSE,
        targets=[OPENVINO],
    )
    for name in ("first", "second"):
        build(str(exported), tmp_path / name, options)
    for file in ("graph.int8.onnx", "calibration.npz"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_a_bundle_that_is_built_again_needs_no_second_pass(
    calibrated: Path, toy_data: Path, calibration_photographs: Path, tmp_path: Path
) -> None:
    steps: list[str] = []
    options = BuildOptions(
        data=toy_data,
        calib=calibration_photographs,
        precision=Precision.INT8,
        method="minmax",
        budget=LOOSE,
        targets=[OPENVINO],
        progress=steps.append,
    )
    manifest = build(str(calibrated), tmp_path / "again", options)
    assert any("calibration: kept" in step for step in steps)
    assert manifest.calibration is not None
    assert (manifest.calibration.method, manifest.calibration.images) == ("minmax", 24)
    graphs = [(root / "graph.int8.onnx").read_bytes() for root in (calibrated, tmp_path / "again")]
    assert graphs[0] != graphs[1], "another method gives other ranges"


def test_too_few_photographs_are_an_error_and_nothing_is_written(
    exported: Path, toy_data: Path, few: Path, tmp_path: Path
) -> None:
    options = BuildOptions(data=toy_data, calib=few, targets=[OPENVINO])
    with pytest.raises(DatasetError, match="at least 16 are needed"):
        build(str(exported), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


# The budget


def test_what_is_over_the_budget_is_left_out_and_the_manifest_says_why(
    exported: Path, toy_data: Path, calibration_photographs: Path, tmp_path: Path
) -> None:
    options = BuildOptions(
        data=toy_data, calib=calibration_photographs, budget=Budget(kl=0.0), targets=[OPENVINO]
    )
    manifest = build(str(exported), tmp_path / "out", options)
    assert [e.precision for e in manifest.engines] == ["fp32"]
    assert [g.path for g in manifest.graphs] == ["graph.onnx"]
    assert {n for n in manifest.files if n.endswith(".onnx")} == {"graph.onnx"}
    reasons = {r.precision: r.reason for r in manifest.rejected}
    assert all("mean KL" in reasons[p] for p in ("bf16", "int8"))
    lowered = [p for p in manifest.plans if set(p.backbones.values()) != {"fp32"}]
    assert lowered
    assert all(p.reasons and not p.chosen for p in lowered)


def test_a_precision_by_name_over_the_budget_fails_the_build_and_nothing_is_written(
    exported: Path, toy_data: Path, tmp_path: Path
) -> None:
    options = BuildOptions(data=toy_data, precision=Precision.BF16, budget=Budget(kl=0.0), targets=[OPENVINO])
    with pytest.raises(GateError, match=r"failed parity: .*mean KL .* the budget is 0; .*--force"):
        build(str(exported), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_force_keeps_it_and_the_manifest_says_so(
    exported: Path, toy_data: Path, tmp_path: Path, vsa: Cli, coffee: Path
) -> None:
    out = tmp_path / "forced"
    options = BuildOptions(
        data=toy_data, precision=Precision.BF16, budget=Budget(kl=0.0), targets=[OPENVINO], force=True
    )
    [engine] = build(str(exported), out, options).engines
    assert not engine.gate.passed
    assert "mean KL" in engine.gate.reasons[0]
    done = vsa("inspect", out)
    assert "FAILS" in done.stdout.upper()
    refused = vsa("run", out, coffee)
    assert refused.returncode == 3
    assert "failed parity" in refused.stderr
    opened = vsa("run", out, coffee, "--target", "openvino:cpu", "--format", "jsonl")
    assert opened.returncode == 0, opened.stderr
    assert json.loads(opened.stdout)["label"]


def test_check_holds_an_engine_to_the_budget_that_it_was_built_under(
    exported: Path, toy_data: Path, tmp_path: Path, vsa: Cli
) -> None:
    out = tmp_path / "forced"
    options = BuildOptions(
        data=toy_data, precision=Precision.BF16, budget=Budget(kl=0.0), targets=[OPENVINO], force=True
    )
    build(str(exported), out, options)
    done = vsa("check", out, "--data", toy_data, "--json")
    assert done.returncode == 1
    [stage] = [s for s in json.loads(done.stdout)["stages"] if s["stage"] == "openvino:cpu bf16"]
    assert any("the budget is 0" in reason for reason in stage["reasons"])


@pytest.mark.parametrize("text", ["flips", "flips=2", "speed=1", "kl=-1", "flips=1%,flips=2%", "kl=nan"])
def test_a_budget_that_is_none_is_wrong_use(text: str, vsa: Cli, exported: Path, tmp_path: Path) -> None:
    done = vsa("build", exported, "-o", tmp_path / "out", "--budget", text)
    assert done.returncode == 2
    assert "budget" in done.stderr
    assert not (tmp_path / "out").exists()


# Excluded nodes


def test_excluded_nodes_stay_in_fp32(
    exported: Path, toy_data: Path, calibration_photographs: Path, tmp_path: Path
) -> None:
    import onnx

    source = onnx.load_from_string((exported / "graph.onnx").read_bytes())
    names = [n.name for n in source.graph.node if n.op_type == "Conv"][:2]
    options = BuildOptions(
        data=toy_data,
        calib=calibration_photographs,
        precision=Precision.INT8,
        budget=LOOSE,
        exclude=names,
        targets=[OPENVINO],
    )
    [engine] = build(str(exported), tmp_path / "out", options).engines
    assert engine.exclude == names
    lowered = onnx.load_from_string((tmp_path / "out" / engine.graph).read_bytes())
    made = {o: n.op_type for n in lowered.graph.node for o in n.output}
    products = {n.name: made.get(n.input[1]) for n in lowered.graph.node if n.op_type == "Conv"}
    assert {name for name, kind in products.items() if kind is None} == set(names)


def test_a_list_of_excluded_nodes_is_read_with_its_comments(
    exported: Path, toy_data: Path, tmp_path: Path, vsa: Cli
) -> None:
    listed = tmp_path / "exclude.txt"
    listed.write_text("# KL 0.1 to 0.01\n\nno_such_node\n", encoding="utf-8")
    done = vsa(
        "build", exported, "-o", tmp_path / "out", "--data", toy_data, "--precision", "bf16",
        "--target", "openvino:cpu", "--exclude", listed,
    )  # fmt: skip
    assert done.returncode == 2
    assert "excluded node 'no_such_node': the graph has none of that name" in done.stderr


def test_a_list_that_cannot_be_read_is_wrong_use(exported: Path, tmp_path: Path, vsa: Cli) -> None:
    done = vsa("build", exported, "-o", tmp_path / "out", "--exclude", tmp_path / "absent.txt")
    assert done.returncode == 2
    assert "--exclude" in done.stderr


# Who leads


def engine(name: str, first: float, largest: float, passed: bool = True) -> EngineRecord:
    gate = GateRecord(
        stage=name, reference="onnx", images=1, passed=passed, reasons=[], worst={}, flips=0, ties=0
    )
    return EngineRecord(
        target="openvino:cpu", precision="fp32", graph="graph.onnx", plan={}, exclude=[], achieved=None,
        folder=name, files=["f"], version="", machine="", latency_ms={"1": first, "8": largest}, threads=2,
        division={}, gate=gate,
    )  # fmt: skip


def test_the_engine_leads_that_is_nowhere_much_slower_than_the_fastest() -> None:
    quick, even, slow = engine("quick", 10.0, 80.0), engine("even", 10.3, 61.0), engine("slow", 20.0, 60.0)
    assert [e.folder for e in ranked([slow, quick, even])] == ["even", "quick", "slow"]


def test_an_engine_that_failed_comes_last_however_fast() -> None:
    failed, held = engine("failed", 1.0, 1.0, passed=False), engine("held", 10.0, 60.0)
    assert [e.folder for e in ranked([failed, held])] == ["held", "failed"]
    assert [e.folder for e in ranked([failed])] == ["failed"]
