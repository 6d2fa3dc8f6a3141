"""GPUs on paper: what their makers publish of them. Nothing here was measured by this project.

Throughputs are dense ones of tensor cores, counted as two operations per multiply-add; datasheets print those with
structured sparsity, which are twice as large, and say so in a footnote. Every figure is the one that its source prints,
rounded as there, or half of a sparse one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vsa_rt.contracts import Target

#: Precisions that a floor is computed for.
PaperPrecision = Literal["fp16", "int8"]
PRECISIONS: tuple[PaperPrecision, ...] = ("fp16", "int8")


@dataclass(frozen=True, kw_only=True)
class Device:
    """One GPU as its maker describes it.

    Attributes:
        name: Short.
        tops: Precision to 10^12 dense operations per second; a multiply-add is two.
        bandwidth: Of its memory, in 10^9 bytes per second.
        cache: Bytes of its last-level cache.
        link: 10^9 bytes per second in each direction between host and device; ``None`` where both share the memory.
        graphs: Whether the published figures for launching graphs are of GPUs like it; none are of a Jetson.
        known_as: What its driver or its board calls it, as a pattern.
        source: Where the figures are published.
    """

    name: str
    tops: Mapping[str, float]
    bandwidth: float
    cache: int
    link: float | None
    graphs: bool
    known_as: str
    source: str = field(repr=False)


_MIB = 1 << 20
_SUPER_BOOST = (
    "NVIDIA Technical Blog, Jetson Orin Nano Developer Kit Gets a 'Super' Boost (2024): dense INT8 and FP16, memory "
    "bandwidth; cache: that of the whole chip, Jetson AGX Orin Series Technical Brief, of which the module may have less"
)
#: Those that a budget is written for.
DEVICES: tuple[Device, ...] = (
    Device(
        name="Orin Nano 8GB",
        tops={"fp16": 10, "int8": 20},
        bandwidth=68,
        cache=4 * _MIB,
        link=None,
        graphs=False,
        known_as=r"(NVIDIA )?Jetson Orin Nano( 8GB| (Engineering Reference )?Developer Kit)",
        source=_SUPER_BOOST,
    ),
    Device(
        name="Orin Nano 8GB Super",
        tops={"fp16": 17, "int8": 33},
        bandwidth=102,
        cache=4 * _MIB,
        link=None,
        graphs=False,
        known_as=r"(NVIDIA )?Jetson Orin Nano( 8GB| (Engineering Reference )?Developer Kit) Super",
        source=_SUPER_BOOST,
    ),
    Device(
        name="AGX Orin 64GB",
        # The GPU alone: the 275 TOPS of its name count two DLAs as well.
        tops={"fp16": 42.5, "int8": 85},
        bandwidth=204.8,
        cache=4 * _MIB,
        link=None,
        graphs=False,
        known_as=r"(NVIDIA )?Jetson AGX Orin( 64GB| Developer Kit)",
        source="Jetson AGX Orin Series Technical Brief: the GPU's 170 sparse INT8 TOPS, halved; FP16 is half of INT8, as "
        "NVIDIA prints it for the Orin Nano's GPU of the same kind; memory bandwidth; 4 MB of L2",
    ),
    Device(
        name="L4",
        tops={"fp16": 121, "int8": 242.5},
        bandwidth=300,
        cache=48 * _MIB,
        link=32,
        graphs=True,
        known_as=r"(NVIDIA )?L4",
        source="NVIDIA L4 Tensor Core GPU datasheet: 242 and 485 with sparsity, halved; 300 GB/s; PCIe Gen4 x16, 64 GB/s in "
        "both directions together; cache: NVIDIA Ada GPU architecture whitepaper (AD104)",
    ),
    Device(
        name="A100 SXM 80GB",
        tops={"fp16": 312, "int8": 624},
        bandwidth=2039,
        cache=40 * _MIB,
        link=32,
        graphs=True,
        known_as=r"(NVIDIA )?A100-SXM4?-80GB",
        source="NVIDIA A100 80GB Tensor Core GPU datasheet: 312 and 624 without sparsity; 2,039 GB/s; PCIe Gen4, 64 GB/s in "
        "both directions together; cache: NVIDIA A100 Tensor Core GPU Architecture whitepaper",
    ),
    Device(
        name="H100 SXM",
        tops={"fp16": 989.5, "int8": 1979},
        bandwidth=3350,
        cache=50 * _MIB,
        link=64,
        graphs=True,
        known_as=r"(NVIDIA )?H100 (80GB HBM3|SXM5?( 80GB)?)",
        source="NVIDIA H100 Tensor Core GPU datasheet, SXM: 1,979 and 3,958 with sparsity, halved; 3.35 TB/s; PCIe Gen5, "
        "128 GB/s in both directions together; cache: NVIDIA H100 Tensor Core GPU Architecture whitepaper",
    ),
)
#: Older ones that others published latencies of.
OLDER: tuple[Device, ...] = (
    Device(
        name="T4",
        tops={"fp16": 65, "int8": 130},
        bandwidth=320,
        cache=4 * _MIB,
        link=16,
        graphs=True,
        known_as=r"(NVIDIA |Tesla )?T4",
        source="NVIDIA T4 Tensor Core GPU datasheet: 65 and 130; 320 GB/s; PCIe Gen3 x16, 32 GB/s in both directions "
        "together; cache: NVIDIA Turing GPU Architecture whitepaper (TU104)",
    ),
    Device(
        name="AGX Xavier",
        tops={"fp16": 11, "int8": 22},
        bandwidth=137,
        cache=_MIB // 2,
        link=None,
        graphs=False,
        known_as=r"(NVIDIA )?Jetson[- ]AGX Xavier.*",
        source="NVIDIA Technical Blog, Jetson AGX Xavier Delivers 32 TeraOps (2018): the GPU's 11 TFLOPS FP16 and 22 TOPS "
        "INT8; 137 GB/s; 512 KB of L2",
    ),
    Device(
        name="Jetson Nano",
        tops={"fp16": 0.472},
        bandwidth=25.6,
        cache=_MIB // 4,
        link=None,
        graphs=False,
        known_as=r"(NVIDIA )?Jetson Nano.*",
        source="NVIDIA Jetson Nano datasheet: 472 GFLOPS FP16, by CUDA cores: it has no tensor cores; 25.6 GB/s; 256 KB of L2",
    ),
)


def device_named(name: str) -> Device | None:
    """The device that a driver or a board calls so; ``None`` where the name fits none or several.

    The driver calls every module of the Orin family ``Orin``, which says nothing of its speed.

    Args:
        name: Such as ``NVIDIA A100-SXM4-80GB``.
    """
    found = [d for d in (*DEVICES, *OLDER) if re.fullmatch(d.known_as, name.strip(), re.IGNORECASE)]
    return found[0] if len(found) == 1 else None


def on_gpu(target: Target) -> bool:
    """Whether an engine of this target computes on a GPU."""
    return target.backend.startswith("tensorrt") or (
        target.backend == "onnxruntime" and target.device in ("cuda", "tensorrt")
    )
