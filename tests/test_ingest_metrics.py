"""A running ingestion as Prometheus sees it."""

from __future__ import annotations

import builtins
import re
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from vsa_rt.errors import EnvironmentUnusable, UsageError
from vsa_rt.pipeline.ingest.metrics import PREFIX, serve
from vsa_rt.pipeline.ingest.tally import Tally
from vsa_rt.runtime.watch import Depths

pytest.importorskip("prometheus_client", reason="prometheus-client is not installed: vsa-rt[ingest]")

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Stream:
    def depths(self) -> Depths:
        return Depths(1, 2, 3, 4)


def page(port: int, accept: str = "") -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - our own address
        return str(answer.read().decode())


def scrape(port: int) -> tuple[Series, dict[str, str], dict[str, str]]:
    """Values, types and helps by the library's own parser."""
    from prometheus_client.parser import text_string_to_metric_families

    families = list(text_string_to_metric_families(page(port)))
    values = {
        (sample.name.removeprefix(PREFIX), tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }
    return values, {f.name: f.type for f in families}, {f.name: f.documentation for f in families}


def of_label(values: Series, name: str, label: str) -> dict[str, float]:
    return {dict(labels)[label]: value for (found, labels), value in values.items() if found == name}


def running() -> Tally:
    tally = Tally()
    tally.before = 7
    tally.watch.follow(Stream())
    tally.opening, tally.decoding = (lambda: 8), (lambda: 9)
    for event, number in {
        "found": 20, "images": 4, "videos": 2, "feeds": 1, "reused": 3, "failed": 5, "frames": 50, "bytes": 1000,
        "dropped": 6,
    }.items():  # fmt: skip
        tally.add(event, number)  # type: ignore[arg-type] # an event each
    tally.decoded(2.5)
    tally.current = "secret/name.jpg"
    return tally


def test_a_scrape_has_every_number_of_the_tally() -> None:
    with serve(running(), 0) as port:
        values, _, _ = scrape(port)
    plain = {name: value for (name, labels), value in values.items() if not labels}
    assert plain.pop("start_time_seconds") > 1.6e9
    assert plain == {
        "items_before": 7, "items_found_total": 20, "items_reused_total": 3, "items_failed_total": 5,
        "frames_total": 50, "frames_dropped_total": 6, "read_bytes_total": 1000,
    }  # fmt: skip
    assert of_label(values, "items_done_total", "kind") == {"image": 4, "video": 2, "feed": 1}
    assert of_label(values, "stage_seconds_total", "stage") == {"decode": 2.5, "resize": 0, "engine": 0}
    assert of_label(values, "queued_items", "queue") == {"open": 8, "decode": 9}
    assert of_label(values, "queued_frames", "queue") == {"prepare": 1, "batch": 2, "engine": 3, "result": 4}


def test_names_keep_to_the_conventions_and_each_has_a_help() -> None:
    with serve(running(), 0) as port:
        values, types, helps = scrape(port)
    assert types
    for name, kind in types.items():
        assert re.fullmatch(rf"{PREFIX}[a-z]+(_[a-z]+)*", name)
        assert helps[name].endswith(".")
        assert kind in ("counter", "gauge")
    for name, _ in values:
        kind = types[PREFIX + name.removesuffix("_total")]
        assert (kind == "counter") == name.endswith("_total")
        assert not re.search("milli|_ms|minutes|_mb|percent", name)


def test_no_name_of_an_item_leaves_the_process() -> None:
    with serve(running(), 0) as port:
        assert "secret" not in page(port)


def test_the_newer_format_is_served_to_who_asks_for_it() -> None:
    from prometheus_client.openmetrics import parser

    parse: Callable[[str], Iterable[Any]] = parser.text_string_to_metric_families
    with serve(running(), 0) as port:
        text = page(port, "application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")
    assert f"{PREFIX}frames" in {family.name for family in parse(text)}


def test_counters_never_go_down_while_threads_count() -> None:
    tally = Tally()
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            tally.add("found")
            tally.add("images")
            tally.add("frames", 3)
            tally.decoded(0.001)
            with tally.watch.timed("engine"):
                pass

    threads = [threading.Thread(target=work) for _ in range(2)]
    before: Series = {}
    with serve(tally, 0) as port:
        for thread in threads:
            thread.start()
        try:
            for _ in range(8):
                now = {key: v for key, v in scrape(port)[0].items() if key[0].endswith("_total")}
                assert all(now[key] >= value for key, value in before.items())
                before = now
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        last = scrape(port)[0]
    assert last[("frames_total", ())] == tally.numbers().frames > 0


def test_two_runs_in_one_process_do_not_mix() -> None:
    one, other = Tally(), Tally()
    one.add("frames", 1)
    other.add("frames", 2)
    with serve(one, 0) as first, serve(other, 0) as second:
        assert scrape(first)[0][("frames_total", ())] == 1
        assert scrape(second)[0][("frames_total", ())] == 2


def test_the_port_is_free_again_and_no_thread_is_left() -> None:
    threads = set(threading.enumerate())
    with serve(Tally(), 0) as port:
        page(port)
    with serve(Tally(), port) as again:
        assert again == port
        page(again)
    listening = {t for t in threading.enumerate() if t.is_alive()} - threads
    assert not [t for t in listening if "serve_forever" in t.name]
    with pytest.raises(OSError, match="refused"):
        page(port)


def test_the_port_is_free_again_after_an_error() -> None:
    ports = []

    def fail() -> None:
        with serve(Tally(), 0) as port:
            ports.append(port)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with serve(Tally(), ports[0]) as again:
        assert again == ports[0]


def test_a_taken_port_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(UsageError, match=rf"metrics port {port} on 127\.0\.0\.1: .*in use.*name another"),
            serve(Tally(), port),
        ):
            pass


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(UsageError, match=rf"{port}: expected 1 to 65535"), serve(Tally(), port):
        pass


def test_an_address_of_another_machine_is_refused() -> None:
    # 192.0.2.0/24 is kept for documentation (RFC 5737): no machine has it.
    with pytest.raises(UsageError, match=r"on 192\.0\.2\.1"), serve(Tally(), 0, "192.0.2.1"):
        pass


def test_only_this_machine_can_ask() -> None:
    with serve(Tally(), 0) as port, socket.socket() as other:
        # A listener on all addresses would have this one, too.
        other.bind(("127.0.0.2", port))


def test_a_missing_library_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("prometheus_client"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EnvironmentUnusable, match=r"vsa-rt\[ingest\]"), serve(Tally(), 0):
        pass
