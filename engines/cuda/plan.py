"""What a session decides before it opens anything: its tensors, its batch sizes, and how each of them is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vsa_rt.contracts import DIVISIONS, Division, TensorSpec
from vsa_rt.engines.backend import OpenOptions
from vsa_rt.engines.cuda.schedule import Schedule, schedule_of
from vsa_rt.engines.cuda.seam import Form
from vsa_rt.engines.cuda.tensors import Tensor, tensors_of
from vsa_rt.errors import EnvironmentUnusable, UsageError


def buckets(max_batch: int, min_batch: int = 1) -> tuple[int, ...]:
    """Batch sizes that an engine really runs: powers of two, the smallest and the largest that it has.

    A call of another size runs as the next larger one of them, padded.

    Args:
        max_batch: The largest.
        min_batch: The smallest; more than 1 where the engine's profile says so.
    """
    smallest = min(min_batch, max_batch)
    powers = {1 << bit for bit in range(max_batch.bit_length())}
    return tuple(sorted({smallest, max_batch} | {n for n in powers if n > smallest}))


@dataclass(frozen=True)
class Plan:
    """What the slots of a session share, and what never changes.

    Attributes:
        inputs: What the graph takes, in the manifest's order.
        outputs: What it gives.
        tensors: Everything that needs a place on the device: those, and what stages give each other.
        max_batch: Largest batch of one call.
        buckets: Batch sizes that really run, ascending.
        schedules: Bucket to how it is computed.
        largest: Form to the largest bucket that is computed by it; what is never used is not there.
        divisions: The forms that the engine has, ``merged`` first.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    tensors: Mapping[str, Tensor]
    max_batch: int
    buckets: tuple[int, ...]
    schedules: Mapping[int, Schedule]
    largest: Mapping[str, int]
    divisions: tuple[Division, ...]

    @property
    def used(self) -> list[tuple[Schedule, int]]:
        """The schedules that are used at all, each with its largest bucket."""
        return [(self.schedules[bucket], bucket) for bucket in self.largest.values()]

    @property
    def streams(self) -> int:
        """Streams that a slot needs."""
        return max(schedule.streams for schedule, _ in self.used)

    def bucket_of(self, count: int) -> int:
        """The bucket that a call of so many images runs as.

        Raises:
            UsageError: There is none.
        """
        if not 1 <= count <= self.max_batch:
            raise UsageError(f"batch {count}: expected 1 to {self.max_batch}")
        return next(bucket for bucket in self.buckets if bucket >= count)


def _form_of(bucket: int, division: Mapping[int, str], first: str) -> str:
    """As ``OpenOptions.division_of``, but threads of the host have no say on a GPU."""
    if not division:
        return first
    return division[max((n for n in division if n <= bucket), default=min(division))]


def plan_of(
    forms: Sequence[Form], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], options: OpenOptions
) -> Plan:
    """Decide how a session computes.

    Args:
        forms: Ways to compute the graph, at least one.
        inputs: What the manifest says the graph takes.
        outputs: What it says the graph gives.
        options: Largest batch and divisions.

    Raises:
        EnvironmentUnusable: The forms are not what the specs say, or a division is none of them.
    """
    schedules: dict[str, Schedule] = {form.name: schedule_of(form) for form in forms if form.stages}
    divisions = tuple(word for word in DIVISIONS if word in schedules)
    if not divisions or len(schedules) != len(forms):
        raise EnvironmentUnusable(
            f"cuda: the engine has the forms {', '.join(form.name for form in forms) or 'none'}; expected merged, "
            "streams or both, each once and with engines; rebuild the bundle"
        )
    for batch, word in options.division.items():
        if word not in divisions:
            raise EnvironmentUnusable(
                f"cuda: calls of {batch} cannot be divided by {word} here; what applies: {', '.join(divisions)}; "
                "rebuild the bundle"
            )
    tensors = tensors_of(forms, inputs, outputs)
    smallest = options.compiled.batches[0] if options.compiled and options.compiled.batches else 1
    sizes = buckets(options.max_batch, smallest)
    names = {size: _form_of(size, options.division, divisions[0]) for size in sizes}
    return Plan(
        inputs=tuple(tensors[spec.name] for spec in inputs),
        outputs=tuple(tensors[spec.name] for spec in outputs),
        tensors=tensors,
        max_batch=options.max_batch,
        buckets=sizes,
        schedules={size: schedules[name] for size, name in names.items()},
        largest={name: size for size, name in names.items()},
        divisions=divisions,
    )
