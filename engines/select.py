"""Choosing an engine of a bundle for this machine: filter, rank, and keep a reason for every refusal."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vsa_rt.bundle import Bundle
from vsa_rt.contracts import Precision, Target, TensorSpec
from vsa_rt.engines import table
from vsa_rt.engines.backend import Backend, OpenOptions, Profiler, Session
from vsa_rt.errors import BundleError, EnvironmentUnusable, UsageError
from vsa_rt.manifest import EngineRecord, Manifest


@dataclass(frozen=True)
class Opened:
    """An opened engine and how it came to be the one.

    Attributes:
        session: Ready to run.
        engine: Its record in the manifest.
        why: One sentence.
        refused: Engine folder to the reason why it was passed over.
    """

    session: Session
    engine: EngineRecord
    why: str
    refused: dict[str, str]


def input_specs(manifest: Manifest) -> list[TensorSpec]:
    """The graph's inputs."""
    return [TensorSpec(i.name, i.dtype, (None, *i.shape)) for i in manifest.inputs]


def output_specs(manifest: Manifest) -> list[TensorSpec]:
    """The graph's outputs."""
    return [TensorSpec(t.name, "float32", (None, t.width)) for t in manifest.taps]


def open_session(bundle: Bundle, engine: EngineRecord, options: OpenOptions) -> Session:
    """Open one engine of a bundle; its files' hashes are taken of the bytes that are opened.

    Raises:
        BundleError: A file is damaged.
        EnvironmentUnusable: The backend is not usable here or refuses the engine.
    """
    backend, files, options = _ready(bundle, engine, options)
    manifest = bundle.manifest
    return backend.open(files, input_specs(manifest), output_specs(manifest), options)


def open_profiler(bundle: Bundle, engine: EngineRecord, options: OpenOptions) -> Profiler:
    """The same with the backend's counters of layers on.

    Raises:
        BundleError: A file is damaged.
        EnvironmentUnusable: The backend is not usable here, refuses the engine or keeps no counters.
    """
    backend, files, options = _ready(bundle, engine, options)
    manifest = bundle.manifest
    return backend.profiler(files, input_specs(manifest), output_specs(manifest), options)


def _ready(
    bundle: Bundle, engine: EngineRecord, options: OpenOptions
) -> tuple[Backend, list[bytes], OpenOptions]:
    """The backend of an engine, its files' bytes, and the options with what the manifest says of it.

    Raises:
        BundleError: A file is damaged.
        EnvironmentUnusable: The backend is not usable here.
    """
    target = _here(engine)
    try:
        found = table.probe(target)
    except UsageError as error:  # the bundle of a newer version: its other engines may serve
        raise EnvironmentUnusable(str(error)) from error
    if not found.usable:
        raise EnvironmentUnusable(f"{found.reason}; {found.install}" if found.install else found.reason)
    files = [bundle.read(name) for name in engine.files]
    # Measured with so many threads, it says nothing of others; a GPU has no use for any.
    if not options.division and (engine.compiled is not None or options.threads == engine.threads):
        division = {int(batch): word for batch, word in engine.division.items()}
        options = replace(options, division=division)
    options = replace(
        options,
        device=target.device,
        compiled=engine.compiled,
        graph=lambda: bundle.read(engine.graph),
        # A version-compatible engine brings code for the host along: its maker must be known.
        host_code=bool(bundle.signer),
    )
    return table.backend(target.backend), files, options


def _here(engine: EngineRecord) -> Target:
    """Where an engine would run: one that other GPUs may open as well is for the one that is here."""
    target = Target.parse(engine.target)
    if engine.compiled is None or engine.compiled.hardware == "none" or target.backend not in table.BACKENDS:
        return target
    there = table.backend(target.backend).devices
    return target if target.device in there or not there else Target(target.backend, there[0])


def _refusal(engine: EngineRecord, target: Target | None, precision: Precision | None) -> str:
    if target is not None and not Target.parse(engine.target).covers(target):
        return f"target {target} was asked for"
    if precision is not None and engine.precision != precision:
        return f"precision {precision} was asked for"
    if target is None and not engine.gate.passed:
        return f"failed parity: {'; '.join(engine.gate.reasons)}; name its target to open it all the same"
    return ""


def _why(engine: EngineRecord, last: bool) -> str:
    """One sentence: why this engine runs."""
    which = "the only one that fits" if last else "the fastest that fits"
    here = table.probe(_here(engine)).machine
    if engine.proof == "graph":
        which = "the only one that fits" if last else "the first that fits"
        ran = f"compiled ahead of time and never measured; this is {here}"
    else:
        batch, latency = next(iter(engine.latency_ms.items()), ("1", 0.0))
        moved = "" if here == engine.machine else f", and this is {here}"
        ran = f"{latency:.1f} ms at batch {batch} when built on {engine.machine}{moved}"
    failed = "" if engine.gate.passed else f"; it failed parity: {'; '.join(engine.gate.reasons)}"
    return f"{engine.target} {engine.precision}: {which}; {ran}{failed}"


def open_best(
    bundle: Bundle, options: OpenOptions, target: Target | None = None, precision: Precision | None = None
) -> Opened:
    """Open the fastest engine that fits the request and this machine.

    Args:
        bundle: Its engines are in the order that the build measured.
        options: Batch, threads and slots.
        target: Take only this one. An engine that failed parity is opened only when named so.
        precision: Take only this one.

    Raises:
        BundleError: A file is damaged, or no engine is left; the message has every reason.
        UsageError: No such target, or the bundle has no engine of that target and precision.
    """
    if target is not None:
        table.probe(target)  # an unknown backend or device is the caller's mistake
    refused: dict[str, str] = {}
    engines = bundle.manifest.engines
    if not engines:
        raise BundleError(f"{bundle.root}: exported but not built; run vsa-rt build {bundle.root} -o BUNDLE")
    for engine in engines:
        reason = _refusal(engine, target, precision)
        if not reason:
            try:
                session = open_session(bundle, engine, options)
            except EnvironmentUnusable as error:
                reason = str(error)
            else:
                last = len(engines) - len(refused) == 1
                return Opened(session, engine, _why(engine, last), refused)
        refused[engine.folder] = reason
    reasons = "; ".join(f"{folder}: {reason}" for folder, reason in refused.items())
    if all(reason.endswith("was asked for") for reason in refused.values()):
        there = ", ".join(f"{e.target} {e.precision}" for e in engines)
        raise UsageError(f"{bundle.root}: no engine for that request; it holds {there}")
    raise BundleError(
        f"{bundle.root}: no engine can run here ({reasons}); rebuild it here: vsa-rt build {bundle.root} "
        "-o NEW"
    )
