"""What was measured: bundles, plans, inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsa_rt.render.blocks import Cell, Paragraph, Section, table
from vsa_rt.render.numbers import count, percent

if TYPE_CHECKING:
    from vsa_rt.bench.records.timing import Plan
    from vsa_rt.bench.records.trust import BundleFacts
    from vsa_rt.bench.report import Report


def _weights(bundle: BundleFacts) -> Cell:
    if not bundle.random_weights:
        return Cell("from files")
    return Cell("random", "warn", ", ".join(bundle.random_weights))


def _achieved(plan: Plan) -> Cell:
    if plan.achieved is None:
        return Cell(plan.precision, note="whether it ran so, the backend does not tell")
    if plan.achieved < 1:
        return Cell(plan.precision, "warn", f"only {percent(plan.achieved, 0)} of the convolutions ran so")
    return Cell(plan.precision, note="all convolutions ran so")


def measured(report: Report) -> Section:
    """Bundles, plans, inputs and the command."""
    section = Section("measured", "What was measured")
    plans = [
        (Cell(p.name, note=p.bundle), p.target, _achieved(p), str(p.threads), p.why) for p in report.plans
    ]
    bundles = [
        (
            Cell(b.name, note=f"manifest {b.digest[:12]}"),
            b.recipe or "none",
            Cell(b.task, note=f"{count(len(b.labels), 'label')}: {', '.join(b.labels)}" if b.labels else ""),
            _weights(b),
            str(b.max_batch),
        )
        for b in report.bundles
    ]
    section.blocks = [
        table("plan", "target", "precision", "threads>", "why this engine", rows=plans, title="Plans"),
        table("bundle", "recipe", "task", "weights", "largest batch>", rows=bundles, title="Bundles"),
        Paragraph(f"Inputs: {report.inputs} (SHA-256 {report.inputs_sha256[:12]})."),
    ]
    if report.resumed:
        section.blocks.append(
            Paragraph(f"Taken over from an interrupted run of this command: {'; '.join(report.resumed)}.")
        )
    return section
