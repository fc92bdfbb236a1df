"""Explanations in words, and as a JSON document."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from yolo_assigner.export.samples import Case, pyramid, ragged_batch, sample_loss_inputs
from yolo_loss import DetectionLoss, GroundTruth
from yolo_loss.explain import (
    Facts,
    Outcome,
    Reason,
    Rival,
    describe,
    describe_flags,
    describe_outcome,
    explain_document,
    explain_loss,
)
from yolo_loss.explain.document import TRUTH_FIELDS, dump_document
from yolo_loss.explain.structures import PairReport, TruthReport

STRIDES = (8.0, 16.0, 32.0)
CASE = Case(2, 25, pyramid(96, 64, STRIDES), 3)


def sample(case: Case = CASE, seed: int = 0) -> tuple[list[torch.Tensor], dict[str, Any]]:
    feats, *truth = sample_loss_inputs(case, STRIDES, 16, seed)
    return feats, ragged_batch(GroundTruth(*truth), (96, 64))


def read(document: dict[str, Any]) -> dict[str, Any]:
    """Through JSON, strictly: Python's reader would let NaN pass."""

    def no_constant(text: str) -> float:
        raise ValueError(text)

    found: dict[str, Any] = json.loads(dump_document(document), parse_constant=no_constant)
    return found


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_a_sentence_and_a_remedy(reason: Reason) -> None:
    sentence, remedy = describe(reason, Facts())
    assert sentence.endswith(".")
    assert bool(remedy) == (reason != Reason.ASSIGNED)
    assert reason.word == reason.name.lower()


def test_sentences_name_the_numbers() -> None:
    assert describe(Reason.ASSIGNED, Facts(num_assigned=1)).sentence == "1 anchor learns it."
    assert describe(Reason.ASSIGNED, Facts(num_assigned=3)).sentence == "3 anchors learn it."
    described = describe(Reason.NO_ANCHOR, Facts(nearest_distance=2.34, helping_side=9.0))
    assert "the nearest is 2.3 pixels away" in described.sentence
    assert "min_box_side=9 " in described.remedy
    one = describe(Reason.CONTESTED, Facts(num_chosen=1, rivals=(Rival(4, 1),))).sentence
    assert one.startswith("The only anchor that it chose went to ground truth 4, which overlaps more")
    several = [Rival(slot, taken) for slot, taken in ((1, 2), (2, 3), (5, 2), (7, 1), (8, 1))]
    many = describe(Reason.CONTESTED, Facts(num_chosen=9, rivals=several)).sentence
    assert many.startswith(
        "All 9 anchors that it chose went to ground truths 2 (3), 1 (2), 5 (2) and 2 more, which over"
    )


def test_an_unknown_reason_is_refused() -> None:
    with pytest.raises(ValueError, match="7 is not a valid Reason"):
        describe(7, Facts())


def test_flags_and_outcomes_in_words() -> None:
    assert describe_flags(clipped_share=0.0, duplicate_of=-1, weak=False) == []
    clipped, duplicate, weak = describe_flags(clipped_share=0.25, duplicate_of=3, weak=True)
    assert "25 % of the sides" in clipped.sentence
    assert "Ground truth 3 " in duplicate.sentence
    assert "below 0.1 of the image's median" in weak.sentence
    assert describe_outcome(Outcome.BELOW_TOPK, rank=12, topk=10).startswith("Not chosen: it is number 12")
    assert describe_outcome(Outcome.BELOW_TOPK, rank=3, topk=10) == "Not chosen: its metric is 0."
    assert "ground truth 5 overlaps more" in describe_outcome(Outcome.LOST_TO, rank=1, topk=10, lost_to=5)
    assert "topk2 keeps 1 " in describe_outcome(Outcome.DROPPED_BY_TOPK2, rank=2, topk=10, topk2=1)
    learns = "The anchor learns this ground truth"
    assert describe_outcome(Outcome.ASSIGNED, rank=1, topk=10) == f"{learns}."
    alone = describe_outcome(Outcome.ASSIGNED, rank=2, topk=10, beaten=[])
    assert alone == f"{learns}: number 2 by metric, and no other chose the anchor."
    for beaten, named in (([4], " 4"), ([1, 2], "s 1, 2"), ([1, 2, 4, 7, 8], "s 1, 2, 4 and 2 more")):
        said = describe_outcome(Outcome.ASSIGNED, rank=2, topk=10, beaten=beaten)
        assert said.startswith(f"{learns}: it overlaps more with the box predicted here than ground truth{named}, ")


def test_the_document_says_what_the_tensors_say() -> None:
    feats, batch = sample()
    criterion = DetectionLoss(3, STRIDES, topk=4)
    document, explanation = read(explain_document(criterion, feats, batch)), explain_loss(criterion, feats, batch)
    truths, shares = explanation.truths, explanation.shares
    assert shares is not None
    assert (document["format"], document["version"]) == ("yolo-assigner explanation", 1)
    assert document["imgsz"] == [96, 64]
    sizes = [(level["height"], level["width"], level["first_anchor"]) for level in document["levels"]]
    assert sizes == [(12, 8, 0), (6, 4, 96), (3, 2, 120)]
    assert document["loss"]["total"] == pytest.approx(shares.loss.item(), rel=1e-5)
    parts = [image["loss"]["total"] for image in document["images"]]
    assert sum(parts) == pytest.approx(document["loss"]["total"], rel=1e-5)
    found: list[str] = []
    for b, image in enumerate(document["images"]):
        assert len(image["ground_truths"]) == int((batch["batch_idx"] == b).sum())
        own = sum(truth["loss"]["total"] for truth in image["ground_truths"])
        assert own + image["loss"]["background"] == pytest.approx(image["loss"]["total"], rel=1e-5)
        for m, truth in enumerate(image["ground_truths"]):
            assert truth["slot"] == m
            assert truth["reason"] == Reason(int(truths.reason[b, m])).word
            for name in TRUTH_FIELDS:
                value = getattr(truths, name)[b, m].tolist()
                assert truth[name] == (None if value == -1 else pytest.approx(value, rel=1e-5)), name
            assert sum(rival["anchors"] for rival in truth["rivals"]) == truth["num_lost"]
            assert truth["rivals"] == [] or truth["rivals"][0]["slot"] == truth["lost_to"]
            assert [flag["flag"] for flag in truth["flags"]] == ["weak"] * truth["weak"]
            found.append(truth["reason"])
    assert document["reasons"] == {reason.word: found.count(reason.word) for reason in Reason if reason.word in found}
    assert len(document["reasons"]) > 2


def test_pairs_are_columns_of_each_image() -> None:
    feats, batch = sample()
    criterion = DetectionLoss(3, STRIDES)
    document, pairs = read(explain_document(criterion, feats, batch)), explain_loss(criterion, feats, batch).pairs
    for name in PairReport._fields[1:]:
        joined = np.concatenate([image["pairs"][name.removeprefix("pair_")] for image in document["images"]])
        np.testing.assert_allclose(joined, getattr(pairs, name).numpy(), rtol=1e-6)
    counts = [len(image["pairs"]["slot"]) for image in document["images"]]
    assert counts == torch.bincount(pairs.pair_image).tolist()
    assert document["outcomes"] == ["assigned", "below_topk", "lost_to", "dropped_by_topk2", "outside"]
    short = explain_document(criterion, feats, batch, pairs=False)
    assert [image["pairs"] for image in short["images"]] == [None, None]


def test_a_row_without_area_is_listed_and_padding_is_not() -> None:
    feats, _ = sample()
    batch = {
        "batch_idx": torch.tensor([1, 1]),
        "cls": torch.tensor([0, 2]),
        "bboxes": torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5]]),
    }
    first, second = read(explain_document(DetectionLoss(3, STRIDES), feats, batch))["images"]
    assert first["ground_truths"] == []
    assert second["ground_truths"][0]["reason"] == "invalid"
    assert [truth["label"] for truth in second["ground_truths"]] == [0, 2]


def test_numbers_that_are_not_finite_are_null() -> None:
    feats, batch = sample()
    feats[0][0, 64:] = float("nan")
    document = read(explain_document(DetectionLoss(3, STRIDES), feats, batch))
    assert document["loss"]["total"] is None
    assert None in document["images"][0]["pairs"]["score"]


def test_the_document_needs_no_torch() -> None:
    code = "import sys, yolo_loss.explain.document, yolo_loss.explain.reasons; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_fields_of_the_document_are_those_of_the_report() -> None:
    assert ("reason", *TRUTH_FIELDS) == TruthReport._fields
