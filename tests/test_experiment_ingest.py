"""The measurements of ingestion: what they are made on, what they compute, and what they must notice."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from streaming import SPEC, FakeEngine

from vsa_rt.bench.experiments import ingest as script
from vsa_rt.bench.experiments import ingest_alone, ingest_bound, ingest_latency, ingest_memory, ingest_reposts
from vsa_rt.bench.experiments.ingest_alone import Spent
from vsa_rt.bench.experiments.ingest_command import Ended, Subject, Written, run, written
from vsa_rt.bench.experiments.ingest_kills import Story, disturbed, killed, points, rows, still_there
from vsa_rt.bench.experiments.ingest_material import (
    affordable,
    copies,
    damaged,
    distinct,
    feed,
    looped,
    mixture,
)
from vsa_rt.bench.experiments.ingest_memory import Look, Memory, Peaks, family, grown, peaks, until
from vsa_rt.bench.experiments.ingest_outputs import Output, differences
from vsa_rt.bench.experiments.ingest_rows import Row, line, print_rows
from vsa_rt.errors import ItemError
from vsa_rt.runtime.decode import decode
from vsa_rt.runtime.fused import Runtime
from vsa_rt.runtime.preprocess import Preprocessor
from vsa_rt.runtime.watch import Watch

#: A program without site packages begins at once.
PYTHON = (sys.executable, "-I", "-S", "-c")
SUBJECT = Subject(Path("some.bundle"), "openvino:cpu", "bf16", 8, 2)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of numbered frames, some of them coded after later ones."""
    pytest.importorskip("av", reason="PyAV is not installed")
    import clips

    path = tmp_path_factory.mktemp("clip") / "numbered.mp4"
    options = {"preset": "fast", "bf": "2", "qp": "0"}
    return clips.clip(path, map(clips.numbered, range(50)), options=options, sound=True)


# Material


def test_a_looped_clip_has_the_asked_length_and_every_frame_in_its_time(clip: Path, tmp_path: Path) -> None:
    from clips import number_of

    import vsa_rt

    seconds = looped(clip, tmp_path / "long.mp4", 5.0)
    frames = list(vsa_rt.video(tmp_path / "long.mp4", "all"))
    assert seconds == pytest.approx(6.0)
    assert [number_of(frame.pixels) for frame in frames] == [*range(50)] * 3
    assert [frame.seconds for frame in frames] == pytest.approx([n / 25 for n in range(150)])


def test_a_looped_clip_is_copied_and_not_encoded_anew(clip: Path, tmp_path: Path) -> None:
    import av

    looped(clip, tmp_path / "long.mp4", 4.0)
    packets = []
    for path in (clip, tmp_path / "long.mp4"):
        with av.open(str(path)) as source:
            packets.append([bytes(p) for p in source.demux(source.streams.video[0]) if p.size])
    assert packets[1] == packets[0] * 2


def test_a_clip_without_a_frame_cannot_be_looped(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    from clips import clip as made

    with pytest.raises(ValueError, match="no video"):
        looped(made(tmp_path / "empty.mp4", []), tmp_path / "long.mp4", 5.0)


def test_distinct_copies_differ_in_content_and_not_in_pixels(photographs: list[Path]) -> None:
    for path in photographs:
        data = path.read_bytes()
        made = [distinct(data, number) for number in range(12)]
        assert len({hashlib.sha256(one).digest() for one in [data, *made]}) == 13
        wanted = decode(data, item=path.name)
        assert all(np.array_equal(decode(one, item=path.name), wanted) for one in made[::11])


def test_copies_take_turns_and_the_same_number_gives_the_same_bytes(
    photographs: list[Path], tmp_path: Path
) -> None:
    folder = copies(photographs[:2], [0, 1, 2, 0], tmp_path / "made")
    found = sorted(folder.iterdir())
    contents = [path.read_bytes() for path in found]
    assert [path.suffix for path in found] == [photographs[n % 2].suffix for n in (0, 1, 0, 0)]
    assert contents[0] == contents[3]
    assert len(set(contents)) == 3


def test_of_photographs_that_do_not_fit_on_the_disk_the_smallest_stay(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("large", "small", "middle")]
    for path, size in zip(paths, (900, 100, 300), strict=True):
        path.write_bytes(bytes(size))
    assert affordable(paths, 10, 10_000) == paths
    assert affordable(paths, 10, 2000) == paths[1:]
    assert affordable(paths, 10, 1999) == paths[1:2]
    with pytest.raises(ValueError, match="10 copies of the smallest of 3"):
        affordable(paths, 10, 999)


@pytest.mark.parametrize("seed", range(5))
def test_a_feed_has_the_share_of_reposts_and_each_repeats_something_earlier(seed: int) -> None:
    numbers = feed(200, 0.4, seed)
    first = {number: numbers.index(number) for number in numbers}
    assert len(numbers) == 200
    assert sorted(first) == list(range(120))
    assert [n for n, _ in sorted(first.items(), key=lambda pair: pair[1])] == list(range(120))
    assert numbers != feed(200, 0.4, seed + 1)


def test_the_mixture_has_reposts_archives_videos_and_damage(
    photographs: list[Path], clip: Path, tmp_path: Path
) -> None:
    folder = mixture(photographs, {"bikes": clip}, 12, tmp_path / "mixture")
    alone = [p.read_bytes() for p in (folder / "photographs").iterdir()]
    with tarfile.open(folder / "some.tar") as tar, zipfile.ZipFile(folder / "some.zip") as packed:
        inside = [cast("Any", tar.extractfile(name)).read() for name in tar.getnames()]
        inside += [packed.read(name) for name in packed.namelist()]
    assert (len(alone), len(set(alone)), len(inside), len({*alone, *inside})) == (14, 12, 4, 16)
    assert {p.name for p in folder.iterdir()} == {
        "photographs",
        "some.tar",
        "some.zip",
        "bikes.mp4",
        "damaged",
    }


def test_damaged_files_are_damaged(photographs: list[Path], clip: Path, tmp_path: Path) -> None:
    import vsa_rt

    def read(path: Path) -> object:
        video = path.suffix in (".mp4", ".mkv")
        return list(vsa_rt.video(path, "all")) if video else decode(path, item=path.name)

    for path in damaged(photographs[0], clip, tmp_path / "damaged").iterdir():
        with pytest.raises(ItemError):
            read(path)


# The command


def test_the_processor_time_of_a_commands_children_counts() -> None:
    spin = "import time\nwhile time.process_time() < 0.3: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-I', '-S', '-c', {spin!r}])"
    ended = run([*PYTHON, parent])
    assert ended.core_seconds >= 0.3
    assert ended.seconds >= 0.3
    assert ended.code == 0


def test_a_command_that_fails_is_said_with_its_last_words() -> None:
    with pytest.raises(SystemExit, match=r"exit code 3: no bundle there"):
        run([*PYTHON, "import sys; print('no bundle there', file=sys.stderr); sys.exit(3)"])


def test_items_that_failed_are_no_failure_of_the_command() -> None:
    assert run([*PYTHON, "raise SystemExit(1)"]).code == 1


def test_the_command_line_names_the_engine_that_is_measured() -> None:
    words = SUBJECT.command([Path("a.mp4")], Path("out"), "--sample", "fps=5")
    assert words[:3] == [sys.executable, "-m", "vsa_rt"]
    text = " ".join(words[3:])
    assert text == (
        "ingest a.mp4 --bundle some.bundle -o out --target openvino:cpu --precision bf16 --sample fps=5 --json"
    )


def item(key: str, kind: str = "image", frames: int | None = None, reused: str | None = None) -> str:
    return json.dumps({"key": key, "kind": kind, "frames": frames, "reused": reused}) + "\n"


def test_what_was_written_is_counted_over_all_parts(tmp_path: Path) -> None:
    (tmp_path / "items-000001.jsonl").write_text(item("a") + item("b", reused="a"))
    (tmp_path / "items-000002.jsonl").write_text(
        item("c.mp4", "video", 7) + item("d.mp4", "video", 7, "c.mp4")
    )
    (tmp_path / "failed.jsonl").write_text(item("e"))
    assert written(tmp_path) == Written(items=4, pictures=8, reused=2, failed=1)


# The bound

ROUND = ingest_bound.Round(
    Spent(decode=10.0, resize=2.0, pictures=1000),
    engine_ms=8.0,
    cores=2,
    wall=12.0,
    start_up=1.0,
    core_seconds=22.0,
)
CASE = ingest_bound.Case("a clip", Path("clip.mp4"), sample="fps=1")


def test_the_bound_is_what_the_parts_take_on_all_cores() -> None:
    assert ROUND.needed == pytest.approx(20.0)
    assert ROUND.bound == pytest.approx(10.0)
    assert ROUND.beyond == pytest.approx(11.0)


@pytest.mark.parametrize(("wall", "held"), [(12.1, True), (12.2, False)])
def test_nine_tenths_of_the_bound_beyond_the_start_up_hold(wall: float, held: bool) -> None:
    found = list(ingest_bound.rows(CASE, [replace(ROUND, wall=wall)] * 6))
    assert found[0].held is held
    assert found[0].value == pytest.approx(10 / (wall - 1))
    assert found[1].value == pytest.approx(10 / wall)
    assert found[1].held is None


def test_a_run_that_is_mostly_start_up_is_not_judged_as_good() -> None:
    found = list(ingest_bound.rows(CASE, [replace(ROUND, wall=14.0, start_up=4.0)] * 6))
    assert found[0].value == pytest.approx(1.0)
    assert found[0].held is False
    assert "start-up 29% of the time, over 20%: cannot be judged" in found[0].note


def test_a_round_in_which_the_command_loses_a_picture_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def one_less(*_: Any, **__: Any) -> tuple[Ended, Written]:
        return Ended(12.0, 22.0, 0), Written(items=1, pictures=999, reused=0, failed=0)

    monkeypatch.setattr(ingest_alone, "host", lambda *_: ROUND.host)
    monkeypatch.setattr(ingest_alone, "engine", lambda *_: 8.0)
    monkeypatch.setattr(ingest_bound, "start_up", lambda *_: 1.0)
    monkeypatch.setattr(ingest_bound, "ingest", one_less)
    with pytest.raises(SystemExit, match="999 pictures and failed on 0; expected 1000"):
        ingest_bound.measured(SUBJECT, CASE, [tmp_path / "a.jpg"], tmp_path)


def test_decoding_alone_counts_the_frames_that_the_sample_takes(clip: Path) -> None:
    found = ingest_alone.of_video(clip, "fps=5", Preprocessor({"image": SPEC}))
    assert found.pictures == 10
    assert found.decode > 0
    assert found.resize > 0


def test_photographs_alone_are_all_decoded_and_resized(photographs: list[Path]) -> None:
    found = ingest_alone.of_photographs(photographs, Preprocessor({"image": SPEC}))
    assert found.pictures == len(photographs)
    assert found.decode > found.resize > 0


@pytest.mark.parametrize(
    ("rate", "core_seconds", "core_ms"),
    [(200.0, 20.0, 10.0), (20.0, 20.0, 20.0), (200.0, 40.0, 10.0)],
    ids=["alone", "beside others", "spinning"],
)
def test_neither_others_nor_spinning_make_the_engine_dearer(
    rate: float, core_seconds: float, core_ms: float
) -> None:
    assert ingest_alone.Window(rate, 1000, core_seconds).core_ms(2) == pytest.approx(core_ms)


def test_the_parts_alone_are_measured_in_processes_of_their_own(
    tiny_bundle: Path, photographs: list[Path]
) -> None:
    subject = replace(Subject.of(tiny_bundle), cores=2)
    found = ingest_alone.host(subject, photographs[:2])
    assert found.pictures == 2
    assert found.decode > 0
    assert 0 < ingest_alone.engine(subject, photographs[:2], seconds=0.1) < 1000


# Memory


def test_memory_of_a_grandchild_counts() -> None:
    grandchild = "import time; held = bytearray(b'x') * (96 << 20); time.sleep(1.5)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-I', '-S', '-c', {grandchild!r}])"
    memory = Memory(0.02)
    run([*PYTHON, program], watch=memory)
    found = peaks(memory.looks)
    assert found.shared_out >= 96
    assert found.resident >= 96
    assert 0 < found.mark < 96


def test_a_process_that_is_not_there_has_no_family() -> None:
    assert os.getpid() in family(os.getpid())
    assert family(2**30) == {}


def test_nothing_seen_is_an_error_and_not_a_peak() -> None:
    with pytest.raises(ValueError, match="nobody looked"):
        peaks([])


def looks(levels: Iterable[float]) -> list[Look]:
    return [Look(float(second), level, 2 * level, level / 2) for second, level in enumerate(levels)]


def test_the_first_part_of_a_run_has_its_start_up_in_it() -> None:
    seen = looks([50, 60, *[100] * 12])
    assert [one.seconds for one in until(seen, 1.0, 1 / 12)] == [0, 1, 2]


@pytest.mark.parametrize(("after", "held"), [(104.9, True), (105.1, False), (60.0, True)])
def test_a_peak_that_grows_by_more_than_a_twentieth_does_not_hold(after: float, held: bool) -> None:
    found = list(grown("a to b", peaks(looks([100, 90])), peaks(looks([after, 90])), ""))
    assert [row.held for row in found] == [held] * 3 + [None]


def test_growth_in_one_figure_alone_is_seen() -> None:
    before = Peaks(100, 200, 80, 90)
    found = list(grown("a to b", before, replace(before, mark=100), ""))
    assert [row.held for row in found[:3]] == [True, True, False]


def test_growth_below_the_peak_of_the_start_is_seen_in_the_level() -> None:
    flat, growing = looks([200, *[100] * 19]), looks([200, *range(100, 195, 5)])
    found = list(grown("a to b", peaks(flat), peaks(growing), ""))
    assert found[0].held is True
    assert found[3].value > 1.4


# Latency


class Stub:
    """Streams through an engine that only says what it was asked, and may lose the last item."""

    def __init__(self, engine: FakeEngine, loses: bool = False) -> None:
        self._engine, self._loses = engine, loses

    def stream(
        self, items: Iterable[Any], *, max_latency_ms: float, watch: Watch
    ) -> Generator[Any, None, None]:
        found = self._engine.stream(items, max_latency_ms / 1e3, watch=watch)
        yield from itertools.islice(found, 19 if self._loses else None)


@pytest.fixture
def engine() -> Iterable[FakeEngine]:
    with FakeEngine() as made:
        yield made


def test_each_items_delay_counts_from_its_own_arrival(engine: FakeEngine, photographs: list[Path]) -> None:
    engine.work = lambda: time.sleep(0.03)
    items = [path.read_bytes() for path in photographs[:2]]
    live = ingest_latency.Live(items, 5.0, 20)
    watch = Watch()
    found = ingest_latency.delays(cast(Runtime, Stub(engine)), live, watch)
    assert len(found) == len(live.arrived) == 20
    assert watch.counts().given == 20
    assert live.arrived == sorted(live.arrived)
    # The last one comes by the clock; those before it were there no later.
    assert live.arrived[-1] >= 19 * 5.0
    assert min(found) >= 30.0


def test_a_lost_item_ends_the_measurement(engine: FakeEngine, photographs: list[Path]) -> None:
    live = ingest_latency.Live([photographs[0].read_bytes()], 1.0, 20)
    with pytest.raises(SystemExit, match="20 items arrived, 19 results"):
        ingest_latency.delays(cast(Runtime, Stub(engine, loses=True)), live, Watch())


def test_an_item_that_fails_ends_the_measurement(engine: FakeEngine) -> None:
    live = ingest_latency.Live([b"no picture"], 1.0, 3)
    with pytest.raises(ItemError):
        ingest_latency.delays(cast(Runtime, Stub(engine)), live, Watch())


def test_what_an_item_takes_alone_is_not_added() -> None:
    assert ingest_latency.added([60.0, 80.0, 61.0], [10.0, 30.0]) == [50.0, 50.0, 51.0]


@pytest.mark.parametrize(("late", "held"), [(5, True), (7, False)])
def test_more_than_one_in_a_hundred_late_items_do_not_hold(late: int, held: bool) -> None:
    added = [50.0] * (600 - late) + [200.0] * late
    found = list(ingest_latency.rows(added, [10.0], 20.0, {1: 600}, 8))
    assert [row.held for row in found] == [None, held, None, None, None]
    assert found[1].asked == "under 70.0 ms"


def test_too_few_items_give_no_percentile() -> None:
    with pytest.raises(ValueError, match="100 items; p99 takes 299"):
        list(ingest_latency.rows([50.0] * 100, [10.0], 20.0, {1: 100}, 8))


# Outputs


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "undisturbed"
    folder.mkdir()
    (folder / "items-000001.jsonl").write_bytes(b'{"key":"a"}\n{"key":"b"}\n{"key":"c"}\n')
    (folder / "frames-000001.jsonl").write_bytes(b'{"key":"c","index":0}\n{"key":"c","index":1}\n')
    (folder / "failed.jsonl").write_bytes(b'{"key":"d"}\n')
    return folder


def test_the_same_lines_in_other_parts_and_another_order_are_equal(output: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "items-000001.jsonl").write_bytes(b'{"key":"c"}\n')
    (other / "items-000002.jsonl").write_bytes(b'{"key":"b"}\n{"key":"a"}\n')
    (other / "frames-000002.jsonl").write_bytes((output / "frames-000001.jsonl").read_bytes())
    (other / "failed.jsonl").write_bytes(b'{"key":"d"}\n')
    (other / "ledger.sqlite").write_bytes(b"not compared")
    assert len(Output.read(output)) == 6
    assert differences(Output.read(output), Output.read(other)) == []


@pytest.mark.parametrize(
    ("family_of", "change", "says"),
    [
        ("items-000001", lambda data: data.replace(b'{"key":"b"}\n', b""), ["items: a line is missing"]),
        ("items-000001", lambda data: data + b'{"key":"a"}\n', ["items: a line is too many"]),
        ("items-000001", lambda data: data[:-1], ["items: a line is missing", "items: a line is too many"]),
        (
            "frames-000001",
            lambda data: data.replace(b"1", b"2"),
            ["frames: a line is missing", "frames: a line"],
        ),
        ("frames-000001", lambda data: data * 3, ["frames: a line is too many 2 times"] * 2),
        ("failed", lambda data: b"", ["failed: a line is missing"]),
    ],
    ids=["missing", "twice", "cut", "a byte", "thrice", "failed"],
)
def test_every_difference_between_outputs_is_noticed(
    output: Path, family_of: str, change: Callable[[bytes], bytes], says: list[str]
) -> None:
    wanted = Output.read(output)
    path = output / f"{family_of}.jsonl"
    path.write_bytes(change(path.read_bytes()))
    found = differences(wanted, Output.read(output))
    assert len(found) == len(says)
    assert all(text.startswith(words) for text, words in zip(found, says, strict=True))


# Kills

#: Writes half, and stays; begun again, writes the rest. A forgetful one then writes everything.
TOY = """
import os, sys, time
out, forgetful = sys.argv[1], sys.argv[2] == "forgetful"
os.makedirs(out, exist_ok=True)
first = os.path.join(out, "items-000001.jsonl")
again = os.path.exists(first)
if not again:
    with open(first + ".staged", "w") as stream:
        stream.write("a\\nb\\n")
    os.rename(first + ".staged", first)
    time.sleep(60)
with open(os.path.join(out, "items-000002.jsonl"), "w") as stream:
    stream.write("a\\nb\\nc\\n" if forgetful else "c\\n")
"""
WHOLE = Output({"items": [b"a\n", b"b\n", b"c\n"], "frames": [], "failed": []})


@pytest.mark.parametrize(("kind", "wrong"), [("careful", 0), ("forgetful", 2)])
def test_a_program_that_writes_twice_what_it_had_is_found(tmp_path: Path, kind: str, wrong: int) -> None:
    out = tmp_path / "out"
    story = disturbed([*PYTHON, TOY, str(out), kind], out, itertools.repeat(0.5), WHOLE, most=50)
    assert story.kills >= 1
    assert story.parts[-1] == 1
    assert story.left == 0
    assert len(story.wrong) == wrong


def test_a_program_that_was_killed_often_enough_is_let_go_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = "import sys, time; time.sleep(0.5); open(sys.argv[1] + '/items-1.jsonl', 'w').write('a\\n')"
    out.mkdir()
    story = disturbed([*PYTHON, program, str(out)], out, itertools.repeat(0.0), WHOLE, most=3)
    assert (story.kills, story.parts) == (3, (0, 0, 0))
    assert [words[:24] for words in story.wrong] == ["items: a line is missing"] * 2


def test_a_program_that_cannot_go_on_ends_the_measurement() -> None:
    with pytest.raises(SystemExit, match="exit code 2: locked"):
        killed([*PYTHON, "import sys; print('locked', file=sys.stderr); sys.exit(2)"], 60.0)


def test_a_process_that_a_killed_program_leaves_behind_is_found() -> None:
    program = (
        "import subprocess, sys, time; "
        "subprocess.Popen([sys.executable, '-I', '-S', '-c', 'import time; time.sleep(60)']); time.sleep(60)"
    )
    end = time.monotonic() + 30
    wait = 0.2
    while len(found := killed([*PYTHON, program], wait)) < 2 and time.monotonic() < end:
        wait *= 2
    try:
        assert len(found) == 2
        assert still_there(found, 0.2) == 1
    finally:
        for pid, started in found.items():
            if family(pid).get(pid) == started:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    assert still_there(found, 10.0) == 0


def test_kills_are_spread_over_the_whole_run_and_their_seed_says_where() -> None:
    found = list(itertools.islice(points(7, 20.0), 400))
    assert found == list(itertools.islice(points(7, 20.0), 400))
    assert found[:10] != list(itertools.islice(points(8, 20.0), 10))
    assert 0 <= min(found) < 1
    assert 19 < max(found) <= 20
    assert np.mean(found) == pytest.approx(10, abs=1)


def test_one_run_that_differs_and_one_process_that_is_left_do_not_hold() -> None:
    good = Story(1, (2,), 0, ())
    assert [row.held for row in rows([good, good], 6)] == [True, None, True]
    bad = Story(2, (0, 3), 1, ("items: a line is missing",))
    found = list(rows([good, bad], 6))
    assert [row.held for row in found] == [False, None, False]
    assert (found[0].value, found[0].note) == (1, "items: a line is missing")
    assert (found[1].value, found[1].note) == (3, "2 with parts on the disk; at most 2 in a run")


# Reposts


@pytest.mark.parametrize(("repeating", "held"), [(20.9, True), (21.1, False)])
def test_reposts_hold_from_one_and_a_half_times_the_throughput_on(repeating: float, held: bool) -> None:
    rounds = [ingest_reposts.Round(plain=31.0, repeating=repeating, start_up=1.0)] * 6
    found = list(ingest_reposts.rows(rounds, 3000))
    assert found[0].value == pytest.approx(30 / (repeating - 1))
    assert found[0].held is held
    assert found[1].value == pytest.approx(31 / repeating)
    assert found[1].held is None


def test_reposts_that_the_command_did_not_find_are_no_measurement(
    photographs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_found(*_: Any, **__: Any) -> tuple[Ended, Written]:
        return Ended(9.0, 9.0, 0), Written(items=10, pictures=10, reused=0, failed=0)

    monkeypatch.setattr(ingest_reposts, "start_up", lambda *_: 1.0)
    monkeypatch.setattr(ingest_reposts, "ingest", none_found)
    with pytest.raises(
        SystemExit, match="repeating: 10 results, 0 of them reused, 0 failed; expected 10 and 4"
    ):
        list(ingest_reposts.reposts(SUBJECT, photographs, tmp_path, 1, 10))


# The script


def test_whatever_does_not_hold_is_said_and_returned(capsys: pytest.CaptureFixture[str]) -> None:
    good = Row("good", 1.0, "x", asked="at least 0.9", held=True)
    bad = Row("bad", 0.8, "x", 0.7, 0.9, "at least 0.9", False, "6 rounds")
    plain = Row("plain", 3.0, "s")
    assert print_rows([good, plain], "here", as_json=False) is True
    assert print_rows([good, bad, plain], "here", as_json=True) is False
    document = json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))
    assert [row["held"] for row in document["rows"]] == [True, False, None]
    assert "0.800 x" in line(bad)
    assert "asked at least 0.9: NOT HELD; 6 rounds" in line(bad)


def test_only_the_parts_that_were_named_are_measured_and_their_folders_removed(tmp_path: Path) -> None:
    seen: list[Path] = []

    def part(work: Path) -> Iterable[Row]:
        seen.append(work)
        assert work.is_dir()
        (work / "left").write_bytes(b"over")
        yield Row(work.name, 1.0, "")

    found = script.parts(SUBJECT, [], script.parser().parse_args(["b", "p"]))
    assert tuple(found) == script.PARTS
    chosen = cast("dict[str, script.Part]", dict.fromkeys(script.PARTS, part))
    found_rows = list(script.measured(chosen, ["kills", "bound"], tmp_path))
    names = [row.what.split("-")[2] for row in found_rows if row.unit != "cores"]
    assert names == ["bound", "kills"]
    assert not any(path.exists() for path in seen)


def test_a_part_that_raises_leaves_no_folder(tmp_path: Path) -> None:
    def part(work: Path) -> Iterable[Row]:
        raise SystemExit("no more")

    with pytest.raises(SystemExit):
        list(script.measured({"memory": cast("script.Part", part)}, ["memory"], tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_memory_that_cannot_be_read_is_not_a_flat_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_memory, "_kib", lambda path, names: [0] * len(names))
    memory = Memory(0.01)
    with memory(os.getpid()):
        time.sleep(0.05)
    with pytest.raises(ValueError, match="nobody looked"):
        peaks(memory.looks)
