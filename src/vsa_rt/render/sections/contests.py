"""Against baselines: ratios of interleaved pairs, both precisions named; gaps to the backends' bare tools."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vsa_rt.render.blocks import Block, Cell, Figure, Figures, Heading, Section, table
from vsa_rt.render.numbers import TIMES, count, decimals, fixed, percent, signed
from vsa_rt.render.plots import latency as plots

if TYPE_CHECKING:
    from vsa_rt.bench.records.contest import Contest, Gap, Pairing
    from vsa_rt.bench.report import Report


def precisions(contest: Contest) -> dict[str, str]:
    """Name of a contestant to what it computes in."""
    return {c.name: c.precision for c in contest.contestants}


def interval(pairing: Pairing, places: int) -> Cell:
    """The interval, and how sure it is."""
    text = f"{fixed(pairing.low, places)} to {fixed(pairing.high, places)}"
    if pairing.confidence is None:
        return Cell(text, "warn", f"extremes: {count(pairing.pairs, 'pair')} carry no interval")
    return Cell(text, note=f"{percent(pairing.confidence, 1)}, {count(pairing.pairs, 'pair')}")


def _says(pairing: Pairing) -> Cell:
    if not pairing.different:
        return Cell("no difference shown", "quiet")
    return Cell("slower", "") if pairing.ratio > 1 else Cell("FASTER", "warn")


def _ratio_rows(contest: Contest) -> list[list[Cell | str]]:
    of = precisions(contest)
    places = max(2, decimals([p.ratio for p in contest.pairings]))
    return [
        [
            Cell(p.slower, note=of.get(p.slower, "")),
            Cell(p.faster, note=of.get(p.faster, "")),
            Cell(f"{fixed(p.ratio, places)}{TIMES}"),
            interval(p, places),
            _says(p),
        ]
        for p in contest.pairings
    ]


def _contestants(contest: Contest) -> Block:
    from vsa_rt.bench.clock import median_ms

    middles = [median_ms(c.samples) if c.samples else None for c in contest.contestants]
    places = decimals(middles)
    rows = [
        (c.name, c.kind, c.precision, fixed(middle, places), str(len(c.samples)), c.note)
        for c, middle in zip(contest.contestants, middles, strict=True)
    ]
    columns = ("contestant", "kind", "precision", "median ms>", "rounds>", "what it is")
    return table(*columns, rows=rows, title="Contestants")


def _figures(contest: Contest) -> Figures | None:
    samples = {c.name: c.samples for c in contest.contestants}
    of, figures = precisions(contest), []
    for faster in dict.fromkeys(p.faster for p in contest.pairings):
        strips = []
        for p in contest.pairings:
            if p.faster != faster or p.slower not in samples or faster not in samples:
                continue
            pairs = [a / b for a, b in zip(samples[p.slower], samples[faster], strict=False) if b > 0]
            if pairs:
                strips.append(plots.Strip(p.slower, of.get(p.slower, ""), pairs, p.ratio, p.low, p.high))
        if strips:
            said = "; ".join(f"{s.name} {s.median:.2f} [{s.low:.2f}, {s.high:.2f}]" for s in strips)
            figures.append(
                Figure(
                    f"Against {faster} ({of.get(faster, '')}), batch {contest.batch}",
                    f"Ratio of every pair of calls to {faster}: {said}.",
                    "A dot per pair; the box is the interval of their median, the dashed line equally fast.",
                    partial(plots.pair_ratios, strips),
                )
            )
    return Figures(figures) if figures else None


def _gaps(gaps: list[Gap]) -> Block:
    places = decimals([g.gap_ms for g in gaps], 2)
    rows = [
        (
            Cell(g.plan, note=f"batch {g.batch}"),
            Cell(g.tool, note=g.command),
            fixed(g.ours_ms, places),
            fixed(g.tool_ms, places),
            Cell(
                signed(g.gap_ms, places),
                note=f"{signed(g.low, places)} to {signed(g.high, places)}"
                + (f", {percent(g.confidence, 1)}" if g.confidence is not None else ", extremes"),
            ),
            str(g.pairs),
            g.note,
        )
        for g in gaps
    ]
    columns = ("plan", "tool", "ours ms>", "tool ms>", "gap ms>", "pairs>", "what differs")
    return table(*columns, rows=rows)


def against_baselines(report: Report) -> Section | None:
    """Ratios, contestants, what was absent, and gaps."""
    if not report.contests and not report.gaps:
        return None
    section = Section("baselines", "Against baselines")
    if report.contests:
        section.lead = (
            "Every candidate is called once per round on the same inputs and threads, in turns; "
            "the ratio is taken round by round. Above 1 the plan is faster."
        )
    for contest in report.contests:
        title = f"Batch {contest.batch}, {count(contest.threads, 'thread')}, {count(contest.openings, 'opening')} of each plan"
        section.blocks.append(Heading(title))
        if contest.pairings:
            columns = ("candidate", "against plan", "ratio>", "interval>", "candidate is")
            section.blocks.append(table(*columns, rows=_ratio_rows(contest), title="Ratios"))
        figures = _figures(contest)
        if figures:
            section.blocks.append(figures)
        section.blocks.append(_contestants(contest))
        if contest.absent:
            rows = [(name, why) for name, why in contest.absent.items()]
            section.blocks.append(table("absent", "why", rows=rows, title="Not among them"))
    if report.gaps:
        section.blocks.append(Heading("What a call costs beyond the backend's own bare one"))
        section.blocks.append(_gaps(report.gaps))
    return section
