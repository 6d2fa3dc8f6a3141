"""What every file that this project writes beside bundles shares."""

from __future__ import annotations

import math
import os
import re
import tempfile
from pathlib import Path
from typing import Any

#: An absolute path inside a sentence: folders, and what lies in the last of them.
_FOLDERS = re.compile(r"(?<![\w.~/])/(?!proc/|sys/|dev/)(?:[^\s/:;,'\"()]+/)+(?=[^\s/:;,'\"()])")


def path_text(path: str) -> str:
    """A path as text that any stream can hold: bytes that are not UTF-8 are written as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def without_folders(text: str) -> str:
    """A sentence whose absolute paths keep their last part alone: a document may leave the machine."""
    return _FOLDERS.sub("", path_text(text))


def finite(value: Any) -> Any:
    """JSON knows neither infinity nor NaN: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def write_whole(path: Path, data: bytes) -> None:
    """A file that appears under its name whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
        temporary = Path(stream.name)
        try:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
