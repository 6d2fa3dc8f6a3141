"""SMAP 2021's five-backbone ensemble: one fused call against PyTorch eager, run feature by feature as the paper does.

Usage: ``python -m vsa_rt.bench.experiments.smap BUNDLE PHOTOGRAPHS [--rounds N] [--batch 1,8] [--json]``

The bundle is one of ``vsa-rt build smap2021-moe --random-weights 0``; weights do not change the time. PyTorch runs
each feature from the pixels on its own, so ResNet-152 twice, for R and for S; G takes its objects' features. Both
sides get the same ready tensors, two threads each, interleaved in one run.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.bench import clock
from vsa_rt.bundle import Bundle
from vsa_rt.runtime.load import load
from vsa_rt.runtime.preprocess import Preprocessor

if TYPE_CHECKING:
    from vsa_rt.export.ensemble import LoadedEnsemble
    from vsa_rt.runtime.fused import Runtime

THREADS = 2
Inputs = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        what: What was measured, with the precision of both sides.
        value: Median.
        low: Of a ratio, the lower end of its 95 % interval; of times, the smallest.
        high: Likewise.
        unit: Of the three.
        note: Number of pairs or the like.
    """

    what: str
    value: float
    low: float
    high: float
    unit: str
    note: str = ""


def ready_tensors(bundle: Bundle, paths: Sequence[Path], batch: int) -> Inputs:
    """One batch of photographs as graph inputs; objects are stand-ins made of their pixels."""
    from PIL import Image

    from vsa_rt.contracts import Item
    from vsa_rt.export.stand_ins import stand_in

    inputs = bundle.manifest.inputs
    specs = {i.name: i.resize for i in inputs if i.resize is not None}
    host = Preprocessor(specs, rows={i.name: tuple(i.shape) for i in inputs if i.rows})
    arrays = {i.name: np.zeros((batch, *i.shape), np.dtype(i.dtype)) for i in inputs}
    for index in range(batch):
        path = paths[index % len(paths)]
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        given = {i.name: stand_in(picture, i.name, i.shape) for i in inputs if i.rows}
        host.write(Item(path, given), {n: a[index] for n, a in arrays.items()}, item=str(path))
    return arrays


def feature_by_feature(ensemble: LoadedEnsemble, inputs: Inputs) -> Callable[[], object]:
    """PyTorch eager: every feature of the head from the pixels, one after the other, then the head."""
    import torch

    from vsa_rt.export.head import head_taps

    module = ensemble.module
    trunk = module.trunk
    given = {name: torch.from_numpy(array) for name, array in inputs.items()}
    names = [trunk.same[name] for name in module.recipe.head.features]
    needed = [trunk.needed_for({name}) for name in names]

    def call() -> object:
        with torch.inference_mode():
            features = [trunk(given, only)[name] for name, only in zip(names, needed, strict=True)]
            if module.recipe.head.unit_norm:
                features = [torch.nn.functional.normalize(f, dim=1) for f in features]
            return head_taps(module.head, torch.cat(features, 1), module.recipe.task)

    return call


def shared_trunk(ensemble: LoadedEnsemble, inputs: Inputs) -> Callable[[], object]:
    """PyTorch eager with the trunk computed once: what sharing alone saves."""
    return lambda: ensemble.run(inputs)


def ratios(bundle: Bundle, paths: Sequence[Path], rounds: int, batches: Sequence[int]) -> Iterator[Row]:
    """The fused call in every precision of the bundle against PyTorch."""
    import torch

    from vsa_rt.export.ensemble import load_ensemble

    recipe = bundle.manifest.recipe
    if recipe is None:
        raise SystemExit(f"{bundle.root}: was not built from a recipe")
    torch.set_num_threads(THREADS)
    seeds = {c.random_seed for c in bundle.manifest.checkpoints.values()} - {None}
    if len(seeds) != 1:
        raise SystemExit(f"{bundle.root}: expected a bundle of --random-weights SEED and nothing else")
    ensemble = load_ensemble(recipe, Path(), random_seed=seeds.pop())
    runtimes: dict[str, Runtime] = {
        f"{e.target} {e.precision}": load(bundle, target=e.target, precision=e.precision, threads=THREADS)
        for e in bundle.manifest.engines
    }
    for batch in batches:
        inputs = ready_tensors(bundle, paths, batch)
        eager, shared = "PyTorch eager fp32, feature by feature", "PyTorch eager fp32, shared trunk"
        calls: dict[str, Callable[[], object]] = {
            eager: feature_by_feature(ensemble, inputs),
            shared: shared_trunk(ensemble, inputs),
        }
        for name, runtime in runtimes.items():
            calls[f"fused {name}"] = partial(runtime.infer, inputs)
        samples = clock.measure(calls, rounds, warm_up=2)
        for name, values in samples.items():
            yield Row(f"{name}, batch {batch}", clock.median_ms(values), min(values), max(values), "ms")
        for name in list(samples)[1:]:
            found = clock.ratio(samples[eager], samples[name])
            yield Row(
                f"{eager} / {name}, batch {batch}",
                found.median,
                found.low,
                found.high,
                "x",
                f"{found.pairs} pairs",
            )
    for runtime in runtimes.values():
        runtime.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", default="1", help="batch sizes, such as 1,8")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    paths = sorted(p for p in chosen.photographs.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        raise SystemExit(f"{chosen.photographs}: no photographs")
    batches = [int(b) for b in chosen.batch.split(",")]
    rows = []
    for row in ratios(Bundle.open(chosen.bundle), paths, chosen.rounds, batches):
        rows.append(row)
        if not chosen.json:
            interval = f"[{row.low:.3f}, {row.high:.3f}]"
            print(f"{row.what:<92} {row.value:9.3f} {row.unit:<3} {interval:<22} {row.note}", flush=True)
    if chosen.json:
        print(json.dumps({"machine": platform.processor(), "rows": [asdict(r) for r in rows]}, indent=2))


if __name__ == "__main__":
    main()
