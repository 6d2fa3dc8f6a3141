"""Recipes, and what training a head showed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vsa_rt.errors import ItemError
from vsa_rt.render.tables import (
    document,
    errors,
    new_table,
    print_rejected,
)

if TYPE_CHECKING:
    from vsa_rt.pipeline.fitting.fit_report import FitReport
    from vsa_rt.recipe import Recipe


def recipe_list(recipes: Iterable[Recipe], as_json: bool) -> None:
    """Every shipped recipe in a line."""
    if as_json:
        document("recipes", recipes=list(recipes))
        return
    table = new_table("recipe", "task", "labels", "what it is")
    for r in recipes:
        table.add_row(r.name, str(r.task), ", ".join(r.labels), escape(r.summary))
    Console().print(table)


def recipe(shown: Recipe, path: Path, as_json: bool) -> None:
    """One recipe: its file as it is, or its content."""
    if as_json:
        document("recipe", recipe=shown)
        return
    sys.stdout.write(path.read_text(encoding="utf-8"))


def _split_words(report: FitReport) -> str:
    """How photographs were divided, for people."""
    count = len(report.tested)
    fit: Any = report.settings["fit"]
    words = {
        "folds": f"{count} folds",
        "random": f"{count} random splits that test {fit['test']:.0%}",
        "files": f"{count} given fold{'s' if count > 1 else ''}",
    }[report.split]
    never = f", {report.train_only} photographs never tested" if report.train_only else ""
    return f"{words} ({', '.join(map(str, report.tested))} photographs tested){never}"


def _fit_tables(report: FitReport) -> Iterator[tuple[str, Table]]:
    """Headings, which would wrap at the width of a narrow table, and tables."""
    if report.confusion is not None:
        table = new_table("true \\ predicted", *(f"{escape(name)}>" for name in report.labels))
        for name, row in zip(report.labels, report.confusion, strict=True):
            table.add_row(escape(name), *(str(n) for n in row))
        yield "", table
    if report.label_accuracy is not None:
        table = new_table("label", "accuracy>")
        for name, share in report.label_accuracy.items():
            table.add_row(escape(name), f"{share:.4f}")
        yield f"decided at scores above {report.threshold:g}", table
    if report.routing is not None:
        gates = [*(f"expert {m + 1}" for m in range(len(report.routing[0].weight) - 1)), "dummy"]
        table = new_table("label", *(f"{gate}>" for gate in gates))
        for route in report.routing:
            cells = zip(route.weight, route.largest, strict=True)
            table.add_row(escape(route.label), *(f"{weight:.3f} / {share:.3f}" for weight, share in cells))
        yield "routing: mean weight of each gate / share of test photographs where it is the largest", table


def _series(report: FitReport) -> Iterator[tuple[str, list[float], float, float | None]]:
    """Words, folds, mean and deviation of every metric that the report has."""
    for name in [f.name.removesuffix("_mean") for f in fields(report) if f.name.endswith("_mean")]:
        folds, mean, std = (getattr(report, f"{name}{end}") for end in ("", "_mean", "_std"))
        if folds is not None:
            yield name.replace("_f1", " F1").replace("_", " "), folds, mean, std
    for name, series in (report.distances or {}).items():
        yield name, series.folds, series.mean, series.std


def fit(report: FitReport, rejected: Sequence[ItemError], out: Path, as_json: bool) -> None:
    """How the data was split, fold results, the confusion matrix, and a mixture's routing."""
    if as_json:
        document("fit", report=report, rejected=errors(rejected))
        return
    console = Console()
    preset = f", preset {report.preset}" if report.preset else ""
    console.print(
        f"[bold]{escape(report.recipe)}[/], head {report.head}{preset}: {report.photographs} photographs, "
        f"seed {report.seed}"
    )
    if report.random_seed is not None:
        names = ", ".join(name for name, known in report.backbones.items() if known.random_seed is not None)
        console.print(f"random weights (seed {report.random_seed}): {names}", soft_wrap=True)
    console.print(_split_words(report), soft_wrap=True)
    for words, folds, mean, std in _series(report):
        deviation = "" if std is None else f" +- {std:.4f}"
        each = ", ".join(f"{value:.3f}" for value in folds)
        console.print(f"{words:<13}{mean:.4f}{deviation}  ({each})", soft_wrap=True)
    for title, table in _fit_tables(report):
        console.print(f"\n[bold]{title}[/]" if title else "", soft_wrap=True)
        console.print(table)
    console.print(f"\nhead {escape(str(out))}, report {escape(str(out.with_suffix('.json')))}")
    print_rejected(rejected)
