import datetime as dt
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import RowError, TemplateError
from pipeline.job.spec import Job
from pipeline.job.template import compile_request, compile_text, has_template, request_template, texts

ROW: dict[str, Any] = {
    "text": "hello",
    "nothing": None,
    "number": 3,
    "real": 1.5,
    "yes": True,
    "day": dt.date(2024, 10, 21),
    "moment": dt.datetime(2024, 10, 21, 1, 2, 3, tzinfo=dt.UTC),
    "clock": dt.time(1, 2),
    "price": Decimal("1E+3"),
    "tags": ["a", "<b>", None],
    "thing": {"a": {"b": "é"}, "none": None},
    "binary": b"\x00",
    "nan": float("nan"),
    "any name": "spaced",
    "row": "a column called row",
}


def render(source: str) -> Any:
    return compile_request({"x": source}).render(ROW).get("x", "(left out)")


def fails(source: str) -> str:
    with pytest.raises(TemplateError) as caught:
        render(source)
    return caught.value.code


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("{{ text }}", "hello"),
        ("{{ number }}", 3),
        ("{{real}}", 1.5),
        ("{{ yes }}", True),
        ("{{ tags }}", ["a", "<b>", None]),
        ("{{ thing }}", {"a": {"b": "é"}, "none": None}),
        ("{{ day }}", "2024-10-21"),
        ("{{ price }}", "1000"),
        ("{{ row['any name'] }}", "spaced"),
        ("{{ row.text }}", "hello"),
        ("{{ row['row'] }}", "a column called row"),
        ("{{ nothing }}", "(left out)"),
        ("{{ absent }}", "(left out)"),
    ],
)
def test_a_bare_column_keeps_its_type(source: str, value: object) -> None:
    assert render(source) == value
    assert type(render(source)) is type(value)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("say {{ text }}", "say hello"),
        (" {{ number }}", " 3"),
        ("{{ text }}\n", "hello\n"),
        ("{{ yes }}!", "true!"),
        ("{{ real }}!", "1.5!"),
        ("{{ day }} {{ moment }} {{ clock }}", "2024-10-21 2024-10-21T01:02:03+00:00 01:02:00"),
        ("{{ price }}!", "1000!"),
        ("{{ tags }}!", '["a", "<b>", null]!'),
        ("{{ thing }}!", '{"a": {"b": "é"}, "none": null}!'),
        ("{{ tags | tojson }}!", '["a", "<b>", null]!'),
        ("{{ {'a': 1} | tojson(indent=1) }}!", '{\n "a": 1\n}!'),
        ("{{ day ~ ' ' ~ price }}", "2024-10-21 1000"),
        ("{{ [day, number] | join(', ') }}", "2024-10-21, 3"),
        ("{{ thing.a.b }}!", "é!"),
        ("{{ day.year }}!", "2024!"),
        ("{{ nothing | default('-') }}!", "-!"),
        ("{{ absent | d('-') }}!", "-!"),
        ("{{ nothing.field | default('-') }}!", "-!"),
        ("{{ thing.missing | default('-') }}!", "-!"),
        ("{{ thing.none | default('-') }}!", "-!"),
        ("{{ '' | default('-', true) }}!", "-!"),
        ("{{ nothing is none }} {{ nothing == none }} {{ text is none }}", "true true false"),
        ("{% if nothing %}a{% else %}b{% endif %}", "b"),
        ("{% for tag in tags[:2] %}{{ loop.index }}/{{ loop.length }}{{ tag }} {% endfor %}", "1/2a 2/2<b> "),
        ("{% for i in range(3) if i %}{{ i }}{% endfor %}", "12"),
        ("{% set x = text | upper %}{{ x }}", "HELLO"),
        ("{# nothing #}x", "x"),
        ("{% raw %}{{ text }}{% endraw %}", "{{ text }}"),
        ("{{ text | replace('l', 'L') }}!", "heLLo!"),
        ("{{ '%05d' % number }}", "00003"),
        ("{{ '%s-%s' | format(text, number) }}", "hello-3"),
        ("{{ row['any name'] }}!", "spaced!"),
        ("{{ [1, 2, 3] | slice(2) | list }}!", "[[1, 2], [3]]!"),
        ("{{ [1, 2, 3] | batch(2, 0) | list }}!", "[[1, 2], [3, 0]]!"),
        ("{{ '<p>a <!-- <b> --> <b>b</b>\n&lt;c&gt; 1 < 2' | striptags }}!", "a b <c> 1 < 2!"),
        ("{{ 'a\nb' | indent(2) }}!", "a\n  b!"),
        ("{{ 'a b c' | wordwrap(3) }}!", "a b\nc!"),
        ("{{ 'a,b'.split(',') | map('upper') | join('+') }}!", "A+B!"),
        ("{{ ', '.join('b a'.split() | sort) }}!", "a, b!"),
        ("{{ [{'n': 1}, {'n': 2}] | sum(attribute='n') }}!", "3!"),
        ("{{ [{'n': 1}, {'n': 2}] | selectattr('n', 'gt', 1) | map(attribute='n') | list }}!", "[2]!"),
        ("{{ '%(a)s-%(b)03d' % {'a': 'x', 'b': 7} }}!", "x-007!"),
        ("{{ '%d%% of %s' | format(5, text) }}!", "5% of hello!"),
        (
            "{% set n = namespace(s=[]) %}{% for i in range(3) %}{% set n.s = n.s + [i] %}{% endfor %}{{ n.s }}",
            "[0, 1, 2]",
        ),
        ("{% set x | upper %}a{{ text }}{% endset %}{{ x }}", "AHELLO"),
        ("{% set x %}a{{ text }}{% endset %}{{ x }}", "ahello"),
        ("{% filter upper %}a{{ text }}{% endfilter %}", "AHELLO"),
        ("{% for a, b in {'x': 1}.items() %}{{ a }}{{ b }}{% endfor %}", "x1"),
        ("{{ text[1:3] }}{{ tags[0] }}{{ thing['a']['b'] }}", "elaé"),
        ("{{ text in ['hello', number] }} {{ 1 < number <= 3 }} {{ number is divisibleby 3 }}", "true true true"),
        ("{% macro m(x, y=2) %}{{ x }}{{ y }}{% endmacro %}{{ m(1) }}{{ m(1, y=3) }}", "1213"),
        (
            "{% for x in [1, [2]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}",
            "12",
        ),
        ("{{ text | truncate(4, true, '', 0) }}{{ 'a' | center(3) }}{{ 1.25 | round(1) }}", "hell a 1.2"),
    ],
)
def test_text_is_rendered_by_the_rules(source: str, text: str) -> None:
    assert render(source) == text


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("{{ nothing }}!", "null"),
        ("{{ absent }}!", "null"),
        ("{{ nothing | upper }}", "null"),
        ("{{ nothing ~ 'x' }}", "null"),
        ("{{ tags | join(',') }}", "null"),
        ("{{ tags[2] | trim }}", "null"),
        ("{{ '%s' % nothing }}", "null"),
        ("{{ thing.none }}!", "null"),
        ("{{ nothing.field }}!", "undefined"),
        ("{{ thing.missing }}!", "undefined"),
        ("{{ binary }}", "binary"),
        ("{{ binary }}!", "binary"),
        ("{{ [binary] }}!", "binary"),
        ("{{ nan }}", "nan"),
        ("{{ nan }}!", "nan"),
        ("{{ [nan] | tojson }}", "nan"),
        ("{{ tags | map('upper') }}", "type"),
        ("{{ text.upper }}", "type"),
        ("{{ 1 // 0 }}", "render"),
        ("{{ text + number }}", "render"),
    ],
)
def test_what_cannot_be_sent_fails_the_row(source: str, code: str) -> None:
    assert fails(source) == code


@pytest.mark.parametrize(
    ("source", "columns"),
    [
        ("{{ a }}", {"a"}),
        ("{{ a }} {{ b.c }}{% for d in e %}{{ d }}{% endfor %}", {"a", "b", "e"}),
        ("{{ row['x y'] }} {{ row.z }}", {"x y", "z"}),
        ("{{ range(3) | list }}", set()),
        ("{% set a = 1 %}{{ a }}", set()),
        ("{{ row[a] }}", None),
        ("{{ row }}", None),
        ("{{ row | tojson }}", None),
        ("{{ row.items() | list }}", None),
        ("{{ row['a'] }} {{ row.keys() | list }}", None),
    ],
)
def test_the_columns_of_a_template_are_known(source: str, columns: set[str] | None) -> None:
    expected = None if columns is None else frozenset(columns)
    assert compile_text(source).columns == expected
    assert compile_request({"x": [source]}).columns == expected


def test_a_request_is_rendered_in_its_own_shape() -> None:
    request = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "{{ text }}"}, "{{ nothing }}"]}],
        "temperature": 0,
        "user": "{{ nothing }}",
        "stop": None,
    }
    compiled = compile_request(request)
    assert compiled.columns == frozenset({"text", "nothing"})
    expected = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}, None]}],
        "temperature": 0,
        "stop": None,
    }
    assert compiled.render(ROW) == expected
    assert compiled.render(ROW) == expected


def test_rows_do_not_reach_into_each_other() -> None:
    compiled = compile_request({"a": [{"b": "{{ x }}"}], "c": "{{ x }}"})
    first, second = compiled.render({"x": 1}), compiled.render({"x": None})
    assert first == {"a": [{"b": 1}], "c": 1}
    assert second == {"a": [{"b": None}]}


@pytest.mark.parametrize(
    "source",
    [
        "{{ x",
        "{% if %}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{% extends 'x' %}",
        "{% block a %}{% endblock %}",
        "{{ x | nofilter }}",
    ],
)
def test_a_template_that_cannot_be_read_names_its_field(source: str) -> None:
    with pytest.raises(TemplateError, match=r"^request\.messages\.0\.content: ") as caught:
        compile_request({"messages": [{"content": source}]})
    assert caught.value.code == "syntax"


def test_a_failing_row_names_the_field() -> None:
    with pytest.raises(TemplateError, match=r"^request\.x\.0: a null value"):
        compile_request({"x": ["{{ a }}!"]}).render({})


@pytest.mark.parametrize(
    ("source", "row", "said"),
    [
        ("{{ name }} at {{ price }}", {"name": "x", "price": None}, r"use default\(\) \(null in this row: `price`\)$"),
        ("{{ name }} at {{ price }}", {}, r"\(null in this row: `name`, `price`\)$"),
        ("{{ tags | join(',') }}", {"tags": ["a", None]}, r"use default\(\)$"),
        ("{{ row.price }}!", {"price": None}, r"use default\(\)( \(null in this row: `price`\))?$"),
    ],
)
def test_a_null_in_a_text_names_the_columns_that_are_null(source: str, row: dict[str, Any], said: str) -> None:
    with pytest.raises(TemplateError, match=said) as caught:
        compile_request({"x": source}).render(row)
    assert caught.value.code == "null"


def test_strings_with_templates_are_found_with_their_paths() -> None:
    request = {"a": "plain", "b": [{"c": "{{ x }}"}, "{% if y %}{% endif %}"], "d": 5}
    assert list(texts(request)) == [(("b", 0, "c"), "{{ x }}"), (("b", 1), "{% if y %}{% endif %}")]
    assert not has_template("a { b } ${C}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSON)
def test_a_bare_column_is_the_value_itself(value: object) -> None:
    rendered = compile_request({"a": ["{{ x }}"]}).render({"x": value})
    assert rendered == {"a": [value]}


@settings(deadline=None)
@given(st.text())
def test_a_value_is_never_read_as_a_template(value: str) -> None:
    hostile = f"{{{{ 7 * 7 }}}}{{% for i in range(9) %}}{value}{{% endfor %}}"
    assert render_text(hostile) == f"<{hostile}>"


def render_text(value: str) -> Any:
    return compile_request({"x": "<{{ v }}>"}).render({"v": value})["x"]


LINE = {"method": "POST", "url": "/v1/embeddings", "body": {"input": "{{ x }}", "model": "m", "stream": True}}


def line_job(operation: str) -> Job:
    deployment = {"endpoint": "https://x.openai.azure.com", "deployment": "d"}
    return Job.model_validate(
        {
            "name": "lines",
            "operation": operation,
            "input": {"path": "x", "format": "openai-batch"},
            "request": {},
            "deployments": [deployment],
            "output": {"path": "out"},
        }
    )


def test_a_line_of_the_batch_api_is_its_own_request_and_no_template() -> None:
    compiled = request_template(line_job("embeddings"))
    assert compiled.columns == {"method", "url", "body"}
    assert compiled.render(LINE) == {"input": "{{ x }}"}
    assert compiled.render(LINE | {"url": "/embeddings", "x": 1}) == {"input": "{{ x }}"}


def test_rendering_a_line_leaves_the_row_as_it_was() -> None:
    row = LINE | {"body": {"input": "a", "model": "m"}}
    request_template(line_job("embeddings"), without=["input"]).render(row)
    assert row["body"] == {"input": "a", "model": "m"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"url": "/v1/chat/completions"}, "url"),
        ({"url": "https://x/v1/embeddings"}, "url"),
        ({"url": "/v1/embeddings?x=1"}, "url"),
        ({"url": None}, "url"),
        ({"url": ["/v1/embeddings"]}, "url"),
        ({"method": "GET"}, "url"),
        ({"method": "post"}, "url"),
        ({"method": None}, "url"),
        ({"body": None}, "type"),
        ({"body": "{}"}, "type"),
        ({"body": []}, "type"),
    ],
)
def test_a_line_that_asks_for_something_else_is_a_row_error(change: dict[str, Any], code: str) -> None:
    with pytest.raises(RowError) as caught:
        request_template(line_job("embeddings")).render(LINE | change)
    assert caught.value.info.code == code


def test_a_line_without_anything_is_a_row_error() -> None:
    with pytest.raises(RowError):
        request_template(line_job("embeddings")).render({})


def test_a_request_is_compiled_without_the_fields_that_are_not_sent() -> None:
    job = line_job("embeddings")
    job = job.model_copy(
        update={"input": job.input.model_copy(update={"format": "auto"}), "request": {"a": "{{ x }}", "b": 1}}
    )
    assert request_template(job).render({"x": 2}) == {"a": 2, "b": 1}
    assert request_template(job, without={"a"}).columns == frozenset()
