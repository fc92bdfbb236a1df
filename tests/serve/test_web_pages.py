"""What web pages in the browser of a user can do to a server that only the user reaches: nothing, unless allowed."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from tests.exports import exported
from tests.serve.conftest import Live, Reply, binary_rows, loss_inputs, start, stop
from yolo_assigner.serve.errors import ForbiddenError
from yolo_assigner.serve.http.origins import origins_of
from yolo_assigner.serve.settings import read_settings

REGION = "/v2/systemsharedmemory/region/r"
UNREGISTER = "/v2/systemsharedmemory/unregister"
PAGE, NAME, KEY = "https://workers.example", "models.example", "a-key-of-some-length"
BROWSERS = [found for name in ("chromium-headless-shell", "chromium", "google-chrome") if (found := shutil.which(name))]


@pytest.fixture(scope="module")
def shared() -> Iterator[Live]:
    """Without keys on loopback, with shared memory; one page and one name are allowed."""
    allowed = "--cors-origin", PAGE, "--allowed-host", "other.example", "--allowed-host", f"*.{NAME}"
    server = start("--artifacts", exported("loss", "sparse"), "--shared-memory", "yolo-assigner-pages-", *allowed)
    yield server
    assert stop(server) == 0


@pytest.fixture(scope="module")
def keyed(assigner_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY)
    server = start("--artifacts", assigner_dir, "--api-key-file", keys, "--cors-origin", PAGE, "--no-engine-process")
    yield server
    assert stop(server) == 0


def register(live: Live) -> None:
    live.send("POST", UNREGISTER)
    wanted = {"key": "/yolo-assigner-pages-r", "offset": 0, "byte_size": 64}
    path = Path("/dev/shm/yolo-assigner-pages-r")  # noqa: S108 - POSIX shared memory
    path.write_bytes(bytes(64))
    try:
        assert live.send("POST", f"{REGION}/register", wanted).status == 200
    finally:
        path.unlink()


def regions(live: Live) -> int:
    return len(live.send("GET", "/v2/systemsharedmemory/status").json)


def refused(reply: Reply, *words: str) -> None:
    assert reply.status == 403, reply.body
    for word in words:
        assert word in reply.error


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost:8000", "localhost.", "127.0.0.1:8000", "127.0.0.2", "[::1]:8000", "192.168.7.5:80", ""],
)
def test_a_name_that_only_the_server_has(live: Live, host: str) -> None:
    assert live.send("GET", "/v2", headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "x", "localhost.evil.example", "127.0.0.1.evil.example", "evil.localhost",
     "localhost:80:80", "[", "localhost@evil.example", "evil.example/localhost", NAME],
)  # fmt: skip
def test_a_name_that_anybody_may_have(live: Live, host: str) -> None:
    """DNS rebinding: the page's own name leads to the server, so that its Origin and the Host agree."""
    for path in ("/v2", "/docs", "/v2/health/live", "/nothing"):
        refused(live.send("GET", path, headers={"Host": host}), host, "--allowed-host")
    own = {"Host": host, "Origin": f"http://{host}"}
    refused(live.send("POST", "/v2/models/loss/infer", b"{", own), "--allowed-host")


def test_allowed_names(shared: Live) -> None:
    for name in ("a.models.example:80", "B.Models.Example", "other.example"):
        assert shared.send("GET", "/v2", headers={"Host": name}).status == 200
    for name in (NAME, "evilmodels.example", "a.models.example.evil.example", "another.example"):
        refused(shared.send("GET", "/v2", headers={"Host": name}), "--allowed-host")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "", "http://localhost:1", "https://workers.example:8443", f"{PAGE}.evil"]
)
def test_a_foreign_page_unregisters_nothing(shared: Live, origin: str) -> None:
    register(shared)
    for path in (UNREGISTER, f"{REGION}/unregister"):
        # A body of text: browsers send that without asking first.
        headers = {"Origin": origin, "Content-Type": "text/plain"}
        refused(shared.send("POST", path, b"{}", headers), repr(origin), "--cors-origin")
    assert regions(shared) == 1


def test_own_pages(live: Live) -> None:
    """Those of /docs, under each name and behind a proxy that ends TLS."""
    rows, blob = binary_rows(loss_inputs(images=1))
    for host, scheme in ((live.url, "http"), (f"LOCALHOST:{live.port}", "http"), ("127.0.0.1", "https")):
        own = {"Host": host, "Origin": f"{scheme}://{host.lower()}"}
        assert live.infer("loss", {"inputs": rows}, blob, **own).status == 200
        assert live.send("GET", "/openapi.json", headers=own).status == 200
    refused(live.send("GET", "/v2", headers={"Host": "localhost:8000", "Origin": "http://localhost:3000"}))


def test_a_named_page_may_call_and_read(shared: Live) -> None:
    rows, blob = binary_rows(loss_inputs(images=1))
    reply = shared.infer("loss", {"inputs": rows, "parameters": {"binary_data_output": True}}, blob, Origin=PAGE)
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == PAGE
    assert "Origin" in reply.headers["vary"]
    shown = {name.strip().lower() for name in reply.headers["access-control-expose-headers"].split(",")}
    assert {"inference-header-content-length", "x-request-id"} <= shown
    assert reply.headers["inference-header-content-length"]
    failed = shared.send("POST", "/v2/models/loss/infer", b"{", {"Origin": PAGE})
    assert (failed.status, failed.headers["access-control-allow-origin"]) == (400, PAGE)
    assert "access-control-allow-origin" not in shared.send("GET", "/v2").headers
    refused(shared.send("GET", "/v2", headers={"Origin": PAGE, "Host": "evil.example"}), "--allowed-host")


def preflight(live: Live, origin: str, headers: str, method: str = "POST") -> Reply:
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    private = {"Access-Control-Request-Private-Network": "true"}
    return live.send("OPTIONS", "/v2/models/loss/infer", headers={"Origin": origin, **asked, **private})


@pytest.mark.parametrize("name", ["shared", "keyed"])
def test_browsers_may_ask_first(name: str, request: pytest.FixtureRequest) -> None:
    """They send no key when they ask."""
    live: Live = request.getfixturevalue(name)
    wanted = "authorization,content-encoding,content-type,inference-header-content-length"
    reply = preflight(live, PAGE, wanted)
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == PAGE
    assert set(wanted.split(",")) <= set(reply.headers["access-control-allow-headers"].lower().split(", "))
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert reply.headers["access-control-allow-private-network"] == "true"
    refused(preflight(live, "https://evil.example", wanted), "--cors-origin")
    for other in (preflight(live, PAGE, "x-other"), preflight(live, PAGE, wanted, "DELETE")):
        assert (other.status, "Content-Encoding" in other.error) == (400, True)


def test_with_keys_names_are_free_and_pages_are_not(keyed: Live) -> None:
    bearer = {"Authorization": f"Bearer {KEY}"}
    for host in ("yolo-assigner.models.svc.cluster.local:8000", "evil.example"):
        assert keyed.send("GET", "/v2", headers=bearer | {"Host": host}).status == 200
    refused(keyed.send("GET", "/v2", headers=bearer | {"Origin": "https://evil.example"}), "--cors-origin")
    assert keyed.send("GET", "/v2", headers=bearer | {"Origin": PAGE}).status == 200
    without = keyed.send("GET", "/v2", headers={"Origin": PAGE})
    assert (without.status, without.headers["access-control-allow-origin"]) == (401, PAGE)


@pytest.mark.parametrize(
    ("words", "keys", "good", "bad"),
    [
        ("--host ::1", False, ["[::1]:8000", "localhost"], ["x", "evil.example"]),
        ("--host 127.0.0.5", False, ["127.0.0.5"], ["x"]),
        ("--host 0.0.0.0 --insecure", False, ["10.0.0.7:8000", "yolo-assigner:8000", "localhost"], ["evil.example"]),
        ("--host gpu.lan --insecure", False, ["gpu.lan", "GPU.lan:80"], ["evil.lan"]),
        ("--host 0.0.0.0", True, ["evil.example", "yolo-assigner:8000"], []),
        ("--host 0.0.0.0 --allowed-host a.example", True, ["a.example", "10.0.0.7"], ["evil.example"]),
        ("--insecure --allowed-host *", False, ["a.example", "x"], ["x:y"]),
    ],
)
def test_names_by_address_and_keys(words: str, keys: bool, good: list[str], bad: list[str]) -> None:
    environment = {"YOLO_ASSIGNER_API_KEYS": KEY} if keys else {}
    settings = read_settings(["--artifacts", "a", *words.split()], environment).settings
    origins = origins_of(settings, has_keys=keys)
    for host in good:
        origins.allow(Headers({"host": host}))
    for host in bad:
        with pytest.raises(ForbiddenError, match="--allowed-host"):
            origins.allow(Headers({"host": host}))


@pytest.mark.parametrize(
    ("words", "message"),
    [("--allowed-host=https://a.example", "without scheme and port"), ("--allowed-host=a:80", "without scheme and"),
     ("--allowed-host=a,b", "is no host name"), ("--cors-origin=a.example", "https://example.com:8443"),
     ("--cors-origin=https://a.example/", "is no origin"), ("--cors-origin=*", "is no origin"),
     ("--cors-origin=null", "is no origin")],
)  # fmt: skip
def test_names_and_origins_that_no_browser_sends(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"{words[2:9].replace('-', '_')}.*{message}"):
        read_settings(["--artifacts", "a", words], {})


def test_several_of_each() -> None:
    environment = {"YOLO_ASSIGNER_CORS_ORIGIN": "https://a.example,http://[::1]:3000"}
    words = ["--artifacts", "a", "--allowed-host", "a.example", "--allowed-host", "B.example"]
    settings = read_settings(words, environment).settings
    assert settings.allowed_host == ("a.example", "b.example")
    assert settings.cors_origin == ("https://a.example", "http://[::1]:3000")


@contextmanager
def page(script: str) -> Iterator[str]:
    """A web page of another origin that runs a script and shows what it returns; gives its origin."""
    text = f"<pre id=out></pre><script>(async()=>{{{script}}})().then(r=>out.textContent=JSON.stringify(r))</script>"

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def browse(url: str, profile: Path, *options: str) -> str:
    """What a browser shows once the page is quiet."""
    command = [BROWSERS[0], "--headless", "--no-sandbox", f"--user-data-dir={profile}", *options]
    command += ["--virtual-time-budget=20000", "--dump-dom", url]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.skipif(not BROWSERS, reason="there is no Chromium")
def test_in_a_browser(assigner_dir: Path, tmp_path: Path) -> None:
    script = """
        const server = location.hash.slice(1), said = [];
        await fetch(server + "UNREGISTER", {method: "POST", mode: "no-cors"});
        try {
            const reply = await fetch(server + "/v2/models/assigner/infer", {
                method: "POST", body: "{",
                headers: {"Inference-Header-Content-Length": "1", "Authorization": "Bearer x"},
            });
            return [reply.status, await reply.json(), reply.headers.has("x-request-id")];
        } catch (error) { return [String(error)]; }
    """.replace("UNREGISTER", UNREGISTER)
    with page(script) as origin:
        for words, left in (([], 1), (["--cors-origin", origin], 0)):
            live = start("--artifacts", assigner_dir, "--shared-memory", "yolo-assigner-pages-", *words)
            try:
                register(live)
                text = browse(f"{origin}/#http://{live.url}", tmp_path / str(left))
                result = json.loads(text.partition('<pre id="out">')[2].partition("</pre>")[0])
                assert regions(live) == left, result
                assert (result[0] == 400 and result[2]) if words else "Failed to fetch" in result[0], result
                if not words:
                    mapped = "--host-resolver-rules=MAP evil.example 127.0.0.1"
                    rebound = browse(f"http://evil.example:{live.port}/v2", tmp_path / "rebound", mapped)
                    assert "--allowed-host" in rebound
                    assert "extensions" in browse(f"http://localhost:{live.port}/v2", tmp_path / "own")
            finally:
                assert stop(live) == 0
