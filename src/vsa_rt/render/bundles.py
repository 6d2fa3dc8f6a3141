"""Bundles, and how they compare with their reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vsa_rt.render.plans import plans
from vsa_rt.render.tables import (
    document,
    errors,
    new_table,
    number,
    print_rejected,
    random_weights,
    verdict,
)

if TYPE_CHECKING:
    from vsa_rt.bench.parity import Parity
    from vsa_rt.manifest import Manifest
    from vsa_rt.pipeline.check import Check


def manifest(shown: Manifest, path: Path, as_json: bool) -> None:
    """A bundle: engines with latency and parity, what was rejected, where the weights came from."""
    if as_json:
        document("bundle", path=str(path), manifest=shown)
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
            f"gate {gate.stage} against {gate.reference}: {verdict(gate.passed)} on {gate.images} images"
            + (f", {gate.stand_ins} with stand-ins for their ready tensors" if gate.stand_ins else "")
            + (f", {gate.skipped} could not be read" if gate.skipped else "")
        )
    if shown.engines:
        batches = list(dict.fromkeys(b for e in shown.engines for b in e.latency_ms))
        divided = ["cores"] if any(e.division for e in shown.engines) else []
        table = new_table(
            "engine",
            "precision",
            *(f"ms at batch {b}>" for b in batches),
            *divided,
            "parity",
            "flips>",
            "ties>",
        )
        for e in shown.engines:
            latency = [f"{e.latency_ms[b]:.2f}" if b in e.latency_ms else "-" for b in batches]
            cores = [", ".join(dict.fromkeys(e.division.values())) or "threads"] if divided else []
            table.add_row(
                e.target,
                e.precision,
                *latency,
                *cores,
                verdict(e.gate.passed) + ("" if e.proof == "engine" else " (graph)"),
                str(e.gate.flips),
                str(e.gate.ties),
            )
        console.print()
        console.print(table)
        console.print(f"\ndefault: {escape(shown.chosen)}")
        _print_compiled(console, shown)
    plans(console, shown)
    for r in shown.rejected:
        console.print(f"left out: {escape(f'{r.target} {r.precision}'.strip())}: {escape(r.reason)}")
    if warning := random_weights(shown):
        console.print(f"[bold yellow]{warning}[/]")


def _print_compiled(console: Console, shown: Manifest) -> None:
    """Where TensorRT's engines may be opened, what was proved of them, and the command that makes each again."""
    for e in shown.engines:
        c = e.compiled
        if c is None:
            continue
        kinds = [
            f"{c.typing} typing",
            *(["opened by later versions, too"] if c.version_compatible else []),
            *([f"hardware compatible: {c.hardware}"] if c.hardware != "none" else []),
            *(["without weights"] if c.stripped else []),
            *([f"{len(c.stages)} stages beside the merged engine"] if c.stages else []),
        ]
        console.print(
            f"\n{e.target} {e.precision}: {c.library} {c.version} for {', '.join(c.capabilities)} on {c.system}, "
            f"batches {'/'.join(map(str, c.batches))}, {', '.join(kinds)}",
            highlight=False,
        )
        if e.proof == "graph":
            console.print(
                "  compiled ahead of time: its graph was judged, the engine itself never ran; "
                "judge it on its device with: vsa-rt check"
            )
        console.print(f"  {escape(c.trtexec)}", highlight=False, soft_wrap=True)


def _shape(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))


def _parity_table(parity: Parity) -> Table:
    title = f"{parity.stage} against {parity.reference}: {verdict(parity.passed)}"
    table = new_table("tap", "max>", "mean>", "relative>", "cosine>", "gain>", "verdict", title=title)
    for tap in parity.taps:
        table.add_row(
            escape(tap.tap),
            number(tap.max_abs),
            number(tap.mean_abs),
            number(tap.relative),
            "-" if tap.cosine is None else f"{tap.cosine:.6f}",
            "-" if tap.gain is None else f"{tap.gain:.5f}",
            f"[bold red]{escape(tap.reason)}[/]" if tap.reason else "ok",
        )
    return table


def _print_decisions(console: Console, parity: Parity) -> None:
    """What changed between both sides' labels, with or without true ones."""
    line = f"{parity.images} images, {len(parity.flips)} labels flip ({parity.ties} of them ties)"
    if parity.kl is not None:
        line += f", mean KL {parity.kl:.2e}"
    if parity.kl_worst is not None and parity.kl_item:
        line += f", largest {parity.kl_worst:.2e} ({escape(parity.kl_item)})"
    console.print(line)
    if parity.undecided:
        console.print(
            f"[bold red]images with a score that is not a number, left out here: {parity.undecided}[/]"
        )
    if parity.kendall_tau is not None:
        console.print(
            f"{parity.rank_changes} images order their labels otherwise, mean Kendall's tau {parity.kendall_tau:.6f}"
        )
    if parity.distances:
        console.print("from the reference: " + ", ".join(f"{n} {v:.3g}" for n, v in parity.distances.items()))
    for flip in sorted(parity.flips, key=lambda f: -f.margin)[:5]:
        console.print(
            f"  {escape(flip.item)}: {escape(flip.reference)} to {escape(flip.candidate)}, margin {flip.margin:.3f}"
        )


def _print_metrics(console: Console, parity: Parity) -> None:
    """What the true labels say of both sides."""
    if parity.labelled:
        console.print(f"against the labels of {parity.labelled} images, difference with its 95 % interval:")
    for metric in parity.metrics:
        gap = metric.candidate - metric.reference
        console.print(
            f"  {metric.name} {metric.reference:.4f} to {metric.candidate:.4f}, "
            f"difference {gap:+.4f} [{metric.low:+.4f}, {metric.high:+.4f}]"
        )
    if parity.mcnemar is not None:
        only = parity.mcnemar
        console.print(
            f"  right alone: the reference on {only.reference_only}, the candidate on {only.candidate_only}, "
            f"McNemar's p {only.p:.3g}"
        )


def check(found: Check, as_json: bool) -> None:
    """Parity stage by stage."""
    if as_json:
        stages = [msgspec.to_builtins(p) | {"passed": p.passed} for p in found.parities]
        document(
            "check",
            passed=found.passed,
            reference=found.reference,
            why=found.why,
            random_weights=found.random_weights,
            stand_ins=found.stand_ins,
            stages=stages,
            refused=found.refused,
            rejected=errors(found.rejected),
        )
        return
    console = Console()
    why = f" ({escape(found.why)})" if found.why else ""
    console.print(f"reference: {found.reference}{why}\n")
    if found.random_weights:
        words = (
            "random weights under a fitted head: the labels are its own"
            if found.decides
            else "random weights: judged at the taps only, the labels mean nothing"
        )
        console.print(f"[bold yellow]{words}[/]\n")
    if found.stand_ins:
        console.print(
            f"{found.stand_ins} photographs without ready tensors beside them: stand-ins were taken\n"
        )
    for parity in found.parities:
        console.print(_parity_table(parity))
        _print_decisions(console, parity)
        _print_metrics(console, parity)
        for reason in parity.reasons:
            console.print(f"[bold red]{escape(reason)}[/]")
        console.print()
    for folder, reason in found.refused.items():
        console.print(f"not checked: {escape(folder)}: {escape(reason)}")
    print_rejected(found.rejected)
