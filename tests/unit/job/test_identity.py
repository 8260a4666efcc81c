"""What a job file may say of a credential."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import azure.identity
import azure.identity.aio
import pytest

from pipeline.errors import JobFileError
from pipeline.job.identity import KINDS, Option, credential_problems, kind_name, option_of
from pipeline.job.load import load_job
from pipeline.job.spec import DeploymentSpec

OFFERED = {
    name
    for module in (azure.identity, azure.identity.aio)
    for name in module.__all__
    if name.endswith("Credential") and inspect.isclass(getattr(module, name))
}


def test_every_credential_that_azure_identity_offers_has_a_kind() -> None:
    assert {kind.class_name for kind in KINDS.values()} == OFFERED


@pytest.mark.parametrize("name", KINDS)
def test_secrets_are_declared_as_such_and_what_is_needed_exists(name: str) -> None:
    kind = KINDS[name]
    assert set(kind.required) <= set(kind.options)
    for option, holds in kind.options.items():
        telling = ("secret", "password", "assertion", "access_token", "authorization_code")
        if option.endswith(telling):
            assert holds is Option.SECRET
        if option.endswith(("_path", "_file")):
            assert holds is Option.FILE


APPLICATION = {"tenant_id": "t", "client_id": "c"}


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, []),
        ({"type": "default", "exclude_cli_credential": True}, []),
        ({"type": "Managed_Identity", "client_id": "c"}, []),
        ({"type": "client-secret", **APPLICATION, "client_secret": "${S}"}, []),
        ({"type": "azure-cli", "process_timeout": 20, "additionally_allowed_tenants": ["*"]}, []),
        ({"type": "chained", "sources": [{"type": "managed-identity"}, {"type": "azure-cli"}]}, []),
        ({"type": "manged-identity"}, [(("type",), "there is no such kind (did you mean `managed-identity`?)")]),
        ({"type": 5}, [(("type",), "there is no such kind")]),
        ({"client_id": "c"}, [(("client_id",), "default has no such option")]),
        ({"type": "managed-identity", "clientid": "c"}, [(("clientid",), "(did you mean `client_id`?)")]),
        ({"type": "client-secret", **APPLICATION}, [((), "client-secret needs `client_secret`")]),
        ({"type": "certificate", "client_id": "c"}, [((), "needs `tenant_id`"), ((), "needs `certificate_path`")]),
        ({"type": "azure-cli", "process_timeout": "20"}, [(("process_timeout",), "whole number of seconds")]),
        ({"type": "azure-cli", "process_timeout": True}, [(("process_timeout",), "whole number of seconds")]),
        ({"type": "azure-cli", "process_timeout": 0}, [(("process_timeout",), "whole number of seconds")]),
        ({"exclude_cli_credential": "yes"}, [(("exclude_cli_credential",), "true or false")]),
        ({"type": "azure-cli", "additionally_allowed_tenants": "*"}, [(("additionally_allowed_tenants",), "list")]),
        ({"type": "managed-identity", "client_id": 7}, [(("client_id",), "in quotes")]),
        (
            {"type": "managed-identity", "client_id": "c", "resource_id": "r"},
            [(("resource_id",), "give `client_id` or `resource_id`, not both")],
        ),
        ({"type": "chained"}, [((), "chained needs `sources`")]),
        ({"type": "chained", "sources": []}, [(("sources",), "must be a list of credentials")]),
        ({"type": "chained", "sources": ["azure-cli"]}, [(("sources", 0), "must be a mapping")]),
        (
            {"type": "chained", "sources": [{"type": "azure-cli"}, {"type": "azure-cli", "x": 1}]},
            [(("sources", 1, "x"), "azure-cli has no such option")],
        ),
        (
            {"type": "chained", "sources": [{"type": "chained"}]},
            [(("sources", 0, "type"), "cannot be part of a chain")],
        ),
        (
            {"type": "chained", "sources": [{"type": "device-code"}]},
            [(("sources", 0, "type"), "device-code cannot be part of a chain")],
        ),
    ],
)
def test_what_is_wrong_is_said_at_its_place(
    options: dict[str, Any], found: list[tuple[tuple[str | int, ...], str]]
) -> None:
    problems = list(credential_problems(options))
    assert [place for place, _ in problems] == [place for place, _ in found]
    for (_, message), (_, word) in zip(problems, found, strict=True):
        assert word in message


def test_values_are_never_quoted() -> None:
    for kind in (*KINDS, "canary"):
        options = {"type": kind, "client_secret": "canary", "sources": "canary", "process_timeout": "canary"}
        assert not any("canary" in message for _, message in credential_problems(options))


def test_kinds_have_one_spelling() -> None:
    assert kind_name({"type": "AZURE_CLI"}) == "azure-cli"
    assert kind_name({}) == kind_name({"type": None}) == "default"
    assert option_of({"type": "client_secret"}, "client_secret") is Option.SECRET
    assert option_of({"type": "nothing"}, "client_secret") is Option.TEXT


def load(
    folder: Path, deployment: Mapping[str, Any], environ: Mapping[str, str], *, simulate: bool = False
) -> DeploymentSpec:
    """The deployment of a job that is right but for what is asked of it here."""
    file = folder / "job.json"
    job = {
        "operation": "chat",
        "input": {"path": "rows.jsonl"},
        "request": {"messages": []},
        "deployments": [{"endpoint": "https://r.openai.azure.com", "deployment": "d", **deployment}],
        "output": {"path": "out"},
    }
    file.write_text(json.dumps(job))
    return load_job(file, environ=environ, operations=("chat",), simulate=simulate).deployments[0]


def test_secrets_of_a_chain_are_read_from_variables_and_files_from_beside_the_job(tmp_path: Path) -> None:
    (tmp_path / "app.pem").write_text("x")
    sources = [
        {"type": "certificate", **APPLICATION, "certificate_path": "app.pem", "password": "${PASSWORD}"},
        {"type": "client-secret", "tenant_id": "${TENANT}", "client_id": "c", "client_secret": "${SECRET}"},
    ]
    environ = {"PASSWORD": "canary-1", "SECRET": "canary-2", "TENANT": "t"}
    spec = load(tmp_path, {"credential": {"type": "chained", "sources": sources}}, environ)
    assert spec.auth == "entra"
    assert spec.credential is not None
    first, second = spec.credential["sources"]
    assert first["certificate_path"] == str(tmp_path / "app.pem")
    assert (first["password"].reveal(), second["client_secret"].reveal()) == ("canary-1", "canary-2")
    assert second["tenant_id"] == "t"
    assert "canary" not in f"{spec!r} {spec.credential}"


@pytest.mark.parametrize(
    ("credential", "word"),
    [
        ({"type": "client-secret", **APPLICATION, "client_secret": "canary"}, "must be ${NAME} alone"),
        (
            {"type": "chained", "sources": [{"type": "client-secret", **APPLICATION, "client_secret": "canary"}]},
            "must be ${NAME} alone",
        ),
        ({"type": "client-secret", **APPLICATION, "client_secret": "${MISSING}"}, "MISSING is not set"),
        ({"type": "certificate", **APPLICATION, "certificate_path": "none.pem"}, "there is no such file"),
        ({"type": "azure-cly"}, "did you mean `azure-cli`?"),
        ({"type": "${MISSING}"}, "MISSING is not set"),
    ],
)
def test_a_credential_that_cannot_be_used_is_refused_and_never_quoted(
    tmp_path: Path, credential: dict[str, Any], word: str
) -> None:
    with pytest.raises(JobFileError) as caught:
        load(tmp_path, {"credential": credential}, {})
    (problem,) = caught.value.problems
    assert problem.path.startswith("deployments.0.credential.")
    assert word in problem.message
    assert "canary" not in str(caught.value)


def test_the_kind_may_come_from_the_environment_and_a_rehearsal_reads_neither(tmp_path: Path) -> None:
    credential = {"credential": {"type": "${KIND:-azure-cli}"}}
    for environ, kind in (({}, "azure-cli"), ({"KIND": "managed-identity"}, "managed-identity")):
        spec = load(tmp_path, credential, environ)
        assert spec.credential == {"type": kind}
    secret = {"type": "client-secret", "tenant_id": "${T}", "client_id": "c", "client_secret": "${S}"}
    assert load(tmp_path, {"credential": secret}, {}, simulate=True).auth == "key"
    assert load(tmp_path, {"credential": {"type": "${KIND}"}}, {}, simulate=True).credential is None


@pytest.mark.parametrize(
    ("given", "environ", "auth"),
    [
        ({}, {}, "entra"),
        ({}, {"AZURE_OPENAI_API_KEY": "k"}, "key"),
        ({}, {"AZURE_OPENAI_AD_TOKEN": "t"}, "token"),
        ({}, {"AZURE_OPENAI_API_KEY": "k", "AZURE_OPENAI_AD_TOKEN": "t"}, "key"),
        ({"credential": {"type": "azure-cli"}}, {"AZURE_OPENAI_API_KEY": "k"}, "entra"),
        ({"auth": "entra"}, {"AZURE_OPENAI_API_KEY": "k"}, "entra"),
        ({"auth": "token"}, {"AZURE_OPENAI_API_KEY": "k", "AZURE_OPENAI_AD_TOKEN": "t"}, "token"),
    ],
)
def test_what_signs_follows_what_is_given_then_the_environment(
    tmp_path: Path, given: dict[str, Any], environ: dict[str, str], auth: str
) -> None:
    assert load(tmp_path, given, environ).auth == auth
