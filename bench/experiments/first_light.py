"""What the first-light issue asked to be measured: ``python -m vsa_rt.bench.experiments.first_light BUNDLE PHOTOGRAPHS``.

Every ratio is of one interleaved run and names the precision of both sides; every engine gets the same threads.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from vsa_rt.bench import clock
from vsa_rt.bench.bare import bare_call
from vsa_rt.bench.baselines import BASELINES, Sources
from vsa_rt.bench.candidate import Tensors
from vsa_rt.bench.intervals import ratio
from vsa_rt.bench.workload import from_photographs
from vsa_rt.bundle import Bundle
from vsa_rt.errors import ItemError
from vsa_rt.runtime.fused import Runtime
from vsa_rt.runtime.load import load
from vsa_rt.runtime.preprocess import Preprocessor

if TYPE_CHECKING:
    from vsa_rt.export.ensemble import LoadedEnsemble

THREADS = 2


@dataclass(frozen=True)
class Row:
    """One figure of the report: what, how much, and what was asked for."""

    what: str
    value: float
    low: float | None
    high: float | None
    unit: str
    asked: str
    note: str = ""


def photographs(folder: Path, count: int) -> list[Path]:
    """The first photographs of a folder, in sorted order."""
    return list(islice(sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg")), count))


def ready_tensors(bundle: Bundle, paths: Sequence[Path], batch: int) -> dict[str, NDArray[Any]]:
    """One batch of real photographs as graph inputs, with stand-ins for what lies beside them.

    Raises:
        ItemError: One of them cannot be read.
    """
    workload = from_photographs(bundle.manifest, paths[:batch], "as given")
    for error in workload.rejected:
        raise error
    return workload.tensors(batch)[0]


def sources(bundle: Bundle) -> Sources:
    """The same ensemble in PyTorch: the shipped recipe's weights or the bundle's seeds, and the bundle's head."""
    recipe = bundle.manifest.recipe
    if recipe is None:
        raise SystemExit(
            f"{bundle.root}: was not built from a recipe: there is no PyTorch model to compare with"
        )

    def ensemble() -> LoadedEnsemble:
        from vsa_rt.export.ensemble import load_ensemble
        from vsa_rt.recipe_file import find_recipe

        records = bundle.manifest.checkpoints.values()
        seed = next((c.random_seed for c in records if c.random_seed is not None), None)
        with tempfile.TemporaryDirectory() as folder:
            head = Path(folder) / "head.safetensors"
            head.write_bytes(bundle.read(head.name))
            return load_ensemble(recipe, find_recipe(recipe.name).parent, {"head": head}, seed)

    return Sources(ensemble, bundle, THREADS)


def baseline_calls(
    names: Sequence[str], made_of: Sources, inputs: Tensors
) -> dict[str, Callable[[], Tensors]]:
    """Baselines as calls on one batch."""
    return {name: partial(BASELINES[name].make(name, made_of, inputs).call, inputs) for name in names}


def _fused(bundle: Bundle, precision: str) -> Runtime:
    return load(bundle, target="openvino:cpu", precision=precision, threads=THREADS)


def ratios(bundle: Bundle, paths: Sequence[Path], rounds: int) -> Iterator[Row]:
    """Fused against PyTorch eager and against separate sessions."""
    asked = {1: ("4.0", "0.97", "1.4"), 8: ("5.0", "0.97", "1.7")}
    fused = {p: _fused(bundle, p) for p in ("fp32", "bf16")}
    made_of = sources(bundle)
    for batch, (eager, equal, best) in asked.items():
        inputs = ready_tensors(bundle, paths, batch)
        baselines = baseline_calls(["eager", "openvino-separate"], made_of, inputs)
        calls: dict[str, Callable[[], object]] = {
            "torch": baselines["eager"],
            "separate": baselines["openvino-separate"],
            "fp32": partial(fused["fp32"].infer, inputs),
            "bf16": partial(fused["bf16"].infer, inputs),
        }
        samples = clock.measure(calls, rounds)
        for name, series in samples.items():
            yield Row(f"{name}, batch {batch}", clock.median_ms(series), min(series), max(series), "ms", "")
        for slow, quick, names, wanted in (
            ("torch", "bf16", "PyTorch eager fp32 / fused bf16", eager),
            ("torch", "fp32", "PyTorch eager fp32 / fused fp32", ""),
            ("separate", "fp32", "three OpenVINO fp32 sessions / fused fp32", equal),
            ("separate", "bf16", "three OpenVINO fp32 sessions / fused bf16", best),
        ):
            r = ratio(samples[slow], samples[quick])
            yield Row(f"{names}, batch {batch}", r.median, r.low, r.high, "x", wanted, f"{r.pairs} pairs")
    for runtime in fused.values():
        runtime.close()


def overhead(bundle: Bundle, paths: Sequence[Path], rounds: int) -> Iterator[Row]:
    """``rt.infer`` on ready tensors against the bare infer request of the same compiled model."""
    runtime = _fused(bundle, "bf16")
    inputs = ready_tensors(bundle, paths, 1)
    bare = bare_call(runtime, inputs)
    samples = clock.measure({"bare": bare, "rt": lambda: runtime.infer(inputs)}, rounds)
    gaps = sorted(b - a for a, b in zip(samples["bare"], samples["rt"], strict=True))
    bare_ms = clock.median_ms(samples["bare"])
    limit = max(0.03 * bare_ms, 0.1)
    low, high = gaps[len(gaps) // 4], gaps[3 * len(gaps) // 4]
    yield Row(
        "rt.infer beyond the bare bf16 call, batch 1",
        clock.median_ms(gaps),
        low,
        high,
        "ms",
        f"under {limit:.2f}",
        f"quartiles of {len(gaps)} pairs; bare call {bare_ms:.2f} ms",
    )
    runtime.close()


def _engine_only(runtime: Runtime, inputs: Tensors, streams: int) -> Callable[[], int]:
    """All streams busy with ready tensors: as fast as the engine alone can be."""
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(streams)
    count = len(next(iter(inputs.values())))

    def one(slot: Any) -> Tensors:
        outputs: Tensors = {}
        for _ in range(4):
            outputs = slot.run(inputs)
        return outputs

    def call() -> int:
        list(pool.map(one, runtime.session.slots[:streams]))
        return 4 * count * streams

    return call


def files(bundle: Bundle, paths: Sequence[Path], turns: int) -> Iterator[Row]:
    """From JPEG files to labels against the bound of two cores, and the fast resample against the engine alone."""
    batch = min(4, bundle.manifest.max_batch)
    options = {"threads": THREADS, "streams": THREADS, "batch": batch}
    exact = load(bundle, **options)  # type: ignore[arg-type]
    fast = load(bundle, resample="fast", **options)  # type: ignore[arg-type]
    inputs = ready_tensors(bundle, paths, batch)
    engine = _engine_only(exact, inputs, THREADS)
    specs = {i.name: i.resize for i in bundle.manifest.inputs if i.resize is not None}
    host, rows = Preprocessor(specs), {n: a[0] for n, a in inputs.items()}

    def host_only() -> int:
        for path in paths:
            host.write(path, {n: r.copy() for n, r in rows.items()}, item="")
        return len(paths)

    def whole(runtime: Runtime) -> int:
        bad = sum(isinstance(r, ItemError) for r in runtime.map(paths))
        return len(paths) - bad

    for warm in (engine, host_only, lambda: whole(exact), lambda: whole(fast)):
        warm()
    found: dict[str, list[float]] = {"engine": [], "host": [], "exact": [], "fast": []}
    for _ in range(turns):
        found["engine"].append(clock.throughput(engine, 3))
        found["exact"].append(clock.throughput(lambda: whole(exact), 3))
        found["host"].append(clock.throughput(host_only, 1.5))
        found["fast"].append(clock.throughput(lambda: whole(fast), 3))
    engine_ms = [THREADS * 1000 / v for v in found["engine"]]
    host_ms = [1000 / v for v in found["host"]]
    bound = [THREADS * 1000 / (e + h) for e, h in zip(engine_ms, host_ms, strict=True)]
    shares = [v / b for v, b in zip(found["exact"], bound, strict=True)]
    fast_shares = [v / e for v, e in zip(found["fast"], found["engine"], strict=True)]
    name = f"{exact.choice.engine.target} {exact.choice.engine.precision}, {THREADS} streams, batch {batch}"

    def row(what: str, values: list[float], unit: str, asked: str = "") -> Row:
        return Row(what, clock.median_ms(values), min(values), max(values), unit, asked, name)

    yield row("engine", engine_ms, "core-ms/image")
    yield row("host: decode and exact resize", host_ms, "core-ms/image")
    yield row("bound of two cores", bound, "images/s")
    yield row("from JPEG files to labels", found["exact"], "images/s")
    yield row("share of the bound, exact", shares, "x", "0.90")
    yield row("engine alone", found["engine"], "images/s")
    yield row("share of the engine alone, fast resample", fast_shares, "x", "0.80")
    for runtime in (exact, fast):
        runtime.close()


def _process_seconds(arguments: list[str], repeats: int) -> list[float]:
    def call() -> object:
        return subprocess.run(arguments, check=True, capture_output=True)

    return [clock.single(call) for _ in range(repeats + 1)][1:]


def processes(root: Path, paths: Sequence[Path]) -> Iterator[Row]:
    """Whole processes: the bare import, and one photograph."""
    for what, arguments, asked in (
        ("python -c pass", [sys.executable, "-c", "pass"], ""),
        ("import vsa_rt, whole process", [sys.executable, "-c", "import vsa_rt"], "under 0.3"),
        (
            "vsa-rt run on one photograph",
            [sys.executable, "-m", "vsa_rt", "run", str(root), str(paths[0])],
            "under 2.5",
        ),
    ):
        taken = _process_seconds(arguments, 5)
        yield Row(what, clock.median_ms(taken), min(taken), max(taken), "s", asked)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--only", choices=["ratios", "overhead", "files", "processes"], action="append")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    bundle, paths = Bundle.open(chosen.bundle), photographs(chosen.photographs, 96)
    if not paths:
        raise SystemExit(f"{chosen.photographs}: no JPEG files")
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "ratios": lambda: ratios(bundle, paths, chosen.rounds),
        "overhead": lambda: overhead(bundle, paths, 4 * chosen.rounds),
        "files": lambda: files(bundle, paths, 5),
        "processes": lambda: processes(chosen.bundle, paths),
    }
    rows = []
    for name, part in parts.items():
        for row in part() if not chosen.only or name in chosen.only else ():
            rows.append(row)
            if not chosen.json:
                interval = f"[{row.low:.3f}, {row.high:.3f}]" if row.low is not None else ""
                asked = f"asked {row.asked}" if row.asked else ""
                print(
                    f"{row.what:<58} {row.value:9.3f} {row.unit:<14} {interval:<20} {asked:<14} {row.note}",
                    flush=True,
                )
    if chosen.json:
        print(json.dumps({"machine": platform.processor(), "rows": [asdict(r) for r in rows]}, indent=2))


if __name__ == "__main__":
    main()
