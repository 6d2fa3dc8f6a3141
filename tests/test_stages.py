"""The time split: each stage gets its own time and no other's, and the whole is what users call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import vsa_rt
from vsa_rt.bench import clock
from vsa_rt.bench.records.timing import Split, Stage, StageTime
from vsa_rt.bench.stages import split
from vsa_rt.bench.workload import Workload, from_photographs
from vsa_rt.errors import ItemError, UsageError
from vsa_rt.runtime.fused import Runtime
from vsa_rt.runtime.preprocess import Preprocessor

PLAN = "openvino:cpu fp32"
#: Milliseconds that a stage takes per image on a clock that only they move; the last three take theirs per call.
TAKES: dict[str, int] = {"decode": 3, "resize": 5, "copy-in": 7, "compute": 11, "post": 2}


def opened(root: Path) -> Runtime:
    pytest.importorskip("openvino", reason="the stages are those of OpenVINO's engine")
    return vsa_rt.load(root, target="openvino:cpu", precision="fp32")


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path) -> Iterator[Runtime]:
    with opened(tiny_bundle) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def wired(wired_bundle: Path) -> Iterator[Runtime]:
    with opened(wired_bundle) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def photographs_of_tiny(tiny: Runtime, toy_data: Path) -> Workload:
    return from_photographs(tiny.manifest, sorted(toy_data.rglob("*.png"))[:3], "toy")


@pytest.fixture(scope="module")
def photographs_of_wired(wired: Runtime, wired_data: Path) -> Workload:
    return from_photographs(wired.manifest, sorted(wired_data.rglob("*.png"))[:3], "wired")


def by_stage(found: Split) -> dict[str, StageTime]:
    return {s.stage: s for s in found.stages}


@pytest.mark.parametrize("batch", [1, 3])
def test_every_stage_has_a_series_in_the_order_of_the_data(
    tiny: Runtime, photographs_of_tiny: Workload, batch: int
) -> None:
    found = split(tiny, PLAN, batch, photographs_of_tiny.sources, 0.05)
    assert (found.plan, found.batch, found.images) == (PLAN, batch, 3)
    assert tuple(s.stage for s in found.stages) == get_args(Stage)
    calls = len(found.whole.samples)
    assert calls >= 1
    for stage in found.stages:
        if stage.stage == "copy-in":
            assert (stage.series, stage.note) == (None, "nothing to do here")
        else:
            assert stage.series is not None
            assert len(stage.series.samples) == calls
            assert min(stage.series.samples) > 0
            assert stage.note
    assert min(found.whole.samples) > 0


def test_ready_tensors_beside_the_image_are_what_is_copied_in(
    wired: Runtime, photographs_of_wired: Workload
) -> None:
    found = by_stage(split(wired, PLAN, 2, photographs_of_wired.sources, 0.05))
    copied = found["copy-in"]
    assert copied.series is not None
    assert min(copied.series.samples) > 0
    assert "ready tensors" in copied.note
    assert all(stage.series is not None for stage in found.values())


# On a clock that only the stages move


class VirtualTime:
    """What is measured on it no other process disturbs."""

    def __init__(self) -> None:
        self.ns = 0

    def perf_counter_ns(self) -> int:
        return self.ns


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch, tiny: Runtime, wired: Runtime) -> VirtualTime:
    """Every part of the runtime takes its milliseconds of ``TAKES`` on the clock, and does its work as before."""
    time = VirtualTime()
    monkeypatch.setattr(clock, "time", time)

    def slowed(owner: Any, name: str, stage: str) -> None:
        done: Callable[..., Any] = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            time.ns += TAKES[stage] * 1_000_000
            return done(*arguments, **named)

        monkeypatch.setattr(owner, name, call)

    slowed(Preprocessor, "decode", "decode")
    slowed(Preprocessor, "resize", "resize")
    slowed(type(tiny.session.slots[0]), "run", "compute")
    slowed(type(tiny.labeller), "__call__", "post")
    rows = Preprocessor.fill_rows

    def fill_rows(self: Preprocessor, *arguments: Any) -> None:
        time.ns += TAKES["copy-in"] * 1_000_000 if self.rows else 0
        rows(self, *arguments)

    monkeypatch.setattr(Preprocessor, "fill_rows", fill_rows)
    return time


@pytest.mark.usefixtures("virtual")
@pytest.mark.parametrize("batch", [1, 2])
def test_each_stage_gets_exactly_what_it_took(
    wired: Runtime, photographs_of_wired: Workload, batch: int
) -> None:
    found = by_stage(split(wired, PLAN, batch, photographs_of_wired.sources, 0.1))
    series = {stage: set(one.series.samples) for stage, one in found.items() if one.series is not None}
    per_image = {stage: {float(batch * TAKES[stage])} for stage in ("decode", "resize", "copy-in")}
    assert series == per_image | {"compute": {11.0}, "copy-out": {0.0}, "post": {2.0}}


@pytest.mark.usefixtures("virtual")
def test_the_stages_of_one_image_add_up_to_the_whole(
    tiny: Runtime, photographs_of_tiny: Workload, wired: Runtime, photographs_of_wired: Workload
) -> None:
    """The runtime makes its call of the very same parts, one after the other where there is one image."""
    for runtime, workload in ((tiny, photographs_of_tiny), (wired, photographs_of_wired)):
        found = split(runtime, PLAN, 1, workload.sources, 0.1)
        parts = [s.series.samples for s in found.stages if s.series is not None]
        assert [sum(values) for values in zip(*parts, strict=True)] == found.whole.samples


@pytest.mark.usefixtures("virtual")
def test_at_least_fifteen_calls_are_measured(tiny: Runtime, photographs_of_tiny: Workload) -> None:
    """Five of them fill the time that is asked for."""
    found = split(tiny, PLAN, 1, photographs_of_tiny.sources, 0.2)
    assert len(found.whole.samples) == 15


def test_images_take_turns_in_their_order(
    virtual: VirtualTime, tiny: Runtime, photographs_of_tiny: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages and whole get the same images: of three, in batches of two, the third call begins with the second."""
    sources, seen = photographs_of_tiny.sources, []
    inner = Preprocessor.decode

    def decode(self: Preprocessor, picture: Any, item: str) -> Any:
        seen.append(sources.index(picture))
        return inner(self, picture, item)

    monkeypatch.setattr(Preprocessor, "decode", decode)
    split(tiny, PLAN, 2, sources, 0.2)
    # The host threads of the whole may decode in either order.
    calls = [sorted(seen[start : start + 2]) for start in range(0, 12, 2)]
    assert calls == [[0, 1], [0, 1], [0, 2], [0, 2], [1, 2], [1, 2]]


# What is refused


def test_an_image_that_cannot_be_read_ends_it(tiny: Runtime, photographs_of_tiny: Workload) -> None:
    sources = [*photographs_of_tiny.sources[:1], b"no image"]
    with pytest.raises(ItemError, match="1: not an image"):
        split(tiny, PLAN, 2, sources, 0.01)


def test_an_image_that_breaks_later_ends_it_too(
    tiny: Runtime, photographs_of_tiny: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails in the whole call alone is no sample of it."""
    broken = ItemError("image 0", "the engine gave scores that are not numbers")
    monkeypatch.setattr(Runtime, "__call__", lambda self, images: [broken])
    with pytest.raises(ItemError, match="not numbers"):
        split(tiny, PLAN, 1, photographs_of_tiny.sources, 0.01)


def test_ready_tensors_that_are_absent_end_it(wired: Runtime, photographs_of_wired: Workload) -> None:
    with pytest.raises(ItemError, match="objects"):
        split(wired, PLAN, 1, [image.data for image in photographs_of_wired.images], 0.01)


def test_a_bundle_of_ready_tensors_has_no_stages(
    tiny: Runtime, photographs_of_tiny: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "preprocessor", None)
    with pytest.raises(UsageError, match="ready tensors only"):
        split(tiny, PLAN, 1, photographs_of_tiny.sources, 0.01)


def test_a_split_leaves_the_runtime_as_it_was(tiny: Runtime, photographs_of_tiny: Workload) -> None:
    """It works in the engine's own buffers; answers before and after are the same."""
    tensors = photographs_of_tiny.tensors(2)[0]
    before = tiny.infer(tensors)
    split(tiny, PLAN, 2, photographs_of_tiny.sources[::-1], 0.01)
    after = tiny.infer(tensors)
    for tap, values in before.items():
        np.testing.assert_array_equal(values, after[tap])
