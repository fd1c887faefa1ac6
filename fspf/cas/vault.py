"""Secrets that a Vault keeps: read from its KV v2 engine over its HTTP API, when a service is configured.

Which policies have such secrets is written in them; which paths a policy may name, the operator says here. Nothing is cached.
"""

from __future__ import annotations

import asyncio
import fnmatch
import http.client
import json
import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

from fspf.core.errors import AccessDeniedError, CasError, CasUnreachableError, UsageError
from fspf.policy.values import SecretKind, SecretValue

if TYPE_CHECKING:
    from collections.abc import Callable

    from fspf.policy.model import VaultSource

_MAX_ANSWER: Final = 1 << 20  # bytes
_MAX_VALUE: Final = 1 << 16
_RENEW_EARLY_S: Final = 10.0  # a token is not used in its last seconds


@dataclass(frozen=True, slots=True)
class VaultSettings:
    """How a Vault is reached, and what policies may ask of it.

    Attributes:
        url: ``https://host:port``; ``http`` only to this machine.
        rules: (pattern of policy names, pattern of ``mount/path``); a policy may read what one rule allows, by default
            nothing: whoever may write some policy must not read all that the CAS's token can.
        token: What the CAS presents; or role_id and secret_id of an AppRole.
        namespace: Of Vault Enterprise.
        ca_file: PEM of the CA of its certificate; None: those of the system.
    """

    url: str
    rules: tuple[tuple[str, str], ...] = ()
    token: str = field(default="", repr=False)
    role_id: str = field(default="", repr=False)
    secret_id: str = field(default="", repr=False)
    role_mount: str = "approle"
    namespace: str = ""
    ca_file: str | None = None
    timeout_s: float = 5.0

    def __post_init__(self) -> None:
        """Refuse what cannot work, or would send a token in the clear."""
        parts = urlsplit(self.url)
        local = parts.hostname in {"127.0.0.1", "::1", "localhost"}
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path not in {"", "/"} or parts.query:
            raise UsageError(f"{self.url!r} is no address of a Vault: https://host:port was expected")
        if parts.username is not None or parts.password is not None:
            raise UsageError("the address of a Vault holds no user and password")
        if parts.scheme == "http" and not local:
            raise UsageError(f"{self.url}: the Vault's token would cross the network unprotected: use https")
        if bool(self.token) == bool(self.role_id):
            raise UsageError("a Vault needs either a token or the role id and secret id of an AppRole")


class Vault:
    """Reads values. Implements `fspf.cas.issuer.Source`; each request is a connection of its own, in a thread."""

    def __init__(self, settings: VaultSettings, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._monotonic = monotonic
        self._token = settings.token
        self._token_ends = float("inf") if settings.token else 0.0

    def __repr__(self) -> str:
        """Name the Vault, not the token."""
        return f"Vault({self._settings.url!r})"

    async def fetch(self, policy_name: str, source: VaultSource) -> SecretValue:
        """Return one field of one secret.

        Raises:
            AccessDeniedError: No rule lets this policy read the path, or the Vault refuses.
            CasError: There is no such secret, version or field, or it is no text.
            CasUnreachableError: The Vault is sealed, away or too slow.
        """
        where = f"{source.mount}/{source.path}"
        if any(part in {"", ".", ".."} for part in where.split("/")):
            raise AccessDeniedError(f"{where!r} is no path of a Vault secret")
        if not any(
            fnmatch.fnmatchcase(policy_name, policies) and fnmatch.fnmatchcase(where, paths)
            for policies, paths in self._settings.rules
        ):
            raise AccessDeniedError(
                f"policy {policy_name} may not read {where} of the Vault: the CAS has no rule that allows it"
            )
        return await asyncio.to_thread(self._fetch, source, where)

    def _fetch(self, source: VaultSource, where: str) -> SecretValue:
        path = f"/v1/{quote(source.mount)}/data/{quote(source.path)}"
        if source.version is not None:
            path += f"?version={source.version}"
        status, answer = self._request("GET", path, None, self._valid_token())
        if status == 403 and self._settings.role_id:  # the token may have been revoked: log in once more
            self._token_ends = 0.0
            status, answer = self._request("GET", path, None, self._valid_token())
        if status == 404:
            raise CasError(f"the Vault has no secret {where}{_version(source)}{_deleted(answer)}")
        self._check(status, answer, where)
        outer = answer.get("data")
        data = outer.get("data") if isinstance(outer, dict) else None
        if not isinstance(data, dict):
            raise CasError(f"the Vault's answer for {where} is not that of a KV engine of version 2")
        value = data.get(source.field)
        if value is None:
            raise CasError(f"the Vault's secret {where}{_version(source)} has no field {source.field}")
        if not isinstance(value, str) or not 1 <= len(value.encode("utf-8", "surrogatepass")) <= _MAX_VALUE:
            raise CasError(f"field {source.field} of the Vault's secret {where} is no text of 1 to {_MAX_VALUE} bytes")
        try:
            return SecretValue(SecretKind.ASCII, raw=value.encode("utf-8"))
        except UnicodeEncodeError:
            raise CasError(f"field {source.field} of the Vault's secret {where} is no text") from None

    def _valid_token(self) -> str:
        if self._monotonic() < self._token_ends:
            return self._token
        body = {"role_id": self._settings.role_id, "secret_id": self._settings.secret_id}
        status, answer = self._request("POST", f"/v1/auth/{quote(self._settings.role_mount)}/login", body, "")
        if status == 400:
            raise AccessDeniedError(
                f"the Vault {self._settings.url} refuses the CAS's AppRole: its role id or secret id is wrong or ended"
            )
        self._check(status, answer, "the AppRole login")
        auth = answer.get("auth")
        token = auth.get("client_token") if isinstance(auth, dict) else None
        duration = auth.get("lease_duration") if isinstance(auth, dict) else None
        if not isinstance(token, str) or type(duration) is not int:
            raise CasError(f"the Vault {self._settings.url} logged the CAS in without a token")
        self._token = token
        # A duration of 0 is a token without end.
        self._token_ends = (
            self._monotonic() + max(duration - _RENEW_EARLY_S, duration / 2) if duration else float("inf")
        )
        return token

    def _check(self, status: int, answer: dict[str, Any], where: str) -> None:
        url = self._settings.url
        if status == 200:
            return
        if status == 403:
            raise AccessDeniedError(
                f"the Vault {url} denies the CAS {where}: its token is wrong or ended, or has no policy that lets it read this"
            )
        if status == 503:
            raise CasUnreachableError(f"the Vault {url} is sealed or in maintenance: unseal it, then try again")
        if status in {429, 472, 473, 500, 502, 504}:
            raise CasUnreachableError(f"the Vault {url} cannot answer now (HTTP {status}): try again")
        if 300 <= status < 400:
            raise CasError(
                f"the Vault {url} points to another server; its token is not sent there: name the active one"
            )
        errors = answer.get("errors")
        told = "; ".join(str(one)[:200] for one in errors[:3]) if isinstance(errors, list) else ""
        raise CasError(f"the Vault {url} does not answer for {where}: HTTP {status}{': ' + told if told else ''}")

    def _request(self, method: str, path: str, body: dict[str, str] | None, token: str) -> tuple[int, dict[str, Any]]:
        settings = self._settings
        parts = urlsplit(settings.url)
        assert parts.hostname is not None
        headers = {"X-Vault-Request": "true", "Accept": "application/json"}
        if token:
            headers["X-Vault-Token"] = token
        if settings.namespace:
            headers["X-Vault-Namespace"] = settings.namespace
        end = self._monotonic() + settings.timeout_s
        try:
            connection: http.client.HTTPConnection
            if parts.scheme == "https":
                context = ssl.create_default_context(cafile=settings.ca_file)
                context.minimum_version = ssl.TLSVersion.TLSv1_2
                connection = http.client.HTTPSConnection(
                    parts.hostname, parts.port or 8200, timeout=settings.timeout_s, context=context
                )
            else:
                connection = http.client.HTTPConnection(parts.hostname, parts.port or 8200, timeout=settings.timeout_s)
            try:
                connection.request(method, path, None if body is None else json.dumps(body), headers)
                with connection.getresponse() as response:
                    return response.status, _json(self._body(response, end))
            finally:
                connection.close()
        except TimeoutError:
            raise CasUnreachableError(
                f"the Vault {settings.url} did not answer within {settings.timeout_s:g} s"
            ) from None
        except ssl.SSLCertVerificationError as exc:
            raise CasError(
                f"the Vault {settings.url} does not show a certificate that we trust: {exc.verify_message}"
            ) from None
        except (OSError, http.client.HTTPException) as exc:
            reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else type(exc).__name__
            raise CasUnreachableError(f"the Vault {settings.url} cannot be reached: {reason}") from None

    def _body(self, response: http.client.HTTPResponse, end: float) -> bytes:
        raw = bytearray()
        while piece := response.read1(1 << 16):
            raw += piece
            if len(raw) > _MAX_ANSWER:
                raise CasError(f"the Vault {self._settings.url} answers with more than {_MAX_ANSWER} bytes")
            if self._monotonic() > end:  # one byte a second is no answer either
                raise TimeoutError
        return bytes(raw)


def _json(raw: bytes) -> dict[str, Any]:
    """Return the object that *raw* holds; of anything else nothing, for it is an error's page."""
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _version(source: VaultSource) -> str:
    return "" if source.version is None else f" of version {source.version}"


def _deleted(answer: dict[str, Any]) -> str:
    data = answer.get("data")
    metadata = data.get("metadata") if isinstance(data, dict) else None
    if not isinstance(metadata, dict):
        return ""
    if metadata.get("destroyed"):
        return ": that version was destroyed"
    return ": that version was deleted" if metadata.get("deletion_time") else ""
