"""What every task promises, and each one's loss and scores against NumPy and closed forms."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics import MeanMetric, Metric

from qdeploy.errors import QdeployError
from qdeploy.scores import Score, described, read_scores, write_scores
from qdeploy.tasks import (
    Classification,
    ImageToImage,
    MultiLabel,
    Regression,
    Segmentation,
    Tally,
    Task,
    available,
    load_task,
)
from qdeploy.tasks.classification import is_among_first, is_right

RANDOM = torch.Generator().manual_seed(3)


def randn(*shape):
    return torch.randn(*shape, generator=RANDOM)


# Of each task: its outputs and targets for five inputs of three classes.
EXAMPLES = {
    "classification": (randn(5, 3), torch.tensor([0, 1, 2, 1, 0])),
    "segmentation": (randn(5, 3, 4, 6), torch.randint(0, 3, (5, 4, 6), generator=RANDOM)),
    "multi-label": (randn(5, 3), torch.randint(0, 2, (5, 3), generator=RANDOM)),
    "regression": (randn(5, 2), randn(5, 2)),
    "image-to-image": tuple(torch.rand(2, 5, 3, 16, 16, generator=RANDOM)),
}  # fmt: skip
every_task = pytest.mark.parametrize("kind", available())


def figures(task, outputs, targets, parts):
    tally = Tally(task, 3)
    for chosen in torch.arange(len(outputs)).split(parts):
        tally.add(
            task.loss(outputs[chosen], targets[chosen]),
            outputs[chosen],
            targets[chosen],
            len(chosen),
        )
    return tally.figures()


@every_task
def test_a_task_is_tested_here(kind):
    assert kind in EXAMPLES


@every_task
def test_the_loss_is_one_number_with_a_gradient(kind):
    outputs, targets = EXAMPLES[kind]
    for of in (load_task(kind, {}).loss, load_task(kind, {}).training_loss):
        values = outputs.clone().requires_grad_()
        loss = of(values, targets)
        loss.backward()
        assert loss.shape == ()
        assert values.grad.abs().sum() > 0


@every_task
def test_figures_of_parts_are_those_of_the_whole(kind):
    task = load_task(kind, {})
    whole = figures(task, *EXAMPLES[kind], parts=5)
    assert list(whole) == ["loss", *(score.name for score in task.metrics(3))]
    assert figures(task, *EXAMPLES[kind], parts=2) == pytest.approx(whole, rel=1e-5)


@every_task
def test_better_outputs_have_better_scores(kind):
    """Those of the loss's own gradient: a score whose direction is written the wrong way gets worse."""
    task, (outputs, targets) = load_task(kind, {}), EXAMPLES[kind]
    learned = nn.Parameter(outputs.clone())
    optimizer = torch.optim.Adam([learned], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        task.loss(learned, targets).backward()
        optimizer.step()
    before, after = (figures(task, x, targets, 5) for x in (outputs, learned.detach()))
    for score in task.metrics(3):
        assert score.key(after[score.name]) > score.key(before[score.name]), score.name
        assert score.drop(before[score.name], after[score.name]) < 0


@every_task
def test_the_float_network_is_the_best_student(kind):
    task, (outputs, _) = load_task(kind, {}), EXAMPLES[kind]
    assert float(task.distillation(outputs, outputs)) == pytest.approx(0, abs=1e-6)
    assert float(task.distillation(outputs + randn(*outputs.shape), outputs)) > 1e-3


@every_task
def test_a_decision_is_one_for_each_of_what_it_is_on(kind):
    task, (outputs, targets) = load_task(kind, {}), EXAMPLES[kind]
    decision = task.decision(outputs)
    assert (decision is None) == (task.decides is None)
    if decision is not None:
        assert decision.shape == targets.shape


@every_task
def test_outputs_of_something_else_are_refused_in_words(kind):
    task = load_task(kind, {})
    assert task.misfit(EXAMPLES[kind][0][:2], 3) is None
    assert "gives tuple" in task.misfit((torch.ones(2, 3),), 3)


def test_segmentation_by_numpy():
    logits, masks = (x.clone() for x in EXAMPLES["segmentation"])
    masks[0, :2] = 255
    found = figures(Segmentation(), logits, masks, parts=5)
    counted = masks.numpy() != 255
    chosen, truth = logits.numpy().argmax(1)[counted], masks.numpy()[counted]
    assert found["pixel_accuracy"] == (chosen == truth).mean()
    shares = [
        ((chosen == c) & (truth == c)).sum() / ((chosen == c) | (truth == c)).sum()
        for c in range(3)
    ]
    assert found["miou"] == pytest.approx(np.mean(shares), rel=1e-6)
    soft = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    own = np.take_along_axis(soft, np.where(counted, masks.numpy(), 0)[:, None], 1)[:, 0][counted]
    assert found["loss"] == pytest.approx(-np.log(own).mean(), rel=1e-5)


def test_masks_of_small_integers_are_those_of_large_ones():
    logits, masks = EXAMPLES["segmentation"]
    small = figures(Segmentation(), logits, masks.to(torch.uint8), parts=5)
    assert small == figures(Segmentation(), logits, masks, parts=5)


def test_masks_that_were_divided_by_255_are_refused():
    logits, masks = EXAMPLES["segmentation"]
    with pytest.raises(QdeployError, match="masks are float32; give the number of each"):
        Segmentation().loss(logits, masks / 255)


def test_a_share_of_dice_beyond_the_whole_is_refused():
    with pytest.raises(
        QdeployError, match=r"task\.options\.dice is 5; .* share of the loss, 0 to 1"
    ):
        Segmentation(dice=5)


def test_dice_by_numpy():
    logits, masks = (x.clone() for x in EXAMPLES["segmentation"])
    masks[1] = 255
    plain, mixed = (Segmentation(dice=share).loss(logits, masks).item() for share in (0.0, 0.25))
    soft = (np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)).swapaxes(0, 1)
    counted, truth = masks.numpy() != 255, masks.numpy()
    dice = [
        2 * soft[c][counted & (truth == c)].sum() / (soft[c][counted].sum() + (truth == c).sum())
        for c in range(3)
    ]
    assert mixed == pytest.approx(0.75 * plain + 0.25 * (1 - np.mean(dice)), rel=1e-4)


def test_values_by_numpy():
    outputs, targets = (x.numpy().astype(np.float64) for x in EXAMPLES["regression"])
    found = figures(Regression("l1"), *EXAMPLES["regression"], parts=2)
    assert (
        found["loss"] == found["mae"] == pytest.approx(np.abs(outputs - targets).mean(), rel=1e-6)
    )
    residual, total = ((outputs - targets) ** 2).sum(), ((targets - targets.mean()) ** 2).sum()
    assert found["r2"] == pytest.approx(1 - residual / total, rel=1e-5)


def test_r2_of_values_far_from_zero():
    targets = 1000 + randn(2000)
    outputs = targets + 0.5 * randn(2000)
    one, two = (x.numpy().astype(np.float64) for x in (outputs, targets))
    share = ((one - two) ** 2).sum() / ((two - two.mean()) ** 2).sum()
    found = figures(Regression(), outputs, targets, parts=100)
    assert found["r2"] == pytest.approx(1 - share, rel=1e-6)


@pytest.mark.parametrize("task", [Regression(), ImageToImage()])
def test_shapes_that_would_be_broadcast_are_refused(task):
    with pytest.raises(QdeployError, match=r"outputs are \[4, 1\] and targets \[4\]; give both"):
        task.loss(torch.ones(4, 1), torch.ones(4))


def test_psnr_by_its_formula_with_values_out_of_range_clipped():
    images = torch.full((2, 1, 16, 16), 0.5)
    found = figures(ImageToImage(), images + 0.1, images, parts=1)
    assert found["psnr"] == pytest.approx(20, rel=1e-4)  # 10 log10(1 / 0.1^2)
    bright = figures(ImageToImage(), images + 7, images, parts=2)
    assert bright["psnr"] == pytest.approx(10 * math.log10(4), rel=1e-4)


def test_multi_label_by_hand():
    logits = torch.tensor([[2.0, -1, -3], [1, 3, -1], [-2, 1, -2], [-1, 2, 4], [3, -4, -1]])
    targets = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 0, 0], [0, 1, 1], [1, 0, 0]])
    found = figures(MultiLabel(), logits, targets, parts=2)
    precision = [1, 1, (1 + 2 / 5) / 2]  # the third class: right at ranks 1 and 5
    assert found["map"] == pytest.approx(np.mean(precision), rel=1e-5)
    f1 = [1, 2 * 2 / (2 * 2 + 1), 2 * 1 / (2 * 1 + 1)]
    assert found["f1"] == pytest.approx(np.mean(f1), rel=1e-5)


def test_label_smoothing_is_of_training_alone():
    logits, labels = EXAMPLES["classification"]
    task = Classification(label_smoothing=0.2)
    plain = nn.functional.cross_entropy(logits, labels)
    uniform = -logits.log_softmax(1).mean()
    assert task.loss(logits, labels).item() == pytest.approx(plain.item())
    expected = 0.8 * plain + 0.2 * uniform
    assert task.training_loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("count", [1, 5])
def test_the_likeliest_are_those_of_a_stable_sort(count):
    """Of few levels, as one bit gives them, many logits are equal."""
    logits, labels = torch.randint(0, 4, (200, 9)).float(), torch.randint(0, 9, (200,))
    first = np.argsort(-logits.numpy(), axis=1, kind="stable")[:, :count]
    expected = (first == labels.numpy()[:, None]).any(1)
    assert is_among_first(count, logits, labels).tolist() == expected.tolist()
    if count == 1:
        assert is_right(logits, labels).tolist() == expected.tolist()


class NotANumber(Task):
    def loss(self, outputs, targets):
        return outputs.mean()

    def metrics(self, classes):
        return {Score("odd", "odd", ""): Odd(nan_strategy="ignore")}


class Odd(MeanMetric):
    def update(self, outputs, targets):
        super().update(outputs)

    def compute(self):
        return torch.tensor(math.nan)


def test_a_score_that_is_no_number_is_named():
    with pytest.raises(QdeployError, match="the metric odd is nan"):
        figures(NotANumber(), torch.ones(2, 1), torch.ones(2, 1), parts=2)


class Extremes(Metric):
    """{"least": ..., "most": ...} of all outputs."""

    def __init__(self):
        super().__init__()
        self.add_state("seen", [], "cat")

    def update(self, outputs, targets):
        self.seen.append(outputs)

    def compute(self):
        seen = torch.cat(self.seen)
        return {"least": seen.min(), "most": seen.max()}


class Several(NotANumber):
    def __init__(self, *names, metric=Extremes):
        self.names, self.metric = names, metric

    def metrics(self, classes):
        return dict.fromkeys([Score(name, name, "") for name in self.names], self.metric())


def test_a_metric_of_several_numbers_gives_each_score_its_own_and_is_updated_once():
    values = randn(7, 2)
    task = Several("most", "least")
    tally = Tally(task, 0)
    for part in values.split(3):
        tally.add(part.mean(), part, None, len(part))
    found = tally.figures()
    assert (found["most"], found["least"]) == (values.max().item(), values.min().item())
    assert len(tally.scoring.metrics["most"].seen) == 3


class Each(Extremes):
    def compute(self):
        return torch.cat(self.seen).mean(0)


class Words(Extremes):
    def compute(self):
        return "much"


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (
            Extremes,
            "score 'mine' computes the numbers least, most; call the score like one of these",
        ),
        (Each, r"score 'mine' computes \[2\]; take a mean over classes"),
        (Words, "score 'mine' computes str; it must compute one number, or a dict"),
    ],
)
def test_a_metric_that_gives_no_number_is_named(metric, said):
    with pytest.raises(QdeployError, match=said):
        figures(Several("mine", metric=metric), torch.ones(4, 2), torch.ones(4), parts=2)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([], "returned no metrics; it must return"),
        (["mae"], "returned 'mae' as a key; it must return"),
        ([Score("loss", "my loss")], "two figures called 'loss'"),
        ([Score("a", "first"), Score("a", "second")], "two figures called 'a'"),
    ],
)
def test_scores_that_would_take_each_others_place_are_refused(scores, said):
    class Mine(Regression):
        def metrics(self, classes):
            return {score: MeanMetric() for score in scores}

    with pytest.raises(QdeployError, match=said):
        Tally(Mine(), 0)


def test_nothing_to_count_is_an_error():
    with pytest.raises(QdeployError, match="nothing to evaluate on"):
        Tally(Regression(), 0).figures()


class TestFinding:
    def test_a_class_of_a_file(self, tmp_path):
        file = tmp_path / "task.py"
        file.write_text(
            "from qdeploy.tasks import Regression\n\n\nclass Mine(Regression):\n"
            "    def __init__(self, unit='m'):\n        super().__init__('l1', unit)\n"
        )
        assert load_task(f"{file}:Mine", {"unit": "K"}).unit == "K"

    @pytest.mark.parametrize(
        ("kind", "options", "said"),
        [
            ("segmentatoin", {}, "unknown task 'segmentatoin'.* Did you mean segmentation"),
            (
                "segmentation",
                {"dise": 1},
                "unknown key task.options.dise. Task segmentation takes ignore",
            ),
            ("regression", {"loss": "l3"}, "task.options.loss: given 'l3', allowed: 'l1', 'l2'"),
            (
                "collections:OrderedDict",
                {},
                "task 'collections:OrderedDict' does not say what it takes",
            ),
            ("argparse:Namespace", {}, "is Namespace; it must be a subclass of qdeploy.tasks.Task"),
            ("nowhere.py:Mine", {}, "there is no task file nowhere.py; give one of classification"),
        ],
    )
    def test_what_is_no_task(self, kind, options, said):
        with pytest.raises(QdeployError, match=said):
            load_task(kind, options)


class TestScores:
    def test_what_is_written_is_read(self, tmp_path):
        scores = tuple(ImageToImage().metrics(0))
        write_scores(tmp_path / "scores.json", scores)
        assert read_scores(tmp_path / "scores.json") == scores

    def test_a_run_from_before_tasks_is_a_classification(self, tmp_path):
        assert [score.name for score in read_scores(tmp_path / "scores.json")] == ["top1", "top5"]

    @pytest.mark.parametrize("text", ["{", '[{"nam": 1}]', "[3]"])
    def test_anything_else_is_named(self, tmp_path, text):
        (tmp_path / "scores.json").write_text(text)
        with pytest.raises(QdeployError, match="does not list the scores of a run"):
            read_scores(tmp_path / "scores.json")

    def test_words(self):
        scores = list(ImageToImage().metrics(0))
        values = {"loss": 0.01, "psnr": 31.416, "ssim": 0.91234, "mae": 0.02}
        assert described(values, scores) == "loss 0.0100  PSNR 31.42 dB  SSIM 0.9123  MAE 0.02"
