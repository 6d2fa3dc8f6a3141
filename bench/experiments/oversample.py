"""ASM 2015's ten crops as one fused call, against PyTorch with ten crops in a batch and with one call per crop.

Usage: ``python -m vsa_rt.bench.experiments.oversample BUNDLE PHOTOGRAPHS [--rounds N] [--batch 1,8] [--json]``

The bundle is one of ``vsa-rt build asm2015-finetuned --random-weights 0 --set caffenet.oversample=true``; weights do
not change the time. All sides begin at the same uint8 images and end at the mean of the ten crops' scores, with two
threads each, interleaved in one run. bf16 is autocast in PyTorch and a bf16 graph in the fused call.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.bench import clock
from vsa_rt.bench.experiments.first_light import THREADS, ready_tensors, sources
from vsa_rt.bench.experiments.rows import Row, photographs_in, print_rows
from vsa_rt.bench.intervals import ratio
from vsa_rt.bundle import Bundle
from vsa_rt.runtime.load import load

if TYPE_CHECKING:
    from vsa_rt.export.ensemble import Ensemble

Array = NDArray[Any]
#: How far a side's scores may lie from PyTorch's in float32 before its time counts.
_ALLOWED = {"fp32": 1e-4, "bf16": 0.1}


def batched(module: Ensemble, image: Any) -> Any:
    """Scores of the ten crops in one pass."""
    return module(image)[-1]


def one_by_one(module: Ensemble, image: Any) -> Any:
    """Scores of the ten crops, each in a call of its own, as a loop over ``caffe.io.oversample`` runs them."""
    import torch

    trunk: Any = module.trunk
    network, normalise = trunk.networks[0], trunk.normalise[0]
    crops = network.crops(normalise(image)).unflatten(0, (-1, network.view_count))
    found = [torch.softmax(module.head(network.encode(crops[:, v])), 1) for v in range(network.view_count)]
    return torch.stack(found).mean(0)


def _call(
    work: Callable[[Ensemble, Any], Any],
    module: Ensemble,
    context: Callable[[], AbstractContextManager[Any]],
    image: Array,
) -> Array:
    import torch

    with torch.inference_mode(), context():
        scores: Array = work(module, torch.from_numpy(image)).float().numpy()
    return scores


def _pytorch(module: Ensemble, image: Array) -> dict[str, Callable[[], Array]]:
    """Both ways in both precisions, by name."""
    import torch

    contexts: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "fp32": nullcontext,
        "bf16": partial(torch.autocast, "cpu", torch.bfloat16),
    }
    ways = {"ten calls": one_by_one, "one batch of ten": batched}
    return {
        f"PyTorch {precision}, {way}": partial(_call, work, module, context, image)
        for precision, context in contexts.items()
        for way, work in ways.items()
    }


def _require_equal(calls: dict[str, Callable[[], Array]], wanted: Array) -> None:
    """Stop if a side computes something else: its time would mean nothing."""
    for name, call in calls.items():
        gap = float(np.abs(call() - wanted).max())
        if gap > _ALLOWED["bf16" if "bf16" in name else "fp32"]:
            raise SystemExit(f"{name}: scores differ by {gap:.3g}")


def ratios(bundle: Bundle, paths: Sequence[Path], rounds: int, batches: Sequence[int]) -> Iterator[Row]:
    """The fused call of each engine against PyTorch in the same precision."""
    import torch

    if bundle.manifest.views.count != 10:
        raise SystemExit(f"{bundle.root}: expected a bundle of --set caffenet.oversample=true")
    module = sources(bundle).ensemble.module
    torch.set_num_threads(THREADS)
    engines = [e for e in bundle.manifest.engines if e.precision in _ALLOWED]
    runtimes = {
        f"fused {e.precision}, {e.target}": load(
            bundle, target=e.target, precision=e.precision, threads=THREADS
        )
        for e in engines
    }
    for batch in batches:
        inputs = ready_tensors(bundle, paths, batch)
        calls = _pytorch(module, next(iter(inputs.values())))
        for name, runtime in runtimes.items():
            calls[name] = lambda runtime=runtime, inputs=inputs: runtime.infer(inputs)["scores"]  # type: ignore[misc]
        _require_equal(calls, calls["PyTorch fp32, one batch of ten"]())
        samples = clock.measure(calls, rounds, warm_up=2)
        for name, values in samples.items():
            yield Row(f"{name}, batch {batch}", clock.median_ms(values), min(values), max(values), "ms")
        for name in runtimes:
            precision = name.split()[1].rstrip(",")
            for eager in (n for n in samples if n.startswith(f"PyTorch {precision}")):
                found = ratio(samples[eager], samples[name])
                what, note = f"{eager} / {name}, batch {batch}", f"{found.pairs} pairs"
                yield Row(what, found.median, found.low, found.high, "x", note)
    for runtime in runtimes.values():
        runtime.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", default="1,8", help="batch sizes, such as 1,8")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    paths = photographs_in(chosen.photographs)
    batches = [int(b) for b in chosen.batch.split(",")]
    print_rows(ratios(Bundle.open(chosen.bundle), paths, chosen.rounds, batches), chosen.json)


if __name__ == "__main__":
    main()
