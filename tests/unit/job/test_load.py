from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import JobFileError
from pipeline.job.change import fingerprint
from pipeline.job.load import Draft, check_columns, load_job, read
from pipeline.job.spec import Job
from pipeline.sources.errors import SourceError

GOOD: dict[str, Any] = {
    "operation": "embeddings",
    "input": {"path": "../data/rows.jsonl"},
    "request": {"input": "{{ text }}"},
    "deployments": [{"endpoint": "https://x.openai.azure.com", "deployment": "small"}],
    "output": {"path": "out"},
}
ENVIRON = {"AZURE_OPENAI_API_KEY": "canary-key", "OUT": "from-environment", "EMPTY": " "}
OPERATIONS = ("embeddings", "chat")
FORMATS = ("jsonl", "parquet")


def write(tmp_path: Path, job: Mapping[str, Any] | str, name: str = "demo.yaml") -> Path:
    folder = tmp_path / "jobs"
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(job if isinstance(job, str) else yaml.safe_dump(dict(job), sort_keys=False))
    return file


def load(tmp_path: Path, environ: Mapping[str, str] = ENVIRON, *, simulate: bool = False, **sections: Any) -> Job:
    file = write(tmp_path, GOOD | sections)
    return load_job(file, environ=environ, operations=OPERATIONS, formats=FORMATS, simulate=simulate)


def draft(tmp_path: Path, environ: Mapping[str, str] = ENVIRON, *, simulate: bool = False, **sections: Any) -> Draft:
    return read(
        write(tmp_path, GOOD | sections), environ=environ, operations=OPERATIONS, formats=FORMATS, simulate=simulate
    )


def said(found: Draft) -> dict[str, str]:
    return {problem.path: problem.message for problem in found.problems}


def deployment(**keys: Any) -> list[dict[str, Any]]:
    return [GOOD["deployments"][0] | keys]


def test_a_plain_job_is_filled_with_its_defaults(tmp_path: Path) -> None:
    job = load(tmp_path)
    assert job.name == "demo"
    assert job.file == tmp_path / "jobs" / "demo.yaml"
    assert job.input.path == (str(tmp_path / "data" / "rows.jsonl"),)
    assert job.output.path == tmp_path / "jobs" / "out"
    assert job.run.workers == 32
    (only,) = job.deployments
    assert (only.name, only.model, only.api, only.auth, only.api_version) == (
        "small",
        "small",
        "azure",
        "key",
        "2024-10-21",
    )
    assert only.key is not None
    assert only.key.reveal() == "canary-key"


def test_five_faults_in_five_places_are_told_at_once_with_their_places(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """\
operation: embedings
input:
  path: rows.jsonl
  formt: jsonl
request:
  input: "{{ txt }}"
deployments:
  - endpoint: https://x.openai.azure.com
    deployment: small
    key: sk-canary
output:
  path: out
run:
  workers: many
""",
    )
    found = read(file, environ={}, operations=OPERATIONS, formats=FORMATS)
    problems = [*found.problems, *found.column_problems(["text", "id"], result_columns=["embedding"])]
    assert [(problem.line, problem.column, problem.path) for problem in problems] == [
        (1, 12, "operation"),
        (4, 3, "input.formt"),
        (10, 10, "deployments.0.key"),
        (14, 12, "run.workers"),
        (6, 10, "request.input"),
    ]
    text = "\n".join(map(str, problems))
    assert f"{file}:1:12: operation: there is no operation of this name (did you mean `embeddings`?)" in text
    assert "unknown key (did you mean `format`?)" in text
    assert "the input has no column `txt` (did you mean `text`?)" in text
    assert "must be a whole number" in text
    assert "canary" not in text
    with pytest.raises(JobFileError) as caught:
        load_job(file, environ={}, operations=OPERATIONS, formats=FORMATS)
    assert caught.value.problems == found.problems


@pytest.mark.parametrize("name", sorted(GOOD))
def test_a_missing_section_is_told(tmp_path: Path, name: str) -> None:
    file = write(tmp_path, {key: value for key, value in GOOD.items() if key != name})
    assert said(read(file, environ=ENVIRON, operations=OPERATIONS, formats=FORMATS))[name].startswith("is missing")


@pytest.mark.parametrize("name", ["input", "request", "deployments", "output", "run"])
@pytest.mark.parametrize("value", [5, "text"])
def test_a_section_of_another_kind_is_told(tmp_path: Path, name: str, value: object) -> None:
    assert said(draft(tmp_path, ENVIRON, simulate=False, **{name: value}))[name].startswith("must be a")


@pytest.mark.parametrize(
    ("sections", "path", "message"),
    [
        ({"workers": 3}, "workers", "unknown key (did you mean `run.workers`?)"),
        ({"run": {"operation": "chat"}}, "run.operation", "unknown key (did you mean `operation`?)"),
        ({"run": {"timeot": "3s"}}, "run.timeot", "unknown key (did you mean `timeout`?)"),
        ({"run": {"timeout_s": 3}}, "run.timeout_s", "unknown key (did you mean `timeout`?)"),
        ({"file": "x"}, "file", "unknown key"),
        ({"run": {"qqqq": 3}}, "run.qqqq", "unknown key"),
        (
            {"output": {"path": "o", "compresion": "zstd"}},
            "output.compresion",
            "unknown key (did you mean `compression`?)",
        ),
        ({"deployments": deployment(price={"inptu": 1})}, "deployments.0.price.inptu", "unknown key"),
    ],
)
def test_an_unknown_key_is_told_with_what_was_meant(
    tmp_path: Path, sections: dict[str, Any], path: str, message: str
) -> None:
    found = said(draft(tmp_path, **sections))
    assert found.keys() == {path}
    assert found[path].startswith(message)


CHAT = {"operation": "chat", "request": {"messages": [{"role": "user", "content": "{{ text }}"}]}}
BATCHES = deployment(lane="batch")
BOTH = [*deployment(lane="batch", name="b"), *deployment(name="o")]


@pytest.mark.parametrize(
    ("sections", "path", "word"),
    [
        ({"run": {"lane": "batch"}, "operation": "embeddings"}, "deployments.0", "does not take embeddings"),
        ({"deployments": BATCHES}, "deployments", "are all for batches"),
        ({"deployments": deployment(lane="online"), "run": {"lane": "batch"}}, "run.lane", "`lane: batch`"),
        ({"deployments": BATCHES, "run": {"lane": "auto", "deadline": "1h"}}, "run.lane", "`lane: online`"),
        ({"run": {"lane": "auto", "deadline": "1h"}}, "run.lane", "`lane: batch`"),
        ({"deployments": BOTH, "run": {"lane": "auto"}}, "run.lane", "needs a deadline"),
        ({"run": {"lane": "batch", "on_truncated": "retry"}}, "run.on_truncated", "use keep or fail"),
        ({"run": {"lane": "batch", "right_size": "p99"}}, "run.right_size", "online lane"),
        ({"run": {"lane": "batch"}, "request": {**CHAT["request"], "stream": True}}, "request.stream", "as a file"),
    ],
)
def test_what_batches_cannot_do_is_refused(tmp_path: Path, sections: dict[str, Any], path: str, word: str) -> None:
    problems = said(draft(tmp_path, **{**CHAT, **sections}))
    assert list(problems) == [path]
    assert word in problems[path]


@pytest.mark.parametrize(
    ("sections", "word"),
    [
        ({"operation": "speech", "request": {"input": "x", "voice": "v"}}, "is for chat, completions"),
        ({"run": {"lane": "batch", "processes": 2}, "deployments": BATCHES}, "is for run.lane: online"),
        ({"run": {"lane": "auto", "deadline": "1h", "processes": 2}, "deployments": BOTH}, "is for run.lane: online"),
        ({"input": {"path": "rows.jsonl", "media_root": "."}}, "not for rows that name files"),
        ({"run": {"max_tokens_total": 5, "processes": 2}}, "knows no budget yet"),
        ({"run": {"otel": "on", "processes": 2}}, "tells OpenTelemetry nothing yet"),
        ({"run": {"workers": 1, "processes": 2}}, "more than run.workers, which is 1"),
    ],
)
def test_what_several_processes_cannot_send_is_refused(tmp_path: Path, sections: dict[str, Any], word: str) -> None:
    request = {"request": {**CHAT["request"], "max_tokens": 5}}
    file = write(tmp_path, GOOD | CHAT | request | {"run": {"processes": 2}} | sections)
    names = (*OPERATIONS, "speech")
    problems = said(read(file, environ=ENVIRON, operations=names, formats=FORMATS, simulate=False))
    assert word in problems["run.processes"]
    assert list(problems) == ["run.processes"]


@pytest.mark.parametrize(
    ("deployments", "run", "lanes"),
    [
        (deployment(), {"lane": "batch"}, ["batch"]),
        (BOTH, {"lane": "auto", "deadline": "1h"}, ["batch", "online"]),
        (BOTH, {}, ["batch", "online"]),
        (BOTH, {"lane": "batch"}, ["batch", "batch"]),
    ],
)
def test_a_deployment_belongs_to_the_lane_that_it_says_or_to_the_runs(
    tmp_path: Path, deployments: list[dict[str, Any]], run: dict[str, Any], lanes: list[str]
) -> None:
    job = load(tmp_path, deployments=deployments, run=run, **CHAT)
    assert [spec.lane for spec in job.deployments] == lanes


@pytest.mark.parametrize(
    ("sections", "path", "message"),
    [
        (
            {"run": {"max_cost": 5}},
            "run.max_cost",
            "needs the price of small: give `deployments.0.price.input`, dollars a million tokens (the built-in table",
        ),
        (
            {"run": {"max_cost": 5}, "deployments": deployment(price={"output": 1})},
            "run.max_cost",
            "needs the price of small: give `deployments.0.price.input`, dollars a million tokens (the job leaves it",
        ),
        (
            {"run": {"max_tokens_total": 5}, "operation": "chat", "request": {"messages": []}},
            "run.max_tokens_total",
            "needs a bound on answers: give `request.max_completion_tokens`",
        ),
        ({"run": {"max_tokens_total": 0}}, "run.max_tokens_total", "must be greater than or equal to 1"),
        (
            {"request": {"input": "x", "stream": True}},
            "request.stream",
            "is for chat, completions and responses, not for embeddings",
        ),
        ({"request": {"input": "x", "stream": 1}}, "request.stream", "must be true or false"),
        ({"request": {"input": "x", "stream": "{{ s }}"}}, "request.stream", "must be true or false"),
        (
            {"request": {"input": "x", "cut_after": "10m"}},
            "request.cut_after",
            "is for transcription and translation, not for embeddings",
        ),
        ({"input": {"path": "x", "media_root": "gone"}}, "input.media_root", "there is no such folder"),
        ({"input": {"path": "x", "media_root": "demo.yaml"}}, "input.media_root", "there is no such folder"),
        ({"request": {"input": "x", "model": "m"}}, "request.model", "the deployment's business"),
        (
            {"request": {"input": "x", "on_too_long": "skip"}},
            "request.on_too_long",
            "must be one of fail, truncate, split",
        ),
        ({"request": {"input": "{{ x"}}, "request.input", "the template cannot be read"),
        ({"request": {"input": "{% include 'x' %}"}}, "request.input", "cannot include"),
        ({"input": {"path": "s3://bucket/x"}}, "input.path", "remote paths are not available yet"),
        ({"input": {"path": ["a", "abfs://x/y"]}}, "input.path.1", "remote paths are not available yet"),
        ({"output": {"path": "gs://bucket/x"}}, "output.path", "remote paths are not available yet"),
        ({"input": {"path": "${ABSENT}/x"}}, "input.path", "the variable ABSENT is not set"),
        ({"output": {"path": "${EMPTY}"}}, "output.path", "the variable EMPTY is empty"),
        ({"output": {"path": "${OUTT}"}}, "output.path", "the variable OUTT is not set (did you mean OUT?)"),
        ({"output": {"path": "${1x}"}}, "output.path", "begins no ${NAME}"),
        ({"output": {"path": "${OPEN"}}, "output.path", "begins no ${NAME}"),
        ({"output": {}}, "output.path", "is missing: say where the results go"),
        ({"input": {}}, "input.path", "is missing: say where the rows are"),
        ({"input": "rows.jsonl"}, "input", "must be a mapping: say where the rows are, `path: …`"),
        ({"input": {"path": 5}}, "input.path", "must be a list"),
        ({"input": {"path": ["a", 5]}}, "input.path.1", "must be text"),
        ({"input": {"path": "x", "format": "jsn"}}, "input.format", "must be one of auto, jsonl, parquet"),
        ({"input": {"path": "x", "format": "jsonnl"}}, "input.format", "(did you mean `jsonl`?)"),
        ({"input": {"path": "x", "columns": {"a": "intt"}}}, "input.columns.a", "must be one of string"),
        ({"output": {"path": "o", "columns": "some"}}, "output.columns", "must be `all`, `none` or list of columns"),
        ({"run": {"fail_on": "500%"}}, "run.fail_on", "must be any, never or a share"),
        ({"run": {"right_size": "p20"}}, "run.right_size", "must be a quantile from p50 to p99.9"),
        ({"run": {"right_size": 99}}, "run.right_size", "must be a quantile from p50 to p99.9"),
        ({"run": {"right_size": "p100"}}, "run.right_size", "must be a quantile from p50 to p99.9"),
        ({"run": {"leave": "100%"}}, "run.leave", "must be a share below 100%"),
        ({"run": {"timeout": "-5s"}}, "run.timeout", "must be a duration"),
        ({"run": {"timeout": 0}}, "run.timeout", "must be greater than 0"),
        ({"run": {"workers": 0}}, "run.workers", "must be greater than or equal to 1"),
        ({"name": 5}, "name", "must be printable text"),
        ({"operation": ["chat"]}, "operation", "must be text"),
        ({"deployments": []}, "deployments", "is missing"),
        ({"deployments": [5]}, "deployments.0", "must be a mapping"),
        ({"deployments": [{"deployment": "x"}]}, "deployments.0.endpoint", "is missing: give the resource's URL"),
        ({"deployments": [{"endpoint": "https://x.openai.azure.com"}]}, "deployments.0.deployment", "is missing"),
        (
            {"deployments": deployment(endpoint="${ABSENT}")},
            "deployments.0.endpoint",
            "is not set (a rehearsal needs none: pipeline run --simulate)",
        ),
        ({"deployments": deployment(endpoint="x.openai.azure.com")}, "deployments.0.endpoint", "must be a URL"),
        ({"deployments": deployment(key="${ABSENT}")}, "deployments.0.key", "the variable ABSENT is not set"),
        ({"deployments": deployment(api_version=2024)}, "deployments.0.api_version", "put it in quotes"),
        ({"deployments": deployment(auth="keys")}, "deployments.0.auth", "(did you mean `key`?)"),
        ({"deployments": deployment(auth="token")}, "deployments.0.auth", "AZURE_OPENAI_AD_TOKEN is not set"),
        ({"deployments": deployment(auth="none", key="${OUT}")}, "deployments.0", "has `auth: none` and a credential"),
        ({"deployments": deployment(endpoint="https://api.openai.com/v1")}, "deployments.0", "set OPENAI_API_KEY"),
        ({"deployments": deployment(ca_bundle="gone.pem")}, "deployments.0.ca_bundle", "there is no such file"),
        (
            {"deployments": [*deployment(), *deployment(priority=1)]},
            "deployments.1",
            "the name `small` is taken by deployments.0",
        ),
        (
            {"deployments": deployment(name="a") + deployment(name="a")},
            "deployments.1.name",
            "the name `a` is taken by deployments.0",
        ),
    ],
)
def test_what_is_wrong_is_told_where_it_stands(
    tmp_path: Path, sections: dict[str, Any], path: str, message: str
) -> None:
    found = draft(tmp_path, **sections)
    assert said(found).keys() == {path}
    assert message in said(found)[path]
    assert found.problems[0].line is not None
    assert found.job is None


def test_pieces_of_a_text_have_no_lines_of_the_batch_api(tmp_path: Path) -> None:
    request = {"input": "{{ text }}", "on_too_long": "split"}
    found = draft(tmp_path, request=request, output={"path": "o", "format": "openai-batch"})
    assert said(found) == {"request.on_too_long": "cannot be split with output.format openai-batch: a row has one line"}


def test_on_too_long_is_for_embeddings(tmp_path: Path) -> None:
    found = draft(tmp_path, operation="chat", request={"messages": [], "on_too_long": "fail"})
    assert said(found) == {"request.on_too_long": "is for embeddings, not for chat"}


def test_variables_are_read_in_paths_and_deployments(tmp_path: Path) -> None:
    environ = {"NAME": " res ", "KEY": " canary\n", "TOKEN": "t"}
    job = load(
        tmp_path,
        environ,
        input={"path": ["${DATA:-/data}/*.jsonl", "$${plain}"]},
        output={"path": "${NAME}/${WHERE:-here}"},
        deployments=deployment(
            endpoint=" https://${NAME}.openai.azure.com ",
            key="${KEY}",
            headers={"X-One": "${TOKEN}", "X-Two": "Bearer ${TOKEN}"},
            credential={
                "type": "client_secret",
                "tenant_id": "${NAME}",
                "client_id": "c",
                "client_secret": "${TOKEN}",
            },
        ),
    )
    assert job.input.path == ("/data/*.jsonl", str(tmp_path / "jobs" / "${plain}"))
    assert job.output.path == tmp_path / "jobs" / "res" / "here"
    (only,) = job.deployments
    assert only.endpoint == "https://res.openai.azure.com"
    assert only.key is not None
    assert only.key.reveal() == "canary"
    assert {name: value.reveal() for name, value in only.headers.items()} == {"X-One": "t", "X-Two": "Bearer t"}
    assert only.credential is not None
    assert only.credential["tenant_id"] == "res"
    assert only.credential["client_secret"].reveal() == "t"


def test_variables_stay_as_they_are_in_the_request(tmp_path: Path) -> None:
    assert load(tmp_path, request={"input": "${OUT} $${x}"}).request == {"input": "${OUT} $${x}"}


@pytest.mark.parametrize(
    ("keys", "environ", "auth"),
    [
        ({}, {}, "entra"),
        ({}, {"AZURE_OPENAI_API_KEY": "k"}, "key"),
        ({}, {"OPENAI_API_KEY": "k"}, "entra"),
        ({"endpoint": "https://api.openai.com/v1"}, {"OPENAI_API_KEY": "k", "AZURE_OPENAI_API_KEY": "z"}, "key"),
        ({"endpoint": "http://127.0.0.1:1/v1", "auth": "none"}, {"OPENAI_API_KEY": "k"}, "none"),
        ({"auth": "entra"}, {"AZURE_OPENAI_API_KEY": "k"}, "entra"),
        ({"auth": "key"}, {"AZURE_OPENAI_API_KEY": "k"}, "key"),
        ({"auth": "token"}, {"AZURE_OPENAI_AD_TOKEN": "k"}, "token"),
        ({"token": "${T}"}, {"T": "k", "AZURE_OPENAI_API_KEY": "z"}, "token"),
        ({"key": "${T}"}, {"T": "k", "AZURE_OPENAI_API_KEY": "z"}, "key"),
    ],
)
def test_how_to_sign_is_chosen_by_what_is_set(
    tmp_path: Path, keys: dict[str, Any], environ: dict[str, str], auth: str
) -> None:
    (only,) = load(tmp_path, environ, deployments=deployment(**keys)).deployments
    assert only.auth == auth
    secret = only.key or only.token
    assert (secret.reveal() if secret else None) == ("k" if auth in ("key", "token") else None)


@pytest.mark.parametrize(
    ("keys", "environ", "version"),
    [
        ({}, {}, "2024-10-21"),
        ({}, {"OPENAI_API_VERSION": "2025-01-01-preview"}, "2025-01-01-preview"),
        ({"api_version": "2024-06-01"}, {"OPENAI_API_VERSION": "2025-01-01-preview"}, "2024-06-01"),
        ({"endpoint": "https://x.openai.azure.com?api-version=2024-02-01"}, {"OPENAI_API_VERSION": "no"}, "2024-02-01"),
    ],
)
def test_the_api_version_is_the_nearest_one(
    tmp_path: Path, keys: dict[str, Any], environ: dict[str, str], version: str
) -> None:
    assert load(tmp_path, environ, deployments=deployment(**keys)).deployments[0].api_version == version


def test_simulating_reads_no_variable_of_a_deployment(tmp_path: Path) -> None:
    class NothingRead(dict[str, str]):
        def get(self, key: str, default: Any = None) -> Any:
            if key != "OUT":
                raise AssertionError(key)
            return super().get(key, default)

    job = load(
        tmp_path,
        NothingRead(OUT="here"),
        simulate=True,
        output={"path": "${OUT}"},
        deployments=[
            {
                "name": "first",
                "endpoint": "${AZURE_OPENAI_ENDPOINT}",
                "deployment": "${DEPLOYMENT:-small}",
                "model": "${MODEL}",
                "api": "${API}",
                "key": "${KEY}",
                "headers": {"X-Key": "${APIM}"},
                "ca_bundle": "gone.pem",
                "requests_per_minute": 300,
            },
            {
                "name": "second",
                "endpoint": "https://${RES}.openai.azure.com/openai/v1",
                "deployment": "d",
                "auth": "entra",
            },
        ],
    )
    first, second = job.deployments
    assert (first.api, first.deployment, first.model, first.auth) == ("azure", "small", "simulated", "key")
    assert first.key is not None
    assert first.key.reveal() == "simulated"
    assert first.requests_per_minute == 300
    assert (second.api, second.auth) == ("azure-v1", "key")


def test_simulating_checks_the_form_of_variables(tmp_path: Path) -> None:
    found = draft(tmp_path, {}, simulate=True, deployments=deployment(endpoint="${1x}", key="sk-canary"))
    assert said(found).keys() == {"deployments.0.endpoint", "deployments.0.key"}


def test_overrides_win_over_the_file_and_have_no_place(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD | {"run": {"workers": 3}})
    overrides = {"run.workers": "64", "request.dimensions": "256", "deployments.small.priority": "2"}
    job = load_job(file, environ=ENVIRON, operations=OPERATIONS, formats=FORMATS, overrides=overrides)
    assert (job.run.workers, job.request["dimensions"], job.deployments[0].priority) == (64, 256, 2)
    found = read(
        file, environ=ENVIRON, operations=OPERATIONS, formats=FORMATS, overrides={"run.workers": "x", "run.wrkers": "1"}
    )
    assert [str(problem) for problem in found.problems] == [
        "--set: run.workers: must be a whole number",
        "--set: run.wrkers: unknown key (did you mean `workers`?)",
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "demo.json",
            (
                '{"operation": "chat", "input": {"path": "x"}, "request": {"messages": []}, "output": {"path": "o"},\n'
                '"deployments": [{"endpoint": "https://x.openai.azure.com", "deployment": "d"}]}'
            ),
        ),
        (
            "demo.toml",
            (
                'operation = "chat"\nrequest.messages = []\n[input]\npath = "x"\n[output]\npath = "o"\n'
                '[[deployments]]\nendpoint = "https://x.openai.azure.com"\ndeployment = "d"\n'
            ),
        ),
    ],
)
def test_json_and_toml_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    job = load_job(write(tmp_path, text, name), environ={}, operations=OPERATIONS, formats=FORMATS)
    assert (job.name, job.operation, job.deployments[0].deployment) == ("demo", "chat", "d")


def test_a_glob_in_the_jobs_own_folder_name_is_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "jobs [1]"
    folder.mkdir()
    file = folder / "demo.yaml"
    file.write_text(yaml.safe_dump(GOOD | {"input": {"path": ["*.jsonl", "one.jsonl"]}}))
    job = load_job(file, environ=ENVIRON, operations=OPERATIONS, formats=FORMATS)
    assert job.input.path == (str(tmp_path / "jobs [[]1]" / "*.jsonl"), str(folder / "one.jsonl"))


def test_home_is_known_in_paths(tmp_path: Path) -> None:
    assert load(tmp_path, ENVIRON | {"HOME": "/home/me"}, output={"path": "~/out"}).output.path == Path("/home/me/out")


@pytest.mark.parametrize(
    ("sections", "problems"),
    [
        ({}, {}),
        ({"request": {"input": "{{ txt }} {{ text }}"}}, {"request.input": "no column `txt` (did you mean `text`?)"}),
        ({"request": {"input": "{{ row['txt'] }}"}}, {"request.input": "no column `txt`"}),
        ({"request": {"input": "{{ row | tojson }}"}}, {}),
        ({"input": {"path": "x", "id": "idd"}}, {"input.id": "no column `idd` (did you mean `id`?)"}),
        ({"output": {"path": "o", "columns": ["text", "nix"]}}, {"output.columns.1": "no column `nix`"}),
    ],
)
def test_columns_that_the_input_lacks_are_told(
    tmp_path: Path, sections: dict[str, Any], problems: dict[str, str]
) -> None:
    job = load(tmp_path, **sections)
    found = check_columns(job, ["text", "id"], result_columns=["embedding"])
    assert {problem.path for problem in found} == problems.keys()
    for problem in found:
        assert problems[problem.path] in problem.message
        assert problem.line is not None


@pytest.mark.parametrize("name", ["ordinal", "status", "error", "usage", "request", "response", "embedding"])
def test_a_carried_column_with_the_name_of_a_result_is_refused_with_the_fix(tmp_path: Path, name: str) -> None:
    names = ["text", name]
    (problem,) = check_columns(load(tmp_path), names, result_columns=["embedding"])
    assert problem.path == "output.columns"
    assert f"column `{name}`" in problem.message
    assert '`columns: ["text"]`' in problem.message
    assert (
        check_columns(load(tmp_path, output={"path": "o", "columns": ["text"]}), names, result_columns=["embedding"])
        == ()
    )
    assert (
        check_columns(load(tmp_path, output={"path": "o", "columns": "none"}), names, result_columns=["embedding"])
        == ()
    )


def test_columns_can_be_checked_in_spite_of_other_problems(tmp_path: Path) -> None:
    found = draft(tmp_path, {}, input={"path": "x", "id": "nix", "formt": 3}, output={"path": "o", "part_rows": "many"})
    assert found.job is None
    assert found.input is not None
    assert {problem.path for problem in found.column_problems(["status"])} == {
        "input.id",
        "request.input",
        "output.columns",
    }


OF_ALL = ("chat", "completions", "embeddings", "image", "responses", "speech", "transcription", "translation")
LINES = {name: value for name, value in GOOD.items() if name not in ("operation", "request")}


def read_job(tmp_path: Path, job: Mapping[str, Any], *, url: str | None = None) -> Draft:
    return read(
        write(tmp_path, job),
        environ=ENVIRON,
        operations=OF_ALL,
        formats=(*FORMATS, "files", "openai-batch"),
        first_url=lambda _: url,
    )


@pytest.mark.parametrize("operation", ["chat", "completions", "responses"])
@pytest.mark.parametrize("stream", [True, False])
def test_answers_may_be_streamed(tmp_path: Path, operation: str, *, stream: bool) -> None:
    found = read_job(tmp_path, GOOD | {"operation": operation, "request": {"input": "x", "stream": stream}})
    assert not found.problems


@pytest.mark.parametrize("operation", ["speech", "image", "transcription", "translation"])
def test_sound_and_pictures_are_not_streamed(tmp_path: Path, operation: str) -> None:
    found = read_job(tmp_path, GOOD | {"operation": operation, "request": {"input": "x", "stream": True}})
    assert list(said(found)) == ["request.stream"]


def test_a_picture_of_a_file_is_taken(tmp_path: Path) -> None:
    parts = [{"type": "image_file", "image_file": {"path": "{{ p }}"}}]
    found = read_job(tmp_path, GOOD | {"operation": "chat", "request": {"messages": [{"content": parts}]}})
    assert not found.problems


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("run", "on_truncated", "retry"),
        ("request", "on_too_long", "truncate"),
        ("request", "on_too_long", "split"),
        ("output", "media", "files"),
    ],
)
def test_what_was_later_is_available(tmp_path: Path, section: str, key: str, value: str) -> None:
    assert not read_job(tmp_path, GOOD | {section: {**GOOD.get(section, {}), key: value}}).problems


@pytest.mark.parametrize("operation", ["transcription", "translation"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("10m", None),
        (600, None),
        (None, None),
        (0, "must be a duration above zero"),
        ("{{ x }}", "must be a duration"),
        (True, "must be a duration"),
    ],
)
def test_recordings_are_cut_after_a_duration(
    tmp_path: Path, operation: str, value: object, message: str | None
) -> None:
    request = {"file": "{{ path }}", "cut_after": value}
    found = said(read_job(tmp_path, GOOD | {"operation": operation, "request": request}))
    assert list(found) == (["request.cut_after"] if message else [])
    assert message is None or message in found["request.cut_after"]


@pytest.mark.parametrize("operation", OF_ALL)
def test_sound_and_pictures_are_given_more_time_unless_the_job_says(tmp_path: Path, operation: str) -> None:
    job = read_job(tmp_path, GOOD | {"operation": operation}).job
    assert job is not None
    assert job.run.timeout_s == (600 if operation in ("speech", "image", "transcription", "translation") else 300)
    own = read_job(tmp_path, GOOD | {"operation": operation, "run": {"timeout": "5s"}}).job
    assert own is not None
    assert own.run.timeout_s == 5


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("media", "media"),
        ("media/", "media"),
        ("media/a.wav", "media"),
        ("media/*.wav", "media"),
        ("media/**/*.wav", "media"),
        ("media/[ab].wav", "media"),
        ("media/one/*/x.wav", "media/one"),
        (["media/one", "media/two/*.wav"], "media"),
        (["media/one/a.wav", "media/one"], "media/one"),
        ("media/odd[1]", "media/odd[1]"),
    ],
)
def test_files_as_rows_may_be_read_from_their_own_folder(tmp_path: Path, path: str | list[str], folder: str) -> None:
    jobs = tmp_path / "jobs [*]"
    for name in ("media/one", "media/two", "media/odd[1]"):
        (jobs / name).mkdir(parents=True)
    (jobs / "media" / "a.wav").touch()
    (jobs / "media" / "one" / "a.wav").touch()
    file = jobs / "job.yaml"
    file.write_text(yaml.safe_dump(GOOD | {"input": {"path": path, "format": "files"}}))
    job = load_job(file, environ=ENVIRON, operations=OPERATIONS, formats=("files",))
    assert job.input.media_root == (jobs / folder).resolve()


@pytest.mark.parametrize("path", ["x" * 5000, "[" + "x" * 5000, "a\0b", "*" * 300])
def test_a_name_that_no_file_can_have_is_no_folder(tmp_path: Path, path: str) -> None:
    for source in ({"path": path, "format": "files"}, {"path": "x", "media_root": path}):
        found = read_job(tmp_path, GOOD | {"input": source})
        assert set(said(found)) <= {"input.path", "input.media_root", ""}


def test_a_media_root_that_the_job_names_is_kept(tmp_path: Path) -> None:
    (tmp_path / "jobs" / "in" / "deep").mkdir(parents=True)
    source = {"path": "in/deep", "format": "files", "media_root": "in"}
    job = read_job(tmp_path, GOOD | {"input": source}).job
    assert job is not None
    assert job.input.media_root == tmp_path / "jobs" / "in"


def test_the_folder_of_files_as_rows_may_move_with_its_job(tmp_path: Path) -> None:
    prints = set()
    for name in ("here", "there"):
        (tmp_path / name / "jobs" / "in").mkdir(parents=True)
        job = read_job(tmp_path / name, GOOD | {"input": {"path": "in", "format": "files"}}).job
        assert job is not None
        prints.add(fingerprint(job))
    assert len(prints) == 1


@pytest.mark.parametrize(
    ("url", "operation"),
    [
        ("/v1/chat/completions", "chat"),
        ("/chat/completions", "chat"),
        ("/v1/embeddings", "embeddings"),
        ("/v1/responses", "responses"),
        ("/completions", "completions"),
        ("/v1/images/generations", "image"),
    ],
)
def test_lines_of_the_batch_api_say_their_operation_and_hold_their_requests(
    tmp_path: Path, url: str, operation: str
) -> None:
    found = read_job(tmp_path, LINES | {"input": {"path": "x", "format": "openai-batch"}}, url=url)
    assert found.job is not None, found.problems
    assert (found.job.operation, found.job.request, found.job.input.id) == (operation, {}, "custom_id")


@pytest.mark.parametrize("url", [None, "", "/v1/moderations", "/v1/v1/embeddings", "https://h/v1/embeddings"])
def test_lines_that_ask_for_something_else_are_told(tmp_path: Path, url: str | None) -> None:
    found = said(read_job(tmp_path, LINES | {"input": {"path": "x", "format": "openai-batch"}}, url=url))
    assert list(found) == ["input.path"]
    assert "asks for none of /chat/completions, " in found["input.path"]


def test_lines_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    def first_url(_: Sequence[str]) -> str | None:
        raise SourceError("x: no such file or folder")

    file = write(tmp_path, LINES | {"input": {"path": "x", "format": "openai-batch"}})
    found = read(file, environ=ENVIRON, operations=OF_ALL, formats=("openai-batch",), first_url=first_url)
    assert said(found) == {"operation": "is missing, and the input does not say it: x: no such file or folder"}


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"request": {"input": "x"}}, "request", "each line holds its own body"),
        ({"request": {}}, "request", "each line holds its own body"),
        ({"operation": "speech"}, "operation", "has no lines of the Batch API"),
        ({"operation": "chatt"}, "operation", "(did you mean `chat`?)"),
    ],
)
def test_what_lines_of_the_batch_api_leave_no_room_for_is_told(
    tmp_path: Path, changes: dict[str, Any], path: str, message: str
) -> None:
    job = LINES | {"input": {"path": "x", "format": "openai-batch"}} | changes
    found = said(read_job(tmp_path, job, url="/v1/embeddings"))
    assert list(found) == [path]
    assert message in found[path]


def test_without_a_reader_of_lines_the_operation_must_be_named(tmp_path: Path) -> None:
    file = write(tmp_path, LINES | {"input": {"path": "x", "format": "openai-batch"}})
    found = read(file, environ=ENVIRON, operations=OF_ALL, formats=("openai-batch",))
    assert said(found)["operation"].startswith("is missing: name one of")


def test_result_lines_of_the_batch_api_keep_every_reply(tmp_path: Path) -> None:
    job = read_job(tmp_path, GOOD | {"output": {"path": "out", "format": "openai-batch"}}).job
    assert job is not None
    assert job.output.raw == "all"


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"output": {"path": "o", "format": "openai-batch", "raw": "failed"}}, "output.raw", "must be all"),
        ({"output": {"path": "o", "format": "openai-batch", "raw": "none"}}, "output.raw", "must be all"),
        (
            {
                "input": {"path": "x", "id": "name"},
                "output": {"path": "o", "format": "openai-batch", "columns": ["text"]},
            },
            "output.columns",
            "must hold `name`, input.id",
        ),
        (
            {
                "input": {"path": "x", "id": "name"},
                "output": {"path": "o", "format": "openai-batch", "columns": "none"},
            },
            "output.columns",
            "must hold `name`, input.id",
        ),
        ({"operation": "speech", "output": {"path": "o", "format": "openai-batch"}}, "output.format", "is for chat, "),
    ],
)
def test_what_result_lines_of_the_batch_api_need_is_told(
    tmp_path: Path, changes: dict[str, Any], path: str, message: str
) -> None:
    found = said(read_job(tmp_path, GOOD | changes))
    assert list(found) == [path]
    assert message in found[path]


def test_an_operation_that_a_version_lacks_is_told_at_that_version(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """\
operation: speech
input: {path: rows.jsonl}
request: {input: x, voice: alloy}
deployments:
  - endpoint: https://x.openai.azure.com
    deployment: tts
    api_version: "2024-10-21"
output: {path: out}
""",
    )
    (problem,) = read(file, environ=ENVIRON, operations=OF_ALL, formats=FORMATS).problems
    assert (problem.line, problem.column, problem.path) == (7, 18, "deployments.0.api_version")
    assert problem.message.startswith("has no speech: use one of 2024-02-15-preview and later previews")


@pytest.mark.parametrize(
    ("operation", "request_", "environ", "changes", "version"),
    [
        ("chat", {}, {}, {}, "2024-10-21"),
        ("speech", {}, {}, {}, "2025-04-01-preview"),
        ("responses", {}, {}, {}, "2025-04-01-preview"),
        ("transcription", {"timestamp_granularities": ["word"]}, {}, {}, "2025-04-01-preview"),
        ("transcription", {}, {}, {}, "2024-10-21"),
        ("responses", {}, {"OPENAI_API_VERSION": "2025-03-01-preview"}, {}, "2025-03-01-preview"),
        ("responses", {}, {}, {"api": "azure-v1"}, None),
        ("speech", {}, {"OPENAI_API_VERSION": "2024-10-21"}, {"api": "azure-v1"}, None),
        ("speech", {}, {}, {"endpoint": "https://x.openai.azure.com/openai/v1"}, None),
        ("responses", {}, {}, {"api": "openai", "key": "${OUT}"}, None),
        ("responses", {}, {}, {"endpoint": "https://x.openai.azure.com?api-version=2031-01-01"}, "2031-01-01"),
    ],
)
def test_a_version_that_is_not_named_is_one_that_has_the_operation(
    tmp_path: Path,
    operation: str,
    request_: dict[str, Any],
    environ: dict[str, str],
    changes: dict[str, Any],
    version: str | None,
) -> None:
    file = write(tmp_path, GOOD | {"operation": operation, "request": request_, "deployments": deployment(**changes)})
    job = load_job(file, environ=ENVIRON | environ, operations=OF_ALL, formats=FORMATS)
    assert job.deployments[0].api_version == version


@pytest.mark.parametrize("simulate", [True, False])
def test_a_version_of_the_environment_that_lacks_the_operation_is_told(tmp_path: Path, *, simulate: bool) -> None:
    file = write(tmp_path, GOOD | {"operation": "responses"})
    environ = ENVIRON | {"OPENAI_API_VERSION": "2024-10-21"}
    found = read(file, environ=environ, operations=OF_ALL, formats=FORMATS, simulate=simulate)
    # A rehearsal reads no variable of a deployment.
    assert list(said(found)) == ([] if simulate else ["deployments.0.api_version"])
