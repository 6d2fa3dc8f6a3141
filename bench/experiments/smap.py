"""SMAP 2021's five-backbone ensemble: one fused call against PyTorch eager, run feature by feature as the paper does.

Usage: ``python -m vsa_rt.bench.experiments.smap BUNDLE PHOTOGRAPHS [--rounds N] [--batch 1,8] [--json]``

The bundle is one of ``vsa-rt build smap2021-moe --random-weights 0``; weights do not change the time. PyTorch runs
each feature from the pixels on its own, so ResNet-152 twice, for R and for S; G takes its objects' features. Both
sides get the same ready tensors, two threads each, interleaved in one run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vsa_rt.bench import clock
from vsa_rt.bench.experiments.first_light import THREADS, baseline_calls, ready_tensors, sources
from vsa_rt.bench.experiments.rows import Row, photographs_in, print_rows
from vsa_rt.bench.intervals import ratio
from vsa_rt.bundle import Bundle
from vsa_rt.runtime.load import load

if TYPE_CHECKING:
    from vsa_rt.runtime.fused import Runtime


def ratios(bundle: Bundle, paths: Sequence[Path], rounds: int, batches: Sequence[int]) -> Iterator[Row]:
    """The fused call in every precision of the bundle against PyTorch."""
    if len({c.random_seed for c in bundle.manifest.checkpoints.values()} - {None}) != 1:
        raise SystemExit(f"{bundle.root}: expected a bundle of --random-weights SEED and nothing else")
    made_of = sources(bundle)
    runtimes: dict[str, Runtime] = {
        f"{e.target} {e.precision}": load(bundle, target=e.target, precision=e.precision, threads=THREADS)
        for e in bundle.manifest.engines
    }
    for batch in batches:
        inputs = ready_tensors(bundle, paths, batch)
        eager, shared = "PyTorch eager fp32, feature by feature", "PyTorch eager fp32, shared trunk"
        baselines = baseline_calls(["eager-separate", "eager"], made_of, inputs)
        calls: dict[str, Callable[[], object]] = {
            eager: baselines["eager-separate"],
            shared: baselines["eager"],
        }
        for name, runtime in runtimes.items():
            calls[f"fused {name}"] = partial(runtime.infer, inputs)
        samples = clock.measure(calls, rounds, warm_up=2)
        for name, values in samples.items():
            yield Row(f"{name}, batch {batch}", clock.median_ms(values), min(values), max(values), "ms")
        for name in list(samples)[1:]:
            found = ratio(samples[eager], samples[name])
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
    paths = photographs_in(chosen.photographs)
    batches = [int(b) for b in chosen.batch.split(",")]
    print_rows(ratios(Bundle.open(chosen.bundle), paths, chosen.rounds, batches), chosen.json)


if __name__ == "__main__":
    main()
