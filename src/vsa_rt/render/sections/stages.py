"""Where a call's time goes, and what comes before the first answer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vsa_rt.render.blocks import Block, Cell, Figure, Figures, Heading, Section, table
from vsa_rt.render.numbers import NONE, count, decimals, fixed, middle, percent, rounded
from vsa_rt.render.plots import bars as plots

if TYPE_CHECKING:
    from vsa_rt.bench.records.timing import Split
    from vsa_rt.bench.report import Report

#: Bars of one plot.
_BARS = 8


def _split_table(split: Split) -> Block:
    times = [None if s.series is None else middle(s.series) for s in split.stages]
    whole = middle(split.whole)
    total = sum(t for t in times if t is not None)
    places = decimals([*times, whole], 2)
    rows = [
        (
            stage.stage,
            fixed(ms, places),
            percent(ms / total if ms is not None and total else None),
            NONE if stage.series is None else f"{len(stage.series.samples) - stage.series.warm_up}",
            stage.note,
        )
        for stage, ms in zip(split.stages, times, strict=True)
    ]
    note = f"stages one after the other: {fixed(total, places)} ms"
    whole_row = (
        Cell("whole call", "strong"),
        Cell(fixed(whole, places), "strong"),
        "",
        str(len(split.whole.samples) - split.whole.warm_up),
        note,
    )
    title = f"{split.plan}, batch {split.batch}, {count(split.images, 'image')} taking turns"
    columns = ("stage", "median ms>", "share>", "samples>", "note")
    return table(*columns, rows=[*rows, whole_row], title=title, folded=True)


def _figure(splits: list[Split]) -> Figures | None:
    stacks = []
    for split in splits[:_BARS]:
        parts = [(s.stage, middle(s.series)) for s in split.stages if s.series is not None]
        whole = middle(split.whole)
        stacks.append(
            plots.Stack(
                split.plan,
                f"batch {split.batch}",
                [(name, ms / split.batch) for name, ms in parts if ms is not None],
                None if whole is None else whole / split.batch,
            )
        )
    if not any(s.parts for s in stacks):
        return None
    said = "; ".join(
        f"{s.name}, {s.detail}: " + ", ".join(f"{name} {rounded(ms)}" for name, ms in s.parts) for s in stacks
    )
    rest = f" The first {_BARS} of {len(splits)} are drawn." if len(splits) > _BARS else ""
    figure = Figure(
        "Time per image by stage",
        f"Median milliseconds per image of each stage. {said}.",
        f"Medians of the stages; the tick is the runtime's own call, which may overlap stages.{rest}",
        partial(plots.stages, stacks),
    )
    return Figures([figure])


def _spread(values: list[float] | None) -> Cell:
    if not values:
        return Cell(NONE, "quiet")
    from vsa_rt.bench.clock import median_ms

    places = decimals([median_ms(values)])
    text = fixed(median_ms(values), places)
    if len(values) == 1:
        return Cell(text)
    return Cell(text, note=f"{fixed(min(values), places)} to {fixed(max(values), places)}")


def _cold(report: Report) -> Block:
    rows = [
        (
            Cell(c.plan, note=count(len(c.process_ms), "fresh process", "fresh processes")),
            _spread(c.process_ms),
            _spread(c.load_ms),
            _spread(c.first_ms),
            _spread(c.second_ms),
            _spread(c.capture_ms) if c.capture_ms else "",
            _spread(c.peak_rss_mib),
        )
        for c in report.cold
    ]
    columns = (
        "plan",
        "process ms>",
        "load ms>",
        "first call ms>",
        "second call ms>",
        "capture ms>",
        "peak RSS MiB>",
    )
    return table(*columns, rows=rows, title="Medians over fresh processes, with the extremes")


def time_split(report: Report) -> Section | None:
    """Stages of a call; cold starts."""
    if not report.splits and not report.cold:
        return None
    section = Section("split", "Where the time goes")
    if report.splits:
        section.lead = "From the encoded image to the label, stage by stage."
        figure = _figure(report.splits)
        if figure:
            section.blocks.append(figure)
        section.blocks += [_split_table(s) for s in report.splits]
    if report.cold:
        section.blocks.append(Heading("Cold start"))
        section.blocks.append(_cold(report))
    return section
