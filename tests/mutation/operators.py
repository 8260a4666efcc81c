"""The one-step changes of a module that its tests should notice, by the standard operators of mutation testing.

Comparisons move their bound or turn round, arithmetic and boolean operators are exchanged, numbers, texts and truth
values change (those of defaults and of module constants too), conditions are negated, results become None, statements
and cases are left out, and `min`, `max`, `any` and `all` change places.

Left alone are docstrings, annotations, decorators, assertions, `__slots__`, and what only a person reads: f-strings and
the texts of what is raised.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
}
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One change: where, what stood there, and what stands there instead. `number` counts within the file."""

    file: str
    number: int
    line: int
    scope: str
    operator: str
    before: str
    after: str

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.file}:{self.line} {self.scope}: {self.before}  ->  {self.after}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    mutant: Mutant
    apply: Callable[[], None]


def mutants(file: str, source: str) -> list[Mutant]:
    """Return every mutant of a file, in the order of the source; the same source gives the same list."""
    return [site.mutant for site in _sites(file, ast.parse(source))]


def mutated(mutant: Mutant, source: str) -> ast.Module:
    """Return the tree of `source` with one mutant in it."""
    tree = ast.parse(source)
    site = _sites(mutant.file, tree)[mutant.number]
    assert site.mutant == mutant
    site.apply()
    return ast.fix_missing_locations(tree)


def _sites(file: str, tree: ast.Module) -> list[_Site]:
    found = list(_walk(file, tree, scope="<module>"))
    return [replace(site, mutant=replace(site.mutant, number=number)) for number, site in enumerate(found)]


def _walk(file: str, parent: ast.AST, *, scope: str) -> Iterator[_Site]:
    if isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        scope = parent.name if scope == "<module>" else f"{scope}.{parent.name}"
    for node, put in _children(parent):
        if _is_left_alone(node, parent):
            continue
        for operator, other in _replacements(node):
            mutant = Mutant(
                file=file,
                number=0,
                line=getattr(node, "lineno", 0),
                scope=scope,
                operator=operator,
                before=_text(node),
                after=_text(other),
            )
            yield _Site(mutant=mutant, apply=lambda put=put, other=other: put(other))
        yield from _walk(file, node, scope=scope)


def _children(parent: ast.AST) -> Iterator[tuple[ast.AST, Callable[[ast.AST], None]]]:
    """Yield each child that may be mutated, and how to put another in its place."""
    for name, value in ast.iter_fields(parent):
        if name in {"annotation", "returns", "decorator_list", "bases", "type_comment"}:
            continue
        if isinstance(value, ast.AST):
            yield value, lambda other, name=name: setattr(parent, name, other)
        elif isinstance(value, list):
            for place, item in enumerate(value):
                if isinstance(item, ast.AST):
                    yield item, lambda other, value=value, place=place: value.__setitem__(place, other)


def _is_left_alone(node: ast.AST, parent: ast.AST) -> bool:
    match node:
        case ast.JoinedStr() | ast.Assert():
            return True
        case ast.Expr(value=ast.Constant(value=str())):
            return True
        case ast.Assign(targets=[ast.Name(id="__slots__")]):
            return True
        case ast.Constant(value=str()) if isinstance(parent, ast.Call) and _is_error(parent):
            return True
        case ast.Expr(value=ast.Call(func=ast.Name(id="assert_never"))):
            return True
        case _:
            return False


def _is_error(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id.endswith("Error")


def _replacements(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:  # noqa: C901, PLR0912 - the table of operators
    match node:
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            for place, op in enumerate(ops):
                for other in _COMPARISONS[type(op)]:
                    changed = [*ops[:place], other(), *ops[place + 1 :]]
                    yield "comparison", ast.Compare(left=left, ops=changed, comparators=comparators)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            yield "arithmetic", ast.BinOp(left=left, op=_ARITHMETIC[type(op)](), right=right)
        case ast.AugAssign(target=target, op=op, value=value) if type(op) in _ARITHMETIC:
            yield "arithmetic", ast.AugAssign(target=target, op=_ARITHMETIC[type(op)](), value=value)
            yield "statement", ast.Pass()
        case ast.BoolOp(op=op, values=values):
            yield "boolean", ast.BoolOp(op=ast.Or() if isinstance(op, ast.And) else ast.And(), values=values)
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield "unary", operand
        case ast.Constant(value=value):
            for other in _other_constants(value):
                yield "constant", ast.Constant(value=other)
        case ast.Name(id=name) if name in _NAMES:
            yield "name", ast.Name(id=_NAMES[name], ctx=ast.Load())
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield "condition", ast.IfExp(test=test, body=orelse, orelse=body)
        case ast.If(test=test, body=body, orelse=orelse):
            yield "condition", ast.If(test=_negated(test), body=body, orelse=orelse)
        case ast.While(test=test, body=body, orelse=orelse) if not isinstance(test, ast.Constant):
            yield "condition", ast.While(test=_negated(test), body=body, orelse=orelse)
        case ast.Return(value=value) if value is not None and not isinstance(value, ast.Constant):
            yield "result", ast.Return(value=ast.Constant(value=None))
        case ast.Match(subject=subject, cases=cases):
            for place, case in enumerate(cases):
                if len(cases) > 1 and not _is_unreachable(case):
                    yield "case", ast.Match(subject=subject, cases=[*cases[:place], *cases[place + 1 :]])
        case ast.Continue():
            yield "statement", ast.Break()
        case ast.Break() | ast.Raise() | ast.Delete() | ast.Expr():
            yield "statement", ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript() | ast.Tuple()]):
            # Without its assignment a local name is an error that any test meets: that says nothing of the tests.
            yield "statement", ast.Pass()


def _other_constants(value: object) -> Iterator[bool | float | str]:
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1)
    elif isinstance(value, float):
        yield from (2 * value, value / 2) if value else (1.0,)
    elif isinstance(value, str):
        yield f"XX{value}XX"


def _negated(test: ast.expr) -> ast.expr:
    return (
        test.operand if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) else ast.UnaryOp(ast.Not(), test)
    )


def _is_unreachable(case: ast.match_case) -> bool:
    return "assert_never" in ast.unparse(case)


def _text(node: ast.AST) -> str:
    """Return the head of a node's source: enough to know it by."""
    text = ast.unparse(ast.fix_missing_locations(node))
    if isinstance(node, ast.Match):
        return " / ".join(line.strip() for line in text.splitlines() if line.strip().startswith("case "))
    return text.splitlines()[0]
