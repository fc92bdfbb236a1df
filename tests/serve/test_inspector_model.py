"""The inspector's own assignment, in a browser, against torch's; and its words against the library's."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from examples.dataset import load_sample
from tests.serve.test_docs_page import Browser, browsing
from tests.serve.test_web_pages import BROWSERS
from yolo_assigner.serve.explain.report import STATIC
from yolo_loss import DetectionLoss
from yolo_loss.explain import explain_document
from yolo_loss.explain.document import dump_document

pytestmark = pytest.mark.skipif(not BROWSERS, reason="there is no Chromium")
LISTED_SIDE = 40.0
# Settings that the page is asked for, by the names of the criterion's arguments.
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"topk": 1},
    {"topk": 3, "alpha": 1.0, "beta": 2.0},
    {"alpha": 0.0, "beta": 6.5},
    {"alpha": 2.25, "beta": 0.5, "topk": 20},
    {"beta": 0.0},
    {"topk": 13, "topk2": 1},
    {"topk2": 3, "min_box_side": 16.0},
    {"min_box_side": 7.0, "alpha": 1.0},
    {"min_box_side": 40.0, "beta": 12.0},
)
CHOICE = ("anchor", "slot", "rank", "metric")
SCRIPT = """
(async () => {
  const model = await import("/model.js");
  const {document, settings, image} = CASE;
  const scene = model.readScene(document, image);
  const found = model.assign(scene, {...model.ownSettings(scene), ...settings});
  const rank = new Array(scene.pairs.slot.length).fill(0);
  for (const {slot} of scene.truths) {
    for (const place of model.ranked(scene, found, slot)) rank[place.pair] = place.rank;
  }
  return JSON.stringify({
    outcome: [...found.outcome], lost_to: [...found.lostTo], weight: [...found.weight], metric: [...found.metric],
    rank, owner: [...found.owner], anchor: [...scene.pairs.anchor], slot: [...scene.pairs.slot],
    truths: found.truths.map((sum, slot) => ({
      ...sum, ...model.describe(scene.truths[slot], sum), flags: model.flagsOf(scene.truths[slot], sum),
    })),
    outcomes: [...found.outcome].map((_, pair) => model.describeOutcome(scene, found, pair, rank[pair])),
  });
})()
"""


class Inputs(NamedTuple):
    """What a criterion takes, and its classes."""

    feats: list[torch.Tensor]
    batch: dict[str, torch.Tensor]
    classes: int


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser on a server of nothing but the page's files."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Stay silent."""

    with (
        ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(STATIC))) as server,
        browsing(tmp_path_factory.mktemp("profile")) as found,
    ):
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            found.call("Page.navigate", url=f"http://127.0.0.1:{server.server_port}/style.css")
            found.wait("location.pathname === '/style.css'")
            yield found
        finally:
            server.shutdown()
            thread.join()


def the_sample() -> Inputs:
    sample = load_sample()
    batch = {name: torch.from_numpy(np.asarray(values)) for name, values in sample.batch.items()}
    return Inputs([torch.from_numpy(feat) for feat in sample.feats], batch, 1)


def crowded(seed: int) -> Inputs:
    """Boxes of all sizes over each other, some twice, some between anchors; predictions that scatter around them."""
    random = np.random.default_rng(seed)
    count, classes = 40, 3
    size = np.exp(random.uniform(np.log(0.01), np.log(0.6), (count, 2)))
    boxes = np.concatenate((random.uniform(0, 1, (count, 2)), size), axis=1)
    boxes[-6:-3], boxes[-3:] = boxes[:3], boxes[:3] * 1.001
    batch = {
        "batch_idx": torch.zeros(count),
        "cls": torch.from_numpy(random.integers(0, classes, count)).float(),
        "bboxes": torch.from_numpy(boxes).float().clamp(0, 1),
    }
    feats = [
        torch.from_numpy(random.normal(0, 2, (1, 64 + classes, 128 // stride, 96 // stride))).float()
        for stride in (8, 16, 32)
    ]
    return Inputs(feats, batch, classes)


def explained(inputs: Inputs, **options: Any) -> dict[str, Any]:
    """A document that lists the candidates of enlarged boxes, too."""
    criterion = DetectionLoss(inputs.classes, **options)
    made = explain_document(criterion, inputs.feats, inputs.batch, listed_side=LISTED_SIDE)
    found: dict[str, Any] = json.loads(dump_document(made))
    return found


def asked(browser: Browser, document: dict[str, Any], options: dict[str, Any], image: int = 0) -> dict[str, Any]:
    """What the page makes of a document with other settings."""
    settings = {("side" if name == "min_box_side" else name): value for name, value in options.items()}
    case = json.dumps({"document": document, "settings": settings, "image": image})
    found: dict[str, Any] = json.loads(browser.run(SCRIPT.replace("CASE", case)))
    return found


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("name", ["sample", "crowded 0", "crowded 1"])
def test_the_page_assigns_as_torch_does(name: str, options: dict[str, Any], browser: Browser) -> None:
    inputs = the_sample() if name == "sample" else crowded(int(name[-1]))
    found = asked(browser, explained(inputs), options)
    want = explained(inputs, **options)["images"][0]
    pairs = want["pairs"]
    assert set(pairs["outcome"]) >= ({0, 1} if "topk" in options else {0, 1, 2})
    assert found["outcome"] == pairs["outcome"]
    assert found["lost_to"] == pairs["lost_to"]
    assert found["rank"] == pairs["rank"]
    np.testing.assert_allclose(found["metric"], pairs["metric"], rtol=1e-6, atol=1e-44)
    np.testing.assert_allclose(found["weight"], pairs["weight"], rtol=1e-6, atol=1e-44)
    for made, truth in zip(found["truths"], want["ground_truths"], strict=True):
        assert made["reason"] == truth["reason"]
        assert made["candidates"] == truth["num_candidates"]
        assert (made["chosen"], made["lost"], made["assigned"]) == (
            truth["num_chosen"], truth["num_lost"], truth["num_assigned"]
        )  # fmt: skip
        assert made["rivals"] == truth["rivals"]
        assert made["flags"] == truth["flags"]
        assert made["weight"] == pytest.approx(truth["weight_sum"], rel=1e-5, abs=1e-12)
        # What is said of the nearest anchor is known for the document's own settings.
        if truth["reason"] != "no_anchor":
            assert (made["sentence"], made["remedy"]) == (truth["sentence"], truth["remedy"])


@pytest.mark.parametrize("own", [{}, {"min_box_side": 16.0}, {"topk2": 1, "topk": 7}], ids=str)
def test_the_own_settings_give_the_document(own: dict[str, Any], browser: Browser) -> None:
    document = explained(the_sample(), **own)
    for image, want in enumerate(document["images"]):
        found = asked(browser, document, {}, image)
        assert found["outcome"] == want["pairs"]["outcome"]
        assert found["metric"] == pytest.approx(want["pairs"]["metric"], rel=1e-6)
        for made, truth in zip(found["truths"], want["ground_truths"], strict=True):
            assert (made["sentence"], made["remedy"]) == (truth["sentence"], truth["remedy"])


def test_words_of_candidates_are_the_librarys(browser: Browser) -> None:
    from yolo_loss.explain import describe_outcome

    beaten = 0
    for options in ({}, {"topk": 2, "topk2": 1}):
        inputs = crowded(2)
        inputs.batch["bboxes"][:8] = torch.tensor([0.5, 0.5, 0.6, 0.6])
        found = asked(browser, explained(inputs), options)
        topk, said = options.get("topk", 10), 0
        chosen: dict[int, list[int]] = {}
        for anchor, slot, rank, metric in zip(*(found[name] for name in CHOICE), strict=True):
            chosen.setdefault(anchor, []).extend([slot] if 0 < rank <= topk and metric > 0 else [])
        for pair, outcome in enumerate(found["outcome"]):
            if outcome < 4:
                others = [slot for slot in chosen[found["anchor"][pair]] if slot != found["slot"][pair]]
                want = describe_outcome(
                    outcome,
                    rank=found["rank"][pair],
                    topk=topk,
                    lost_to=found["lost_to"][pair],
                    topk2=options.get("topk2"),
                    beaten=others,
                )
                assert found["outcomes"][pair] == want
                said += 1
                beaten = max(beaten, len(others) * (outcome == 0))
        assert said > 100
    assert beaten > 3


@pytest.mark.parametrize("value", [0.0, 0.126, 1e-5, 0.00012345, 0.5, 1.0, 3.2e-30, 0.0999, 99.4])
def test_digits_are_those_of_python(value: float, browser: Browser) -> None:
    script = f"import('/model.js').then((model) => model.digits({value!r}))"
    assert browser.run(script) == f"{value:.2g}"
