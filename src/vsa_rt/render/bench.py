"""A benchmark on a terminal: the verdict first, then what it rests on."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vsa_rt.render.numbers import NONE, TIMES, at, decimals, fixed, percent
from vsa_rt.render.pages import ADVICE, HTML, MARKDOWN, headline
from vsa_rt.render.sections.limits import ON_PAPER, network, paper_rows
from vsa_rt.render.tables import new_table, verdict
from vsa_rt.render.text import plain

if TYPE_CHECKING:
    from vsa_rt.bench.records.contest import Pairing
    from vsa_rt.bench.records.timing import Percentile, Run
    from vsa_rt.bench.records.trust import ParityCheck
    from vsa_rt.bench.report import Report

#: Layers of each profile that a terminal shows.
_SLOWEST = 15
_STYLES = {"green": "bold green", "amber": "bold yellow", "red": "bold red"}


def _shown(text: str) -> str:
    """A stranger's text: no markup of rich's, no escape sequence of the terminal's."""
    return escape(plain(text))


def _verdict(console: Console, report: Report) -> None:
    level = report.verdict.level
    console.print(f"[{_STYLES[level]}]{ADVICE[level]}[/]")
    said = headline(report)
    if said:
        console.print(f"[bold]{_shown(said)}[/]")
    for reason in report.verdict.reasons:
        name = "note" if reason.level == "green" else reason.level
        console.print(f"  [{_STYLES[reason.level]}]{name}[/] {_shown(reason.text)} ({_shown(reason.code)})")


def _percentile(found: Percentile | None, places: int) -> str:
    if found is None:
        return NONE
    if found.value is None:
        return f"needs {found.needed}"
    return f"{fixed(found.value, places)} ≤ {fixed(found.upper, places)}"


def _runs(runs: Sequence[Run]) -> Table:
    table = new_table("plan", "run", "batch>", "p50 ms>", "p99 ms>", "images/s>")
    places = decimals([p.value for r in runs if r.latency for p in r.latency.percentiles])
    rate = decimals([r.throughput for r in runs])
    for run in runs:
        feed = "" if run.feed == "tensors" else f" {run.feed}"
        dropped = f", {run.dropped} dropped" if run.dropped else ""
        name = f"{run.scenario}{feed}{dropped}"
        table.add_row(
            _shown(run.plan),
            name if run.valid else f"{name} [bold red]not valid[/]",
            str(run.batch),
            *(_percentile(at(run.latency, s) if run.latency else None, places) for s in (0.5, 0.99)),
            fixed(run.throughput, rate),
        )
    return table


def _interval(pairing: Pairing) -> str:
    text = f"{fixed(pairing.low, 2)} to {fixed(pairing.high, 2)}"
    sure = "extremes" if pairing.confidence is None else percent(pairing.confidence, 1)
    return f"{text} ({sure})"


def _with_precision(name: str, precision: Mapping[str, str]) -> str:
    """A plan's name ends in its precision, a baseline's does not."""
    said = precision.get(name, "")
    return name if name.endswith(said) else f"{name} {said}"


def _ratios(report: Report) -> Table:
    """Everybody against the first plan; the others' pairings are in the report's files."""
    table = new_table("candidate", "against", "batch>", "ratio>", "interval>")
    for contest in report.contests:
        precision = {c.name: c.precision for c in contest.contestants}
        for p in (p for p in contest.pairings if p.faster == contest.contestants[0].name):
            ratio = f"{fixed(p.ratio, 2)}{TIMES}"
            table.add_row(
                _shown(_with_precision(p.slower, precision)),
                _shown(_with_precision(p.faster, precision)),
                str(contest.batch),
                ratio if p.different else f"[dim]{ratio}[/]",
                _interval(p) if p.different else f"[dim]{_interval(p)}[/]",
            )
    return table


def _limits(report: Report) -> Table:
    table = new_table("plan", "batch>", "least ms>", "took ms>", "share>", "limited by")
    wholes = [(r, f) for r in report.limits for f in r.floors if f.part == "whole"]
    places = decimals([ms for _, f in wholes for ms in (f.floor_ms, f.measured_ms)])
    for limits, whole in wholes:
        table.add_row(
            _shown(limits.plan),
            str(limits.batch),
            fixed(whole.floor_ms, places),
            fixed(whole.measured_ms, places),
            percent(whole.share, 0),
            whole.bound,
        )
    return table


def _paper(report: Report) -> str:
    """One line: the floors on paper of the first bundle's first batch size; empty where there are none."""
    found = next((limits for limits in report.limits if limits.paper), None)
    if found is None:
        return ""
    places = decimals([f.floor_ms for f in found.paper], 2)
    precisions = list(dict.fromkeys(f.precision for f in found.paper))
    said = []
    for device, by in paper_rows(found):
        times = [fixed(by[p].floor_ms, places) if p in by else NONE for p in precisions]
        said.append(f"{device} {' / '.join(times)}")
    what = f"{network(report, found)}, least ms in {' / '.join(p.upper() for p in precisions)}"
    return f"{ON_PAPER}: {what}: {', '.join(said)}"


def _parity(checks: Sequence[ParityCheck]) -> Table:
    table = new_table("bundle", "plan", "parity", "images>", "flips>", "ties>", "first reason")
    for check in checks:
        for entry in check.plans:
            parity = entry.parity
            table.add_row(
                _shown(check.bundle),
                _shown(entry.plan or "ONNX graph"),
                verdict(parity.passed),
                str(parity.images),
                str(len(parity.flips)),
                str(parity.ties),
                _shown(parity.reasons[0]) if parity.reasons else "",
            )
    return table


def _points(report: Report) -> Table:
    """The frontier; only where plans of several kinds were measured."""
    table = new_table("plan", "batch>", "ms per image>", "quality>", "of", "frontier")
    if len(report.points) < 2:
        return table
    places = decimals([p.ms_per_image for p in report.points])
    for point in report.points:
        dominated = f"[dim]no: {_shown(point.dominated_by)}[/]" if point.dominated_by else "[green]yes[/]"
        table.add_row(
            _shown(point.plan),
            str(point.batch),
            fixed(point.ms_per_image, places),
            percent(point.quality, 2),
            _shown(point.quality_of),
            "[bold red]fails parity[/]" if point.parity is False else dominated,
        )
    return table


def _layers(report: Report) -> Table:
    """The slowest layers of every profile."""
    table = new_table("plan", "batch>", "layer", "backbone", "kind", "precision", "ms>", "share>")
    for found in report.profiles:
        whole = sum(layer.ms for layer in found.layers) or 1.0
        for layer in found.layers[:_SLOWEST]:
            table.add_row(
                _shown(found.plan),
                str(found.batch),
                _shown(layer.name),
                _shown(layer.backbone),
                layer.kind,
                layer.precision,
                fixed(layer.ms, 3),
                percent(layer.ms / whole, 1),
            )
    return table


def bench_report(report: Report, out: Path | None, as_json: bool, layers: bool = False) -> None:
    """Print a benchmark's report.

    Args:
        report: What was measured.
        out: Folder that holds its files (``write_report``); ``None`` where none were written.
        as_json: Print the report's JSON alone.
        layers: Print the slowest layers too.
    """
    from vsa_rt.bench.report import FILE_NAME, report_to_json

    if as_json:
        sys.stdout.write(report_to_json(report).decode("utf-8"))
        sys.stdout.flush()
        return
    console = Console(highlight=False)
    _verdict(console, report)
    limits = _limits(report)
    parts = [
        ("", _runs(report.runs)),
        ("Times as long as the plan, call by call", _ratios(report)),
        ("Distance to the limit", limits),
        (f"The {_SLOWEST} slowest layers", _layers(report) if layers else new_table()),
        ("Parity with the reference", _parity(report.parity)),
        ("Accuracy against latency", _points(report)),
    ]
    for title, table in parts:
        if table.row_count:
            console.print()
            if title:
                console.print(f"[bold]{title}[/]")
            console.print(table)
        if table is limits and (on_paper := _paper(report)):
            console.print()
            console.print(_shown(on_paper))
    if report.skipped:
        console.print()
    for part, why in report.skipped.items():
        console.print(f"not measured: {_shown(part)}: {_shown(why)}")
    if out is not None:
        console.print()
        for name in (HTML, MARKDOWN, FILE_NAME):
            console.print(_shown(str(out / name)), soft_wrap=True)
    else:
        console.print("\n-o DIR keeps all of it: layers, stages, plots, raw samples")
