"""Digits and the boxes around them: a network that marks centres, what its outputs mean, and its task."""

import torch
from torch import nn
from torch.nn.functional import l1_loss, logsigmoid, max_pool2d
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_average_precision
from torchmetrics.utilities.data import dim_zero_cat

from qdeploy.tasks import Score, Task

STRIDE = 4  # pixels of the image from one place of the outputs to the next
MOST = 16  # boxes of an image


class CentreNet(nn.Module):
    """Objects as points (Zhou et al., 1904.07850) in small, with FCOS's distances (Tian et al., 1904.01355).

    Of images [N, 3, H, W], with h, w = H / 4, W / 4:

    centres   [N, classes, h, w], the logit of an object's centre at each place
    sides     [N, 4, h, w], how far left, top, right and bottom of its box are from there, in places
    """

    def __init__(self, classes=10, width=16):
        super().__init__()
        fine, coarse = 2 * width, 4 * width
        self.stem = nn.Sequential(block(3, width, 2), block(width, fine, 2), block(fine, fine))
        self.deep = nn.Sequential(block(fine, coarse, 2), block(coarse, coarse))
        self.grow = nn.Upsample(scale_factor=2)
        self.neck = block(fine + coarse, fine)
        self.centres = nn.Sequential(block(fine, fine), nn.Conv2d(fine, classes, 1))
        self.sides = nn.Sequential(block(fine, fine), nn.Conv2d(fine, 4, 1))
        nn.init.constant_(self.centres[1].bias, -2.2)  # centres are rare: 0.1 before training

    def forward(self, x):
        x = self.stem(x)
        x = self.neck(torch.cat([self.grow(self.deep(x)), x], 1))
        return {"centres": self.centres(x), "sides": self.sides(x)}


def block(inputs, outputs, stride=1):
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def decode(outputs):
    """The likeliest boxes of each image, the first one first.

    outputs   what the network or its file gives, as tensors

    Gives boxes [N, 16, 4], left, top, right and bottom in pixels, their scores [N, 16] in 0..1 and
    their classes [N, 16]; what scores 0 is none. A centre is a place that none of its eight neighbours is
    likelier than; of equal ones, which few bits often give, the first.
    """
    scores, sides = outputs["centres"].sigmoid(), outputs["sides"]
    height, width = scores.shape[2:]
    places = torch.arange(height * width, device=scores.device).reshape(height, width)
    likeliest = max_pool2d(scores, 3, 1, 1, return_indices=True)[1]
    scores, found = (scores * (likeliest == places)).flatten(1).topk(MOST)
    labels, place = found // places.numel(), found % places.numel()
    distances = sides.flatten(2).gather(2, place[:, None].expand(-1, 4, -1)).transpose(1, 2)
    here = torch.stack([place % width, place // width], -1) + 0.5
    boxes = torch.cat([here - distances[..., :2], here + distances[..., 2:]], -1) * STRIDE
    return boxes, scores, labels


class Detection(Task):
    """The outputs of CentreNet; of each image {"boxes": [n, 4] in pixels, "labels": [n]}, in a list.

    sides   share of the boxes' sides in the loss, beside the centres
    """

    decides = "place"
    least_classes = 1

    def __init__(self, sides=0.2):
        self.sides = sides

    def loss(self, outputs, targets):
        """Sums over the places, as means over the images."""
        image = torch.repeat_interleave(torch.tensor([len(one["labels"]) for one in targets]))
        boxes = torch.cat([one["boxes"] for one in targets]) / STRIDE
        labels = torch.cat([one["labels"] for one in targets])
        image = image.to(boxes.device)
        column, row = ((boxes[:, :2] + boxes[:, 2:]) / 2).long().unbind(1)
        here = torch.stack([column, row], 1)
        truth = heat(outputs["centres"], image, labels, here, boxes[:, 2:] - boxes[:, :2])
        distances = torch.cat([here + 0.5 - boxes[:, :2], boxes[:, 2:] - here - 0.5], 1)
        found = outputs["sides"][image, :, row, column]
        lost = focal(outputs["centres"], truth)
        return (lost + self.sides * l1_loss(found, distances, reduction="sum")) / len(targets)

    def metrics(self, classes):
        precision = AveragePrecision(classes)
        return {Score("ap50", "AP50"): precision, Score("ap75", "AP75"): precision}

    def decision(self, outputs):
        """The class of each place, from 1, and 0 where there is no centre."""
        logit, label = outputs["centres"].max(1)
        return torch.where(logit > 0, label + 1, 0)

    def misfit(self, outputs, classes):
        if not isinstance(outputs, dict):
            return f"gives {type(outputs).__name__}; it must give a dict of centres and sides"
        shapes = {name: list(x.shape[:2]) for name, x in outputs.items()}
        if shapes == {"centres": [2, classes], "sides": [2, 4]}:
            return None
        return f"gives {shapes} for 2 images; it must give centres [2, {classes}] and sides [2, 4]"


def heat(centres, image, labels, here, sizes):
    """A bell of height 1 at each centre, a sixth of the object wide; where bells meet, the higher one.

    centres [N, classes, h, w] gives the shape. Of every object: its image, its label, its place (column, row)
    and its size (width, height).
    """
    height, width = centres.shape[2:]
    across, down = (torch.arange(n, device=here.device) for n in (width, height))
    x, y = ((line - at[:, None]) for line, at in zip((across, down), here.unbind(1), strict=True))
    x, y = (off / (size[:, None] / 6) for off, size in zip((x, y), sizes.unbind(1), strict=True))
    bells = torch.exp(-(x.square()[:, None, :] + y.square()[:, :, None]) / 2).flatten(1)
    truth = torch.zeros_like(centres).flatten(0, 1).flatten(1)
    which = (image * centres.shape[1] + labels)[:, None].expand_as(bells)
    return truth.scatter_reduce(0, which, bells, "amax").reshape(centres.shape)


def focal(logits, truth):
    """The loss of 1904.07850, eq. 1, before its division: places near a centre weigh less."""
    share = logits.sigmoid()
    hit = (1 - share).square() * logsigmoid(logits)
    rest = (1 - truth).pow(4) * share.square() * logsigmoid(-logits)
    return -torch.where(truth == 1, hit, rest).sum()


class AveragePrecision(Metric):
    """{"ap50": ..., "ap75": ...}: the area under precision over recall, the mean over the classes that occur.

    A box is right if it and a truth of its class that no likelier box has taken share 50 % or 75 % of what
    both cover. The area is not interpolated, as COCO's is at 101 recalls: it differs by about a point.
    """

    full_state_update = False

    def __init__(self, classes):
        super().__init__()
        self.add_state("truths", torch.zeros(classes, dtype=torch.int64), "sum")
        for name in ("scores", "labels", "right50", "right75"):
            self.add_state(name, [], "cat")

    def update(self, outputs, targets):
        for boxes, scores, labels, truth in zip(*decode(outputs), targets, strict=True):
            box, score, label = (x[scores > 0] for x in (boxes, scores, labels))
            overlaps = overlap(box, truth["boxes"]) * (label[:, None] == truth["labels"])
            self.scores.append(score)
            self.labels.append(label)
            self.right50.append(taken(overlaps, 0.5))
            self.right75.append(taken(overlaps, 0.75))
            self.truths += torch.bincount(truth["labels"], minlength=len(self.truths))

    def compute(self):
        scores, labels = dim_zero_cat(self.scores), dim_zero_cat(self.labels)
        return {
            "ap50": self.area(scores, labels, dim_zero_cat(self.right50)),
            "ap75": self.area(scores, labels, dim_zero_cat(self.right75)),
        }

    def area(self, scores, labels, right):
        """torchmetrics' own of what was found, times the share of the truths that was."""
        areas = torch.zeros(len(self.truths), device=scores.device)
        for label in labels[right].unique():
            own = labels == label
            found = right[own].sum() / self.truths[label]
            areas[label] = found * binary_average_precision(scores[own], right[own].long())
        return areas[self.truths > 0].mean()


def overlap(boxes, others):
    """The area that two boxes share over that of both: [n, 4], [m, 4] -> [n, m]."""
    top_left = torch.maximum(boxes[:, None, :2], others[:, :2])
    shared = (torch.minimum(boxes[:, None, 2:], others[:, 2:]) - top_left).clamp(min=0).prod(2)
    areas = [(x[:, 2:] - x[:, :2]).clamp(min=0).prod(1) for x in (boxes, others)]
    return shared / (areas[0][:, None] + areas[1] - shared)


def taken(overlaps, least):
    """Which boxes, the likeliest first, take a truth: bool [n] of overlaps [n, truths]."""
    right, left = (
        torch.zeros(len(overlaps), dtype=torch.bool, device=overlaps.device),
        overlaps.clone(),
    )
    for number in (overlaps >= least).any(1).nonzero()[:, 0].tolist():
        most, which = left[number].max(0)
        right[number] = most >= least
        left[:, which] *= most < least
    return right
