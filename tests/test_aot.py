"""Every backbone that a shipped recipe has, and whole ensembles, through TensorRT's compiler ahead of time.

Minutes and gigabytes: ``make test-aot`` runs them, one graph at a time. Weights are seeded: what is legal does not
depend on them. Ranges for int8 are measured on photographs.
"""

from __future__ import annotations

import platform
import sys

import msgspec
import pytest

from vsa_rt.errors import EnvironmentUnusable
from vsa_rt.recipe import Recipe, needed_backbones, options_of
from vsa_rt.recipe_file import find_recipe, read_recipe, shipped_names, with_options

pytestmark = pytest.mark.aot
if sys.platform != "linux" or platform.machine() != "x86_64":
    where = f"{sys.platform} on {platform.machine()}"
    pytest.skip(f"tensorrt-rtx-cu13 has no wheel for {where}", allow_module_level=True)
for library in ("onnx", "onnxscript", "onnxruntime", "ml_dtypes", "torch", "timm", "skimage", "sklearn"):
    pytest.importorskip(library, reason=f"exporting and calibrating need {library}: vsa-rt[export]")

from lowered import PLANS, Lowering

from vsa_rt.engines.tensorrt.compiler import CAPABILITIES, compile_ahead
from vsa_rt.export.photographs import shipped_photographs

SEED, MAX_BATCH = 0, 8
TURING, *LATER = CAPABILITIES
#: Recipe and settings to the backbone that alone feeds the head.
Source = tuple[str, tuple[str, ...], str]


def recipe_of(name: str, settings: tuple[str, ...] = (), only: str = "") -> Recipe:
    """A shipped recipe, with options, and with one backbone's features alone where one is named."""
    recipe = with_options(read_recipe(find_recipe(name)), dict(s.split("=", 1) for s in settings))
    if not only:
        return recipe
    return msgspec.structs.replace(recipe, head=msgspec.structs.replace(recipe.head, features=[only]))


def backbones() -> dict[str, Source]:
    """Every architecture with its options that a shipped recipe computes, once, and ten crops.

    By architecture, and by what its options differ in from the usual ones.
    """
    found: dict[str, Source] = {}
    recipes = [(name, ()) for name in shipped_names()]
    for name, settings in [*recipes, ("asm2015-finetuned", ("caffenet.oversample=true",))]:
        for entry in needed_backbones(recipe_of(name, settings)):
            chosen = msgspec.structs.asdict(options_of(entry))
            usual = msgspec.structs.asdict(type(options_of(entry))())
            special = [f" {key}={value}" for key, value in chosen.items() if value != usual[key]]
            found.setdefault(f"{entry.architecture}{''.join(special)}", (name, settings, entry.name))
    return found


BACKBONES = backbones()
ENSEMBLES = ("quickstart", "smap2021-moe")


class Kept:
    """The last recipe's graph, and the last one that it was lowered to: tests come in that order."""

    def __init__(self) -> None:
        self._source: Source | None = None
        self._lowering: Lowering | None = None
        self._plan, self._graph = "", b""

    def lowering(self, source: Source) -> Lowering:
        """Seeded weights as one graph."""
        if self._lowering is None or source != self._source:
            # A gigabyte each: one goes before the next comes.
            self._lowering, self._plan, self._graph = None, "", b""
            name, settings, only = source
            recipe, folder = recipe_of(name, settings, only), find_recipe(name).parent
            self._lowering = Lowering.of_recipe(recipe, folder, shipped_photographs(), SEED)
            self._source = source
        return self._lowering

    def graph(self, source: Source, plan: str) -> bytes:
        """That graph as a plan has it."""
        lowering = self.lowering(source)
        if plan != self._plan:
            self._plan, self._graph = "", b""
            self._graph = lowering.graph(plan)
            self._plan = plan
        return self._graph


@pytest.fixture(scope="module")
def kept() -> Kept:
    return Kept()


def refusal(graph: bytes, capability: str) -> str:
    with pytest.raises(EnvironmentUnusable) as caught:
        compile_ahead(graph, [capability], max_batch=MAX_BATCH)
    return str(caught.value)


def test_every_architecture_of_the_table_is_among_the_backbones() -> None:
    from vsa_rt.architecture import ARCHITECTURES, family_of

    assert {family_of(name.partition(" ")[0]) for name in BACKBONES} >= ARCHITECTURES.keys()


# Each backbone


@pytest.mark.parametrize("plan", ["fp16 throughout", "int8 in fp16 throughout"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_backbone_compiles(kept: Kept, backbone: str, plan: str) -> None:
    """For Turing, too, unless a part of it stays in float32: Turing has no products in that."""
    source = BACKBONES[backbone]
    graph = kept.graph(source, plan)
    assert compile_ahead(graph, LATER, max_batch=MAX_BATCH)
    if kept.lowering(source).exact:
        assert "FP32 GEMM is not supported" in refusal(graph, TURING)
    else:
        assert compile_ahead(graph, [TURING], max_batch=MAX_BATCH)


@pytest.mark.parametrize("objects", ["boxes", "grid"])
def test_regions_that_are_cut_in_the_call_compile(kept: Kept, objects: str) -> None:
    """Fifty regions of an image through ResNet-152, in the same graph as the image itself."""
    source = ("smap2021-g", (f"g.objects={objects}",), "g")
    assert compile_ahead(kept.graph(source, "fp16 throughout"), max_batch=2)


# Whole recipes

#: Those of one network each, and the ensemble that looks at the regions of an image in the same call.
WHOLE = [
    *((name, ()) for name in shipped_names() if name.startswith(("cvpr2023-", "asm2015-"))),
    ("smap2021-moe", ("g.objects=boxes",)),
]


@pytest.mark.parametrize(("name", "settings"), WHOLE, ids=[" ".join((n, *s)) for n, s in WHOLE])
def test_a_whole_recipe_compiles_in_half(kept: Kept, name: str, settings: tuple[str, ...]) -> None:
    assert compile_ahead(kept.graph((name, settings, ""), "fp16 throughout"), LATER, max_batch=2)


# Whole ensembles


def refused_by_turing(name: str, plan: str) -> list[str]:
    """Why Turing cannot run an ensemble, any of these; empty where it can.

    It has no bfloat16 and no products in float32. The head is a product, in float32 unless the plan is of half
    throughout; so is the PCA before ``y``, whatever the plan: it cancels, and in half its output would drown.
    """
    product = "FP32 GEMM is not supported"
    if "bf16" in plan:
        return [product, "HW-specific datatypes: b16"]
    return [] if "throughout" in plan and name == "quickstart" else [product]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ENSEMBLES)
def test_an_ensemble_compiles_where_the_capability_has_its_operations(
    kept: Kept, name: str, plan: str, capability: str
) -> None:
    graph = kept.graph((name, (), ""), plan)
    reasons = refused_by_turing(name, plan) if capability == TURING else []
    if reasons:
        message = refusal(graph, capability)
        assert "node '" in message
        assert any(reason in message for reason in reasons)
    else:
        assert compile_ahead(graph, [capability], max_batch=MAX_BATCH)
