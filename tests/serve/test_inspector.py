"""The inspector at the root of the service, in a real browser, with the sample that comes with it."""

from __future__ import annotations

import base64
import csv
import json
import shutil
import struct
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import numpy as np
import pytest
from PIL import Image

from examples.dataset import FOLDER, SAMPLE
from examples.inspector_sample import explain_sample
from tests.exports import exported
from tests.serve.conftest import Live, start, stop
from tests.serve.test_docs_page import Browser, Links, browsing
from tests.serve.test_web_pages import BROWSERS, KEY
from yolo_assigner.audit.pictures import fit, read_yolo_labels
from yolo_assigner.audit.pictures import place as place_boxes
from yolo_assigner.serve.client import AssignerClient
from yolo_assigner.serve.explain.report import STATIC

needs_browser = pytest.mark.skipif(not BROWSERS, reason="there is no Chromium")
DESKTOP, PHONE, LARGE = (1440, 900), (390, 844), (3840, 2160)
FAULTY = [37, 38, 39]  # slots of the sample's added labels that get nothing
CELLS = "[...document.querySelectorAll('#truth-rows tr')].map((row) => [...row.cells].map((cell) => cell.innerText))"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A service with keys and a model of kind explain and one of kind detector_explain."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"browser: {KEY}\n")
    models = tmp_path_factory.mktemp("models")
    for kind in ("explain", "detector_explain"):
        shutil.copytree(exported(kind, "sparse"), models, dirs_exist_ok=True)
    live = start("--artifacts", models, "--api-key-file", keys)
    yield live
    assert stop(live) == 0


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def sample() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((STATIC / "sample.json").read_text())
    return found


def visit(
    browser: Browser, server: Live, state: str = "", size: tuple[int, int] = DESKTOP, theme: str = "light"
) -> None:
    """Open the page anew."""
    width, height = size
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    browser.call("Page.navigate", url="about:blank")
    browser.events.clear()
    browser.call("Page.navigate", url=f"http://{server.url}/{state}")
    browser.wait("document.readyState === 'complete'")
    if "open=sample" in state:
        browser.wait("document.querySelectorAll('#truth-rows tr').length")


def press(browser: Browser, *keys: str, shift: bool = False) -> None:
    """Press keys, as a keyboard does."""
    codes = {"Tab": 9, "Enter": 13, "Escape": 27, "PageUp": 33, "PageDown": 34, "ArrowLeft": 37, "ArrowUp": 38}
    codes |= {"ArrowRight": 39, "ArrowDown": 40, " ": 32, "Home": 36, "End": 35}
    for key in keys:
        text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        code = codes.get(key, ord(key[0].upper()))
        given = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        browser.call("Input.dispatchKeyEvent", type="keyDown", **given, **text)
        browser.call("Input.dispatchKeyEvent", type="keyUp", **given)


def move_mouse(browser: Browser, x: float, y: float, click: bool = False) -> None:
    """Move the mouse to a point of the picture, in pixels of the picture, and click if asked to."""
    where = (
        "(() => {const box = document.getElementById('canvas').getBoundingClientRect();"
        "const size = Math.min(box.width, box.height) / 416;"
        f"return [box.x + box.width / 2 + ({x} - 208) * size, box.y + box.height / 2 + ({y} - 208) * size]}})()"
    )
    left, top = browser.run(where)
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=left, y=top)
    for kind in ("mousePressed", "mouseReleased") if click else ():
        browser.call("Input.dispatchMouseEvent", type=kind, x=left, y=top, button="left", clickCount=1)


def settle(browser: Browser) -> None:
    """Wait until the lists follow the sliders."""
    browser.wait("document.getElementById('inspector').getAttribute('aria-busy') === 'false'")


def text_of(browser: Browser, selector: str) -> str:
    return str(browser.run(f"document.querySelector('{selector}').innerText"))


def check_quiet(browser: Browser, server: Live) -> None:
    """No other host was asked, nothing was forbidden, no script failed."""
    browser.check_hosts(server)
    failed = [event for event in browser.events if event["method"] == "Runtime.exceptionThrown"]
    assert not failed, failed


def points(levels: list[dict[str, Any]], anchor: int) -> tuple[float, float]:
    """Centre of an anchor, pixels."""
    level = [level for level in levels if level["first_anchor"] <= anchor][-1]
    row, column = divmod(anchor - level["first_anchor"], level["width"])
    return (column + 0.5) * level["stride"], (row + 0.5) * level["stride"]


def test_the_page_and_its_files_are_open_and_refer_to_nothing_else(server: Live) -> None:
    page = server.send("GET", "/")
    assert (page.status, page.headers.get_content_type()) == (200, "text/html")
    policy = page.headers["Content-Security-Policy"]
    assert {source for rule in policy.split("; ") for source in rule.split()[1:]} == {"'none'", "'self'", "data:"}
    links = [link for link in Links(page.body.decode()).found if not link.startswith(("data:", "#"))]
    assert links == ["inspector/style.css", "inspector/page.js"]
    for path in (*links, *(f"inspector/{name.name}" for name in STATIC.iterdir())):
        assert server.send("GET", urlsplit(urljoin("http://server/", path)).path).status == 200
    for path in ("/inspector/", "/inspector/none.js", "/inspector/../docs.html", "/inspector/%2e%2e/docs.html"):
        assert server.send("GET", path).status == 404
    assert server.send("POST", "/v1/explain", {}).status == 401


def test_the_sample_is_what_the_library_explains(sample: dict[str, Any]) -> None:
    made = json.loads(json.dumps(explain_sample()))
    for name in ("title", "names", "pictures"):
        assert sample[name] == made[name]
    # Another machine may round the last digit differently.
    assert sample["document"].keys() == made["document"].keys()
    for stored, found in zip(sample["document"]["images"], made["document"]["images"], strict=True):
        assert [truth["reason"] for truth in stored["ground_truths"]] == [t["reason"] for t in found["ground_truths"]]
        for name, values in stored["pairs"].items():
            np.testing.assert_allclose(found["pairs"][name], values, rtol=1e-3, atol=1e-7)
    for name in sample["pictures"]:
        assert (STATIC / name).stat().st_size < 100_000


@needs_browser
def test_what_got_nothing_comes_first(browser: Browser, server: Live, sample: dict[str, Any]) -> None:
    visit(browser, server)
    browser.click("#start-sample")
    browser.wait("document.querySelectorAll('#truth-rows tr').length")
    truths = sample["document"]["images"][0]["ground_truths"]
    assert "38 of 41" in text_of(browser, "#summary-text")
    cards = browser.run("[...document.querySelectorAll('#nothing-list button')].map((card) => card.innerText)")
    for slot, card in zip(FAULTY, cards, strict=True):
        assert f"Ground truth {slot}:" in card
        assert truths[slot]["sentence"] in card
        assert truths[slot]["remedy"] in card
    rows = browser.run(CELLS)
    assert [int(row[0]) for row in rows[:3]] == FAULTY
    assert len(rows) == len(truths)
    for row in rows:
        truth = truths[int(row[0])]
        assert [int(word) for word in row[4:8]] == [
            sum(truth["num_candidates"]), truth["num_chosen"], truth["num_lost"], truth["num_assigned"]
        ]  # fmt: skip
        shown = [float(word) for word in (row[8], row[9], row[10], row[11])]
        wanted = [truth["weight_sum"], truth["best_iou"], truth["best_score"], truth["loss"]["total"]]
        np.testing.assert_allclose(shown, wanted, rtol=0.06)
    check_quiet(browser, server)


@needs_browser
def test_hovering_and_clicking_an_anchor(browser: Browser, server: Live, sample: dict[str, Any]) -> None:
    visit(browser, server, "#open=sample")
    document = sample["document"]
    pairs = document["images"][0]["pairs"]
    lost = document["outcomes"].index("lost_to")
    # A candidate that ground truth 39 chose and another took.
    (place, *_) = [i for i, outcome in enumerate(pairs["outcome"]) if outcome == lost and pairs["slot"][i] == 39]
    anchor, rival = pairs["anchor"][place], pairs["lost_to"][place]
    move_mouse(browser, *points(document["levels"], anchor))
    tip = text_of(browser, "#tip")
    assert f"Anchor {anchor}, level 0 (stride 8)" in tip
    assert f"Ground truth {rival}\nThe anchor learns this ground truth: it overlaps more" in tip
    assert "than ground truth 39, which also chose the anchor." in tip
    assert f"Chosen, but ground truth {rival} overlaps more with the box predicted here." in tip
    assert f"rank {pairs['rank'][place]}" in tip
    move_mouse(browser, *points(document["levels"], anchor), click=True)
    assert text_of(browser, "#selection-heading") == f"Anchor {anchor}"
    assert f"Candidates of ground truth {rival}" in text_of(browser, "#candidates-heading")
    assert f"Anchor {anchor}" in str(browser.run("document.getElementById('status').textContent"))
    # The link carries it.
    browser.wait(f"location.hash.includes('truth={rival}&anchor={anchor}')")
    state = browser.run("location.hash")
    visit(browser, server, state)
    assert text_of(browser, "#selection-heading") == f"Anchor {anchor}"


@needs_browser
def test_by_keyboard_alone(browser: Browser, server: Live, sample: dict[str, Any]) -> None:
    visit(browser, server)
    for _ in range(12):
        if browser.run("document.activeElement.id") == "start-sample":
            break
        press(browser, "Tab")
    press(browser, "Enter")
    browser.wait("document.querySelectorAll('#truth-rows tr').length")
    for _ in range(25):
        if browser.run("document.activeElement.id") == "canvas":
            break
        press(browser, "Tab")
    assert browser.run("document.activeElement.id") == "canvas"
    for slot in FAULTY:
        press(browser, "n")
        assert text_of(browser, "#selection-heading") == f"Ground truth {slot}"
        said = browser.run("document.getElementById('status').textContent")
        assert sample["document"]["images"][0]["ground_truths"][slot]["sentence"] in said
    press(browser, "ArrowRight")  # the best candidate, then its neighbour
    first = int(text_of(browser, "#selection-heading").split()[1])
    press(browser, "ArrowRight")
    assert text_of(browser, "#selection-heading") == f"Anchor {first + 1}"
    press(browser, "ArrowDown")
    assert text_of(browser, "#selection-heading") == f"Anchor {first + 1 + 52}"
    press(browser, "ArrowUp", "PageUp")
    x, y = points(sample["document"]["levels"], first + 1)
    above = 2704 + int(y // 16) * 26 + int(x // 16)
    assert text_of(browser, "#selection-heading") == f"Anchor {above}"
    press(browser, "PageDown", "Escape")
    assert browser.run("document.getElementById('selection').hidden")
    press(browser, "+", "+")
    press(browser, "ArrowLeft", shift=True)
    browser.wait("location.hash.includes('view=')")
    press(browser, "0")
    browser.wait("!location.hash.includes('view=')")


@needs_browser
def test_sliders_assign_anew(browser: Browser, server: Live) -> None:
    visit(browser, server, "#open=sample")
    browser.run("document.getElementById('side').focus()")
    press(browser, *["ArrowRight"] * 7)  # the card of ground truth 37 says that 7 pixels help
    assert text_of(browser, "#side-value") == "7"
    assert "39 of 41" in text_of(browser, "#summary-text")
    assert "1 more learned (37)" in text_of(browser, "#change")
    browser.wait("location.hash.includes('side=7')")
    browser.run("document.getElementById('one-to-one').focus()")
    press(browser, " ")
    settle(browser)
    rows = browser.run(CELLS)
    assert all(int(row[7]) <= 1 for row in rows)
    browser.click("#reset")
    assert "38 of 41" in text_of(browser, "#summary-text")
    browser.run("document.getElementById('topk').focus()")
    press(browser, "Home")
    settle(browser)
    assert all(int(row[5]) <= 1 for row in browser.run(CELLS))
    visit(browser, server, "#open=sample&topk=1&side=7&hidden=0,2")
    assert text_of(browser, "#topk-value") + text_of(browser, "#side-value") == "17"
    assert browser.run("[...document.querySelectorAll('#levels input')].map((box) => box.checked)") == [
        False,
        True,
        False,
    ]
    visit(browser, server, "#open=sample&sort=area-")
    wanted = browser.run(CELLS)
    assert int(wanted[0][4]) > 10 * int(wanted[-1][4])  # the largest box has most candidates
    visit(browser, server, "#open=sample")
    for falling in ("", "-"):
        browser.run("document.querySelectorAll('#truth-head button')[2].click()")
        browser.wait(f"location.hash.endsWith('sort=area{falling}')")
    assert browser.run(CELLS) == wanted
    visit(browser, server, "#open=sample&topk=none&truth=4000&view=1,a&image=99&theme=loud")
    assert text_of(browser, "#topk-value") == "10"
    check_quiet(browser, server)


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP, LARGE], ids=str)
def test_themes_and_widths(size: tuple[int, int], theme: str, browser: Browser, server: Live) -> None:
    axe = axe_script()
    for state in ("", "#open=sample&truth=39&anchor=1230&side=12"):
        visit(browser, server, state, size, theme)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        ground = browser.run("getComputedStyle(document.body).backgroundColor")
        light = sum(map(int, ground.removeprefix("rgb(").rstrip(")").split(", "))) > 384
        assert light == (theme == "light")
        if axe is not None:
            browser.run(axe + ";0")
            found = browser.run("axe.run().then((result) => result.violations.map(({id, nodes}) => "
                                "[id, ...nodes.map((node) => node.failureSummary + node.html)]))")  # fmt: skip
            assert found == []
    browser.run("document.getElementById('theme').focus()")
    press(browser, "l" if theme == "dark" else "d")
    assert browser.run("document.documentElement.dataset.theme") == ("light" if theme == "dark" else "dark")
    if axe is None:
        pytest.skip("axe-core-python is not installed: accessibility is not checked")


def axe_script() -> str | None:
    """The checker of accessibility; None: it is not installed."""
    spec = find_spec("axe_core_python")
    if spec is None or spec.origin is None:
        return None
    return (Path(spec.origin).parent / "axe.min.js").read_text(encoding="utf-8")


@needs_browser
def test_saved_table_and_picture(browser: Browser, server: Live, sample: dict[str, Any], tmp_path: Path) -> None:
    visit(browser, server, "#open=sample&truth=5")
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.click("#save-table")
    with saved(tmp_path / "SOAP_061-assignment.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    truths = sample["document"]["images"][0]["ground_truths"]
    for row, truth in zip(rows, truths, strict=True):
        assert (row["reason"], row["sentence"], row["remedy"]) == (truth["reason"], truth["sentence"], truth["remedy"])
        assert row["flags"].split() == [flag["flag"] for flag in truth["flags"]]
        assert [float(row[side]) for side in ("x1", "y1", "x2", "y2")] == truth["bbox"]
        assert float(row["weight_sum"]) == pytest.approx(truth["weight_sum"], rel=1e-4)
    browser.click("#save-picture")
    content = saved(tmp_path / "SOAP_061-assignment.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    shown = browser.run("[document.getElementById('canvas').width, document.getElementById('canvas').height]")
    assert list(struct.unpack(">II", content[16:24])) == shown


def saved(path: Path) -> Path:
    """Wait for a download."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return path


@needs_browser
@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_dropped_files_are_explained_by_the_service(
    ending: str, browser: Browser, server: Live, tmp_path: Path
) -> None:
    request = write_request(tmp_path / f"request.{ending}")
    visit(browser, server)
    drop(browser, request, FOLDER / "OSBS_029.png")
    give_key(browser)
    assert text_of(browser, "#alert") == ""
    shown = browser.run(CELLS)
    body = browser.run(f"(async () => {{{ASK}}})()".replace("KEY", KEY))
    document = server.send("POST", "/v1/explain", json.loads(body), {"Authorization": f"Bearer {KEY}"}).json
    truths = document["images"][0]["ground_truths"]
    assert sorted(int(row[0]) for row in shown) == [truth["slot"] for truth in truths]
    for row in shown:
        assert int(row[7]) == truths[int(row[0])]["num_assigned"]
    assert text_of(browser, "#source") == f"request.{ending} · model explain"
    check_quiet(browser, server)


def give_key(browser: Browser) -> None:
    """Answer the page's question for a key, and wait until the request is explained."""
    browser.wait("document.getElementById('key-form').checkVisibility()")
    assert "wants a key" in text_of(browser, "#alert")
    browser.run(f"document.getElementById('key').value = '{KEY}'")
    browser.click("#key-form button")
    browser.wait("document.querySelectorAll('#truth-rows tr').length")
    assert not browser.run("document.getElementById('key-form').checkVisibility()")


ASK = """
const {explainRequest, readTensors} = await import("/inspector/request.js");
return JSON.stringify(explainRequest(await readTensors(document.getElementById("files").files[0])));
"""


def write_request(path: Path) -> Path:
    """A request for the exported model of 3 classes, its first map of another type than the others."""
    random = np.random.default_rng(5)
    maps: dict[str, Any] = {
        f"feat_{level}": random.standard_normal((1, 67, 8 >> level, 8 >> level), np.float32) for level in range(3)
    }
    maps["feat_0"] = maps["feat_0"].astype(np.float16)
    truth: dict[str, Any] = {
        "batch_idx": np.zeros(3, np.int64),
        "cls": np.array([0, 2, 1], np.float32),
        "bboxes": np.array([[0.5, 0.5, 0.4, 0.6], [0.3, 0.3, 0.3, 0.2], [0.15625, 0.15625, 0.02, 0.02]], np.float64),
    }
    if path.suffix == ".npz":
        np.savez_compressed(path, **maps, **truth, names=np.array(["OSBS_029"]))
    else:
        from safetensors.numpy import save_file

        save_file(maps | truth, path)
    return path


DROP = """
const moved = new DataTransfer();
for (const file of document.getElementById("files").files) moved.items.add(file);
document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: moved, bubbles: true, cancelable: true}));
"""


def drop(browser: Browser, *files: Path) -> None:
    """Drop files on the page; the input that chooses files brings them from the disk, and is kept from opening them."""
    node = browser.call("Runtime.evaluate", expression="document.getElementById('files')")["result"]["objectId"]
    browser.run(
        "document.getElementById('files').addEventListener('change', (e) => e.stopImmediatePropagation(), true)"
    )
    browser.call("DOM.setFileInputFiles", files=[str(file) for file in files], objectId=node)
    browser.wait(f"document.getElementById('files').files.length === {len(files)}")
    browser.run(f"(() => {{{DROP}}})()")


LABELS = "0 0.5 0.5 0.25 0.5\n\n2 0.1 0.25 0.2 0.25 0.15 0.75\n1 0.30 0.4 0.02 0.01\n"


def write_pictures(folder: Path) -> list[Path]:
    """Two pictures of noise, one wide and one high, with their labels."""
    files = []
    for name, size in (("wide", (96, 64)), ("high", (32, 96))):
        noise = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(LABELS)
        files += [folder / f"{name}.png", folder / f"{name}.txt"]
    return files


REQUEST_OF_PICTURES = """
const {pictureRequest} = await import("/inspector/request.js");
const files = [...document.getElementById("files").files];
const labels = files.filter(({name}) => name.endsWith(".txt"));
return JSON.stringify((await pictureRequest(files.filter((file) => !labels.includes(file)), labels, 96)).body);
"""


def test_the_client_asks_why_a_detector_learns_the_objects_of_pictures(server: Live) -> None:
    images = np.random.default_rng(0).uniform(0, 1, (2, 3, 64, 96)).astype(np.float32)
    bboxes = [[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.25, 0.25], [0.5, 0.5, 0.001, 0.001]]
    batch = {"batch_idx": [0, 1, 1], "cls": [0, 1, 2], "bboxes": bboxes}
    packed = {"shape": list(images.shape), "dtype": "float32", "base64": base64.b64encode(images.tobytes()).decode()}
    body = {"images": packed, "batch": batch, "pairs": False}
    document = server.send("POST", "/v1/explain", body, {"Authorization": f"Bearer {KEY}"}).json
    with AssignerClient(server.url, key=KEY) as client:
        found = client.detector_explain(images, batch)
    assert float(found.loss) == pytest.approx(document["loss"]["total"], rel=1e-5)
    assert found.num_assigned.sum() > 0
    for image, described in enumerate(document["images"]):
        counts = [truth["num_assigned"] for truth in described["ground_truths"]]
        assert found.num_assigned[image, : len(counts)].tolist() == counts


@needs_browser
def test_dropped_pictures_and_their_labels(browser: Browser, server: Live, tmp_path: Path) -> None:
    """Pictures that need no scaling become the detector's input as `yolo-assigner audit` makes it."""
    files = write_pictures(tmp_path)
    visit(browser, server, "#input=96")
    drop(browser, *files)
    give_key(browser)
    assert browser.run("[...document.querySelectorAll('#image option')].map((option) => option.text)") == [
        "high.png", "wide.png",
    ]  # fmt: skip
    body = json.loads(browser.run(f"(async () => {{{REQUEST_OF_PICTURES}}})()"))
    images = np.frombuffer(base64.b64decode(body["images"]["base64"]), "<f4").reshape(body["images"]["shape"])
    for place, name in enumerate(("high", "wide")):
        image, frame = fit(Image.open(tmp_path / f"{name}.png"), 96)
        np.testing.assert_array_equal(images[place], image)
        labels = read_yolo_labels(tmp_path / f"{name}.txt", 3)
        rows = slice(3 * place, 3 * place + 3)
        placed = place_boxes(labels.boxes, frame).numpy()
        np.testing.assert_allclose(body["batch"]["bboxes"][rows], placed, rtol=1e-6)
        assert body["batch"]["cls"][rows] == labels.cls.tolist()
    assert body["batch"]["batch_idx"] == [0, 0, 0, 1, 1, 1]
    document = server.send("POST", "/v1/explain", body, {"Authorization": f"Bearer {KEY}"}).json
    assert document["model"] == "detector_explain"
    truths = document["images"][0]["ground_truths"]
    for row in browser.run(CELLS):
        assert int(row[7]) == truths[int(row[0])]["num_assigned"]
    # A larger input is another request, and the link carries it.
    browser.run("document.getElementById('input-side').value = '192'")
    browser.run("document.getElementById('input-side').dispatchEvent(new Event('change'))")
    browser.wait("document.getElementById('truth-rows').innerText.includes('16 × 96')")  # of 64 x 192
    browser.wait("location.hash.includes('input=192')")
    check_quiet(browser, server)


@needs_browser
def test_pictures_that_cannot_be_used(browser: Browser, server: Live, tmp_path: Path) -> None:
    visit(browser, server)
    picture, labels, *others = write_pictures(tmp_path)
    broken, words, points = (tmp_path / name for name in ("broken.png", "words.txt", "points.txt"))
    broken.write_bytes(picture.read_bytes()[:60])
    words.write_text("0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 wide\n")
    points.write_text("0 0.5 0.5 0.2\n")
    for files, text in (
        ([picture], "wide.png has no labels; give wide.txt with it, empty if it shows no object"),
        ([labels], "wide.txt has no picture; give wide.jpg or .png with it"),
        ([picture, labels, others[0]], "high.png has no labels"),
        ([broken, labels], "broken.png cannot be read as a picture"),
        ([picture, words], "words.txt line 2 has something that is no number"),
        ([picture, points], "points.txt line 1 has 4 numbers; give class, centre x, centre y, width, height"),
        ([picture, labels, SAMPLE], "give one request file"),
    ):
        drop(browser, *files)
        browser.wait(f"document.getElementById('alert').innerText.includes('{text}')")
    assert browser.run("document.getElementById('inspector').hidden")


@needs_browser
def test_files_that_cannot_be_used(browser: Browser, server: Live, tmp_path: Path) -> None:
    visit(browser, server)
    (tmp_path / "damaged.npz").write_bytes(SAMPLE.read_bytes()[:5000])
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "notes.pdf").write_text("")
    np.savez(tmp_path / "boxes.npz", cls=np.zeros(1))
    for name, words in (
        ("damaged.npz", "it has no list of its arrays"),
        ("other.json", "this is no explanation document"),
        ("notes.pdf", "notes.pdf is no request file; give .npz or .safetensors"),
        ("boxes.npz", "the file has cls, but no feat_0"),
    ):
        drop(browser, tmp_path / name)
        browser.wait(f"document.getElementById('alert').innerText.includes('{words}')")
    assert browser.run("document.getElementById('inspector').hidden")
    check_quiet(browser, server)
