"""What precision gains: the engines of a bundle against its own fp32, its best single precision and what one would use instead.

Usage: ``python -m vsa_rt.bench.experiments.precision BUNDLE PHOTOGRAPHS [--calib DIR] [--against NAME]... [--batch 1,8]``

Every ratio is of one interleaved run on the same ready tensors, two threads each. The bundle's default, which ``auto``
chose, is called the plan. With ``--calib`` calibration is timed as well, and run twice: in processes of their own, which
say how long it took, how much memory, and what the lowered graph's hash is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from vsa_rt.architecture import ARCHITECTURES, family_of
from vsa_rt.bench import clock
from vsa_rt.bench.experiments.first_light import THREADS, baseline_calls, ready_tensors, sources
from vsa_rt.bench.experiments.rows import Row, photographs_in, print_rows
from vsa_rt.bench.intervals import ratio
from vsa_rt.bench.workload import MOST, from_photographs
from vsa_rt.bundle import Bundle
from vsa_rt.dataset import read_dataset
from vsa_rt.manifest import EngineRecord
from vsa_rt.runtime.fused import Runtime
from vsa_rt.runtime.load import load

#: What precision cannot explain: the same graph, whole, at OpenVINO's own default, which is bf16 on such processors.
_DEFAULT = "openvino-default"
#: Photographs that are calibrated on, and how many go through the graph at once.
_CALIBRATED, _AT_ONCE = 128, 8
_FOLDS = 5


def _name(engine: EngineRecord) -> str:
    return f"{engine.target} {engine.precision}"


def ratios(
    bundle: Bundle, paths: Sequence[Path], rounds: int, batches: Sequence[int], against: Sequence[str]
) -> Iterator[Row]:
    """The plan against its own fp32, the best single precision that holds, and baselines."""
    engines = bundle.manifest.engines
    plan = engines[0]
    exact = next((e for e in engines if e.target == plan.target and e.precision == "fp32"), None)
    if exact is None:
        raise SystemExit(f"{bundle.root}: holds no fp32 engine of {plan.target} to compare with")
    single = {_name(e) for e in engines if e.precision != "mixed" and e.gate.passed}
    runtimes: dict[str, Runtime] = {
        _name(e): load(bundle, target=e.target, precision=e.precision, threads=THREADS) for e in engines
    }
    for batch in batches:
        inputs = ready_tensors(bundle, paths, batch)
        calls: dict[str, Callable[[], object]] = {
            name: partial(runtime.infer, inputs) for name, runtime in runtimes.items()
        }
        calls |= baseline_calls(list(against), sources(bundle), inputs)
        samples = clock.measure(calls, rounds, warm_up=2)
        for name, values in samples.items():
            yield Row(f"{name}, batch {batch}", clock.median_ms(values), min(values), max(values), "ms")
        best = min(single, key=lambda name: clock.median_ms(samples[name]))
        sides = dict.fromkeys([_name(exact), best, *against])
        for other in sides:
            found = ratio(samples[other], samples[_name(plan)])
            words = f"{other}{' (best single precision)' if other == best else ''}"
            yield Row(
                f"{words} / the plan ({_name(plan)}), batch {batch}",
                found.median,
                found.low,
                found.high,
                "x",
                f"{found.pairs} pairs",
            )
    for runtime in runtimes.values():
        runtime.close()


def _peak_gib() -> float:
    """This process's largest memory. ``getrusage`` would give that of who started it, where that was larger."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20


def calibrate_once(root: Path, calib: Path) -> dict[str, float | str]:
    """Measure ranges over photographs, lower the bundle's graph to int8, and say what that took.

    The parts of ``vsa-rt build --precision int8 --calib`` that calibrate, without the engine and its gate.
    """
    from vsa_rt.contracts import Precision
    from vsa_rt.engines.executor import GraphExecutor
    from vsa_rt.export.calibration.collect import CalibrationBatch, collect
    from vsa_rt.export.calibration.thresholds import threshold_of
    from vsa_rt.export.foreign import graph_from_bytes
    from vsa_rt.export.lowering.lower import activations, lower
    from vsa_rt.plan import Plan

    bundle = Bundle.open(root)
    manifest = bundle.manifest
    taps = [t.name for t in manifest.taps if t.kind == "backbone"]
    backbones = manifest.recipe.backbones if manifest.recipe is not None else []
    cancel = {b.name for b in backbones if ARCHITECTURES[family_of(b.architecture)].exact}
    exact = {t.name: t.reads for t in manifest.taps if t.name in cancel and t.reads in taps}
    stopwatch = clock.Stopwatch()
    graph = bundle.read(manifest.graphs[0].path)
    source = graph_from_bytes(graph, str(root))
    paths = photographs_in(calib)
    even = [paths[i * len(paths) // _CALIBRATED] for i in range(min(_CALIBRATED, len(paths)))]
    # Read as many at a time as are kept in memory; all of them go through the graph.
    parts = [from_photographs(manifest, even[n : n + MOST], "as given") for n in range(0, len(even), MOST)]
    count = sum(len(part.names) for part in parts)
    batches = [
        CalibrationBatch(part.names[n : n + _AT_ONCE], {k: v[n : n + _AT_ONCE] for k, v in part.rows.items()})
        for part in parts
        for n in range(0, len(part.names), _AT_ONCE)
    ]
    found = collect(
        graph,
        activations(source, taps, exact),
        batches,
        lambda whole: GraphExecutor(whole).run,
        lambda _step: None,
    )
    method = threshold_of("mse")
    ranges = {name: method(histogram) for name, histogram in found.items()}
    lowered = lower(source, Plan.uniform(taps, Precision.INT8), exact, ranges).SerializeToString()
    return {
        "images": count,
        "seconds": stopwatch.total() / 1e3,
        "peak_gib": _peak_gib(),
        "graph": hashlib.sha256(lowered).hexdigest(),
    }


def folds(bundle: Bundle, data: Path) -> Iterator[Row]:
    """Accuracy of heads trained and tested on the features of each engine, in the same five stratified folds."""
    from sklearn.model_selection import StratifiedKFold

    from vsa_rt.export.training import join_features, predict, train_head

    recipe = bundle.manifest.recipe
    if recipe is None:
        raise SystemExit(f"{bundle.root}: was not built from a recipe: there is no head to train")
    labelled = [(p, p.labels[0]) for p in read_dataset(data).photographs if p.labels]
    targets = np.array([recipe.labels.index(label) for _, label in labelled])
    splits = list(StratifiedKFold(_FOLDS, shuffle=True, random_state=0).split(targets, targets))
    for engine in bundle.manifest.engines:
        with load(bundle, target=engine.target, precision=engine.precision, threads=THREADS) as runtime:
            taps = runtime.features([p.path for p, _ in labelled])
        features = join_features(recipe, {name: taps[name] for name in recipe.head.features})
        right = []
        for train, test in splits:
            head = train_head(recipe, features[train], targets[train], 0)
            said = predict(head, features[test], recipe)
            right.append(100 * float((said == targets[test]).mean()))
        yield Row(
            f"accuracy on features of {_name(engine)}, {_FOLDS} folds",
            float(np.mean(right)),
            min(right),
            max(right),
            "%",
            f"{len(targets)} photographs",
        )


def calibrations(root: Path, calib: Path) -> Iterator[Row]:
    """The same calibration in two processes."""
    runs = []
    for _ in range(2):
        command = [
            sys.executable,
            "-m",
            "vsa_rt.bench.experiments.precision",
            str(root),
            str(calib),
            "--once",
        ]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        runs.append(json.loads(done.stdout))
    first, second = runs
    for key, unit in (("seconds", "s"), ("peak_gib", "GiB")):
        values = [run[key] for run in runs]
        yield Row(
            f"calibrating and lowering, {key}",
            max(values),
            min(values),
            max(values),
            unit,
            f"{first['images']} photographs, two runs",
        )
    same = float(first["graph"] == second["graph"])
    yield Row("both int8 graphs are the same to the byte", same, same, same, "", first["graph"][:12])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", default="1,8", help="batch sizes, such as 1,8")
    parser.add_argument("--against", action="append", help="a baseline of vsa-rt bench; repeats")
    parser.add_argument("--calib", type=Path, help="time calibration on these photographs as well")
    parser.add_argument("--folds", type=Path, help="train and test heads on these labelled photographs")
    parser.add_argument("--once", action="store_true", help="calibrate on PHOTOGRAPHS and print JSON")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    if chosen.once:
        print(json.dumps(calibrate_once(chosen.bundle, chosen.photographs)))
        return
    paths = photographs_in(chosen.photographs)
    batches = [int(b) for b in chosen.batch.split(",")]

    def found() -> Iterator[Row]:
        yield from ratios(
            Bundle.open(chosen.bundle), paths, chosen.rounds, batches, chosen.against or [_DEFAULT]
        )
        if chosen.folds is not None:
            yield from folds(Bundle.open(chosen.bundle), chosen.folds)
        if chosen.calib is not None:
            yield from calibrations(chosen.bundle, chosen.calib)

    print_rows(found(), chosen.json)


if __name__ == "__main__":
    main()
