"""What probes show, layer by layer: a table, and a plot beside the report."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vsa_rt.documents import write_whole
from vsa_rt.errors import ItemError, needs
from vsa_rt.render.plots.probe import Line, Point, accuracy_by_layer
from vsa_rt.render.tables import document, errors, new_table, print_rejected

if TYPE_CHECKING:
    from vsa_rt.pipeline.fitting.probe_report import ProbeReport


def require_plot() -> None:
    """Check, before minutes of computing, that a plot can be made here.

    Raises:
        EnvironmentUnusable: matplotlib is not installed.
    """
    with needs("bench"):
        if util.find_spec("matplotlib") is None:
            raise ModuleNotFoundError("matplotlib", name="matplotlib")


def write_probe_plot(report: ProbeReport, path: Path) -> None:
    """The accuracy of every classifier by layer, as SVG.

    Args:
        report: What was found.
        path: Of the new file.
    """
    layers = report.layers
    lines = []
    for name in report.classifiers:
        of = [layer.classifiers[name] for layer in layers]
        lines.append(Line(name, [Point(c.accuracy_mean, c.accuracy_std) for c in of]))
    title = f"{report.recipe} on {report.data}"
    drawn = accuracy_by_layer(title, [layer.name for layer in layers], lines, report.majority_mean)
    write_whole(path, drawn)


def _share(mean: float, std: float | None) -> str:
    return f"{mean:.3f}" if std is None else f"{mean:.3f} +- {std:.3f}"


def _strengths(chosen: Sequence[float]) -> str:
    """The least and the largest C that the folds chose."""
    ends = [f"{c:.0f}" if c >= 10 else f"{c:.2g}" for c in (min(chosen), max(chosen))]
    return "-".join(dict.fromkeys(ends))


def _table(report: ProbeReport) -> Table:
    columns = [word for name in report.classifiers for word in (f"{name}>", "C>")]
    table = new_table("layer", "width>", *columns)
    for layer in report.layers:
        cells = []
        for found in layer.classifiers.values():
            cells += [_share(found.accuracy_mean, found.accuracy_std), _strengths(found.c)]
        table.add_row(escape(layer.name), f"{layer.width:,}", *cells)
    table.add_row(
        "majority", "", *[_share(report.majority_mean, report.majority_std), ""] * len(columns[::2])
    )
    return table


def _split_words(report: ProbeReport) -> str:
    """How photographs were divided, for people."""
    count = len(report.tested)
    words = {
        "folds": f"{count} folds",
        "random": f"{count} random splits that test {report.test:.0%}" if report.test is not None else "",
        "files": f"{count} given fold{'s' if count > 1 else ''}",
    }[report.split]
    never = f", {report.train_only} photographs never tested" if report.train_only else ""
    return (
        f"{words} ({', '.join(map(str, report.tested))} photographs tested){never}; C chosen by {report.inner_folds} "
        "inner folds of each training part"
    )


def probe(report: ProbeReport, rejected: Sequence[ItemError], out: Path, as_json: bool) -> None:
    """Accuracy of each classifier by layer, beside that of always saying the most frequent label."""
    if as_json:
        document("probe", report=report, rejected=errors(rejected))
        return
    console = Console()
    console.print(
        f"[bold]{escape(report.recipe)}[/], {len(report.layers)} layer{'s' if len(report.layers) > 1 else ''}: "
        f"{report.photographs} photographs, seed {report.seed}",
        soft_wrap=True,
    )
    if report.random_seed is not None:
        names = ", ".join(name for name, known in report.backbones.items() if known.random_seed is not None)
        console.print(f"random weights (seed {report.random_seed}): {names}", soft_wrap=True)
    console.print(_split_words(report) + "\n", soft_wrap=True)
    console.print(_table(report))
    above = next((layer.name for layer in report.layers if not layer.backbone), None)
    if above is not None:
        console.print(
            f"\n{escape(above)} is the trained head: if it was trained on these photographs, it knows their labels",
            soft_wrap=True,
        )
    console.print(f"\nreport {escape(str(out))}, plot {escape(str(out.with_suffix('.svg')))}", soft_wrap=True)
    print_rejected(rejected)
