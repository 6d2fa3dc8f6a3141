"""`vsa-rt run`: which files, what is printed where, and that one bad item never harms another."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from outcome import lines
from PIL import Image

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).resolve().parents[1]
KEYS = ["path", "label", "labels", "scores", "scores_kind", "error"]
COMMANDS = ["doctor", "recipes", "fit", "export", "build", "inspect", "run", "check"]


# Run: what is printed


def test_json_lines_have_the_documented_keys(here: Cli, tiny_bundle: Path, toy_data: Path) -> None:
    good, bad = toy_data / "bright" / "coffee.png", toy_data / "absent.png"
    done = here("run", tiny_bundle, good, bad)
    assert done.returncode == 1
    one, other = lines(done.stdout)
    assert list(one) == list(other) == KEYS
    assert (one["path"], one["label"], one["labels"], one["error"]) == (str(good), "bright", [], None)
    assert one["scores_kind"] == "softmax"
    assert list(one["scores"]) == ["bright", "dark"]
    assert sum(one["scores"].values()) == pytest.approx(1, abs=1e-5)
    assert (other["path"], other["label"], other["scores"]) == (str(bad), None, {})
    assert isinstance(other["error"], str)


def test_the_number_of_scores_is_chosen(here: Cli, tiny_bundle: Path, coffee: Path) -> None:
    counts = {
        top: len(lines(here("run", tiny_bundle, coffee, "--top", top).stdout)[0]["scores"]) for top in "0125"
    }
    assert counts == {"0": 2, "1": 1, "2": 2, "5": 2}


def test_csv_is_csv(here: Cli, tiny_bundle: Path, toy_data: Path, tmp_path: Path) -> None:
    odd = tmp_path / 'a "b", c.png'
    shutil.copy(toy_data / "dark" / "coffee.png", odd)
    done = here("run", tiny_bundle, odd, "absent.png", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert done.returncode == 1
    assert [(r["path"], r["label"]) for r in rows] == [(str(odd), "dark"), ("absent.png", "")]
    assert float(rows[0]["score"]) > 0.5
    assert (rows[0]["error"], bool(rows[1]["error"])) == ("", True)


def test_a_table_is_for_people(here: Cli, tiny_bundle: Path, toy_data: Path) -> None:
    odd = "[red]absent[/red].png"
    done = here("run", tiny_bundle, toy_data / "dark" / "coffee.png", odd, "--format", "table")
    assert done.returncode == 1
    assert "dark" in done.stdout
    assert odd in done.stdout
    assert "2 items, 1 failed" in done.stderr


def test_engine_and_precision_are_chosen(here: Cli, tiny_bundle: Path, coffee: Path) -> None:
    for more in (
        ["--target", "onnxruntime:cpu"],
        ["--target", "openvino:cpu", "--precision", "fp32"],
        ["--batch", "1", "--threads", "1"],
        ["--resample", "fast"],
    ):
        done = here("run", tiny_bundle, coffee, *more)
        assert done.returncode == 0
        assert lines(done.stdout)[0]["label"]
    note = here("run", tiny_bundle, coffee, "--target", "onnxruntime:cpu", "--format", "table").stderr
    assert "onnxruntime:cpu fp32" in note


def test_scores_that_are_no_numbers_are_still_json(
    here: Cli, tiny_bundle: Path, coffee: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vsa_rt.runtime.sentiment import Labeller

    real = Labeller.__call__
    monkeypatch.setattr(
        Labeller, "__call__", lambda self, scores, views=None: real(self, scores * np.nan, views)
    )
    done = here("run", tiny_bundle, coffee)
    for text in done.stdout.splitlines():
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


# Run: which files


@pytest.fixture
def tree(tmp_path: Path, toy_data: Path) -> Path:
    """A folder with everything that folders hold."""
    root = tmp_path / "tree"
    for name in ("b/2.png", "b/10.png", "a.png", "c/d/e.PNG", ".hidden.png", ".git/x.png", "z.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(toy_data / "bright" / "coffee.png", root / name)
    (root / "notes.txt").write_text("hello")
    (root / "broken.png").symlink_to("absent.png")
    (root / "loop.png").symlink_to("loop.png")
    (root / "link.png").symlink_to("a.png")
    (root / "linked").symlink_to("b")
    (root / "self").symlink_to(".")
    os.mkfifo(root / "pipe.png")
    return root


def test_a_folder_is_walked_in_sorted_order(here: Cli, tiny_bundle: Path, tree: Path) -> None:
    done = here("run", tiny_bundle, tree)
    assert done.returncode == 1
    found = {str(Path(r["path"]).relative_to(tree)): r["label"] for r in lines(done.stdout)}
    assert list(found) == [
        "a.png", "b/10.png", "b/2.png", "broken.png", "c/d/e.PNG", "link.png", "loop.png", "notes.txt", "z.jpg"
    ]  # fmt: skip
    assert [n for n, label in found.items() if label is None] == ["broken.png", "loop.png", "notes.txt"]
    assert {label for label in found.values() if label} == {"bright"}


def test_a_glob_narrows_a_folder_and_not_a_file(here: Cli, tiny_bundle: Path, tree: Path) -> None:
    done = here("run", tiny_bundle, tree, tree / "z.jpg", "--glob", "*.png")
    found = [str(Path(r["path"]).relative_to(tree)) for r in lines(done.stdout)]
    assert found == ["a.png", "b/10.png", "b/2.png", "broken.png", "link.png", "loop.png", "z.jpg"]
    nothing = here("run", tiny_bundle, tree, "--glob", "*.nothing")
    assert (nothing.returncode, nothing.stdout) == (0, "")


def test_names_of_every_kind(vsa: Cli, tiny_bundle: Path, toy_data: Path, tmp_path: Path) -> None:
    names = ["with space.png", "日本語 ß.png", "new\nline.png", "-dash.png", os.fsdecode(b"caf\xe9.png")]
    folder = tmp_path / "näme with space"
    folder.mkdir()
    try:
        for name in names:
            shutil.copy(toy_data / "dark" / "coffee.png", folder / name)
    except OSError as error:
        pytest.skip(f"this file system takes no such name: {error}")
    for more in ([], ["--format", "csv"], ["--format", "table"]):
        done = vsa("run", tiny_bundle, folder, *more, env={"PYTHONIOENCODING": "ascii"})
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done
    done = vsa("run", tiny_bundle, folder)
    assert done.returncode == 0
    shown = [Path(r["path"]).name for r in lines(done.stdout)]
    assert shown == [
        "-dash.png",
        "caf\\xe9.png",
        "new\nline.png",
        "with space.png",
        "日本語 ß.png",
    ] or sorted(shown) == sorted(
        ["-dash.png", "caf\\xe9.png", "new\nline.png", "with space.png", "日本語 ß.png"]
    )
    assert {r["label"] for r in lines(done.stdout)} == {"dark"}
    by_name = vsa("run", tiny_bundle, "--", *names, cwd=folder)
    assert len(lines(by_name.stdout)) == len(names)
    assert by_name.returncode == 0


def test_a_video_is_one_items_error(here: Cli, tiny_bundle: Path, toy_data: Path, tmp_path: Path) -> None:
    video = tmp_path / "clip.mp4"
    video.write_bytes(b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(200))
    good = toy_data / "bright" / "coffee.png"
    done = here("run", tiny_bundle, good, video, good)
    assert done.returncode == 1
    assert [r["label"] for r in lines(done.stdout)] == ["bright", None, "bright"]
    assert lines(done.stdout)[1]["error"]


@pytest.mark.slow
def test_ten_thousand_names_most_of_them_broken(
    here: Cli, tiny_bundle: Path, toy_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    whole = (toy_data / "bright" / "coffee.png").read_bytes()
    small = io.BytesIO()
    Image.new("RGB", (8, 8), (250, 250, 250)).save(small, "PNG")
    kinds = {"good": small.getvalue(), "empty": b"", "text": b"no image", "cut": whole[:500]}
    for name, data in kinds.items():
        (tmp_path / name).write_bytes(data)
    wanted = []
    for number in range(10_000):
        kind = "good" if number % 10 == 3 else ("empty", "text", "cut")[number % 3]
        os.link(tmp_path / kind, folder / f"{number:05}.png")
        wanted.append(kind == "good")
    done = here("run", tiny_bundle, folder)
    found = lines(done.stdout)
    assert done.returncode == 1
    assert [Path(r["path"]).stem for r in found] == [f"{n:05}" for n in range(10_000)]
    assert [r["error"] is None for r in found] == wanted
    assert len({r["label"] for r in found if r["error"] is None}) == 1


@pytest.mark.parametrize("output", ["jsonl", "csv"])
def test_a_reader_that_leaves_ends_the_run_quietly(
    tiny_bundle: Path, toy_data: Path, tmp_path: Path, output: str
) -> None:
    """As with ``vsa-rt run … | head -1``."""
    names = [str(tmp_path / f"{'absent' * 20}{n}.png") for n in range(700)]
    command = [sys.executable, "-m", "vsa_rt", "run", str(tiny_bundle), *names, "--format", output]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read().decode()
        code = process.wait(60)
    assert errors == ""
    assert code == 0


def test_a_full_disk_is_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is not there")
    names = [str(tmp_path / f"{n}.png") for n in range(50)]
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "vsa_rt", "run", str(tiny_bundle), *names, "--format", "jsonl"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode in (1, 3)
    assert "Traceback" not in done.stderr
    assert "No space left" in done.stderr
