"""The kinds of Entra credential that a job file may name, each with its options; pure tables and their rules.

The kinds are azure-identity's classes, whose own names for the options are kept (its reference, version 1.27). Four
options are ours: `certificate_path` of `on-behalf-of`, `assertion_file`, and `object_id` and `resource_id` of
`managed-identity`, which name what the classes take as bytes, functions and mappings.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Option(StrEnum):
    """What an option holds. Secrets are given as `${NAME}`; files are relative to the job file."""

    TEXT = "text"
    SECRET = "secret"  # noqa: S105 - a kind of option
    FILE = "file"
    SWITCH = "true or false"
    NUMBER = "number"
    TEXTS = "list of texts"
    SOURCES = "list of credentials"


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialKind:
    """One kind: the class of azure-identity, its options, those that it cannot do without.

    `signs_in`: a person signs in, or a code is used up, so that one object serves as long as it is let in.
    """

    class_name: str
    options: Mapping[str, Option]
    required: tuple[str, ...] = ()
    signs_in: bool = False
    at_terminal: bool = False


_TENANTS = {"additionally_allowed_tenants": Option.TEXTS}
_AUTHORITY = {"authority": Option.TEXT, "disable_instance_discovery": Option.SWITCH, **_TENANTS}
_APPLICATION = {"tenant_id": Option.TEXT, "client_id": Option.TEXT}
_TOOL = {"tenant_id": Option.TEXT, "process_timeout": Option.NUMBER, **_TENANTS}
_NEEDS_APPLICATION = ("tenant_id", "client_id")
_EXCLUDED = (
    "environment",
    "workload_identity",
    "managed_identity",
    "shared_token_cache",
    "visual_studio_code",
    "cli",
    "powershell",
    "developer_cli",
)

KINDS: Mapping[str, CredentialKind] = {
    "default": CredentialKind(
        class_name="DefaultAzureCredential",
        options={
            "authority": Option.TEXT,
            "managed_identity_client_id": Option.TEXT,
            "workload_identity_client_id": Option.TEXT,
            "workload_identity_tenant_id": Option.TEXT,
            "shared_cache_username": Option.TEXT,
            "shared_cache_tenant_id": Option.TEXT,
            "visual_studio_code_tenant_id": Option.TEXT,
            "process_timeout": Option.NUMBER,
            "require_envvar": Option.SWITCH,
            **{f"exclude_{name}_credential": Option.SWITCH for name in _EXCLUDED},
        },
    ),
    "environment": CredentialKind(class_name="EnvironmentCredential", options=_AUTHORITY),
    "managed-identity": CredentialKind(
        class_name="ManagedIdentityCredential",
        options={"client_id": Option.TEXT, "object_id": Option.TEXT, "resource_id": Option.TEXT},
    ),
    "workload-identity": CredentialKind(
        class_name="WorkloadIdentityCredential",
        options={**_APPLICATION, "token_file_path": Option.FILE, "enable_azure_proxy": Option.SWITCH, **_AUTHORITY},
    ),
    "client-secret": CredentialKind(
        class_name="ClientSecretCredential",
        options={**_APPLICATION, "client_secret": Option.SECRET, **_AUTHORITY},
        required=(*_NEEDS_APPLICATION, "client_secret"),
    ),
    "certificate": CredentialKind(
        class_name="CertificateCredential",
        options={
            **_APPLICATION,
            "certificate_path": Option.FILE,
            "password": Option.SECRET,
            "send_certificate_chain": Option.SWITCH,
            **_AUTHORITY,
        },
        required=(*_NEEDS_APPLICATION, "certificate_path"),
    ),
    "client-assertion": CredentialKind(
        class_name="ClientAssertionCredential",
        options={**_APPLICATION, "assertion_file": Option.FILE, **_AUTHORITY},
        required=(*_NEEDS_APPLICATION, "assertion_file"),
    ),
    "on-behalf-of": CredentialKind(
        class_name="OnBehalfOfCredential",
        options={
            **_APPLICATION,
            "user_assertion": Option.SECRET,
            "client_secret": Option.SECRET,
            "certificate_path": Option.FILE,
            "password": Option.SECRET,
            **_AUTHORITY,
        },
        required=(*_NEEDS_APPLICATION, "user_assertion"),
    ),
    "azure-pipelines": CredentialKind(
        class_name="AzurePipelinesCredential",
        options={
            **_APPLICATION,
            "service_connection_id": Option.TEXT,
            "system_access_token": Option.SECRET,
            **_AUTHORITY,
        },
        required=(*_NEEDS_APPLICATION, "service_connection_id", "system_access_token"),
    ),
    "azure-cli": CredentialKind(class_name="AzureCliCredential", options={"subscription": Option.TEXT, **_TOOL}),
    "azure-developer-cli": CredentialKind(class_name="AzureDeveloperCliCredential", options=_TOOL),
    "azure-powershell": CredentialKind(class_name="AzurePowerShellCredential", options=_TOOL),
    "visual-studio-code": CredentialKind(
        class_name="VisualStudioCodeCredential", options={"tenant_id": Option.TEXT, **_TENANTS}
    ),
    "shared-token-cache": CredentialKind(
        class_name="SharedTokenCacheCredential",
        options={"username": Option.TEXT, "tenant_id": Option.TEXT, "authority": Option.TEXT},
    ),
    "device-code": CredentialKind(
        class_name="DeviceCodeCredential",
        options={**_APPLICATION, "timeout": Option.NUMBER, **_AUTHORITY},
        signs_in=True,
        at_terminal=True,
    ),
    "interactive-browser": CredentialKind(
        class_name="InteractiveBrowserCredential",
        options={
            **_APPLICATION,
            "login_hint": Option.TEXT,
            "redirect_uri": Option.TEXT,
            "timeout": Option.NUMBER,
            **_AUTHORITY,
        },
        signs_in=True,
        at_terminal=True,
    ),
    "authorization-code": CredentialKind(
        class_name="AuthorizationCodeCredential",
        options={
            **_APPLICATION,
            "authorization_code": Option.SECRET,
            "redirect_uri": Option.TEXT,
            "client_secret": Option.SECRET,
            "authority": Option.TEXT,
            **_TENANTS,
        },
        required=(*_NEEDS_APPLICATION, "authorization_code", "redirect_uri"),
        signs_in=True,
    ),
    "username-password": CredentialKind(
        class_name="UsernamePasswordCredential",
        options={**_APPLICATION, "username": Option.TEXT, "password": Option.SECRET, **_AUTHORITY},
        required=("client_id", "username", "password"),
        signs_in=True,
    ),
    "chained": CredentialKind(
        class_name="ChainedTokenCredential", options={"sources": Option.SOURCES}, required=("sources",)
    ),
}
"""What `credential: {type: …}` may name."""

_EXCLUSIVE = (
    ("managed-identity", ("client_id", "object_id", "resource_id")),
    ("on-behalf-of", ("client_secret", "certificate_path")),
)


def kind_name(options: Mapping[str, Any]) -> str:
    """The kind that a credential's options name, in one spelling (`azure_cli` is `azure-cli`); without one, default."""
    return str(options.get("type") or "default").replace("_", "-").lower()


def option_of(options: Mapping[str, Any], name: str) -> Option:
    """What an option of a credential holds; text where neither kind nor option are known."""
    kind = KINDS.get(kind_name(options))
    return Option.TEXT if kind is None else kind.options.get(name, Option.TEXT)


def credential_problems(options: Mapping[str, Any]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Say what is wrong with a credential, each with its place below it. Values are never quoted."""
    name = kind_name(options)
    kind = KINDS.get(name)
    if kind is None:
        yield ("type",), f"there is no such kind{_suggestion(name, KINDS)}: there are {', '.join(KINDS)}"
        return
    for option in options:
        if option != "type" and option not in kind.options:
            yield (option,), f"{name} has no such option{_suggestion(option, kind.options)}: {_known(kind)}"
    for option in kind.required:
        if options.get(option) in (None, ""):
            yield (), f"{name} needs `{option}`"
    for exclusive, names in _EXCLUSIVE:
        given = [option for option in names if options.get(option) is not None]
        if name == exclusive and len(given) > 1:
            yield (given[1],), f"give `{given[0]}` or `{given[1]}`, not both"
    for option, value in options.items():
        yield from _value_problems(option, kind.options.get(option), value)


def _value_problems(option: str, holds: Option | None, value: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
    match holds:
        case Option.SWITCH if not isinstance(value, bool):
            yield (option,), "must be true or false"
        case Option.NUMBER if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            yield (option,), "must be a whole number of seconds"
        case Option.TEXTS if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            yield (option,), "must be a list of texts"
        case Option.SOURCES:
            yield from _source_problems(option, value)
        case Option.TEXT | Option.FILE if not isinstance(value, str):
            yield (option,), "must be text: put it in quotes"
        case _:
            return


def _source_problems(option: str, value: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if not isinstance(value, list) or not value:
        yield (option,), "must be a list of credentials, such as `[{type: managed-identity}, {type: azure-cli}]`"
        return
    for index, source in enumerate(value):
        if not isinstance(source, Mapping):
            yield (option, index), "must be a mapping, such as `{type: azure-cli}`"
        elif (kind := KINDS.get(kind_name(source))) is not None and (kind.signs_in or "sources" in kind.options):
            yield (option, index, "type"), f"{kind_name(source)} cannot be part of a chain: use it alone"
        else:
            for place, message in credential_problems(source):
                yield (option, index, *place), message


def _known(kind: CredentialKind) -> str:
    return f"it has {', '.join(kind.options)}"


def _suggestion(name: str, names: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f" (did you mean `{near[0]}`?)" if near else ""
