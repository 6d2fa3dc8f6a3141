"""Writes ``typings/tensorrt_rtx/__init__.pyi``: types for mypy, from the docstrings of the installed bindings.

It holds the classes and members that adapters use, and those in ``ALSO``. ``python tests/support/make_stubs.py`` writes
it anew, for another version of the library or when adapters use more of it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

import bindings
from adapter_names import Reader
from adapter_table import ROOT, RTX, TENSORRT, sources
from bindings import Catalogue, Member
from signatures import parameters

STUB = ROOT / "typings" / "tensorrt_rtx" / "__init__.pyi"
#: What tests use besides.
ALSO = ("trt.Logger", "Logger.INTERNAL_ERROR")
#: They have the buffer protocol, of which docstrings do not tell.
_BUFFERS = ("IHostMemory",)
_HEAD = """\
# Written by tests/support/make_stubs.py from the docstrings of tensorrt_rtx {version}: what the adapters use.
from collections.abc import Sequence
from typing import Any, ClassVar, SupportsFloat, SupportsInt, overload

from typing_extensions import Buffer

__version__: str
"""


class _Types(ast.NodeTransformer):
    """A docstring's type as a stub says it."""

    def __init__(self, known: set[str]) -> None:
        self._known = known

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        """A dotted name: a nested class, or one of a module."""
        name = ast.unparse(node)
        return node if name in self._known else self.visit_Name(ast.Name(name.rpartition(".")[2]))

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """A name: one that the stub lacks may be anything."""
        plain = {
            "SupportsInt",
            "SupportsFloat",
            "Buffer",
            "Sequence",
            "str",
            "int",
            "float",
            "bool",
            "bytes",
            "list",
        }
        name = node.id.replace("List", "list").replace("Tuple", "tuple").replace("object", "Any")
        bare = {"tuple": "tuple[Any, ...]", "dict": "dict[Any, Any]", "list": "list[Any]"}
        if name in bare:
            return ast.Name(bare[name])
        return ast.Name(name if name in plain | self._known else "Any")

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        """A container: its own name stays without parameters of ours."""
        outer = ast.unparse(node.value).rpartition(".")[2].lower().replace("sequence", "Sequence")
        return ast.Subscript(ast.Name(outer), self.visit(node.slice))


class _Writer:
    """The stub of what is used.

    Args:
        catalogue: What the bindings hold.
        used: ``CLASS.MEMBER`` and ``trt.NAME``.
    """

    def __init__(self, catalogue: Catalogue, used: Iterable[str]) -> None:
        self._catalogue = catalogue
        self._members: dict[str, set[str]] = {}
        self._functions: set[str] = set()
        for name in used:
            owner, _, member = name.rpartition(".")
            if owner != "trt":
                self._need(owner)
                self._members[owner].add(member)
            elif member in catalogue["classes"]:
                self._need(member)
            elif catalogue["modules"]["trt"][member]["kind"] == "method":
                self._functions.add(member)
        # What is mentioned by what is used.
        for owner in list(self._members):
            for member in self._members[owner]:
                self._mentioned(catalogue["classes"][owner][member])
            self._mentioned(self._class(owner))

    def _class(self, name: str) -> Member:
        owner, _, last = name.rpartition(".")
        holder = self._catalogue["classes"][owner] if owner else self._catalogue["modules"]["trt"]
        return holder[last]

    def _need(self, name: str) -> None:
        if name in self._members:
            return
        self._members[name] = set()
        if "." in name:
            self._need(name.rpartition(".")[0])
        for base in self._class(name)["bases"][1:2]:
            if base in self._catalogue["modules"]["trt"]:
                self._need(base)

    def _mentioned(self, member: Member) -> None:
        for text in (member["type"], *member["signatures"]):
            node = ast.parse(f"def f{text}: ..." if text.startswith("(") else text or "0")
            for part in ast.walk(node):
                name = ast.unparse(part) if isinstance(part, (ast.Name, ast.Attribute)) else ""
                if name in self._catalogue["classes"] and name not in ("dict", "str", "int", "type"):
                    self._need(name)

    def text(self) -> str:
        """The stub."""
        parts = [_HEAD.format(version=self._catalogue["version"])]
        for name in sorted(self._functions):
            (signature,) = self._catalogue["modules"]["trt"][name]["signatures"]
            parts.append(self._method(name, signature, "", of_class=False))
        parts += [
            "\n".join(self._lines(name, "")) + "\n" for name in sorted(self._members) if "." not in name
        ]
        return "\n".join(parts)

    def _lines(self, name: str, indent: str) -> list[str]:
        held = self._catalogue["classes"][name]
        bases = [base for base in self._class(name)["bases"][1:2] if base in self._members]
        inner = indent + "    "
        lines = [f"{indent}class {name.rpartition('.')[2]}" + (f"({bases[0]})" if bases else "") + ":"]
        for nested in sorted(n for n in self._members if n.rpartition(".")[0] == name):
            lines += self._lines(nested, inner)
        if "__members__" in held:
            lines += [
                f"{inner}__members__: ClassVar[dict[str, {name}]]",
                f"{inner}@property",
                f"{inner}def name(self) -> str: ...",
                f"{inner}def __int__(self) -> int: ...",
            ]
        made = self._class(name)["signatures"]
        if "__members__" not in held and made:
            lines += self._overloads("__init__", made, inner)
        if name in _BUFFERS:
            lines.append(f"{inner}def __buffer__(self, flags: int, /) -> memoryview: ...")
        sequence = {special for special in ("__getitem__", "__len__") if special in held}
        for member in sorted((self._members[name] | sequence) - {"__members__"}):
            lines += self._member(member, held[member], inner)
        return lines if len(lines) > 1 else [f"{lines[0]} ..."]

    def _member(self, name: str, member: Member, indent: str) -> list[str]:
        if member["kind"] == "class":
            return []
        if member["kind"] == "method":
            return self._overloads(name, member["signatures"], indent)
        type_ = self._type(ast.parse(member["type"] or "Any", mode="eval").body)
        if member["kind"] == "value":
            return [f"{indent}{name}: ClassVar[{type_}]"]
        lines = [f"{indent}@property", f"{indent}def {name}(self) -> {type_}: ..."]
        if member["settable"]:
            lines += [f"{indent}@{name}.setter", f"{indent}def {name}(self, value: {type_}) -> None: ..."]
        return lines

    def _overloads(self, name: str, signatures: list[str], indent: str) -> list[str]:
        lines = []
        for signature in signatures:
            lines += [f"{indent}@overload"] if len(signatures) > 1 else []
            lines.append(self._method(name, signature, indent))
        return lines

    def _method(self, name: str, signature: str, indent: str, of_class: bool = True) -> str:
        taken, returns = parameters(signature)
        without = len(taken.args) - len(taken.defaults)
        told = ["self"] if of_class else []
        for i, argument in enumerate(taken.args):
            type_ = self._taken(argument.annotation)
            default = taken.defaults[i - without] if i >= without else None
            if isinstance(default, ast.Constant) and default.value is None:
                type_ += " | None"
            told.append(f"{argument.arg}: {type_}" + (" = ..." if default is not None else ""))
        gives = "None" if name == "__init__" else self._type(returns)
        return f"{indent}def {name}({', '.join(told)}) -> {gives}: ..."

    def _taken(self, annotation: ast.expr | None) -> str:
        """What a parameter takes: pybind makes shapes from sequences."""
        type_ = self._type(annotation)
        return "Dims | Sequence[int]" if type_ == "Dims" else type_

    def _type(self, annotation: ast.expr | None) -> str:
        if annotation is None:
            return "Any"
        if isinstance(annotation, ast.Constant):
            return str(annotation.value)
        return ast.unparse(_Types(set(self._members)).visit(annotation))


def make_stub(catalogue: Catalogue) -> str:
    """The stub's text.

    Args:
        catalogue: Of the installed ``tensorrt_rtx``.
    """
    found = Reader(sources("tensorrt"), catalogue, RTX, TENSORRT).read()
    return _Writer(catalogue, sorted(found.used | set(ALSO))).text()


def write(path: Path = STUB) -> None:
    """Write the stub.

    Args:
        path: Where to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(make_stub(bindings.rtx()), "utf-8")


if __name__ == "__main__":
    write()
