"""Videos that are not what they should be: each ends as one ItemError with its reason, after the frames that were there."""

from __future__ import annotations

import io
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vsa_rt.contracts import MAX_PIXELS
from vsa_rt.errors import ItemError
from vsa_rt.runtime.video import video

pytest.importorskip("av", reason="PyAV is not installed")

from clips import clip, number_of, numbered, sound_only


def reason(source: Any, sample: str = "all", **options: Any) -> str:
    with pytest.raises(ItemError) as refused:
        list(video(source, sample, **options))
    return refused.value.reason


def taken(source: Any, sample: str = "all", **options: Any) -> tuple[list[int], str]:
    """Numbers of the frames that came, and the reason of the error behind them; empty if there is none."""
    found: list[int] = []
    try:
        for frame in video(source, sample, **options):
            found.append(number_of(frame.pixels))
    except ItemError as error:
        return found, error.reason
    return found, ""


# Nothing to see


def test_an_empty_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert reason(tmp_path / "empty.mp4") == "empty (0 bytes), expected a video"
    assert reason(b"") == "empty (0 bytes), expected a video"
    assert "not a video" in reason(io.BytesIO(b""))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ItemError, match="no such file") as refused:
        next(video(tmp_path / "none.mp4"))
    assert refused.value.item == str(tmp_path / "none.mp4")
    assert reason("nul\0.mp4").startswith("it cannot be read")


def test_a_folder_and_a_device_are_not_opened(tmp_path: Path) -> None:
    assert reason(tmp_path) == "a folder, expected a video file"
    assert reason("/dev/zero") == "a device, expected a video file"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.mp4")
    assert reason(tmp_path / "fifo.mp4") == "a FIFO, expected a video file"


@pytest.mark.parametrize("name", ["notes.mp4", "notes.txt", "notes.diz", "notes.m3u8", "notes.nfo"])
def test_text_is_not_a_video_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("Nothing but words.\n" * 500)
    assert reason(tmp_path / name).startswith("not a video that FFmpeg can read")


def test_noise_is_not_a_video(tmp_path: Path) -> None:
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(50_000))
    assert "video" in reason(tmp_path / "noise.mp4")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_a_photograph_with_the_name_of_a_video_is_called_a_picture(tmp_path: Path, kind: str) -> None:
    Image.fromarray(numbered(3)).save(tmp_path / "x.mp4", kind)
    found, why = taken(tmp_path / "x.mp4")
    if kind == "PNG":  # FFmpeg takes it for a video of one frame
        assert (found, why) in (([3], ""), ([], why))
    else:
        assert "picture that FFmpeg does not read as a video; pass it as an image" in why


def test_another_containers_suffix_does_not_matter(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mkv", map(numbered, range(3)))
    assert taken(path.rename(tmp_path / "a.mp4")) == ([0, 1, 2], "")


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    assert reason(sound_only(tmp_path / "sound.mp4")) == "no video in it, only audio"


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    import av

    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        cover: Any = container.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(numbered(5), "rgb24").reformat(format="yuvj420p")
        container.mux(cover.encode(frame))
        container.mux(cover.encode(None))
    assert "cover picture" in reason(path)


def test_a_container_without_frames_says_so(tmp_path: Path) -> None:
    path = clip(tmp_path / "none.mkv", [])
    assert "no frames" in reason(path)
    assert "no frames" in reason(path, "uniform=3")


@pytest.mark.parametrize(("source", "words"), [(3, "got int"), (io.StringIO("x"), "mode 'rb'")])
def test_another_thing_is_refused(source: Any, words: str) -> None:
    assert words in reason(source)


# Broken off


def test_frames_before_a_cut_come_and_then_the_error(tmp_path: Path) -> None:
    makers: list[tuple[str, str, dict[str, str]]] = [
        ("cut.mp4", "libx264", {"movflags": "faststart"}),
        ("fragments.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        ("cut.mkv", "libx264", {}),
        ("cut.flv", "libx264", {}),
        ("cut.avi", "mpeg4", {}),
    ]
    for name, codec, muxing in makers:
        path = clip(
            tmp_path / name,
            map(numbered, range(100)),
            codec=codec,
            muxing=muxing,
            options={"b": "4M"} if codec == "mpeg4" else None,
        )
        data = path.read_bytes()
        for sample in ("all", "every=1", "keyframes", "fps=5", "uniform=9"):
            whole, none = taken(data, sample)
            found, why = taken(data[: len(data) * 6 // 10], sample)
            assert none == "", name
            assert why, (name, sample)
            if sample in ("all", "every=1"):
                assert 30 <= len(found) < 80, name
                assert "cut off" in why, name
                assert f"{len(found)} frames" in why, name
            if sample != "uniform=9":
                assert found == whole[: len(found)], name
            assert found, name


def test_an_index_that_is_missing_is_an_error(tmp_path: Path) -> None:
    data = clip(tmp_path / "a.mp4", map(numbered, range(50))).read_bytes()
    assert reason(data[: len(data) // 2]).startswith("not a video that FFmpeg can read")


def test_packets_that_cannot_be_decoded_are_counted(tmp_path: Path) -> None:
    data = bytearray(
        clip(tmp_path / "a.mov", map(numbered, range(40)), codec="png", pix_fmt="rgb24").read_bytes()
    )
    places = [place for place in range(len(data)) if data[place : place + 4] == b"IHDR"]
    assert len(places) == 40
    data[places[20] - 8 : places[20] + 8] = bytes(16)
    found, why = taken(bytes(data))
    assert found == [number for number in range(40) if number != 20]
    assert "1 of 40 packets of video cannot be decoded" in why
    assert "39 frames were read" in why
    found, why = taken(bytes(data), "all", end=1)
    assert found == [number for number in range(25) if number != 20]
    assert "packets of video cannot be decoded" in why
    assert taken(bytes(data), "all", end=0.5) == (list(range(13)), "")


def test_nothing_that_can_be_decoded_says_why(tmp_path: Path) -> None:
    data = clip(tmp_path / "a.mov", map(numbered, range(5)), codec="png", pix_fmt="rgb24").read_bytes()
    assert "no frame of its 5 packets of video can be decoded" in reason(data.replace(b"IHDR", b"XXXX"))


# Too much


@pytest.mark.parametrize("size", [15_000, 60_000])
def test_a_size_over_the_limit_is_refused_before_a_frame_is_made(tmp_path: Path, size: int) -> None:
    data = clip(tmp_path / "a.mov", [numbered(1)], codec="png", pix_fmt="rgb24").read_bytes()
    header = b"IHDR" + (64).to_bytes(4, "big") + (48).to_bytes(4, "big")
    forged = data.replace(header, b"IHDR" + size.to_bytes(4, "big") * 2)
    assert forged != data
    assert reason(forged).startswith("no frame of its 1 packets of video can be decoded")
    if size == 15_000:  # FFmpeg alone would have made it
        assert f"a size of more than {MAX_PIXELS:,} pixels" in reason(forged)


def test_a_size_over_the_limit_that_the_container_states_is_named() -> None:
    stated = b"YUV4MPEG2 W15000 H15000 F25:1 C420\nFRAME\n" + bytes(1000)
    assert reason(stated) == f"15000 x 15000 pixels are more than the {MAX_PIXELS:,} allowed"


def test_pixels_that_are_stretched_over_the_limit_are_refused(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", [numbered(1, (900, 1200))], aspect=Fraction(255))
    assert reason(path) == f"306000 x 900 pixels are more than the {MAX_PIXELS:,} allowed"


def test_many_streams_are_passed_over(tmp_path: Path) -> None:
    import av

    path = tmp_path / "many.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(60):
            container.add_attachment(f"font{number}.ttf", "font/ttf", b"x" * 100)
        sounds: list[Any] = [container.add_stream("aac", rate=8000) for _ in range(40)]
        container.start_encoding()
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(numbered(number), "rgb24").reformat(format="yuv420p")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        assert len(sounds) == 40
    assert taken(path) == ([0, 1, 2, 3, 4], "")


def test_a_playlist_cannot_make_it_open_a_file(tmp_path: Path) -> None:
    secret = clip(tmp_path / "secret.ts", map(numbered, range(30)))
    script = f"ffconcat version 1.0\nfile {secret.name}\n"
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{secret.name}\n#EXT-X-ENDLIST\n"
    for name, text in (("a.ffconcat", script), ("a.mp4", script), ("a.m3u8", playlist), ("b.mp4", playlist)):
        (tmp_path / name).write_text(text)
        assert taken(tmp_path / name) == ([], reason(tmp_path / name))
        assert reason(text.encode()).startswith("not a video that FFmpeg can read")


# Servers


Serve = Callable[[Any], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server of a handler, and says its address."""
    servers = []

    def start(handler: Any) -> str:
        server = HTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def test_a_video_is_read_from_a_server(tmp_path: Path, serve: Serve) -> None:
    clip(tmp_path / "a.mkv", map(numbered, range(50)))
    address = serve(partial(_Quiet, directory=str(tmp_path)))
    assert taken(f"{address}/a.mkv", "fps=1") == ([0, 25], "")
    assert taken(f"{address}/a.mkv", "uniform=2") == ([12, 37], "")
    assert "404" in reason(f"{address}/none.mkv")


def test_a_playlist_on_a_server_is_followed_there_and_not_to_files(tmp_path: Path, serve: Serve) -> None:
    clip(tmp_path / "part.ts", map(numbered, range(25)))
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n"
    (tmp_path / "good.m3u8").write_text(f"{head}part.ts\n#EXT-X-ENDLIST\n")
    (tmp_path / "bad.m3u8").write_text(f"{head}file://{tmp_path}/part.ts\n#EXT-X-ENDLIST\n")
    address = serve(partial(_Quiet, directory=str(tmp_path)))
    assert taken(f"{address}/good.m3u8") == (list(range(25)), "")
    assert taken(f"{address}/bad.m3u8")[0] == []


def test_a_server_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for scheme in ("http", "rtsp"):
            why = reason(f"{scheme}://user:secret@127.0.0.1:{port}/a.mp4", timeout=0.5)
            assert why == "nothing came for 0.5 s (timeout)"


def test_a_server_that_falls_silent_is_given_up_after_its_frames(tmp_path: Path, serve: Serve) -> None:
    data = clip(
        tmp_path / "a.ts",
        (np.random.default_rng(n).integers(0, 256, (48, 64, 3), np.uint8) for n in range(99)),
    )
    half = data.read_bytes()[:400_000]
    stop = threading.Event()

    class Silent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            self.wfile.write(half)
            self.wfile.flush()
            stop.wait(30)

        def log_message(self, *arguments: object) -> None:
            pass

    address = serve(Silent)
    try:
        found, why = taken(f"{address}/a.ts", timeout=1)
    finally:
        stop.set()
    assert len(found) > 10
    assert why.startswith("nothing came for 1 s (timeout); the ")


def test_an_address_that_nobody_answers_is_an_error_without_its_password() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ItemError) as refused:
        list(video(f"rtsp://user:secret@127.0.0.1:{port}/camera", timeout=5))
    assert refused.value.item == f"rtsp://127.0.0.1:{port}/camera"
    assert refused.value.reason == "the server refused the connection"
    assert "secret" not in str(refused.value)


def test_an_address_of_another_kind_is_refused() -> None:
    assert reason("ftp://server/a.mp4").startswith(
        "an address of kind ftp://, expected one of http, https, rtsp"
    )
    assert reason("file:///etc/passwd").startswith("an address of kind file://")


# Cameras and formats


def test_a_format_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert reason("x", format="nonsense") == "this build of FFmpeg reads no input format 'nonsense'"


def test_a_camera_is_opened_through_v4l2(monkeypatch: pytest.MonkeyPatch) -> None:
    import av

    real = os.stat
    camera = os.stat_result((stat.S_IFCHR | 0o600, 0, 0, 1, 0, 0, 0, 0, 0, 0), {"st_rdev": os.makedev(81, 0)})
    monkeypatch.setattr(
        os, "stat", lambda path, *a, **k: camera if path == "/dev/video77" else real(path, *a, **k)
    )
    asked = []

    def fail(*arguments: Any, **more: Any) -> None:
        asked.append((arguments[0], more["format"]))
        raise av.error.OSError(5, "Input/output error", "/dev/video77")

    monkeypatch.setattr(av, "open", fail)
    assert reason("/dev/video77") == "it cannot be read: Input/output error"
    assert asked == [("/dev/video77", "v4l2")]


# Quiet


def test_ffmpeg_says_nothing_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = clip(tmp_path / "a.mp4", map(numbered, range(50)), muxing={"movflags": "faststart"}).read_bytes()
    capfd.readouterr()
    for broken in (data[: len(data) // 2], data[:300], data.replace(b"avcC", b"xxxx")):
        taken(broken)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
