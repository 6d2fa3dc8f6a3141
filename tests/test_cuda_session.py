"""A session on the emulated GPU: its results are right, whatever the batch, and what does not fit is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_sessions import MERGED, STREAMS, check_results, open_session, opened
from emulated_cuda import EmulatedDevice
from emulated_engine import EmulatedEngine
from emulated_ensemble import INPUTS, Ensemble, Tensors, items
from hypothesis import given, settings
from hypothesis import strategies as st

from vsa_rt.contracts import TensorSpec
from vsa_rt.engines.backend import OpenOptions, Session
from vsa_rt.engines.cuda import slot
from vsa_rt.engines.cuda.plan import buckets
from vsa_rt.engines.cuda.session import CudaSession
from vsa_rt.errors import EnvironmentUnusable, UsageError


@pytest.fixture
def device() -> EmulatedDevice:
    """No thread has entered it: that is the session's to do."""
    return EmulatedDevice()


# Results


@pytest.mark.parametrize("reads", [False, True], ids=["apart", "one reads the other"])
@pytest.mark.parametrize("division", [MERGED, STREAMS], ids=["merged", "streams"])
def test_every_batch_gives_what_the_graph_gives(device: EmulatedDevice, division: Any, reads: bool) -> None:
    ensemble = Ensemble(device, reads=reads)
    with opened(ensemble, division=division) as session:
        typed: Session = session
        assert typed.divisions == ("merged", "streams")
        for seed, count, place in itertools.product(range(2), (3, 5, 1, 4, 2), session.slots):
            check_results(ensemble, place, count, seed)
        assert session.notes == []


def test_both_forms_give_the_same_and_graphs_give_what_plain_calls_give() -> None:
    given = items(5)
    found = []
    for division, capturable in itertools.product((MERGED, STREAMS), (True, False)):
        with opened(Ensemble(EmulatedDevice(), capturable=capturable), division=division) as session:
            found.append({name: array.copy() for name, array in session.slots[0].run(given).items()})
            assert bool(session.notes) is not capturable
    for other in found[1:]:
        assert all(np.array_equal(found[0][name], other[name]) for name in found[0])


def test_the_form_is_the_one_asked_for_the_batch(device: EmulatedDevice) -> None:
    ensemble = Ensemble(device)
    with opened(ensemble, max_batch=8, division={1: "streams", 4: "merged"}) as session:
        for count, streams in ((1, True), (2, True), (3, False), (8, False)):
            before = {name: len(engine.runs) for name, engine in ensemble.engines.items()}
            session.slots[0].run(items(count))
            ran = {name for name, engine in ensemble.engines.items() if len(engine.runs) > before[name]}
            assert ran == ({"a", "b", "head"} if streams else {"merged"})


@pytest.mark.parametrize(("division", "left"), [(MERGED, 1), (STREAMS, 3), ({1: "merged", 4: "streams"}, 4)])
def test_engines_that_no_batch_size_uses_do_not_stay_on_the_device(
    device: EmulatedDevice, division: dict[int, str], left: int
) -> None:
    """The weights would lie there twice. What the bundle has is said all the same."""
    ensemble = Ensemble(device)
    with opened(ensemble, division=division) as session:
        assert session.open_resources()["engine"] == left
        assert session.divisions == ("merged", "streams")
        for count in (1, 5):
            check_results(ensemble, session.slots[0], count)


def test_without_a_word_the_engine_runs_as_its_first_form(device: EmulatedDevice) -> None:
    for forms, ran in ((("merged", "streams"), "merged"), (("streams",), "head")):
        ensemble = Ensemble(device, forms)
        with opened(ensemble, division={}) as session:
            check_results(ensemble, session.slots[0], 2)
            assert session.divisions == forms
            assert {n for n, e in ensemble.engines.items() if e.runs} >= {ran}


def test_the_hosts_own_buffers_are_taken_as_they_are(device: EmulatedDevice) -> None:
    ensemble = Ensemble(device)
    with opened(ensemble) as session:
        place = session.slots[0]
        assert {n: (b.shape, b.dtype.name) for n, b in place.buffers.items()} == {
            s.name: ((5, *s.shape[1:]), s.dtype) for s in INPUTS
        }
        for seed in range(3):
            wanted = items(3, seed)
            for name, buffer in place.buffers.items():
                buffer[:3] = wanted[name]
            found = place.run({name: buffer[:3] for name, buffer in place.buffers.items()})
            assert np.array_equal(found["scores"], ensemble.reference(wanted)["scores"])


def test_results_last_until_the_slots_next_run_whatever_else_is_done(device: EmulatedDevice) -> None:
    ensemble = Ensemble(device)
    with opened(ensemble) as session:
        given = items(5)
        found = session.slots[0].run(given)
        session.prepare([1, 2, 3])
        session.slots[1].run(items(5, seed=1))
        assert np.array_equal(found["b"], ensemble.reference(given)["b"])


def test_inputs_that_do_not_fit_are_refused_and_nothing_breaks(device: EmulatedDevice) -> None:
    ensemble = Ensemble(device)
    with opened(ensemble) as session:
        place = session.slots[0]
        good = items(2)
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"image": good["image"]}, "image"),
            ({**good, "more": good["image"]}, "more"),
            ({**good, "image": good["image"].astype(np.float32)}, "image"),
            ({**good, "objects": good["objects"][:, :1]}, "objects"),
            ({**good, "objects": good["objects"][:1]}, "batch 1"),
            ({name: array[:0] for name, array in good.items()}, "batch 0"),
            (items(6), "batch 6"),
        ]
        for given, said in wrong:
            with pytest.raises(UsageError, match=said):
                place.run(given)
        strided = {name: np.repeat(array, 2, axis=0)[::2] for name, array in good.items()}
        assert np.array_equal(place.run(strided)["scores"], ensemble.reference(good)["scores"])


# Buckets and padding


@given(max_batch=st.integers(1, 70))
def test_buckets_are_powers_of_two_and_the_largest_batch(max_batch: int) -> None:
    found = buckets(max_batch)
    assert list(found) == sorted(set(found))
    assert found[-1] == max_batch
    assert all(bucket & (bucket - 1) == 0 for bucket in found[:-1])
    for count in range(1, max_batch + 1):
        bucket = next(b for b in found if b >= count)
        assert bucket < 2 * count


def pad(max_batch: int, calls: list[tuple[int, bool]], division: Any) -> None:
    """Run batches on one slot, in its buffers or out of them; an engine sees items, and zeros behind them."""
    ensemble = Ensemble(EmulatedDevice())
    stages = ("merged",) if division == MERGED else ("a", "b")
    with opened(ensemble, max_batch=max_batch, slots=1, division=division) as session:
        place = session.slots[0]
        for seed, (number, inside) in enumerate(calls):
            count = min(number, max_batch)
            wanted = {name: array + 1 for name, array in items(count, seed).items()}
            given: Tensors = wanted
            if inside:
                for name, buffer in place.buffers.items():
                    buffer[:] = 77
                    buffer[:count] = wanted[name]
                given = {name: buffer[:count] for name, buffer in place.buffers.items()}
            found = place.run(given)
            for name, values in ensemble.reference(wanted).items():
                assert found[name].shape == values.shape
                assert np.array_equal(found[name], values)
            bucket = next(b for b in buckets(max_batch) if b >= count)
            for stage in stages:
                for name, seen in ensemble.seen(stage).items():
                    assert len(seen) == bucket, "another bucket ran"
                    assert np.array_equal(seen[:count], wanted[name])
                    assert not seen[count:].any(), "the padding is not zero"


@settings(max_examples=60, deadline=None)
@given(
    max_batch=st.integers(1, 40),
    calls=st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=6),
    division=st.sampled_from([MERGED, STREAMS]),
)
def test_a_batch_runs_as_the_next_larger_bucket_with_zeros_behind_it(
    max_batch: int, calls: list[tuple[int, bool]], division: Any
) -> None:
    pad(max_batch, calls, division)


def test_who_forgets_the_padding_or_takes_another_bucket_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(slot.CudaSlot, "_pad", lambda *_: None)
        with pytest.raises(AssertionError, match="padding is not zero"):
            pad(5, [(5, False), (3, False)], MERGED)
    with monkeypatch.context() as patch:
        patch.setattr("vsa_rt.engines.cuda.plan.Plan.bucket_of", lambda plan, _: plan.max_batch)
        with pytest.raises(AssertionError, match="another bucket ran"):
            pad(5, [(2, False)], MERGED)


# What cannot be captured, and what does not fit


def test_an_engine_that_cannot_be_captured_runs_all_the_same_and_it_is_said(device: EmulatedDevice) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"capturable": False}, "cannot"),
        ({"breaks_capture": True}, "invalid"),
    ]
    for options, said in cases:
        ensemble = Ensemble(device, **options)
        with opened(ensemble) as session:
            for seed, count in itertools.product(range(2), (3, 1)):
                check_results(ensemble, session.slots[0], count, seed)
            assert len(session.notes) == 2
            assert all(said in note and "without a CUDA graph" in note for note in session.notes)
            assert "batches of 4 (streams)" in session.notes[0]
    assert "graph.launch" not in device.names()


def one_port_less(ensemble: Ensemble) -> None:
    engine = ensemble.engines["merged"]
    engine.ports = tuple(p for p in engine.ports if p.name != "b")


def other_dtype(ensemble: Ensemble) -> None:
    engine = ensemble.engines["merged"]
    engine.ports = tuple(
        type(p)(p.name, p.taken, "float16" if p.name == "scores" else p.dtype, p.shape) for p in engine.ports
    )


def other_width(ensemble: Ensemble) -> None:
    engine = ensemble.engines["b"]
    engine.ports = tuple(
        type(p)(p.name, p.taken, p.dtype, (None, 8) if p.name == "b" else p.shape) for p in engine.ports
    )


@pytest.mark.parametrize(
    ("spoil", "said"), [(one_port_less, "'b'"), (other_dtype, "'scores'"), (other_width, "'b'")]
)
def test_an_engine_that_is_not_what_the_manifest_says_is_refused_and_closed(
    device: EmulatedDevice, spoil: Callable[[Ensemble], None], said: str
) -> None:
    ensemble = Ensemble(device)
    spoil(ensemble)
    with pytest.raises(EnvironmentUnusable, match=said):
        open_session(ensemble)
    assert device.open() == {}
    assert device.faults == []


def test_an_engine_whose_profile_is_too_small_is_refused_when_it_is_opened(device: EmulatedDevice) -> None:
    with pytest.raises(EnvironmentUnusable, match="profile has 1 to 4"):
        open_session(Ensemble(device, batches=(1, 4)), max_batch=5)
    assert device.open() == {}


def test_a_division_that_the_engine_does_not_have_is_refused(device: EmulatedDevice) -> None:
    for forms, word in ((("merged",), "streams"), (("merged", "streams"), "branches")):
        with pytest.raises(EnvironmentUnusable, match=f"by {word}"):
            open_session(Ensemble(device, forms), division={1: word})
        assert device.open() == {}


def test_scratch_memory_may_be_needed_by_a_smaller_batch_only(device: EmulatedDevice) -> None:
    ensemble = Ensemble(device, scratch=lambda batch: 5000 if batch == 2 else 100 if batch == 1 else 0)
    with opened(ensemble) as session:
        for count in (1, 2, 3, 5, 2, 1):
            check_results(ensemble, session.slots[0], count)


def test_a_graph_without_ready_tensors_runs_as_well(device: EmulatedDevice) -> None:
    from vsa_rt.engines.cuda.seam import Form, Port, Stage

    ports = [Port("x", True, "uint8", (None, 3)), Port("y", False, "float32", (None, 3))]
    engine = EmulatedEngine(device, ports, lambda given: {"y": given["x"] * np.float32(2)})
    session = CudaSession(
        device,
        [Form("merged", (Stage("merged", engine),))],
        [TensorSpec("x", "uint8", (None, 3))],
        [TensorSpec("y", "float32", (None, 3))],
        OpenOptions(max_batch=3, threads=1),
    )
    found = session.slots[0].run({"x": np.full((2, 3), 4, np.uint8)})
    assert found["y"].tolist() == [[8, 8, 8]] * 2
    assert len(session.slots) == 1
    session.close()
    assert device.open() == {}
