"""Decisions of two reports: whether parity still holds, how many labels flip, what metrics lose."""

from __future__ import annotations

import math
from collections.abc import Iterator

from msgspec.structs import replace

from vsa_rt.bench.compare_match import Both
from vsa_rt.bench.intervals import CONFIDENCE, share_bounds
from vsa_rt.bench.metrics import Metric
from vsa_rt.bench.parity import Parity
from vsa_rt.bench.records.comparison import Row, judge
from vsa_rt.bench.records.trust import ParityCheck
from vsa_rt.bench.report import Report

#: Of the bootstrap intervals that ``Metric`` has.
_METRIC_CONFIDENCE = 0.95
#: Metrics on the scale of a share, and whether more is better. Of others neither scale nor direction is known here.
_SHARES = {
    "accuracy": True,
    "top-1 accuracy": True,
    "label accuracy": True,
    "weighted F1": True,
    "micro F1": True,
    "macro F1": True,
    "mAP": True,
    "hamming loss": False,
    "ranking loss": False,
    "ECE": False,
}


def _parities(report: Report) -> dict[tuple[str, str], tuple[ParityCheck, Parity]]:
    """By bundle and plan."""
    return {(c.bundle, p.plan): (c, p.parity) for c in report.parity for p in c.plans}


def _holds(row: Row, old: Parity | None, new: Parity) -> Row:
    """Whether parity is lost."""
    if new.passed:
        return replace(row, verdict="within")
    if old is not None and old.passed:
        return replace(row, verdict="regression", note="; ".join(new.reasons))
    what = "failed before, too" if old is not None else "was not measured before"
    return replace(row, note=f"it fails now and {what}: {'; '.join(new.reasons)}")


def _flips(row: Row, old: Parity | None, new: Parity, limit: float) -> Row:
    """The share of images whose label is another one than the reference's, ties left out."""
    if not new.images:
        return replace(row, quantity="flips", limit=limit, note="no images")
    low, high = share_bounds(_flipped(new), new.images)
    return replace(
        row,
        quantity="flips",
        old=_flipped(old) / old.images if old is not None and old.images else None,
        new=_flipped(new) / new.images,
        change=_flipped(new) / new.images,
        low=low,
        high=high,
        confidence=CONFIDENCE,
        limit=limit,
        verdict=judge(low, high, limit),
        note=f"{_flipped(new)} of {new.images} images",
    )


def _flipped(parity: Parity) -> int:
    return len(parity.flips) - parity.ties


def _metric(row: Row, old: Parity | None, new: Metric, limit: float) -> Row:
    """What a metric loses against the reference's."""
    before = next((m.candidate for m in old.metrics if m.name == new.name), None) if old else None
    row = replace(
        row,
        quantity="metric",
        name=new.name,
        old=before,
        new=new.candidate,
        change=new.candidate - new.reference,
        low=new.low,
        high=new.high,
        confidence=_METRIC_CONFIDENCE,
    )
    if new.name not in _SHARES:
        return replace(row, gates=False, note="not on the scale of a share: no limit")
    if not math.isfinite(new.low + new.high):
        return replace(row, low=None, high=None, confidence=None, note="too few labelled images")
    if _SHARES[new.name]:
        return replace(row, limit=-limit, verdict=judge(-new.high, -new.low, limit))
    return replace(row, limit=limit, verdict=judge(new.low, new.high, limit))


def decision_rows(both: Both) -> Iterator[Row]:
    """Rows of every plan whose parity was measured; what only the old report has decides nothing."""
    before, after = _parities(both.old), _parities(both.new)
    limit = both.limits.max_flips
    for key in [k for k in before if k not in after]:
        refused = "; ".join(r for c in both.new.parity if c.bundle == key[0] for r in c.refused.values())
        row = Row(quantity="parity", bundle=key[0], plan=key[1], by="reference", verdict="inconclusive")
        yield replace(row, note=f"measured only in the old report{': ' * bool(refused)}{refused}")
    for key, (check, new) in after.items():
        old = before[key][1] if key in before else None
        row = Row(quantity="parity", bundle=key[0], plan=key[1], by="reference", verdict="inconclusive")
        yield _holds(row, old, new)
        if check.decides:
            yield _flips(row, old, new, limit)
            for metric in new.metrics:
                yield _metric(row, old, metric, limit)
        else:
            both.notes.append(f"{key[0]}: its labels mean nothing (a random head), flips are not judged")
