"""What is a video, by its content and its name."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vsa_rt.runtime.video import is_video

pytest.importorskip("av", reason="PyAV is not installed")

from clips import clip, numbered, sound_only


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip(tmp_path_factory.mktemp("clips") / "movie.mp4", map(numbered, range(3)))


def test_is_video_looks_at_the_content_first(tmp_path: Path, movie: Path) -> None:
    hidden = tmp_path / "photo.jpg"
    hidden.write_bytes(movie.read_bytes())
    assert is_video(hidden)
    for suffix in ("mkv", "ts", "avi", "flv"):
        codec = "mpeg4" if suffix == "avi" else "libx264"
        path = clip(tmp_path / f"x.{suffix}", map(numbered, range(3)), codec=codec, options={})
        assert is_video(path.rename(tmp_path / f"{suffix}.bin"))
    picture = tmp_path / "really.mp4"
    Image.new("RGB", (8, 8)).save(picture, "JPEG")
    assert not is_video(picture)
    for kind in ("PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"):
        Image.new("RGB", (8, 8)).save(tmp_path / "p.mov", kind)
        assert not is_video(tmp_path / "p.mov"), kind


def test_is_video_goes_by_the_suffix_where_the_content_says_nothing(tmp_path: Path) -> None:
    for name, expected in (
        ("empty.mp4", True),
        ("empty.txt", False),
        ("EMPTY.MKV", True),
        ("module.ts", False),
    ):
        (tmp_path / name).write_bytes(b"")
        assert is_video(tmp_path / name) is expected
    assert is_video("not/there.webm")
    assert not is_video("not/there.jpg")
    (tmp_path / "folder.mp4").mkdir()
    assert not is_video(tmp_path / "folder.mp4")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("rtsp://user:secret@camera/1", True),
        ("https://server/clip.mp4?size=large#t=3", True),
        ("https://server/photo.jpg", False),
        ("ftp://server/clip.mp4", False),
    ],
)
def test_is_video_takes_addresses(address: str, expected: bool) -> None:
    assert is_video(address) is expected


def test_sound_alone_is_a_container_of_videos(tmp_path: Path) -> None:
    assert is_video(sound_only(tmp_path / "sound.mp4"))
