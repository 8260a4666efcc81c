"""Files, batches and fine-tuning jobs of the simulator, driven by the official SDK in all three URL families."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from forked import start_simulator

from pipeline.simulator.ledger import messages_key, read_notes
from pipeline.simulator.serve import SimulatorProcess

FAMILIES = ["classic", "v1", "openai"]
DEPLOYMENTS = {"mini": {"model": "gpt-4o-mini"}, "online": {"model": "gpt-4o-mini", "batch": "never"}}
Client = openai.AzureOpenAI | openai.OpenAI


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with start_simulator(
        {"deployments": DEPLOYMENTS, "vectors": "hash", "poison": [{"contains": "POISON"}]}
    ) as process:
        yield process


def make_client(simulator: SimulatorProcess, family: str = "v1") -> Client:
    if family == "classic":
        return openai.AzureOpenAI(
            azure_endpoint=simulator.url, api_key="k", api_version="2025-04-01-preview", max_retries=0
        )
    path = "/openai/v1" if family == "v1" else "/v1"
    return openai.OpenAI(base_url=simulator.url + path, api_key="k", max_retries=0)


def url_of(family: str) -> Any:
    return "/chat/completions" if family == "classic" else "/v1/chat/completions"


def messages(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is the tide at quay {number}?"}]


def line(number: int, *, url: str = "/v1/chat/completions", model: str = "mini", **body: Any) -> dict[str, Any]:
    body = {"model": model, "messages": messages(number), "max_tokens": 20, **body}
    return {"custom_id": f"task-{number}", "method": "POST", "url": url, "body": body}


def upload(client: Client, lines: list[Any], purpose: Any = "batch") -> str:
    text = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    return client.files.create(file=("input.jsonl", text.encode()), purpose=purpose).id


def submit(client: Client, lines: list[Any], url: Any = "/v1/chat/completions") -> Any:
    return client.batches.create(input_file_id=upload(client, lines), endpoint=url, completion_window="24h")


def ended(client: Client, batch: Any) -> Any:
    until = time.monotonic() + 30
    while str(batch.status).lower() not in {"completed", "failed", "expired", "cancelled"}:
        assert time.monotonic() < until
        time.sleep(0.02)
        batch = client.batches.retrieve(batch.id)
    return batch


def results(client: Client, file_id: str | None) -> dict[str, Any]:
    if not file_id:
        return {}
    found = [json.loads(each) for each in client.files.content(file_id).text.splitlines()]
    return {each["custom_id"]: each for each in found}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_answers_every_line_as_a_call_would_be(simulator: SimulatorProcess, family: str) -> None:
    client = make_client(simulator, family)
    url = url_of(family)
    lines = [line(number, url=url) for number in range(40)]
    lines.append(line(40, url=url, messages=[{"role": "user", "content": "POISON"}]))
    batch = ended(client, submit(client, lines, url))
    assert batch.status == "completed"
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (41, 40, 1)
    answers = results(client, batch.output_file_id)
    assert set(answers) == {f"task-{number}" for number in range(40)}
    assert list(answers) != sorted(answers)
    direct = client.chat.completions.create(model="mini", messages=messages(7), max_tokens=20)  # type: ignore[arg-type]
    assert (
        answers["task-7"]["response"]["body"]["choices"][0]["message"]["content"] == direct.choices[0].message.content
    )
    (refused,) = results(client, batch.error_file_id).values()
    assert refused["custom_id"] == "task-40"
    assert refused["response"]["status_code"] == 400
    assert refused["response"]["body"]["error"]["code"] == "content_filter"


def test_azure_names_an_empty_error_file_and_openai_none(simulator: SimulatorProcess) -> None:
    for family in FAMILIES:
        client = make_client(simulator, family)
        batch = ended(client, submit(client, [line(1, url=url_of(family))], url_of(family)))
        if family == "openai":
            assert batch.error_file_id is None
        else:
            assert client.files.content(batch.error_file_id).content == b""


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["{"], "invalid_json_line"),
        ([line(1), line(1)], "duplicate_custom_id"),
        ([line(1), line(2, url="/v1/responses")], "url_mismatch"),
        ([line(1), line(2, model="online")], "model_mismatch"),
        ([line(1, model="nothing")], "model_not_found"),
        ([line(1, model="online")], "invalid_request"),
        ([{**line(1), "method": "GET"}], "invalid_request"),
        ([{**line(1), "custom_id": ""}], "invalid_request"),
        (["\ufeff" + json.dumps(line(1))], "invalid_request"),
        ([" "], "empty_file"),
    ],
)
def test_a_file_with_a_mistake_fails_the_batch(simulator: SimulatorProcess, lines: list[Any], code: str) -> None:
    client = make_client(simulator)
    batch = ended(client, submit(client, lines))
    assert batch.status == "failed"
    assert [error.code for error in batch.errors.data] == [code]
    assert batch.output_file_id is None


@pytest.mark.parametrize(
    ("family", "endpoint"), [("v1", "/v1/embeddings"), ("classic", "/v1/embeddings"), ("openai", "/v1/nothing")]
)
def test_what_batches_cannot_ask_is_refused(simulator: SimulatorProcess, family: str, endpoint: Any) -> None:
    client = make_client(simulator, family)
    with pytest.raises(openai.BadRequestError):
        submit(client, [line(1)], endpoint)


def test_expiry_has_bounds(simulator: SimulatorProcess) -> None:
    file = ("input.jsonl", json.dumps(line(1)).encode())
    for family, seconds, fine in (("v1", 3_600, False), ("v1", 1_209_600, True), ("openai", 3_600, True)):
        client = make_client(simulator, family)
        expiry: Any = {"anchor": "created_at", "seconds": seconds}
        if fine:
            kept = client.files.create(file=file, purpose="batch", expires_after=expiry)
            assert kept.expires_at == kept.created_at + seconds
        else:
            with pytest.raises(openai.BadRequestError):
                client.files.create(file=file, purpose="batch", expires_after=expiry)


def test_files_are_listed_by_purpose_and_deleted(simulator: SimulatorProcess) -> None:
    client = make_client(simulator)
    name = upload(client, [line(1)])
    assert name in {file.id for file in client.files.list(purpose="batch")}
    assert name not in {file.id for file in client.files.list(purpose="fine-tune")}
    assert client.files.delete(name).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(name)


def test_without_a_key_nothing_is_kept(simulator: SimulatorProcess) -> None:
    client = openai.OpenAI(base_url=simulator.url + "/v1", api_key="k", default_headers={"authorization": ""})
    with pytest.raises(openai.AuthenticationError):
        client.files.list()


def test_expired_and_cancelled_batches_keep_what_was_done() -> None:
    config = {"deployments": DEPLOYMENTS, "offline": {"ends": ["expired", "cancelled", "failed"], "done_share": 0.25}}
    with start_simulator(config) as simulator:
        client = make_client(simulator)
        lines = [line(number) for number in range(8)]
        expired, cancelled, failed = (ended(client, submit(client, lines)) for _ in range(3))
        assert [expired.status, cancelled.status, failed.status] == ["expired", "cancelled", "failed"]
        assert len(results(client, expired.output_file_id)) == 2
        left = results(client, expired.error_file_id)
        assert {each["error"]["code"] for each in left.values()} == {"batch_expired"}
        assert len(left) == 6
        assert len(results(client, cancelled.output_file_id)) == 2
        assert failed.errors.data[0].code == "invalid_request"


def test_a_batch_can_be_cancelled() -> None:
    with start_simulator({"deployments": DEPLOYMENTS, "offline": {"in_progress_s": 60.0}}) as simulator:
        client = make_client(simulator)
        batch = submit(client, [line(1)])
        assert client.batches.cancel(batch.id).status == "cancelling"
        assert ended(client, batch).status == "cancelled"
        with pytest.raises(openai.ConflictError):
            client.batches.cancel(batch.id)


@pytest.mark.parametrize("when", ["created", "afterwards"])
def test_enqueued_tokens_are_bounded(when: str) -> None:
    deployments = {"mini": {"model": "gpt-4o-mini", "enqueued_tokens": 100}}
    offline = {"fail_fast": when == "created", "in_progress_s": 60.0}
    with start_simulator({"deployments": deployments, "offline": offline}) as simulator:
        client = make_client(simulator)
        first = submit(client, [line(number) for number in range(10)])
        while client.batches.retrieve(first.id).status == "validating":
            time.sleep(0.01)
        if when == "created":
            with pytest.raises(openai.BadRequestError) as refused:
                submit(client, [line(number) for number in range(10)])
            assert refused.value.code == "token_limit_exceeded"
        else:
            second = ended(client, submit(client, [line(number) for number in range(10)]))
            assert [error.code for error in second.errors.data] == ["token_limit_exceeded"]
        client.batches.cancel(first.id)
        ended(client, first)
        third = submit(client, [line(number) for number in range(10)])
        assert client.batches.retrieve(third.id).status in {"validating", "in_progress"}


def test_oddities_are_played() -> None:
    quirks = ["capital_states", "iso_dates", "null_counts", "empty_ids"]
    with start_simulator(
        {"deployments": DEPLOYMENTS, "offline": {"validating_s": 60.0}, "quirks": quirks}
    ) as simulator:
        client = make_client(simulator)
        batch = submit(client, [line(1)])
        request = urllib.request.Request(f"{simulator.url}/openai/v1/batches/{batch.id}", headers={"api-key": "k"})
        with urllib.request.urlopen(request) as reply:
            shown = json.load(reply)
        assert shown["status"] == "Validating"
        assert shown["created_at"].endswith("+00:00")
        assert shown["endpoint"] is None
        assert shown["request_counts"] == {"total": None, "completed": None, "failed": None}
        assert shown["output_file_id"] == ""


def test_lists_lag_and_a_lost_reply_leaves_the_batch() -> None:
    offline = {"listing_lag_s": 0.3, "faults": {"rates": {"reset_before": 1.0}, "attempts": 1}}
    with start_simulator({"deployments": DEPLOYMENTS, "offline": offline}) as simulator:
        client = make_client(simulator)
        with pytest.raises(openai.APIConnectionError):
            upload(client, [line(1)])
        with pytest.raises(openai.APIConnectionError):
            client.files.list()
        (file,) = client.files.list().data
        asked: Any = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        with pytest.raises(openai.APIConnectionError):
            client.batches.create(**asked, metadata={"tag": "t"})
        with pytest.raises(openai.APIConnectionError):
            client.batches.list()
        shown = [client.batches.list().data]
        while not shown[-1]:
            time.sleep(0.05)
            shown.append(client.batches.list().data)
        assert shown[-1][0].metadata == {"tag": "t"}
        assert not shown[0]


def test_lines_fail_as_configured_and_the_ledger_has_them(tmp_path: Path) -> None:
    offline = {"line_faults": {"rates": {"500": 0.5}}}
    ledger = tmp_path / "ledger.jsonl"
    with start_simulator({"deployments": DEPLOYMENTS, "offline": offline}, ledger=ledger) as simulator:
        client = make_client(simulator)
        batch = ended(client, submit(client, [line(number) for number in range(40)]))
        good, bad = results(client, batch.output_file_id), results(client, batch.error_file_id)
    assert len(good) + len(bad) == 40
    assert good
    assert {each["response"]["status_code"] for each in bad.values()} == {500}
    notes = list(read_notes(ledger))
    assert [note.what for note in notes if note.what != "line"] == ["batch.created", "batch.completed"]
    answered = {note.details["custom_id"]: note.details for note in notes if note.what == "line"}
    assert {name for name, details in answered.items() if details["status"] == 200} == set(good)
    assert all(
        details["keys"] == [messages_key(messages(int(name[5:])))] for name, details in answered.items() if name in good
    )


def test_batches_and_jobs_go_on_in_a_new_process_on_the_same_folder(tmp_path: Path) -> None:
    config: dict[str, Any] = {"deployments": DEPLOYMENTS, "folder": str(tmp_path / "kept")}
    with start_simulator({**config, "offline": {"in_progress_s": 60.0, "running_s": 60.0}}) as simulator:
        client = make_client(simulator)
        batch = submit(client, [line(1), line(2)])
        job = client.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=upload(client, EXAMPLES, "fine-tune"))
        while client.batches.retrieve(batch.id).status == "validating":
            time.sleep(0.01)
    with start_simulator(config) as simulator:
        client = make_client(simulator)
        assert len(results(client, ended(client, batch).output_file_id)) == 2
        assert trained(client, job).status == "succeeded"


EXAMPLES = [
    {"messages": [{"role": "user", "content": f"Question {number}"}, {"role": "assistant", "content": "Yes."}]}
    for number in range(12)
]


def trained(client: Client, job: Any) -> Any:
    until = time.monotonic() + 30
    while job.status not in {"succeeded", "failed", "cancelled"}:
        assert time.monotonic() < until
        time.sleep(0.02)
        job = client.fine_tuning.jobs.retrieve(job.id)
    return job


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fine_tuning_job_ends_with_a_model(simulator: SimulatorProcess, family: str) -> None:
    client = make_client(simulator, family)
    job = client.fine_tuning.jobs.create(
        model="gpt-4o-mini",
        training_file=upload(client, EXAMPLES, "fine-tune"),
        validation_file=upload(client, EXAMPLES, "fine-tune"),
        suffix="tides",
        seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 4}}},
    )
    assert job.status == ("created" if family == "classic" else "validating_files")
    job = trained(client, job)
    assert job.status == "succeeded"
    assert "tides" in job.fine_tuned_model
    assert ".ft-" in job.fine_tuned_model or job.fine_tuned_model.startswith("ft:")
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=5))
    assert len(events) == 4 * 12 + 4
    assert len(client.fine_tuning.jobs.checkpoints.list(job.id).data) == 3
    table = client.files.content(job.result_files[0]).text.splitlines()
    assert table[0].startswith("step,train_loss")
    losses = [float(row.split(",")[1]) for row in table[1:]]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (EXAMPLES[:9], "at least 10"),
        ([*EXAMPLES, "{"], "Line 13"),
        ([*EXAMPLES, {"messages": []}], "no messages"),
        ([*EXAMPLES, {"messages": [{"role": "nobody", "content": "x"}]}], "no known role"),
        ([*EXAMPLES, {"messages": [{"role": "user", "content": "x"}]}], "not from the assistant"),
    ],
)
def test_a_training_file_with_a_mistake_fails_the_job(
    simulator: SimulatorProcess, lines: list[Any], words: str
) -> None:
    client = make_client(simulator)
    job = client.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=upload(client, lines, "fine-tune"))
    job = trained(client, job)
    assert job.status == "failed"
    assert job.error.code == "invalid_training_file"
    assert words in job.error.message


def test_jobs_fail_and_are_cancelled() -> None:
    with start_simulator({"offline": {"training_ends": ["failed", "succeeded"], "running_s": 1.0}}) as simulator:
        client = make_client(simulator)
        file = upload(client, EXAMPLES, "fine-tune")
        failed = trained(client, client.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=file))
        assert failed.status == "failed"
        job = client.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=file)
        assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
        with pytest.raises(openai.ConflictError):
            client.fine_tuning.jobs.cancel(job.id)
