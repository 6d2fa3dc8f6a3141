"""Ingestion: sources through a bundle into a folder of results, each piece once.

The way of a piece, a thread for each arrow::

    sources ─> intake (open, hash, tell reposts) ─> decoders (processes) ─> sending ─> scoring (rt.stream)
            ─> assembly (frames to an outcome) ─> parts and ledger

Between them are bounded channels, so that the slowest sets the pace. The ledger is written part by part; what was under
way when a run ended is looked at again by the next.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vsa_rt.bundle import Bundle
from vsa_rt.contracts import Precision, Resample, Target
from vsa_rt.doctor import usable_cores
from vsa_rt.errors import ItemError, UsageError
from vsa_rt.manifest import Manifest
from vsa_rt.pipeline.ingest.assembly import Assembly, Finished
from vsa_rt.pipeline.ingest.decoders import Decoders
from vsa_rt.pipeline.ingest.duplicates import NearDuplicates
from vsa_rt.pipeline.ingest.intake import Intake, looking
from vsa_rt.pipeline.ingest.layout import Format, Layout
from vsa_rt.pipeline.ingest.ledger import Ledger
from vsa_rt.pipeline.ingest.parts import NBYTES, PIECES, SECONDS, Parts
from vsa_rt.pipeline.ingest.report import IngestReport
from vsa_rt.pipeline.ingest.scoring import Scoring
from vsa_rt.pipeline.ingest.sending import Sending
from vsa_rt.pipeline.ingest.sources import pieces
from vsa_rt.pipeline.ingest.summary import Rule
from vsa_rt.pipeline.ingest.tally import Tally
from vsa_rt.pipeline.ingest.thumbnails import Thumbnails
from vsa_rt.pipeline.ingest.watch import Watch
from vsa_rt.pipeline.ingest.work import End
from vsa_rt.runtime.load import load
from vsa_rt.runtime.sampling import Sample

if TYPE_CHECKING:
    from vsa_rt.runtime.fused import Runtime

#: How long a picture waits for others to share its engine call with. Calls are padded, so a shorter wait costs a slow
#: source engine time; a longer one delays the windows of feeds.
_LATENCY_MS = 2_000.0
#: Failures that a report names; the list in the output's folder has all.
_SHOWN = 5


@dataclass(frozen=True)
class IngestOptions:
    """How sources are ingested.

    Attributes:
        sample: Which frames of videos are looked at.
        glob: Take only files of folders and archives whose names fit.
        watch: Follow folders; ``None``: walk them once.
        format: Of the results.
        distance: In how many bits the perceptual hashes of near duplicates differ at most; ``None``: only pictures of
            the same bytes are duplicates.
        retry_failed: Whether pieces that failed before are tried again.
        keep_damaged: Whether what could be read of a damaged video counts as its result.
        window: Seconds; a feed is cut into pieces of this length.
        timeout: Seconds without progress after which a decoder is ended.
        longest: Seconds; a video that goes on for longer fails.
        smooth: Seconds over which the scores of a timeline are averaged.
        shortest: Seconds; a shorter segment of a timeline goes to its longer neighbour.
        part_items: Pieces after which a part of the output is written.
        part_seconds: Seconds after which a part is written, if any piece waits for it.
        target: Engine of the bundle; ``None``: the best.
        precision: Likewise.
        resample: How the host resizes; ``None``: as the recipe says.
        batch: Pictures of an engine call; ``None``: max-batch.
        threads: Cores of the engine; ``None``: all.
        on_video: Takes videos that came to their end, with small pictures of them.
    """

    sample: Sample = field(default_factory=lambda: Sample("fps"))
    glob: str | None = None
    watch: Watch | None = None
    format: Format = "jsonl"
    distance: int | None = None
    retry_failed: bool = False
    keep_damaged: bool = False
    window: float = 60.0
    timeout: float = 60.0
    longest: float = 86_400.0
    smooth: float = 3.0
    shortest: float = 1.0
    part_items: int = PIECES
    part_seconds: float = SECONDS
    target: Target | None = None
    precision: Precision | None = None
    resample: Resample | None = None
    batch: int | None = None
    threads: int | None = None
    on_video: Callable[[Finished], None] | None = None

    def __post_init__(self) -> None:
        for name in ("window", "timeout", "longest", "part_seconds"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise UsageError(f"{name} of {value:g} s; expected seconds above 0")
        for name in ("smooth", "shortest"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise UsageError(f"{name} of {value:g} s; expected seconds from 0 on")
        if self.distance is not None:
            NearDuplicates(self.distance)  # refuses one that is none
        if self.part_items < 1:
            raise UsageError(f"part_items of {self.part_items}; expected 1 or more")

    def identity(self, manifest: Manifest, runtime: Runtime, batch: int) -> dict[str, str]:
        """What the results depend on; results of one identity never mix with those of another."""
        engine = runtime.choice.engine
        return {
            "bundle": manifest.digest,
            "engine": f"{engine.target} {engine.precision}",
            "batch": str(batch),
            "resample": str(runtime.resample),
            "sample": str(self.sample),
            "dedup": "exact" if self.distance is None else f"near, {self.distance} bits",
            "damaged videos": "kept" if self.keep_damaged else "failed",
            "window": f"{self.window:g} s",
            "longest": f"{self.longest:g} s",
            "timeline": f"{self.smooth:g} s, {self.shortest:g} s",
        }


def ingest(
    bundle: str | os.PathLike[str] | Bundle,
    sources: Sequence[str],
    out: Path,
    options: IngestOptions,
    *,
    tally: Tally | None = None,
    stop: threading.Event | None = None,
    stdin: BinaryIO | None = None,
) -> IngestReport:
    """Run sources through a bundle; what a folder has already is not looked at again.

    Args:
        bundle: Its directory.
        sources: Files, folders, archives, lists, ``-``, cameras and addresses; see `sources.pieces`.
        out: Folder of the results; made where it is not there.
        options: How.
        tally: Counts, for whoever shows a run's progress.
        stop: Ends the run early: what the engine has is finished and written.
        stdin: Standard input; by default the process's.

    Returns:
        What came of it.

    Raises:
        UsageError: ``out`` has results of another bundle or other options, or lies in a source; an option is none.
        BundleError: The bundle cannot be used.
        EnvironmentUnusable: The output cannot be written, or a library is absent. Every part before is whole, and the
            same command goes on where it ended.
    """
    if not sources:
        raise UsageError("no source: name files, folders, archives, lists, -, cameras or addresses")
    _check_place(sources, out)
    stop = stop or threading.Event()
    run = _Run(options, tally or Tally(), stop)
    return run(bundle if isinstance(bundle, Bundle) else Bundle.open(bundle), sources, out, stdin)


def _check_place(sources: Iterable[str], out: Path) -> None:
    """Results must not become sources."""
    for source in sources:
        try:
            inside = os.path.isdir(source) and out.resolve().is_relative_to(Path(source).resolve())
        except (OSError, ValueError):
            continue
        if inside:
            raise UsageError(f"{out}: lies in the source {source}; name a folder elsewhere")


class _Run:
    def __init__(self, options: IngestOptions, tally: Tally, stop: threading.Event) -> None:
        self._options, self._tally, self._stop = options, tally, stop

    def __call__(
        self, bundle: Bundle, sources: Sequence[str], out: Path, stdin: BinaryIO | None
    ) -> IngestReport:
        options, manifest = self._options, bundle.manifest
        if not manifest.labels:
            raise UsageError("the bundle has no labels; ingestion needs one with a head")
        cores = options.threads or usable_cores()
        with ExitStack() as stack:
            runtime = stack.enter_context(
                load(
                    bundle,
                    target=options.target,
                    precision=options.precision,
                    threads=cores,
                    streams=cores,
                    resample=options.resample,
                    batch=options.batch,
                )
            )
            if runtime.preprocessor is None:
                raise UsageError("the bundle takes ready tensors only; ingestion needs one that takes images")
            layout = Layout(tuple(manifest.labels), manifest.scores_kind, options.format)
            batch = options.batch or manifest.max_batch
            identity = options.identity(manifest, runtime, batch) | layout.identity
            ledger = stack.enter_context(Ledger(out, identity))
            parts = stack.enter_context(
                Parts(ledger, layout, pieces=options.part_items, nbytes=NBYTES, seconds=options.part_seconds)
            )
            before = ledger.counts()
            self._tally.before = sum(before.values()) - (before["failed"] if options.retry_failed else 0)
            self._work(sources, runtime, ledger, parts, batch, stdin)
            parts.flush()
            self._tally.end()
            return IngestReport(
                out=out,
                numbers=self._tally.numbers(),
                totals=ledger.counts(),
                parts=len(ledger.parts()),
                notes=tuple(parts.notes),
                engine=runtime.choice.why,
                ended="stopped" if self._stop.is_set() else "complete",
                format=options.format,
                failures=tuple(
                    ItemError(entry.key, entry.reason) for entry in islice(ledger.failed(), _SHOWN)
                ),
            )

    def _work(
        self,
        sources: Sequence[str],
        runtime: Runtime,
        ledger: Ledger,
        parts: Parts,
        batch: int,
        stdin: BinaryIO | None,
    ) -> None:
        options = self._options
        if runtime.preprocessor is None:
            raise UsageError("the bundle takes ready tensors only; ingestion needs one that takes images")
        near = _near_of(ledger, options.distance)
        decoders = Decoders(usable_cores(), options.timeout)
        self._tally.decoding = lambda: decoders.depth
        how = looking(options.sample, options.longest, near is not None, runtime.preprocessor)
        intake = Intake(
            ledger,
            decoders,
            how,
            self._tally,
            lambda work: sending.follow(
                work,
                options.sample,
                options.window,
                options.timeout,
                known=lambda key: ledger.entry(key) is not None,
            ),
            limit=options.timeout,
        )
        sending = Sending(
            intake.works,
            near,
            options.longest,
            Thumbnails if options.on_video is not None else None,
            self._tally,
        )
        scoring = Scoring(
            sending.channel,
            lambda pictures: runtime.stream(
                pictures,
                max_latency_ms=_LATENCY_MS,
                max_batch=batch,
                # A picture's scores do not depend on what came with it, in this run or when it is resumed.
                pad=True,
                watch=self._tally.watch,
            ),
        )
        assembly = Assembly(
            parts,
            _rule_of(runtime.manifest, options),
            self._tally,
            keep_damaged=options.keep_damaged,
            entered=intake.entered,
            on_video=options.on_video,
        )
        over = threading.Event()
        try:
            intake.start(
                pieces(
                    sources,
                    glob=options.glob,
                    watch=None if options.watch is None else replace(options.watch, stop=over),
                    known=_known(ledger, options.retry_failed),
                    stdin=stdin,
                )
            )
            sending.start()
            scoring.start()
            stopped = False
            for found in scoring:
                if options.watch is not None and options.watch.stop.is_set():
                    over.set()
                if self._stop.is_set() and not stopped:
                    stopped = True
                    over.set()
                    sending.stop()
                    intake.close()
                    decoders.close()
                if found is None:
                    assembly.idle()
                elif isinstance(found, End):
                    assembly.end(found)
                else:
                    assembly.look(*found)
        finally:
            over.set()
            intake.close()
            decoders.close()
            sending.close()
            scoring.close()


def _known(ledger: Ledger, retry_failed: bool) -> Callable[[str], bool]:
    """Says of a key whether its piece needs no look."""
    if retry_failed:
        return ledger.done
    return lambda key: bool(ledger.states([key]))


def _near_of(ledger: Ledger, distance: int | None) -> NearDuplicates | None:
    """What earlier runs computed, by its look."""
    if distance is None:
        return None
    near = NearDuplicates(distance)
    for key, perceptual in ledger.perceptual():
        near.add(key, perceptual)
    return near


def _rule_of(manifest: Manifest, options: IngestOptions) -> Rule:
    return Rule(manifest.labels, manifest.task, manifest.threshold, options.smooth, options.shortest)
