"""``vsa-rt ingest`` as a person and a supervisor use it: exit codes, signals, kill -9, what is on the screen."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ingestion import everything, rows
from sources import as_jpeg, distinct, mixed_folder, some_video

pytest.importorskip("av", reason="ingestion decodes with PyAV")

Cli = Callable[..., subprocess.CompletedProcess[str]]
#: Seconds after which a process that hangs is killed, and its test fails.
SAFETY = 120


@pytest.fixture
def folder(photographs: list[Path], tmp_path: Path) -> Path:
    return mixed_folder(tmp_path / "in", [as_jpeg(p, tmp_path / "jpeg") for p in photographs[:6]])


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vsa_rt", "ingest", *map(str, arguments)]


def test_results_go_to_the_folder_and_the_summary_to_the_screen(
    here: Cli, tiny_bundle: Path, photographs: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = here("ingest", photographs[0], photographs[1], "-b", tiny_bundle, "-o", out)
    assert done.returncode == 0, done.stderr
    assert "2 images" in done.stdout
    assert {Path(r["key"]) for r in rows(out)} == set(photographs[:2])
    assert sorted(p.name for p in out.iterdir() if not p.name.startswith(".")) == [
        "failed.jsonl",
        "items-000001.jsonl",
        "ledger.sqlite",
    ]


def test_the_summary_as_json_is_one_document(
    here: Cli, tiny_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    done = here("ingest", folder, "-b", tiny_bundle, "-o", tmp_path / "out", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1  # items failed
    assert (found["kind"], found["ended"]) == ("ingest", "complete")
    assert found["run"]["videos"] == 3
    assert (
        found["run"]["failed"]
        == found["totals"]["failed"]
        == len((tmp_path / "out" / "failed.jsonl").read_text().splitlines())
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--sample", "fps=1", "--fps", "2"), "give one of the two"),
        (("--fps", "0"), "over 0"),
        (("--idle", "3"), "give --watch"),
        (("--distance", "3"), "--dedup near"),
        (("--dedup", "near", "--distance", "40"), "40 bits"),
        (("--window", "0"), "seconds above 0"),
        (("--timeout", "nan"), "seconds above 0"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_written(
    here: Cli,
    tiny_bundle: Path,
    photographs: list[Path],
    tmp_path: Path,
    options: tuple[str, ...],
    says: str,
) -> None:
    done = here("ingest", photographs[0], "-b", tiny_bundle, "-o", tmp_path / "out", *options)
    assert done.returncode == 2
    assert says in done.stderr
    assert not (tmp_path / "out" / "ledger.sqlite").exists()


def test_timelines_are_drawn_for_videos_that_were_computed(
    here: Cli, tiny_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    from PIL import Image

    here("ingest", folder, "-b", tiny_bundle, "-o", tmp_path / "out", "--timeline")
    found = sorted((tmp_path / "out" / "timelines").iterdir())
    assert [p.name.partition(".mp4")[0].rpartition("-")[2] for p in found] == ["v1", "v2"]
    for path in found:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.width > 600


def test_an_interrupt_writes_what_is_done_and_says_that_it_goes_on(
    tiny_bundle: Path, photographs: list[Path], tmp_path: Path
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for number in range(8):
        distinct(photographs[0], source / f"p{number}.jpg", number)
    # It would go on for ever.
    process = subprocess.Popen(
        command(source, "-b", tiny_bundle, "-o", out, "--watch", "--part-seconds", "0.2", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        _until(lambda: len(rows(out)) == 8, process)
        distinct(photographs[1], source / "late.jpg", 1)
        _until(lambda: len(rows(out)) == 9, process)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=SAFETY)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert b"stopping" in stderr
    assert json.loads(stdout)["ended"] == "stopped"
    assert len(rows(out)) == 9


def test_an_interrupt_ends_a_run_that_waits_for_a_line(
    tiny_bundle: Path, photographs: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(photographs[0], "-", "-b", tiny_bundle, "-o", out, "--part-seconds", "0.2"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        _until(lambda: len(rows(out)) == 1, process)
        process.send_signal(signal.SIGINT)
        process.wait(SAFETY)
    finally:
        process.kill()
        _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert b"Fatal" not in stderr


def _until(wanted: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SAFETY
    while not wanted():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def _killed(arguments: list[str], after: float) -> bool:
    """Whether a run was killed before its end."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(after)
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True


@pytest.mark.parametrize("seed", range(3))
def test_killed_runs_that_are_begun_again_give_what_an_undisturbed_one_gives(
    tiny_bundle: Path, folder: Path, tmp_path: Path, seed: int
) -> None:
    options = ("-b", tiny_bundle, "--part-items", 3, "--sample", "every=4")
    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    began = time.monotonic()
    subprocess.run(command(folder, *options, "-o", calm), capture_output=True, timeout=SAFETY, check=False)
    whole = time.monotonic() - began
    chance = random.Random(seed)  # noqa: S311 - moments of a test
    kills = 0
    for _ in range(6):
        kills += _killed(command(folder, *options, "-o", disturbed), chance.uniform(0.3, 1.0) * whole)
    done = subprocess.run(
        command(folder, *options, "-o", disturbed), capture_output=True, timeout=SAFETY, check=False
    )
    assert done.returncode in (0, 1), done.stderr  # 1 if what fails comes in this last run
    assert kills
    assert everything(disturbed) == everything(calm)
    keys = [row["key"] for row in rows(disturbed)]
    assert len(set(keys)) == len(keys)
    assert not [p.name for p in disturbed.iterdir() if p.name.startswith(".") and p.name != ".lock"]


def test_no_decoder_outlives_a_killed_run(tiny_bundle: Path, tmp_path: Path) -> None:
    video = some_video(tmp_path / "v.mp4", frames=400)
    process = subprocess.Popen(
        command(video, "-b", tiny_bundle, "-o", tmp_path / "out", "--sample", "all"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + SAFETY
    children: set[int] = set()
    while not children and time.monotonic() < deadline and process.poll() is None:
        children = _children(process.pid)
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert children
    while any(_alive(child) for child in children):
        assert time.monotonic() < deadline, "a decoder lives on"
        time.sleep(0.05)


def _children(pid: int) -> set[int]:
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found |= {int(number) for number in task.read_text().split()}
        except OSError:
            continue
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_metrics_are_served_while_it_runs(tiny_bundle: Path, photographs: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client", reason="metrics need prometheus_client")
    from urllib.request import urlopen

    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    distinct(photographs[0], source / "p.jpg", 0)
    process = subprocess.Popen(
        command(
            source, "-b", tiny_bundle, "-o", out, "--watch", "--part-seconds", "0.2", "--metrics-port", 0
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        address = process.stderr.readline().decode().split()[-1]
        _until(lambda: len(rows(out)) == 1, process)
        with urlopen(address, timeout=SAFETY) as answer:  # noqa: S310 - our own server's
            text = answer.read().decode()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=SAFETY)
    finally:
        process.kill()
        process.wait()
    assert 'vsa_rt_ingest_items_done_total{kind="image"} 1.0' in text
    assert process.returncode == 130


def test_help_names_every_source(here: Cli) -> None:
    text = " ".join(here("ingest", "--help").stdout.split())
    for word in (
        "videos",
        "tar and zip",
        "stdin",
        "cameras",
        "--dedup",
        "--retry-failed",
        "--timeline",
        "--watch",
    ):
        assert word in text


def test_json_is_schema_checked(
    here: Cli, tiny_bundle: Path, photographs: list[Path], tmp_path: Path
) -> None:
    done = here("ingest", photographs[0], "-b", tiny_bundle, "-o", tmp_path / "out", "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["schema"] == 1
    assert found["totals"] == {"done": 1, "failed": 0, "reused": 0}
