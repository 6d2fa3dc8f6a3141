"""Rows as bytes: JSON lines, CSV and Parquet.

Rows are encoded one by one as they come, and put together when a part is written: JSON lines and CSV as they are,
Parquet in batches of columns, so that no part is in memory as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol

from vsa_rt.errors import needs
from vsa_rt.pipeline.ingest.layout import Family, Format, Layout, Row, shown

if TYPE_CHECKING:
    import pyarrow as pa

#: Types of columns: text, whole number, number, list of texts, JSON as text.
Type = Literal["text", "whole", "number", "texts", "json"]
#: Columns by family; a score follows for every label.
COLUMNS: dict[Family, dict[str, Type]] = {
    "items": {
        "key": "text",
        "kind": "text",
        "label": "text",
        "labels": "texts",
        "scores_kind": "text",
        "frames": "whole",
        "content": "text",
        "reused": "text",
        "distance": "whole",
        "summary": "json",
        "error": "text",
    },
    "frames": {
        "key": "text",
        "kind": "text",
        "index": "whole",
        "seconds": "number",
        "label": "text",
        "labels": "texts",
        "scores_kind": "text",
        "error": "text",
    },
}
#: Before a label in the name of its column.
SCORE = "score_"
#: Rows of a row group in Parquet.
BATCH = 16384


class Encoder(Protocol):
    """Writes rows of one family in one format."""

    def line(self, row: Row) -> bytes:
        """A row, ended by a line feed."""
        ...

    def write(self, lines: Iterable[bytes], stream: BinaryIO) -> None:
        """A whole file of such rows."""
        ...


def encoder(layout: Layout, family: Family) -> Encoder:
    """What writes a family of rows.

    Args:
        layout: How rows look.
        family: What they are about.

    Raises:
        EnvironmentUnusable: Parquet without pyarrow.
    """
    makers: dict[Format, Callable[[Layout, Family], Encoder]] = {
        "jsonl": _JsonLines,
        "csv": _Csv,
        "parquet": _Parquet,
    }
    return makers[layout.format](layout, family)


def json_text(value: Any) -> str:
    """JSON as every file here has it: not escaped beyond need, and without what JSON does not know."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def columns(layout: Layout, family: Family) -> dict[str, Type]:
    """Columns of a table of rows, in order, and their types."""
    scores: dict[str, Type] = {SCORE + shown(name): "number" for name in layout.labels}
    return {**COLUMNS[family], **scores}


def cells(row: Row, names: Iterable[str]) -> Iterator[Any]:
    """A row's values by column."""
    for name in names:
        if name.startswith(SCORE):
            yield row["scores"].get(name.removeprefix(SCORE))
        elif name == "summary":
            yield None if row[name] is None else json_text(row[name])
        else:
            yield row[name]


class _JsonLines:
    def __init__(self, layout: Layout, family: Family) -> None:
        pass

    def line(self, row: Row) -> bytes:
        return json_text(row).encode() + b"\n"

    def write(self, lines: Iterable[bytes], stream: BinaryIO) -> None:
        stream.writelines(lines)


class _Csv:
    """RFC 4180, but with line feeds alone as ``vsa-rt run`` has them: not the csv module, whose quoting of carriage
    returns differs between versions of Python."""

    def __init__(self, layout: Layout, family: Family) -> None:
        self._names = tuple(columns(layout, family))

    def line(self, row: Row) -> bytes:
        return (",".join(_cell(value) for value in cells(row, self._names)) + "\n").encode()

    def write(self, lines: Iterable[bytes], stream: BinaryIO) -> None:
        stream.write((",".join(map(_cell, self._names)) + "\n").encode())
        stream.writelines(lines)


def _cell(value: Any) -> str:
    text = "" if value is None else "|".join(value) if isinstance(value, list) else str(value)
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') else text


class _Parquet:
    """Rows wait as JSON lines, whose numbers survive it to the last bit."""

    def __init__(self, layout: Layout, family: Family) -> None:
        with needs("ingest"):
            import pyarrow as pa
            import pyarrow.parquet
        types: dict[Type, pa.DataType] = {
            "text": pa.string(),
            "whole": pa.int64(),
            "number": pa.float64(),
            "texts": pa.list_(pa.string()),
            "json": pa.string(),
        }
        self._schema = pa.schema([(n, types[t]) for n, t in columns(layout, family).items()])
        self._write_table = pa.Table.from_arrays
        self._writer = pyarrow.parquet.ParquetWriter

    def line(self, row: Row) -> bytes:
        return json_text(row).encode() + b"\n"

    def write(self, lines: Iterable[bytes], stream: BinaryIO) -> None:
        import pyarrow as pa

        rows = map(json.loads, lines)
        with self._writer(stream, self._schema) as writer:
            while batch := list(islice(rows, BATCH)):
                values = zip(*(cells(row, self._schema.names) for row in batch), strict=True)
                arrays = [pa.array(v, f.type) for v, f in zip(values, self._schema, strict=True)]
                writer.write_table(self._write_table(arrays, schema=self._schema))
