"""What a person, or a program, reads: tables on a terminal, JSON documents, JSON lines, CSV."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vsa_rt.contracts import Sentiment
from vsa_rt.errors import ItemError

if TYPE_CHECKING:
    from vsa_rt.bench.parity import Parity
    from vsa_rt.manifest import Manifest
    from vsa_rt.pipeline.check import Check
    from vsa_rt.pipeline.diagnose import Diagnosis
    from vsa_rt.pipeline.fit import FitReport
    from vsa_rt.recipe import Recipe
    from vsa_rt.runtime.fused import Runtime

T = TypeVar("T")
#: Version of every JSON document and line (docs/json.md).
SCHEMA = 1


def _finite(value: Any) -> Any:
    """JSON knows neither infinity nor NaN: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def _document(kind: str, **fields: Any) -> None:
    text = json.dumps(_finite({"schema": SCHEMA, "kind": kind, **msgspec.to_builtins(fields)}), indent=2)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _errors(rejected: Sequence[ItemError]) -> list[dict[str, str]]:
    return [{"item": e.item, "error": e.reason} for e in rejected]


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(
        title=title, title_justify="left", header_style="bold", title_style="bold", box=None, pad_edge=False
    )
    for column in columns:
        right = column.endswith(">")
        table.add_column(column.rstrip(">"), justify="right" if right else "left", overflow="fold")
    return table


def _number(value: float | None, digits: int = 3) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}g}"


def diagnosis(found: Diagnosis, as_json: bool) -> None:
    """The machine, its targets with measured speeds, and what is missing."""
    if as_json:
        _document("doctor", **msgspec.to_builtins(found))
        return
    console, machine = Console(), found.machine
    console.print(f"[bold]{escape(machine.processor)}[/], {machine.cores} cores, {machine.memory_gib} GiB")
    console.print(f"{', '.join(machine.instruction_sets) or machine.architecture}")
    console.print(
        f"Python {machine.python}, {escape(machine.system)}; resize: {found.resize}, JPEG: {found.jpeg}\n"
    )
    table = _table("target", "version", "precision", "GMAC/s>", "note")
    for target in found.targets:
        if not target.usable:
            table.add_row(target.target, "-", "-", "-", escape(f"{target.reason}; {target.install}"))
        for speed in target.speeds:
            note = speed.reason or (
                "" if speed.achieved in (None, 1.0) else f"only {speed.achieved:.0%} ran so"
            )
            table.add_row(
                target.target, target.version, speed.precision, _number(speed.gmacs, 4), escape(note)
            )
    console.print(table)
    missing = _table("missing", "for", "install")
    for library in machine.libraries:
        if library.version is None:
            missing.add_row(library.name, library.purpose, escape(library.install))
    if missing.row_count:
        console.print()
        console.print(missing)
    console.print()
    for line in found.advice:
        console.print(escape(line))


def recipe_list(recipes: Iterable[Recipe], as_json: bool) -> None:
    """Every shipped recipe in a line."""
    if as_json:
        _document("recipes", recipes=list(recipes))
        return
    table = _table("recipe", "task", "labels", "what it is")
    for r in recipes:
        table.add_row(r.name, str(r.task), ", ".join(r.labels), escape(r.summary))
    Console().print(table)


def recipe(shown: Recipe, path: Path, as_json: bool) -> None:
    """One recipe: its file as it is, or its content."""
    if as_json:
        _document("recipe", recipe=shown)
        return
    sys.stdout.write(path.read_text(encoding="utf-8"))


def fit(report: FitReport, rejected: Sequence[ItemError], out: Path, as_json: bool) -> None:
    """Fold results and the confusion matrix."""
    if as_json:
        _document("fit", report=report, rejected=_errors(rejected))
        return
    console = Console()
    folds = ", ".join(f"{a:.3f}" for a in report.accuracy)
    console.print(
        f"[bold]{escape(report.recipe)}[/], head {report.head}: {report.photographs} photographs, seed {report.seed}"
    )
    console.print(f"accuracy     {report.accuracy_mean:.4f} +- {report.accuracy_std:.4f}  ({folds})")
    console.print(f"weighted F1  {report.weighted_f1_mean:.4f} +- {report.weighted_f1_std:.4f}\n")
    table = _table("true \\ predicted", *(f"{escape(name)}>" for name in report.labels))
    for name, row in zip(report.labels, report.confusion, strict=True):
        table.add_row(escape(name), *(str(n) for n in row))
    console.print(table)
    console.print(f"\nhead {escape(str(out))}, report {escape(str(out.with_suffix('.json')))}")
    _print_rejected(rejected)


def _print_rejected(rejected: Sequence[ItemError]) -> None:
    console = Console(stderr=True)
    for error in rejected[:10]:
        console.print(f"left out: {escape(str(error))}", soft_wrap=True)
    if len(rejected) > 10:
        console.print(f"and {len(rejected) - 10} more")


def manifest(shown: Manifest, path: Path, as_json: bool) -> None:
    """A bundle: engines with latency and parity, what was rejected, where the weights came from."""
    if as_json:
        _document("bundle", path=str(path), manifest=shown)
        return
    console = Console()
    megabytes = sum(f.nbytes for f in shown.files.values()) / 1e6
    name = shown.recipe.name if shown.recipe else "features only"
    console.print(
        f"[bold]{escape(str(path))}[/]: {escape(name)}, {megabytes:.0f} MB, built by vsa-rt {shown.vsa_rt}"
    )
    console.print(f"labels  {escape(', '.join(shown.labels)) or '-'}")
    console.print(
        f"inputs  {escape(', '.join(f'{i.name} {i.dtype} (N, {_shape(i.shape)})' for i in shown.inputs))}"
    )
    console.print(f"taps    {escape(', '.join(f'{t.name} {t.width}' for t in shown.taps))}\n")
    for gate in shown.gates:
        console.print(
            f"gate {gate.stage} against {gate.reference}: {_verdict(gate.passed)} on {gate.images} images"
        )
    if shown.engines:
        batches = list(shown.engines[0].latency_ms)
        table = _table(
            "engine", "precision", *(f"ms at batch {b}>" for b in batches), "parity", "flips>", "ties>"
        )
        for e in shown.engines:
            latency = [f"{e.latency_ms[b]:.2f}" if b in e.latency_ms else "-" for b in batches]
            table.add_row(
                e.target, e.precision, *latency, _verdict(e.gate.passed), str(e.gate.flips), str(e.gate.ties)
            )
        console.print()
        console.print(table)
        console.print(f"\ndefault: {escape(shown.chosen)}")
    for r in shown.rejected:
        console.print(f"left out: {escape(f'{r.target} {r.precision}'.strip())}: {escape(r.reason)}")
    if warning := _random_weights(shown):
        console.print(f"[bold yellow]{warning}[/]")


def _shape(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))


def _verdict(passed: bool) -> str:
    return "[green]holds[/]" if passed else "[bold red]FAILS[/]"


def _parity_table(parity: Parity) -> Table:
    title = f"{parity.stage} against {parity.reference}: {_verdict(parity.passed)}"
    table = _table("tap", "max>", "mean>", "relative>", "cosine>", "gain>", "verdict", title=title)
    for tap in parity.taps:
        table.add_row(
            escape(tap.tap),
            _number(tap.max_abs),
            _number(tap.mean_abs),
            _number(tap.relative),
            f"{tap.cosine:.6f}",
            f"{tap.gain:.5f}",
            f"[bold red]{escape(tap.reason)}[/]" if tap.reason else "ok",
        )
    return table


def check(found: Check, as_json: bool) -> None:
    """Parity stage by stage."""
    if as_json:
        stages = [msgspec.to_builtins(p) | {"passed": p.passed} for p in found.parities]
        _document(
            "check",
            passed=found.passed,
            reference=found.reference,
            why=found.why,
            random_weights=found.random_weights,
            stages=stages,
            refused=found.refused,
            rejected=_errors(found.rejected),
        )
        return
    console = Console()
    why = f" ({escape(found.why)})" if found.why else ""
    console.print(f"reference: {found.reference}{why}\n")
    if found.random_weights:
        console.print("[bold yellow]random weights: judged at the taps only, the labels mean nothing[/]\n")
    for parity in found.parities:
        console.print(_parity_table(parity))
        kl = f", mean KL {parity.kl:.2e}" if parity.kl is not None else ""
        console.print(
            f"{parity.images} images, {len(parity.flips)} labels flip ({parity.ties} of them ties){kl}"
        )
        for flip in sorted(parity.flips, key=lambda f: -f.margin)[:5]:
            console.print(
                f"  {escape(flip.item)}: {escape(flip.reference)} to {escape(flip.candidate)}, margin {flip.margin:.3f}"
            )
        for metric in parity.metrics:
            gap = metric.candidate - metric.reference
            console.print(
                f"{metric.name} {metric.reference:.4f} to {metric.candidate:.4f}, "
                f"difference {gap:+.4f} [{metric.low:+.4f}, {metric.high:+.4f}]"
            )
        for reason in parity.reasons:
            console.print(f"[bold red]{escape(reason)}[/]")
        console.print()
    for folder, reason in found.refused.items():
        console.print(f"not checked: {escape(folder)}: {escape(reason)}")
    _print_rejected(found.rejected)


def _top(scores: dict[str, float], top: int) -> dict[str, float]:
    best = sorted(scores.items(), key=lambda s: -s[1])
    return dict(best[:top] if top else best)


def _path_text(path: str) -> str:
    """A path as text that any stream can print: bytes that are not UTF-8 are written as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _line(path: str, result: Sentiment | ItemError, top: int) -> dict[str, Any]:
    shown = _path_text(path)
    if isinstance(result, ItemError):
        return {
            "path": shown, "label": None, "labels": [], "scores": {}, "scores_kind": None, "error": result.reason
        }  # fmt: skip
    return {
        "path": shown,
        "label": result.label,
        "labels": list(result.labels),
        "scores": {k: round(v, 6) for k, v in _top(result.scores, top).items()},
        "scores_kind": result.scores_kind,
        "error": None,
    }


def _write_lines(lines: Iterable[dict[str, Any]]) -> None:
    for line in lines:
        sys.stdout.write(json.dumps(_finite(line), ensure_ascii=False, allow_nan=False) + "\n")


def _write_csv(lines: Iterable[dict[str, Any]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["path", "label", "labels", "score", "error"])
    for line in lines:
        best = max(line["scores"].values(), default="")
        writer.writerow(
            [line["path"], line["label"] or "", " ".join(line["labels"]), best, line["error"] or ""]
        )


def _write_table(lines: Iterable[dict[str, Any]]) -> None:
    table = _table("image", "label", "scores")
    for line in lines:
        if line["error"]:
            table.add_row(escape(line["path"]), "[bold red]error[/]", escape(line["error"]))
        else:
            scores = "  ".join(f"{name} {score:.3f}" for name, score in line["scores"].items())
            table.add_row(
                escape(line["path"]), f"[bold]{escape(line['label'] or ' '.join(line['labels']))}[/]", scores
            )
    Console().print(table)


def _random_weights(manifest: Manifest) -> str:
    """A warning for bundles whose labels mean nothing; empty for all others."""
    seeds = sorted({c.random_seed for c in manifest.checkpoints.values() if c.random_seed is not None})
    return f"random weights (seed {', '.join(map(str, seeds))}): the labels mean nothing" if seeds else ""


def _with_progress(items: Sequence[T], shown: bool) -> Iterator[T]:
    """The items, with a bar on stderr while they are consumed."""
    if not shown:
        yield from items
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield from bar.track(items)


def results(items: Sequence[str], runtime: Runtime, output: str | None, top: int) -> int:
    """Run items and print them as they come; which engine ran, and why, goes to stderr.

    Returns:
        How many could not be processed.
    """
    failed = 0
    chosen = output or ("table" if sys.stdout.isatty() else "jsonl")
    # Lines that scroll on the same terminal would fight with the bar.
    bar = sys.stderr.isatty() and (chosen == "table" or not sys.stdout.isatty())

    def lines() -> Iterable[dict[str, Any]]:
        nonlocal failed
        for path, result in zip(_with_progress(items, bar), runtime.map(items), strict=True):
            failed += isinstance(result, ItemError)
            yield _line(path, result, top)

    {"table": _write_table, "jsonl": _write_lines, "csv": _write_csv}[chosen](lines())
    sys.stdout.flush()
    notes = [f"{len(items)} items, {failed} failed; {runtime.choice.why}; resize {runtime.resample}"]
    notes += [f"not used: {folder}: {reason}" for folder, reason in runtime.choice.refused.items()]
    notes += [warning] if (warning := _random_weights(runtime.manifest)) else []
    for note in notes:
        Console(stderr=True, highlight=False).print(escape(note), style="dim", soft_wrap=True)
    return failed
