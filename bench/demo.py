"""The last line of ``make demo``: how exact and how fast a bundle is against PyTorch, measured now."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from vsa_rt.bench import clock
from vsa_rt.bench.experiments.first_light import THREADS, baseline_calls, ready_tensors, sources
from vsa_rt.bench.intervals import ratio
from vsa_rt.bench.parity import TOLERANCES, Comparison
from vsa_rt.bundle import Bundle
from vsa_rt.contracts import Precision
from vsa_rt.runtime.load import load

ROUNDS = 11


def main() -> None:
    """Measure and print two sentences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    bundle = Bundle.open(parser.parse_args().bundle)
    from vsa_rt.export.photographs import shipped_photographs

    paths = shipped_photographs()
    batch = bundle.manifest.max_batch
    speeds = []
    made_of = sources(bundle)
    with load(bundle, threads=THREADS) as runtime:
        engine = runtime.choice.engine
        comparison = Comparison(
            "demo", "torch", TOLERANCES[Precision(engine.precision)], runtime.labels, bundle.manifest.labels
        )
        for size in (1, batch):
            inputs = ready_tensors(bundle, paths, size)
            calls: dict[str, clock.Call] = dict(baseline_calls(["eager"], made_of, inputs))
            samples = clock.measure(calls | {"fused": partial(runtime.infer, inputs)}, ROUNDS)
            speeds.append(
                (size, ratio(samples["eager"], samples["fused"]), clock.median_ms(samples["fused"]))
            )
        for start in range(0, len(paths), batch):
            part = paths[start : start + batch]
            inputs = ready_tensors(bundle, part, len(part))
            comparison.add_taps([p.name for p in part], made_of.ensemble.run(inputs), runtime.infer(inputs))
    parity = comparison.result()
    scores = next(t.max_abs for t in parity.taps if t.kind == "scores")
    fast = "; ".join(f"batch {n}: {ms:.1f} ms, {r.median:.1f} times as fast" for n, r, ms in speeds)
    sys.stdout.write(
        f"parity: {len(parity.flips)} of {len(paths)} labels differ from PyTorch fp32, scores by at most {scores:.1g} "
        f"({engine.target} {engine.precision})\n"
        f"speed against PyTorch eager fp32, {THREADS} threads each: {fast} ({engine.target} {engine.precision})\n"
    )


if __name__ == "__main__":
    main()
