"""Templates of a request, compiled once: a row's values in, the body out; a value is never read as a template.

A string that is one bare `{{ column }}` or `{{ row['any name'] }}` keeps the value's type and costs no rendering.
Any other template is text in Jinja's immutable sandbox, with these rules of its own:

- Null may be tested, compared and given to `default()`; put into text it is an error, through filters as well.
- Dates are ISO 8601, decimals text, true and false as JSON writes them, lists and objects plain JSON.
- `tojson` escapes no HTML, a trailing newline stays, binary and NaN are errors.
- A column that a row does not have is null; a name that is no column is one that validation has refused.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast, final
from uuid import UUID

from jinja2 import (
    Environment,
    StrictUndefined,
    Template,
    TemplateSyntaxError,
    Undefined,
    UndefinedError,
    meta,
    nodes,
    pass_context,
    pass_environment,
)
from jinja2.exceptions import SecurityError
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from pipeline.errors import RowError, TemplateError
from pipeline.job import bounds
from pipeline.job.batch import BATCH_FORMAT, URL_OF, operation_of
from pipeline.job.bounds import Usage

if TYPE_CHECKING:
    from pipeline.job.spec import Job

_MARKS = re.compile(r"\{[{%#]")
_USAGE = "_pipeline_usage"
_COUNTED = "_pipeline_counted"
_JOINED = "_pipeline_joined"
_MEASURED = "_pipeline_measured"
_GLOBALS = ("range", "dict", "namespace")
_FORBIDDEN = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block)
_NO_FILTERS = ("urlize", "xmlattr", "pprint", "forceescape")  # for HTML and for debugging, and slow
_NO_TEXT_METHODS = frozenset({"format", "format_map", "translate", "maketrans", "encode", "striptags"})
_TESTS_OF_BEING = frozenset({"defined", "undefined", "none", "string", "number", "mapping", "sequence", "boolean"})
_MAPPING_METHODS = frozenset({"get", "items", "keys", "values"})

Getter = Callable[[Mapping[str, Any], "Usage"], Any]


@final
class _Null:
    """Null inside a template: may be tested, never printed. jinja's filters turn values to text by str()."""

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or other is self

    def __hash__(self) -> int:
        return hash(None)

    def __str__(self) -> str:
        raise TemplateError(code="null", message="a null value stands in a text: use default()")

    __repr__ = __str__
    __format__ = None  # type: ignore[assignment]


_NULL = _Null()


@final
class _RowView(Mapping[str, Any]):
    """The whole row as a template sees it; a column that the row does not have is null."""

    __slots__ = ("_guarded", "_values")

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._guarded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._guarded:
            self._guarded[name] = _guard(self._values.get(name))
        return self._guarded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _guard(value: Any) -> Any:
    """Replace null, at any depth, by the value that cannot be printed."""
    kind = type(value)
    if kind is str or kind is int or kind is float or kind is bool:
        return value
    if value is None:
        return _NULL
    if kind is list or kind is tuple:
        return [_guard(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _guard(item) for name, item in value.items()}
    return value


def plain(value: Any) -> Any:
    """Give the JSON that a value stands for: dates ISO 8601, decimals text. Raises TemplateError for binary and NaN."""
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None or value is _NULL:
        return None if value is _NULL else value
    if kind is float:
        if not math.isfinite(value):
            raise TemplateError(code="nan", message="a value is NaN or infinite, which JSON cannot say")
        return value
    if kind is list or kind is tuple:
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise TemplateError(code="nan", message="a value is NaN or infinite, which JSON cannot say")
        return format(value, "f")
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise TemplateError(code="binary", message="a binary value stands in a template")
    if isinstance(value, (str, UUID, timedelta)):
        return str(value)
    if isinstance(value, (int, float)):
        return plain(float(value) if isinstance(value, float) else int(value))
    raise TemplateError(code="type", message=f"a {type(value).__name__} cannot be sent: name a value, or add `| list`")


def _dump(value: Any, indent: int | None = None) -> str:
    if indent is None:
        return json.dumps(plain(value), ensure_ascii=False, allow_nan=False)
    return _concat(json.JSONEncoder(ensure_ascii=False, allow_nan=False, indent=indent).iterencode(plain(value)))


def _text(value: Any) -> Any:
    """What an expression prints as."""
    kind = type(value)
    if kind is str:
        return value
    if kind is int:
        return str(value)
    if value is None or value is _NULL:
        return str(_NULL)
    if isinstance(value, Undefined):
        return str(value)
    flat = plain(value)
    return flat if isinstance(flat, str) else json.dumps(flat, ensure_ascii=False, allow_nan=False)


@pass_context
def _printed(context: Context, value: Any) -> Any:
    usage: Usage = context.parent[_USAGE]
    usage.copied(value)
    return value if type(value) is str else _text(value)


def _default(value: Any, default_value: Any = "", boolean: bool = False) -> Any:  # noqa: FBT001, FBT002 - jinja's signature
    if isinstance(value, Undefined) or value is None or value is _NULL or (boolean and not value):
        return default_value
    return value


def _is_null(value: Any) -> bool:
    return value is None or value is _NULL


@pass_context
def _counted(context: Context, values: Iterable[Any]) -> Iterator[Any]:
    usage: Usage = context.parent[_USAGE]
    return usage.each(values)


@pass_context
def _measured(context: Context, value: Any) -> Any:
    """Count a value that is made, compared or cut, and give it as it is."""
    usage: Usage = context.parent[_USAGE]
    usage.copied(value)
    return value


def _concat(pieces: Iterable[str]) -> str:
    """Join what a block, macro or loop has printed, within the bound."""
    kept: list[str] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > bounds.MAX_TEXT:
            raise bounds.too_large()
        kept.append(piece)
    return "".join(kept)


@pass_context
def _joined(context: Context, values: Iterable[Any]) -> str:
    """`a ~ b`, by the rules of printing."""
    text = _concat(str(_printed(context, value)) for value in values)
    usage: Usage = context.parent[_USAGE]
    usage.made(text)
    return text


@pass_environment
def _join(environment: Environment, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    """Join as jinja does, by the rules of printing."""
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    pieces = [str(_text(item)) for item in value]
    if sum(map(len, pieces)) + len(d) * len(pieces) > bounds.MAX_TEXT:
        raise bounds.too_large()
    return d.join(pieces)


def _replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    return str(_text(value)).replace(str(old), str(new), -1 if count is None else count)


def _striptags(value: Any) -> str:
    """A text without comments and tags, white space as single blanks, in time that grows with its length alone."""
    text = _without(_without(str(_text(value)), "<!--", "-->"), "<", ">")
    return html.unescape(" ".join(text.split()))


def _without(text: str, opening: str, closing: str) -> str:
    pieces: list[str] = []
    at = 0
    while (start := text.find(opening, at)) >= 0 and (end := text.find(closing, start + len(opening))) >= 0:
        pieces.append(text[at:start])
        at = end + len(closing)
    return "".join((*pieces, text[at:]))


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is measured before and after. What jinja hands it first is handed on."""
    first = getattr(getattr(function, "jinja_pass_arg", None), "name", None)

    @pass_context
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        usage: Usage = context.parent[_USAGE]
        value = bounds.before_filter(usage, name, value, args, kwargs)
        if first is None:
            result = function(value, *args, **kwargs)
        elif first == "eval_context":
            result = function(context.eval_ctx, value, *args, **kwargs)
        else:
            result = function(context if first == "context" else context.environment, value, *args, **kwargs)
        if name not in bounds.CHEAP_FILTERS:
            usage.made(result)
        return result

    return run


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with bounds on what a short expression can grow to."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(_concat)

    def wrap_str_format(self, value: Any) -> None:
        """Leave str.format to `is_safe_attribute`: its fields reach attributes and pad without bounds."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Refuse, beside what the sandbox refuses, methods that nobody needs and that grow without bounds."""
        if isinstance(obj, (str, bytes, bytearray)) and attr in _NO_TEXT_METHODS:
            return False
        if isinstance(obj, int) and attr in ("to_bytes", "from_bytes"):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """A field; those of null are undefined, which `default()` may fill."""
        if obj is _NULL:
            return self.undefined("a null value has no fields: use default()", name=attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An item; those of null are undefined, which `default()` may fill."""
        if obj is _NULL:
            return self.undefined("a null value has no fields: use default()", name=str(argument))
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute, unless the result would be beyond every use."""
        usage: Usage = context.parent[_USAGE]
        bounds.before_sum(usage, operator, left, right)
        result = super().call_binop(context, operator, left, right)
        usage.made(result)
        return result

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call, unless it lets a value grow beyond every use."""
        usage: Usage = context.parent[_USAGE]
        args = bounds.before_call(usage, obj, args, kwargs)
        result = super().call(context, obj, *args, **kwargs)
        if not bounds.gives_what_was_there(obj):
            usage.made(result)
        return result


def _environment() -> _Environment:
    environment = _Environment(
        undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True, finalize=_printed, cache_size=0
    )
    environment.globals = {name: environment.globals[name] for name in _GLOBALS}
    filters = environment.filters
    for name in _NO_FILTERS:
        del filters[name]
    filters["replace"] = _replace
    filters["join"] = _join
    filters["default"] = filters["d"] = _default
    filters["tojson"] = _dump
    filters["string"] = _text
    filters["striptags"] = _striptags
    for name, function in filters.items():
        filters[name] = _bounded(name, function)
    filters[_COUNTED] = _counted
    filters[_JOINED] = _joined
    filters[_MEASURED] = _measured
    environment.tests["none"] = _is_null
    return environment


_ENVIRONMENT = _environment()


class _Rules(NodeTransformer):
    """Put our bounds and rules of printing into a parsed template."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja calls it by the node's name
        """Count the turns of a loop."""
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, _COUNTED, [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - jinja calls it by the node's name
        """Let `~` print as `{{ }}` does."""
        self.generic_visit(node)
        operands = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(operands, _JOINED, [], [], None, None, lineno=node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802 - jinja calls it by the node's name
        """Measure a list that is made."""
        self.generic_visit(node)
        return _to_measure(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802 - jinja calls it by the node's name
        """Measure a tuple that is made."""
        self.generic_visit(node)
        return _to_measure(node) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802 - jinja calls it by the node's name
        """Measure an object that is made."""
        self.generic_visit(node)
        return _to_measure(node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802 - jinja calls it by the node's name
        """Measure what is compared or searched."""
        self.generic_visit(node)
        node.expr = _to_measure(node.expr)
        for operand in node.ops:
            operand.expr = _to_measure(operand.expr)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:  # noqa: N802 - jinja calls it by the node's name
        """Measure what is tested for more than being there."""
        self.generic_visit(node)
        if node.name not in _TESTS_OF_BEING:
            node.node = _to_measure(node.node)
            node.args = [_to_measure(argument) for argument in node.args]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802 - jinja calls it by the node's name
        """Measure what is cut, and what is looked up."""
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _to_measure(node.node)
        else:
            node.arg = _to_measure(node.arg)
        return node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:  # noqa: N802 - jinja calls it by the node's name
        """Measure the text of a `{% set %}` block."""
        self.generic_visit(node)
        node.filter = nodes.Filter(node.filter, _MEASURED, [], [], None, None, lineno=node.lineno)
        return node


def _to_measure(node: nodes.Expr) -> nodes.Expr:
    """Let an expression's value be measured; constants need none."""
    if isinstance(node, nodes.Const) or (isinstance(node, nodes.Filter) and node.name == _MEASURED):
        return node
    if isinstance(node, (nodes.List, nodes.Tuple)) and all(isinstance(item, nodes.Const) for item in node.items):
        return node
    return nodes.Filter(node, _MEASURED, [], [], None, None, lineno=node.lineno)


def has_template(text: str) -> bool:
    """True when the string holds a template: `{{`, `{%` or `{#`."""
    return _MARKS.search(text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTemplate:
    """One string of a request. `columns` are those that it reads, None when it may read any; `bare` keeps the type."""

    columns: frozenset[str] | None
    bare: bool
    render: Callable[[Mapping[str, Any], Usage], Any]


def compile_text(source: str) -> TextTemplate:
    """Compile one string that holds a template. Raises TemplateError, code `syntax`, saying what is wrong and where."""
    try:
        tree = _ENVIRONMENT.parse(source)
        bare = _bare(tree)
        if bare is not None:
            return TextTemplate(columns=bare.columns, bare=True, render=bare.render)
        _refuse_others(tree)
        columns = _columns(tree)
        code = _ENVIRONMENT.compile(cast("nodes.Template", _Rules().visit(tree)))
    except TemplateSyntaxError as error:
        at = f" (line {error.lineno} of the text)" if "\n" in source.rstrip("\n") else ""
        raise TemplateError(code="syntax", message=f"the template cannot be read: {error.message}{at}") from error
    except (RecursionError, MemoryError, SyntaxError, ValueError) as error:
        raise TemplateError(code="syntax", message="the template is too deep or too large to be read") from error
    except TemplateError as error:
        raise TemplateError(code="syntax", message=error.message) from error
    template = Template.from_code(_ENVIRONMENT, code, {})
    return TextTemplate(columns=columns, bare=False, render=_renderer(template, columns))


def _refuse_others(tree: nodes.Template) -> None:
    if any(True for _ in tree.find_all(_FORBIDDEN)):
        raise TemplateError(code="syntax", message="a template cannot include, import or extend another")


def _naming_nulls(error: TemplateError, values: Mapping[str, Any], names: Iterable[str]) -> TemplateError:
    """Add which of the columns that the template reads are null, where that is what was wrong."""
    nulls = ", ".join(f"`{name}`" for name in sorted(names) if values.get(name) is None)
    if error.code != "null" or not nulls:
        return error
    return TemplateError(code=error.code, message=f"{error.message} (null in this row: {nulls})")


def _renderer(template: Template, columns: frozenset[str] | None) -> Callable[[Mapping[str, Any], Usage], Any]:
    root, new_context, base = template.root_render_func, template.new_context, dict(_ENVIRONMENT.globals)
    names = tuple(columns or ())

    def render(values: Mapping[str, Any], usage: Usage) -> str:
        variables: dict[str, Any] = {**base, "row": _RowView(values), _USAGE: usage}
        get = values.get
        for name in values if columns is None else names:
            value = get(name)
            variables[name] = value if type(value) is str else _guard(value)
        try:
            text = _concat(root(new_context(variables, shared=True)))
        except TemplateError as error:
            raise _naming_nulls(error, values, names) from error
        except UndefinedError as error:
            raise TemplateError(code="undefined", message=(error.message or "undefined")[:200]) from error
        except SecurityError as error:
            raise TemplateError(code="security", message=(error.message or "forbidden")[:200]) from error
        except (OverflowError, MemoryError, RecursionError) as error:
            raise TemplateError(code="size", message="the template grows beyond its bounds") from error
        except Exception as error:
            # Another exception's text may quote the row.
            raise TemplateError(code="render", message=f"{type(error).__name__} while rendering") from error
        usage.characters += len(text)
        if usage.characters > bounds.MAX_TEXT:
            raise bounds.too_large()
        return text

    return render


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bare:
    columns: frozenset[str] | None
    render: Callable[[Mapping[str, Any], Usage], Any]


def _bare(tree: nodes.Template) -> _Bare | None:
    """The template that is one `{{ column }}` and nothing else; None for any other."""
    if len(tree.body) != 1 or not isinstance(tree.body[0], nodes.Output) or len(tree.body[0].nodes) != 1:
        return None
    node = tree.body[0].nodes[0]
    if isinstance(node, nodes.Name):
        if node.name == "row":
            return _Bare(columns=None, render=lambda values, _usage: plain(values))
        return _bare_column(node.name)
    name = _row_column(node)
    return None if name is None else _bare_column(name)


def _bare_column(name: str) -> _Bare:
    def render(values: Mapping[str, Any], _usage: Usage) -> Any:
        value = values.get(name)
        return value if type(value) is str else plain(value)

    return _Bare(columns=frozenset({name}), render=render)


def _row_column(node: nodes.Node) -> str | None:
    """The column that `row['name']` or `row.name` reaches; None for any other expression."""
    if not isinstance(node, (nodes.Getitem, nodes.Getattr)):
        return None
    if not isinstance(node.node, nodes.Name) or node.node.name != "row":
        return None
    if isinstance(node, nodes.Getattr):
        return None if node.attr in _MAPPING_METHODS else node.attr
    return node.arg.value if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str) else None


def _columns(tree: nodes.Template) -> frozenset[str] | None:
    """The columns that a template reads; None when it uses `row` in a way that may reach any."""
    names = meta.find_undeclared_variables(tree) - set(_GLOBALS)
    if "row" not in names:
        return frozenset(names)
    reached = [column for node in tree.find_all((nodes.Getitem, nodes.Getattr)) if (column := _row_column(node))]
    if sum(node.name == "row" for node in tree.find_all(nodes.Name)) != len(reached):
        return None
    return frozenset(names - {"row"} | set(reached))


def texts(request: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every string of a request that holds a template, with its path."""
    if isinstance(request, str):
        if has_template(request):
            yield path, request
    elif isinstance(request, Mapping):
        for name, item in request.items():
            yield from texts(item, (*path, name))
    elif isinstance(request, (list, tuple)):
        for index, item in enumerate(request):
            yield from texts(item, (*path, index))


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTemplate:
    """A request's templates, compiled. `columns` are those that they read, None when they may read any."""

    columns: frozenset[str] | None
    _constant: Mapping[str, Any]
    _fields: tuple[tuple[str, bool, Getter], ...]

    @property
    def row_fields(self) -> frozenset[str]:
        """The fields of the body that rows fill, at least in part."""
        return frozenset(name for name, _bare, _getter in self._fields)

    def render(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Give the body for one row: new at the top, with parts that hold no template shared by all rows.

        A field of the body that is one bare `{{ column }}` is left out where the column is null.
        Raises TemplateError, code one of undefined, null, binary, nan, type, security, size, render.
        """
        body = dict(self._constant)
        usage = Usage()
        for name, bare, getter in self._fields:
            value = getter(values, usage)
            if value is None and bare:
                del body[name]
            else:
                body[name] = value
        return body


def compile_request(request: Mapping[str, Any]) -> RequestTemplate:
    """Compile a request's body. Raises TemplateError, code `syntax`, naming the field."""
    columns: set[str] | None = set()
    constant: dict[str, Any] = {}
    fields: list[tuple[str, bool, Getter]] = []
    for name, node in request.items():
        part = _compile(node, (name,))
        constant[name] = part.constant
        if part.getter is not None:
            fields.append((name, part.bare, part.getter))
            columns = None if columns is None or part.columns is None else columns | part.columns
    return RequestTemplate(
        columns=None if columns is None else frozenset(columns), _constant=constant, _fields=tuple(fields)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A compiled part of a request: a constant, or a getter over it."""

    constant: Any = None
    getter: Getter | None = None
    columns: frozenset[str] | None = frozenset()
    bare: bool = False


def _compile(node: Any, path: tuple[str | int, ...]) -> _Part:
    if isinstance(node, str):
        return _compile_leaf(node, path) if has_template(node) else _Part(constant=node)
    if isinstance(node, Mapping):
        return _compile_container(dict(node), list(node.items()), path)
    if isinstance(node, (list, tuple)):
        return _compile_container(list(node), list(enumerate(node)), path)
    return _Part(constant=node)


def _compile_leaf(source: str, path: tuple[str | int, ...]) -> _Part:
    where = ".".join(map(str, ("request", *path)))
    try:
        text = compile_text(source)
    except TemplateError as error:
        raise TemplateError(code=error.code, message=f"{where}: {error.message}") from error
    render = text.render

    def get(values: Mapping[str, Any], usage: Usage) -> Any:
        try:
            return render(values, usage)
        except TemplateError as error:
            raise TemplateError(code=error.code, message=f"{where}: {error.message}") from error

    return _Part(getter=get, columns=text.columns, bare=text.bare)


def _compile_container(base: Any, items: Sequence[tuple[Any, Any]], path: tuple[str | int, ...]) -> _Part:
    dynamic: list[tuple[Any, Getter]] = []
    columns: frozenset[str] | None = frozenset()
    for place, node in items:
        part = _compile(node, (*path, place))
        base[place] = part.constant
        if part.getter is not None:
            dynamic.append((place, part.getter))
            columns = None if columns is None or part.columns is None else columns | part.columns
    if not dynamic:
        return _Part(constant=base)

    def get(values: Mapping[str, Any], usage: Usage) -> Any:
        filled = base.copy()
        for place, getter in dynamic:
            filled[place] = getter(values, usage)
        return filled

    return _Part(getter=get, columns=columns)


_NOT_OF_A_LINE = frozenset({"model", "stream", "stream_options"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LineTemplate(RequestTemplate):
    """The bodies of lines made for the Batch API, for one operation: no templates, they are sent as they are."""

    operation: str
    without: frozenset[str]

    def render(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Give the row's own body without what the deployment and the run decide.

        Raises RowError, code `url` for a line that asks for something else, `type` for one whose body is no object.
        """
        url = URL_OF[self.operation]
        if operation_of(values.get("url")) != self.operation:
            raise RowError(code="url", message=f"the line's url is not {url} or /v1{url}, which this run asks for")
        if values.get("method") != "POST":
            raise RowError(code="url", message=f"the line's method is not POST, as {url} needs")
        body = values.get("body")
        if not isinstance(body, Mapping):
            raise RowError(code="type", message="the line's body is no object")
        return {name: value for name, value in body.items() if name not in self.without}


def request_template(job: Job, *, without: Collection[str] = ()) -> RequestTemplate:
    """Compile a job's request without some fields; where the rows are lines for the Batch API, take their bodies.

    Raises TemplateError, code `syntax`, naming the field.
    """
    if job.input.format != BATCH_FORMAT:
        return compile_request({name: node for name, node in job.request.items() if name not in without})
    return LineTemplate(
        columns=frozenset({"method", "url", "body"}),
        _constant={},
        _fields=(),
        operation=job.operation,
        without=_NOT_OF_A_LINE.union(without),
    )
