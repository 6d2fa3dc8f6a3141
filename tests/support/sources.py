"""Folders as social media fill them: photographs, reposts, archives, videos, and files that are none of these."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from clips import clip, numbered, sound_only
from PIL import Image


def some_video(path: Path, frames: int = 40, first: int = 0, rate: int = 10) -> Path:
    """A clip of pictures that differ; a tenth of a second each."""
    return clip(path, [numbered((first + n) % 256, (64, 96)) for n in range(frames)], rate=rate)


def as_jpeg(photograph: Path, folder: Path) -> Path:
    """A photograph as a JPEG file of its own."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{photograph.stem}.jpg"
    with Image.open(photograph) as image:
        image.convert("RGB").save(path, quality=92)
    return path


def distinct(photograph: Path, to: Path, number: int) -> Path:
    """The same picture in other bytes: what follows a JPEG's end is not looked at."""
    to.write_bytes(photograph.read_bytes() + b"\0%d" % number)
    return to


def mixed_folder(folder: Path, photographs: Sequence[Path]) -> Path:
    """Photographs and the same again, two archives, two videos, and a few files that cannot be read.

    Args:
        folder: Is made.
        photographs: JPEG files, six at least.
    """
    folder.mkdir(parents=True)
    for number, photograph in enumerate(photographs[:6]):
        shutil.copy(photograph, folder / f"p{number}.jpg")
    (folder / "again").mkdir()
    for number, photograph in enumerate(photographs[:3]):
        shutil.copy(photograph, folder / "again" / f"repost{number}.jpg")
        distinct(photograph, folder / "again" / f"other{number}.jpg", number)
    _archives(folder, photographs[:4])
    some_video(folder / "v1.mp4")
    some_video(folder / "v2.mp4", first=100)
    shutil.copy(folder / "v1.mp4", folder / "v3-repost.mp4")
    broken_files(folder / "broken", photographs[0], folder / "v1.mp4")
    return folder


def _archives(folder: Path, photographs: Iterable[Path]) -> None:
    with tarfile.open(folder / "shard.tar", "w") as tar, zipfile.ZipFile(folder / "pack.zip", "w") as pack:
        for number, photograph in enumerate(photographs):
            own = distinct(photograph, folder / f"tmp{number}", 100 + number)
            tar.add(own, f"t{number}.jpg")
            own.unlink()
            own = distinct(photograph, folder / f"tmp{number}", 200 + number)
            pack.write(own, f"z{number}.jpg")
            own.unlink()


def broken_files(folder: Path, photograph: Path, video: Path) -> Path:
    """Files that fail: empty, cut off, sound alone, text under a picture's name."""
    folder.mkdir()
    (folder / "empty.jpg").touch()
    (folder / "empty.mp4").touch()
    (folder / "text.jpg").write_text("not a picture")
    (folder / "text.mp4").write_text("not a video")
    (folder / "cut.jpg").write_bytes(photograph.read_bytes()[:600])
    (folder / "cut.mp4").write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    sound_only(folder / "sound.mp4")
    return folder
