"""The adapters' sources: their modules, classes and functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

Function = ast.FunctionDef | ast.AsyncFunctionDef


def mentions_any(annotation: ast.expr | None) -> bool:
    """Whether something is ``Any`` itself, or may be, or a tuple has it."""
    if isinstance(annotation, ast.Name):
        return annotation.id == "Any"
    if isinstance(annotation, ast.BinOp):
        return mentions_any(annotation.left) or mentions_any(annotation.right)
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in (
        "tuple",
        "list",
        "Sequence",
    ):
        inner = annotation.slice
        return any(map(mentions_any, inner.elts if isinstance(inner, ast.Tuple) else [inner]))
    return False


class Sources:
    """What adapters define.

    Args:
        texts: Name of a module to its source.

    Attributes:
        trees: Name of a module to its syntax.
        classes: Name to class; those in functions, too.
    """

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.trees = {name: ast.parse(text) for name, text in texts.items()}
        self.classes: dict[str, ast.ClassDef] = {}
        #: Class, or empty, and function.
        self._functions: list[tuple[str, Function]] = []
        for tree in self.trees.values():
            self._functions += [("", node) for node in tree.body if isinstance(node, Function)]
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    self.classes[node.name] = node
                    self._functions += [(node.name, item) for item in node.body if isinstance(item, Function)]

    def derived_from(self, class_: str) -> Iterator[str]:
        """A class and what it derives from, as far as adapters define them."""
        if class_ in self.classes:
            yield class_
            for base in self.classes[class_].bases:
                yield from self.derived_from(ast.unparse(base).rpartition(".")[2])

    def results(self, class_: str, name: str) -> list[tuple[str, ast.expr | None]]:
        """What functions and methods of a name return: their class, or empty, and the annotation.

        Args:
            class_: Whose the method is; every class's where it is not known.
            name: The function's.
        """
        owners = {"", *(self.derived_from(class_) if class_ in self.classes else self.classes)}
        return [(owner, f.returns) for owner, f in self._functions if f.name == name and owner in owners]
