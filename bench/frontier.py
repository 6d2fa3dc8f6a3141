"""The frontier between accuracy and latency: every plan and batch as a point, and which ones nobody needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

import msgspec

from vsa_rt.bench.openings import median_over_openings
from vsa_rt.bench.parity import Parity
from vsa_rt.bench.records.contest import Contest, Point
from vsa_rt.bench.records.timing import Plan


def quality_of(parity: Parity | None) -> tuple[float | None, str]:
    """How good a plan's answers are: its first metric against labels, else how often it agrees with its reference.

    Args:
        parity: Of the plan; ``None`` where none was measured.

    Returns:
        The number, larger is better, and what it is. Ties count as disagreement: a label has changed.
    """
    if parity is None or not parity.images:
        return None, ""
    if parity.metrics:
        return parity.metrics[0].candidate, parity.metrics[0].name
    if parity.kl is None:
        return None, ""
    return 1 - len(parity.flips) / parity.images, "agreement"


def _key(point: Point) -> str:
    return f"{point.plan}, batch {point.batch}"


def _slower(one: Point, other: Point, per_call: bool) -> bool:
    """Whether one is slower beyond both intervals."""
    return one.low * (one.batch if per_call else 1) > other.high * (other.batch if per_call else 1)


def _dominates(one: Point, other: Point) -> bool:
    """Not worse in time per call, time per image and quality, and better in one of them."""
    if one.bundle != other.bundle or one.quality_of != other.quality_of or one.parity is False:
        return False
    if any(_slower(one, other, per_call) for per_call in (True, False)):
        return False
    quality = (one.quality or 0.0) - (other.quality or 0.0)
    faster = any(_slower(other, one, per_call) for per_call in (True, False))
    return quality >= 0 and (faster or quality > 0 or (one.parity is True and other.parity is False))


def mark_dominated(points: Sequence[Point]) -> list[Point]:
    """The points with ``dominated_by`` set to the fastest that dominates each, of the same batch or another.

    Batch sizes trade the time of a call for the time per image, so a plan must lose in both to be dominated by
    another batch size. A plan that fails its parity dominates nobody. Times whose intervals overlap are not told
    apart.
    """
    ordered = sorted(points, key=lambda p: p.ms_per_image)
    found = []
    for point in points:
        better = next((p for p in ordered if p is not point and _dominates(p, point)), None)
        found.append(msgspec.structs.replace(point, dominated_by=_key(better) if better else ""))
    return found


def points(contests: Sequence[Contest], plans: Sequence[Plan], parities: Mapping[str, Parity]) -> list[Point]:
    """A point for every plan of every contest, in the order of both.

    Args:
        contests: Whose samples are taken; batch sizes are told apart, contests of the same batch are not.
        plans: All that may be in them.
        parities: Plan name to its parity.
    """
    known = {p.name: p for p in plans}
    found = []
    for contest in contests:
        for contestant in contest.contestants:
            if contestant.kind != "plan":
                continue
            plan, parity = known[contestant.name], parities.get(contestant.name)
            quality, what = quality_of(parity)
            samples = [value / contest.batch for value in contestant.samples]
            low, high = median_over_openings(samples, contest.openings)
            found.append(
                Point(
                    plan=plan.name,
                    bundle=plan.bundle,
                    target=plan.target,
                    precision=plan.precision,
                    batch=contest.batch,
                    ms_per_image=median(samples),
                    low=low,
                    high=high,
                    quality=quality,
                    quality_of=what,
                    parity=None if parity is None else parity.passed,
                    dominated_by="",
                )
            )
    return mark_dominated(found)
