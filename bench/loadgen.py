"""MLPerf LoadGen: single-stream, multi-stream, offline and server, as its rules define them.

LoadGen (Reddi et al., "MLPerf Inference Benchmark", ISCA 2020, section III) draws the samples, schedules the queries,
times them and judges the run. Its logs are kept, and its figures and its verdict are taken from them as they are.
"""

from __future__ import annotations

import importlib
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal

from vsa_rt.bench import clock
from vsa_rt.bench.intervals import series
from vsa_rt.bench.loadgen_log import figures, kept, read_detail, read_trace, verdict
from vsa_rt.bench.records.timing import Resources, Run
from vsa_rt.bench.resources import watch
from vsa_rt.errors import UsageError, needs

LoadgenScenario = Literal["single-stream", "multi-stream", "offline", "server"]
#: Runs the images of these numbers as one engine call; returns when all are done.
BatchCall = Callable[[Sequence[int]], object]

#: LoadGen's names, and the percentile that MLPerf's rules ask of each (github.com/mlcommons/inference_policies).
_SCENARIOS: dict[LoadgenScenario, tuple[str, float | None]] = {
    "single-stream": ("SingleStream", 0.90),
    "multi-stream": ("MultiStream", 0.99),
    "offline": ("Offline", None),
    "server": ("Server", 0.99),
}
#: LoadGen makes its queries beforehand, as many as fit into the time at the expected latency: half of the fastest
#: call of the warm-up gives twice as many as needed, and this floor bounds their memory.
_LEAST_MS = 0.04
#: Offline's single query must last as long as asked: that much faster than the warm-up is what it is sized for.
_OFFLINE_SLACK = 1.2
#: LoadGen's own slack on top of that (``kSlack`` in its test_settings_internal.cc).
_LOADGEN_SLACK = 1.1
#: Queries at least, where nobody says: LoadGen's early stopping estimates p90 from 64 on, bounds p99 of a server from
#: 459 and estimates p99 from 662 (github.com/mlcommons/inference_policies, "early stopping").
_LEAST_QUERIES: dict[LoadgenScenario, int] = {
    "single-stream": 100,
    "multi-stream": 662,
    "offline": 100,
    "server": 459,
}
#: Seconds after which no query is issued, at least, where nobody says.
_LIMIT_S = 120.0
#: LoadGen's logger is one per process.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class LoadgenSettings:
    """What LoadGen is asked for.

    Attributes:
        min_duration_s: How long at least.
        min_queries: Queries at least; offline: images. ``None``: as many as LoadGen's verdict needs.
        limit_s: No query is issued after that, whether or not ``min_queries`` is reached, and the run is invalid if
            it is not; four times ``min_duration_s``, at least two minutes, if not given. Offline has one query, which it cannot end.
        target_qps: Server: queries per second, needed. Offline: images per second that the size of its one query is
            computed from; ``None``: from the warm-up. The others have none.
        target_latency_ms: Server: the bound of the percentile below.
        percentile: That LoadGen judges; ``None``: 0.90 for single-stream, 0.99 for multi-stream and server.
        samples_per_query: Multi-stream: images per query.
        performance_sample_count: Images that LoadGen draws from; ``None``: all.
        qsl_seed: For which of them it draws from.
        sample_seed: For their order.
        schedule_seed: For the arrivals of server.
        warm_up: Calls before LoadGen starts; server warms every batch size that it may form.
    """

    min_duration_s: float = 5.0
    min_queries: int | None = None
    limit_s: float | None = None
    target_qps: float | None = None
    target_latency_ms: float = 100.0
    percentile: float | None = None
    samples_per_query: int = 8
    performance_sample_count: int | None = None
    qsl_seed: int = 0
    sample_seed: int = 0
    schedule_seed: int = 0
    warm_up: int = 3


def _check(scenario: str, settings: LoadgenSettings, samples: int, batch: int, streams: int) -> None:
    if scenario not in _SCENARIOS:
        raise UsageError(f"{scenario}: no scenario of LoadGen; expected one of {', '.join(_SCENARIOS)}")
    given: dict[str, float | None] = {
        **asdict(settings),
        "samples": samples,
        "batch": batch,
        "streams": streams,
    }
    for name, value in given.items():
        seed = name.endswith("_seed")
        if value is not None and not (math.isfinite(value) and (value >= 0 if seed else value > 0)):
            raise UsageError(
                f"{scenario}: {name} is {value}; expected a {'whole' if seed else 'positive'} number"
            )
    if settings.percentile is not None and settings.percentile >= 1:
        raise UsageError(
            f"{scenario}: percentile is {settings.percentile}; expected a share below 1, such as 0.99"
        )
    if settings.limit_s is not None and settings.limit_s < settings.min_duration_s:
        raise UsageError(
            f"{scenario}: limit_s {settings.limit_s} is shorter than min_duration_s {settings.min_duration_s}"
        )
    if (settings.performance_sample_count or 0) > samples:
        raise UsageError(
            f"{scenario}: performance_sample_count {settings.performance_sample_count} of {samples} images; "
            "expected at most all"
        )
    if scenario == "server" and settings.target_qps is None:
        raise UsageError("server: target_qps is missing; give the queries per second that shall arrive")


class _System:
    """LoadGen's system under test: passes queries to the engine, never raises into LoadGen, answers every query.

    Single- and multi-stream queries run on LoadGen's own thread, as there is nothing else to do meanwhile. Those of
    offline and server wait in one queue, first in, first out; every worker takes as many as wait, up to the batch.
    """

    def __init__(self, library: Any, call: BatchCall, batch: int, workers: int) -> None:
        self._library, self._call, self._batch = library, call, batch
        self._waiting: SimpleQueue[list[tuple[int, int]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._started: clock.Stopwatch | None = None
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        self.error: BaseException | None = None
        self.images = 0
        self.seconds = 0.0
        self.query_ms: list[float] = []
        for thread in self._threads:
            thread.start()

    def issue(self, queries: Sequence[Any]) -> None:
        """LoadGen's callback."""
        stopwatch = clock.Stopwatch()
        if self._started is None:
            self._started = stopwatch
        pairs = [(query.id, query.index) for query in queries]
        parts = [pairs[first : first + self._batch] for first in range(0, len(pairs), self._batch)]
        if self._threads:
            for part in parts:
                self._waiting.put(part)
            return
        responses = self._responses(pairs)
        for part in parts:
            self._run(part)
        taken = stopwatch.lap()
        self._library.QuerySamplesComplete(responses)  # at once: here LoadGen's clock stops
        self.query_ms.append(taken)
        self._count(len(pairs))

    def flush(self) -> None:
        """LoadGen's callback; nothing is held back."""

    def close(self) -> None:
        """End the workers, after what waits."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self, pairs: Sequence[tuple[int, int]]) -> None:
        if self.error is not None:  # what is left is answered unseen, so that LoadGen comes to its end
            return
        try:
            self._call([index for _, index in pairs])
        except BaseException as error:  # noqa: BLE001 - none may reach LoadGen's C++; it is raised when LoadGen has ended
            self.error = error

    def _responses(self, pairs: Sequence[tuple[int, int]]) -> list[Any]:
        return [self._library.QuerySampleResponse(identity, 0, 0) for identity, _ in pairs]

    def _count(self, images: int) -> None:
        with self._lock:
            self.images += images
            if self._started is not None:
                self.seconds = max(self.seconds, self._started.total() / 1e3)

    def _work(self) -> None:
        ended = False
        while not ended and (pairs := self._waiting.get()) is not None:
            while len(pairs) < self._batch and not ended:
                try:
                    more = self._waiting.get_nowait()
                except Empty:
                    break
                ended = more is None
                pairs = pairs + (more or [])
            responses = self._responses(pairs)
            self._run(pairs)
            self._count(len(pairs))
            self._library.QuerySamplesComplete(responses)


def _library() -> Any:
    with needs("bench"):
        return importlib.import_module("mlperf_loadgen")  # it ships no types


def require_loadgen() -> None:
    """Check that LoadGen is there.

    Raises:
        EnvironmentUnusable: It is not installed.
    """
    _library()


def _sizes(scenario: LoadgenScenario, batch: int, settings: LoadgenSettings) -> list[int]:
    """Batch sizes that the engine will see, the one that estimates are made from last."""
    if scenario == "single-stream":
        return [1]
    if scenario == "server":
        return list(range(1, batch + 1))
    if scenario == "offline":
        return [batch]
    whole, rest = divmod(settings.samples_per_query, batch)
    return ([rest] if rest else []) + ([batch] if whole else [])


def _warm(call: BatchCall, sizes: Sequence[int], samples: int, calls: int) -> float:
    """Warm every batch size; milliseconds of the fastest call of the last one."""
    fastest = math.inf
    for size in sizes:
        indices = [row % samples for row in range(size)]
        fastest = min(1e3 * clock.single(partial(call, indices)) for _ in range(calls))
    return fastest


def _test_settings(
    library: Any,
    scenario: LoadgenScenario,
    settings: LoadgenSettings,
    expected_ms: float,
    target_qps: float,
    batch: int,
) -> Any:
    """Everything that LoadGen would otherwise take from its defaults or a file."""
    name, percentile = _SCENARIOS[scenario]
    percentile = settings.percentile or percentile
    made = library.TestSettings()
    made.scenario = getattr(library.TestScenario, name)
    made.mode = library.TestMode.PerformanceOnly
    made.min_duration_ms = math.ceil(1e3 * settings.min_duration_s)
    made.max_duration_ms = math.ceil(1e3 * (settings.limit_s or _LIMIT_S))
    made.min_query_count = settings.min_queries
    made.qsl_rng_seed = settings.qsl_seed
    made.sample_index_rng_seed = settings.sample_seed
    made.schedule_rng_seed = settings.schedule_seed
    if scenario == "single-stream":
        made.single_stream_expected_latency_ns = round(1e6 * expected_ms)
        made.single_stream_target_latency_percentile = percentile
    elif scenario == "multi-stream":
        made.multi_stream_samples_per_query = settings.samples_per_query
        made.multi_stream_expected_latency_ns = round(1e6 * expected_ms)
        made.multi_stream_target_latency_percentile = percentile
    elif scenario == "offline":
        made.offline_expected_qps = target_qps
        # LoadGen's query has the larger of this and its own estimate: whole batches, of the size that is warm.
        images = max(settings.min_queries or 1, _LOADGEN_SLACK * settings.min_duration_s * target_qps)
        made.min_query_count = math.ceil(images / batch) * batch
    else:
        made.server_target_qps = target_qps
        made.server_target_latency_ns = round(1e6 * settings.target_latency_ms)
        made.server_target_latency_percentile = percentile
    return made


def _log_settings(library: Any, folder: Path, trace: bool) -> Any:
    output = library.LogOutputSettings()
    output.outdir = str(folder.resolve())
    output.copy_summary_to_stdout = output.copy_detail_to_stdout = False
    made = library.LogSettings()
    made.log_output = output
    made.enable_trace = trace
    return made


@contextmanager
def _interrupts(system: _System) -> Iterator[None]:
    """Keep Ctrl-C out of LoadGen's C++: what is left is answered unseen, then KeyboardInterrupt is raised."""
    if threading.current_thread() is not threading.main_thread():  # only there does Python raise it
        yield
        return

    def remember(*_: object) -> None:
        system.error = system.error or KeyboardInterrupt()

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _drive(library: Any, system: _System, settings: Any, logs: Any, counts: tuple[int, int]) -> Resources:
    """One test of LoadGen; what the engine raised is raised when LoadGen has ended."""
    # Under its usual name, LoadGen would obey an audit.config of whatever folder the user is in.
    audit = str(Path(logs.log_output.outdir) / "no-audit.config")
    sut = library.ConstructSUT(system.issue, system.flush)
    qsl = library.ConstructQSL(*counts, lambda _: None, lambda _: None)
    try:
        with _interrupts(system), watch() as watched:
            library.StartTestWithLogSettings(sut, qsl, settings, logs, audit)
    finally:
        library.DestroyQSL(qsl)
        library.DestroySUT(sut)
        system.close()
    if system.error is not None:
        raise system.error
    return watched.result(images=system.images)


def run_loadgen(
    scenario: LoadgenScenario,
    call: BatchCall,
    plan: str,
    feed: Literal["tensors", "images"],
    samples: int,
    settings: LoadgenSettings,
    folder: Path,
    *,
    relative_to: Path,
    batch: int = 1,
    streams: int = 1,
) -> Run:
    """One run of LoadGen, in this process, where another one waits for its end.

    Latency is per query. Single-stream and multi-stream: this harness's own clock around the query, beside which
    ``loadgen`` holds LoadGen's percentiles of the same queries (``loadgen_log.agreement`` compares them). Server: LoadGen's
    trace, because LoadGen alone knows when a query was scheduled. Offline has one query and no latency.

    Args:
        scenario: Which.
        call: Runs the images of up to ``batch`` numbers below ``samples`` as one engine call. With more than one
            stream, threads call it at the same time.
        plan: Its name in the report.
        feed: What the engine is fed.
        samples: Number of different images, all in memory.
        settings: What LoadGen is asked for.
        folder: For its logs; made if absent. Logs of an earlier run in it are replaced.
        relative_to: The report's folder, above ``folder``.
        batch: Largest batch of one call. Multi-stream's and offline's queries are split into such calls; server
            takes what waits, up to it.
        streams: Worker threads of server and offline. The others run one call at a time.

    Returns:
        The run. Its ``batch`` is the images per query; for offline, whose one query has all, those per call.

    Raises:
        EnvironmentUnusable: LoadGen is not installed, or its logs cannot be understood.
        UsageError: The settings contradict each other, or the folder cannot be used.
        BaseException: What ``call`` raised, after LoadGen has come to its end. Server's schedule runs out first.
    """
    _check(scenario, settings, samples, batch, streams)
    settings = replace(
        settings,
        min_queries=settings.min_queries or _LEAST_QUERIES[scenario],
        limit_s=settings.limit_s or max(_LIMIT_S, 4 * settings.min_duration_s),
    )
    library = _library()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("mlperf_log_*"):
            old.unlink()
    except OSError as error:
        raise UsageError(f"{folder}: LoadGen cannot log there: {error.strerror}") from error
    kept(folder, relative_to)
    queued = scenario in ("offline", "server")
    fastest = max(_LEAST_MS, _warm(call, _sizes(scenario, batch, settings), samples, settings.warm_up))
    calls = math.ceil(settings.samples_per_query / batch) if scenario == "multi-stream" else 1
    expected_ms = calls * fastest / 2
    target_qps = settings.target_qps or _OFFLINE_SLACK * streams * batch * 1e3 / fastest
    asked = _test_settings(library, scenario, settings, expected_ms, target_qps, batch)
    logs = _log_settings(library, folder, trace=scenario == "server")
    with _ONE_AT_A_TIME:
        system = _System(library, call, batch, streams if queued else 0)
        resources = _drive(
            library, system, asked, logs, (samples, settings.performance_sample_count or samples)
        )
    detail, problems = read_detail(folder / "mlperf_log_detail.txt")
    valid, reasons = verdict(detail, problems)
    latencies = (
        read_trace(folder / "mlperf_log_trace.json", system.images)
        if scenario == "server"
        else system.query_ms
    )
    per_query = {"multi-stream": settings.samples_per_query, "offline": batch}.get(scenario, 1)
    return Run(
        scenario=scenario,
        plan=plan,
        feed=feed,
        batch=per_query,
        settings={
            **asdict(settings),
            "percentile": settings.percentile or _SCENARIOS[scenario][1],
            "performance_sample_count": settings.performance_sample_count or samples,
            "target_qps": target_qps if queued else None,
            "expected_latency_ms": None if queued else expected_ms,
            "samples": samples,
            "max_batch": batch,
            "streams": streams,
            "loadgen_version": str(detail.get("loadgen_version", "")),
        },
        latency=None if scenario == "offline" else series(latencies),
        images=system.images,
        seconds=system.seconds,
        throughput=system.images / system.seconds,
        dropped=None,
        valid=valid,
        reasons=reasons,
        loadgen=figures(detail),
        logs=kept(folder, relative_to),
        resources=resources,
    )
