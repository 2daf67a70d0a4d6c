"""Pictures from the web: read where they are pictures, and bounded whatever the server does."""

import io
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image
from skimage import data

from vivant.errors import InputError
from vivant.media import fetch
from vivant.media.still import read_still

PIXELS = np.ascontiguousarray(data.astronaut()[40:64, 200:240])
CHUNK, MANY = 64 * 1024, 500


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()


def pixels(url: str) -> np.ndarray:
    return np.asarray(read_still(url).image)


def refused(url: str, code: str) -> str:
    with pytest.raises(InputError) as caught:
        read_still(url)
    assert caught.value.code == code
    return str(caught.value)


@pytest.fixture
def web(monkeypatch):
    """A small and ill-behaved web server on this machine."""
    picture = png()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.split("?")[0]
            if path in ("/cat.png", "/with%20space/%C3%A9.png"):
                self._send(picture)
            elif path == "/page":
                self._send(b"<html>", "text/html; charset=utf-8")
            elif path == "/liar":
                self._send(b"<html>", "image/png")
            elif path == "/long":
                self._send(picture, announced=10**12)
            elif path == "/cut":
                self._send(picture[:100], announced=len(picture))
            elif path == "/endless":
                self._send(b"x" * 300_000, announced=None)
            elif path == "/slow":
                threading.Event().wait(20)
            elif path == "/trickle":
                self.send_response(200)
                self.end_headers()
                self._trickle()
            elif path == "/trickling-header":
                self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Long: ")
                self._trickle()
            elif path == "/trickling-redirect":
                self.wfile.write(b"HTTP/1.0 302 Found\r\nLocation: /cat.png")
                self._trickle()
            elif path == "/round":
                threading.Event().wait(0.2)
                self._redirect(f"/round?{time.monotonic()}")
            elif path == "/wide":
                self._redirect("/cat.png", body=True)
            elif path.startswith("/to/"):
                self._redirect(path[4:].replace("~", ":"))
            else:
                self.send_error(404)

        def _trickle(self):
            for _ in range(30):
                self.wfile.write(b"x")
                threading.Event().wait(0.1)

        def _redirect(self, target, body=False):
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()
            for _ in range(MANY if body else 0):
                self.wfile.write(bytes(CHUNK))
                web.sent += CHUNK

        def _send(self, body, kind="image/png", announced=-1):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            if announced is not None:
                self.send_header("Content-Length", str(len(body) if announced < 0 else announced))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format, *_):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        web.daemon_threads, web.sent = True, 0
        web.block_on_close = False
        web.handle_error = lambda *_: None  # a client that hangs up is what some tests are about
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield web
        web.shutdown()


@pytest.fixture
def server(web):
    """Its address."""
    return f"http://127.0.0.1:{web.server_port}"


def test_a_picture_from_an_address(server):
    assert (pixels(f"{server}/cat.png?download=true") == PIXELS).all()
    assert (pixels(f"{server}/to//cat.png") == PIXELS).all()
    assert (pixels(f"{server}/with space/é.png") == PIXELS).all()


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://host/a.png", "data://x,y", "gopher://a/b.png"])
def test_other_schemes_are_refused(url):
    refused(url, "E-IMAGE-SCHEME")


@pytest.mark.parametrize("target", ["file~///etc/hostname", "ftp~//host/a.png", "data~image/png;base64,AA"])
def test_redirects_to_other_schemes_are_refused(server, target):
    refused(f"{server}/to/{target}", "E-IMAGE-SCHEME")


def test_pages_and_lies_are_refused(server):
    refused(f"{server}/page", "E-IMAGE-URL-KIND")
    refused(f"{server}/liar", "E-IMAGE-FORMAT")


def test_addresses_that_fail(server):
    assert "404" in refused(f"{server}/none.png", "E-IMAGE-URL")
    refused("http://127.0.0.1:1/cat.png", "E-IMAGE-URL")
    refused(f"{server}/to/http~//127.0.0.1~1/", "E-IMAGE-URL")
    refused("http://[broken/cat.png", "E-IMAGE-URL")
    refused(f"{server}/cut", "E-IMAGE-URL")


def test_downloads_are_bounded(server):
    refused(f"{server}/long", "E-IMAGE-URL-SIZE")
    with pytest.raises(InputError) as caught:
        fetch.fetch(f"{server}/endless", max_bytes=200_000)
    assert caught.value.code == "E-IMAGE-URL-SIZE"
    assert len(fetch.fetch(f"{server}/endless", max_bytes=300_000)) == 300_000


SLOW = ["/slow", "/trickle", "/trickling-header", "/trickling-redirect", "/round"]


@pytest.mark.parametrize("path", SLOW)
def test_a_silent_or_slow_server_does_not_hold_us(server, path):
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        fetch.fetch(server + path, timeout=0.3, deadline=0.5)
    assert time.monotonic() - start < 1.5
    assert caught.value.code == "E-IMAGE-URL"


def test_the_body_of_a_redirect_is_not_read(web, server):
    assert (pixels(f"{server}/wide") == PIXELS).all()
    assert web.sent < MANY * CHUNK / 2
