"""One OpenAI-compatible chat endpoint: POST, time limit, retries with growing waits.

    http://host:8000/v1                     -> http://host:8000/v1/chat/completions
    http://host:8000                        -> http://host:8000/v1/chat/completions, and where that
                                               is not found http://host:8000/chat/completions
    http://host:8000/x/chat/completions     -> as it is

Tried again: no connection, a time-out, a broken reply, status 408, 429 and 5xx; the server's
Retry-After is honoured. Any other status ends the work with the server's own words.
"""

from __future__ import annotations

import http.client
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

import orjson

from adapt.errors import EnvironmentFault, UsageError

RETRY_STATUS = frozenset({408, 425, 429})
LONGEST_WAIT_S = 60.0
LONGEST_REPLY_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """Where to ask, and how patiently.

    Args:
        url: Base URL (http or https), with or without `/v1`.
        model: Model name to send.
        key: Sent as bearer token; empty for none. Never printed.
        timeout_s: Seconds until a request counts as lost.
        retries: Further tries after the first.
        backoff_s: Seconds before the first further try; doubled each time.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    timeout_s: float = 60.0
    retries: int = 4
    backoff_s: float = 0.5


class Endpoint:
    """Asks a chat endpoint, from several threads at one time.

    Raises:
        UsageError: The URL is none of http or https.
    """

    def __init__(self, options: EndpointOptions) -> None:
        self._options = options
        self._targets = chat_targets(options.url)
        self._stopped = threading.Event()
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if _is_local(options.url):
            # A proxy of the environment cannot reach a judge on this machine.
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    @property
    def url(self) -> str:
        """The URL that requests go to."""
        return self._targets[0]

    def stop(self) -> None:
        """End every wait between two tries."""
        self._stopped.set()

    def ask(self, messages: list[dict[str, str]]) -> str:
        """Return the reply's text, at temperature 0.

        Raises:
            EnvironmentFault: Out of reach after all tries, refused, or no chat reply.
        """
        body = orjson.dumps({"model": self._options.model, "messages": messages, "temperature": 0})
        failure = "not asked"
        for attempt in range(self._options.retries + 1):
            try:
                return self._post(body)
            except _TryAgain as error:
                failure = str(error)
                wait_s = max(error.wait_s, self._options.backoff_s * 2**attempt)
            last = attempt == self._options.retries
            if last or self._stopped.wait(min(wait_s, LONGEST_WAIT_S)):
                break
        tries = f"{attempt + 1} tries" if attempt else "1 try"
        raise EnvironmentFault(
            f"{self.url}: the judge is out of reach after {tries}: {failure}; "
            f"check that it runs at --judge-url (replies so far are cached: run again to go on)"
        )

    def _post(self, body: bytes) -> str:
        for target in self._targets[:-1]:
            try:
                return self._post_to(target, body)
            except _NotFound:
                continue
        try:
            return self._post_to(self._targets[-1], body)
        except _NotFound as error:
            raise EnvironmentFault(f"{self.url}: {error}; check --judge-url") from error

    def _post_to(self, target: str, body: bytes) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._options.key:
            headers["Authorization"] = f"Bearer {self._options.key}"
        request = urllib.request.Request(target, data=body, headers=headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._options.timeout_s) as response:
                data = response.read(LONGEST_REPLY_BYTES)
                if response.length:
                    raise _TryAgain(f"the reply broke off after {len(data)} bytes")
        except urllib.error.HTTPError as error:
            with error:
                raise _of_status(target, error) from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise _TryAgain(str(reason) or type(error).__name__) from error
        return _reply_text(target, data)


class _TryAgain(Exception):
    """A failure that may pass."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class _NotFound(Exception):
    """The server knows no such path."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would turn the POST into a GET and carry the key to another host."""

    def redirect_request(self, *_arguments: Any, **_named: Any) -> None:
        return None


def chat_targets(url: str) -> tuple[str, ...]:
    """Return the URLs to try, in order.

    >>> chat_targets("http://host:8000/v1/")
    ('http://host:8000/v1/chat/completions',)

    Raises:
        UsageError: It is no http or https URL.
    """
    parts = _split_url(url)
    path = parts.path.rstrip("/")
    if path.endswith("/chat/completions"):
        paths = [path]
    elif path:
        paths = [f"{path}/chat/completions"]
    else:
        paths = ["/v1/chat/completions", "/chat/completions"]
    return tuple(urlunsplit(parts._replace(path=path, fragment="")) for path in paths)


def _split_url(url: str) -> SplitResult:
    expected = "expected such as http://localhost:8000/v1"
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port != 0
    except ValueError as error:
        raise UsageError(f"--judge-url: found {url!r} ({error}), {expected}") from error
    printable = url.isascii() and url.isprintable() and " " not in url
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_valid:
        raise UsageError(f"--judge-url: found {url!r}, {expected}")
    if not printable:
        raise UsageError(f"--judge-url: found {url!r} with a blank or sign in it, {expected}")
    if parts.username is not None:
        raise UsageError("--judge-url: holds a user name; set the environment's ADAPT_JUDGE_KEY")
    return parts


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _of_status(target: str, error: urllib.error.HTTPError) -> Exception:
    """Return the failure that an HTTP status means."""
    words = " ".join(error.read(400).decode(errors="replace").split())
    message = f"status {error.code} {error.reason}" + (f": {words}" if words else "")
    if error.code in RETRY_STATUS or error.code >= 500:
        return _TryAgain(message, _seconds(error.headers.get("Retry-After")))
    if error.code in (404, 405):
        return _NotFound(message)
    hint = "set ADAPT_JUDGE_KEY" if error.code in (401, 403) else "check --judge-model"
    return EnvironmentFault(f"{target}: the judge refused with {message}; {hint}")


def _seconds(header: str | None) -> float:
    """Return a Retry-After in seconds, 0 when absent or a date."""
    return float(header) if header and header.strip().isdecimal() else 0.0


def _reply_text(target: str, data: bytes) -> str:
    try:
        text = orjson.loads(data)["choices"][0]["message"]["content"]
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError) as error:
        raise EnvironmentFault(
            f"{target}: found {data[:200].decode(errors='replace')!r}, expected a chat completion "
            f"with choices[0].message.content; is this an OpenAI-compatible endpoint?"
        ) from error
    return text if isinstance(text, str) else ""
