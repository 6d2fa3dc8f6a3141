"""The machine: what runs took, what it is; what was skipped; how all this was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vsa_rt.render.blocks import Cell, Items, Section, table
from vsa_rt.render.numbers import NONE, fixed, percent, rounded

if TYPE_CHECKING:
    from vsa_rt.bench.records.timing import Resources
    from vsa_rt.bench.report import Report


def _users(report: Report) -> Iterator[tuple[str, str, Resources]]:
    for run in report.runs:
        yield run.plan, f"{run.scenario}, batch {run.batch}", run.resources
    for contest in report.contests:
        yield "contest", f"batch {contest.batch}", contest.resources


def _clocks(found: list[float] | None) -> Cell:
    if not found:
        return Cell(NONE, "quiet")
    if len(found) != 3:
        return Cell(" / ".join(f"{c:.0f}" for c in found))
    return Cell(fixed(found[1], 0), note=f"{fixed(found[0], 0)} to {fixed(found[2], 0)}")


def _throttled(found: bool | None) -> Cell:
    if found is None:
        return Cell(NONE, "quiet")
    return Cell("yes", "bad") if found else Cell("no", "good")


def _busy(cores: float | None) -> Cell:
    return Cell(fixed(cores, 2), "warn" if cores is not None and cores > 0.2 else "")


def _row(name: str, what: str, found: Resources) -> list[Cell | str]:
    return [
        Cell(name, note=what),
        fixed(found.rss_mib, 0),
        fixed(found.device_mib, 0),
        fixed(found.cores, 2),
        _busy(found.other_cores),
        percent(found.stolen),
        percent(found.pressure),
        rounded(found.joules),
        rounded(found.joules_per_image),
        _clocks(found.megahertz),
        fixed(found.celsius, 0),
        _throttled(found.throttled),
    ]


def resource_use(report: Report) -> Section | None:
    """Memory, processor time, energy and clocks of every run."""
    users = list(_users(report))
    if not users:
        return None
    rows = [_row(*user) for user in users]
    columns = [
        "run",
        "RSS MiB>",
        "GPU MiB>",
        "cores>",
        "others' cores>",
        "stolen>",
        "pressure>",
        "J>",
        "J/image>",
        "MHz>",
        "°C>",
        "throttled",
    ]
    # A column in which the machine tells nothing is left out; the list below says why.
    silent = {k for k in range(1, len(columns)) if all(_text(row[k]) == NONE for row in rows)}
    kept = [k for k in range(len(columns)) if k not in silent]
    sources = dict.fromkeys((key, words) for _, _, found in users for key, words in found.sources.items())
    section = Section("resources", "Resources")
    section.blocks = [
        table(
            *(columns[k] for k in kept),
            rows=[[row[k] for k in kept] for row in rows],
            title="During each run",
        )
    ]
    if sources:
        section.blocks.append(
            table(
                "figure",
                "where it comes from, or why there is none",
                rows=list(sources),
                title="Sources",
                folded=True,
            )
        )
    return section


def _text(value: Cell | str) -> str:
    return value if isinstance(value, str) else value.text


def environment(report: Report) -> Section:
    """Machine and software."""
    found = report.environment
    untold = "the system does not tell"
    rows = [
        ("processor", found.processor),
        ("cores", str(found.cores)),
        ("memory", untold if found.memory_gib is None else f"{rounded(found.memory_gib)} GiB"),
        ("instruction sets", ", ".join(found.instruction_sets) or "none that matters"),
        ("GPU", "; ".join(found.gpus) or "none"),
        ("system", found.system),
        ("Python", found.python),
        ("libraries", ", ".join(f"{k} {v}" for k, v in found.libraries.items())),
        ("variables", ", ".join(f"{k}={v}" for k, v in found.variables.items()) or "none set"),
        ("frequency governor", found.governor or untold),
        ("clocks fixed", {True: "yes", False: "no", None: untold}[found.pinned]),
        ("others' cores before the start", untold if found.busy is None else fixed(found.busy, 2)),
        ("vsa-rt", report.vsa_rt),
        ("command", report.command),
        ("took", f"{rounded(report.seconds)} s"),
        ("inputs' SHA-256", report.inputs_sha256),
        *((f"manifest of {b.name}, SHA-256", b.digest) for b in report.bundles),
    ]
    section = Section("environment", "Environment")
    section.blocks = [table("fact", "value", rows=rows)]
    return section


def skipped(report: Report) -> Section | None:
    """What could not be measured."""
    if not report.skipped:
        return None
    section = Section("skipped", "Not measured")
    section.blocks = [table("part", "why", rows=list(report.skipped.items()))]
    return section


def _methods(report: Report) -> Iterator[str]:
    scenarios = {r.scenario for r in report.runs}
    if "quick" in scenarios:
        yield (
            "quick is a closed loop: the next call starts when the last one ends, so it cannot see queueing; "
            "it says what a call takes, not what a client waits under load."
        )
    if scenarios & {"camera", "server"}:
        yield (
            "camera and server count from the time at which a query was scheduled, not from the time at "
            "which it was taken up: waiting is part of their latency."
        )
    if scenarios - {"quick", "camera"}:
        yield "Other scenarios are run by MLPerf LoadGen; its settings and logs are kept."
    if report.runs:
        yield (
            "Percentiles are order statistics; the bound of each is the one-sided binomial bound, which holds "
            "for independent samples of any distribution. High autocorrelation weakens it."
        )
        yield "No sample is removed as an outlier. Only the warm-up before the steady state is set apart, and kept."
    if report.contests:
        yield (
            "Candidates of a contest are called in turns within one run, in rotating order; the ratio is the "
            "median over rounds, its interval made of order statistics."
        )
    if report.ceilings:
        yield (
            "Ceilings are what the named library was seen to do here on the named shapes, not data-sheet peaks; "
            "other shapes may be able to do less, or more."
        )
    if report.parity:
        yield (
            "A flip is a tie where the reference's own lead was below the tolerance. Intervals of metrics are "
            "paired bootstrap intervals of the difference."
        )
    yield "Where the machine does not tell a figure, there is none; none is estimated."


def method(report: Report) -> Section:
    """How it was measured."""
    section = Section("method", "How it was measured")
    section.blocks = [Items("", [Cell(text) for text in _methods(report)])]
    return section
