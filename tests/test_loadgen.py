"""LoadGen's scenarios over calls of a known length: what reaches the engine, and what the record says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from vsa_rt.bench import clock
from vsa_rt.bench.loadgen import LoadgenScenario, LoadgenSettings, run_loadgen
from vsa_rt.bench.loadgen_log import agreement, read_detail, read_trace, verdict
from vsa_rt.bench.records.timing import Run
from vsa_rt.errors import EnvironmentUnusable, UsageError

pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")

SCENARIOS: list[LoadgenScenario] = ["single-stream", "multi-stream", "offline", "server"]


class Engine:
    """Spins a known time per call and remembers what it was called with."""

    def __init__(self, ms: float, fails_at: int | None = None) -> None:
        self.ms = ms
        self.fails_at = fails_at
        self.calls: list[list[int]] = []
        self.threads: set[int] = set()

    def __call__(self, indices: Sequence[int]) -> None:
        self.calls.append(list(indices))
        self.threads.add(threading.get_ident())
        if self.fails_at is not None and len(self.calls) >= self.fails_at:
            raise ZeroDivisionError("planted")
        clock.spin(self.ms)


@pytest.fixture
def drive(tmp_path: Path) -> Callable[..., Run]:
    """A short run; ``settings`` as keywords, beside those of ``run_loadgen``."""

    def driven(
        scenario: LoadgenScenario,
        call: Engine,
        batch: int = 1,
        streams: int = 1,
        samples: int = 16,
        **settings: Any,
    ) -> Run:
        asked: dict[str, Any] = {
            "min_duration_s": 0.3,
            "min_queries": 10,
            "limit_s": 60.0,
            "target_qps": None,
        }
        return run_loadgen(
            scenario,
            call,
            "fake",
            "tensors",
            samples,
            LoadgenSettings(**{**asked, **settings}),
            tmp_path / "report" / "loadgen" / scenario,
            relative_to=tmp_path / "report",
            batch=batch,
            streams=streams,
        )

    return driven


def detail(tmp_path: Path, scenario: str) -> dict[str, Any]:
    return read_detail(tmp_path / "report" / "loadgen" / scenario / "mlperf_log_detail.txt")[0]


def test_single_stream_sends_one_image_at_a_time_and_draws_from_all(drive: Callable[..., Run]) -> None:
    engine = Engine(2)
    run = drive("single-stream", engine, samples=5, min_queries=100, warm_up=2)
    assert run.latency is not None
    assert {len(call) for call in engine.calls} == {1}
    assert {call[0] for call in engine.calls[2:]} == set(range(5))
    assert (
        run.images == len(engine.calls) - 2 == len(run.latency.samples) == run.loadgen["result_query_count"]
    )
    assert run.images >= 100
    assert all(sample >= 2 for sample in run.latency.samples)
    assert run.seconds >= 0.3
    assert run.throughput == pytest.approx(run.images / run.seconds)
    assert (run.scenario, run.batch, run.feed, run.dropped) == ("single-stream", 1, "tensors", None)
    assert (run.valid, run.reasons) == (True, [])
    assert engine.threads == {threading.get_ident()}
    assert msgspec.json.decode(msgspec.json.encode(run), type=Run) == run


@pytest.mark.parametrize(("scenario", "batch"), [("single-stream", 1), ("multi-stream", 4)])
def test_our_clock_and_loadgens_agree_on_the_same_queries(
    drive: Callable[..., Run], scenario: LoadgenScenario, batch: int
) -> None:
    """Our times lie within LoadGen's, and the queries that nobody disturbed differ by next to nothing.

    A busy machine can interrupt a query between both clocks: of all queries the quickest is compared.
    """
    run = drive(scenario, Engine(5), batch=batch, samples_per_query=8)
    found = agreement(run)
    assert set(found) == {0.5, 0.99}
    assert all(value <= 1e-6 for value in found.values())
    name = "query_latency" if scenario == "multi-stream" else "latency"
    assert run.latency is not None
    assert min(run.latency.samples) == pytest.approx(run.loadgen[f"result_min_{name}_ns"] / 1e6, rel=0.05)
    assert min(run.latency.samples) >= 5 * len(range(0, run.batch, batch))
    with pytest.raises(UsageError, match=r"take 0\.5"):
        agreement(run, [0.75])


def test_a_clock_that_is_off_is_seen_in_the_agreement(drive: Callable[..., Run]) -> None:
    """Planted: our samples made 3 % longer than they were."""
    run = drive("single-stream", Engine(2))
    assert run.latency is not None
    longer = msgspec.structs.replace(run.latency, samples=[1.03 * s for s in run.latency.samples])
    off = msgspec.structs.replace(run, latency=longer)
    assert agreement(off)[0.5] - agreement(run)[0.5] == pytest.approx(0.03, abs=0.002)


def test_multi_stream_splits_a_query_into_calls_of_at_most_the_batch(drive: Callable[..., Run]) -> None:
    engine = Engine(1)
    run = drive("multi-stream", engine, batch=3, samples_per_query=8, warm_up=1)
    assert run.latency is not None
    sizes = [len(call) for call in engine.calls]
    assert sizes[:2] == [2, 3]  # the warm-up: every size that comes
    assert sizes[2:] == [3, 3, 2] * len(run.latency.samples)
    assert run.images == 8 * len(run.latency.samples)
    assert run.batch == 8
    assert all(sample >= 3 for sample in run.latency.samples)
    # 99th percentile: LoadGen wants far more queries than this short run has, and says so.
    assert not run.valid
    assert run.reasons[0].startswith("LoadGen's early stopping: Only processed")


@pytest.mark.parametrize("streams", [1, 2])
def test_offline_runs_whole_batches_and_has_no_latency(drive: Callable[..., Run], streams: int) -> None:
    engine = Engine(4)
    run = drive("offline", engine, batch=4, streams=streams, samples=10, min_queries=50, target_qps=300)
    assert {len(call) for call in engine.calls} == {4}
    assert (
        run.images == 4 * (len(engine.calls) - 3) == 100
    )  # 300 a second for 0.3 s, and LoadGen's 10 %, rounded up
    assert run.latency is None
    assert run.batch == 4
    assert run.throughput == pytest.approx(run.images / run.seconds)
    # Our time lies within LoadGen's, which rounds to six digits.
    assert run.throughput is not None
    assert run.throughput >= 0.9999 * run.loadgen["result_samples_per_second"]
    assert {i for call in engine.calls for i in call} == set(range(10))
    if streams == 1:
        assert engine.calls[3] != [0, 1, 2, 3]  # LoadGen's order, not the warm-up's
    assert 1 < len(engine.threads) <= 1 + streams  # the warm-up's and the workers'


def test_offline_sizes_its_query_by_the_warm_up_where_no_rate_is_given(drive: Callable[..., Run]) -> None:
    """A call of 4 ms cannot do more than 1000 images of batch 4 a second; the estimate stays below its slack."""
    run = drive("offline", Engine(4), batch=4)
    asked = run.settings["target_qps"]
    assert isinstance(asked, float)
    assert 0 < asked <= 1.2 * 1000
    assert run.images >= 0.3 * asked


def test_server_latency_counts_from_the_scheduled_time(drive: Callable[..., Run], tmp_path: Path) -> None:
    """300 queries a second at 5 ms each: a third more than fits, so that the queue grows to the end."""
    run = drive("server", Engine(5), target_qps=300, target_latency_ms=20, min_queries=120)
    assert run.latency is not None
    assert all(sample >= 5 for sample in run.latency.samples)
    assert max(run.latency.samples) > 50
    assert not run.valid
    assert any("Reduce target QPS" in reason for reason in run.reasons)
    assert run.loadgen["result_overlatency_query_count"] > 0
    # The samples are those that LoadGen's own percentiles are made of.
    ordered = sorted(run.latency.samples)
    for share in (0.5, 0.9, 0.99):
        theirs = run.loadgen[f"result_{100 * share:.2f}_percentile_latency_ns"] / 1e6
        assert ordered[int(share * len(ordered))] == pytest.approx(theirs, abs=1e-6)
    with pytest.raises(UsageError, match="both clocks"):
        agreement(run)


def test_the_same_seed_gives_the_same_arrivals_and_another_seed_others(drive: Callable[..., Run]) -> None:
    def scheduled(seed: int) -> float:
        run = drive("server", Engine(0.1), target_qps=200, schedule_seed=seed, min_queries=40)
        assert run.settings["schedule_seed"] == seed
        return run.loadgen["result_scheduled_samples_per_sec"]

    assert scheduled(1) == scheduled(1) != scheduled(2)


def test_server_batches_what_waits_and_every_batch_size_is_warm(drive: Callable[..., Run]) -> None:
    engine = Engine(20)
    run = drive("server", engine, batch=4, target_qps=300, min_queries=60, warm_up=1)
    sizes = [len(call) for call in engine.calls]
    assert sizes[:4] == [1, 2, 3, 4]
    assert max(sizes[4:]) == 4
    assert sum(sizes[4:]) == run.images
    assert run.settings["max_batch"] == 4
    assert run.batch == 1


def test_server_answers_in_the_order_of_arrival(drive: Callable[..., Run]) -> None:
    """One worker, one queue: while it grows, every later query waits longer than twenty before it."""
    run = drive("server", Engine(10), target_qps=400, min_queries=80)
    assert run.latency is not None
    samples = run.latency.samples
    assert all(later > earlier for earlier, later in zip(samples, samples[20:], strict=False))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_engine_that_fails_ends_the_run_with_its_own_error(
    drive: Callable[..., Run], scenario: LoadgenScenario
) -> None:
    engine = Engine(1, fails_at=8)
    with pytest.raises(ZeroDivisionError, match="planted"):
        drive(scenario, engine, target_qps=100, warm_up=1)
    assert len(engine.calls) == 8  # nothing was run after it
    again = drive(scenario, Engine(1), target_qps=100)  # and LoadGen can be used again
    assert again.images > 0


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_an_interrupt_ends_the_run_and_reaches_the_caller(drive: Callable[..., Run]) -> None:
    class Interrupted(Engine):
        def __call__(self, indices: Sequence[int]) -> None:
            super().__call__(indices)
            if len(self.calls) == 6:
                os.kill(os.getpid(), signal.SIGINT)

    engine = Interrupted(1)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        drive("single-stream", engine, warm_up=1)
    assert len(engine.calls) < 100
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_logs_and_settings_are_kept(
    drive: Callable[..., Run], tmp_path: Path, scenario: LoadgenScenario
) -> None:
    run = drive(scenario, Engine(1), target_qps=150, sample_seed=7)
    names = {Path(log).name for log in run.logs}
    assert {"mlperf_log_summary.txt", "mlperf_log_detail.txt"} <= names
    assert ("mlperf_log_trace.json" in names) == (scenario == "server")
    for log in run.logs:
        assert log.startswith(f"loadgen/{scenario}/")
        assert (tmp_path / "report" / log).stat().st_size > 0
    logged = detail(tmp_path, scenario)
    assert logged["requested_sample_index_rng_seed"] == run.settings["sample_seed"] == 7
    assert logged["requested_min_duration_ms"] == 300
    assert logged["loadgen_version"] == run.settings["loadgen_version"]
    assert run.loadgen["result_query_count"] == logged["result_query_count"]
    assert all(isinstance(value, float) for value in run.loadgen.values())
    assert "result_min_duration_met" not in run.loadgen
    if scenario == "single-stream":
        assert logged["effective_target_latency_percentile"] == run.settings["percentile"] == 0.9


def test_a_run_that_is_cut_off_is_invalid(drive: Callable[..., Run]) -> None:
    run = drive("single-stream", Engine(20), min_queries=10_000, min_duration_s=0.1, limit_s=0.2)
    assert run.images < 10_000
    assert not run.valid
    assert any("Max test duration reached" in reason for reason in run.reasons)
    assert any("before enough queries were issued" in reason for reason in run.reasons)


def test_an_audit_config_in_the_users_folder_changes_nothing(
    drive: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "audit.config").write_text("*.*.min_query_count = 3000\n*.*.min_duration = 1\n")
    monkeypatch.chdir(tmp_path)
    drive("single-stream", Engine(1), min_queries=20)
    assert detail(tmp_path, "single-stream")["effective_min_query_count"] == 20


def test_nothing_is_printed(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from vsa_rt.bench.loadgen import LoadgenSettings, run_loadgen
root = Path(sys.argv[1])
for name in ("single-stream", "multi-stream", "offline", "server"):
    settings = LoadgenSettings(min_duration_s=0.05, min_queries=5, target_qps=100.0)
    run_loadgen(name, lambda indices: None, "p", "tensors", 4, settings, root / name, relative_to=root, batch=2)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(SCENARIOS)


def test_a_missing_loadgen_is_named(drive: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(
        EnvironmentUnusable, match=r"mlperf_loadgen is not installed; pip install 'vsa-rt\[bench\]'"
    ):
        drive("single-stream", Engine(1))


@pytest.mark.parametrize(
    ("scenario", "wrong", "match"),
    [
        ("server", {}, "target_qps is missing"),
        ("server", {"target_qps": 0.0}, "target_qps is 0"),
        ("server", {"target_qps": 10.0, "schedule_seed": -1}, "schedule_seed is -1"),
        ("single-stream", {"min_queries": 0}, "min_queries is 0"),
        ("single-stream", {"min_duration_s": float("nan")}, "min_duration_s is nan"),
        ("single-stream", {"percentile": 99}, "share below 1"),
        ("single-stream", {"limit_s": 0.1}, "is shorter"),
        ("single-stream", {"performance_sample_count": 17}, "17 of 16 images"),
        ("single-stream", {"samples": 0}, "samples is 0"),
        ("offline", {"batch": 0}, "batch is 0"),
        ("offline", {"streams": 0}, "streams is 0"),
        ("closed", {}, "expected one of single-stream, multi-stream, offline, server"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    drive: Callable[..., Run], scenario: Any, wrong: dict[str, Any], match: str
) -> None:
    engine = Engine(1)
    with pytest.raises(UsageError, match=match):
        drive(scenario, engine, **wrong)
    assert engine.calls == []


def test_logs_outside_the_report_are_refused(tmp_path: Path) -> None:
    engine = Engine(1)
    for folder, match in (
        (tmp_path / "a", "below the report"),
        (tmp_path / "b" / "file" / "x", "cannot log"),
    ):
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / "file").touch()
        with pytest.raises(UsageError, match=match):
            run_loadgen(
                "single-stream",
                engine,
                "fake",
                "tensors",
                4,
                LoadgenSettings(),
                folder,
                relative_to=tmp_path / "b",
            )
    assert engine.calls == []


# LoadGen's logs


def entry(key: str, value: object, is_error: bool = False) -> str:
    line = {"key": key, "value": value, "metadata": {"is_error": is_error, "is_warning": False}}
    return ":::MLLOG " + json.dumps(line) + "\n"


def test_an_error_in_the_log_makes_the_run_invalid_whatever_the_result_says(tmp_path: Path) -> None:
    log = tmp_path / "detail.txt"
    log.write_text(entry("result_validity", "VALID") + entry("error_runtime", "planted", is_error=True))
    values, problems = read_detail(log)
    assert verdict(values, problems) == (False, ["LoadGen: error_runtime: planted"])


def test_an_invalid_result_always_has_a_reason() -> None:
    assert verdict({"result_validity": "VALID"}, []) == (True, [])
    valid, reasons = verdict({"result_validity": "INVALID", "result_invalid_reason": " "}, [])
    assert not valid
    assert reasons == ["LoadGen: INVALID, without a reason; see its summary"]


@pytest.mark.parametrize("text", [None, "", ":::MLLOG {broken\n", ":::MLLOG {}\n", entry("result_qps", 1)])
def test_a_detail_log_that_says_nothing_is_refused(tmp_path: Path, text: str | None) -> None:
    log = tmp_path / "detail.txt"
    if text is not None:
        log.write_text(text)
    with pytest.raises(EnvironmentUnusable, match=r"detail\.txt"):
        read_detail(log)


def test_a_trace_in_which_samples_are_missing_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "trace.json"
    line = '{"name":"Sample","cat":"default","ph":"b","args":{"sample_seq":%d,"query_seq":0,"complete_ns":%d}},\n'
    log.write_text(line % (1, 7_000_000) + line % (0, 5_000_000))
    assert read_trace(log, 2) == [5.0, 7.0]
    with pytest.raises(EnvironmentUnusable, match="2 samples in LoadGen's trace; expected 3"):
        read_trace(log, 3)
    with pytest.raises(EnvironmentUnusable, match="cannot be read"):
        read_trace(tmp_path / "absent.json", 1)
