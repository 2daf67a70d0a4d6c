"""Pictures from the web, read as if the server wished us ill: bounded in size, time, scheme and kind."""

import functools
import http.client
import io
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from vivant import __version__
from vivant.errors import InputError

MAX_DOWNLOAD = 64 * 1024 * 1024
SCHEMES = ("http", "https")
_CHUNK = 64 * 1024
_NOT_PICTURES = ("text/", "application/json", "application/xml", "application/pdf", "audio/", "video/")


def fetch(url: str, *, max_bytes: int = MAX_DOWNLOAD, timeout: float = 20.0, deadline: float = 120.0) -> bytes:
    """Download what should be a picture.

    Args:
        url: an http or https address.
        max_bytes: refuse anything longer, announced or not.
        timeout: seconds that the server may stay silent.
        deadline: seconds for all that servers send, headers and redirects included, so that a trickle does not hold
            us forever.

    Raises:
        InputError: E-IMAGE-SCHEME for another scheme (in the address or in a redirect), E-IMAGE-URL when the
            server cannot be read, E-IMAGE-URL-KIND when it sends text, sound or film, E-IMAGE-URL-SIZE when too long.
    """
    end = time.monotonic() + deadline
    headers = {"User-Agent": f"vivant/{__version__}", "Accept": "image/*"}
    try:
        refuse_scheme(url)
        request = urllib.request.Request(_ascii(url), headers=headers)
        with _opener(end).open(request, timeout=timeout) as response:
            kind = response.headers.get_content_type()
            if response.headers.get("Content-Type") and kind.startswith(_NOT_PICTURES):
                raise InputError(
                    "E-IMAGE-URL-KIND",
                    f"{url} is {kind}, not a picture.",
                    "It may be the page that shows the picture.",
                    "Copy the address of the picture itself.",
                )
            announced = _length(response.headers.get("Content-Length"))
            data = _read(response, url, announced, max_bytes)
    except urllib.error.HTTPError as error:
        error.close()
        raise _unreadable(url, f"The server answered {error.code} {error.reason}.") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "reason", None) or error
        raise _unreadable(url, f"{type(error).__name__}: {reason}.") from error
    if announced is not None and len(data) != announced:
        raise _unreadable(url, f"The server announced {announced} bytes and sent {len(data)}.")
    return data


def refuse_scheme(url: str) -> None:
    """Only http and https are fetched: a file:, ftp: or data: address is never followed."""
    scheme = urllib.parse.urlsplit(url).scheme.lower()
    if scheme not in SCHEMES:
        raise InputError(
            "E-IMAGE-SCHEME",
            f"Pictures are not read from {scheme}: addresses.",
            "Only http and https are.",
            "Pass the path of a local file as a path.",
        )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https only; the base class would follow to ftp: too."""

    def http_error_302(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: http.client.HTTPMessage
    ) -> Any:
        target = headers.get("Location") or headers.get("URI") or ""
        refuse_scheme(urllib.parse.urljoin(req.full_url, target))
        fp.close()  # the base class would read the body of the redirect, however long it is
        return super().http_error_302(req, io.BytesIO(), code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """http and https until a deadline."""

    def __init__(self, end: float):
        super().__init__()
        self._end = end

    def do_open(self, http_class: Any, req: urllib.request.Request, **options: Any) -> http.client.HTTPResponse:
        def connect(host: str, **more: Any) -> http.client.HTTPConnection:
            connection = http_class(host, **more)
            connection.response_class = functools.partial(_Response, end=self._end)
            return connection

        req.timeout = _remaining(self._end, req.timeout)
        return super().do_open(connect, req, **options)


class _Response(http.client.HTTPResponse):
    """A response of which nothing, not even its headers, is read after a deadline."""

    def __init__(self, sock: socket.socket, *args: Any, end: float, **options: Any):
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_Until(end, sock, self.fp.detach()))


class _Until(io.RawIOBase):
    """The bytes of a socket until a deadline."""

    def __init__(self, end: float, sock: socket.socket, raw: io.RawIOBase):
        self._end, self._sock, self._raw = end, sock, raw
        self._silence = sock.gettimeout()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_remaining(self._end, self._silence))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _remaining(end: float, timeout: float | None) -> float:
    """Seconds that the server may stay silent now."""
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("the download took too long")
    return left if timeout is None else min(left, timeout)


def _opener(end: float) -> urllib.request.OpenerDirector:
    """An opener that knows http and https alone; `build_opener` would add ftp:, file: and data:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Handler(end),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _read(response: http.client.HTTPResponse, url: str, announced: int | None, max_bytes: int) -> bytes:
    too_long = InputError(
        "E-IMAGE-URL-SIZE",
        f"{url} is longer than {max_bytes} bytes.",
        "",
        "Download it, check it, and pass the path of the file.",
    )
    if announced is not None and announced > max_bytes:
        raise too_long
    data = bytearray()
    while chunk := response.read(_CHUNK):
        data += chunk
        if len(data) > max_bytes:
            raise too_long
    return bytes(data)


def _length(header: str | None) -> int | None:
    return int(header) if header is not None and header.isdecimal() else None


def _ascii(url: str) -> str:
    """Percent-encode what a browser would: spaces and letters outside ASCII."""
    return urllib.parse.quote(url, safe="%;/?:@&=+$,#[]!'()*~")


def _unreadable(url: str, why: str) -> InputError:
    return InputError(
        "E-IMAGE-URL",
        f"The picture at {url} cannot be fetched.",
        why,
        "Check the address, or download the picture and pass its path.",
    )
