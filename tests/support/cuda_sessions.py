"""Sessions on the emulated GPU, and what has to be right about whatever they did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from emulated_cuda import Call, EmulatedDevice
from emulated_ensemble import INPUTS, OUTPUTS, Ensemble, items

from vsa_rt.engines.backend import OpenOptions
from vsa_rt.engines.cuda.session import CudaSession
from vsa_rt.engines.cuda.slot import CudaSlot

MERGED: Mapping[int, str] = {1: "merged"}
STREAMS: Mapping[int, str] = {1: "streams"}


def open_session(
    ensemble: Ensemble, *, max_batch: int = 5, slots: int = 2, division: Mapping[int, str] = STREAMS
) -> CudaSession:
    """A session over an ensemble's engines."""
    options = OpenOptions(max_batch=max_batch, threads=1, slots=slots, division=division)
    device = next(iter(ensemble.engines.values())).device
    return CudaSession(device, ensemble.forms, INPUTS, OUTPUTS, options)


@contextmanager
def opened(ensemble: Ensemble, *, device_is_shared: bool = False, **options: Any) -> Iterator[CudaSession]:
    """A session that is closed at the end, with nothing wrong and nothing left."""
    device = next(iter(ensemble.engines.values())).device
    session = open_session(ensemble, **options)
    try:
        yield session
    finally:
        session.close()
    assert device.faults == []
    assert device_is_shared or device.open() == {}
    assert not any(session.open_resources().values())


def check_results(ensemble: Ensemble, slot: CudaSlot, count: int, seed: int = 0) -> None:
    """Run some items, and compare all that comes out with what must."""
    given = items(count, seed)
    found, wanted = slot.run(given), ensemble.reference(given)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name].dtype == np.float32
        assert np.array_equal(found[name], values), f"{name} of {count} items is wrong"


def live(device: EmulatedDevice, *, slots: int = 1, **options: Any) -> None:
    """A whole life of a session: open it, run batches of several sizes, each twice, and close it.

    Raises:
        AssertionError: Something was wrong.
    """
    ensemble = Ensemble(device)
    with opened(ensemble, slots=slots, **options) as session:
        for seed in range(2):
            for count in (3, 1, 5, 2):
                for slot in session.slots:
                    check_results(ensemble, slot, count, seed)
        assert session.notes == []


def captures(log: list[Call]) -> list[list[Call]]:
    """The calls of each capture, its beginning and its end among them."""
    found: list[list[Call]] = []
    inside = False
    for call in log:
        if call.name == "device.capture":
            found.append([])
            inside = True
        if inside:
            found[-1].append(call)
        if call.name == "capture.end":
            inside = False
    return found


def count_calls(calls: list[Call]) -> Counter[str]:
    """Names of calls to how many there are; copies by where they go."""
    return Counter(f"copy {c.facts['kinds']}" if c.name == "stream.copy" else c.name for c in calls)
