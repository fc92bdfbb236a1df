"""``yolo-assigner explain``: a page with its data inside, by torch and by an exported model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from examples.dataset import FOLDER, NAMES, SAMPLE
from tests.exports import exported
from tests.serve.test_docs_page import browsing
from tests.serve.test_web_pages import BROWSERS
from yolo_assigner.serve.explain.cli import main
from yolo_assigner.serve.explain.report import Photo, match_photos

ROOT = Path(__file__).parents[2]
EMBEDDED = re.compile(r'<script type="application/json" id="explanation">(.*?)</script>', re.DOTALL)
# Programs that were not asked for torch.
QUIET = """
import sys
from yolo_assigner.serve.explain.cli import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""


def embedded(path: Path) -> dict[str, Any]:
    """The data of a report."""
    (text,) = EMBEDDED.findall(path.read_text(encoding="utf-8"))
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's report, with both pictures."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    pictures = [str(FOLDER / f"{name}.png") for name in reversed(NAMES)]
    assert main([str(SAMPLE), "--image", *pictures, "--preset", "ultralytics-8.4", "--out", str(out)]) == 0
    return out


def request_arrays() -> dict[str, Any]:
    """A request for the exported model of 3 classes."""
    random = np.random.default_rng(3)
    maps = {f"feat_{level}": random.standard_normal((2, 67, 8 >> level, 8 >> level), np.float32) for level in range(3)}
    boxes = np.array([[0.5, 0.5, 0.4, 0.6], [0.3, 0.3, 0.3, 0.2], [0.15625, 0.15625, 0.02, 0.02]], np.float32)
    return {**maps, "batch_idx": np.array([0, 1, 1]), "cls": np.array([0, 2, 1]), "bboxes": boxes}


def test_a_report_holds_the_document_and_the_pictures(report: Path) -> None:
    data = embedded(report)
    document = data["document"]
    assert (data["title"], data["names"]) == ("sample.npz", list(NAMES))
    assert (document["parameters"]["min_box_side"], document["listed_side"]) == (16.0, 32.0)
    assert document["reasons"] == {"assigned": 98}
    assert [picture["type"] for picture in data["pictures"]] == ["image/png"] * 2
    # By their names, not in their order.
    assert len(data["pictures"][0]["base64"]) == pytest.approx((FOLDER / "SOAP_061.png").stat().st_size * 4 / 3, abs=4)


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_an_exported_model_gives_what_torch_gives(ending: str, tmp_path: Path) -> None:
    path, arrays = tmp_path / f"request.{ending}", request_arrays()
    if ending == "npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    assert main([str(path), "--out", str(tmp_path / "torch.html")]) == 0
    words = [str(path), "--artifacts", str(exported("explain", "sparse")), "--out", str(tmp_path / "model.html")]
    done = subprocess.run([sys.executable, "-c", QUIET, *words], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert re.search(r"model\.html: \d of 3 ground truths are learned; .*1 no_anchor", done.stdout)
    by_torch, by_model = (embedded(tmp_path / f"{name}.html")["document"] for name in ("torch", "model"))
    assert by_model["model"] == "explain"
    outside = by_torch["outcomes"].index("outside")
    assert outside in by_torch["images"][1]["pairs"]["outcome"]
    for one, other in zip(by_torch["images"], by_model["images"], strict=True):
        for truth, found in zip(one["ground_truths"], other["ground_truths"], strict=True):
            assert (truth["reason"], truth["sentence"]) == (found["reason"], found["sentence"])
            assert truth["loss"]["total"] == pytest.approx(found["loss"]["total"], rel=1e-4)
        inside = np.array(one["pairs"]["outcome"]) != outside
        for name in ("slot", "anchor", "outcome", "lost_to"):
            assert np.array(one["pairs"][name])[inside].tolist() == other["pairs"][name]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.npz"], "none.npz"),
        (["README.md"], "README.md is no request file; give one that ends in .npz or .safetensors"),
        (["{}/empty.npz"], "empty.npz has no feat_0, batch_idx, bboxes; a request file holds"),
        (["{}/text.npz"], "text.npz is no npz file"),
        ([str(SAMPLE), "--reg-max", "17"], "feat_0 has 65 channels, but four times reg_max 17"),
        ([str(SAMPLE), "--topk", "0"], "topk"),
        ([str(SAMPLE), "--model", "x"], "--model names an exported model; give --artifacts, too"),
        ([str(SAMPLE), "--artifacts", "{}", "--topk", "3"], "--topk cannot be given with --artifacts"),
        ([str(SAMPLE), "--artifacts", "{}"], "explain: "),
        ([str(SAMPLE), "--image", "README.md"], "README.md is no picture that browsers show; give one of .png"),
        ([str(SAMPLE), "--image", *[str(FOLDER / "SOAP_061.png")] * 3], "3 pictures are given, but the request has 2"),
    ],
    ids=str,
)
def test_what_cannot_be_used(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    np.savez(tmp_path / "empty.npz", cls=np.zeros(1))
    (tmp_path / "text.npz").write_bytes(b"PK\x03\x04 no archive")
    filled = [word.replace("{}", str(tmp_path)) for word in words]
    assert main([*filled, "--out", str(tmp_path / "out.html")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.html").exists()


def test_pictures_by_name_or_in_order() -> None:
    one, two = Photo("a.png", b"1"), Photo("b.jpg", b"2")
    assert match_photos([two], ["a", "b.png"], 2) == [None, two]
    assert match_photos([two, one], ["a", "b"], 2) == [one, two]
    assert match_photos([two, one], [], 3) == [two, one, None]
    assert match_photos([two], ["x", "y"], 2) == [two, None]


@pytest.mark.skipif(not BROWSERS, reason="there is no Chromium")
def test_a_report_opens_from_the_disk(report: Path, tmp_path: Path) -> None:
    with browsing(tmp_path) as browser:
        browser.call("Page.navigate", url=f"{report.as_uri()}#image=1&truth=3")
        browser.wait("document.querySelectorAll('#truth-rows tr').length")
        assert browser.run("document.getElementById('image').selectedOptions[0].text") == "OSBS_029"
        assert browser.run("document.getElementById('selection-heading').textContent") == "Ground truth 3"
        assert browser.run("document.querySelectorAll('#truth-rows tr').length") == 61
        assert not browser.run("document.getElementById('open-files').checkVisibility()")
        sent = [
            event["params"]["request"]["url"]
            for event in browser.events
            if event["method"] == "Network.requestWillBeSent"
        ]
        assert {url.partition("#")[0] for url in sent if not url.startswith("data:")} == {report.as_uri()}
        failed = [event for event in browser.events if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
        assert not failed, failed
        # The picture is there: the middle of the canvas has more than one colour.
        browser.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
        colours = browser.run(
            "(() => {const canvas = document.getElementById('canvas'); const {width, height} = canvas;"
            "const data = canvas.getContext('2d').getImageData(width / 2 - 50, height / 2 - 50, 100, 100).data;"
            "return new Set(new Uint32Array(data.buffer)).size})()"
        )
        assert colours > 1000


def test_text_in_a_report_ends_no_script(tmp_path: Path) -> None:
    arrays = request_arrays()
    name = "</script><script>alert(1)</script>"
    np.savez(tmp_path / "request.npz", **arrays, names=np.array([name, "b"]))
    assert main([str(tmp_path / "request.npz"), "--out", str(tmp_path / "out.html")]) == 0
    assert embedded(tmp_path / "out.html")["names"] == [name, "b"]
    assert "alert(1)</script>" not in (tmp_path / "out.html").read_text(encoding="utf-8")
