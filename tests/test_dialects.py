"""Each version of TensorRT is spoken to in its own words: what is set on its bindings, and what is refused before."""

from __future__ import annotations

import gc
import platform
import sys
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
from recorded_trt import CONFIG, Bindings, Config, Engine, RuntimeConfig

from vsa_rt.engines.compiling import Tuning
from vsa_rt.engines.tensorrt.dialects import Classic10, Classic11, Dialect, Rtx, dialect_of
from vsa_rt.errors import EnvironmentUnusable, UsageError

MIB = 1 << 20
real = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="tensorrt-rtx-cu13 has no wheel for this",
)


def dialect(package: str, version: str) -> tuple[Dialect, Bindings]:
    bindings = Bindings(version, rtx=package == "tensorrt-rtx")
    return dialect_of(package, version, bindings), bindings


def configured(package: str, version: str, tuning: Tuning, *capabilities: str) -> tuple[Config, list[str]]:
    """A configuration as the dialect set it, and the flags that it says are on."""
    spoken, bindings = dialect(package, version)
    config = Config(bindings)
    spoken.check(tuning, capabilities or ["sm_86"])
    return config, spoken.configure(config, tuning, capabilities or ["sm_86"])


# Which one


@pytest.mark.parametrize(
    ("package", "version", "kind"),
    [
        ("tensorrt", "10.3.0", Classic10),
        ("tensorrt", "10.16.1", Classic10),
        ("tensorrt", "11.0.0", Classic11),
        ("tensorrt", "11.4.0.106", Classic11),
        ("tensorrt-rtx", "1.2.0.54", Rtx),
        ("tensorrt-rtx", "1.7.1.116", Rtx),
    ],
)
def test_a_version_has_its_dialect(package: str, version: str, kind: type[Dialect]) -> None:
    spoken, _ = dialect(package, version)
    assert type(spoken) is kind
    assert spoken.name.startswith(package)


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("tensorrt", "8.6.1"),
        ("tensorrt", "10.2.0"),
        ("tensorrt", "10.17.0"),
        ("tensorrt", "12.0.0"),
        ("tensorrt", "unknown"),
        ("tensorrt-rtx", "1.1.0"),
        ("tensorrt-rtx", "2.0.0"),
    ],
)
def test_a_version_that_is_not_known_is_refused_and_not_guessed(package: str, version: str) -> None:
    with pytest.raises(
        EnvironmentUnusable, match=rf"{package} {version}: no version .* it knows 1.*install one"
    ):
        dialect_of(package, version)


# Typing


@pytest.mark.parametrize("version", ["10.3.0", "10.11.0", "10.12.0", "10.16.0"])
def test_types_are_strong_where_nothing_is_quantised(version: str) -> None:
    spoken, bindings = dialect("tensorrt", version)
    network, typing, flags = spoken.network(bindings.Builder(None), quantised=False)
    assert (typing, flags) == ("strong", ())
    assert network.flags == 1 << int(bindings.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


@pytest.mark.parametrize(
    ("version", "typing"), [("10.3.0", "weak"), ("10.11.9", "weak"), ("10.12.0", "strong")]
)
def test_a_quantised_graph_has_weak_types_before_10_12(version: str, typing: str) -> None:
    spoken, bindings = dialect("tensorrt", version)
    made = spoken.network(bindings.Builder(None), quantised=True)
    assert made.typing == typing
    assert made.flags == (("FP16", "INT8") if typing == "weak" else ())
    assert bool(made.network.flags) == (typing == "strong")
    assert set(made.flags) <= set(bindings.BuilderFlag.__members__)


@pytest.mark.parametrize(("package", "version"), [("tensorrt", "11.4.0"), ("tensorrt-rtx", "1.7.1")])
@pytest.mark.parametrize("quantised", [False, True])
def test_later_ones_have_strong_types_always(package: str, version: str, quantised: bool) -> None:
    spoken, bindings = dialect(package, version)
    made = spoken.network(bindings.Builder(None), quantised)
    assert (made.typing, made.flags) == ("strong", ())


def test_weak_types_flags_are_set_and_told() -> None:
    spoken, bindings = dialect("tensorrt", "10.3.0")
    config = Config(bindings)
    assert spoken.configure(config, Tuning(), ["sm_87"], ("FP16", "INT8")) == ["FP16", "INT8"]


# Options

VERSIONS = [("tensorrt", "10.3.0"), ("tensorrt", "11.4.0"), ("tensorrt-rtx", "1.7.1")]


@pytest.mark.parametrize(("package", "version"), VERSIONS)
def test_fp32_is_no_tf32(package: str, version: str) -> None:
    config, flags = configured(package, version, Tuning())
    assert "TF32" in config.bindings.BuilderFlag.__members__
    assert not config.flags
    assert flags == []


@pytest.mark.parametrize(("package", "version"), VERSIONS)
def test_what_is_asked_for_is_set(package: str, version: str) -> None:
    config, flags = configured(
        package, version, Tuning(level=5, aux_streams=0, workspace=64 * MIB, strip=True)
    )
    assert config.set["builder_optimization_level"] == 5
    assert config.set["max_aux_streams"] == 0
    assert config.set["WORKSPACE"] == 64 * MIB
    assert set(flags) == config.flags == {"STRIP_PLAN", "REFIT_IDENTICAL"}


@pytest.mark.parametrize(("package", "version"), VERSIONS)
def test_what_is_not_asked_for_is_left_to_the_library(package: str, version: str) -> None:
    config, _ = configured(package, version, Tuning())
    assert not {"builder_optimization_level", "max_aux_streams", "WORKSPACE"} & set(config.set)


@pytest.mark.parametrize(("package", "version"), VERSIONS)
def test_layers_keep_the_names_of_their_nodes(package: str, version: str) -> None:
    config, _ = configured(package, version, Tuning())
    assert config.set["profiling_verbosity"].name == "DETAILED"


def test_a_workspace_that_the_library_leaves_as_it_was_is_refused() -> None:
    spoken, bindings = dialect("tensorrt", "10.3.0")
    config = Config(bindings)
    vars(config)["takes"] = MIB
    with pytest.raises(UsageError, match=rf"workspace of {2 * MIB} bytes.*stays at {MIB}"):
        spoken.configure(config, Tuning(workspace=2 * MIB), ["sm_87"])
    spoken.configure(config, Tuning(workspace=MIB), ["sm_87"])


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0"])
def test_a_version_compatible_engine_carries_its_runtime(version: str) -> None:
    _, flags = configured("tensorrt", version, Tuning(version_compatible=True))
    assert flags == ["VERSION_COMPATIBLE"]


@pytest.mark.parametrize(
    ("version", "hardware", "level"),
    [
        ("10.3.0", "none", "NONE"),
        ("10.3.0", "ampere+", "AMPERE_PLUS"),
        ("11.4.0", "ampere+", "AMPERE_PLUS"),
        ("11.4.0", "same capability", "SAME_COMPUTE_CAPABILITY"),
    ],
)
def test_a_hardware_level_is_the_librarys_own(version: str, hardware: Any, level: str) -> None:
    config, _ = configured("tensorrt", version, Tuning(hardware=hardware))
    assert config.set["hardware_compatibility_level"].name == level


@pytest.mark.parametrize(
    ("package", "version", "tuning", "capabilities", "words"),
    [
        ("tensorrt", "10.3.0", Tuning(hardware="same capability"), ["sm_86"], r"10\.3\.0 has no .*none, ampere\+$"),
        ("tensorrt", "11.4.0", Tuning(hardware="ampere+"), ["sm_75"], "sm_75 is older than Ampere"),
        ("tensorrt-rtx", "1.7.1", Tuning(hardware="ampere+"), ["sm_86"], r"no such levels.*sm_86\+sm_89"),
        ("tensorrt-rtx", "1.7.1", Tuning(version_compatible=True), ["sm_86"], "lean runtime.*leave it out"),
        ("tensorrt-rtx", "1.7.1", Tuning(strip=True), ["sm_86", "sm_89"], "one capability only, not sm_86, sm_89"),
        ("tensorrt-rtx", "1.7.1", Tuning(), ["sm_87"], "'sm_87': unknown; there are sm_75, .*sm_89, sm_120, sm_121$"),
        ("tensorrt-rtx", "1.7.1", Tuning(), [], "no compute capability"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_compiled(
    package: str, version: str, tuning: Tuning, capabilities: list[str], words: str
) -> None:
    spoken, _ = dialect(package, version)
    with pytest.raises(UsageError, match=words):
        spoken.check(tuning, capabilities)


def test_rtx_compiles_for_a_list() -> None:
    config, _ = configured("tensorrt-rtx", "1.7.1", Tuning(), "sm_86", "sm_89", "sm_120")
    assert config.set["num_compute_capabilities"] == 3
    assert config.capabilities == ["SM86", "SM89", "SM120"]


def test_a_capability_that_the_library_does_not_take_is_refused() -> None:
    spoken, bindings = dialect("tensorrt-rtx", "1.7.1")
    bindings.refused_capabilities = {"SM89"}
    with pytest.raises(UsageError, match=r"'sm_89': tensorrt-rtx 1\.7\.1 does not take it"):
        spoken.configure(Config(bindings), Tuning(), ["sm_86", "sm_89"])


def test_only_what_measures_on_the_device_has_a_timing_cache() -> None:
    assert [dialect(package, version)[0].measures for package, version in VERSIONS] == [True, True, False]


# Running


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0"])
def test_a_context_has_no_memory_of_its_own(version: str) -> None:
    spoken, bindings = dialect("tensorrt", version)
    assert spoken.new_context(Engine()).how is bindings.ExecutionContextAllocationStrategy.USER_MANAGED


def test_an_rtx_context_neither_captures_by_itself_nor_finishes_kernels_behind_ones_back() -> None:
    spoken, bindings = dialect("tensorrt-rtx", "1.7.1")
    config = spoken.new_context(Engine()).how
    assert config.strategy is bindings.ExecutionContextAllocationStrategy.USER_MANAGED
    assert config.cuda_graph_strategy is bindings.CudaGraphStrategy.DISABLED
    chosen = config.dynamic_shapes_kernel_specialization_strategy
    assert chosen is bindings.DynamicShapesKernelSpecializationStrategy.EAGER


def test_contexts_of_one_rtx_engine_share_what_was_finished() -> None:
    spoken, _ = dialect("tensorrt-rtx", "1.7.1")
    one, other = Engine(), Engine()
    first, second = spoken.new_context(one).how, spoken.new_context(one).how
    assert first is not second
    assert first.cache is second.cache is not None
    assert spoken.new_context(other).how.cache is not first.cache


def test_what_rtx_contexts_need_lives_as_long_as_their_engine() -> None:
    spoken, _ = dialect("tensorrt-rtx", "1.7.1")
    engine = Engine()
    config = weakref.ref(spoken.new_context(engine).how)
    gc.collect()
    assert config() is not None
    del engine
    gc.collect()
    assert config() is None


@pytest.mark.parametrize(("package", "version"), VERSIONS)
def test_scratch_memory_is_asked_for_and_given(package: str, version: str) -> None:
    spoken, _ = dialect(package, version)
    given: list[tuple[int, int]] = []
    context = SimpleNamespace(
        update_device_memory_size_for_shapes=lambda: 4096,
        set_device_memory=lambda address, nbytes: given.append((address, nbytes)),
    )
    assert spoken.scratch(Engine(), context) == 4096
    spoken.give_scratch(context, 512, 4096)
    assert given == [(512, 4096)]


def test_rtx_is_asked_whether_a_run_can_be_captured() -> None:
    spoken, _ = dialect("tensorrt-rtx", "1.7.1")
    context = SimpleNamespace(is_stream_capturable=lambda handle: handle == 7)
    assert spoken.capturable(context, 7)
    assert not spoken.capturable(context, 8)
    assert dialect("tensorrt", "10.3.0")[0].capturable(SimpleNamespace(), 8)


@pytest.mark.parametrize(
    ("found", "bits", "words"),
    [
        ("VALID", 0, []),
        ("SUBOPTIMAL", 0, []),
        ("INVALID", 3, ["another version", "other compute capabilities"]),
        ("INVALID", 32, ["another format"]),
        ("INVALID", 0, ["no reason given"]),
    ],
)
def test_what_rtx_says_of_an_engine_is_said_in_words(found: str, bits: int, words: list[str]) -> None:
    spoken, bindings = dialect("tensorrt-rtx", "1.7.1")
    runtime = SimpleNamespace(get_engine_validity=lambda data: (bindings.EngineValidity[found], bits))
    said = spoken.validity(runtime, b"engine")
    assert bool(said) == (found == "INVALID")
    for word in words:
        assert word in said
    assert dialect("tensorrt", "11.4.0")[0].validity(SimpleNamespace(), b"engine") == ""


@real
def test_the_real_rtx_says_that_garbage_is_no_engine() -> None:
    from vsa_rt.engines.tensorrt.library import open_library

    library = open_library("tensorrt-rtx")
    assert type(library.dialect) is Rtx
    runtime = library.trt.Runtime(library.logger)
    assert "it has another format" in library.dialect.validity(runtime, b"garbage" * 100)


@real
def test_the_double_of_rtx_has_no_name_that_the_real_one_lacks() -> None:
    import tensorrt_rtx as trt

    double = Bindings("1.7.1", rtx=True)
    enumerations = {name: kind for name, kind in vars(double).items() if hasattr(kind, "__members__")}
    assert len(enumerations) > 8
    for name, kind in enumerations.items():
        assert set(kind.__members__) <= set(getattr(trt, name).__members__), name
    for mine, theirs in (
        (Config, trt.IBuilderConfig),
        (RuntimeConfig, trt.IRuntimeConfig),
        (Engine, trt.ICudaEngine),
    ):
        verbs = [name for name, value in vars(mine).items() if callable(value) and not name.startswith("_")]
        assert [name for name in verbs if not hasattr(theirs, name)] == []
    assert [name for name in CONFIG if not hasattr(trt.IBuilderConfig, name)] == []
