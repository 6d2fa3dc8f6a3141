"""Numbers of a run for Prometheus, served over HTTP on this machine.

Names follow https://prometheus.io/docs/practices/naming/: base units, ``_total`` behind what only grows, and the values of
one name add up to something that means something.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vsa_rt.errors import UsageError, needs
from vsa_rt.pipeline.ingest.tally import Numbers, Tally
from vsa_rt.version import __version__

if TYPE_CHECKING:
    from prometheus_client import Metric

#: Begins every name.
PREFIX = "vsa_rt_ingest_"
#: Who may ask: this machine alone.
HOST = "127.0.0.1"


@contextmanager
def serve(tally: Tally, port: int, host: str = HOST) -> Iterator[int]:
    """Serve a run's numbers on ``http://127.0.0.1:PORT/metrics`` until the block ends.

    Every scrape reads the tally; between scrapes nothing is done. There is no password: whoever reaches the address can
    read the numbers, which name no item.

    Args:
        tally: Of the run.
        port: Where to listen; 0 takes a free one.
        host: Address to listen on.

    Yields:
        The port.

    Raises:
        UsageError: The port is taken, not allowed or none; or the address is not of this machine.
        EnvironmentUnusable: prometheus-client is not installed.
    """
    with needs("ingest"):
        from prometheus_client import CollectorRegistry, start_http_server

    if not 0 <= port <= 65535:
        raise UsageError(f"metrics port {port}: expected 1 to 65535, or 0 for a free one")
    registry = CollectorRegistry()
    registry.register(_Reader(tally))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise UsageError(
            f"metrics port {port} on {host}: {error.strerror or error}; name another one, or 0 for a free one"
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Reader:
    """Gives a tally's numbers at each scrape."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._began = time.time() - tally.numbers().seconds

    def collect(self) -> Iterable[Metric]:
        """The numbers now."""
        return _families(self._tally.numbers(), self._began)


def _families(numbers: Numbers, began: float) -> Iterator[Metric]:
    """Every metric, with its help.

    Args:
        numbers: Of the run.
        began: When it began, in seconds since 1970.
    """
    yield _gauge("build_info", "The version of vsa-rt; always 1.", {__version__: 1}, "version")
    yield _gauge("start_time_seconds", "When the run began, in seconds since 1970.", began)
    yield _gauge(
        "items_before",
        "Items that earlier runs into the same folder had finished, failed ones too.",
        numbers.before,
    )
    yield _counter("items_found", "Items that the sources gave.", numbers.found)
    kinds = {"image": numbers.images, "video": numbers.videos, "feed": numbers.feeds}
    yield _counter(
        "items_done",
        "Items that have a result, computed or reused; of a feed every window is one.",
        kinds,
        "kind",
    )
    yield _counter(
        "items_reused", "Items among those done that took the result of an earlier one.", numbers.reused
    )
    yield _counter("items_failed", "Items that came to an end without a result.", numbers.failed)
    yield _counter("frames", "Images and frames that the engine answered.", numbers.frames)
    yield _counter("frames_dropped", "Frames of feeds for which there was no time.", numbers.dropped)
    yield _counter("read_bytes", "Bytes of the items that were read.", numbers.nbytes)
    stages = {
        "decode": numbers.decode_seconds,
        "resize": numbers.resize_seconds,
        "engine": numbers.engine_seconds,
    }
    yield _counter(
        "stage_seconds",
        "Time in each stage: processor time of the decoders; wall clock of resizing, summed over threads; wall clock of "
        "the engine, summed over its calls.",
        stages,
        "stage",
    )
    items = {"open": numbers.opening, "decode": numbers.decoding}
    yield _gauge("queued_items", "Items that wait for a stage or are in it.", items, "queue")
    way = numbers.stream
    frames = {"prepare": way.unprepared, "batch": way.ready, "engine": way.running, "result": way.unread}
    yield _gauge(
        "queued_frames",
        "Images and frames that are being resized, wait for their batch, are with the engine, or wait for an earlier "
        "result.",
        frames,
        "queue",
    )


def _counter(name: str, text: str, value: float | Mapping[str, float], label: str = "") -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(PREFIX + name, text, labels=[label] if label else [])
    for values, one in _values(value):
        family.add_metric(values, one)
    return family


def _gauge(name: str, text: str, value: float | Mapping[str, float], label: str = "") -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(PREFIX + name, text, labels=[label] if label else [])
    for values, one in _values(value):
        family.add_metric(values, one)
    return family


def _values(value: float | Mapping[str, float]) -> list[tuple[list[str], float]]:
    """Values of the label, if there is one, and the number of each."""
    return [([name], one) for name, one in value.items()] if isinstance(value, Mapping) else [([], value)]
