"""Files made for the Batch API and folders of files, from the command line."""

from __future__ import annotations

import json

from tests.cli.bench import Bench

LINES = """\
input:
  path: requests.jsonl
  format: openai-batch
deployments:
  - endpoint: https://x.openai.azure.com
    deployment: gpt-4o-mini
    key: ${TEST_KEY}
output:
  path: out
  format: openai-batch
"""


def test_validate_reads_the_operation_from_the_first_line_and_shows_its_body(bench: Bench) -> None:
    body = {"model": "batch", "messages": [{"role": "user", "content": "Hello"}]}
    line = {"custom_id": "task-0", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (bench.folder / "requests.jsonl").write_text(json.dumps(line) + "\n")
    bench.write(LINES)

    result = bench.call("validate", "--json", "job.yaml")

    assert result.exit_code == 0, result.stderr
    (job,) = json.loads(result.stdout)["jobs"]
    assert job["operation"] == "chat"
    assert job["rows"][0]["body"] == {"messages": body["messages"]}


def test_validate_says_where_no_operation_is_named_by_job_or_input(bench: Bench) -> None:
    bench.write(LINES)

    result = bench.call("validate", "job.yaml")

    assert result.exit_code == 2
    assert "operation: is missing, and the input does not say it: " in result.stderr
    assert "job.yaml:2:9: input.path: " in result.stderr


def test_validate_counts_the_files_of_a_folder(bench: Bench) -> None:
    (bench.folder / "recordings").mkdir()
    for name in ("a.wav", "b.wav", ".hidden"):
        (bench.folder / "recordings" / name).write_bytes(b"12345")
    job = LINES.replace("requests.jsonl", "recordings").replace("openai-batch", "files", 1)
    job = job.replace("  format: openai-batch\n", "")
    bench.write(job + 'operation: chat\nrequest: {messages: [{role: user, content: "{{ path }}"}]}\n')

    result = bench.call("validate", "job.yaml")

    assert result.exit_code == 0, result.stderr
    assert "2 files, 10 B" in result.stdout


def test_the_schema_knows_the_formats(bench: Bench) -> None:
    schema = json.loads(bench.call("schema").stdout)
    assert {"files", "openai-batch"} <= set(schema["$defs"]["InputSpec"]["properties"]["format"]["enum"])
