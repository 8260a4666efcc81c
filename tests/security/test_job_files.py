"""Hostile job files and hostile rows: nothing is run, nothing grows without bound, no secret is shown."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import TemplateError
from pipeline.job.bounds import MAX_TEXT
from pipeline.job.load import Draft, read
from pipeline.job.template import compile_request

CANARY = "sk-canary-0f9a2b"
JOB = """\
operation: chat
input: {path: rows.jsonl}
request: {messages: [{role: user, content: "{{ text }}"}]}
deployments:
  - endpoint: https://x.openai.azure.com
    deployment: d
    DEPLOYMENT
output: {path: out}
"""


def draft(tmp_path: Path, text: str, name: str = "job.yaml", overrides: dict[str, str] | None = None) -> Draft:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    environ = {"KEY": CANARY, "BROKEN": f"{CANARY}\r\nX-Evil: 1", "URL": f"https://u:{CANARY}@x.test"}
    return read(file, environ=environ, operations=("chat",), overrides=overrides)


@pytest.mark.parametrize(
    "line",
    [
        f"key: {CANARY}",
        f'key: "${{KEY}}{CANARY}"',
        f'key: "{CANARY}${{KEY}}"',
        f'key: "${{KEY:-{CANARY}}}"',
        f'key: "Bearer {CANARY}"',
        f"key: [{CANARY}]",
        f"key: {{a: {CANARY}}}",
        f"token: {CANARY}",
        f'token: "${{KEY:-{CANARY}}}"',
        f"headers: {{X-Key: {CANARY}}}",
        f'headers: {{X-Key: "Bearer {CANARY}"}}',
        f"headers: [{CANARY}]",
        f"headers: {CANARY}",
        f"credential: {{client_secret: {CANARY}}}",
        f"credential: {{password: {CANARY}}}",
        f"credential: {CANARY}",
        f"keyy: {CANARY}",
        f"api_key: {CANARY}",
        f"organization: [{CANARY}]",
        f"api: {CANARY}",
        f"auth: {CANARY}",
        f"lane: {CANARY}",
        f"priority: {CANARY}",
        f"price: {CANARY}",
        f"price: {{input: {CANARY}}}",
        f"max_inputs: {CANARY}",
        "key: ${BROKEN}",
        f"key: {CANARY}: {CANARY}",
        f"key: '{CANARY}",
        f"key: @{CANARY}",
        f"key: &{CANARY} x",
        f"key: *{CANARY}",
        f"key: !{CANARY} x",
        f"key: !!int {CANARY}",
        f"key: {CANARY}\n    key: {CANARY}",
        f'ca_bundle: "{CANARY}"',
    ],
)
def test_a_literal_secret_is_refused_and_never_repeated(tmp_path: Path, line: str) -> None:
    found = draft(tmp_path, JOB.replace("DEPLOYMENT", line))
    assert found.problems
    assert found.job is None
    assert CANARY not in repr(found)
    assert CANARY not in "\n".join(map(str, found.problems))


@pytest.mark.parametrize(
    "endpoint",
    [
        f"https://user:{CANARY}@x.test",
        f"https://{CANARY}@x.test",
        f"https://x.test/?api-key={CANARY}",
        f"https://x.test/?code={CANARY}",
        "${URL}",
    ],
)
def test_a_secret_in_an_endpoint_is_refused_and_never_repeated(tmp_path: Path, endpoint: str) -> None:
    found = draft(tmp_path, JOB.replace("https://x.openai.azure.com", endpoint).replace("DEPLOYMENT", "key: ${KEY}"))
    assert [problem.path for problem in found.problems] == ["deployments.0.endpoint"]
    assert CANARY not in repr(found)


@pytest.mark.parametrize("value", [CANARY, f"[{CANARY}", f"${{KEY:-{CANARY}}}", f"*{CANARY}", f"!x {CANARY}"])
def test_a_literal_secret_on_the_command_line_is_refused_and_never_repeated(tmp_path: Path, value: str) -> None:
    found = draft(tmp_path, JOB.replace("DEPLOYMENT", "priority: 1"), overrides={"deployments.0.key": value})
    assert found.problems
    assert CANARY not in repr(found)


def test_a_valid_job_shows_no_secret(tmp_path: Path) -> None:
    found = draft(tmp_path, JOB.replace("DEPLOYMENT", "key: ${KEY}\n    headers: {X-Key: 'Bearer ${KEY}'}"))
    assert found.job is not None
    assert found.job.deployments[0].headers["X-Key"].reveal() == f"Bearer {CANARY}"
    assert CANARY not in repr(found) + found.job.model_dump_json() + str(found.job.model_dump())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("laughs.yaml", "a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]\n"),
        ("object.yaml", "a: !!python/object/apply:os.system ['echo hacked']\n"),
        ("module.yaml", "a: !!python/module:os\n"),
        ("name.yaml", "!!python/name:os.system : 1\n"),
        ("deep.yaml", "a: " + "[" * 300_000),
        ("mappings.yaml", "a: " + "{a: " * 10_000),
        ("lists.yaml", "- " * 300_000),
        ("big.yaml", "a: b\n" * 400_000),
        ("deep.json", '{"a": ' + "[" * 300_000),
        ("deep.toml", "a = " + "[" * 50_000),
        ("doubled.yaml", "operation: chat\noperation: chat\n"),
        ("binary.yaml", "\x00\x01\x02"),
        ("directives.yaml", "%TAG ! tag:evil.test:\n---\na: !x 1\n"),
    ],
)
def test_a_hostile_file_is_refused_within_bounds(tmp_path: Path, name: str, text: str) -> None:
    begun = time.process_time()
    found = draft(tmp_path, text, name)
    assert found.job is None
    assert found.problems
    assert time.process_time() - begun < 5


ROW: dict[str, Any] = {"x": "value", "n": None, "items": [1, 2], "thing": {"a": 1}}


@pytest.mark.parametrize(
    "source",
    [
        "{{ x.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ x['__class__'] }}",
        "{{ x | attr('__class__') }}!",
        "{{ x.format }}",
        "{{ '{0.__class__}'.format(x) }}",
        "{{ '{0.__class__}'.format_map(thing) }}",
        "{{ x.format.__globals__ }}",
        "{{ range.__globals__ }}",
        "{{ dict.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ n.__class__ }}",
        "{{ n.__str__.__globals__ }}",
        "{{ row.__class__.__init__ }}",
        "{{ row._values }}",
        "{{ items.append(3) }}",
        "{{ items.clear() }}",
        "{{ thing.update({'b': 1}) }}",
        "{{ thing.pop('a') }}",
        "{% macro m() %}{% endmacro %}{{ m.__globals__ }}",
        "{{ self.__init__.__globals__ }}!",
        "{{ self._TemplateReference__context }}!",
        "{% for i in items %}{{ loop.__class__ }}{% endfor %}",
        "{{ lipsum.__globals__ }}!",
        "{{ cycler.__init__.__globals__ }}!",
        "{{ joiner.__init__.__globals__ }}!",
        "{{ config }}!",
        "{{ get_flashed_messages.__globals__ }}!",
        "{{ _pipeline_state.__class__ }}",
        "{{ (items | map(attribute='__class__') | list) }}",
        "{{ items | groupby('__class__') | list }}",
    ],
)
def test_a_template_reaches_nothing_but_values(source: str) -> None:
    before = {name: repr(value) for name, value in ROW.items()}
    with pytest.raises(TemplateError):
        compile_request({"a": source + " "}).render(ROW)
    assert before == {name: repr(value) for name, value in ROW.items()}


DOUBLED = "{% set ns = namespace(s=SEED) %}{% for i in range(26) %}{% set ns.s = TWICE %}{% endfor %}"
LISTS, TUPLES = DOUBLED.replace("TWICE", "[ns.s, ns.s]"), DOUBLED.replace("TWICE", "(ns.s, ns.s)")
OBJECTS = DOUBLED.replace("TWICE", "{'a': ns.s, 'b': ns.s}")
LONG = "{% set t = 'ab' * 15000000 %}"
TEXT = "{% set t = 'a b\n<!--' * 200000 %}"
GROWING = [
    "{{ 'a' * 10**10 }}",
    "{{ [0] * 10**10 }}",
    "{{ 10**10 * 'a' }}",
    "{{ 10 ** (10 ** 7) }}",
    "{{ 10 ** 100000000 }}",
    "{{ 2.0 ** 100000 }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' | center(10**10) }}",
    "{{ 'a' | indent(10**10, true) }}",
    "{{ 'a'.ljust(10**10) }}",
    "{{ 'a'.zfill(10**10) }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ '%9999999999d' | format(1) }}",
    "{{ items | batch(10**10, 'x') | list }}",
    "{{ items | slice(10**10) | list }}",
    "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
    "{{ (['a' * 1000] * 100000) | join }}",
    "{{ (range(99999) | list) | join('a' * 100000) }}",
    "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s=9) %}{% for i in range(60) %}{% set ns.s = ns.s * ns.s %}{% endfor %}{{ ns.s }}",
    "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}xxxxxxxx{% endmacro %}{{ m(40) }}",
    "{% for i in range(90000) %}" + "x" * 1000 + "{% endfor %}",
    *(
        made.replace("SEED", "x") + use
        for made in (LISTS, TUPLES, OBJECTS)
        for use in (
            "{{ ns.s }}",
            "{{ ns.s | tojson }}",
            "{{ ns.s | upper }}",
            "{{ ns | upper }}",
            "{{ '%s' % ns.s }}",
            "{{ ns.s == ns.s }}",
            "{{ thing.get(ns.s) }}",
            "{{ [ns.s] | unique | list }}",
            "{{ [ns.s] * 3 }}",
        )
    ),
    "{% set ns = namespace(s=1) %}{% for i in range(26) %}{% set ns.s = dict(a=ns.s, b=ns.s) %}{% endfor %}{{ ns.s }}",
    DOUBLED.replace("SEED", "1").replace("TWICE", "namespace(a=ns.s, b=ns.s)") + "{{ ns.s | upper }}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(26) %}{% set ns.s = [ns.s] * 2 %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(300) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s }}",
    *(LONG + "{{ ([t] * 100) | " + use + " }}" for use in ("list", "join", "tojson", "map('upper') | list")),
    *(
        LONG + "{% for i in range(90000) %}" + use + "{% endfor %}"
        for use in (
            "{% if t == t ~ 'c' %}{% endif %}",
            "{% if 'x' in t %}{% endif %}",
            "{% set u = t[1:] %}",
            "{% set u = t | upper %}",
            "{% set u = t.upper() %}",
            "{% set u %}{{ t }}{% endset %}",
            "{% if t is eq(t ~ 'c') %}{% endif %}",
            "{% set u = t | length %}{% set u = t + 'x' %}",
            "{% set u = '%s' % t %}",
        )
    ),
    *(
        LONG + "{{ t | " + use + " }}"
        for use in (
            "list",
            "sort | list",
            "unique | list",
            "batch(1) | list",
            "slice(3) | list",
            "wordcount",
            "wordwrap(1)",
            "striptags",
            "title",
            "urlencode",
            "map('upper') | list",
            "select('in', t) | list",
            "groupby(0) | list",
            "reverse",
            "replace('', 'b')",
            "replace('a', '&') | escape",
            "int(base=16)",
        )
    ),
    *(LONG + "{{ t." + use + " }}" for use in ("split()", "split('a')", "rsplit('b')", "splitlines()", "title()")),
    *(
        TEXT + "{{ t | " + use + " }}"
        for use in (
            "wordwrap(1, wrapstring='x' * 1000)",
            "wordwrap(1)",
            "indent(1000000)",
            "indent('x' * 1000000)",
            "indent(-10**9)",
        )
    ),
    "{{ ('a' * 900000) | wordwrap(1) }}",
    "{{ items | tojson(indent=10**9) }}",
    "{{ items | tojson(indent='x' * 10**7) }}",
    "{{ items | tojson(indent=-1) }}",
    "{{ [[[[[[items]]]]]] | tojson(indent=17) }}",
    "{{ ((range(99999) | list) * 8) | tojson(indent=16) }}",
    "{{ 'a' | wordwrap(10**9, wrapstring='x' * 10**8) }}",
    "{{ 'a'.translate({97: 'b' * 1000000}) }}",
    "{{ ('a' * 1000000).translate({97: 'b' * 1000000}) }}",
    "{{ 'x'.maketrans('a', 'b') }}",
    "{{ ('x' * 1000000).join('y' * 1000000) }}",
    "{{ ('x' * 1000000).join(range(99999) | map('string')) }}",
    "{{ ''.join(['x' * 1000000] * 1000) }}",
    "{{ ('\t' * 1000000).expandtabs(1000000) }}",
    "{{ ('%s' * 1000) % (('a' * 1000000,) * 1000) }}",
    "{{ ('%(a)s' * 1000) % {'a': 'x' * 1000000} }}",
    "{{ ('%(a)s' * 1000) | format(a='x' * 1000000) }}",
    "{{ '%(a)999999999d' % {'a': 1} }}",
    "{{ ('%999999d' * 1000) % ((1,) * 1000) }}",
    "{{ '%.999999999f' % 1.5 }}",
    "{{ binary * 10**10 }}",
    "{{ binary.ljust(10**10) }}",
    "{{ binary % 1 }}",
    "{{ ('a' * 10000000).encode('utf-32') }}",
    "{{ (1).to_bytes(10**9) }}",
    "{{ number.to_bytes(10**9) }}",
    "{{ 1.5 | round(10**9, 'ceil') }}",
    "{{ ([[1]] * 300000) | sum(start=[]) }}",
    "{{ (['a' * 1000] * 10000) | map('replace', 'a', 'b' * 1000000) | list }}",
    "{{ range(99999) | map('string') | select('in', 'a' * 30000000) | list }}",
    "{% set ns = namespace(s=3) %}{% for i in range(900000) %}{% set ns.s = ns.s * 3 %}{% endfor %}",
    "{% for x in [items] recursive %}{{ loop([items] * 100000) }}{% endfor %}",
    "{% macro m() %}{{ 'x' * 1000000 }}{% endmacro %}{% for i in range(99999) %}{% set u = m() %}{% endfor %}",
    "{{ 'x' | urlize }}",
    "{{ thing | xmlattr }}",
    "{{ items | pprint }}",
]
WITHIN = """
import json, os, resource, sys
from pipeline.errors import TemplateError
from pipeline.job.template import compile_request
row = {"x": "value", "n": None, "items": [1, 2], "thing": {"a": 1}, "binary": b"xx", "number": 7}
for source in json.load(sys.stdin):
    if (child := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
        before = resource.getrusage(resource.RUSAGE_SELF)
        try:
            compile_request({"a": "<" + source}).render(row)
            end = "rendered"
        except TemplateError as error:
            end = error.code
        after = resource.getrusage(resource.RUSAGE_SELF)
        seconds, kilobytes = after.ru_utime + after.ru_stime, after.ru_maxrss - before.ru_maxrss
        print(json.dumps([source, end, seconds, kilobytes]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def ends() -> dict[str, tuple[str, float, float]]:
    """How each template ended, the seconds of processor time that it took, and the megabytes."""
    done = subprocess.run(
        [sys.executable, "-c", WITHIN], input=json.dumps(GROWING), capture_output=True, text=True, check=True
    )
    found = map(json.loads, done.stdout.splitlines())
    return {source: (end, seconds, kilobytes / 1024) for source, end, seconds, kilobytes in found}


@pytest.mark.parametrize("source", GROWING)
def test_a_template_cannot_grow_without_bound(ends: dict[str, tuple[str, float, float]], source: str) -> None:
    end, seconds, megabytes = ends[source]
    assert end in {"size", "syntax", "security", "render", "type", "undefined"}
    assert seconds < 5
    assert megabytes < 200


def test_the_bound_on_text_is_for_the_whole_row() -> None:
    half = "x" * (MAX_TEXT // 2 + 1)
    compiled = compile_request({"a": "{{ x }}!", "b": "{{ x }}!"})
    with pytest.raises(TemplateError) as caught:
        compiled.render({"x": half})
    assert caught.value.code == "size"


HOSTILE = ["{{ 7*7 }}", "{% for x in y %}", "{#", "${KEY}", "{{ ''.__class__ }}", "}}{{ config }}", "\x00", "%s", "{0}"]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_rows_text_is_never_a_template(value: str) -> None:
    request = {
        "bare": "{{ x }}",
        "text": "<{{ x }}>",
        "list": ["{{ x | upper }}"],
        "deep": {"a": "{{ [x] | tojson }}!"},
    }
    body = compile_request(request).render({"x": value})
    assert body["bare"] == value
    assert body["text"] == f"<{value}>"
    assert body["list"] == [value.upper()]


def test_a_message_does_not_quote_the_row() -> None:
    with pytest.raises(TemplateError) as caught:
        compile_request({"a": "{{ x | int(base=99) + x }}"}).render({"x": CANARY})
    assert CANARY not in caught.value.message


@given(value=st.text(max_size=40) | st.lists(st.text(max_size=5), max_size=3) | st.sampled_from(HOSTILE))
@settings(deadline=None, derandomize=True, max_examples=100)
def test_whatever_a_row_says_the_template_does_the_same(value: Any) -> None:
    """The text around a value stands, the value stands in it once, and nothing of it was computed."""
    source = "<{{ x }}|{% if x is string %}text{% else %}other{% endif %}|{{ [x] | tojson }}>"
    body = compile_request({"a": source}).render({"x": value})
    printed = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    kind = "text" if isinstance(value, str) else "other"
    assert body["a"] == f"<{printed}|{kind}|{json.dumps([value], ensure_ascii=False)}>"
