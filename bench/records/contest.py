"""Contests: plans against baselines, bare tools and each other."""

from __future__ import annotations

from typing import Literal

from vsa_rt.bench.records.record import Record
from vsa_rt.bench.records.timing import Resources


class Contestant(Record, frozen=True, kw_only=True):
    """One side of an interleaved contest.

    Attributes:
        name: Of a plan or a baseline.
        kind: Which of both.
        precision: What it computes in, in words: ``fp32``, ``bf16``, ``bf16 (the library's default)``.
        note: What it is.
        samples: Milliseconds per call, in order; the same place in another contestant is the same round.
    """

    name: str
    kind: Literal["plan", "baseline"]
    precision: str
    note: str
    samples: list[float]


class Pairing(Record, frozen=True, kw_only=True):
    """How many times slower ``slower`` is than ``faster``, pair by pair.

    Attributes:
        slower: The baseline, or the plan that is not the first.
        faster: A plan.
        ratio: Median of the pairs.
        low: Lower end of its interval.
        high: Upper end.
        pairs: How many.
        confidence: Of the interval; ``None`` where the pairs are too few for one.
        different: Whether the interval leaves 1 out.
    """

    slower: str
    faster: str
    ratio: float
    low: float
    high: float
    pairs: int
    confidence: float | None
    different: bool


class Contest(Record, frozen=True, kw_only=True):
    """Candidates on the same inputs, threads and weights, interleaved in one run.

    Attributes:
        batch: Images per call.
        threads: Of each.
        openings: How often the plans' engines were opened anew within the rounds, the first time included; with
            fewer than four, intervals do not cover what differs from one opening to the next.
        contestants: Plans first.
        pairings: Every other against every plan.
        absent: Baseline to the reason why it is not among them.
        resources: During the contest.
    """

    batch: int
    threads: int
    openings: int = 1
    contestants: list[Contestant]
    pairings: list[Pairing]
    absent: dict[str, str]
    resources: Resources


class Gap(Record, frozen=True, kw_only=True):
    """What this project's call costs beyond the backend's own bare one.

    Attributes:
        plan: Its name.
        batch: Images per call.
        tool: ``bare request`` in this process, or a program such as ``benchmark_app``.
        command: How the program was called; empty for the bare request.
        ours_ms: Median of ``rt.infer``.
        tool_ms: Median of the other.
        gap_ms: Median of the pairs' differences.
        low: Lower end of its interval.
        high: Upper end.
        pairs: How many.
        confidence: Of the interval; ``None`` where there are too few.
        note: What differs between both sides.
    """

    plan: str
    batch: int
    tool: str
    command: str
    ours_ms: float
    tool_ms: float
    gap_ms: float
    low: float
    high: float
    pairs: int
    confidence: float | None
    note: str


class Point(Record, frozen=True, kw_only=True):
    """One plan and batch size among all: where it stands between accuracy and latency.

    Attributes:
        plan: Its name.
        bundle: The bundle's name.
        target: Its target.
        precision: Its precision.
        batch: Images per call.
        ms_per_image: Median latency per image.
        low: Lower end of its 95 % interval.
        high: Upper end.
        quality: Accuracy against labels, or the share of labels that are the reference's; ``None`` for neither.
        quality_of: Which: ``accuracy``, ``agreement``, or the task's own metric.
        parity: Whether its parity holds.
        dominated_by: A plan and batch that is at least as good in both; empty on the frontier.
    """

    plan: str
    bundle: str
    target: str
    precision: str
    batch: int
    ms_per_image: float
    low: float
    high: float
    quality: float | None
    quality_of: str
    parity: bool | None
    dominated_by: str
