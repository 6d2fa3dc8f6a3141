"""What a recipe's backbones must satisfy beyond their types: names, options, wiring and sizes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from vsa_rt.architecture import (
    ARCHITECTURES,
    LARGEST_SIDE,
    TIMM,
    Architecture,
    CaffeNetOptions,
    DualEncodingOptions,
    ObjectGraphOptions,
    Options,
    ShallowCnnOptions,
    YouTube8MPcaOptions,
    family_of,
    grid_levels,
    parameters_of,
    sides_of,
)
from vsa_rt.contracts import ResizeSpec
from vsa_rt.errors import RecipeError, UsageError
from vsa_rt.recipe import (
    RESERVED_NAMES,
    Backbone,
    Head,
    Recipe,
    known_widths,
    needed_backbones,
    options_of,
    tensor_input,
    upstream,
    views_of_recipe,
)

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,40}")
_HEX64 = re.compile(r"[0-9a-f]{64}")

# Limits far above every published ensemble: they bound what a foreign recipe makes a build or a check allocate.

#: Any number that has no limit of its own.
LARGEST = 1 << 16
#: Option to its least and greatest value.
_LIMITS: dict[str, tuple[int, int]] = {
    "kernel": (1, LARGEST),
    "filters": (1, 4096),
    "pool": (1, LARGEST),
    "classes": (1, LARGEST),
    "frames": (1, 4096),
    "features": (1, LARGEST),
    "count": (1, 4096),
    "frame": (1, LARGEST_SIDE),
}
_MOST_BACKBONES = 64
#: Regions of one image that go through a network in one call; a paper's image has 50.
_MOST_REGIONS = 512
#: Numbers in one image's ready tensor, or in one tap: 16 MiB.
MOST_VALUES = 1 << 22
#: Of all networks whose size the recipe decides, together: 4 GiB. The papers' largest layer has 253 million.
_MOST_PARAMETERS = 1 << 30
#: What a network of timm is taken to give, whose width only timm knows.
_USUAL_WIDTH = 2048


def refuse(where: str, key: str, problem: str) -> RecipeError:
    """The error that says what is wrong with a key."""
    return RecipeError(f"{where}: key `{key}`: {problem}")


def check_name(where: str, key: str, name: str) -> None:
    """Check that a name can be a tensor's and a folder's."""
    if not _NAME.fullmatch(name):
        raise refuse(where, key, f"{name!r} must be 1 to 41 of a-z, 0-9, _ and -, beginning with a letter")


def check_unique(where: str, key: str, names: Sequence[str]) -> None:
    """Check that nothing is named twice."""
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise refuse(where, key, f"{', '.join(map(repr, twice))} is named more than once")


def check_pin(where: str, key: str, sha256: str, file_key: str, file: str) -> None:
    """Check a hash, and that there is a file that it pins."""
    if sha256 and not _HEX64.fullmatch(sha256):
        raise refuse(where, key, "expected 64 lower-case hexadecimal digits")
    if sha256 and not file:
        raise refuse(
            where, key, f"pins the file of `{file_key}`, which is missing; leave both out or neither"
        )


def check_resize(
    where: str, key: str, resize: ResizeSpec, sides: tuple[int, int] = (1, LARGEST_SIDE)
) -> None:
    """Check that an image has sides that can be worked on."""
    size, (least, most) = f"{resize.height} x {resize.width}", sides
    if not (least <= min(resize.height, resize.width) and max(resize.height, resize.width) <= most):
        wanted = f"{least} x {most}" if least == most else f"sides of {least} to {most} pixels"
        raise refuse(where, key, f"{size}: expected {wanted}")
    if resize.scale > LARGEST_SIDE:
        raise refuse(where, key, f"scale {resize.scale} must be at most {LARGEST_SIDE}")


def check_backbones(recipe: Recipe, where: str) -> None:
    """Check every backbone, and who reads whom."""
    if not recipe.backbones:
        raise refuse(where, "backbones", "at least one [[backbones]] table is needed")
    if len(recipe.backbones) > _MOST_BACKBONES:
        raise refuse(
            where, "backbones", f"{len(recipe.backbones)} tables; at most {_MOST_BACKBONES} are taken"
        )
    check_unique(where, "backbones.name", [b.name for b in recipe.backbones])
    for i, backbone in enumerate(recipe.backbones):
        key = f"backbones[{i}]"
        check_name(where, f"{key}.name", backbone.name)
        if backbone.name in RESERVED_NAMES or backbone.name.startswith("image_"):
            raise refuse(
                where,
                f"{key}.name",
                f"{backbone.name!r} has a meaning of its own in every graph or bundle; choose another",
            )
        known = _check_architecture(backbone, where, key)
        if known.reads == "image" and backbone.resize is not None:
            sides = sides_of(backbone.architecture, options_of(backbone))
            check_resize(where, f"{key}.resize", backbone.resize, sides)
        checkpoint = backbone.checkpoint
        check_pin(
            where, f"{key}.checkpoint.sha256", checkpoint.sha256, f"{key}.checkpoint.path", checkpoint.path
        )
    _check_wiring(recipe, where)
    _check_circles(recipe, where)
    _check_tensor_inputs(recipe, where)


def _check_architecture(backbone: Backbone, where: str, key: str) -> Architecture:
    """Check that the architecture is known and its options and checkpoint format are its own."""
    family = family_of(backbone.architecture)
    known = ARCHITECTURES.get(family)
    if known is None or backbone.architecture in (TIMM, f"{TIMM}:"):
        names = ", ".join(n for n in ARCHITECTURES if n != TIMM)
        raise refuse(
            where, f"{key}.architecture", f"{backbone.architecture!r}: expected timm:NAME or {names}"
        )
    try:
        options = options_of(backbone)
    except msgspec.ValidationError as error:
        raise refuse(where, f"{key}.options", f"{backbone.architecture}: {error}") from error
    _check_options(options, where, f"{key}.options")
    if backbone.checkpoint.format and backbone.checkpoint.format not in known.formats:
        formats = ", ".join(known.formats)
        raise refuse(
            where, f"{key}.checkpoint.format", f"{backbone.checkpoint.format!r}: expected one of {formats}"
        )
    return known


def _idle_option(options: Options) -> tuple[str, str]:
    """The option that the others leave without a meaning, and which those are; both empty if there is none."""
    if isinstance(options, ObjectGraphOptions):
        return "frame" if options.objects == "features" else "features", f'objects = "{options.objects}"'
    if isinstance(options, DualEncodingOptions) and options.frames == 1:
        return "features", "frames = 1"
    if isinstance(options, ShallowCnnOptions) and options.axis == "time":
        return "pool", 'axis = "time"'
    if isinstance(options, CaffeNetOptions) and options.map and options.oversample:
        return "oversample", "map = true, which looks at the whole image"
    if isinstance(options, CaffeNetOptions) and options.map and options.top == "pool5":
        return "top", "map = true, whose positions are those of fc6 and above"
    if isinstance(options, YouTube8MPcaOptions) and options.quantise and not 0 < options.clip <= 2:
        return "clip", "quantise = true, which clips to 2 itself"
    return "", ""


def _check_options(options: Options, where: str, key: str) -> None:
    """Check each number, that what is set is also used, and what else would only fail inside the network."""
    for name, value in msgspec.structs.asdict(options).items():
        least, most = _LIMITS.get(name, (0, LARGEST))
        if isinstance(value, int | float) and not least <= value <= most:
            raise refuse(where, f"{key}.{name}", f"{value} must lie in [{least}, {most}]")
    idle, beside = _idle_option(options)
    if idle:
        value, default = getattr(options, idle), getattr(type(options)(), idle)
        if value != default:
            raise refuse(
                where, f"{key}.{idle}", f"{value} has no meaning with {beside}; leave it out, or at {default}"
            )
    if isinstance(options, ShallowCnnOptions) and options.kernel % 2 == 0:
        raise refuse(where, f"{key}.kernel", f"{options.kernel} must be odd: the kernel has a centre")
    if isinstance(options, ObjectGraphOptions) and options.objects == "grid":
        try:
            grid_levels(options.count)
        except UsageError as error:
            raise refuse(where, f"{key}.count", str(error)) from error


def _check_wiring(recipe: Recipe, where: str) -> None:
    """Check that what is read is there, and that images go where images are expected."""
    by_name = {b.name: b for b in recipe.backbones}
    for i, backbone in enumerate(recipe.backbones):
        key, reads = f"backbones[{i}].reads", ARCHITECTURES[family_of(backbone.architecture)].reads
        if reads == "image" and backbone.reads:
            raise refuse(where, key, f"{backbone.architecture} reads the image, not {backbone.reads!r}")
        if reads == "image":
            continue
        if backbone.resize is not None:
            raise refuse(where, f"backbones[{i}].resize", f"{backbone.architecture} reads no image")
        if not backbone.reads:
            raise refuse(where, key, f"{backbone.architecture} needs the name of the backbone that it reads")
        if backbone.reads not in by_name:
            raise refuse(
                where, key, f"no backbone {backbone.reads!r}; there are {', '.join(sorted(by_name))}"
            )
        read = by_name[backbone.reads]
        if reads == "objects" and ARCHITECTURES[family_of(read.architecture)].reads != "image":
            raise refuse(where, key, f"{backbone.reads!r} must read images: it encodes the objects' regions")
        if (
            reads == "objects"
            and upstream(backbone)
            and not ARCHITECTURES[family_of(read.architecture)].encodes
        ):
            able = ", ".join(n for n, a in ARCHITECTURES.items() if a.encodes)
            raise refuse(where, key, f"{read.architecture} encodes no regions of an image; {able} do")


def _check_circles(recipe: Recipe, where: str) -> None:
    """Check that nobody reads, by however many others, itself. Every backbone is walked over once."""
    reads = {b.name: b.reads for b in recipe.backbones}
    places = {b.name: i for i, b in enumerate(recipe.backbones)}
    done: set[str] = set()
    for start in reads:
        walk: dict[str, None] = {}
        name = start
        while name and name not in done:
            if name in walk:
                seen = list(walk)
                circle = [*seen[seen.index(name) :], name]
                raise refuse(where, f"backbones[{places[name]}].reads", f"{' reads '.join(circle)}: a circle")
            walk[name] = None
            name = reads[name]
        done.update(walk)


def _check_tensor_inputs(recipe: Recipe, where: str) -> None:
    """Check that ready tensors are what their makers give, and mean the same to all who take them."""
    widths = known_widths(recipe)
    takers: dict[str, tuple[list[int], Backbone]] = {}
    for i, backbone in enumerate(recipe.backbones):
        given = tensor_input(backbone)
        if given is None:
            continue
        name, shape = given
        made = widths[backbone.reads]
        if name != "boxes" and made not in (None, shape[1]):
            raise refuse(
                where,
                f"backbones[{i}].options.features",
                f"a row of {name!r} has {shape[1]}, but {backbone.reads!r} gives {made}",
            )
        if shape[0] * shape[1] > MOST_VALUES:
            count = "frames" if name == "frames" else "count"
            raise refuse(
                where,
                f"backbones[{i}].options.{count}",
                f"{name!r} of {shape[0]} x {shape[1]} must have at most {MOST_VALUES:,} numbers",
            )
        first_shape, first = takers.setdefault(name, (shape, backbone))
        same_maker = name == "boxes" or first.reads == backbone.reads
        if shape != first_shape or not same_maker:
            raise refuse(
                where,
                f"backbones[{i}].options",
                f"{backbone.name!r} and {first.name!r} both take the input {name!r}, {shape} made by "
                f"{backbone.reads!r} and {first_shape} made by {first.reads!r}; it can only be one",
            )


def _head_parameters(head: Head, width: int, labels: int) -> int:
    """Trained parameters of the head: those of ``vsa_rt.export.head``."""
    if head.kind == "units":
        return 0
    if head.kind == "moe":
        bias = labels * (head.experts + 1) if head.gate_bias else 0
        outputs = labels * (2 * head.experts + 1)
        return (width + 1) * head.hidden[0] + head.hidden[0] * outputs + bias + labels * head.experts
    widths = [width, *(head.hidden if head.kind == "nn" else []), labels]
    return sum((a + 1) * b for a, b in pairwise(widths))


def check_sizes(recipe: Recipe, where: str) -> None:
    """Check how large the options make the networks and the head together; each number has passed alone.

    Args:
        recipe: One whose backbones and head have passed.
        where: What to call it in messages.

    Raises:
        RecipeError: Too many parameters, regions or outputs.
    """
    widths = known_widths(recipe)
    places = {b.name: i for i, b in enumerate(recipe.backbones)}
    parameters = regions = 0
    for backbone in needed_backbones(recipe):
        key, options = f"backbones[{places[backbone.name]}].options", options_of(backbone)
        read = widths.get(upstream(backbone)) or _USUAL_WIDTH
        if isinstance(options, ShallowCnnOptions) and widths[backbone.reads] is not None:
            length = read + options.audio
            if options.axis == "features" and options.pool > length:
                raise refuse(where, f"{key}.pool", f"{options.pool} must be at most the input's {length}")
        if isinstance(options, ObjectGraphOptions) and options.objects != "features":
            regions += options.count
        if regions > _MOST_REGIONS:
            raise refuse(
                where,
                f"{key}.count",
                f"makes {regions} regions of an image; at most {_MOST_REGIONS} are taken",
            )
        parameters += parameters_of(options, read)
        _check_parameters(parameters, where, key)
    head, labels = recipe.head, len(recipe.labels)
    if labels * (head.experts + 1) > MOST_VALUES:
        raise refuse(
            where,
            "head.experts",
            f"{head.experts} for each of {labels} labels make more than {MOST_VALUES:,} gates",
        )
    joined = sum(widths[name] or _USUAL_WIDTH for name in head.features) // views_of_recipe(recipe).count
    key = "head.features" if head.kind == "linear" else "head.hidden"
    _check_parameters(parameters + _head_parameters(head, joined, labels), where, key)


def _check_parameters(count: int, where: str, key: str) -> None:
    if count > _MOST_PARAMETERS:
        raise refuse(
            where, key, f"brings the recipe to {count:,} parameters; at most {_MOST_PARAMETERS:,} are taken"
        )
