"""What a manifest must satisfy beyond its types: it contradicts neither itself, nor its recipe, nor its plans."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from vsa_rt.contracts import DIVISIONS, Precision, Target, scores_kind
from vsa_rt.errors import BundleError
from vsa_rt.plan import AROUND, BACKBONE_PRECISIONS
from vsa_rt.recipe import needed_backbones, options_of, tensor_input, views_of_recipe
from vsa_rt.recipe_rules import check_recipe

if TYPE_CHECKING:
    from vsa_rt.manifest import EngineRecord, GraphRecord, Manifest, PlanRecord, StageRecord

#: More images than this in one call are nobody's wish; it bounds what a foreign manifest can allocate.
MAX_BATCH = 1024
#: Of one image's tensor, for the same reason: a quarter of a gigabyte of bytes, one of floats.
MAX_ELEMENTS = 2**28
_DTYPES = frozenset({"uint8", "float32", "float16", "int32", "int64"})


def _check_tensors(manifest: Manifest) -> str:
    """What is wrong with the inputs and taps; empty if nothing is."""
    if not manifest.inputs or not manifest.taps or not manifest.graphs:
        return "a graph, its inputs and its taps are expected"
    for record in manifest.inputs:
        if record.dtype not in _DTYPES or not record.shape or min(record.shape) < 1:
            return f"input {record.name!r} is {record.dtype} {record.shape}"
        resize = record.resize
        if record.rows and (resize is not None or record.dtype != "float32" or len(record.shape) != 2):
            return f"input {record.name!r} has rows, but is {record.dtype} {record.shape}"
        if resize is not None and record.shape != [resize.height, resize.width, 3]:
            return f"input {record.name!r} has shape {record.shape}, its resize gives {resize.height} x {resize.width}"
        if math.prod(record.shape) > MAX_ELEMENTS:
            return f"input {record.name!r} has {math.prod(record.shape)} elements"
    for tap in manifest.taps:
        if not 1 <= tap.width <= MAX_ELEMENTS:
            return f"tap {tap.name!r} has the width {tap.width}"
    scores = [t.width for t in manifest.taps if t.kind == "scores"]
    if manifest.labels and scores != [len(manifest.labels)]:
        return f"{len(manifest.labels)} labels do not fit scores of width {scores}"
    return _check_views(manifest)


def _check_views(manifest: Manifest) -> str:
    """What is wrong with the views of an image; empty if nothing is."""
    views = manifest.views
    if not 1 <= views.count <= MAX_ELEMENTS or views.rows * views.columns not in (0, views.count):
        return f"{views.count} views on a grid of {views.rows} x {views.columns}"
    if views.rows < 0 or views.columns < 0 or bool(views.rows) != (0 < views.window <= 1):
        return f"{views.rows} x {views.columns} views that each cover {views.window} of the image"
    given = [(t.name, t.width) for t in manifest.taps if t.kind == "views"]
    wanted = [("views", views.count * len(manifest.labels))] if views.count > 1 and manifest.labels else []
    return "" if given == wanted else f"{views.count} views do not fit taps of views of the widths {given}"


def _check_words(manifest: Manifest) -> str:
    """What is wrong with labels, batch and names; empty if nothing is."""
    if len(set(manifest.labels)) != len(manifest.labels):
        return "a label is named twice"
    if manifest.recipe is not None and manifest.recipe.labels != manifest.labels:
        return f"labels {manifest.labels} are not the recipe's {manifest.recipe.labels}"
    if not 1 <= manifest.max_batch <= MAX_BATCH or not 0 < manifest.threshold < 1:
        return f"max_batch {manifest.max_batch}, threshold {manifest.threshold}"
    named = (
        {g.path for g in manifest.graphs} | {f for e in manifest.engines for f in e.files} | {manifest.golden}
    )
    if not all(e.files for e in manifest.engines):
        return "an engine has no files"
    if manifest.calibration is not None:
        named.add(manifest.calibration.path)
    unlisted = sorted(n for n in named if n not in manifest.files)
    if unlisted:
        return f"{unlisted[0]!r} is named but not among the files"
    known = {str(p) for p in Precision}
    used = {g.precision for g in manifest.graphs} | {e.precision for e in manifest.engines}
    unknown = sorted(used - known)
    return f"unknown precision {unknown[0]!r}" if unknown else ""


def _check_recipe(manifest: Manifest) -> str:
    """What the inputs and taps have that the recipe does not imply, or lack; empty if nothing."""
    for names in ([i.name for i in manifest.inputs], [t.name for t in manifest.taps]):
        twice = sorted(name for name, times in Counter(names).items() if times > 1)
        if twice:
            return f"{twice[0]!r} is an input or a tap twice"
    recipe = manifest.recipe
    if recipe is None or recipe.graph is not None:
        return ""
    said = (manifest.task, manifest.threshold, manifest.scores_kind, manifest.views)
    meant = (
        recipe.task,
        recipe.threshold,
        scores_kind(recipe.task, recipe.head.kind),
        views_of_recipe(recipe),
    )
    if said != meant:
        return f"task, threshold, kind of scores and views are {said}, by its recipe {meant}"
    needed = needed_backbones(recipe)
    implied = dict(given for given in map(tensor_input, needed) if given is not None)
    ready = {i.name: i for i in manifest.inputs if i.resize is None}
    missing = sorted(implied.keys() - ready.keys())
    if missing:
        return f"the recipe takes {missing[0]!r}, which is no input"
    for name, record in ready.items():
        if name not in implied:
            return f"input {name!r} is a ready tensor, which the recipe does not take"
        if record.shape != implied[name] or not record.rows:
            rows = "" if record.rows else ", not of rows"
            return f"input {name!r} is {record.shape}{rows}; the recipe takes rows of {implied[name]}"
    tapped = {t.name for t in manifest.taps if t.kind == "backbone"}
    # Equal backbones are computed once: the tap then has the name of another one of its kind.
    shared = {(b.architecture, options_of(b)) for b in needed if b.name in tapped}
    for backbone in needed:
        alike = (backbone.architecture, options_of(backbone)) in shared
        if backbone.name in recipe.head.features and backbone.name not in tapped and not alike:
            return f"the head takes {backbone.name!r}, which is no tap"
    return ""


def _is_number(values: Iterable[float]) -> bool:
    return all(math.isfinite(v) and v >= 0 for v in values)


def _check_precisions(manifest: Manifest, backbones: Mapping[str, str], around: str) -> str:
    """What is wrong with the precisions of a graph's backbones; empty if nothing is."""
    words = {str(p) for p in BACKBONE_PRECISIONS}
    for tap, precision in backbones.items():
        if precision not in words:
            return f"backbone {tap!r} is {precision!r}, which no backbone can be"
    if around not in {str(p) for p in AROUND}:
        return f"nothing around int8 can be {around!r}"
    unknown = sorted(backbones.keys() - {t.name for t in manifest.taps})
    if unknown:
        return f"{unknown[0]!r} has a precision, but is no tap"
    left = [t.name for t in manifest.taps if t.kind == "backbone" and t.name not in backbones]
    return f"backbone {left[0]!r} has no precision" if left else ""


def _is_batch(text: str) -> bool:
    """Whether a key of JSON is a batch size."""
    return text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= MAX_BATCH


def _check_graphs(manifest: Manifest) -> str:
    """What is wrong with the precisions of graphs and engines; empty if nothing is."""
    graphs = {g.path: g for g in manifest.graphs}
    if len(graphs) < len(manifest.graphs):
        return "a graph is listed twice"
    records: list[GraphRecord | EngineRecord] = [*manifest.graphs, *manifest.engines]
    for record in records:
        problem = _check_precisions(manifest, record.plan, record.around)
        used = set(record.plan.values())
        one = next(iter(used)) if len(used) == 1 else str(Precision.MIXED)
        if not problem and used and record.precision != one:
            problem = f"{record.precision} is said of what is planned as {one}"
        if problem:
            return problem
    for engine in manifest.engines:
        graph = graphs.get(engine.graph)
        if graph is None:
            return f"{engine.folder!r} was built from {engine.graph!r}, which is no graph"
        if (graph.plan, graph.around) != (engine.plan, engine.around):
            return f"{engine.folder!r} is planned otherwise than {engine.graph!r}, which it was built from"
        words = set(engine.division.values()) <= set(DIVISIONS)
        if not words or not all(_is_batch(b) for b in engine.division) or engine.threads < 1:
            return f"{engine.folder!r} divides batches as {engine.division} among {engine.threads} threads"
        if len(set(engine.exclude)) < len(engine.exclude):
            return f"{engine.folder!r} excludes a node twice"
        problem = _check_compiled(manifest, engine)
        if problem:
            return f"{engine.folder!r} {problem}"
    return ""


def _check_compiled(manifest: Manifest, engine: EngineRecord) -> str:
    """What is wrong with how an engine was compiled or proved; empty if nothing is."""
    if bool(engine.latency_ms) != (engine.proof == "engine"):
        return f"was measured at batches {sorted(engine.latency_ms)}, and its proof is that of the {engine.proof}"
    compiled = engine.compiled
    if compiled is None:
        return "was never run, and nothing says how it was compiled" if engine.proof == "graph" else ""
    if compiled.library != Target.parse(engine.target).backend or not compiled.capabilities:
        return f"is for {engine.target}, and was compiled by {compiled.library} for {compiled.capabilities}"
    least, usual, most = compiled.batches if len(compiled.batches) == 3 else (0, 0, 0)
    if not 1 <= least <= usual <= most <= MAX_BATCH or most < manifest.max_batch:
        return f"takes batches {compiled.batches}, and the bundle's calls have up to {manifest.max_batch}"
    if [s.file for s in compiled.stages] != engine.files[1:]:
        return f"has stages in {[s.file for s in compiled.stages]}, and the files {engine.files[1:]} beside the first"
    return _check_stages(manifest, compiled.stages)


def _check_stages(manifest: Manifest, stages: Sequence[StageRecord]) -> str:
    """What is wrong with the engines that together compute a graph; empty if nothing is."""
    there = {i.name for i in manifest.inputs}
    given: list[str] = []
    for stage in stages:
        missing = sorted(set(stage.inputs) - there)
        if missing or not stage.inputs or not stage.outputs:
            return (
                f"has a stage {stage.name!r} that takes {missing or 'nothing'}, which nothing before it gives"
            )
        there.update(stage.outputs)
        given += stage.outputs
    if len(set(given)) < len(given) or (stages and not {t.name for t in manifest.taps} <= set(given)):
        return f"has stages that give {sorted(given)}, and the graph has other taps"
    return ""


def _check_plan(manifest: Manifest, plan: PlanRecord) -> str:
    """What is wrong with a measured plan; empty if nothing is."""
    Target.parse(plan.target)
    problem = _check_precisions(manifest, plan.backbones, plan.around)
    if problem:
        return problem
    if not plan.latency_ms or plan.latency_ms.keys() != plan.speedup.keys():
        return f"latency at batches {sorted(plan.latency_ms)}, speed at {sorted(plan.speedup)}"
    if not all(map(_is_batch, plan.latency_ms)):
        return f"a plan is measured at batches {sorted(plan.latency_ms)}"
    divergence = [v for v in (plan.kl, plan.kl_worst) if v is not None]
    measured = [*plan.latency_ms.values(), *plan.speedup.values(), plan.widest, *divergence]
    if not _is_number(measured) or not min(*plan.latency_ms.values(), *plan.speedup.values()) > 0:
        return "a measured plan has times or differences that cannot be"
    if min(plan.images, plan.flips, plan.ties, plan.exclude) < 0 or plan.flips + plan.ties > plan.images:
        return f"{plan.flips} flips and {plan.ties} ties of {plan.images} images"
    if plan.accuracy and (len(plan.accuracy) != 3 or not all(map(math.isfinite, plan.accuracy))):
        return f"an accuracy difference with its interval is {plan.accuracy}"
    if plan.accuracy and plan.accuracy[1] > plan.accuracy[2]:
        return f"an interval from {plan.accuracy[1]} to {plan.accuracy[2]}"
    return ""


def _check_plans(manifest: Manifest) -> str:
    """What is wrong with the choice of precisions; empty if nothing is."""
    if manifest.plans and manifest.budget is None:
        return "plans were measured, but there is no budget"
    for plan in manifest.plans:
        problem = _check_plan(manifest, plan)
        if problem:
            return problem
    chosen = Counter(p.target for p in manifest.plans if p.chosen)
    twice = sorted(target for target, times in chosen.items() if times > 1)
    if twice:
        return f"two plans are chosen for {twice[0]}"
    calibration = manifest.calibration
    if calibration is not None and (calibration.images < 1 or calibration.skipped < 0):
        return f"calibrated on {calibration.images} images, {calibration.skipped} skipped"
    return ""


def check_consistency(manifest: Manifest, where: str, advice: str = "rebuild the bundle") -> None:
    """Refuse a manifest that contradicts itself.

    Args:
        manifest: As read.
        where: What to call it in messages.
        advice: What to do about it.

    Raises:
        BundleError: It does.
        UsageError: Its recipe, or a target's name, is wrong in itself.
    """
    for engine in manifest.engines:
        Target.parse(engine.target)
    if manifest.recipe is not None:
        check_recipe(manifest.recipe, where)
    problem = (
        _check_tensors(manifest)
        or _check_words(manifest)
        or _check_graphs(manifest)
        or _check_plans(manifest)
        or _check_recipe(manifest)
    )
    if problem:
        raise BundleError(f"{where}: contradicts itself: {problem}; {advice}")
