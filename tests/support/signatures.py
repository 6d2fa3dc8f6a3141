"""Signatures of bindings, as their docstrings say them, and what fits them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Sequence


def parameters(signature: str) -> tuple[ast.arguments, ast.expr | None]:
    """The parameters of a signature without ``self``, and its result.

    Args:
        signature: As in ``bindings.Member``.

    Raises:
        SyntaxError: It is not Python's.
    """
    made = ast.parse(f"def f{signature}: ...").body[0]
    assert isinstance(made, ast.FunctionDef)
    if made.args.args and made.args.args[0].arg == "self":
        del made.args.args[0]
    return made.args, made.returns


def misfit(
    taken: ast.arguments,
    given: Sequence[ast.expr],
    keywords: Sequence[ast.keyword],
    agrees: Callable[[ast.expr, ast.expr], bool],
) -> str:
    """Why a call does not fit.

    Args:
        taken: What is taken.
        given: Positional arguments; a starred one may be any number of them.
        keywords: Arguments by name; one without a name may be any of them.
        agrees: Whether an argument may be of a parameter's type.

    Returns:
        The reason; empty if the call fits.
    """
    positional = [*taken.posonlyargs, *taken.args]
    starred = any(isinstance(argument, ast.Starred) for argument in given)
    plain = [argument for argument in given if not isinstance(argument, ast.Starred)]
    if len(plain) > len(positional) and taken.vararg is None:
        return f"takes {len(positional)} arguments by position, not {len(plain)}"
    names = {keyword.arg for keyword in keywords}
    known = {argument.arg for argument in [*taken.args, *taken.kwonlyargs]}
    if taken.kwarg is None and names - known - {None}:
        return f"has no parameter {', '.join(sorted(filter(None, names - known)))}"
    if not starred and None not in names:
        lacking = _lacking(taken, positional[len(plain) :], names)
        if lacking:
            return f"lacks {', '.join(lacking)}"
    by_name = {argument.arg: argument for argument in [*positional, *taken.kwonlyargs]}
    pairs = [*zip(positional, given if not starred else [], strict=False)]
    pairs += [(by_name[keyword.arg], keyword.value) for keyword in keywords if keyword.arg in by_name]
    for parameter, argument in pairs:
        if parameter.annotation is not None and not agrees(parameter.annotation, argument):
            return f"takes {ast.unparse(parameter.annotation)} as {parameter.arg}"
    return ""


def _lacking(taken: ast.arguments, left: Sequence[ast.arg], names: Collection[str | None]) -> list[str]:
    """Parameters without a default that get nothing."""
    without = left[: max(0, len(left) - len(taken.defaults))]
    kwonly = [
        argument
        for argument, default in zip(taken.kwonlyargs, taken.kw_defaults, strict=True)
        if default is None
    ]
    return [argument.arg for argument in [*without, *kwonly] if argument.arg not in names]
