"""Candidates: whatever turns ready tensors into taps and can be timed beside others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from numpy.typing import NDArray

from vsa_rt.bench.parity import TOLERANCES, Comparison, Tolerance, loosest
from vsa_rt.contracts import Precision
from vsa_rt.errors import GateError, VsaError

Tensors = Mapping[str, NDArray[Any]]
Infer = Callable[[Tensors], Tensors]


def agreement(one: str, other: str) -> Tolerance:
    """How far two candidates may be apart: two independent roundings, each within the tolerance of its precision.

    Args:
        one: Its precision, in words.
        other: Likewise.
    """
    named = {p for p in Precision for words in (one, other) if words.startswith(str(p))}
    unknown = not all(words.startswith(tuple(map(str, Precision))) for words in (one, other))
    allowed = loosest(TOLERANCES[p] for p in named | ({Precision.BF16} if unknown else set()))
    twice = 2**0.5
    return replace(
        allowed, relative=twice * allowed.relative, gain=twice * allowed.gain, scores=twice * allowed.scores
    )


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Candidate:
    """One side of a contest.

    Attributes:
        name: Unique within the contest.
        kind: Whether it is an engine of a bundle or what one would use instead.
        precision: What it computes in, in words.
        note: What it is.
        call: Ready tensors ``(N, …)`` by input name to taps ``(N, width)`` by name. The taps may be overwritten
            by the next call.
        close: Frees what it holds; it cannot be called afterwards.
        renew: Opens the same engine anew, for which ``call`` then stands; ``None`` where there is no opening.
    """

    name: str
    kind: Literal["plan", "baseline"]
    precision: str
    note: str
    call: Infer
    close: Callable[[], None] = _nothing
    renew: Callable[[], None] | None = None


def check_agreement(first: Candidate, other: Candidate, inputs: Tensors) -> None:
    """Refuse a candidate that computes something else: its time would say nothing.

    Every tap that both give is compared, the scores or joined features among them, within the tolerance of their
    precisions. Labels are not: those of a random head decide nothing.

    Args:
        first: What it is held against.
        other: Who is judged.
        inputs: One batch.

    Raises:
        GateError: They disagree, or have no tap in common that would show it.
    """
    expected, given = first.call(inputs), other.call(inputs)
    common = [name for name in expected if name in given]
    wanted = "scores" if "scores" in expected else "features" if "features" in expected else ""
    if not common or (wanted and wanted not in common):
        raise GateError(
            f"{other.name}: gives {', '.join(given) or 'nothing'}; expected {wanted or ', '.join(expected)}, to be "
            f"compared with {first.name}"
        )
    count = len(next(iter(inputs.values())))
    comparison = Comparison(other.name, first.name, agreement(first.precision, other.precision))
    try:
        comparison.add_taps(
            [f"row {row}" for row in range(count)],
            {n: expected[n] for n in common},
            {n: given[n] for n in common},
        )
    except VsaError as error:
        raise GateError(f"does not compute the same as {first.name}: {error}") from error
    found = comparison.result()
    if not found.passed:
        raise GateError(f"does not compute the same as {first.name}: {'; '.join(found.reasons)}")
