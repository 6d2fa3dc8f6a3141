"""Measuring: benchmarks, sweeps, and the comparison of two reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from vsa_rt.cli.app import FAILED, app, shown_progress
from vsa_rt.cli.options import (
    AsJson,
    OnePrecision,
    Targets,
    Trust,
    Weights,
    numbers_of,
    share_of,
    targets_of,
    weights_of,
    words_of,
)
from vsa_rt.errors import UsageError, VsaError

if TYPE_CHECKING:
    from vsa_rt.bench.records.timing import Scenario


class FeedKind(str, Enum):
    """What ``bench --feed`` takes."""

    TENSORS = "tensors"
    IMAGES = "images"


SCENARIOS = ("quick", "camera", "single-stream", "multi-stream", "offline", "server")
LOAD = "Scenarios"


def _command(bundles: Sequence[Path], given: Mapping[str, object]) -> str:
    """What repeats the run, without folders."""
    words = ["vsa-rt bench", *(path.resolve().name for path in bundles)]
    for name, value in given.items():
        for entry in value if isinstance(value, list) else [value]:
            if entry not in (None, False, ""):
                text = entry.value if isinstance(entry, Enum) else entry
                shown = text.name if isinstance(text, Path) else str(text)
                words.append(f"--{name}" if entry is True else f"--{name} {shown}")
    return " ".join(words)


def _split_against(entries: list[str] | None) -> tuple[list[str] | None, list[Path]]:
    """Baselines by name, and bundles by path; ``none`` alone is no baseline at all."""
    if entries is None:
        return None, []
    from vsa_rt.bench.baselines import BASELINES

    words = words_of(entries)
    known = {*BASELINES, "none"}
    bundles = [Path(word) for word in words if word not in known]
    for path in bundles:
        if not path.is_dir():
            raise UsageError(
                f"--against {path}: neither a baseline nor a bundle's folder; baselines: {', '.join(BASELINES)}"
            )
    names = [word for word in words if word in BASELINES]
    return (None if not names and "none" not in words else names), bundles


def _checked_scenarios(entries: list[str] | None) -> list[Scenario]:
    scenarios = words_of(entries) or ["quick"]
    for name in scenarios:
        if name not in SCENARIOS:
            raise UsageError(f"--scenario {name!r}: unknown; there are {', '.join(SCENARIOS)}")
    return cast("list[Scenario]", scenarios)


@app.command()
def bench(
    bundle: Annotated[
        list[Path] | None,
        typer.Argument(metavar="BUNDLE...", help="The first is what the others are held against."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder for report.json, report.md, report.html and logs."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|BUNDLE",
            help="Baselines and bundles in the same run; `none` for none, `list` lists them. Repeats; commas accepted.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Photographs, with labels or without; by default those that packages ship."),
    ] = None,
    batch: Annotated[
        list[str] | None, typer.Option(metavar="N,…", help="Images per call; default 1,8. Repeats.")
    ] = None,
    target: Targets = None,
    precision: OnePrecision = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Cores for every engine and baseline; default: all.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each scenario runs at least.")] = 5.0,
    layers: Annotated[bool, typer.Option("--layers", help="Print the slowest layers.")] = False,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS,…",
            help="Only the frontier between accuracy and latency along target, precision, batch. Resumable; needs -o.",
        ),
    ] = None,
    weights: Weights = None,
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,…",
            rich_help_panel=LOAD,
            help="quick (default), camera, and LoadGen's single-stream, multi-stream, offline, server.",
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            min=0.1, rich_help_panel=LOAD, help="Adds a camera of that rate, whose frames do not wait."
        ),
    ] = None,
    feed: Annotated[
        FeedKind,
        typer.Option(
            rich_help_panel=LOAD, help="Ready tensors, or encoded images to labels; a camera gives frames."
        ),
    ] = FeedKind.TENSORS,
    qps: Annotated[
        float | None,
        typer.Option(min=0.001, rich_help_panel=LOAD, help="server: queries per second that arrive."),
    ] = None,
    target_latency: Annotated[
        float, typer.Option(min=0.001, rich_help_panel=LOAD, help="server: milliseconds that p99 must hold.")
    ] = 100.0,
    queries: Annotated[
        int | None,
        typer.Option(
            min=1, rich_help_panel=LOAD, help="LoadGen: queries at least; default: what its verdict needs."
        ),
    ] = None,
    samples_per_query: Annotated[
        int, typer.Option(min=1, rich_help_panel=LOAD, help="multi-stream: images per query.")
    ] = 8,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Measure latency, distance to the limit, baselines and parity in one report; exit 1 if it is red."""
    if words_of(against) == ["list"]:
        _list_baselines()
        return
    if not bundle:
        raise UsageError("no bundle to measure: vsa-rt bench BUNDLE")
    from vsa_rt import render
    from vsa_rt.bench.loadgen import LoadgenSettings
    from vsa_rt.bundle import Bundle
    from vsa_rt.pipeline.bench import BenchOptions
    from vsa_rt.pipeline.bench import bench as measure
    from vsa_rt.pipeline.bench import sweep as measure_sweep
    from vsa_rt.pipeline.measuring.scenarios import ScenarioOptions

    names, rivals = _split_against(against)
    if out is not None:
        render.require_pages(out)
    if sweep:
        for option, value in (("--against", names), ("--scenario", scenario), ("--fps", fps), ("--qps", qps)):
            if value:
                raise UsageError(
                    f"{option}: a sweep has plans take turns and nothing else; leave it out, or --sweep"
                )
    scenarios = _checked_scenarios(scenario)
    if fps is not None and "camera" not in scenarios:
        scenarios.append("camera")
    settings = LoadgenSettings(
        min_duration_s=seconds,
        min_queries=queries,
        target_qps=qps,
        target_latency_ms=target_latency,
        samples_per_query=samples_per_query,
    )
    weighed = [f"{name}={path.name}" for name, path in weights_of(weights).items()]
    given = {
        "against": [*(["none"] if names == [] else names or ()), *rivals], "weights": weighed, "data": data, "batch": words_of(batch), "target": words_of(target),
        "precision": precision, "threads": threads, "seconds": seconds, "sweep": words_of(sweep),
        "scenario": scenarios if scenario or fps else None, "fps": fps, "qps": qps,
        "feed": None if feed is FeedKind.TENSORS else feed,
        "target-latency": None if target_latency == 100 else target_latency,
        "queries": queries,
        "samples-per-query": None if samples_per_query == 8 else samples_per_query,
    }  # fmt: skip
    with shown_progress() as progress:
        options = BenchOptions(
            data=data,
            targets=targets_of(target),
            precision=precision,
            batches=numbers_of("--batch", batch),
            threads=threads,
            load=ScenarioOptions(
                scenarios=scenarios,
                feed=feed.value,
                seconds=seconds,
                fps=fps or 30.0,
                loadgen=settings,
                folder=out,
            ),
            against=names,
            weights=weights_of(weights),
            command=_command(bundle, given),
            progress=progress,
        )
        opened = [Bundle.open(path) for path in (*bundle, *rivals)]
        if sweep:
            if out is None:
                raise UsageError(
                    "--sweep: finished parts are kept, so that it can go on; name a folder with -o"
                )
            report = measure_sweep(opened, words_of(sweep), out, options)
        else:
            report = measure(opened, options)
        unwritten: VsaError | None = None
        if out is not None:
            progress("writing the report")
            try:
                render.write_report(report, out)
            except VsaError as error:  # a full disk: what was measured is printed all the same
                unwritten = error
    render.bench_report(report, None if unwritten else out, as_json, layers=layers)
    if unwritten is not None:
        raise unwritten
    if report.verdict.level == "red":
        raise typer.Exit(FAILED)


def _list_baselines() -> None:
    from vsa_rt import render
    from vsa_rt.bench.baselines import BASELINES

    render.baselines({name: baseline.sentence for name, baseline in BASELINES.items()})


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="A report.json of vsa-rt bench, or its folder.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Likewise.")],
    max_slowdown: Annotated[
        str, typer.Option(metavar="SHARE", help="Largest allowed slowdown of a median, such as 5% or 0.05.")
    ] = "5%",
    max_flips: Annotated[
        str, typer.Option(metavar="SHARE", help="Largest allowed share of changed labels, ties left out.")
    ] = "1%",
    as_json: AsJson = False,
) -> None:
    """Gate a new report on an old one: exit 1 where an interval, not a point, shows a regression."""
    from vsa_rt import render
    from vsa_rt.bench.compare import compare as compare_reports
    from vsa_rt.bench.records.comparison import Limits
    from vsa_rt.bench.report import read_report

    limits = Limits(
        max_slowdown=share_of("--max-slowdown", max_slowdown), max_flips=share_of("--max-flips", max_flips)
    )
    found = compare_reports(read_report(old), read_report(new), limits)
    render.comparison(found, as_json)
    if found.failed:
        raise typer.Exit(FAILED)
