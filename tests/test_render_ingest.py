"""What a person sees of an ingestion: one line while it runs, a summary at its end."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from vsa_rt.errors import ItemError
from vsa_rt.pipeline.ingest.report import IngestReport
from vsa_rt.pipeline.ingest.tally import Numbers, Tally
from vsa_rt.render.ingest_progress import LogLines, progress_line, shown
from vsa_rt.render.ingest_summary import summary
from vsa_rt.runtime.watch import Depths

NUMBERS = Numbers(
    seconds=252, found=5000, images=1100, videos=138, failed=2, reused=37, frames=80_000, nbytes=12_300_000_000,
    before=812, opening=12, decoding=8, stream=Depths(20, 4, 32, 8), decode_seconds=61, resize_seconds=22,
    engine_seconds=17, current="photos/2024/summer/IMG_2041.jpg",
)  # fmt: skip
EARLIER = replace(
    NUMBERS, seconds=247, frames=78_440, decode_seconds=60, resize_seconds=22, engine_seconds=14
)
HOSTILE = {
    "escapes": "a\x1b[2J\x1b]0;owned\x07\x9b31mb.jpg",
    "lines": "a\r\nb\u2028c\x0b\x0cd\x08\x7f.jpg",
    "wide": "写真/" + "日本の海" * 60 + ".jpg",
    "joined": "👩\u200d👩\u200d👧\u200d👦❤\ufe0f👍🏽🇯🇵" * 20,
    "accents": "e" + "\u0301" * 5000 + ".jpg",
    "accents alone": "\u0301" * 5000,
    "turned": "a\u202egpj.\u2066b\u200fc",
    "no utf-8": os.fsdecode(b"caf\xe9/\xff.jpg"),
    "a lone surrogate": "a\ud800b.jpg",
    "private": "\ue000\U000f0000\U000e0041",
    "decomposed hangul": "\u1112\u1161\u11ab" * 50,
    "markup": "[bold red]x[/] [link=file:///etc]y[/link]\\",
    "long": "x" * 100_000,
}


# The line


def test_the_line_says_what_the_issue_of_watching_is() -> None:
    line = progress_line(NUMBERS, EARLIER, 300)
    for said in (
        "4:12",
        "1,240 of 5,000 items",
        "812 earlier",
        "312 images/s",  # 1,560 in the last 5 seconds, not 80,000 in 252
        "2 failed",
        "37 duplicates",
        "decode 25 % resize 0 % engine 75 %",  # likewise
        "waiting: open 12, decode 8, engine 64",
        "photos/2024/summer/IMG_2041.jpg",
    ):
        assert said in line


@pytest.mark.parametrize("width", [0, 1, 3, 8, 15, 27, 40, 41, 80, 100, 120, 160, 200, 400])
@pytest.mark.parametrize("key", ["", "a.jpg", *HOSTILE.values()], ids=["none", "short", *HOSTILE])
def test_the_line_never_takes_more_cells_than_it_may(width: int, key: str) -> None:
    many = replace(NUMBERS, found=10**12, images=10**11, dropped=10**6, current=key)
    for numbers in (replace(NUMBERS, current=key), many, Numbers(current=key)):
        line = progress_line(numbers, None, width)
        assert cell_len(line) <= width
        # Nor where a terminal shows each part of a joined pictogram on its own.
        assert sum(cell_len(character) for character in line) <= width


@pytest.mark.parametrize("key", HOSTILE.values(), ids=HOSTILE)
def test_what_acts_on_a_terminal_does_not_reach_it(key: str) -> None:
    line = progress_line(replace(NUMBERS, current=key), EARLIER, 400)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", line)
    line.encode("utf-8")


def test_the_lines_of_common_widths() -> None:
    assert progress_line(NUMBERS, EARLIER, 40) == "1,240/5,000 | 312/s | 2 failed | 37 dup"
    assert progress_line(NUMBERS, EARLIER, 80) == (
        "1,240/5,000 | 312 images/s | 2 failed | 37 dup | engine 75 % | waiting 12/8/64"
    )
    assert progress_line(NUMBERS, EARLIER, 120) == (
        "4:12 | 1,240 of 5,000 items | 812 earlier | 312 images/s | 2 failed | 37 duplicates | engine 75 % | "
        "waiting 12/8/64"
    )


def test_a_number_is_whole_or_absent() -> None:
    for width in range(60):
        numbers = set(re.findall(r"[\d,]+", progress_line(NUMBERS, EARLIER, width)))
        assert numbers <= {"1,240", "5,000", "312", "2", "37", "75", "812", "4", "12", "8", "64"}


def test_a_key_shows_its_end() -> None:
    key = "/".join(["folder"] * 40) + "/写真/IMG_2041.jpg"
    line = progress_line(replace(NUMBERS, current=key), EARLIER, 200)
    assert line.endswith("/写真/IMG_2041.jpg")
    assert "| …" in line


def test_found_is_said_only_while_there_is_more() -> None:
    assert "7 of 9 items" in progress_line(Numbers(seconds=1, found=9, images=7), None, 200)
    assert "| 9 items |" in progress_line(Numbers(seconds=1, found=9, images=9), None, 200)
    assert "| 1 item |" in progress_line(Numbers(seconds=1, found=1, images=1), None, 200)


def test_dropped_frames_are_said_where_there_are_any() -> None:
    assert "dropped" not in progress_line(NUMBERS, None, 400)
    assert "5 dropped" in progress_line(replace(NUMBERS, dropped=5), None, 80)


def test_a_run_that_stands_still_shows_no_images_a_second() -> None:
    still = replace(NUMBERS, seconds=NUMBERS.seconds + 5)
    line = progress_line(still, NUMBERS, 200)
    assert "| 0 images/s |" in line
    assert "decode 61 %" in line  # nothing since then: of the whole run


def test_no_time_between_two_looks_is_no_division_by_zero() -> None:
    assert "317 images/s" in progress_line(NUMBERS, NUMBERS, 200)
    assert "| 0 images/s |" in progress_line(Numbers(), Numbers(), 200)


@pytest.mark.parametrize(
    ("seconds", "said"), [(59.9, "0:59"), (3599, "59:59"), (3600, "1:00:00"), (360_000, "100:00:00")]
)
def test_how_long_it_runs(seconds: float, said: str) -> None:
    assert progress_line(Numbers(seconds=seconds), None, 200).startswith(f"{said} |")


# A terminal

#: A run of two seconds. What it does besides stands in its argument.
RUN = """
import sys, threading, time
from vsa_rt.pipeline.ingest.tally import Tally
from vsa_rt.render.ingest_progress import shown
tally = Tally()
with shown(tally):
    for number in range(100):
        tally.add("found", 2); tally.add("images"); tally.add("frames")
        tally.current = f"a\\x1b[2J\\r\\nb/{number}-日本.jpg"
        time.sleep(0.02)
        ACT
assert not [t for t in threading.enumerate() if t.name.startswith("vsa-")]
print("summary", tally.numbers().images)
"""
#: What rich sends to keep a line up to date: hide and show the cursor, up, erase the line.
KNOWN = re.compile(r"\x1b\[(?:\?25[lh]|1A|2K)")


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, act: str, width: int = 100, stdout: Any = None, term: str = "xterm-256color") -> None:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN.replace("ACT", act)],
            stdin=slave,
            stdout=slave if stdout is None else stdout,
            stderr=slave,
            env=environment | {"TERM": term, "PYTHONIOENCODING": "utf-8"},
            start_new_session=True,
        )
        os.close(slave)
        self._master = master
        self._data = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # EIO: nobody has the other end any more
                return
            if not data:
                return
            self._data += data

    def wait_for(self, wanted: bytes) -> None:
        limit = time.monotonic() + 60
        while wanted not in self._data and time.monotonic() < limit and self.process.poll() is None:
            time.sleep(0.02)
        assert wanted in self._data

    def end(self) -> tuple[int, str]:
        code = self.process.wait(120)
        self._reader.join(30)
        os.close(self._master)
        return code, self._data.decode("utf-8")


def screen(output: str) -> list[str]:
    """What is on the screen afterwards, where no line wraps."""
    rows, row = [""], 0
    for piece in re.split(r"(\x1b\[[?\d]*[a-zA-Z]|\r|\n)", output):
        if piece == "\n":
            row += 1
            rows += [""] * (row + 1 - len(rows))
        elif piece.endswith("A") and piece.startswith("\x1b"):
            row -= 1
        elif piece == "\x1b[2K":
            rows[row] = ""
        elif piece and piece != "\r" and not piece.startswith("\x1b"):
            rows[row] += piece
    return [text for text in rows if text]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_terminal_shows_one_line_that_is_gone_at_the_end(width: int) -> None:
    code, output = Terminal("pass", width).end()
    assert code == 0
    lines = [t for t in re.split(r"[\r\n]+", KNOWN.sub("", output)) if "/s" in t]
    assert len(lines) >= 3
    assert all(cell_len(line) < width for line in lines)
    assert "\x1b" not in KNOWN.sub("", output)
    assert output.endswith("summary 100\r\n")
    assert screen(output) == ["summary 100"]
    assert output.count("\x1b[?25l") == output.count("\x1b[?25h") == 1


def test_lines_that_others_print_stand_above_it() -> None:
    act = "number % 40 or print('out', number, flush=True) or print('[bold]err[/]', number, file=sys.stderr)"
    code, output = Terminal(act).end()
    assert code == 0
    said = [f"{name} {number}" for number in (0, 40, 80) for name in ("out", "[bold]err[/]")]
    assert screen(output) == [*said, "summary 100"]


def test_stdout_goes_where_it_was_sent(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as stdout:
        code, output = Terminal("number or print('[out]' * 60)", stdout=stdout).end()
    assert code == 0
    assert (tmp_path / "out").read_text(encoding="utf-8") == "[out]" * 60 + "\nsummary 100\n"
    assert screen(output) == []


def test_an_error_leaves_the_terminal_as_it_was() -> None:
    code, output = Terminal("number == 50 and sys.exit('over')").end()
    assert code == 1
    assert screen(output) == ["over"]
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")


def test_an_interrupt_leaves_the_terminal_as_it_was() -> None:
    terminal = Terminal("time.sleep(60)")
    terminal.wait_for(b"images/s")
    terminal.process.send_signal(signal.SIGINT)
    code, output = terminal.end()
    assert code == -signal.SIGINT
    assert screen(output)[0].startswith("Traceback")
    assert screen(output)[-1] == "KeyboardInterrupt"
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")


def test_a_terminal_that_cannot_erase_gets_a_log() -> None:
    code, output = Terminal("pass", term="dumb").end()
    assert (code, output) == (0, "summary 100\r\n")


def test_a_terminal_that_is_closed_does_not_end_the_run(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    with (tmp_path / "out").open("wb") as stdout:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN.replace("ACT", "pass")],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=slave,
            env=os.environ | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
            start_new_session=True,
        )
    os.close(slave)
    assert b"\x1b[?25l" in os.read(master, 65536)
    os.close(master)
    assert process.wait(120) == 0
    assert (tmp_path / "out").read_text(encoding="utf-8") == "summary 100\n"


# A log


class Lines:
    """A log that can be waited for."""

    def __init__(self) -> None:
        self.text = ""
        self.written = threading.Event()

    def write(self, text: str) -> int:
        self.text += text
        self.written.set()
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


def log(monkeypatch: pytest.MonkeyPatch) -> Lines:
    """Stderr as a log; not a fixture, since pytest puts its own stderr there between fixtures and the test."""
    lines = Lines()
    monkeypatch.setattr(sys, "stderr", lines)
    return lines


def test_a_log_gets_plain_lines_now_and_then_and_none_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = log(monkeypatch)
    tally = Tally()
    tally.add("found", 3)
    tally.current = "a\x1b[2Jb.jpg"
    with shown(tally, log_every=0.05):
        assert lines.written.wait(60)
    written = lines.text
    assert re.fullmatch(r"(vsa-rt: \d:\d\d \| 0 of 3 items \| .* \| a\\x1b\[2Jb\.jpg\n)+", written)
    time.sleep(0.2)
    assert lines.text == written


def test_a_log_gets_nothing_of_a_run_that_is_soon_over(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = log(monkeypatch)
    tally = Tally()
    with shown(tally):
        tally.add("found")
    assert lines.text == ""


class Hours:
    """A tally's clock that a test turns."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_is_quiet_while_a_run_waits_for_work_but_for_one_line_an_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines, clock = log(monkeypatch), Hours()
    tally = Tally(clock)
    writer = LogLines(tally)

    def written(looks: int) -> int:
        before = lines.text.count("\n")
        for _ in range(looks):
            clock.now += 30
            writer.tick()
        return lines.text.count("\n") - before

    assert written(119) == 0
    assert written(1) == 1
    assert written(240) == 2
    tally.add("found")
    tally.add("images")
    assert written(1) == 1
    assert written(10) == 0
    tally.add("found")  # and it never comes to an end
    assert written(10) == 10
    assert lines.text.splitlines()[-1].startswith("vsa-rt: 3:10:30 | 1 of 2 items | 0 images/s")


def test_a_log_that_is_gone_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(Lines):
        def write(self, text: str) -> int:
            self.written.set()
            raise BrokenPipeError(32, "Broken pipe")

    gone = Gone()
    monkeypatch.setattr(sys, "stderr", gone)
    tally = Tally()
    tally.add("found")
    with shown(tally, log_every=0.01):
        assert gone.written.wait(60)
        tally.add("images")
    assert tally.numbers().images == 1


# The summary

REPORT = IngestReport(
    out=Path("results"),
    numbers=NUMBERS,
    totals={"done": 2000, "reused": 51, "failed": 7},
    parts=3,
    engine="openvino:cpu bf16: the fastest that passed",
    ended="complete",
    format="jsonl",
)


def said(capsys: pytest.CaptureFixture[str], report: IngestReport) -> list[str]:
    summary(report, as_json=False)
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def test_the_summary_says_what_came_what_became_of_it_and_where_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = said(capsys, REPORT)
    assert lines[0] == "complete: 1,240 items in 4 min 12 s"
    assert "items   1,100 images, 138 videos, 2 failed; 12.3 GB read" in lines
    assert "earlier 812 items, finished by earlier runs into the same folder" in lines
    assert "reused  37 duplicates, with the result of an earlier item" in lines
    assert "speed   80,000 images and frames, 317 a second" in lines
    assert "time    decode 61 %, resize 22 %, engine 17 % of what these three took together" in lines
    assert "engine  openvino:cpu bf16: the fastest that passed" in lines
    where = "output  results: 2,051 items in 3 parts: items-*.jsonl, and frames-*.jsonl of videos and feeds"
    assert where in lines
    how = "reasons in results/failed.jsonl; the same command with --retry-failed tries them again"
    assert f"failed  7 items in all, {how}" in lines


def test_a_stopped_run_says_that_it_can_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, replace(REPORT, ended="stopped"))[0] == (
        "stopped after 4 min 12 s: 1,240 items finished and written, 3,760 more had come; the same command goes on "
        "from here"
    )


def test_a_run_without_anything_to_do_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = replace(REPORT, numbers=Numbers(seconds=1, before=2053))
    assert said(capsys, nothing)[0] == "complete: the sources gave nothing new"
    empty = replace(REPORT, numbers=Numbers(seconds=1), totals={}, parts=0)
    lines = said(capsys, empty)
    assert lines[0] == "complete: the sources gave no items"
    assert "output  results: no results" in lines
    assert not [line for line in lines if line.startswith(("failed", "speed", "time", "reused"))]


def test_the_first_failures_are_named_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    failures = tuple(ItemError(f"[red]{n}\x1b[2J{os.fsdecode(bytes([255]))}", "is cut off") for n in range(6))
    lines = said(capsys, replace(REPORT, failures=failures))
    place = next(n for n, line in enumerate(lines) if line.startswith("failed"))
    assert lines[place + 1] == "          [red]0\\x1b[2J\\xff: is cut off"
    assert lines[place + 6] == "          and 2 more"


def test_notes_and_random_weights_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    warning = "random weights (seed 0): the labels mean nothing"
    lines = said(capsys, replace(REPORT, notes=("part 2 was taken away",), random_weights=warning))
    assert "note    part 2 was taken away" in lines
    assert lines[-1] == warning


def test_paths_are_not_broken_into_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out = Path("a folder with a name") / ("x" * 100) / "[results]"
    lines = said(capsys, replace(REPORT, out=out))
    assert len([line for line in lines if f"{out}: 2,051 items" in line]) == 1
    assert len([line for line in lines if f"{out}/failed.jsonl" in line]) == 1


def test_the_summary_as_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(os.fsdecode(b"caf\xe9"))
    failures = (ItemError("a\ud800.jpg", "is cut off"),)
    summary(replace(REPORT, out=out, failures=failures, notes=("one",)), as_json=True)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out) == {
        "schema": 1,
        "kind": "ingest",
        "out": "caf\\xe9",
        "format": "jsonl",
        "ended": "complete",
        "engine": "openvino:cpu bf16: the fastest that passed",
        "random_weights": "",
        "run": {
            "seconds": 252, "found": 5000, "images": 1100, "videos": 138, "feed_windows": 0, "failed": 2, "reused": 37,
            "unfinished": 3760, "finished_before": 812, "bytes_read": 12_300_000_000, "frames": 80_000,
            "frames_dropped": 0, "frames_per_second": 317.46, "decode_seconds": 61, "resize_seconds": 22,
            "engine_seconds": 17,
        },
        "totals": {"done": 2000, "reused": 51, "failed": 7},
        "parts": 3,
        "notes": ["one"],
        "failures": [{"item": "a\\ud800.jpg", "error": "is cut off"}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.97, "1 min 00 s"), (3599.7, "1 h 00 min"), (7300, "2 h 01 min")]
)  # fmt: skip
def test_how_long_it_took(capsys: pytest.CaptureFixture[str], seconds: float, words: str) -> None:
    assert said(capsys, replace(REPORT, numbers=replace(NUMBERS, seconds=seconds)))[0].endswith(
        f" in {words}"
    )
