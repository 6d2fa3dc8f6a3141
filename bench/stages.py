"""Where a call's time goes: decode, resize, copy in, compute, copy out, post, beside the whole by the runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from vsa_rt.bench import clock
from vsa_rt.bench.intervals import series
from vsa_rt.bench.records.timing import Split, Stage, StageTime
from vsa_rt.contracts import Item
from vsa_rt.errors import ItemError, UsageError

if TYPE_CHECKING:
    from vsa_rt.runtime.fused import Runtime

#: What a stage holds on targets that share the host's memory.
_NOTES: dict[Stage, str] = {
    "decode": "encoded bytes to pixels",
    "resize": "every input size, written into the engine's own buffers",
    "copy-in": "the ready tensors beside the image; pixels need no copy",
    "compute": "the engine's call, ended by its own wait",
    "copy-out": "every tap, so that results never share memory with the engine",
    "post": "scores to labels",
}


def _one_call(runtime: Runtime, images: Sequence[Item | bytes]) -> dict[Stage, float]:
    """One call's images through the runtime's own parts, on this thread, with a lap after each stage."""
    preprocessor, slot = runtime.preprocessor, runtime.session.slots[0]
    if preprocessor is None:
        raise UsageError("this bundle takes ready tensors only: its time cannot be split by image stages")
    rows = [{name: buffer[row] for name, buffer in slot.buffers.items()} for row in range(len(images))]
    taken: dict[Stage, float] = {}
    watch = clock.Stopwatch()
    if preprocessor.specs:
        pictures = [
            preprocessor.decode(i.image if isinstance(i, Item) else i, f"image {n}")
            for n, i in enumerate(images)
        ]
        taken["decode"] = watch.lap()
        for number, picture in enumerate(pictures):
            preprocessor.resize(picture, rows[number], f"image {number}")
        taken["resize"] = watch.lap()
    if preprocessor.rows:
        for number, image in enumerate(images):
            preprocessor.fill_rows(image, rows[number], f"image {number}")
        taken["copy-in"] = watch.lap()
    outputs = slot.run({name: buffer[: len(images)] for name, buffer in slot.buffers.items()})
    taken["compute"] = watch.lap()
    copies: dict[str, Any] = {name: value.copy() for name, value in outputs.items()}
    taken["copy-out"] = watch.lap()
    if runtime.labels:
        runtime.labeller(copies["scores"])
        taken["post"] = watch.lap()
    return taken


def split(runtime: Runtime, plan: str, batch: int, images: Sequence[Item | bytes], seconds: float) -> Split:
    """Measure the stages of a call and, in turns with them, the whole call as users make it.

    The stages run one after the other on one thread. The runtime prepares a batch's images on several threads, so
    that its whole may be shorter than their sum.

    Args:
        runtime: Opened; nobody else may use it meanwhile.
        plan: Its name in the report.
        batch: Images per call.
        images: Encoded, with their ready tensors where the graph takes some; they take turns.
        seconds: How long to measure: at least 15 calls of each, but where they take longer than four times that.

    Raises:
        ItemError: An image cannot be processed.
        UsageError: The bundle takes ready tensors only.
    """
    parts: dict[Stage, list[float]] = {stage: [] for stage in get_args(Stage)}
    whole: list[float] = []

    def stages_of(chosen: Sequence[Item | bytes]) -> None:
        for stage, taken in _one_call(runtime, chosen).items():
            parts[stage].append(taken)

    def whole_of(chosen: Sequence[Item | bytes]) -> None:
        watch = clock.Stopwatch()
        results = runtime(chosen) if runtime.labels else runtime.features(chosen).errors
        whole.append(watch.lap())
        for result in results:
            if isinstance(result, ItemError):
                raise result

    def call(index: int) -> None:
        chosen = [images[(index * batch + row) % len(images)] for row in range(batch)]
        # Whoever comes second finds the images in the caches.
        for measure in (stages_of, whole_of) if index % 2 else (whole_of, stages_of):
            measure(chosen)

    clock.loop(call, seconds, at_least=15)
    stages = [
        StageTime(
            stage=stage,
            series=series(values) if values else None,
            note=_NOTES[stage] if values else "nothing to do here",
        )
        for stage, values in parts.items()
    ]
    return Split(plan=plan, batch=batch, stages=stages, whole=series(whole), images=len(images))
