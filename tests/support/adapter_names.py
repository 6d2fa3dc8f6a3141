"""What the GPU adapters use of bindings, followed through their source, and held against a catalogue of real ones.

Adapters take bindings as ``Any``: one source serves three dialects. Here, what such a name stands for is declared once
(``adapter_table``), and from there on the bindings' own documentation says what comes out of each call. Whatever is
``Any`` in an adapter and not declared is a finding: so new code must be. What is taken out of a dictionary is not
followed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence

from adapter_kinds import OURS, UNTYPED, Findings, Kind, Stock, Table, element_of, one_of
from adapter_sources import Function, Sources, mentions_any
from bindings import Catalogue
from signatures import misfit, parameters

#: A name of an enumeration's member that stands in the source as a string.
_WORD = re.compile(r"[A-Z][A-Z0-9]{2,}(?:_[A-Z0-9]+)*|[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")


class Reader:
    """Follows the bindings through sources, for one flavour.

    Args:
        sources: Name of a module of the adapters to its source.
        catalogue: What the flavour's bindings hold.
        flavour: Its name, as in the table.
        table: What the sources leave open.
    """

    def __init__(self, sources: Mapping[str, str], catalogue: Catalogue, flavour: str, table: Table) -> None:
        self.flavour, self.table, self._stock = flavour, table, Stock(catalogue)
        self._modules = frozenset(catalogue["modules"])
        self.findings = Findings()
        self._sources = Sources(sources)
        self._fields: dict[str, dict[str, Kind]] = {}
        self._where = ""

    # What there is

    def read(self) -> Findings:
        """Follow all sources: fields first, for the methods of other classes use them."""
        self._fill_fields()
        self.findings = Findings(taken=self.findings.taken)
        for name, tree in self._sources.trees.items():
            self._where = name
            self._body(tree.body, {}, "")
        return self.findings

    def _fill_fields(self) -> None:
        for name, node in self._sources.classes.items():
            self._fields[name] = {}
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    self._fields[name][item.target.id] = self._annotated(
                        item.annotation, name, item.target.id
                    )
        # A field may come of another class's: once more settles what the first round could not know.
        for _ in range(2):
            for tree in self._sources.trees.values():
                self._body(tree.body, {}, "")

    def _wrong(self, node: ast.AST, text: str) -> None:
        told = f"{self._where}.py:{getattr(node, 'lineno', 0)}: {text} [{self.flavour}]"
        if told not in self.findings.wrong:
            self.findings.wrong.append(told)

    # What is declared

    def _declared(self, scope: str, name: str) -> Kind | None:
        parts = scope.split(".") if scope else []
        for key in (".".join([*parts, name]), ".".join([*parts[:1], name]), name):
            if key in self.table.declared:
                self.findings.taken.add(key)
                return self._stock.kind_of(self.table.declared[key])
        return None

    def _annotated(self, annotation: ast.expr | None, scope: str, name: str, tell: bool = True) -> Kind:
        """What a parameter, field or result is, by its annotation."""
        if mentions_any(annotation):
            told = self._declared(scope, name)
            if told is None:
                if not tell:
                    return UNTYPED
                self._wrong(
                    annotation or ast.Pass(), f"{scope}.{name} is Any, and the table does not say what"
                )
                return UNTYPED
            return told
        for word in re.findall(r"\w+", ast.unparse(annotation)) if annotation is not None else ():
            if word in self._sources.classes:
                return Kind("ours", word)
        return OURS

    # Statements

    def _body(self, body: Sequence[ast.stmt], env: dict[str, Kind], scope: str) -> None:
        for statement in body:
            self._statement(statement, env, scope)

    def _statement(self, node: ast.stmt, env: dict[str, Kind], scope: str) -> None:
        if isinstance(node, Function):
            self._function(node, dict(env), scope)
        elif isinstance(node, ast.ClassDef):
            self._class(node, env, scope)
        elif isinstance(node, ast.Assign):
            kind = self.kind(node.value, env, self._scope(scope, node.targets[0]))
            for target in node.targets:
                self._assign(target, kind, node.value, env, scope)
        elif isinstance(node, ast.AnnAssign):
            self._annotated_assignment(node, env, scope)
        elif isinstance(node, ast.For):
            self._assign(node.target, element_of(self.kind(node.iter, env, scope)), None, env, scope)
            self._body([*node.body, *node.orelse], env, scope)
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            self._children(node, env, scope)

    def _children(self, node: ast.AST, env: dict[str, Kind], scope: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                self._statement(child, env, scope)
            elif isinstance(child, ast.expr):
                self.kind(child, env, scope)
            elif isinstance(child, ast.withitem):
                kind = self.kind(child.context_expr, env, scope)
                if child.optional_vars is not None:
                    self._assign(child.optional_vars, kind, None, env, scope)
            else:
                self._children(child, env, scope)

    def _scope(self, scope: str, target: ast.expr) -> str:
        """Where a module's own constant is, its name is the scope."""
        return scope or (target.id if isinstance(target, ast.Name) else "")

    def _annotated_assignment(self, node: ast.AnnAssign, env: dict[str, Kind], scope: str) -> None:
        kind = self.kind(node.value, env, self._scope(scope, node.target)) if node.value is not None else OURS
        name = node.target.attr if isinstance(node.target, ast.Attribute) else ast.unparse(node.target)
        if mentions_any(node.annotation):
            kind = self._annotated(node.annotation, scope, name)
        self._assign(node.target, kind, None, env, scope)

    def _assign(
        self, target: ast.expr, kind: Kind, value: ast.expr | None, env: dict[str, Kind], scope: str
    ) -> None:
        """Remember what a name stands for; an attribute of the bindings must be there and take a value."""
        if isinstance(target, ast.Tuple):
            values = value.elts if isinstance(value, ast.Tuple) else None
            for i, element in enumerate(target.elts):
                self._assign(element, self._part(kind, i), values[i] if values else None, env, scope)
        elif isinstance(target, ast.Name):
            known = self.table.declared.get(f"{scope}.{target.id}")
            if known is not None:
                self.findings.taken.add(f"{scope}.{target.id}")
            # A name that is cleared, or set first, stays what it is.
            if known is not None or not (isinstance(value, ast.Constant) and target.id in env):
                env[target.id] = self._stock.kind_of(known) if known is not None else kind
        elif isinstance(target, ast.Starred):
            self._assign(target.value, OURS, None, env, scope)
        elif isinstance(target, ast.Attribute):
            owner = self.kind(target.value, env, scope)
            if owner.of != "ours":
                self._set(target, owner)
            elif (
                owner.name in self._fields
                and isinstance(target.value, ast.Name)
                and target.value.id == "self"
            ):
                nothing = isinstance(value, ast.Constant)
                if not nothing or target.attr not in self._fields[owner.name]:
                    self._fields[owner.name].setdefault(target.attr, kind)
                    if kind != OURS:
                        self._fields[owner.name][target.attr] = kind

    def _set(self, target: ast.Attribute, owner: Kind) -> None:
        self._attribute(target, owner, target.attr)
        member = self._stock.member(owner, target.attr)
        if member is not None and not (member["kind"] == "property" and member["settable"]):
            self._wrong(target, f"{owner.name}.{target.attr} cannot be set")

    def _part(self, kind: Kind, index: int) -> Kind:
        if kind.of == "tuple" and index < len(kind.parts):
            return kind.parts[index]
        if kind.of == "ours" and kind.name in self._fields:
            fields = list(self._fields[kind.name].values())
            return fields[index] if index < len(fields) else OURS
        return element_of(kind)

    def _function(self, node: Function, env: dict[str, Kind], scope: str) -> None:
        owner = env.get("self", OURS).name
        inner = f"{owner}.{node.name}" if owner and scope == owner else node.name
        if not self._wanted(node.name):
            return
        arguments = node.args
        given = [
            *arguments.posonlyargs,
            *arguments.args,
            *arguments.kwonlyargs,
            arguments.vararg,
            arguments.kwarg,
        ]
        for argument in filter(None, given):
            if argument.arg != "self":
                env[argument.arg] = self._annotated(argument.annotation, inner, argument.arg)
        if mentions_any(node.returns):
            self._annotated(node.returns, owner if "." in inner else "", f"{node.name}()")
        for default in [*arguments.defaults, *arguments.kw_defaults]:
            if default is not None:
                self.kind(default, env, inner)
        self._body(node.body, env, inner)

    def _wanted(self, name: str) -> bool:
        return self.flavour in self.table.only.get(name, {self.flavour})

    def _class(self, node: ast.ClassDef, env: dict[str, Kind], scope: str) -> None:
        if not self._wanted(node.name):
            return
        bases = [self.kind(base, env, scope) for base in node.bases]
        inner = {**env, "self": Kind("ours", node.name), "cls": Kind("ours", node.name)}
        for base in bases:
            if base.of == "class":
                self._overrides(node, base)
        self._body(node.body, inner, node.name)

    def _overrides(self, node: ast.ClassDef, base: Kind) -> None:
        """Whatever the bindings call of a derived class must be called and take what they say."""
        for method in node.body:
            if not isinstance(method, Function) or method.name.startswith("_"):
                continue
            taken = [argument.arg for argument in method.args.args[1:]]
            found = self._attribute(method, Kind("object", base.name), method.name)
            signatures = self._stock.signatures(found) if found.of == "method" else []
            numbers = [len(parameters(text)[0].args) for text in signatures]
            if numbers and len(taken) not in numbers:
                self._wrong(
                    method, f"{base.name}.{method.name} is called with {numbers[0]}, not {len(taken)}"
                )

    # Expressions

    def kind(self, node: ast.expr, env: dict[str, Kind], scope: str) -> Kind:
        """What an expression is; everything in it is looked at."""
        if isinstance(node, ast.Name):
            return env.get(node.id, Kind("ours", node.id) if node.id in self._sources.classes else OURS)
        if isinstance(node, ast.Attribute):
            return self._attribute(node, self.kind(node.value, env, scope), node.attr)
        if isinstance(node, ast.Call):
            return self._call(node, env, scope)
        if isinstance(node, ast.Constant):
            self._word(node, scope)
            return OURS
        if isinstance(node, (ast.IfExp, ast.BoolOp)):
            if isinstance(node, ast.IfExp):
                self.kind(node.test, env, scope)
            sides = [node.body, node.orelse] if isinstance(node, ast.IfExp) else node.values
            known = [kind for side in sides if (kind := self.kind(side, env, scope)) != OURS]
            return one_of(known) if known else OURS
        if isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp)):
            return self._comprehension(node, dict(env), scope)
        if isinstance(node, ast.Subscript):
            self.kind(node.slice, env, scope)
            outer = self.kind(node.value, env, scope)
            index = node.slice.value if isinstance(node.slice, ast.Constant) else None
            return self._part(outer, index) if isinstance(index, int) else element_of(outer)
        if isinstance(node, ast.Tuple):
            return Kind("tuple", parts=tuple(self.kind(element, env, scope) for element in node.elts))
        if isinstance(node, ast.NamedExpr):
            found = self.kind(node.value, env, scope)
            self._assign(node.target, found, None, env, scope)
            return found
        self._children(node, env, scope)
        return OURS

    def _comprehension(
        self,
        node: ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp,
        env: dict[str, Kind],
        scope: str,
    ) -> Kind:
        for clause in node.generators:
            self._assign(clause.target, element_of(self.kind(clause.iter, env, scope)), None, env, scope)
            for test in clause.ifs:
                self.kind(test, env, scope)
        if isinstance(node, ast.DictComp):
            self.kind(node.key, env, scope)
            self.kind(node.value, env, scope)
            return OURS
        return Kind("list", parts=(self.kind(node.elt, env, scope),))

    def _word(self, node: ast.Constant, scope: str) -> None:
        """A string in capitals is the name of a member."""
        if not isinstance(node.value, str) or not _WORD.fullmatch(node.value):
            return
        if node.value in self.table.other_words.get(scope, ()) or not self._wanted(scope):
            return
        enumeration = self.table.words.get(scope)
        if enumeration is None:
            self._wrong(node, f"{node.value!r} in {scope}: the table does not say of what it is a member")
        else:
            self.findings.taken.add(scope)
            self._attribute(node, Kind("class", enumeration), node.value)

    def _attribute(self, node: ast.AST, owner: Kind, name: str) -> Kind:
        if owner.of == "either":
            return one_of([self._attribute(node, part, name) for part in owner.parts])
        if owner.of == "untyped":
            self._wrong(node, f".{name} of something of the bindings that nothing says the type of")
            return UNTYPED
        if owner.of == "ours":
            return self._field(owner.name, name)
        if owner.of not in ("module", "class", "object"):
            return OURS
        member = self._stock.member(owner, name)
        if member is None:
            if f"{owner.name}.{name}" not in self.table.guarded.get(self.flavour, ()):
                self._wrong(node, f"{owner.name} has no {name}")
            else:
                self.findings.taken.add(f"{owner.name}.{name}")
            return UNTYPED
        self.findings.used.add(f"{owner.name}.{name}")
        return self._stock.kind_of_member(owner, name, member)

    def _field(self, class_: str, name: str) -> Kind:
        """A field of an adapter's class; of an unknown one, what all classes agree on."""
        for owner in self._sources.derived_from(class_):
            if f"{owner}.{name}" in self.table.declared:
                self.findings.taken.add(f"{owner}.{name}")
                return self._stock.kind_of(self.table.declared[f"{owner}.{name}"])
            if name in self._fields.get(owner, {}):
                return self._fields[owner][name]
        if class_:
            return OURS
        found = {fields[name] for fields in self._fields.values() if name in fields}
        return found.pop() if len(found) == 1 else UNTYPED if found - {OURS} else OURS

    # Calls

    def _call(self, node: ast.Call, env: dict[str, Kind], scope: str) -> Kind:
        for argument in node.args:
            self.kind(argument, env, scope)
        for keyword in node.keywords:
            self.kind(keyword.value, env, scope)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        first = node.args[0] if node.args else None
        literal = first.value if isinstance(first, ast.Constant) else None
        if name == "import_module" and isinstance(literal, str) and literal in self._modules:
            return Kind("module", literal)
        if name in ("getattr", "hasattr", "setattr", "delattr") and len(node.args) > 1:
            return self._by_name(node, self.kind(node.args[0], env, scope), scope)
        if name in self.table.calls and isinstance(literal, str):
            self.findings.taken.add(name)
            module = Kind("module", self.table.calls[name])
            found = self._attribute(node, module, literal)
            return self._called(node, found, node.args[1:], env, scope)
        declared = self.table.declared.get(ast.unparse(node))
        if declared is not None:
            self.findings.taken.add(ast.unparse(node))
            return self._stock.kind_of(declared)
        found = self.kind(node.func, env, scope)
        if found.of == "ours":
            of = self.kind(node.func.value, env, scope) if isinstance(node.func, ast.Attribute) else OURS
            return found if found.name else self._result(of.name, name)
        return self._called(node, found, node.args, env, scope)

    def _by_name(self, node: ast.Call, owner: Kind, scope: str) -> Kind:
        """An attribute whose name is a string, or is made up."""
        if owner.of == "ours":
            return OURS
        name = node.args[1]
        if isinstance(name, ast.Constant):
            return self._attribute(node, owner, str(name.value))
        key = f"{scope}: {ast.unparse(node)}"
        if key not in self.table.dynamic:
            self._wrong(node, f"{key}: the table does not say which names it asks for")
            return UNTYPED
        self.findings.taken.add(key)
        for word in self.table.dynamic[key]:
            self._attribute(node, owner, word)
        return Kind("object", owner.name) if owner.of == "class" else UNTYPED

    def _called(
        self, node: ast.Call, found: Kind, given: Sequence[ast.expr], env: dict[str, Kind], scope: str
    ) -> Kind:
        """What a call of the bindings gives; one of its signatures must fit."""
        if found.of == "either":
            return one_of([self._called(node, part, given, env, scope) for part in found.parts])
        if found.of not in ("class", "method"):
            if found.of == "object":
                self._wrong(node, f"{ast.unparse(node.func)} is a {found.name}, and cannot be called")
            return UNTYPED

        def agrees(annotation: ast.expr, argument: ast.expr) -> bool:
            return self._stock.agrees(self._stock.kind_of_type(annotation), self.kind(argument, env, scope))

        reasons, result = [], UNTYPED
        for text in self._stock.signatures(found):
            taken, returns = parameters(text)
            reason = misfit(taken, given, node.keywords, agrees)
            if not reason:
                result = self._stock.kind_of_type(returns) if returns is not None else UNTYPED
                break
            reasons.append(reason)
        else:
            if reasons:
                self._wrong(node, f"{found.name} {', and '.join(dict.fromkeys(reasons))}")
        return Kind("object", found.name) if found.of == "class" else result

    def _result(self, class_: str, name: str) -> Kind:
        """What a function of the adapters gives, or a method: of a class, or what all that have it agree on."""
        results = self._sources.results(class_, name)
        found = {self._annotated(returns, owner, f"{name}()", tell=False) for owner, returns in results}
        return found.pop() if len(found) == 1 else UNTYPED if found - {OURS} else OURS
