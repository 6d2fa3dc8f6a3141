"""The headline: one sentence with the figure that matters."""

from __future__ import annotations

from collections.abc import Iterator

from vsa_rt.bench.records.contest import Contest, Contestant, Pairing
from vsa_rt.bench.records.timing import Percentile, Plan, Run, Series
from vsa_rt.bench.report import Report

#: Baselines whose name says too little by itself.
_BASELINES = {
    "eager": "PyTorch eager",
    "eager-separate": "PyTorch eager, feature by feature,",
    "eager-bf16": "PyTorch eager",
    "channels-last": "PyTorch channels-last",
    "compile": "torch.compile",
}


def percentile(series: Series, share: float) -> Percentile | None:
    """A series' record of one percentile, such as 0.5."""
    return next((p for p in series.percentiles if abs(p.share - share) < 1e-9), None)


def pairings(report: Report) -> Iterator[tuple[Contest, Pairing, str]]:
    """Every pairing with its contest, and what to call it."""
    for contest in report.contests:
        for pairing in contest.pairings:
            yield contest, pairing, f"{pairing.slower} against {pairing.faster}, batch {contest.batch}"


def first_run(report: Report) -> Run | None:
    """The run that the headline is about: the first plan's first quick one, else its first valid one with latencies."""
    if not report.plans:
        return None
    mine = [r for r in report.runs if r.plan == report.plans[0].name and r.latency is not None and r.valid]
    return next((r for r in mine if r.scenario == "quick"), mine[0] if mine else None)


def _figure(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _latency_words(run: Run, plan: Plan) -> str:
    p50 = percentile(run.latency, 0.5) if run.latency is not None else None
    if p50 is None or p50.value is None:
        return ""
    bound = (
        "no bound"
        if p50.upper is None
        else f"{100 * p50.confidence:g} % bound {_figure(p50.upper / run.batch)}"
    )
    scenario = "" if run.scenario == "quick" else f"{run.scenario}, "
    feed = (
        ""
        if run.feed == "tensors"
        else "from frame to label, "
        if run.scenario == "camera"
        else "from image to label, "
    )
    return (
        f"{_figure(p50.value / run.batch)} ms per image at p50 ({bound}), {scenario}{feed}batch {run.batch}, "
        f"{plan.target} {plan.precision}, {_threads(plan.threads)}"
    )


def _throughput_words(report: Report, plan: Plan) -> str:
    """For a report without latencies, such as one of the offline scenario alone."""
    for run in report.runs:
        if run.plan == plan.name and run.throughput is not None and run.valid:
            return (
                f"{_figure(run.throughput)} images per second, {run.scenario}, batch {run.batch}, {plan.target} "
                f"{plan.precision}, {_threads(plan.threads)}"
            )
    return ""


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"


def ratio_text(pairing: Pairing) -> str:
    """The ratio and its interval."""
    return f"{_figure(pairing.ratio)} [{_figure(pairing.low)}, {_figure(pairing.high)}]"


def _of_several(contest: Contest) -> str:
    """Which of the baselines is quoted, where there are several."""
    count = sum(c.kind == "baseline" for c in contest.contestants)
    return f", the fastest of {count} baselines" if count > 1 else ""


def _comparison_words(contest: Contest, pairing: Pairing, other: Contestant) -> str:
    name = _BASELINES.get(other.name, other.name)
    if other.precision not in name.split():  # a plan's name may have it already
        name += f" {other.precision}"
    if not pairing.different:
        return f"not told apart from {name}{_of_several(contest)}: {ratio_text(pairing)}"
    interval = f"[{_figure(pairing.low)}, {_figure(pairing.high)}]"
    return f"{_figure(pairing.ratio)} times {interval} as fast as {name}{_of_several(contest)}"


def headline(report: Report) -> str | None:
    """One sentence: the first plan's median latency, and its ratio to a baseline of the same batch.

    Args:
        report: It is not asked whether its figures can be trusted: ``vsa_rt.bench.verdict`` does.

    Returns:
        ``None`` where nothing was timed.
    """
    plan, run = (report.plans[0] if report.plans else None), first_run(report)
    if plan is None:
        return None
    words = [_latency_words(run, plan) if run is not None else _throughput_words(report, plan)]
    if (quoted := quoted_pairing(report)) is not None:
        contest, pairing = quoted
        other = next(c for c in contest.contestants if c.name == pairing.slower)
        of = "" if run is not None else f"{plan.target} {plan.precision}, batch {contest.batch}: "
        words.append(of + _comparison_words(contest, pairing, other))
    return "; ".join(w for w in words if w) or None


def quoted_pairing(report: Report) -> tuple[Contest, Pairing] | None:
    """The pairing that the headline quotes: the first plan against the fastest of its baselines.

    A ratio to a slow baseline would flatter. Contests time ready tensors, so that a run from images has none.
    """
    plan, run = (report.plans[0] if report.plans else None), first_run(report)
    if plan is None or (run is not None and run.feed != "tensors"):
        return None
    found: list[tuple[bool, float, Contest, Pairing]] = []
    for contest, pairing, _ in pairings(report):
        other = next((c for c in contest.contestants if c.name == pairing.slower), None)
        fits = pairing.faster == plan.name and (run is None or contest.batch == run.batch)
        if fits and other is not None and pairing.confidence is not None:
            found.append((other.kind != "baseline", pairing.ratio, contest, pairing))
    if not found:
        return None
    _, _, contest, pairing = min(found, key=lambda f: f[:2])
    return contest, pairing
