"""What an outcome looks like in the output: one row for the piece, and one for each frame of a video or a feed.

The rows say nothing about the run that made them: no time, no order, no part. The same outcomes give the same rows, byte
for byte, whenever and in whatever order they come.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args

from vsa_rt.errors import VsaError
from vsa_rt.pipeline.ingest.records import Kind, Moment, Outcome

#: Of the rows; another meaning of a key needs another one, and does not mix with this one.
SCHEMA = 1
#: Decimals of every number that is not whole, as in the lines of ``vsa-rt run``.
DECIMALS = 6
#: How rows are written.
Format = Literal["jsonl", "csv", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
#: What a row is about: a piece, or one frame of it.
Family = Literal["items", "frames"]
FAMILIES: tuple[Family, ...] = get_args(Family)
#: A row: JSON's types alone.
Row = dict[str, Any]


def shown(text: str) -> str:
    r"""Text that any file can hold: bytes that are not UTF-8 are written as ``\xNN``, lone surrogates as ``\uNNNN``."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def number(value: float) -> float | None:
    """A number by the one rule: six decimals, no negative zero; ``None`` where it is not finite."""
    value = float(value)
    # Adding zero makes -0.0, which rounding a small negative number gives, 0.0.
    return round(value, DECIMALS) + 0.0 if math.isfinite(value) else None


def plain(value: Any) -> Any:
    """A value in JSON's types alone, numbers and texts by the rules above.

    Raises:
        VsaError: It has something that JSON does not know.
    """
    if isinstance(value, str):
        return shown(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return number(float(value))
    if isinstance(value, Mapping):
        return {shown(str(k)): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    raise VsaError(
        f"a summary has a {type(value).__name__}; expected texts, numbers, lists and mappings of them"
    )


def reason(outcome: Outcome) -> str:
    """Why a piece has no result: its own error, or that of an image's only moment; empty where it has one."""
    if outcome.error or outcome.kind != "image" or outcome.reused:
        return outcome.error
    return outcome.moments[0].error if outcome.moments else "nothing was said about it"


@dataclass(frozen=True)
class Layout:
    """How rows look.

    Attributes:
        labels: The bundle's, in its order.
        scores_kind: Of every score: the bundle's.
        format: ``jsonl``, ``csv`` or ``parquet``.
    """

    labels: tuple[str, ...]
    scores_kind: str
    format: Format = "jsonl"

    @property
    def identity(self) -> dict[str, str]:
        """What must be the same in every run that writes into one folder; part of the ledger's identity."""
        return {"format": self.format, "rows": str(SCHEMA)}

    def frame(self, key: str, kind: Kind, moment: Moment) -> Row:
        """The row of one frame.

        Raises:
            VsaError: It has a score for a label that the bundle does not have.
        """
        return {
            "key": shown(key),
            "kind": kind,
            "index": int(moment.index),
            "seconds": number(moment.seconds),
            **self._verdict(key, moment.label, moment.labels, moment.scores),
            "error": shown(moment.error) or None,
        }

    def result(self, outcome: Outcome, frames: int) -> Row:
        """What a piece said as a whole: the keys of its row that another piece with the same bytes would share.

        An image says what its only moment says. A video says what its summary holds under ``label``, ``labels`` and
        ``scores``; the rest of the summary stays together.

        Args:
            outcome: What it said.
            frames: How many frames of it were looked at.

        Raises:
            VsaError: It has a score for a label that the bundle does not have, or an image has several moments.
        """
        if outcome.kind == "image":
            if len(outcome.moments) != 1:
                raise VsaError(
                    f"{shown(outcome.key)}: an image with {len(outcome.moments)} moments; expected 1"
                )
            moment = outcome.moments[0]
            verdict = self._verdict(outcome.key, moment.label, moment.labels, moment.scores)
            return {**verdict, "frames": None, "summary": None}
        summary = dict(outcome.summary)
        label, labels, scores = (summary.pop(k, None) for k in ("label", "labels", "scores"))
        verdict = self._verdict(outcome.key, label, tuple(labels or ()), scores or {})
        return {**verdict, "frames": frames, "summary": plain(summary)}

    def item(
        self,
        key: str,
        kind: Kind,
        result: Row | None = None,
        *,
        content: str = "",
        reused: str = "",
        distance: int = 0,
        error: str = "",
    ) -> Row:
        """The row of one piece.

        Args:
            key: Its key.
            kind: Its kind.
            result: From ``result``; of a piece that is the same as an earlier one: that one's. ``None`` on an error.
            content: SHA-256 of its bytes.
            reused: Key of the earlier piece.
            distance: In how many bits both perceptual hashes differ.
            error: Why there is no result.
        """
        if result is None:
            result = {**self._verdict(key, None, (), {}), "frames": None, "summary": None}
        verdict = {k: v for k, v in result.items() if k not in ("frames", "summary")}
        return {
            "key": shown(key),
            "kind": kind,
            **verdict,
            "frames": result["frames"],
            "content": shown(content) or None,
            "reused": shown(reused) or None,
            "distance": int(distance) if reused else None,
            "summary": result["summary"],
            "error": shown(error) or None,
        }

    def _verdict(
        self, key: str, label: str | None, labels: tuple[str, ...], scores: Mapping[str, float]
    ) -> Row:
        """Label, labels and scores, the best first; equal ones in the bundle's order, those without a number last."""
        strange = [shown(str(name)) for name in scores if name not in self.labels]
        if strange:
            raise VsaError(
                f"{shown(key)}: scores for {', '.join(strange)}; the bundle has {', '.join(self.labels)}"
            )
        found = [(shown(name), number(scores[name])) for name in self.labels if name in scores]
        found.sort(key=lambda s: math.inf if s[1] is None else -s[1])
        return {
            "label": None if label is None else shown(label),
            "labels": [shown(name) for name in labels],
            "scores": dict(found),
            "scores_kind": self.scores_kind if found else None,
        }
