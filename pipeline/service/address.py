"""Makes the URL of a call from what a job file says of a deployment; pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from pipeline.job.availability import DEFAULT_API_VERSION
from pipeline.model import Target

_DEPLOYMENT_SCOPED = (
    "chat/completions",
    "completions",
    "embeddings",
    "audio/transcriptions",
    "audio/translations",
    "audio/speech",
    "images/generations",
    "images/edits",
)
_IN_PREVIEW = ("audio/", "images/")
_PREVIEW = "api-version=preview"
_PASTED_V1 = re.compile(r"/openai/v1(?:/.*)?$")
_PASTED_CLASSIC = re.compile(r"/openai(?:/deployments/.*|/responses)?$")
_PASTED_CALL = re.compile(r"/(?:" + "|".join(_DEPLOYMENT_SCOPED) + r"|responses|models)$")
_HOST = re.compile(r"[A-Za-z0-9._\-\[\]:]+")


class Family(StrEnum):
    """The three ways in which services lay their paths out."""

    AZURE = "azure"
    AZURE_V1 = "azure-v1"
    OPENAI = "openai"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the calls of one deployment go. `base` ends without a slash; `query` is ready to be sent."""

    base: str
    family: Family
    deployment: str
    query: str

    def url(self, endpoint: str) -> str:
        """Return the URL of an endpoint such as "chat/completions".

        Sound and pictures of the v1 family are in its preview alone, which is asked for where no version is named
        (Microsoft's reference of the v1 API, November 2026).
        """
        if self.family is Family.AZURE and endpoint in _DEPLOYMENT_SCOPED:
            path = f"{self.base}/deployments/{quote(self.deployment, safe='')}/{endpoint}"
        else:
            path = f"{self.base}/{endpoint}"
        query = self.query or (_PREVIEW if self.family is Family.AZURE_V1 and endpoint.startswith(_IN_PREVIEW) else "")
        return f"{path}?{query}" if query else path

    def management_url(self, path: str, query: Mapping[str, str]) -> str:
        """Return the URL of what belongs to the whole resource, such as "files" or "batches/ID"."""
        both = "&".join(part for part in (self.query, urlencode(query)) if part)
        place = f"{self.base}/{quote(path, safe='/')}"
        return f"{place}?{both}" if both else place

    @property
    def origin(self) -> str:
        """Scheme, host and port, such as https://name.openai.azure.com."""
        parts = urlsplit(self.base)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def host(self) -> str:
        """The host's name, in lower case."""
        return urlsplit(self.base).hostname or ""


def address(*, endpoint: str, deployment: str, api: str, api_version: str | None) -> Address:
    """Read an endpoint as people paste it: with or without a path, a call's name, a query, a slash at the end.

    The api-version is the given one, else the pasted one, else (classic family only) the last stable one.
    Raises ValueError, with a sentence for the job file's author, for an endpoint or a deployment that cannot be used:
    not http(s), plain http to another machine, user info, dot segments.
    """
    family = Family(api)
    parts = urlsplit(endpoint.strip())
    _check_origin(parts.scheme, parts.netloc, parts.hostname)
    path = re.sub(r"/{2,}", "/", parts.path).rstrip("/")
    if any(segment in {".", ".."} for segment in re.split(r"/|%2f", path.replace("%2e", ".").replace("%2E", "."))):
        raise ValueError("the endpoint's path holds '.' or '..'; give the resource's own address")
    if not deployment.strip() or deployment.strip() in {".", ".."} or ".." in re.split(r"[/\\]", deployment):
        raise ValueError("a deployment's name cannot be empty or hold '..'")
    pasted = dict(parse_qsl(parts.query))
    version = api_version or pasted.get("api-version")
    match family:
        case Family.AZURE:
            path = _PASTED_CLASSIC.sub("", _PASTED_V1.sub("", path)) + "/openai"
            version = version or DEFAULT_API_VERSION
        case Family.AZURE_V1:
            path = _PASTED_CLASSIC.sub("", _PASTED_V1.sub("", path)) + "/openai/v1"
        case Family.OPENAI:
            path = _PASTED_CALL.sub("", path)
    query = urlencode({"api-version": version}) if version else ""
    base = f"{parts.scheme.lower()}://{parts.netloc.lower()}{path}"
    return Address(base=base, family=family, deployment=deployment.strip(), query=query)


def target(address: Address, *, model: str | None) -> Target:
    """Return what operations must know: the classic family names the deployment in the path, the others in the body."""
    return Target(
        deployment=address.deployment,
        model=model or address.deployment,
        body_model=None if address.family is Family.AZURE else address.deployment,
        api=address.family.value,
        api_version=dict(parse_qsl(address.query)).get("api-version"),
    )


def is_loopback(host: str) -> bool:
    """Say whether a host is one of this machine's own names and addresses."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _check_origin(scheme: str, netloc: str, host: str | None) -> None:
    if scheme.lower() not in {"http", "https"} or not host:
        raise ValueError("an endpoint begins with https:// and a host, such as https://NAME.openai.azure.com")
    if "@" in netloc:
        raise ValueError("an endpoint holds no user name or password; use `key` or `headers`")
    if not _HOST.fullmatch(netloc):
        raise ValueError("the endpoint's host holds characters that no host name has")
    if scheme.lower() == "http" and not is_loopback(host):
        raise ValueError("plain http is only for this machine's loopback; use https")
