"""What stands before every request: host, origin, rate, token, size and time of what is sent, and headers of the answer."""

import asyncio
import hashlib
import hmac
import json
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from html import escape
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from starlette.exceptions import HTTPException

from bdbnet.serving.address import is_loopback
from bdbnet.serving.errors import RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "bdbnet"
_OPEN_FILES = ("/static/style.css", "/static/icon.svg")  # the page that asks for the token needs them

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "geolocation=(), microphone=()",
}

_READING_COST = 0.05  # of a request that only reads, where one that searches costs 1: a page of pictures is many
_BURST = 4.0  # seconds' worth of requests that may come at once
_MOST_CLIENTS = 4096  # addresses whose rate is kept
_FORM_BYTES = 64 * 1024  # what fields and boundaries around an image may add


@dataclass(frozen=True)
class Limits:
    """What one client may ask for.

    Attributes:
        upload_bytes: largest image file.
        upload_seconds: longest time in which a request has to be received.
        rate: searches per second and address, on average; None: any number.
        open_requests: unfinished requests of an address.
    """

    upload_bytes: int
    upload_seconds: float
    rate: float | None
    open_requests: int


class Guard:
    """ASGI middleware that lets through what may come in.

    Args:
        app: what is guarded.
        token: what requests have to show; None: none, and then only names of this machine are accepted as the host: a page of
            another site whose name is pointed at this machine gets nothing.
        limits: of each client.
    """

    def __init__(self, app: App, token: str | None, limits: Limits) -> None:
        self._app, self._token, self._limits = app, token, limits
        self._rates: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._open: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # a WebSocket is not answered
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        sending = _Sending(send)
        client = str((scope.get("client") or ("",))[0])
        self._open[client] += 1
        try:
            self._check_load(scope, client)
            self._check_source(scope, headers)
            if self._check_token(scope, headers):
                sending.cookie = self._cookie
            self._check_size(headers)
            await self._app(scope, self._counted(receive), sending)
        except RequestError as error:
            status, lines, content = refusal(error, scope["path"], headers.get("accept", ""))
            encoded = [(key.encode(), value.encode("latin-1")) for key, value in lines.items()]
            await sending({"type": "http.response.start", "status": status, "headers": encoded})
            await sending({"type": "http.response.body", "body": content})
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]

    # Load

    def _check_load(self, scope: Scope, client: str) -> None:
        if self._open[client] > self._limits.open_requests:
            raise RequestError(429, "too many open requests from your address: wait for some to end", retry_after=1)
        rate = self._limits.rate
        if rate is None:
            return
        now = time.monotonic()
        left, then = self._rates.pop(client, (_BURST * rate, now))
        left = min(_BURST * rate, left + (now - then) * rate)
        cost = _READING_COST if scope["method"] in ("GET", "HEAD") else 1.0
        allowed = left >= cost or (cost == 1.0 and left >= _BURST * rate)  # a rate below 0.25 still lets one through
        self._rates[client] = (max(0.0, left - cost) if allowed else left, now)
        if len(self._rates) > _MOST_CLIENTS:
            self._rates.popitem(last=False)
        if not allowed:
            wait = max(1, round((cost - left) / rate + 0.5))
            raise RequestError(
                429, f"more than {rate:g} searches a second from your address: slow down", retry_after=wait
            )

    # Who asks

    def _check_source(self, scope: Scope, headers: Mapping[str, str]) -> None:
        host = headers.get("host", "")
        name = _split(f"//{host}")[0]
        if self._token is None and not is_loopback(name):
            raise RequestError(
                421, f"this server answers under localhost and 127.0.0.1, not as {name or 'a server without name'}"
            )
        if scope["method"] in ("GET", "HEAD"):
            return
        origin = headers.get("origin")
        foreign = origin is not None and _split(origin)[1] != host.lower()
        if foreign or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise RequestError(403, "requests from pages of other sites are refused")

    @property
    def _cookie(self) -> str:
        """Shows that the token was known, without being it."""
        assert self._token is not None
        return hmac.new(self._token.encode(), b"bdbnet page", hashlib.sha256).hexdigest()

    def _check_token(self, scope: Scope, headers: Mapping[str, str]) -> bool:
        """Whether the token came with the address, so that a cookie has to take its place.  Raises RequestError without one."""
        if self._token is None or scope["path"] in _OPEN_FILES:
            return False
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _equal(given.strip(), self._token):
            return False
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        if cookie is not None and _equal(cookie.value, self._cookie):
            return False
        query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1")))
        if scope["method"] == "GET" and _equal(query.get("token", ""), self._token):
            return True
        shown = given or query.get("token") or (cookie and cookie.value)
        raise RequestError(401, "the token is wrong" if shown else "a token is needed: Authorization: Bearer TOKEN")

    # What is sent

    def _check_size(self, headers: Mapping[str, str]) -> None:
        try:
            length = int(headers.get("content-length", "0"))
        except ValueError:
            raise RequestError(400, "content-length is no number") from None
        if length > self._limits.upload_bytes + _FORM_BYTES:
            raise self._too_large()

    def _too_large(self) -> RequestError:
        most = self._limits.upload_bytes / 2**20
        return RequestError(413, f"more than {most:g} MB: send a smaller image file")

    def _counted(self, receive: Receive) -> Receive:
        """`receive` that gives up on a body that is too large or too slow, whatever its head says."""
        most, received = self._limits.upload_bytes + _FORM_BYTES, 0
        deadline = time.monotonic() + self._limits.upload_seconds
        complete = False

        async def counted() -> Message:
            nonlocal received, complete
            if complete:  # waits for the client to leave
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise RequestError(
                    408, f"the request did not arrive within {self._limits.upload_seconds:g} s: send a smaller image"
                ) from None
            received += len(message.get("body", b""))
            complete = message["type"] == "http.disconnect" or not message.get("more_body", False)
            if received > most:
                raise self._too_large()
            return message

        return counted


class _Sending:
    """`send` that adds the headers of every answer."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.cookie: str | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [*message.get("headers", ())]
            there = {key.lower() for key, _ in own}
            own += [(key.encode(), value.encode()) for key, value in HEADERS.items() if key.encode() not in there]
            if b"cache-control" not in there:
                own.append((b"cache-control", b"no-store"))
            if self.cookie is not None:
                own.append((b"set-cookie", f"{COOKIE}={self.cookie}; HttpOnly; SameSite=Strict; Path=/".encode()))
            message = {**message, "headers": own}
        await self._send(message)


def _split(address: str) -> tuple[str, str]:
    """Host name, and host with port, of an address in small letters; empty for what is none.

    >>> _split("http://LocalHost:80"), _split("//[::1")
    (('localhost', 'localhost:80'), ('', ''))
    """
    try:
        parts = urlsplit(address)
        return parts.hostname or "", parts.netloc.lower()
    except ValueError:
        return "", ""


def _equal(given: str, wanted: str) -> bool:
    """In constant time."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode())


def refusal(error: HTTPException, path: str, accept: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and content of an answer that says why there is no other: a page for people, JSON for programs."""
    headers = dict(error.headers or {})
    if error.status_code == 401:
        headers["www-authenticate"] = "Bearer"
    if error.status_code in (408, 413):
        headers["connection"] = "close"  # the rest of the body is not read
    if isinstance(error, RequestError) and error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if "text/html" in accept and not path.startswith("/api/"):
        kind, content = "text/html; charset=utf-8", _page(error.status_code, str(error.detail)).encode()
    else:
        kind, content = "application/json", json.dumps({"error": str(error.detail)}).encode()
    return error.status_code, {**headers, "content-type": kind, "content-length": str(len(content))}, content


def _page(status: int, message: str) -> str:
    """A page with a message; where a token is needed, with a field for it."""
    if status == 401:
        message = f"{message[:1].upper()}{message[1:].partition(':')[0]}. Whoever started the server knows it."
        rest = (
            '<form method="get" action="/"><div class="buttons"><label for="token">Token</label> <input id="token" name="token" '
            'type="password" autocomplete="current-password" required autofocus> <button class="main">Open</button></div></form>'
        )
    else:
        rest = '<p><a class="button" href="/">Try again</a></p>'
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, '
        'initial-scale=1">\n<meta name="color-scheme" content="light dark">\n<link rel="stylesheet" href="/static/style.css">\n'
        '<link rel="icon" href="/static/icon.svg">\n'
        '<title>bdbnet</title>\n</head>\n<body class="message">\n'
        f"<h1>bdbnet</h1>\n<p>{escape(message)}</p>\n{rest}\n</body>\n</html>\n"
    )
