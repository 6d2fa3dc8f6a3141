"""The fp32 engine of one target, open for as long as the target's plans are timed beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from vsa_rt.engines.backend import Session
from vsa_rt.pipeline.precision.built import Built, OpenEngine
from vsa_rt.pipeline.precision.latency import median, times_as_fast
from vsa_rt.pipeline.precision.workshop import Samples, Workshop

#: What one plan's measurement beside fp32 may take for one batch size, in seconds.
_SECONDS = 4.0
_EXACT, _PLAN = "fp32", "plan"


@dataclass(frozen=True)
class Pace:
    """How fast an engine is.

    Attributes:
        latency_ms: Batch size to median milliseconds.
        speedup: Batch size to how many times as fast as fp32 it was, in the same run.
    """

    latency_ms: dict[str, float]
    speedup: dict[str, float]


@dataclass
class Baseline:
    """Times plans beside one opening of the fp32 engine: what that opening adds or saves is in every ratio alike.

    Attributes:
        workshop: Knows the photographs and the batch sizes.
        engine: Open; whoever opened it closes it.
    """

    workshop: Workshop
    engine: OpenEngine
    _seen: dict[int, list[Samples]] = field(default_factory=dict)

    @property
    def built(self) -> Built:
        """The fp32 engine."""
        return self.engine.built

    def _times(self, sessions: Mapping[str, Session], batch: int) -> dict[str, Samples]:
        found = self.workshop.times(sessions, batch, _SECONDS)
        self._seen.setdefault(batch, []).append(found[_EXACT])
        return found

    def beside(self, engine: OpenEngine) -> Pace:
        """How fast an open engine is, interleaved with fp32."""
        latency, speedup = {}, {}
        for batch in self.workshop.batches:
            found = self._times({_EXACT: self.engine.session, _PLAN: engine.session}, batch)
            latency[str(batch)] = median(found[_PLAN])
            speedup[str(batch)] = times_as_fast(found[_EXACT], found[_PLAN])
        return Pace(latency, speedup)

    def pace(self) -> Pace:
        """How fast fp32 itself is, over everything that was timed beside it; timed alone where nothing was."""
        for batch in self.workshop.batches:
            if batch not in self._seen:
                self._times({_EXACT: self.engine.session}, batch)
        latency = {str(batch): median(np.concatenate(times)) for batch, times in self._seen.items()}
        return Pace(latency, dict.fromkeys(latency, 1.0))
