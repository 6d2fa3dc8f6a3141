"""Opening a bundle: verify, choose an engine, hand out a Runtime."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from vsa_rt.bundle import Bundle
from vsa_rt.contracts import Precision, Resample, Target
from vsa_rt.doctor import usable_cores
from vsa_rt.engines.backend import OpenOptions
from vsa_rt.engines.select import open_best
from vsa_rt.errors import UsageError
from vsa_rt.runtime.fused import Runtime


def load(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    target: str | Target | None = None,
    precision: str | Precision | None = None,
    threads: int | None = None,
    streams: int = 1,
    resample: str | Resample | None = None,
    batch: int | None = None,
) -> Runtime:
    """Open a bundle.

    Args:
        bundle: Its directory.
        target: ``backend:device``; by default the fastest engine of the bundle that held its parity gate and
            can run here.
        precision: Take only an engine of this precision.
        threads: Cores for the engine; all that the process may use by default.
        streams: Engine calls at the same time. One gives the shortest single call; one per core, the most
            images per second.
        resample: ``exact`` or ``fast``; by default as the recipe says.
        batch: Images per engine call when many are passed, up to the bundle's max-batch, which is the default.

    Returns:
        A runtime; use it as a context manager or close it.

    Raises:
        BundleError: Damaged, foreign, or nothing in it can run here.
        UsageError: An option does not fit.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    manifest = opened.manifest
    threads = usable_cores() if threads is None else threads
    if not 1 <= streams <= threads:
        raise UsageError(
            f"threads {threads}, streams {streams}: expected at least one thread, and 1 stream to one per thread"
        )
    try:
        wanted = Precision(precision) if precision else None
        mode = Resample(resample) if resample else manifest.resample
    except ValueError as error:
        raise UsageError(f"{error}; precisions are {', '.join(Precision)}; resamples exact, fast") from error
    size = manifest.max_batch if batch is None else batch
    if not 1 <= size <= manifest.max_batch:
        raise UsageError(f"batch {batch}: expected 1 to {manifest.max_batch}, the bundle's max-batch")
    place = Target.parse(target) if isinstance(target, str) else target
    # One slot more than streams: the host fills it while the engine works on the others.
    options = OpenOptions(max_batch=manifest.max_batch, threads=threads, streams=streams, slots=streams + 1)
    with ThreadPoolExecutor(1) as pool:
        verified = pool.submit(opened.verify)
        best = open_best(opened, options, place, wanted)
        try:
            verified.result()
        except BaseException:
            best.session.close()
            raise
    return Runtime(manifest, best, streams, mode, size)
