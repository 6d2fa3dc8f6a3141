"""``rt.submit``: the same as a call, without waiting; and what arrays of a GPU meet on a CPU engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vsa_rt
from vsa_rt.errors import UsageError
from vsa_rt.runtime.fused import Runtime
from vsa_rt.runtime.futures import joined


@pytest.fixture
def runtime(tiny_bundle: Path) -> Iterator[Runtime]:
    with vsa_rt.load(tiny_bundle) as opened:
        yield opened


def test_submitted_images_give_what_a_call_gives(runtime: Runtime, photographs: list[Path]) -> None:
    images = [*photographs, Path("absent.jpg"), *photographs]  # several batches, one bad item
    future = runtime.submit(images)
    found, wanted = future.result(60), runtime(images)
    assert len(found) == len(images)
    for mine, theirs in zip(found, wanted, strict=True):
        if isinstance(theirs, vsa_rt.ItemError):
            assert isinstance(mine, vsa_rt.ItemError)
            assert mine.reason == theirs.reason
        else:
            assert isinstance(mine, vsa_rt.Sentiment)
            assert mine.scores == pytest.approx(theirs.scores, abs=1e-5)


def test_nothing_submitted_is_done_at_once(runtime: Runtime) -> None:
    assert runtime.submit([]).result(0) == []


def test_many_threads_may_submit(runtime: Runtime, coffee: Path) -> None:
    futures: list[Future[Any]] = []
    lock = threading.Lock()

    def send() -> None:
        for _ in range(5):
            future = runtime.submit([coffee] * 3)
            with lock:
                futures.append(future)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results = [future.result(120) for future in futures]
    assert {len(r) for r in results} == {3}
    assert len({r.label for found in results for r in found}) == 1


def test_a_closed_runtime_takes_nothing(tiny_bundle: Path, coffee: Path) -> None:
    runtime = vsa_rt.load(tiny_bundle)
    runtime.close()
    with pytest.raises(UsageError, match="closed"):
        runtime.submit([coffee])


def test_what_was_submitted_before_the_end_is_finished(tiny_bundle: Path, coffee: Path) -> None:
    runtime = vsa_rt.load(tiny_bundle)
    future = runtime.submit([coffee] * 4)
    runtime.close()
    assert [type(r) for r in future.result(60)] == [vsa_rt.Sentiment] * 4


# Joining futures


def test_a_joined_future_waits_for_every_part() -> None:
    first: Future[list[int]] = Future()
    second: Future[list[int]] = Future()
    whole = joined([first, second])
    second.set_result([3])
    assert not whole.done()
    first.set_result([1, 2])
    assert whole.result(0) == [1, 2, 3]


def test_a_joined_future_fails_as_its_first_failed_part_once_all_have_ended() -> None:
    parts: list[Future[list[int]]] = [Future(), Future(), Future()]
    whole = joined(parts)
    parts[2].set_exception(ValueError("third"))
    parts[1].set_exception(ValueError("second"))
    assert not whole.done()
    parts[0].set_result([1])
    with pytest.raises(ValueError, match="second"):
        whole.result(0)


# Arrays of a GPU


class OnGpu:
    """An array that says that it lies on a GPU."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "|u1",
            "data": (1 << 20, False),
            "version": 3,
        }


def test_a_cpu_engine_says_that_it_takes_no_arrays_of_a_gpu(runtime: Runtime) -> None:
    tensors = {i.name: OnGpu((1, *i.shape)) for i in runtime.manifest.inputs}
    with pytest.raises(UsageError, match="arrays of the host only"):
        runtime.infer(tensors)
    with pytest.raises(UsageError, match="arrays of the host only"):
        runtime.infer_on_device(tensors)


def test_a_refused_call_keeps_no_slot(runtime: Runtime) -> None:
    """As many refusals as there are slots, and one more, and the runtime still works."""
    tensors = {i.name: OnGpu((1, *i.shape)) for i in runtime.manifest.inputs}
    for _ in range(len(runtime.session.slots) + 1):
        with pytest.raises(UsageError):
            runtime.infer(tensors)
    ready = {i.name: np.zeros((1, *i.shape), i.dtype) for i in runtime.manifest.inputs}
    assert runtime.infer(ready)


def test_an_input_that_the_graph_does_not_take_is_refused_before_anything_runs(runtime: Runtime) -> None:
    with pytest.raises(UsageError, match="no input 'picture'"):
        runtime.infer_on_device({"picture": OnGpu((1, 4))})
