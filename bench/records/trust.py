"""Trust: what was measured where, parity with the reference, and the verdict."""

from __future__ import annotations

from typing import Literal

from vsa_rt.bench.parity import Parity
from vsa_rt.bench.records.record import Record

Level = Literal["green", "amber", "red"]


class PlanParity(Record, frozen=True, kw_only=True):
    """A plan's parity with its reference; ``plan`` is empty for the ONNX graph itself."""

    plan: str
    parity: Parity


class ParityCheck(Record, frozen=True, kw_only=True):
    """What the parities were measured on.

    Attributes:
        bundle: The bundle's name.
        reference: ``torch``, ``onnx`` or ``golden``.
        why: Why it is not torch; empty if it is.
        data: ``golden``, ``shipped`` (photographs of installed packages) or a folder's name.
        decides: Whether labels mean something: those of a random head do not.
        stand_ins: Photographs with stand-ins for their ready tensors.
        rejected: Photographs that could not be read, in words.
        refused: Engine folder to the reason why it was not checked.
        plans: One entry each.
    """

    bundle: str
    reference: str
    why: str
    data: str
    decides: bool
    stand_ins: int
    rejected: list[str]
    refused: dict[str, str]
    plans: list[PlanParity]


class BundleFacts(Record, frozen=True, kw_only=True):
    """A bundle, so far as the report needs it.

    Attributes:
        name: Of its directory, unique within the report.
        digest: Its manifest's SHA-256.
        recipe: Its recipe's name; empty for none.
        task: What its scores mean.
        labels: In the order of its scores.
        random_weights: Backbones, or ``head``, with seeded random weights.
        max_batch: Largest batch of one call.
    """

    name: str
    digest: str
    recipe: str
    task: str
    labels: list[str]
    random_weights: list[str]
    max_batch: int


class Environment(Record, frozen=True, kw_only=True):
    """The machine and the software.

    Attributes:
        processor: Model name.
        cores: That the process may use.
        memory_gib: Of the machine.
        instruction_sets: Those that matter.
        system: Kernel.
        python: Version.
        libraries: Name to version of what took part.
        variables: Environment variables that steer threads and instruction sets, those that are set.
        governor: Of the processor's frequency; ``None`` where the system does not tell.
        pinned: Whether the clocks are fixed; ``None`` likewise.
        gpus: Name and driver of each; empty without.
        busy: Cores that others used in the second before the start; ``None`` where the system does not tell.
    """

    processor: str
    cores: int
    memory_gib: float | None
    instruction_sets: list[str]
    system: str
    python: str
    libraries: dict[str, str]
    variables: dict[str, str]
    governor: str | None
    pinned: bool | None
    gpus: list[str]
    busy: float | None


class Reason(Record, frozen=True, kw_only=True):
    """One reason for the verdict's colour.

    Attributes:
        level: How grave; ``green`` for facts that a reader should know.
        code: For programs, such as ``drift``.
        text: For people: what, where, what to do.
    """

    level: Level
    code: str
    text: str


class Verdict(Record, frozen=True, kw_only=True):
    """How far the figures can be trusted.

    Attributes:
        level: That of the gravest reason.
        reasons: Gravest first.
        headline: One sentence with the figure that matters; ``None`` in a red report.
    """

    level: Level
    reasons: list[Reason]
    headline: str | None
