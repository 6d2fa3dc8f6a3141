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
from vsa_rt.signature import Trusted


def load(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    target: str | Target | None = None,
    precision: str | Precision | None = None,
    threads: int | None = None,
    streams: int | None = None,
    resample: str | Resample | None = None,
    batch: int | None = None,
    trusted: Trusted = None,
) -> Runtime:
    """Open a bundle.

    Args:
        bundle: Its directory.
        target: ``backend:device``; by default the fastest engine of the bundle that held its parity gate and
            can run here.
        precision: Take only an engine of this precision.
        threads: Cores for the engine; all that the process may use by default. A GPU's engine has no use for them.
        streams: Engine calls at the same time, by default one on a CPU and two on a GPU. On a CPU, one gives the
            shortest single call and one per core the most images per second; on a GPU, one copies while another
            computes.
        resample: ``exact`` or ``fast``; by default as the recipe says.
        batch: Images per engine call when many are passed, up to the bundle's max-batch, which is the default.
        trusted: Public keys (PEM files, or folders of them), one of which must have signed the bundle; by default what
            the environment variable ``VSA_RT_TRUST`` names, and without it any bundle is opened.

    Returns:
        A runtime; use it as a context manager or close it.

    Raises:
        BundleError: Damaged, foreign, not signed by a trusted key, or nothing in it can run here.
        UsageError: An option does not fit.
    """
    if isinstance(bundle, Bundle) and trusted is not None:
        raise UsageError("trusted: the bundle is open already; give the keys to Bundle.open")
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, trusted)
    manifest = opened.manifest
    threads = usable_cores() if threads is None else threads
    calls = 1 if streams is None else streams
    if not 1 <= calls <= threads:
        raise UsageError(
            f"threads {threads}, streams {calls}: expected at least one thread, and 1 stream to one per thread"
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
    options = OpenOptions(max_batch=manifest.max_batch, threads=threads, streams=calls, slots=calls + 1)
    with ThreadPoolExecutor(1) as pool:
        verified = pool.submit(opened.verify)
        best = open_best(opened, options, place, wanted)
        try:
            verified.result()
        except BaseException:
            best.session.close()
            raise
    return Runtime(manifest, best, mode, size)
