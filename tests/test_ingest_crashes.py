"""Exactly once: whatever kills a run and whenever, the next one ends with the same output.

The file is also the program that is killed: it forks a child for each run, kills it, resumes, and compares.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from vsa_rt.errors import VsaError
from vsa_rt.pipeline.ingest import durable
from vsa_rt.pipeline.ingest.layout import Layout
from vsa_rt.pipeline.ingest.ledger import Ledger
from vsa_rt.pipeline.ingest.parts import Parts
from vsa_rt.pipeline.ingest.records import Moment, Outcome

LAYOUT = Layout(("dark", "bright"), "softmax")
IDENTITY = {"bundle": "b1", **LAYOUT.identity}
#: Functions around the moment that counts; every line of them is a place to die.
CRITICAL = {"flush", "_write", "stage", "publish", "sync_folder", "enter", "_transaction", "write", "recover"}


def moment(name: str, index: int = 0) -> Moment:
    share = int(hashlib.sha256(f"{name}{index}".encode()).hexdigest()[:6], 16) / 0xFFFFFF
    scores = {"dark": share, "bright": 1 - share}
    return Moment(index / 2, index, max(scores, key=lambda n: scores[n]), (), scores)


def run(out: Path, count: int, pieces: int) -> None:
    """A whole run over fake pieces: images of which some are reposts, videos, and pieces that fail."""
    with Ledger(out, IDENTITY) as ledger, Parts(ledger, LAYOUT, pieces=pieces, nbytes=4000) as parts:
        first: dict[str, str] = {}
        for i in range(count):
            key = f"feed/{i:03d}"
            if ledger.states([key]):
                continue
            content = hashlib.sha256(f"{i % 9}".encode()).hexdigest()
            if i % 7 == 3:
                parts.add(Outcome(key, "image", error="cannot be decoded"))
            elif i % 5 == 4:
                parts.frames(key, "video", [moment(key, n) for n in range(3)])
                parts.add(
                    Outcome(key, "video", (moment(key, 3), moment(key, 4)), summary={"mean": {"dark": 0.5}})
                )
            elif content in first and (found := parts.entry(first[content])) and found.state == "done":
                parts.add(Outcome(key, "image", content=content, reused=found.key))
            else:
                parts.add(Outcome(key, "image", (moment(key),), content))


def output(out: Path) -> list[bytes]:
    """Every line of the output, sorted."""
    files = [*out.glob("items-*"), *out.glob("frames-*"), out / "failed.jsonl"]
    return sorted(line for path in files for line in path.read_bytes().splitlines(keepends=True))


def forked(work: Callable[[], None]) -> int:
    """Process id of a child that does this and exits with 0, or 3 on an error of ours."""
    child = os.fork()
    if child:
        return child
    code = 9
    try:
        work()
        code = 0
    except VsaError:
        code = 3
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """How a child ended: its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dying_at(line: int, work: Callable[[], None], counted: Callable[[int], None] | None = None) -> None:
    """Do something, and die by SIGKILL at the given line of the functions that count."""
    folder, seen = str(Path(durable.__file__).parent), 0

    def local(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        if event == "line":
            seen += 1
            if seen == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return local

    def enter(frame: FrameType, _: str, __: Any) -> Any:
        code = frame.f_code
        return local if code.co_name in CRITICAL and code.co_filename.startswith(folder) else None

    sys.settrace(enter)
    try:
        work()
    finally:
        sys.settrace(None)
        if counted:
            counted(seen)


def kill_at_lines(folder: Path) -> dict[str, int]:
    """A run killed at one line of the critical functions after another, resumed each time."""
    whole, killed = folder / "whole", 0
    lines = 0

    def count(seen: int) -> None:
        nonlocal lines
        lines = seen

    dying_at(0, partial(run, whole, 10, 5), count)
    for line in range(1, lines + 1, 5):
        out = folder / f"at-{line}"
        status = ended(forked(partial(dying_at, line, partial(run, out, 10, 5))))
        assert status == -signal.SIGKILL, (line, status)
        killed += 1
        run(out, 10, 2)  # parts of another size: nothing may stay just because it is not written over
        assert output(out) == output(whole), f"killed at line {line} of {lines}"
        shutil.rmtree(out)
    return {"lines": lines, "killed": killed}


def kill_at_times(folder: Path) -> dict[str, int]:
    """Runs killed at random times, again and again in the same folder until one comes to its end."""
    whole, chance = folder / "whole", random.Random(7)  # noqa: S311 - times to die, not secrets
    begin = time.monotonic()
    run(whole, 120, 6)
    seconds = time.monotonic() - begin
    killed = finished = 0
    while killed < 24:
        out = folder / f"after-{finished}"
        child = forked(partial(run, out, 120, chance.randint(4, 8)))
        time.sleep(chance.uniform(0, seconds * 0.7))
        os.kill(child, signal.SIGKILL)
        killed += ended(child) == -signal.SIGKILL
        if chance.random() < 0.25:
            run(out, 120, 6)
            assert output(out) == output(whole)
            finished += 1
    run(out, 120, 6)
    assert output(out) == output(whole)
    return {"killed": killed, "finished": finished + 1}


def fill_the_disk(folder: Path) -> dict[str, int]:
    """Runs whose files may only grow to a limit: write(2) fails in parts, list and database."""
    whole, failed = folder / "whole", 0
    run(whole, 30, 6)

    def limited(to: Path, nbytes: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))
        run(to, 30, 6)

    for nbytes in [0, 100, 700, 1500, *range(4096, 60000, 4096)]:
        out = folder / f"limit-{nbytes}"
        status = ended(forked(partial(limited, out, nbytes)))
        assert status in (0, 3), (nbytes, status)
        failed += status == 3
        run(out, 30, 6)
        assert output(out) == output(whole), nbytes
    return {"failed": failed}


def survived(tmp_path: Path, what: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, __file__, what, str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {str(k): int(v) for k, v in json.loads(done.stdout).items()}


def test_a_run_killed_at_any_line_that_counts_ends_with_the_same_output(tmp_path: Path) -> None:
    found = survived(tmp_path, "kill_at_lines")
    assert found["killed"] > 40


def test_runs_killed_at_random_times_end_with_the_same_output(tmp_path: Path) -> None:
    found = survived(tmp_path, "kill_at_times")
    assert found["killed"] >= 20


def test_a_full_disk_stops_cleanly_wherever_it_strikes_and_the_next_run_goes_on(tmp_path: Path) -> None:
    found = survived(tmp_path, "fill_the_disk")
    assert found["failed"] >= 10


def test_the_comparison_sees_a_lost_and_a_doubled_row(tmp_path: Path) -> None:
    run(tmp_path / "a", 10, 5)
    run(tmp_path / "b", 10, 4)
    assert output(tmp_path / "a") == output(tmp_path / "b")
    part = tmp_path / "b" / "items-000001.jsonl"
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[1:]))
    assert output(tmp_path / "a") != output(tmp_path / "b")
    part.write_bytes(b"".join([*lines, lines[0]]))
    assert output(tmp_path / "a") != output(tmp_path / "b")


if __name__ == "__main__":
    # A killed process loses nothing that it wrote: only a power cut would. Without waiting for the disk, more runs die.
    os.fsync = lambda fd: None
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))))
