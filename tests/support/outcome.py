"""What the command line's tests share: reading its lines, and what an error must look like."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any


def lines(text: str) -> list[dict[str, Any]]:
    """JSON lines."""
    return [json.loads(line) for line in text.splitlines()]


def fails(done: subprocess.CompletedProcess[str], code: int, says: str = "") -> None:
    """Exit code, nothing on stdout, one line on stderr with this in it."""
    assert (done.returncode, done.stdout) == (code, ""), done
    assert done.stderr.startswith("vsa-rt: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert re.search(says, done.stderr), done.stderr
