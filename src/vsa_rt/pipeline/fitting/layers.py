"""Which layers of frozen networks are meant: submodules by name, or the trained head above them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from vsa_rt.errors import UsageError, needs

with needs("export"):
    from torch import nn

    from vsa_rt.export.backbones import LoadedBackbone

#: The word for the trained head's logits.
HEAD = "head"
#: Names of layers that a message lists at most.
_LISTED = 20


@dataclass(frozen=True)
class Layer:
    """A layer whose numbers are wanted.

    Attributes:
        name: As it was asked for.
        backbone: Whose layer it is; empty for the head, which reads all backbones of the recipe.
        path: Name of the submodule; empty for the head.
    """

    name: str
    backbone: str = ""
    path: str = ""


def layer_root(backbone: LoadedBackbone) -> nn.Module:
    """The module whose submodules are the layers: the one whose keys a checkpoint has."""
    return backbone.made.weights or backbone.made.module


def _paths(backbone: LoadedBackbone) -> list[str]:
    """Every submodule's name, in the network's order."""
    return [name for name, _ in layer_root(backbone).named_modules(remove_duplicate=False) if name]


def _outline(backbone: LoadedBackbone) -> str:
    """The network's layers for a message: its own submodules, and the numbered ones inside them as a range."""
    found = []
    for name, module in layer_root(backbone).named_children():
        found.append(name)
        inner = [child for child, _ in module.named_children()]
        if len(inner) > 1 and all(child.isdigit() for child in inner):
            found[-1] += f" ({name}.{inner[0]} to {name}.{inner[-1]})"
    found += [f"{backbone.made.head_layer} (the head)"] if backbone.made.head_layer else []
    more = len(found) - _LISTED
    return ", ".join(found[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _unknown(word: str, backbones: Sequence[LoadedBackbone]) -> UsageError:
    """What to say of a name that no layer has."""
    by_name = {b.name: b for b in backbones}
    first, _, rest = word.partition(".")
    if len(backbones) == 1:
        chosen = backbones[0]
        rest = rest if first == chosen.name and rest else word
    elif first in by_name:
        chosen = by_name[first]
    else:
        example = backbones[0].name
        return UsageError(
            f"--probe {word}: the recipe has {', '.join(by_name)}: write BACKBONE.LAYER, or {HEAD}; {example!r} has "
            f"{_outline(by_name[example])}"
        )
    if not rest:
        return UsageError(
            f"--probe {word}: names a backbone; write {word}.LAYER: there are {_outline(chosen)}"
        )
    near = get_close_matches(rest, _paths(chosen), 5)
    close = f"near: {', '.join(near)}; " if near else ""
    return UsageError(
        f"--probe {word}: {chosen.name!r} has no layer {rest!r}; {close}there are {_outline(chosen)}, those inside "
        f"them by dotted names, and {HEAD}"
    )


def _find(word: str, backbones: Sequence[LoadedBackbone], features: Sequence[str]) -> Layer:
    """The layer of one name."""
    if word == HEAD:
        return Layer(word)
    by_name = {b.name: b for b in backbones}
    first, _, rest = word.partition(".")
    readings = [(backbones[0], word)] if len(backbones) == 1 else []
    readings += [(by_name[first], rest)] if first in by_name and rest else []
    for backbone, path in readings:
        if path in _paths(backbone):
            return Layer(word, backbone.name, path)
        if path == backbone.made.head_layer and list(features) == [backbone.name]:
            return Layer(word)
    raise _unknown(word, backbones)


def find_layers(
    words: Sequence[str], backbones: Sequence[LoadedBackbone], features: Sequence[str]
) -> list[Layer]:
    """The layers that a command line names.

    Args:
        words: ``BACKBONE.LAYER``, or ``LAYER`` where there is one backbone; ``head``, or the name that the only
            backbone gives to the layer above it, for the trained head.
        backbones: All that the recipe's head needs.
        features: Names of the backbones that the head reads.

    Returns:
        In the order of the words.

    Raises:
        UsageError: No layer has the name; the message lists those that there are. Or one is named twice.
    """
    if not words:
        raise UsageError("--probe: names no layer; expected such as conv1,conv2 or BACKBONE.LAYER")
    found: dict[tuple[str, str], Layer] = {}
    for word in words:
        layer = _find(word, backbones, features)
        place = (layer.backbone, layer.path)
        if place in found:
            before = found[place].name
            also = "twice" if before == word else f"as {before}, too"
            raise UsageError(f"--probe {word}: this layer is named {also}; name it once")
        found[place] = layer
    return list(found.values())
