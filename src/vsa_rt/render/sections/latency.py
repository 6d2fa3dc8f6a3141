"""How fast: scenarios, percentiles with their bounds, what the series were like."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vsa_rt.render.blocks import Block, Cell, Figure, Figures, Items, Section, table
from vsa_rt.render.numbers import NONE, at, count, decimals, fixed, percent, rounded, signed, steady
from vsa_rt.render.plots import latency as plots

if TYPE_CHECKING:
    from vsa_rt.bench.records.timing import Percentile, Run, Series
    from vsa_rt.bench.report import Report

#: Lines of one plot: more cannot be told apart.
_LINES = 8
_RUNS = ("plan", "batch>", "p50 ms>", "p90 ms>", "p99 ms>", "images/s>", "dropped>", "samples>", "run")
_SERIES = (
    "plan",
    "batch>",
    "samples>",
    "warm-up>",
    "steady state",
    "drift>",
    "autocorr.>",
    "least ms>",
    "mean ms>",
    "most ms>",
)


def percentile(found: Percentile | None, places: int) -> Cell:
    """A percentile with its bound, or how many samples it would take."""
    if found is None:
        return Cell(NONE, "quiet")
    if found.value is None:
        return Cell(NONE, "quiet", f"needs {count(found.needed, 'sample')}")
    return Cell(fixed(found.value, places), note=f"≤ {fixed(found.upper, places)}")


def run_name(run: Run) -> str:
    """A run in words."""
    feed = "" if run.feed == "tensors" else f", {run.feed}"
    return f"{run.plan}, {run.scenario}{feed}"


def _places(series: list[Series]) -> int:
    return decimals([p.value for s in series for p in s.percentiles])


def _main_row(run: Run, places: int, rate: int) -> list[Cell | str]:
    latency = run.latency
    return [
        Cell(run.plan, note=f"{run.scenario}, {run.feed}"),
        str(run.batch),
        *(percentile(at(latency, share) if latency else None, places) for share in (0.5, 0.9, 0.99)),
        fixed(run.throughput, rate),
        "" if run.dropped is None else Cell(str(run.dropped), "warn" if run.dropped else ""),
        f"{len(steady(latency)):,}" if latency else NONE,
        Cell("valid", "good") if run.valid else Cell("not valid", "bad"),
    ]


def _series_row(run: Run, series: Series, places: int) -> list[Cell | str]:
    found = Cell("found", "good") if series.steady else Cell("not found", "warn")
    return [
        Cell(run.plan, note=f"{run.scenario}, {run.feed}"),
        str(run.batch),
        f"{len(series.samples):,}",
        str(series.warm_up),
        found,
        NONE if series.drift is None else f"{signed(100 * series.drift, 1)} %",
        NONE if series.autocorrelation is None else signed(series.autocorrelation, 2),
        fixed(series.least, places),
        fixed(series.mean, places),
        fixed(series.most, places),
    ]


def _figures(runs: list[Run]) -> Figures | None:
    figures = []
    for batch in sorted({r.batch for r in runs}):
        of = [r for r in runs if r.batch == batch and r.latency is not None and steady(r.latency)]
        if not of:
            continue
        lines = [(run_name(r), steady(r.latency)) for r in of if r.latency is not None][:_LINES]
        said = []
        for run in of[:_LINES]:
            half = at(run.latency, 0.5) if run.latency else None
            middle = f"p50 {rounded(half.value)} ms" if half and half.value is not None else "no p50"
            said.append(f"{run_name(run)}: {middle}")
        rest = f" The first {_LINES} of {len(of)} runs are drawn." if len(of) > _LINES else ""
        figures.append(
            Figure(
                f"Distribution of latency, batch {batch}",
                f"Share of calls done within a time. {'; '.join(said)}.",
                f"Steady samples, none left out. Panels, where there are several, have their own scales.{rest}",
                partial(plots.ecdf, lines),
            )
        )
    return Figures(figures) if figures else None


def _loadgen(runs: list[Run]) -> list[Block]:
    rows = [(r.plan, r.scenario, str(r.batch), k, rounded(v, 6)) for r in runs for k, v in r.loadgen.items()]
    if not rows:
        return []
    columns = ("plan", "scenario", "batch>", "LoadGen's figure", "value>")
    return [table(*columns, rows=rows, title="What LoadGen itself reports", folded=True)]


def _settings(runs: list[Run]) -> Block:
    rows = [
        (
            Cell(r.plan, note=f"{r.scenario}, batch {r.batch}"),
            "; ".join(f"{k} {v}" for k, v in r.settings.items()) or NONE,
            count(r.images, "image") + f" in {rounded(r.seconds, 3)} s",
            ", ".join(r.logs),
        )
        for r in runs
    ]
    return table("run", "settings", "done", "logs", rows=rows, title="Settings and logs", folded=True)


def latency(report: Report) -> Section | None:
    """Runs with percentiles, their distributions, and what the series were like."""
    runs = report.runs
    if not runs:
        return None
    series = [r.latency for r in runs if r.latency is not None]
    places = _places(series)
    rate = decimals([r.throughput for r in runs])
    bounds = sorted({p.confidence for s in series for p in s.percentiles})
    section = Section("latency", "Latency and throughput")
    if bounds:
        sure = " or ".join(percent(c, 0) for c in bounds)
        section.lead = (
            f"Milliseconds per call. The second line of a percentile is its upper bound, which holds with "
            f"{sure} confidence; a percentile that the sample cannot bound is not printed."
        )
    section.blocks.append(table(*_RUNS, rows=[_main_row(r, places, rate) for r in runs], title="Runs"))
    faults = [Cell(f"{run_name(r)}, batch {r.batch}: {reason}", "warn") for r in runs for reason in r.reasons]
    if faults:
        section.blocks.append(Items("Not valid, because", faults))
    figures = _figures(runs)
    if figures:
        section.blocks.append(figures)
    rows = [_series_row(r, r.latency, places) for r in runs if r.latency is not None]
    if rows:
        section.blocks.append(table(*_SERIES, rows=rows, title="Every series", folded=True))
    section.blocks.append(_settings(runs))
    section.blocks += _loadgen(runs)
    return section
