"""Limits: what the machine can do, what the graph needs, where the layers stand."""

from __future__ import annotations

from typing import Literal

import msgspec

from vsa_rt.bench.records.record import Record


class Ceiling(Record, frozen=True, kw_only=True):
    """The most that a library was seen to do on this machine.

    Attributes:
        kind: Of the work.
        precision: Of the operands; ``bytes`` for the copy.
        value: 10^9 multiply-adds or bytes per second; ``None`` if it cannot run.
        unit: ``GMAC/s`` or ``GB/s``.
        library: What ran it.
        threads: How many.
        note: Its shape, or why it cannot run.
    """

    kind: Literal["convolution", "matmul", "copy"]
    precision: str
    value: float | None
    unit: Literal["GMAC/s", "GB/s"]
    library: str
    threads: int
    note: str


class Floor(Record, frozen=True, kw_only=True):
    """The least time that a part of the graph can take on this machine, and how near it comes.

    Attributes:
        part: A backbone's name, ``head``, or ``whole``.
        macs: Multiply-adds of one call.
        nbytes: Weights, inputs and outputs that one call must touch.
        precision: Of the ceiling that it is held against.
        floor_ms: ``max(macs / compute ceiling, nbytes / copy ceiling)``.
        bound: Which of both.
        measured_ms: What it took; ``None`` where it cannot be told apart.
        share: ``floor_ms / measured_ms``; 1 is the limit.
    """

    part: str
    macs: int
    nbytes: int
    precision: str
    floor_ms: float
    bound: Literal["compute", "memory"]
    measured_ms: float | None
    share: float | None


class PaperFloor(Record, frozen=True, kw_only=True):
    """The least time of one call on a GPU by what its maker publishes. No measurement is in it: unproven on a GPU.

    Attributes:
        device: Short name; ``bench/gpu_devices.py`` has its figures and their sources.
        precision: That every node is taken to have.
        macs: Multiply-adds of one call.
        nbytes: Moved to and from the memory: weights once, and what of a tensor between kernels exceeds the cache.
        kernels: Launches that the graph needs at least, by the rule of ``bench/gpu_floor.py``.
        compute_ms: Of the multiply-adds alone.
        memory_ms: Of the bytes alone.
        floor_ms: The sum over kernels of the longer of both.
        bound: Which of both sums is longer.
        cached: Whether all weights fit the cache, so that they may stay there from one call to the next: then
            ``memory_ms``, and with it the floor, can be undercut.
        taken_nbytes: Of the inputs, which are copied to the device.
        given_nbytes: Of the outputs, which are copied back.
        copy_ms: The least time of both copies; not in ``floor_ms``.
        launch_us: What launching all of it as one CUDA graph adds, as published for other GPUs, in microseconds; not in
            ``floor_ms``. ``None`` where nothing is published for such a device.
    """

    device: str
    precision: str
    macs: int
    nbytes: int
    kernels: int
    compute_ms: float
    memory_ms: float
    floor_ms: float
    bound: Literal["compute", "memory"]
    cached: bool
    taken_nbytes: int
    given_nbytes: int
    copy_ms: float
    launch_us: float | None


class Limits(Record, frozen=True, kw_only=True):
    """Distance to the limit of one plan and batch size.

    Attributes:
        plan: Its name.
        batch: Images per call.
        floors: Of every part; the last is the whole.
        note: What they rest on, or why there are none.
        against: Where the ceilings come from: ``measured`` on this machine, or the device's ``datasheet``, where nothing
            measures a GPU's: then the floors are on paper.
        paper: What the same network would take at least on well-known GPUs, on paper.
    """

    plan: str
    batch: int
    floors: list[Floor]
    note: str
    against: Literal["measured", "datasheet"] = "measured"
    paper: list[PaperFloor] = msgspec.field(default_factory=list)


class Layer(Record, frozen=True, kw_only=True):
    """One layer as the backend runs it.

    Attributes:
        name: The backend's.
        nodes: The ONNX nodes that are in it; empty for what the backend added.
        backbone: Whose they are: a tap's name, ``head``, or empty where unknown.
        kind: Of layer: ``convolution``, ``depthwise``, ``matmul``, ``activation``, ``pool``, ``reorder``, …
        precision: That it ran in; empty where the backend does not tell.
        ms: Mean per call.
    """

    name: str
    nodes: list[str]
    backbone: str
    kind: str
    precision: str
    ms: float


class Profile(Record, frozen=True, kw_only=True):
    """A plan's layers, measured by the backend itself.

    Attributes:
        plan: Its name.
        batch: Images per call.
        source: Whose counters.
        calls: Over how many calls the means are.
        call_ms: Median of the profiled calls as a whole; counters make a call slower.
        layers: Slowest first.
    """

    plan: str
    batch: int
    source: str
    calls: int
    call_ms: float
    layers: list[Layer]
