"""The detection example: its boxes, its loss and its average precision, against NumPy and closed forms."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qdeploy.tasks import Tally

FOLDER = Path(__file__).parents[2] / "examples" / "tasks"


@pytest.fixture(scope="module")
def detection():
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("detection")
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def scenes(detection):
    return importlib.import_module("scenes")


def heads(boxes, labels, classes=3, size=8):
    """What a perfect network gives for one image: large logits at the centres alone, and the true sides."""
    centres, sides = torch.full((1, classes, size, size), -20.0), torch.zeros(1, 4, size, size)
    for number, ((left, top, right, bottom), label) in enumerate(zip(boxes, labels, strict=True)):
        column, row = int((left + right) / 8), int((top + bottom) / 8)
        centres[0, label, row, column] = 5.0 - number
        x, y = 4 * column + 2, 4 * row + 2
        sides[0, :, row, column] = torch.tensor([x - left, y - top, right - x, bottom - y]) / 4
    return {"centres": centres, "sides": sides}


BOXES, LABELS = [(1, 2, 12, 13), (15.5, 4, 30, 27), (3, 18, 9, 31)], [2, 0, 1]
TARGETS = [{"boxes": torch.tensor(BOXES), "labels": torch.tensor(LABELS)}]


def test_boxes_come_out_as_they_went_in_the_likeliest_first(detection):
    boxes, scores, labels = detection.decode(heads(BOXES, LABELS))
    assert boxes[0, :3].numpy() == pytest.approx(np.array(BOXES))
    assert labels[0, :3].tolist() == LABELS
    assert scores[0, :3].numpy() == pytest.approx(1 / (1 + np.exp([-5.0, -4, -3])))
    assert scores[0, 3:].max() < 1e-8


def test_of_equal_neighbours_one_is_a_centre(detection):
    outputs = heads(BOXES, LABELS)
    outputs["centres"][0, 1, 3:5, 4:7] = 2.0
    scores, labels = (x[0] for x in detection.decode(outputs)[1:])
    assert ((labels == 1) & (scores > 0.8)).sum() == 2  # this one, and the third box


def test_a_perfect_network_has_all_and_the_least_loss(detection):
    task, outputs = detection.Detection(), heads(BOXES, LABELS)
    outputs["centres"] = outputs["centres"].where(outputs["centres"] < 0, 20.0)
    tally = Tally(task, 3)
    tally.add(task.loss(outputs, TARGETS), outputs, TARGETS, 1)
    assert tally.figures() == pytest.approx({"loss": 0, "ap50": 1, "ap75": 1}, abs=1e-6)
    assert (task.decision(outputs) > 0).sum() == 3


def test_the_loss_by_hand(detection):
    """One object, in the middle of 3 x 3 places and 1.5 of them wide: every share is a half, every side 0."""
    outputs = {"centres": torch.zeros(1, 1, 3, 3), "sides": torch.zeros(1, 4, 3, 3)}
    targets = [{"boxes": torch.tensor([[3.0, 3, 9, 9]]), "labels": torch.tensor([0])}]
    across = np.exp(-((np.arange(3) - 1) ** 2) / (2 * (1.5 / 6) ** 2))
    weights = (1 - np.outer(across, across)) ** 4
    weights[1, 1] = 1
    expected = (weights * 0.25 * np.log(2)).sum() + 0.2 * 4 * 0.75
    found = detection.Detection(sides=0.2).loss(outputs, targets)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_images_without_objects_only_have_no_centres(detection):
    empty = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}]
    outputs, task = heads(BOXES, LABELS), detection.Detection()
    alone = task.loss(outputs, empty)
    both = {name: torch.cat([x, x]) for name, x in outputs.items()}
    together = task.loss(both, TARGETS + empty)
    assert together.item() == pytest.approx((alone + task.loss(outputs, TARGETS)).item() / 2)
    scores = Tally(task, 3)
    scores.add(together, both, TARGETS + empty, 2)
    assert scores.figures()["ap50"] == pytest.approx(1 / 2)  # a false box beside each, as likely


def test_outputs_of_another_network_are_refused_in_words(detection):
    task = detection.Detection()
    outputs = {name: torch.cat([x, x]) for name, x in heads(BOXES, LABELS).items()}
    assert task.misfit(outputs, 3) is None
    assert "gives Tensor; it must give a dict" in task.misfit(outputs["centres"], 3)
    assert "must give centres [2, 10] and sides [2, 4]" in task.misfit(outputs, 10)


def crowd(detection, images=30):
    """Outputs at random, and truths that lie near some of the boxes that they give."""
    draw = torch.Generator().manual_seed(0)
    outputs = {
        "centres": 3 * torch.randn(images, 3, 8, 8, generator=draw),
        "sides": 1 + torch.rand(images, 4, 8, 8, generator=draw),
    }
    targets = []
    for boxes, _, labels in zip(*detection.decode(outputs), strict=True):
        chosen = torch.randperm(len(boxes), generator=draw)[:6]
        shift = 1.2 * torch.rand(6, 4, generator=draw)
        targets.append({"boxes": boxes[chosen] + shift, "labels": labels[chosen]})
    return outputs, targets


def shared(one, two):
    """The area of both over that of either."""
    width, height = np.minimum(one[2:], two[2:]) - np.maximum(one[:2], two[:2])
    both = max(width, 0) * max(height, 0)
    return both / (np.prod(one[2:] - one[:2]) + np.prod(two[2:] - two[:2]) - both)


def by_numpy(found, targets, least):
    """Average precision, box by box over all images, the likeliest first."""
    areas = []
    for label in range(3):
        boxes = [
            (score, image, box)
            for image, image_boxes in enumerate(zip(*(x.numpy() for x in found), strict=True))
            for box, score, own in zip(*image_boxes, strict=True)
            if own == label and score > 0
        ]
        truths = {
            image: [box.numpy() for box in one["boxes"][one["labels"] == label]]
            for image, one in enumerate(targets)
        }
        count, hits, area = sum(map(len, truths.values())), 0, 0.0
        for rank, (_, image, box) in enumerate(sorted(boxes, key=lambda box: -box[0]), 1):
            shares = [shared(box, truth) for truth in truths[image]]
            if shares and max(shares) >= least:
                truths[image].pop(int(np.argmax(shares)))
                hits += 1
                area += hits / rank / count
        areas.append(area)
    return np.mean(areas)


def test_average_precision_by_numpy_in_parts(detection):
    outputs, targets = crowd(detection)
    tally = Tally(detection.Detection(), 3)
    for part in range(0, 30, 7):
        some = {name: x[part : part + 7] for name, x in outputs.items()}
        tally.add(torch.zeros(()), some, targets[part : part + 7], 7)
    found = tally.figures()
    for name, least in (("ap50", 0.5), ("ap75", 0.75)):
        assert found[name] == pytest.approx(by_numpy(detection.decode(outputs), targets, least))
    assert 0.1 < found["ap75"] < found["ap50"] < 0.9


def test_average_precision_is_about_that_of_coco(detection):
    coco, evaluation = (pytest.importorskip(f"pycocotools.{name}") for name in ("coco", "cocoeval"))
    outputs, targets = crowd(detection)
    truth = {"images": [{"id": n} for n in range(30)], "categories": [{"id": n} for n in range(3)]}
    truth["annotations"] = [
        entry(image, label, box, id=1000 * image + number + 1, iscrowd=0)
        for image, one in enumerate(targets)
        for number, (box, label) in enumerate(zip(one["boxes"], one["labels"], strict=True))
    ]
    found = [
        entry(image, label, box, score=float(score))
        for image, one in enumerate(zip(*detection.decode(outputs), strict=True))
        for box, score, label in zip(*one, strict=True)
    ]
    known = coco.COCO()
    known.dataset = truth
    known.createIndex()
    judged = evaluation.COCOeval(known, known.loadRes(found), "bbox")
    judged.evaluate(), judged.accumulate(), judged.summarize()
    metric = detection.AveragePrecision(3)
    metric.update(outputs, targets)
    own = metric.compute()
    for name, of_coco in zip(("ap50", "ap75"), judged.stats[1:3], strict=True):
        assert own[name].item() == pytest.approx(of_coco, abs=0.03)


def entry(image, label, box, **more):
    left, top, right, bottom = box.tolist()
    place = {"bbox": [left, top, right - left, bottom - top]}
    area = (right - left) * (bottom - top)
    return {"image_id": image, "category_id": int(label), "area": area, **place, **more}


def test_boxes_lie_around_the_ink_that_the_masks_have(scenes):
    digits = scenes.images_of("digits", FOLDER)[0]
    boxed, masked = (
        kind(digits, digits, 20, 48, 0) for kind in (scenes.BoxedScenes, scenes.Scenes)
    )
    for number in range(20):
        image, found = boxed[number]
        same, mask = masked[number]
        assert torch.equal(image, same)
        left, top, right, bottom = found["boxes"][-1].int().tolist()  # nothing covers the last
        label = int(found["labels"][-1]) + 1
        rows, columns = np.nonzero((mask == label).numpy()[top:bottom, left:right])
        assert (rows.min(), columns.min()) == (0, 0)
        assert (rows.max() + 1, columns.max() + 1) == (bottom - top, right - left)


def test_a_network_learns_a_few_scenes_by_heart(detection, scenes):
    digits = scenes.images_of("digits", FOLDER)[0]
    items = scenes.BoxedScenes(digits, digits, 3, 48, 0)
    images, targets = scenes.listed([items[number] for number in range(3)])
    torch.manual_seed(0)
    network, task = detection.CentreNet(width=8), detection.Detection()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        task.loss(network(images), targets).backward()
        optimizer.step()
    metric = detection.AveragePrecision(10)
    metric.update(network(images), targets)
    assert metric.compute()["ap50"] > 0.8
