"""The comparison of two reports: what may change, what did, and the answer."""

from __future__ import annotations

from typing import Literal

from vsa_rt.bench.records.record import Record

Judgement = Literal["regression", "within", "inconclusive"]


class Limits(Record, frozen=True, kw_only=True):
    """What may change.

    Attributes:
        max_slowdown: Of a median time: 0.05 is 5 %.
        max_flips: Share of images with another label than the reference's, ties left out; and the loss of a metric
            against the reference's.
    """

    max_slowdown: float = 0.05
    max_flips: float = 0.01


class Row(Record, frozen=True, kw_only=True):
    """One thing compared.

    Attributes:
        quantity: ``latency``, ``throughput``; ``parity`` (whether it holds), ``flips``, ``metric``.
        plan: Its name; empty for the ONNX graph of a bundle.
        bundle: The bundle's name in the new report.
        batch: Images per call; ``None`` for what is not timed.
        scenario: Of the run, or ``contest``; empty for what is not timed.
        feed: ``tensors`` or ``images``; empty likewise.
        name: The load of a scenario, the metric's name; else empty.
        by: ``wall clock``, ``baseline NAME``, or ``reference``.
        old: Before: milliseconds, images per second, times of the baseline, share of flips, or the metric. ``None``
            where it was not measured.
        new: After.
        change: Times: how many times slower. Flips: ``new``. Metrics: difference from the reference's.
        low: Lower end of its interval; ``None`` where there is none. Of flips a one-sided bound, as ``high``.
        high: Upper end.
        confidence: Of the interval, or of each one-sided bound.
        limit: What ``change`` must not pass; ``None`` where no number decides.
        verdict: ``regression`` if the whole interval is beyond the limit, ``within`` if none of it is.
        gates: Whether a regression makes the comparison fail. A wall clock's does not where a baseline's row of the
            same call is ``within`` or ``regression``: the machine itself may be slower. A baseline's row is always
            inconclusive on another machine, and with another version of the baseline's own library.
        note: Why it is inconclusive, or what to know; may be empty.
    """

    quantity: Literal["latency", "throughput", "parity", "flips", "metric"]
    plan: str
    bundle: str
    batch: int | None = None
    scenario: str = ""
    feed: str = ""
    name: str = ""
    by: str
    old: float | None = None
    new: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    confidence: float | None = None
    limit: float | None = None
    verdict: Judgement
    gates: bool = True
    note: str = ""


class Comparison(Record, frozen=True, kw_only=True):
    """The gate's answer.

    Attributes:
        schema: Version of this format.
        kind: ``compare``.
        old: When the old report was created.
        new: When the new one was.
        limits: What was allowed.
        failed: Whether there is a reason to refuse the new one.
        reasons: All of them, in words.
        inconclusive: How many of the rows that gate decide nothing.
        rows: Times first.
        notes: First what got slower by the wall clock and not against a baseline, then what differs between both
            measurements, and what could not be compared.
    """

    schema: int
    kind: Literal["compare"]
    old: str
    new: str
    limits: Limits
    failed: bool
    reasons: list[str]
    inconclusive: int
    rows: list[Row]
    notes: list[str]


def judge(low: float, high: float, limit: float) -> Judgement:
    """What an interval says about a limit that is not to be passed."""
    if low > limit:
        return "regression"
    return "within" if high <= limit else "inconclusive"
