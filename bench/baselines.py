"""Baselines: what one would use instead of a bundle, on the same inputs, threads and weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from vsa_rt.bench import clock
from vsa_rt.bench.candidate import Candidate, Tensors
from vsa_rt.bench.separate import SeparateSessions, cut_at_taps, open_graph
from vsa_rt.bundle import Bundle
from vsa_rt.engines.select import input_specs, output_specs
from vsa_rt.errors import CheckpointError, EnvironmentUnusable, UsageError, needs

if TYPE_CHECKING:
    from vsa_rt.export.ensemble import Ensemble, LoadedEnsemble


@dataclass(frozen=True)
class Sources:
    """What baselines are made of.

    Attributes:
        load: Loads the torch model that the bundle was made from; called once, when a baseline first needs it.
        bundle: The bundle.
        threads: Cores of each baseline.
    """

    load: Callable[[], LoadedEnsemble]
    bundle: Bundle
    threads: int

    @cached_property
    def ensemble(self) -> LoadedEnsemble:
        """The torch model. It is shared: a baseline that changes it works on a copy."""
        return self.load()

    @property
    def graph(self) -> bytes:
        """The bundle's FP32 graph."""
        return self.bundle.read(self.bundle.manifest.graphs[0].path)


#: Makes a candidate that is ready for batches like the example.
Maker = Callable[[str, Sources, Tensors], Candidate]


@dataclass(frozen=True)
class Baseline:
    """One entry of the table.

    Attributes:
        sentence: What it is, for people.
        make: Gets its name, the sources and one batch of ready tensors, as large as those to come. Raises
            EnvironmentUnusable with the reason where it cannot run here.
    """

    sentence: str
    make: Maker


def _batch(example: Tensors) -> int:
    return len(next(iter(example.values())))


def _torch_taps(
    module: Ensemble,
    forward: Callable[..., Any],
    context: Callable[[], AbstractContextManager[Any]],
    inputs: Tensors,
) -> Tensors:
    """Every tap of one batch, in float32."""
    import torch

    with torch.inference_mode(), context():
        taps = forward(*(torch.from_numpy(inputs[i.name]) for i in module.inputs))
    return {t.name: value.float().numpy() for t, value in zip(module.taps, taps, strict=True)}


def _prepared(sources: Sources) -> Ensemble:
    """The shared torch module, and torch's threads, which are the whole process's, set."""
    with needs("export"):
        import torch
    torch.set_num_threads(sources.threads)
    return sources.ensemble.module


def _eager(name: str, sources: Sources, example: Tensors) -> Candidate:
    module = _prepared(sources)
    call = partial(_torch_taps, module, module, nullcontext)
    return Candidate(name, "baseline", "fp32", BASELINES[name].sentence, call)


def _eager_separate(name: str, sources: Sources, example: Tensors) -> Candidate:
    module = _prepared(sources)
    import torch

    from vsa_rt.export.head import head_tap_records, head_taps

    trunk, head = module.trunk, module.recipe.head
    names = [trunk.same[feature] for feature in head.features]
    needed = [trunk.needed_for({feature}) for feature in names]
    last = [record.name for record in head_tap_records(module.recipe)]

    def call(inputs: Tensors) -> Tensors:
        with torch.inference_mode():
            given = {i.name: torch.from_numpy(inputs[i.name]) for i in module.inputs}
            found = [trunk(given, only)[feature] for feature, only in zip(names, needed, strict=True)]
            used = [torch.nn.functional.normalize(f, dim=1) for f in found] if head.unit_norm else found
            features = torch.cat(used, 1)
            scores = head_taps(module.head, features, module.recipe)
        taps = dict(zip([*names, "features", *last], [*found, features, *scores], strict=True))
        return {tap: value.numpy() for tap, value in taps.items()}

    return Candidate(name, "baseline", "fp32", BASELINES[name].sentence, call)


def _channels_last(name: str, sources: Sources, example: Tensors) -> Candidate:
    shared = _prepared(sources)
    import torch

    # torch's own types lack this keyword for modules.
    convert: Any = copy.deepcopy(shared).to
    module = convert(memory_format=torch.channels_last)
    call = partial(_torch_taps, module, module, nullcontext)
    return Candidate(name, "baseline", "fp32", BASELINES[name].sentence, call)


def _eager_bf16(name: str, sources: Sources, example: Tensors) -> Candidate:
    module = _prepared(sources)
    import torch

    context = partial(torch.autocast, "cpu", torch.bfloat16)
    call = partial(_torch_taps, module, module, context)
    return Candidate(name, "baseline", "bf16 (autocast)", BASELINES[name].sentence, call)


def _compile(name: str, sources: Sources, example: Tensors) -> Candidate:
    module = copy.deepcopy(_prepared(sources))
    import torch

    forward: Any = torch.compile(module, dynamic=False)
    call = partial(_torch_taps, module, forward, nullcontext)
    try:
        seconds = clock.single(lambda: call(example))
    except Exception as error:  # inductor's errors share no base class
        text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise EnvironmentUnusable(f"torch.compile cannot compile the model here: {text.strip()}") from error
    note = f"{BASELINES[name].sentence}; the first call took {seconds:.1f} s, less what inductor's cache held"
    return Candidate(name, "baseline", "fp32", note, call)


def _onnxruntime(name: str, sources: Sources, example: Tensors) -> Candidate:
    manifest = sources.bundle.manifest
    specs = input_specs(manifest), output_specs(manifest)
    session = open_graph("onnxruntime", sources.graph, *specs, _batch(example), sources.threads)
    return Candidate(name, "baseline", "fp32", BASELINES[name].sentence, session.slots[0].run, session.close)


def _separate(backend: str, name: str, sources: Sources, example: Tensors) -> Candidate:
    parts = cut_at_taps(sources.graph, sources.bundle.manifest)
    sessions = SeparateSessions(backend, parts, _batch(example), sources.threads)
    note = f"{BASELINES[name].sentence}: {len(parts)} sessions, {', '.join(p.name for p in parts)}"
    return Candidate(name, "baseline", "fp32", note, sessions, sessions.close)


def _openvino_default(name: str, sources: Sources, example: Tensors) -> Candidate:
    with needs("openvino"):
        import openvino as ov
    core = ov.Core()
    try:
        model = core.read_model(sources.graph)
        model.reshape({tensor: list(array.shape) for tensor, array in example.items()})
        compiled = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": sources.threads})
    except RuntimeError as error:
        raise EnvironmentUnusable(f"openvino cannot compile the graph: {error}") from error
    used = str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
    precision = f"{ {'f32': 'fp32', 'f16': 'fp16'}.get(used, used) } (the library's default)"
    taps = [t.name for t in sources.bundle.manifest.taps]

    def call(inputs: Tensors) -> Tensors:
        values = compiled(dict(inputs))
        return {tap: values[tap] for tap in taps}

    return Candidate(name, "baseline", precision, BASELINES[name].sentence, call)


#: Name to what it is and how it is made, in the order of the help.
BASELINES: dict[str, Baseline] = {
    "eager": Baseline("PyTorch eager as the reference runs: every backbone once, shared ones too", _eager),
    "eager-separate": Baseline(
        "PyTorch eager feature by feature as in the papers: each from the pixels on its own", _eager_separate
    ),
    "channels-last": Baseline(
        "PyTorch eager with weights in torch.channels_last, as the images are anyway", _channels_last
    ),
    "eager-bf16": Baseline("PyTorch eager under torch.autocast, weights cast in every call", _eager_bf16),
    "compile": Baseline("torch.compile with inductor, for this batch size; needs a C++ compiler", _compile),
    "onnxruntime": Baseline("the whole FP32 graph in ONNX Runtime at its defaults, one call", _onnxruntime),
    "onnxruntime-separate": Baseline(
        "ONNX Runtime with a session per backbone and one for the head, whose threads do not spin",
        partial(_separate, "onnxruntime"),
    ),
    "openvino-separate": Baseline(
        "OpenVINO told to compute in fp32 with a session per backbone and one for the head",
        partial(_separate, "openvino"),
    ),
    "openvino-default": Baseline(
        "the whole FP32 graph in OpenVINO at its own defaults, fixed to this batch size, one call",
        _openvino_default,
    ),
}


def require_known(names: Sequence[str]) -> None:
    """Check that every name is a baseline's.

    Raises:
        UsageError: One is not; the message lists them.
    """
    for name in names:
        if name not in BASELINES:
            raise UsageError(f"baseline {name!r}: unknown; there are {', '.join(BASELINES)}")


def make_baselines(
    names: Sequence[str], sources: Sources, example: Tensors
) -> tuple[list[Candidate], dict[str, str]]:
    """Make baselines, as many as can run here.

    Args:
        names: Keys of ``BASELINES``.
        sources: What they are made of.
        example: One batch of ready tensors, as large as those to come.

    Returns:
        The candidates, which the caller closes, and name to reason of those that cannot run here.

    Raises:
        UsageError: An unknown name.
    """
    require_known(names)
    made: list[Candidate] = []
    absent: dict[str, str] = {}
    try:
        for name in dict.fromkeys(names):
            try:
                made.append(BASELINES[name].make(name, sources, example))
            except (EnvironmentUnusable, CheckpointError) as error:
                absent[name] = str(error)
    except BaseException:
        for candidate in made:
            candidate.close()
        raise
    return made, absent
