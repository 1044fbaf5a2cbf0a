"""The training loop, on Lightning Fabric."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from qdeploy import processes
from qdeploy.data import Batch, Data
from qdeploy.errors import QdeployError
from qdeploy.layers.norm import norms_over_processes
from qdeploy.metrics import EpochRecord, Figures, write_metrics
from qdeploy.preparation.calibrate import calibrate
from qdeploy.preparation.prepared import PreparedNetwork, committed_latents, is_searching
from qdeploy.preparation.trace import Inputs, as_inputs
from qdeploy.recipe import TrainSection
from qdeploy.scores import write_scores
from qdeploy.tasks import Tally, contiguous, size_of
from qdeploy.training.checkpoint import Checkpoint, fingerprint
from qdeploy.training.console import Advance
from qdeploy.training.device import channels_last, determinism, seed_epoch
from qdeploy.training.evaluate import evaluate, labels_explained, shipped_buffers
from qdeploy.training.optimizer import adjust_optimizer, make_optimizer
from qdeploy.training.schedule import set_lr
from qdeploy.training.session import Session
from qdeploy.training.weights import load_network_state


def fit(
    session: Session,
    network: nn.Module,
    data: Data,
    *,
    teacher: nn.Module | None = None,
    follow: Callable[[], object] = lambda: None,
) -> list[EpochRecord]:
    """Train `network` in place; after each epoch the run's folder holds all that is needed to go on.

    Returns the records of all epochs of the run, those before a resumption included.

    Every process of the session calls it, with its share of `data`. A run that is resumed ends, on
    a CPU, in the very weights of one that was never interrupted, unless it compiles. `teacher` is the
    trained float network that train.distill learns from; it stays as it is. `follow` is called in the
    first process when metrics.csv is in place: before the first epoch and after each.

    Raises QdeployError for a checkpoint of another run and if the loss is no longer finite, and
    passes KeyboardInterrupt on; the checkpoint of the last finished epoch stays.
    """
    run, console, settings = session.run, session.console, session.recipe.train
    if settings.compile:
        console.log("compiling: the first steps take minutes")
    checkpoint = session.last_checkpoint()
    training = Training(session, network, data, checkpoint, teacher)
    history = checkpoint.history if checkpoint else []
    if checkpoint:
        console.log(f"resumed after epoch {checkpoint.epoch} of {settings.epochs}")
    if processes.rank() == 0:
        write_scores(run.scores, session.scores)
        # Takes back an epoch that never got its checkpoint.
        write_metrics(run.metrics, history, session.scores)
        follow()
    try:
        with (
            determinism(settings.deterministic),
            norms_over_processes(network),
            console.progress(settings.epochs, data.train.samples, done=len(history)) as advance,
        ):
            for epoch in range(len(history), settings.epochs):
                started = time.perf_counter()
                training.enter(epoch)
                trained = training.train(epoch, advance)
                tested, buffers = training.evaluate(epoch)
                record = training.record(epoch, trained, tested, time.perf_counter() - started)
                session.keep(training.checkpoint([*history, record], buffers))
                history.append(record)
                if processes.rank() == 0:
                    follow()
                console.log(record.text(session.scores))
    except KeyboardInterrupt:
        console.log(f"stopped: {run.path} holds {len(history)} of {settings.epochs} epochs")
        raise
    return history


class Training:
    """A network with its optimizer on a device, and what happens to them in one epoch."""

    def __init__(
        self,
        session: Session,
        network: nn.Module,
        data: Data,
        checkpoint: Checkpoint | None,
        teacher: nn.Module | None,
    ) -> None:
        self.data = data
        self.task, self.classes = session.task, session.classes
        self.recipe = session.recipe
        self.settings = session.recipe.train
        self.fabric = fabric = session.fabric
        self.network = fabric.to_device(channels_last(network))
        if checkpoint:
            load_network_state(network, checkpoint, shipped=False)
        if teacher:
            fabric.to_device(channels_last(teacher.eval().requires_grad_(False)))
        self.teacher = teacher
        self.phase = self.settings_after(checkpoint.epoch if checkpoint else 0)
        optimizer = make_optimizer(network, self.phase)
        if checkpoint:
            optimizer.load_state_dict(checkpoint.optimizer)
            fabric.strategy.precision.load_state_dict(checkpoint.scaler)
        self.optimizer = self._set_up(optimizer)
        # The network itself stays plain: evaluation and checkpoints know nothing of it.
        self.model = fabric.setup_module(compiled(network) if self.settings.compile else network)
        self.at_rest: list[nn.Parameter] = []

    def enter(self, epoch: int) -> None:
        """Move the network's own schedules to `epoch`."""
        was_searching = is_searching(self.network)
        self.set_progress(epoch)
        self.at_rest = committed_latents(self.network)
        seed_epoch(self.settings.seed, epoch)
        if was_searching and not is_searching(self.network):
            calibrate(self.network, self.calibration_batches(epoch), batch_norm=True)

    def set_progress(self, epoch: int) -> None:
        """Tell a prepared network that `epoch` (from 0) is about to be trained."""
        if isinstance(self.network, PreparedNetwork):
            self.network.set_progress(epoch, self.settings.epochs)

    def train(self, epoch: int, advance: Advance) -> Figures:
        """One pass over the training set; returns the figures while the weights moved."""
        self.network.train()
        tally, losses = Tally(self.task, self.classes), MeanLoss()

        def count(step: int, lr: float, loss: Tensor, samples: int) -> None:
            value = loss.item()
            if not math.isfinite(value):
                raise _diverged(f"loss {value} in epoch {epoch + 1}, step {step + 1}", lr)
            losses.add(value, samples)
            advance(epoch, samples, losses.mean)

        first, end = (self.data.train.steps_before(index) for index in (epoch, epoch + 1))
        uncounted: tuple[int, float, Tensor, int] | None = None
        for step, (inputs, targets) in enumerate(self.data.train.epoch(epoch)):
            self.enter_phase(epoch, first + step)
            # The middle of the step: neither a warm-up's first nor a cosine's last is wasted on 0.
            lr = set_lr(self.optimizer, self.phase, epoch + (step + 0.5) / (end - first))
            loss, outputs = self.train_step(inputs, targets)
            samples = size_of(inputs)
            tally.add(loss, outputs, targets, samples)
            # Reading a value waits for the device, so it is given the next step before that.
            if uncounted:
                count(*uncounted)
            uncounted = step, lr, loss, samples * processes.count()
        if uncounted:
            count(*uncounted)
        return tally.figures()

    def settings_after(self, epochs: int) -> TrainSection:
        """The settings of the last step of so many epochs; of the first step if there are none."""
        last = self.data.train.steps_before(epochs) - 1
        return self.settings.at(max(epochs - 1, 0), max(last, 0))

    def enter_phase(self, epoch: int, step: int) -> None:
        """Give the optimizer the settings of `step` of the run; one of another kind starts anew."""
        settings = self.settings.at(epoch, step)
        if settings.optimizer != self.phase.optimizer:
            self.optimizer = self._set_up(make_optimizer(self.network, settings))
        elif settings != self.phase:
            adjust_optimizer(self.optimizer, settings)
        self.phase = settings

    def _set_up(self, optimizer: Optimizer) -> Optimizer:
        return cast(Optimizer, self.fabric.setup_optimizers(optimizer))

    def outputs(self, inputs: Inputs) -> Any:
        """What the network gives in training. Errors: QdeployError where torch cannot compile it."""
        try:
            return contiguous(self.model(*as_inputs(inputs)))
        except torch._dynamo.exc.TorchDynamoException as error:  # imported only if something failed
            reason = " ".join(str(error).strip().partition("\n\n")[0].split())
            raise QdeployError(
                f"train.compile = true, and torch.compile failed: {reason}. On a CPU it needs a C++ compiler "
                "(g++), on a GPU Triton; set train.compile = false to train without it"
            ) from error

    def loss(self, outputs: Any, inputs: Inputs, targets: Any) -> Tensor:
        """The task's loss and, with a teacher, its share of distillation."""
        with labels_explained(self.classes):
            loss = self.task.training_loss(outputs, targets)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            taught = contiguous(self.teacher(*as_inputs(inputs)))
        share = self.settings.distill
        return (1 - share) * loss + share * self.task.distillation(outputs, taught)

    def train_step(self, inputs: Inputs, targets: Any) -> tuple[Tensor, Any]:
        """One step of the optimizer; the batch's mean loss, and the outputs that it came from.

        The loss is that of all processes: either all of them find it finite, or none.
        """
        outputs = self.outputs(inputs)
        loss = self.loss(outputs, inputs, targets)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        for latent in self.at_rest:
            latent.grad = (
                None  # over several processes zeros, with which decay and momentum would come
            )
        if (longest := self.settings.clip_norm) is not None:
            self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=longest, error_if_nonfinite=False
            )
        self.optimizer.step()
        return processes.mean(loss.detach()), outputs

    def evaluate(self, epoch: int) -> tuple[Figures, dict[str, Tensor]]:
        """The figures of the weights that would ship now, and those of their buffers that differ."""
        with shipped_buffers(self.network, self.calibration_batches(epoch)) as buffers:
            figures = evaluate(self.network, self.data.test.epoch(0), self.task, self.classes)
        if not math.isfinite(figures["loss"]):
            raise _diverged(f"test loss {figures['loss']} after epoch {epoch + 1}", self.lr)
        return figures, buffers

    def calibration_batches(self, epoch: int) -> Iterator[Batch]:
        """The first training batches of `epoch`."""
        return islice(self.data.train.epoch(epoch), self.settings.calibration_batches)

    def record(self, epoch: int, trained: Figures, tested: Figures, seconds: float) -> EpochRecord:
        """The line of metrics.csv of `epoch`."""
        return EpochRecord(
            epoch=epoch + 1,
            steps=self.data.train.steps_before(epoch + 1),
            lr=self.lr,
            train=trained,
            test=tested,
            seconds=seconds,
            progress=self.network.progress if isinstance(self.network, PreparedNetwork) else {},
        )

    def checkpoint(self, history: list[EpochRecord], buffers: dict[str, Tensor]) -> Checkpoint:
        """Everything that the next epoch depends on, as it is now."""
        return Checkpoint(
            fingerprint=fingerprint(self.recipe),
            history=history,
            state=self.network.state_dict(),
            shipped=buffers,
            optimizer=self.optimizer.state_dict(),
            scaler=self.fabric.strategy.precision.state_dict(),
        )

    @property
    def lr(self) -> float:
        """The learning rate of the latest step."""
        return self.optimizer.param_groups[0]["lr"]


class MeanLoss:
    """Of the samples so far; their loss is read anyway, to see whether it is finite."""

    def __init__(self) -> None:
        self.total, self.samples = 0.0, 0

    def add(self, loss: float, samples: int) -> None:
        self.total += loss * samples
        self.samples += samples

    @property
    def mean(self) -> float:
        return self.total / self.samples


def compiled(network: nn.Module) -> nn.Module:
    """As torch.compile makes it. Errors: QdeployError in a run of several processes."""
    if processes.count() > 1:
        raise QdeployError(
            "train.compile = true trains in one process; leave --devices out, or set it to false"
        )
    return cast(nn.Module, torch.compile(network))


def _diverged(what: str, lr: float) -> QdeployError:
    return QdeployError(
        f"training diverged: {what}, at learning rate {lr:.3g}; lower train.lr, lengthen "
        "train.warmup_epochs or set train.clip_norm. The checkpoints of finished epochs are kept"
    )
