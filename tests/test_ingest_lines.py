"""Rows: the same outcome gives the same bytes, any text and any number has a place, and every format says the same."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsa_rt.errors import VsaError
from vsa_rt.pipeline.ingest.formats import columns, encoder
from vsa_rt.pipeline.ingest.layout import Format, Layout, number, plain, reason, shown
from vsa_rt.pipeline.ingest.records import Moment, Outcome

LABELS = ("dark", "bright", 'so, "so"')
LAYOUT = Layout(LABELS, "softmax")
TEXTS = st.text(st.characters(codec=None), max_size=20)
NUMBERS = st.floats() | st.integers(-(2**60), 2**60)
#: What the lines of `vsa-rt run` call the same (docs/json.md).
OF_RUN = {"label", "labels", "scores", "scores_kind", "error"}


def moments() -> st.SearchStrategy[Moment]:
    return st.builds(
        Moment,
        NUMBERS,
        st.integers(0, 2**40),
        st.sampled_from(LABELS) | st.none(),
        st.lists(st.sampled_from(LABELS), unique=True).map(tuple),
        st.dictionaries(st.sampled_from(LABELS), NUMBERS),
        TEXTS,
    )


def outcomes() -> st.SearchStrategy[Outcome]:
    leaves = st.none() | st.booleans() | NUMBERS | TEXTS
    trees = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=6)
    summaries = st.dictionaries(st.sampled_from(["mean", "segments", "caf\udce9"]), trees)
    video = st.builds(Outcome, TEXTS, st.just("video"), st.just(()), TEXTS, summary=summaries)
    image = st.builds(Outcome, TEXTS, st.just("image"), st.tuples(moments()), TEXTS)
    return video | image


def item_line(outcome: Outcome, layout: Layout = LAYOUT) -> bytes:
    row = layout.item(outcome.key, outcome.kind, layout.result(outcome, 0), content=outcome.content)
    return encoder(layout, "items").line(row)


def a_file(layout: Layout, family: Any, rows: list[dict[str, Any]]) -> bytes:
    encoded, stream = encoder(layout, family), io.BytesIO()
    encoded.write([encoded.line(row) for row in rows], stream)
    return stream.getvalue()


@settings(deadline=None)
@given(outcome=outcomes())
def test_any_outcome_is_one_line_of_strict_json(outcome: Outcome) -> None:
    line = item_line(outcome)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    row = json.loads(line.decode("utf-8"), parse_constant=pytest.fail)
    assert set(row) > OF_RUN
    assert row["key"] == shown(outcome.key)
    # What was written once and read back is written the same: a repost's row is its original's.
    assert encoder(LAYOUT, "items").line(row) == line


@settings(deadline=None)
@given(key=TEXTS, moment=moments())
def test_any_frame_is_the_same_in_json_and_csv(key: str, moment: Moment) -> None:
    row = LAYOUT.frame(key, "video", moment)
    text = json.loads(a_file(LAYOUT, "frames", [row]))
    assert text == row
    layout = Layout(LABELS, "softmax", "csv")
    table = csv.reader(io.StringIO(a_file(layout, "frames", [row]).decode("utf-8"), newline=""))
    names, cells = list(table)
    assert names == list(columns(layout, "frames"))
    found = dict(zip(names, cells, strict=True))
    assert (found["key"], found["error"]) == (row["key"], row["error"] or "")
    assert (found["index"], found["labels"]) == (str(moment.index), "|".join(moment.labels))
    for label in LABELS:
        score = row["scores"].get(label)
        assert found[f"score_{label}"] == ("" if score is None else str(score))


@given(value=st.floats() | st.floats(-1, 1))
def test_a_number_has_one_form(value: float) -> None:
    found = number(value)
    if not math.isfinite(value):
        assert found is None
        return
    assert found is not None
    assert abs(found - value) <= 5.1e-7 or found == value
    assert number(found) == found
    assert math.copysign(1, found) == 1 or found < 0


@given(text=TEXTS)
def test_any_text_becomes_text_that_files_hold(text: str) -> None:
    assert shown(shown(text).encode("utf-8").decode("utf-8")) == shown(text)
    if not any("\ud800" <= c <= "\udfff" for c in text):
        assert shown(text) == text


def test_bytes_that_are_not_utf_8_are_escapes_as_in_run() -> None:
    assert shown("caf\udce9.jpg") == r"caf\xe9.jpg"
    assert shown("a\ud800b") == r"a\ud800b"


def test_golden_rows() -> None:
    image = Outcome(
        "a.jpg", "image", (Moment(0, 0, "bright", (), {"dark": 0.25, "bright": 0.7500000004}),), "c1"
    )
    assert item_line(image).decode() == (
        '{"key": "a.jpg", "kind": "image", "label": "bright", "labels": [], "scores": {"bright": 0.75, "dark": 0.25}, '
        '"scores_kind": "softmax", "frames": null, "content": "c1", "reused": null, "distance": null, '
        '"summary": null, "error": null}\n'
    )
    summary = {
        "label": "dark",
        "scores": {"dark": np.float32(0.1)},
        "segments": [{"start": np.int64(0), "end": 1.5}],
    }
    film = Outcome("b.mp4", "video", summary=summary)
    row = LAYOUT.item("b.mp4", "video", LAYOUT.result(film, 12), reused="c.mp4", distance=3)
    assert row == {
        "key": "b.mp4",
        "kind": "video",
        "label": "dark",
        "labels": [],
        "scores": {"dark": 0.1},
        "scores_kind": "softmax",
        "frames": 12,
        "content": None,
        "reused": "c.mp4",
        "distance": 3,
        "summary": {"segments": [{"start": 0, "end": 1.5}]},
        "error": None,
    }
    failed = LAYOUT.item("c.jpg", "image", error="cannot be decoded")
    assert {k: v for k, v in failed.items() if v} == {
        "key": "c.jpg",
        "kind": "image",
        "error": "cannot be decoded",
    }


def test_scores_are_sorted_alike_whatever_order_they_came_in() -> None:
    one = {"dark": 0.5, "bright": 0.5, 'so, "so"': math.nan}
    other = dict(reversed(one.items()))
    rows = [LAYOUT.frame("a", "video", Moment(0, 0, None, (), s)) for s in (one, other)]
    assert [json.dumps(r) for r in rows] == [json.dumps(rows[0])] * 2
    assert list(rows[0]["scores"].items()) == [("dark", 0.5), ("bright", 0.5), ('so, "so"', None)]


def test_what_contradicts_itself_is_refused() -> None:
    with pytest.raises(VsaError, match=r"a: scores for grey; the bundle has dark, bright"):
        LAYOUT.frame("a", "video", Moment(0, 0, "dark", (), {"grey": 1.0}))
    twice = Outcome("a", "image", (Moment(0, 0, "dark"), Moment(0, 1, "dark")))
    with pytest.raises(VsaError, match="an image with 2 moments; expected 1"):
        LAYOUT.result(twice, 0)
    with pytest.raises(VsaError, match="a summary has a object"):
        plain({"x": [object()]})


def test_why_a_piece_has_no_result() -> None:
    assert reason(Outcome("a", "video", error="no frames")) == "no frames"
    assert reason(Outcome("a", "image", (Moment(0, 0, None, error="truncated"),))) == "truncated"
    assert reason(Outcome("a", "image")) == "nothing was said about it"
    assert reason(Outcome("a", "image", reused="b")) == ""
    assert reason(Outcome("a", "video", (Moment(0, 0, None, error="truncated"),))) == ""


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_every_format_says_the_same_and_twice_the_same_bytes(format: Format, tmp_path: Path) -> None:
    layout = Layout(LABELS, "softmax", format)
    if format == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow writes Parquet")
    rows = [
        layout.frame("caf\udce9\n\r.mp4", "video", Moment(n / 3, n, "dark", ("dark",), {"dark": n / 7}))
        for n in range(40)
    ]
    rows.append(layout.frame("b", "feed", Moment(math.nan, 0, None, error="no key frame")))
    data = a_file(layout, "frames", rows)
    assert data == a_file(layout, "frames", rows)
    read: list[dict[str, Any]]
    if format == "jsonl":
        read = [json.loads(line) for line in data.decode().splitlines()]
        assert read == rows
    elif format == "csv":
        read = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
        assert [r["key"] for r in read] == [r["key"] for r in rows]
        assert [r["score_dark"] for r in read] == [str(r["scores"].get("dark", "")) for r in rows]
        assert (read[-1]["seconds"], read[-1]["score_bright"]) == ("", "")
    else:
        from pyarrow import parquet

        (tmp_path / "f.parquet").write_bytes(data)
        table = parquet.read_table(tmp_path / "f.parquet")
        assert [str(t) for t in table.schema.types] == [
            *["string", "string", "int64", "double", "string", "list<element: string>", "string", "string"],
            *["double"] * 3,
        ]
        assert table.column_names == list(columns(layout, "frames"))
        for found, row in zip(table.to_pylist(), rows, strict=True):
            scores = {n: found.pop(f"score_{n}") for n in LABELS}
            assert scores == {n: row["scores"].get(n) for n in LABELS}
            assert found == {k: v for k, v in row.items() if k != "scores"}


def test_a_summary_is_json_in_a_column(tmp_path: Path) -> None:
    film = Outcome("b.mp4", "video", summary={"segments": [{"label": "dark", "start": 0.0}]})
    layout = Layout(LABELS, "softmax", "csv")
    row = layout.item("b.mp4", "video", layout.result(film, 3))
    (found,) = csv.DictReader(io.StringIO(a_file(layout, "items", [row]).decode(), newline=""))
    assert json.loads(found["summary"]) == film.summary
    assert (found["frames"], found["distance"], found["reused"]) == ("3", "", "")
