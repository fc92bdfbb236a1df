"""The page at /docs: everything on it comes from the server, and it asks for a key where one is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest

from tests.serve.conftest import Live, start, stop
from tests.serve.test_web_pages import BROWSERS, KEY

PATIENCE = 60.0  # seconds for what a browser shows at once on a machine that is not busy
LINKS = ("src", "href", "action", "data-source")


@pytest.fixture(scope="module")
def keyed(assigner_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"browser: {KEY}\n")
    server = start("--artifacts", assigner_dir, "--api-key-file", keys, "--no-engine-process")
    yield server
    assert stop(server) == 0


class Links(HTMLParser):
    """Collects what a page refers to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take the addresses of an element."""
        assert tag != "style"
        if tag == "script":
            assert dict(attrs).get("src"), "the policy allows no script in the page"
        self.found += [value for name, value in attrs if name in LINKS and value is not None]


@pytest.mark.parametrize("name", ["live", "keyed"])
def test_all_comes_from_the_server_and_nothing_from_elsewhere(name: str, request: pytest.FixtureRequest) -> None:
    live: Live = request.getfixturevalue(name)
    page = live.send("GET", "/docs")
    assert page.status == 200
    policy = page.headers["Content-Security-Policy"].split("; ")
    assert policy[0] == "default-src 'none'"
    sources = {source for rule in policy for source in rule.split()[1:]}
    assert sources == {"'none'", "'self'", "data:"}
    links = [link for link in Links(page.body.decode()).found if not link.startswith("data:")]
    assert len(links) == 4
    types = {}
    for link in links:
        assert not urlsplit(link).scheme
        assert not urlsplit(link).netloc
        path = urlsplit(urljoin("http://server/docs", link)).path
        reply = live.send("GET", path)
        types[path] = reply.headers.get_content_type()
        needs_key = name == "keyed" and path == "/openapi.json"
        assert reply.status == (401 if needs_key else 200)
    assert types["/docs/swagger-ui.css"] == "text/css"
    assert {types[f"/docs/{file}.js"] for file in ("docs", "swagger-ui-bundle")} == {"text/javascript"}


def test_what_needs_a_key(keyed: Live) -> None:
    bearer = {"Authorization": f"Bearer {KEY}"}
    assert keyed.send("GET", "/openapi.json").status == 401
    document = keyed.send("GET", "/openapi.json", headers=bearer)
    assert (document.status, document.json["openapi"][:2]) == (200, "3.")
    for path in ("/docs/", "/docs/none", "/docs/../keys.py", "/docs/%2e%2e/docs_page.py", "/redoc"):
        assert keyed.send("GET", path, headers=bearer).status == 404
    assert keyed.send("POST", "/docs/docs.js", headers=bearer).status == 405


class Browser:
    """Chromium, told what to do by its debugging protocol over two pipes."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._waiting, self._count = b"", 0
        self._session: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Network", "Page", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Do one thing and return its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters, **self._session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            self.events.append(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._waiting:
            piece = os.read(self._from, 2**16)
            assert piece, "the browser has ended"
            self._waiting += piece
        text, _, self._waiting = self._waiting.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def run(self, script: str) -> Any:
        """Evaluate an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str) -> None:
        """Evaluate it until it is true."""
        deadline = time.monotonic() + PATIENCE
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < deadline, self.run("document.body.innerText")
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """Click on an element once it is there."""
        self.wait(f"document.querySelector('{selector}')")
        self.run(f"document.querySelector('{selector}').click()")

    def try_out(self) -> str:
        """Send the request of one operation and return the status that the page shows."""
        operation = "[id^=operations-][id$=server_v2_get]"
        for part in (".opblock-summary-control", ".try-out__btn", ".execute"):
            self.click(f"{operation} {part}")
        status = f"{operation} .live-responses-table .response .response-col_status"
        self.wait(f"(document.querySelector('{status}') || {{}}).innerText")
        return str(self.run(f"document.querySelector('{status}').innerText"))

    def check_hosts(self, live: Live) -> None:
        """No other host was asked, and the policy forbade nothing that the page tried."""
        sent = [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]
        assert len(sent) >= 4
        assert all(url.startswith((f"http://{live.url}/", "data:")) for url in sent), sent
        said = [event["params"]["entry"]["text"] for event in self.events if event["method"] == "Log.entryAdded"]
        assert not [text for text in said if "Content Security Policy" in text], said


# The browser reads from descriptor 3 and writes to 4.
MOVE = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(word), fcntl.F_DUPFD, 10) for word in sys.argv[1:3]]
for place, pipe in enumerate(pipes, 3):
    os.dup2(pipe, place)
os.execv(sys.argv[3], sys.argv[3:])
"""


@contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """A browser, killed at the end."""
    (read, to_browser), (from_browser, write) = os.pipe(), os.pipe()
    words = ["--headless", "--no-sandbox", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    command = [sys.executable, "-c", MOVE, str(read), str(write), BROWSERS[0], *words]
    try:
        with subprocess.Popen(command, pass_fds=(read, write), stderr=subprocess.DEVNULL) as process:
            os.close(read)
            os.close(write)
            try:
                yield Browser(to_browser, from_browser)
            finally:
                process.kill()
    finally:
        os.close(to_browser)
        os.close(from_browser)


@pytest.mark.skipif(not BROWSERS, reason="there is no Chromium")
def test_in_a_browser(live: Live, tmp_path: Path) -> None:
    with browsing(tmp_path) as browser:
        browser.call("Page.navigate", url=f"http://{live.url}/docs")
        assert browser.try_out().startswith("200")
        assert browser.run("document.getElementById('key-form').checkVisibility()") is False
        browser.check_hosts(live)


@pytest.mark.skipif(not BROWSERS, reason="there is no Chromium")
def test_in_a_browser_with_a_key(keyed: Live, tmp_path: Path) -> None:
    with browsing(tmp_path) as browser:
        browser.call("Page.navigate", url=f"http://{keyed.url}/docs")
        for key, words in (("", "wants a key"), ("a-wrong-key-of-a-test", "not good for inference")):
            if key:
                browser.run(f"document.getElementById('key').value = '{key}'")
                browser.click("#key-form button")
            browser.wait(f"document.body?.innerText.includes('{words}')")
            assert browser.run("document.getElementById('key-form').checkVisibility()")
        browser.run(f"document.getElementById('key').value = '{KEY}'")
        browser.click("#key-form button")
        assert browser.try_out().startswith("200")
        assert not browser.run("document.getElementById('key-form').checkVisibility()")
        assert not browser.run("document.cookie + JSON.stringify([localStorage, sessionStorage])").count(KEY)
        browser.check_hosts(keyed)
