"""What expressions of the adapters are: the bindings' modules, classes, objects and methods, or none of them."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bindings import Catalogue, Member

#: Python's own, also where a module has them among its names.
_BUILTINS = {"str", "int", "float", "bool", "bytes", "None", "object", "dict"}
#: Protocols of ``typing``, where the bindings have no class of that name.
_PROTOCOLS = {"SupportsInt", "SupportsFloat", "Buffer"}
_LISTS = {"list", "List", "Sequence", "Iterable"}


@dataclass(frozen=True)
class Kind:
    """What an expression is.

    Attributes:
        of: ``module``, ``class``, ``object`` or ``method`` of bindings; ``list``, ``tuple`` or ``either`` of other
            kinds; ``untyped`` is the bindings' but nothing says what; ``ours`` is none of the bindings'.
        name: The module's, the class's, ``CLASS.METHOD`` of a method; of ``ours`` the adapter's class, if it is known.
        parts: What it consists of.
    """

    of: str
    name: str = ""
    parts: tuple[Kind, ...] = ()


OURS, UNTYPED = Kind("ours"), Kind("untyped")


def one_of(kinds: Sequence[Kind]) -> Kind:
    """What is one of several kinds."""
    flat = dict.fromkeys(part for kind in kinds for part in (kind.parts if kind.of == "either" else (kind,)))
    return next(iter(flat)) if len(flat) == 1 else Kind("either", parts=tuple(flat))


def element_of(kind: Kind) -> Kind:
    """What a sequence holds."""
    if kind.of in ("list", "tuple"):
        return one_of(kind.parts) if kind.parts else OURS
    return UNTYPED if kind == UNTYPED else OURS


class Stock:
    """What a catalogue says of kinds.

    Args:
        catalogue: What the bindings hold.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._modules, self._classes = catalogue["modules"], catalogue["classes"]
        held = [*self._modules.values(), *self._classes.values()]
        self._made = {m["type"]: m for members in held for m in members.values() if m["kind"] == "class"}

    def member(self, owner: Kind, name: str) -> Member | None:
        """What a module, a class or an object has by a name; ``None`` if it has no such."""
        return (self._modules if owner.of == "module" else self._classes).get(owner.name, {}).get(name)

    def kind_of_member(self, owner: Kind, name: str, member: Member) -> Kind:
        """What comes out where a member is asked for."""
        if member["kind"] in ("class", "module"):
            return Kind(member["kind"], member["type"])
        if member["kind"] == "method":
            return Kind("method", f"{owner.name}.{name}", (owner,))
        return self.kind_of(member["type"]) if member["type"] else UNTYPED

    def kind_of(self, text: str) -> Kind:
        """What a type is, as a docstring or the table says it."""
        if text == "ours":
            return OURS
        if text.startswith("module "):
            return Kind("module", text.removeprefix("module "))
        try:
            return self.kind_of_type(ast.parse(text.strip(), mode="eval").body)
        except SyntaxError:
            return UNTYPED

    def kind_of_type(self, node: ast.expr) -> Kind:
        """What a type is; ``untyped`` where the catalogue does not know it."""
        if isinstance(node, ast.Constant):
            return OURS if node.value is None else self.kind_of(str(node.value))
        if isinstance(node, ast.BinOp):
            both = [self.kind_of_type(side) for side in (node.left, node.right)]
            known = [kind for kind in both if kind != OURS]
            return one_of(known) if known else OURS
        if isinstance(node, ast.Subscript):
            outer = ast.unparse(node.value).rpartition(".")[2]
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            parts = tuple(self.kind_of_type(part) for part in inner)
            if outer in _LISTS:
                return Kind("list", parts=parts[:1])
            return Kind("tuple", parts=parts) if outer.lower() == "tuple" else UNTYPED
        name = ast.unparse(node)
        while name not in self._classes and "." in name:
            name = name.partition(".")[2]
        if name in self._classes and name not in _BUILTINS:
            return Kind("object", name)
        return OURS if name in _BUILTINS | _PROTOCOLS else UNTYPED

    def signatures(self, found: Kind) -> list[str]:
        """How a class or method is called, for each overload; none where nothing says it."""
        if found.of == "class":
            made = self._made.get(found.name)
            return made["signatures"] if made is not None else []
        (owner,) = found.parts
        member = self.member(owner, found.name.removeprefix(f"{owner.name}."))
        return member["signatures"] if member is not None else []

    def agrees(self, taken: Kind, given: Kind) -> bool:
        """Whether something can be what a parameter takes, as far as both are known."""
        if taken.of != "object" or given.of != "object":
            return True
        made = self._made.get(given.name)
        return taken.name == given.name or (made is not None and taken.name in made["bases"])


@dataclass(frozen=True)
class Table:
    """What adapters leave open.

    Attributes:
        declared: Name of a parameter, field or local variable, or of a function with ``()`` for what it returns, to its
            type; ``Class.function.name`` or ``Class.name`` goes before ``name`` alone. A local variable has its
            function before it. A whole call goes before its function. ``ours`` is none of the bindings'.
        only: Class or module-level name to the flavours that it is for; others are for all.
        words: Scope to the enumeration whose members the strings in capitals there are.
        other_words: Strings in capitals that are none, by scope.
        dynamic: Scope and expression of a ``getattr`` with a name that is made up at run time, to the names that it
            may be besides those of ``words``.
        calls: Function of the adapters that calls a module's function by name, to that module.
        guarded: Flavour to what it lacks and the code asks for before it uses it.
    """

    declared: Mapping[str, str]
    only: Mapping[str, frozenset[str]] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    other_words: Mapping[str, frozenset[str]] = field(default_factory=dict)
    dynamic: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    calls: Mapping[str, str] = field(default_factory=dict)
    guarded: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass
class Findings:
    """What was seen.

    Attributes:
        wrong: A sentence for each use that the bindings do not have, and for each that nothing declares.
        used: ``CLASS.MEMBER`` or ``MODULE.NAME`` of the bindings.
        taken: Entries of the table that were needed.
    """

    wrong: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    taken: set[str] = field(default_factory=set)
