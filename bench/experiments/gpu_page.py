"""The page of the GPU budget: what was counted, in words and tables of Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vsa_rt.bench.experiments.gpu_anchors import LEFT_OUT, OFFLINE, Anchor
from vsa_rt.bench.gpu_devices import DEVICES, OLDER, PRECISIONS, Device
from vsa_rt.bench.gpu_floor import (
    GRAPH_GAP_US,
    GRAPH_NODE_US,
    GRAPH_US,
    STREAM_GAP_US,
    copy_ms,
    launch_us,
)
from vsa_rt.bench.records.limits import PaperFloor

BATCHES = (1, 8, 32)


@dataclass(frozen=True)
class Work:
    """What one recipe asks of a GPU.

    Attributes:
        name: The recipe's.
        macs: Multiply-adds per image.
        weights: How many values its weights have.
        kernels: Launches per call, whatever the batch.
        copies: Tensors that are copied to and from the device in every call.
        taken: Bytes per image to the device.
        given: Bytes per image from it.
        unknown: Nodes that nothing counts.
        moved: Precision to the bytes that kernels read and write in a call of each batch size.
        floors: Batch size to the floors of every device and precision.
    """

    name: str
    macs: int
    weights: int
    kernels: int
    copies: int
    taken: int
    given: int
    unknown: int
    moved: dict[str, list[int]]
    floors: dict[int, list[PaperFloor]]

    def least(self, batch: int, device: Device, precision: str) -> PaperFloor:
        """One of the floors."""
        return next(f for f in self.floors[batch] if (f.device, f.precision) == (device.name, precision))


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown; columns after the first are numbers where their title ends in ``>``."""
    lines = [
        "| " + " | ".join(c.rstrip(">") for c in columns) + " |",
        "|" + "|".join("---:" if c.endswith(">") else "---" for c in columns) + "|",
        *("| " + " | ".join(str(value) for value in row) + " |" for row in rows),
    ]
    return "\n".join(lines)


def ms(value: float) -> str:
    """Milliseconds with three significant digits, down to a microsecond."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def devices_table(devices: Sequence[Device]) -> str:
    """What is published of the devices, in one table."""
    rows = [
        (
            d.name,
            f"{d.tops['fp16']:,g}",
            f"{d.tops['int8']:,g}" if "int8" in d.tops else "none",
            f"{d.bandwidth:,g}",
            f"{d.cache / 2**20:g}",
            "shared memory" if d.link is None else f"{d.link:g}",
            d.source,
        )
        for d in devices
    ]
    columns = ("GPU", "FP16, 10^12/s>", "INT8, 10^12/s>", "GB/s>", "cache, MiB>", "link, GB/s each way>")
    return table((*columns, "published in"), rows)


def work_table(works: Sequence[Work]) -> str:
    """What the recipes ask for."""
    rows = [
        (
            w.name,
            f"{2 * w.macs / 1e9:.2f}",
            f"{w.weights / 1e6:.1f}",
            *(" / ".join(f"{nbytes / 1e6:,.1f}" for nbytes in w.moved[p]) for p in PRECISIONS),
            w.kernels,
            f"{w.taken / 1e3:,.1f}",
            f"{w.given / 1e3:,.1f}",
            w.unknown,
        )
        for w in works
    ]
    through = (f"MB through kernels, {p.upper()}>" for p in PRECISIONS)
    columns = ("recipe", "GFLOP per image>", "weights, M>", *through, "kernels per call>")
    return table((*columns, "kB in>", "kB out>", "uncounted nodes>"), rows)


def floors_table(works: Sequence[Work], batch: int) -> str:
    """Floors of one batch size: FP16 / INT8."""

    def cell(work: Work, device: Device) -> str:
        found = [work.least(batch, device, precision) for precision in PRECISIONS]
        return " / ".join(f"{ms(f.floor_ms)}{'*' if f.cached else ''}" for f in found)

    rows = [(w.name, *(cell(w, d) for d in DEVICES)) for w in works]
    return table(("recipe", *(f"{d.name}>" for d in DEVICES)), rows)


def adds_table(works: Sequence[Work]) -> str:
    """What the runtime adds to a call of each batch size."""

    def copies(work: Work, device: Device) -> str:
        bytes_of = [batch * (work.taken + work.given) for batch in BATCHES]
        return " / ".join(ms(copy_ms(device, nbytes)) for nbytes in bytes_of)

    rows = [
        (
            w.name,
            w.kernels + w.copies,
            f"{launch_us(w.kernels + w.copies):.1f}",
            f"{GRAPH_US + GRAPH_NODE_US * (w.kernels + w.copies):.1f}",
            f"{STREAM_GAP_US * (w.kernels + w.copies):.1f}",
            *(copies(w, d) for d in DEVICES),
        )
        for w in works
    ]
    graph = ("graph nodes>", "as one graph, µs>", "of it on the host, µs>", "one by one, µs>")
    return table(("recipe", *graph, *(f"{d.name}: copies, ms>" for d in DEVICES)), rows)


def with_launches(found: PaperFloor) -> float | None:
    """A floor with what launching adds, where that is published for such devices."""
    return None if found.launch_us is None else found.floor_ms + found.launch_us / 1e3


def anchors_table(found: Sequence[tuple[Anchor, PaperFloor]]) -> str:
    """Published figures beside their floors."""
    rows = []
    for a, f in found:
        launched = with_launches(f)
        rows.append(
            (
                a.device,
                a.network,
                a.precision.upper(),
                a.batch,
                ms(a.ms),
                ms(f.floor_ms) + ("*" if f.cached else ""),
                f.bound,
                f"{a.ms / f.floor_ms:.1f}",
                "" if launched is None else f"{a.ms / launched:.1f}",
                f"{a.what}; {a.source}",
            )
        )
    columns = (
        "GPU",
        "network",
        "precision",
        "batch>",
        "published ms>",
        "floor ms>",
        "bound",
        "times as long>",
    )
    return table((*columns, "than floor and launches>", "what, and who published it"), rows)


def _range(ratios: Sequence[float]) -> str:
    if not ratios:
        return "nothing published"
    least, most = (f"{end:.1f}" for end in (min(ratios), max(ratios)))
    return least if least == most else f"{least} to {most}"


def factors_table(found: Sequence[tuple[Anchor, PaperFloor]]) -> str:
    """Per device, how many times as long as its floor published engines take: by batch, and with launches."""
    rows = []
    for device in (*DEVICES, *OLDER):
        cells = []
        for alone in (True, False):
            own = [(a, f) for a, f in found if a.device == device.name and (a.batch == 1) is alone]
            launched = [a.ms / least for a, f in own if (least := with_launches(f)) is not None]
            cells += [_range([a.ms / f.floor_ms for a, f in own]), _range(launched) if launched else ""]
        rows.append((device.name, *cells))
    columns = ("GPU", "batch 1>", "with launches>", "larger batches>", "with launches>")
    return table(columns, rows)


_TEXT = """\
# GPU budget

**On paper: unproven on a GPU.** No figure of this page was measured by this project. Each follows from a recipe's own
graph, from a datasheet, or from a publication that is named beside it. The page is written by

```
python -m vsa_rt.bench.experiments.gpu_budget
```

`vsa-rt bench` shows the same floors of a bundle's network in its report; [benchmarks.md](benchmarks.md) says what it
makes of them on a GPU.

## The rule

The FP32 graph of a recipe, with seeded weights, is put into kernels as an engine would at best. A convolution, a
product, a recurrent cell, a pool, a reduction is one kernel. Activations, elementwise arithmetic, BatchNorms and casts
go into the last kernel that makes one of their inputs, where they take it value by value; the sum of a residual block
does, the gate of a squeeze-and-excitation does not. Views, concatenations and constants need none. A kernel takes at
least the longer of

- its multiply-adds, two operations each, at the published dense throughput of the precision, and
- its bytes at the published bandwidth: weights once per call, and of a tensor between kernels what exceeds the cache.

The floor is their sum, since kernels of the merged form follow each other. Every node has the precision named, which no
lowered graph of this project has: heads, first layers and what is not safe in half stay wider there. Depthwise and small
layers cannot fill tensor cores, a recurrent cell takes a kernel per step: they are held against the same throughput.
A floor is not what to expect: [published engines](#published-engines-beside-their-floors) say how far real ones are
from theirs. Two things could undercut it. Under * all weights fit the cache, and may stay there from one call to the
next. And kernels are taken to compute the whole batch, as TensorRT's do: where eight images have more than eight times
the floor of one, their activations no longer fit the cache, and smaller calls would need less on paper.

## Devices

{devices}

Throughput is that of tensor cores, dense: datasheets print twice as much, with structured sparsity. It assumes the
highest clocks of the mode; `Super` is the mode that JetPack 6.2 brought.

## What the recipes ask for

One multiply-add is two FLOP. What goes through kernels is per call of batch {batches}: weights once, and every tensor
that one kernel writes and another reads, as if there was no cache. kB in and out are per image.

{work}

## Floors

Milliseconds per call, FP16 / INT8.

{floors}

## What the runtime adds per call

The runtime copies the inputs to the device and every tap back, and launches copies and kernels as one CUDA graph. Neither
is in the floors.

- Copies go over the link at its published rate; on a Jetson a copy reads and writes the shared memory. Batch {batches}.
- A graph: {graph} µs and {node} ns per node on the host (NVIDIA, 2024: CUDA 12.6, RTX 3060, Xeon Silver 4208, straight
  lines of ten nodes and more), and {gap} µs per node on the device beyond the kernel's own time; launched one by one
  {stream} µs (NVIDIA, 2019: CUDA 10.1, V100, kernels of 2.9 µs). Those are other GPUs than the table's. Of a Jetson
  nothing is published that could stand here: the columns say nothing of it.
- What the host does around a call, Python included, is not on paper and left out.

{adds}

## Published engines beside their floors

The networks are timm's of the same name, exported and counted by this very script; `bench/experiments/gpu_anchors.py`
has the list. MLPerf's logs do not state the precision: it is INT8 by custom.

{anchors}

Offline figures are held against the batch of the least floor per image, among {offline}; the publisher's is not known.

How many times as long as its floor, and as floor and launches together, a published engine takes, least and most of the
rows above:

{factors}

At batch 1 a network has too little work for a large GPU, and what a kernel takes whatever it computes weighs most: the
larger the device, and the smaller the layers, the farther from the floor. A recipe's floor times such a factor is a
guess at the order of magnitude, nothing more.

Left out: {left_out}.
{older}"""


def page(works: Sequence[Work], found: Sequence[tuple[Anchor, PaperFloor]]) -> str:
    """The whole document."""
    floors = "\n\n".join(f"### Batch {batch}\n\n{floors_table(works, batch)}" for batch in BATCHES)
    return _TEXT.format(
        devices=devices_table(DEVICES),
        work=work_table(works),
        floors=floors,
        batches=" / ".join(map(str, BATCHES)),
        graph=f"{GRAPH_US:g}",
        node=f"{1e3 * GRAPH_NODE_US:g}",
        gap=f"{GRAPH_GAP_US:g}",
        stream=f"{STREAM_GAP_US:g}",
        adds=adds_table(works),
        anchors=anchors_table(found),
        factors=factors_table(found),
        offline=", ".join(map(str, OFFLINE)),
        left_out="; ".join(f"{what} ({why})" for what, why in LEFT_OUT.items()),
        older=f"\nOlder GPUs of that table:\n\n{devices_table(OLDER)}\n",
    )
