"""Access: who calls, with which API key, and what needs which key.

Knows no HTTP framework: header values come as plain strings (as WSGI has them), so that each rule can be read
and tested alone.
"""

from __future__ import annotations

import base64
import enum
import hmac
import ipaddress
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mtllm.domain.errors import Forbidden, Unauthorized
from mtllm.domain.limits import Limit, parse_limits
from mtllm.domain.money import NANO
from mtllm.domain.times import parse_time

ADMIN_NAME: Final = "admin"
LOOK_EVERY_SECONDS: Final = 1.0
_INDEX_BYTES: Final = 8


# Keys -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ApiKey:
    """The owner of a secret, and what is allowed to it.

    `rate_limits`: None means the service's own, an empty tuple means none. `daily_budget`, `monthly_budget`:
    nano-dollars a day and a month (BUDGET_TIMEZONE), None means no budget of its own. `models`: the only ones that the
    key may use; None means those of the service. `expires`: epoch seconds from which it is no key any more.
    """

    name: str
    rate_limits: tuple[Limit, ...] | None = None
    daily_budget: int | None = None
    admin: bool = False
    monthly_budget: int | None = None
    models: tuple[str, ...] | None = None
    expires: float | None = None


Keys = Mapping[bytes, ApiKey]
"""Keys by the SHA-256 digest of their secret."""


class BrokenKeysFile(ValueError):
    """API_KEYS_FILE cannot be used. The sentence says why, and holds no secret and no digest."""


LEAST_SECRET_CHARS = 16
"""The length below which a secret counts as weak; `python -m mtllm keys` makes longer ones."""


class KeyRing:
    """Every key the service knows; of secrets it keeps SHA-256 digests only.

    `api_keys` are secrets by name. `keys_file` is looked at by a request that happens to come, once a second at most,
    and reread when it changed. One that is broken or gone leaves the keys as they were and is told to `on_problem`
    once; if it never was whole, nobody gets in by it: a ring with a file is closed, whatever the file holds.
    """

    def __init__(
        self,
        api_keys: Mapping[str, str],
        keys_file: Path | None = None,
        admin_key: str | None = None,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        on_problem: Callable[[str], None],
    ) -> None:
        self.open = not api_keys and keys_file is None
        """No API keys are configured, so tasks need none."""
        self.has_admin = bool(admin_key)
        secrets = (*api_keys.items(), ("ADMIN_API_KEY", admin_key or ""))
        self.weak = tuple(name for name, secret in secrets if 0 < len(secret) < LEAST_SECRET_CHARS)
        """Names of the configured keys whose secrets can be guessed; of those in the file only digests are known."""
        self._named = {_digest(secret): ApiKey(name) for name, secret in api_keys.items()}
        self._admin = {_digest(admin_key): ApiKey(ADMIN_NAME, admin=True)} if admin_key else {}
        self._index = _index_by_prefix({**self._named, **self._admin})
        self._file = keys_file
        self._clock = clock
        self._monotonic = monotonic
        self._on_problem = on_problem
        self._rereading = threading.Lock()
        self._next_look = float("-inf")
        self._seen: tuple[int, int, int] | None = None
        self._reported: str | None = None
        self._ever_read = False
        self._reread_if_due()

    def keys(self) -> list[ApiKey]:
        """Return every key there is now."""
        self._reread_if_due()
        return [key for _, key in self._index.values()]

    def identify(self, secret: str | None) -> ApiKey | None:
        """Return the key that has this secret; None if there is none.

        A key is found by the first bytes of the secret's digest, which a caller cannot choose, and then compared by the
        whole digest in constant time.
        """
        self._reread_if_due()
        if not secret:
            return None
        digest = _digest(secret)
        found = self._index.get(digest[:_INDEX_BYTES])
        if found is None or not hmac.compare_digest(found[0], digest):
            return None
        key = found[1]
        return None if key.expires is not None and self._clock() >= key.expires else key

    def _reread_if_due(self) -> None:
        if self._file is None or self._monotonic() < self._next_look:
            return
        if self._rereading.acquire(blocking=False):  # others go on with the keys there are; nobody waits for the file
            try:
                self._next_look = self._monotonic() + LOOK_EVERY_SECONDS
                self._reread(self._file)
            finally:
                self._rereading.release()

    def _reread(self, file: Path) -> None:
        try:
            stat = file.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen == self._seen:
                return
            from_file = parse_keys_file(file.read_bytes(), taken={key.name for key in self._named.values()})
        except OSError as error:
            self._seen = None
            self._report(error.strerror or "it cannot be read")
        except BrokenKeysFile as error:
            self._seen = seen
            self._report(str(error))
        else:
            self._seen, self._reported, self._ever_read = seen, None, True
            self._index = _index_by_prefix({**self._named, **from_file, **self._admin})

    def _report(self, reason: str) -> None:
        if reason != self._reported:
            self._reported = reason
            effect = "its keys stay as they were" if self._ever_read else "nobody gets in by it"
            self._on_problem(f"API_KEYS_FILE cannot be used, so {effect}: {reason}")


def _digest(secret: str) -> bytes:
    return sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _index_by_prefix(keys: Keys) -> Mapping[bytes, tuple[bytes, ApiKey]]:
    return {digest[:_INDEX_BYTES]: (digest, key) for digest, key in keys.items()}


# The keys file --------------------------------------------------------------------------------------------------------


def _limits(text: object) -> tuple[Limit, ...]:
    if not isinstance(text, str):
        raise ValueError("write limits as text, for example '60/minute;1000/hour'")  # noqa: TRY004 - pydantic wants it
    return parse_limits(text)


def _moment(value: object) -> float:
    """Return the epoch seconds of a TOML date or time, or of text; a date ends with its first moment (UTC)."""
    try:
        return parse_time(str(value).replace(" ", "T"))
    except ValueError:
        raise ValueError("write a day or a time, for example 2027-01-31 or 2027-01-31T12:00:00Z") from None


class KeyTable(BaseModel):
    """One `[[key]]` table. Unknown fields are refused: a misspelt limit would be no limit."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-fA-F]{64}$")
    rate_limits: Annotated[tuple[Limit, ...] | None, BeforeValidator(_limits)] = None
    daily_budget_usd: Decimal | None = Field(None, ge=0, le=10**9, allow_inf_nan=False)
    monthly_budget_usd: Decimal | None = Field(None, ge=0, le=10**9, allow_inf_nan=False)
    models: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]{1,100}$")], ...] | None = Field(None, min_length=1)
    expires: Annotated[float | None, BeforeValidator(_moment)] = None

    def api_key(self) -> ApiKey:
        """Return the key that the table describes."""
        return ApiKey(
            self.name,
            self.rate_limits,
            _nano(self.daily_budget_usd),
            monthly_budget=_nano(self.monthly_budget_usd),
            models=self.models,
            expires=self.expires,
        )


def _nano(usd: Decimal | None) -> int | None:
    return None if usd is None else int(usd * NANO)


class KeysDocument(BaseModel):
    """The whole of an API_KEYS_FILE."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    key: tuple[KeyTable, ...] = ()


def parse_keys_file(content: bytes, taken: Iterable[str] = ()) -> dict[bytes, ApiKey]:
    """Return the keys of an API_KEYS_FILE by the digest of their secret. Raises BrokenKeysFile.

    The file has TOML `[[key]]` tables with `name`, `sha256` (hex, of the secret) and, if wanted, `rate_limits`,
    `daily_budget_usd`, `monthly_budget_usd`, `models` and `expires`. Names are distinct, also from those `taken`.
    """
    try:
        entries = KeysDocument.model_validate(tomllib.loads(content.decode(), parse_float=Decimal)).key
    except ValidationError as error:
        raise BrokenKeysFile(_in_words(error)) from None  # the cause would show the file's text
    except (ValueError, RecursionError) as error:
        raise BrokenKeysFile(f"it is not TOML ({type(error).__name__})") from None
    _refuse_repeated([*taken, ADMIN_NAME, *(entry.name for entry in entries)], "name")
    _refuse_repeated([entry.sha256.lower() for entry in entries], "sha256")
    return {bytes.fromhex(entry.sha256): entry.api_key() for entry in entries}


def _in_words(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems[:5])


def _refuse_repeated(values: list[str], what: str) -> None:
    if len(set(values)) < len(values):
        raise BrokenKeysFile(f"two keys have the same {what} (API_KEYS counts, and '{ADMIN_NAME}' is the admin key's)")


# What a request carries -----------------------------------------------------------------------------------------------


def presented_key(authorization: str | None, x_api_key: str | None) -> str | None:
    """Return the secret of `X-API-Key`, else of `Authorization`: a Bearer token, or the password of HTTP Basic.

    None where there is none, only something malformed, or a Bearer token beside another `X-API-Key`: nobody can say
    which of two keys the caller means to pay with. (A browser adds Basic by itself; there `X-API-Key` is meant.)
    """
    given = (x_api_key or "").strip()
    scheme, _, credentials = (authorization or "").strip().partition(" ")
    credentials = credentials.strip()
    if given:
        return None if scheme.lower() == "bearer" and credentials != given else _text(given)
    if scheme.lower() == "basic":
        return _basic_password(credentials)
    if scheme.lower() == "bearer" and credentials and " " not in credentials:
        return _text(credentials)
    return None


def _basic_password(credentials: str) -> str | None:
    try:
        decoded = base64.b64decode(credentials, validate=True).decode()
    except ValueError:
        return None
    return decoded.partition(":")[2] or None


def _text(header: str) -> str:
    """Return a header's real text: WSGI hands over bytes as Latin-1 (PEP 3333)."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


# What needs which key -------------------------------------------------------------------------------------------------


class Access(enum.Enum):
    """What a caller needs: nothing, a key (none where no keys are configured), or the admin key."""

    OPEN = "open"
    KEY = "key"
    ADMIN = "admin"


OPEN_PATHS: Final = ("/health/", "/api/v1/health/", "/api/v1/openapi.json/", "/swagger/")
PAGE_PATHS: Final = ("/dashboard",)
ADMIN_PATHS: Final = ("/api/v1/usage/export/", "/api/v1/usage/requests/", "/api/v1/cache/")
"""All with all below them. What is in neither needs a key, so that a new route is never open by oversight."""


def access_of(method: str, path: str, group_by: str | None = None) -> Access:
    """Return what a request to an existing route needs. `group_by` is the query's: by client or key is the admin's.

    A preflight (OPTIONS) carries no credentials by design. What has no route is a 404 for everybody: don't ask here.
    """
    folder = f"{path}/"
    if method == "OPTIONS" or path == "/" or folder.startswith(OPEN_PATHS):
        return Access.OPEN
    if folder.startswith(ADMIN_PATHS) or group_by in ("client", "key"):
        return Access.ADMIN
    return Access.KEY


def authorize(ring: KeyRing, access: Access, secret: str | None) -> ApiKey | None:
    """Return the key of a request that is allowed; None for an anonymous one.

    Raises Unauthorized where a key is missing or wrong, Forbidden where a valid key is not the admin's or no admin key
    is configured: without one, what needs it is closed even in an open service.
    """
    if access is Access.OPEN:
        return None
    key = ring.identify(secret)
    if access is Access.KEY and (key or ring.open):
        return key
    if access is Access.ADMIN and not ring.has_admin and (key or ring.open):
        raise Forbidden("This needs the admin key, and none is configured: set ADMIN_API_KEY.")
    if key is None:
        raise Unauthorized("This API key is not known.") if secret else Unauthorized
    if not key.admin:
        raise Forbidden("This needs the admin key.")
    return key


# Where it comes from --------------------------------------------------------------------------------------------------

UNKNOWN_CLIENT: Final = "unknown"
_LONGEST_ADDRESS: Final = 80


class ClientResolver:
    """Names the caller for limits, logs and ledger: an IPv4 address, an IPv6 /64, or `unknown`.

    X-Forwarded-For is believed only for as many hops from the right as there are proxies of our own: each appends the
    peer it saw, and whatever stands to the left of those was written by the caller.
    """

    def __init__(self, trusted_proxies: int, on_problem: Callable[[str], None]) -> None:
        self._hops = trusted_proxies
        self._on_problem = on_problem
        self._header_judged = trusted_proxies == 0
        self._judging = threading.Lock()

    def client(self, peer: str | None, forwarded_for: str | None) -> str:
        """Return the caller by X-Forwarded-For as far as it is believed, else by the socket's peer."""
        if not self._header_judged:
            self._judge(forwarded_for)
        forwarded = _hop(forwarded_for, self._hops) if self._hops and forwarded_for else None
        return (_address(forwarded) if forwarded else None) or _address(peer or "") or UNKNOWN_CLIENT

    def _judge(self, forwarded_for: str | None) -> None:
        """Report, by the first request, if the proxies do not send the header or the server does not let it through."""
        with self._judging:
            if self._header_judged:
                return
            self._header_judged = True
        if not forwarded_for:
            self._on_problem(
                f"TRUSTED_PROXIES is {self._hops}, but a request came without X-Forwarded-For and counts as its peer's."
                " If the proxies do send it, waitress-serve needs --no-clear-untrusted-proxy-headers to pass it on."
            )


def _hop(forwarded_for: str, hops: int) -> str | None:
    """Return the entry `hops` from the right; None if the request came by fewer proxies than that."""
    entries = forwarded_for.rsplit(",", hops)
    return entries[-hops].strip() if len(entries) >= hops else None


def _address(text: str) -> str | None:
    """Return a client's name, or None for what is no address. One household owns a whole IPv6 /64."""
    return _known_address(text) if 0 < len(text) <= _LONGEST_ADDRESS else None


@lru_cache(maxsize=4096)
def _known_address(text: str) -> str | None:
    try:
        address = ipaddress.ip_address(_without_port(text))
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.IPv6Network((int(address), 64), strict=False))
        address = address.ipv4_mapped
    return str(address)


def _without_port(text: str) -> str:
    """Return the address in `1.2.3.4:80`, `[2001:db8::1]:80`, `"[2001:db8::1]"` or `fe80::1%eth0`."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    return text.partition("%")[0]


def challenge(path: str) -> str:
    """Return how a 401 at `path` asks for the key (RFC 9110, section 11.6.1).

    The page and its files ask by Basic, for which browsers have a dialog. The API asks by Bearer, so that no figures
    which a page fetches on its own open one.
    """
    return 'Basic realm="dashboard", charset="UTF-8"' if path.startswith(PAGE_PATHS) else 'Bearer realm="api"'
