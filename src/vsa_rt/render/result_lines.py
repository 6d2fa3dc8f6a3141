"""What images, frames and videos say, as the lines of JSON that the other forms are made of, too."""

from __future__ import annotations

from typing import Any

from vsa_rt.documents import path_text
from vsa_rt.errors import ItemError
from vsa_rt.pipeline.looks import Look, Whole

#: A line: JSON's types alone.
Line = dict[str, Any]
_NOTHING: Line = {"label": None, "labels": [], "scores": {}, "scores_kind": None}


def line_of(row: Look | Whole, top: int, scores_kind: str) -> Line:
    """A row as docs/json.md has it: with the keys of an image, of a frame, or of a video as a whole.

    Args:
        row: What was said.
        top: How many scores; 0 for all.
        scores_kind: The bundle's.
    """
    return _look(row, top) if isinstance(row, Look) else _whole(row, top, scores_kind)


def is_whole(line: Line) -> bool:
    """Whether a line is that of a video as a whole."""
    return "frames" in line


def is_frame(line: Line) -> bool:
    """Whether a line is that of one frame."""
    return "index" in line


def _look(row: Look, top: int) -> Line:
    line: Line = {"path": path_text(row.name)}
    if row.seconds is not None:
        line |= {"seconds": _time(row.seconds), "index": row.index}
    found = row.result
    if isinstance(found, ItemError):
        return {**line, **_NOTHING, "error": found.reason}
    return {
        **line,
        "label": found.label,
        "labels": list(found.labels),
        "scores": _scores(found.scores, top),
        "scores_kind": found.scores_kind,
        "error": None,
    }


def _whole(row: Whole, top: int, scores_kind: str) -> Line:
    line: Line = {"path": path_text(row.name), "seconds": None, "frames": row.frames}
    said, error = row.summary, row.error or None
    if not said:
        return {**line, **_NOTHING, "error": error, "summary": None}
    return {
        **line,
        "label": said["label"],
        "labels": said["labels"],
        "scores": _scores(said["scores"], top),
        "scores_kind": scores_kind,
        "error": error,
        "summary": {
            "majority": said["majority"] and said["majority"] | {"share": _short(said["majority"]["share"])},
            "peak": _peaks(said["peak"], top),
            "segments": [
                s
                | {"start": _time(s["start"]), "end": _time(s["end"]), "confidence": _short(s["confidence"])}
                for s in said["segments"]
            ],
        },
    }


def _scores(scores: dict[str, float], top: int) -> dict[str, float]:
    """The best scores, six significant digits each."""
    best = sorted(scores.items(), key=lambda s: -s[1])
    return {name: _short(score) for name, score in (best[:top] if top else best)}


def _peaks(peaks: dict[str, Any], top: int) -> dict[str, Any]:
    """The highest of the labels' highest scores, and where they are."""
    best = sorted(peaks.items(), key=lambda peak: -peak[1]["score"])
    return {
        name: {"score": _short(peak["score"]), "seconds": _time(peak["seconds"])}
        for name, peak in (best[:top] if top else best)
    }


def _short(score: float) -> float:
    return float(f"{score:.6g}")


def _time(seconds: float) -> float:
    """To the microsecond."""
    return round(seconds, 6)
