"""The verdict: how far a report's figures can be trusted, as a table of small rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from vsa_rt.bench.headline import first_run, headline, pairings, percentile, quoted_pairing, ratio_text
from vsa_rt.bench.openings import LEAST_OPENINGS
from vsa_rt.bench.records.timing import Resources, Run, Series
from vsa_rt.bench.records.trust import Level, ParityCheck, Reason, Verdict
from vsa_rt.bench.report import Report

#: What a report holds until it is judged.
UNJUDGED = Verdict(level="amber", reasons=[], headline=None)

#: The smallest slowdown that the harness is held to tell from none: a drift as large could be taken for one.
DRIFT_AMBER = 0.05
#: Four times that: the median depends more on when one stops than on what was measured.
DRIFT_RED = 0.20
#: Samples that resemble their neighbours count for less: n (1 - r) / (1 + r) independent ones (first-order
#: autoregression, Bayley and Hammersley 1946), at 0.5 a third, so that bounds come out about sqrt(3) times too narrow.
AUTOCORRELATION = 0.5
#: Share of the processors in use by others: a quarter of one of two. An engine that shares out a layer evenly waits
#: for its slowest thread, so that this much already shows in every call.
OTHERS_AMBER = 1 / 8
#: Half of one of two: PyTorch, whose threads wait for each other at every layer, was seen to take twelve times as long
#: beside a busy core, OpenVINO much less, so that ratios are flattered.
OTHERS_RED = 1 / 4
#: Times come out longer by about the share that the hypervisor kept: as much as two tools may differ about one run.
STOLEN_AMBER = 0.02
#: Twice the slowdown that is to be told from none.
STOLEN_RED = 0.10
#: Share of the time in which a thread waited for a processor. More than a little is in the times of most calls.
PRESSURE_AMBER = 0.25
#: Fastest against slowest look at the clock. Arithmetic follows the clock one to one; steps of the turbo, 0.1 GHz
#: each at some 3 GHz, stay well below this.
CLOCK_SWING = 1.3
#: Width of a ratio's interval as a share of the ratio: "4 to 5 times" still says something, "3 to 5 times" does not.
SPREAD_AMBER = 0.20
SPREAD_RED = 0.50
#: p90 against p50 of a contestant: a tenth of its calls took twice as long as usual, which is no property of a graph.
TAIL = 2.0
#: Share of the convolutions that ran in the precision written in the graph; less than all but rounding.
ACHIEVED = 0.99

_ORDER: dict[Level, int] = {"green": 0, "amber": 1, "red": 2}


@dataclass(frozen=True)
class _Finding:
    """One case of a rule; ``weight`` finds the worst among those of a level."""

    level: Level
    weight: float
    text: str


def _reasons(code: str, findings: Sequence[_Finding]) -> Iterator[Reason]:
    """One reason per level: the worst case, and how many more there are."""
    for level in _ORDER:
        cases = [f for f in findings if f.level == level]
        if cases:
            worst = max(cases, key=lambda f: f.weight)
            more = f" (the worst of {len(cases)} such cases)" if len(cases) > 1 else ""
            yield Reason(level=level, code=code, text=worst.text + more)


def _graded(value: float | None, amber: float, red: float = math.inf) -> Level | None:
    """The level of a value that should be small; ``None`` up to the first limit, and where there is no value."""
    if value is None or value <= amber:
        return None
    return "red" if value > red else "amber"


def _place(run: Run) -> str:
    return f"{run.plan}, {run.scenario}, batch {run.batch}"


def _series(report: Report) -> Iterator[tuple[str, Series]]:
    for run in report.runs:
        if run.latency is not None:
            yield _place(run), run.latency
    for split in report.splits:
        yield f"{split.plan}, from images to labels, batch {split.batch}", split.whole


def _resources(report: Report) -> Iterator[tuple[str, Resources]]:
    yield from ((_place(run), run.resources) for run in report.runs)
    yield from ((f"contest of batch {c.batch}", c.resources) for c in report.contests)


def _parity_failed(report: Report) -> Iterator[Reason]:
    for check in report.parity:
        for one in check.plans:
            if not one.parity.passed:
                what = one.plan or f"the ONNX graph of {check.bundle}"
                text = f"{what} is not what {one.parity.reference} says: {'; '.join(one.parity.reasons)}"
                yield Reason(level="red", code="parity-failed", text=text)


def _refusals(check: ParityCheck) -> str:
    return "".join(f"; {folder}: {reason}" for folder, reason in check.refused.items())


def _parity_absent(report: Report) -> Iterator[Reason]:
    judged = {one.plan for check in report.parity for one in check.plans}
    for plan in report.plans:
        if plan.name not in judged:
            refused = "".join(_refusals(c) for c in report.parity if c.bundle == plan.bundle)
            skipped = report.skipped.get(f"parity of {plan.bundle}", "nothing was compared")
            text = f"{plan.name}: parity not proved: {skipped}{refused}; run vsa-rt check on the bundle"
            yield Reason(level="amber", code="parity-absent", text=text)


def _parity_weak(report: Report) -> Iterator[Reason]:
    for check in report.parity:
        if check.data == "golden":
            text = f"{check.bundle}: parity was judged on the bundle's few golden tensors alone; name photographs"
            yield Reason(level="amber", code="parity-golden", text=text)
        if check.reference != "torch":
            text = f"{check.bundle}: parity is held against {check.reference}, not PyTorch: {check.why}"
            yield Reason(level="green", code="parity-reference", text=text)
        if check.stand_ins:
            text = f"{check.bundle}: {check.stand_ins} photographs had stand-ins for their ready tensors"
            yield Reason(level="green", code="parity-stand-ins", text=text)
        if check.rejected:
            text = f"{check.bundle}: {len(check.rejected)} photographs were left out; the first: {check.rejected[0]}"
            yield Reason(level="green", code="parity-rejected", text=text)


def _random_weights(report: Report) -> Iterator[Reason]:
    labelled = {bundle.name for bundle in report.bundles if bundle.labels}
    undecided = {check.bundle for check in report.parity if not check.decides} & labelled
    for bundle in report.bundles:
        if bundle.random_weights or bundle.name in undecided:
            where = ", ".join(bundle.random_weights) or "head"
            flips = "; no flip was judged" if bundle.name in undecided else ""
            text = f"{bundle.name}: random weights ({where}): times hold, labels mean nothing{flips}"
            yield Reason(level="amber", code="random-weights", text=text)


def _few_samples(report: Report) -> Iterator[Reason]:
    first, findings = first_run(report), []
    for run in report.runs:
        for share, level in ((0.5, "amber"), (0.9, "amber"), (0.99, "green")):
            found = percentile(run.latency, share) if run.latency is not None else None
            if run.latency is None or found is None or (found.value is not None and found.upper is not None):
                continue
            # The headline is this run's p50: without a bound it would be a guess that looks like a figure. A tail
            # that a short run cannot show is no fault of what it does show.
            grade: Level = (
                "red" if run is first and share == 0.5 else "amber" if level == "amber" else "green"
            )
            there = len(run.latency.samples) - run.latency.warm_up
            text = f"{_place(run)}: {there} samples bound no p{100 * share:g}; it takes {found.needed}: measure longer"
            findings.append(_Finding(grade, found.needed - there, text))
    # Without an interval a ratio is not stated in the headline, which holds without it.
    for _, pairing, where in pairings(report):
        if pairing.confidence is None:
            text = f"{where}: {pairing.pairs} pairs are too few for an interval of the ratio: measure more rounds"
            findings.append(_Finding("amber", math.inf, text))
    yield from _reasons("few-samples", findings)


def _nothing_measured(report: Report) -> Iterator[Reason]:
    if not report.plans or not (report.runs or report.contests or report.points):
        yield Reason(
            level="red", code="nothing-measured", text="no plan was timed: there is no figure to trust"
        )


def _drift(report: Report) -> Iterator[Reason]:
    findings = []
    for where, series in _series(report):
        change = abs(series.drift) if series.drift is not None else None
        if level := _graded(change, DRIFT_AMBER, DRIFT_RED):
            text = f"{where}: the median moved by {100 * (series.drift or 0):+.1f} % from the first third to the last"
            findings.append(
                _Finding(level, change or 0, f"{text}; let the machine settle and measure longer")
            )
        elif not series.steady:
            text = f"{where}: no steady state was found in {len(series.samples)} samples; measure longer"
            findings.append(_Finding("amber", 0, text))
    yield from _reasons("drift", findings)


def _autocorrelation(report: Report) -> Iterator[Reason]:
    findings = []
    for where, series in _series(report):
        r = series.autocorrelation
        if r is not None and r > AUTOCORRELATION:
            text = f"{where}: each sample resembles the next (autocorrelation {r:.2f}), so that bounds are too narrow"
            findings.append(_Finding("amber", r, text))
    yield from _reasons("autocorrelation", findings)


def _neighbours(report: Report) -> Iterator[Reason]:
    cores = max(1, report.environment.cores)
    findings = []
    for where, felt in _resources(report):
        share = felt.other_cores / cores if felt.other_cores is not None else None
        if level := _graded(share, OTHERS_AMBER, OTHERS_RED):
            text = f"{where}: other programs used {felt.other_cores:.2f} of {cores} cores; stop them and measure again"
            findings.append(_Finding(level, share or 0, text))
    before = report.environment.busy
    # Before the start it is a sign only: what happened during a run is in that run.
    if before is not None and _graded(before / cores, OTHERS_AMBER):
        text = f"before the start other programs used {before:.2f} of {cores} cores"
        findings.append(_Finding("amber", 0, text))
    yield from _reasons("neighbours", findings)


def _stolen(report: Report) -> Iterator[Reason]:
    findings = [
        _Finding(
            level,
            felt.stolen,
            f"{where}: the hypervisor kept {100 * felt.stolen:.1f} % of the processors' time",
        )
        for where, felt in _resources(report)
        if felt.stolen is not None and (level := _graded(felt.stolen, STOLEN_AMBER, STOLEN_RED))
    ]
    yield from _reasons("stolen", findings)


def _pressure(report: Report) -> Iterator[Reason]:
    findings = [
        _Finding(
            level,
            felt.pressure,
            f"{where}: in {100 * felt.pressure:.0f} % of the time a thread waited for a processor: other programs, or "
            "more threads than cores",
        )
        for where, felt in _resources(report)
        if felt.pressure is not None and (level := _graded(felt.pressure, PRESSURE_AMBER))
    ]
    yield from _reasons("pressure", findings)


def _throttled(report: Report) -> Iterator[Reason]:
    findings = [
        _Finding(
            "red",
            0,
            f"{where}: slowed down ({felt.sources.get('throttled', 'no source named')}); cool it, give it a larger "
            "quota, or lock a clock that it can keep",
        )
        for where, felt in _resources(report)
        if felt.throttled
    ]
    yield from _reasons("throttled", findings)


def _degraded(report: Report) -> Iterator[Reason]:
    findings = [_Finding("amber", 0, f"{plan.name}: {note}") for plan in report.plans for note in plan.notes]
    yield from _reasons("degraded", findings)


def _clock_swing(report: Report) -> Iterator[Reason]:
    findings = []
    for where, felt in _resources(report):
        if felt.megahertz and felt.megahertz[0] > 0:
            swing = felt.megahertz[-1] / felt.megahertz[0]
            if swing > CLOCK_SWING:
                text = f"{where}: the clock went from {felt.megahertz[0]:.0f} to {felt.megahertz[-1]:.0f} MHz"
                findings.append(_Finding("amber", swing, f"{text}; times follow it"))
    yield from _reasons("clock-swing", findings)


def _unpinned(report: Report) -> Iterator[Reason]:
    if report.environment.pinned is False:
        governor = report.environment.governor
        text = (
            f"clocks are not fixed (governor {governor or 'unknown'}); set performance and switch boost off"
        )
        yield Reason(level="amber", code="unpinned-clocks", text=text)


def _untold(report: Report) -> Iterator[Reason]:
    """What a machine does not tell is no fault of the figures, but nobody should take it for an all-clear."""
    felt = [resources for _, resources in _resources(report)]
    keys = {
        "whether clocks are fixed": report.environment.pinned is None,
        "what others use": any(r.other_cores is None for r in felt),
        "stolen time": any(r.stolen is None for r in felt),
        "throttling": any(r.throttled is None for r in felt),
    }
    if untold := [words for words, absent in keys.items() if absent]:
        yield Reason(level="green", code="untold", text=f"the system does not tell: {', '.join(untold)}")


def _spread(report: Report) -> Iterator[Reason]:
    findings = []
    quoted = quoted_pairing(report)
    for _, pairing, where in pairings(report):
        width = (pairing.high - pairing.low) / pairing.ratio if pairing.ratio > 0 else math.inf
        if pairing.confidence is not None and (level := _graded(width, SPREAD_AMBER, SPREAD_RED)):
            if quoted is None or pairing is not quoted[1]:
                level = "amber"  # the headline stands without it
            text = f"{where}: the ratio {ratio_text(pairing)} is spread over {100 * width:.0f} % of itself"
            findings.append(_Finding(level, width, f"{text}; measure more rounds on a quieter machine"))
    yield from _reasons("spread", findings)


def _openings(report: Report) -> Iterator[Reason]:
    few = [c for c in report.contests if c.openings < LEAST_OPENINGS and c.pairings]
    if few:
        batches = ", ".join(str(c.batch) for c in few)
        text = (
            f"contests of batch {batches}: the engines were opened {few[0].openings} time"
            f"{'s' if few[0].openings != 1 else ''}, in the time that there was; what differs from one opening "
            "to the next is not in the intervals of the ratios"
        )
        yield Reason(level="green", code="openings", text=text)


def _tail(report: Report) -> Iterator[Reason]:
    findings = []
    for contest in report.contests:
        for one in contest.contestants:
            ordered = sorted(one.samples)
            # Under ten samples the 90th percentile is the largest.
            if len(ordered) >= 10:
                p50, p90 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.9))
                if p90 > TAIL * p50:
                    text = f"{one.name}, contest of batch {contest.batch}: p90 {p90:.3g} ms is {p90 / p50:.1f} times p50"
                    findings.append(_Finding("amber", p90 / p50, text))
    yield from _reasons("tail", findings)


def _precision(report: Report) -> Iterator[Reason]:
    for plan in report.plans:
        if plan.achieved is not None and plan.achieved < ACHIEVED:
            text = f"{plan.name}: {100 * plan.achieved:.0f} % of the convolutions ran in {plan.precision}"
            yield Reason(level="amber", code="precision", text=f"{text}; the others ran in another precision")


def _invalid(report: Report) -> Iterator[Reason]:
    for run in report.runs:
        if not run.valid:
            text = f"{_place(run)}: its conditions do not hold: {'; '.join(run.reasons) or 'no reason given'}"
            yield Reason(level="amber", code="invalid-run", text=text)


def _dropped(report: Report) -> Iterator[Reason]:
    for run in report.runs:
        if run.dropped:
            text = f"{_place(run)}: {run.dropped} of {run.dropped + run.images} frames were not taken: slower than they come"
            yield Reason(level="green", code="dropped-frames", text=text)


#: Every rule, in the order in which reasons of one level are listed.
RULES: tuple[Callable[[Report], Iterator[Reason]], ...] = (
    _parity_failed,
    _nothing_measured,
    _throttled,
    _few_samples,
    _drift,
    _neighbours,
    _stolen,
    _spread,
    _random_weights,
    _parity_absent,
    _parity_weak,
    _precision,
    _degraded,
    _invalid,
    _autocorrelation,
    _pressure,
    _clock_swing,
    _tail,
    _openings,
    _dropped,
    _unpinned,
    _untold,
)


def judge(report: Report) -> Report:
    """Judge a report.

    Args:
        report: Complete but for its verdict, which is not looked at.

    Returns:
        The report with its verdict: the level of its gravest reason, and a headline unless that is red.
    """
    reasons = sorted((r for rule in RULES for r in rule(report)), key=lambda r: -_ORDER[r.level])
    level: Level = reasons[0].level if reasons else "green"
    words = None if level == "red" else headline(report)
    return msgspec.structs.replace(report, verdict=Verdict(level=level, reasons=reasons, headline=words))
