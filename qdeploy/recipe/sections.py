"""The sections of a recipe, and what their keys may be."""

import os
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationInfo,
    model_validator,
    with_config,
)
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

_CHECKS = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _absolute(path: str, info: ValidationInfo) -> str:
    """The absolute form of a path that a recipe gives.

    A relative path starts at the recipe's folder if it exists there, else at the working
    directory: a recipe can travel with its files, and an override is meant as it is typed.
    """
    folder = (info.context or {}).get("folder", Path())
    given = Path(os.path.expanduser(path))
    beside = folder / given
    return str((beside if beside.exists() else given).resolve())


def _absolute_network(network: str, info: ValidationInfo) -> str:
    """`file.py:function` with an absolute file; other ways to name a network stay as they are."""
    file, _, function = network.rpartition(":")
    return f"{_absolute(file, info)}:{function}" if file.endswith(".py") else network


def _bits_or_float(bits: object) -> int | None:
    """Bits of the activations, None for the word "float"."""
    if bits is None or bits == "float":
        return None
    if type(bits) is int and 1 <= bits <= 16:
        return bits
    raise ValueError(f'given {bits!r}, allowed: 1 to 16, or "float"')


FilePath = Annotated[str, AfterValidator(_absolute)]
Network = Annotated[str, AfterValidator(_absolute_network)]
WeightBits = Annotated[int, Field(ge=1, le=16)]
ActBits = Annotated[
    int | None,
    PlainValidator(_bits_or_float),
    PlainSerializer(lambda bits: "float" if bits is None else bits),
]
# A TOML array is a list to Python; `strict` would insist on a tuple.
Means = Annotated[tuple[float, ...], Field(strict=False)]
Deviations = Annotated[tuple[PositiveFloat, ...], Field(strict=False)]
Milestones = Annotated[tuple[PositiveInt, ...], Field(strict=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
BatchSize = Annotated[int, Field(ge=2)]  # BatchNorm cannot train on a single image
Betas = Annotated[tuple[Fraction, Fraction], Field(strict=False)]


class Section(BaseModel):
    model_config = _CHECKS


class Phase(Section):
    """Part of a regime: from `epoch` or from `step` on (both from 0), what its other keys say."""

    epoch: NonNegativeInt | None = None
    step: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _starts_once(self) -> Self:
        if (self.epoch is None) == (self.step is None):
            raise ValueError("a phase starts at an epoch or at a step, counted from 0: give one")
        return self

    def begun(self, epoch: int, step: int) -> bool:
        """Whether `step` of the run, which lies in `epoch`, is in this phase or after it."""
        if self.epoch is not None:
            return epoch >= self.epoch
        return self.step is not None and step >= self.step

    @property
    def changes(self) -> dict[str, Any]:
        """The keys that it gives, without where it starts."""
        return self.model_dump(exclude={"epoch", "step"}, exclude_none=True)


class _Phased(Section):
    """A section that changes in training: each phase of its regime changes the keys it gives."""

    regime: Annotated[tuple[Phase, ...], Field(strict=False)] = ()

    def at(self, epoch: int, step: int) -> Self:
        """The section in `step` of the run, which lies in `epoch`, both from 0.

        Depends on nothing else, so that a resumed run is in the right phase at once.
        """
        return self._after(phase for phase in self.regime if phase.begun(epoch, step))

    def phases(self) -> Iterator[Self]:
        """The section as it starts, and as it is after each of its phases."""
        for count in range(len(self.regime) + 1):
            yield self._after(self.regime[:count])

    def _after(self, phases: Iterable[Phase]) -> Self:
        changes: dict[str, Any] = {}
        for phase in phases:
            changes |= phase.changes
        return self.model_copy(update=changes)

    @model_validator(mode="after")
    def _phases_are_in_order(self) -> Self:
        for unit in ("epoch", "step"):
            starts = [getattr(phase, unit) for phase in self.regime]
            starts = [start for start in starts if start is not None]
            if starts != sorted(set(starts)):
                raise ValueError(
                    f"the phases of a regime start one after the other; {unit}s given: "
                    f"{', '.join(map(str, starts))}"
                )
        return self


class ModelSection(Section):
    """The float network.

    `network`: a zoo name, `file.py:function` or `package.module:function`; the function is called
    with `options`. `weights`: file of trained float weights to start from.
    """

    network: Network
    options: dict[str, Any] = {}
    weights: FilePath | None = None


class DataPhase(Phase):
    """What [data] becomes in an epoch; one that is given in steps starts with the next epoch."""

    batch_size: BatchSize | None = None
    image_size: PositiveInt | None = None
    pad_crop: NonNegativeInt | None = None
    flip: bool | None = None


class DataSection(_Phased):
    """The data set, its batches and their augmentation.

    `mean` and `std` per channel normalise pixels scaled to 0..1; None takes the data set's own.
    `title` is what reports call the data, if not by its usual name.
    `pad_crop` pads by so many black pixels and crops back at random; with `flip` it serves the
    small data sets. `image_size`: the images are resized to a square of so many pixels; None
    leaves them as they are, and takes 224 for `folder`. `workers` (processes that decode) serves
    `folder`. `regime` changes the batches of training only: what is tested and exported has the
    size that stands here.
    """

    dataset: Literal["digits", "mnist", "fashion-mnist", "cifar10", "folder"]
    root: FilePath | None = None
    title: str | None = None
    mean: Means | None = None
    std: Deviations | None = None
    batch_size: BatchSize = 128
    pad_crop: NonNegativeInt = 0
    flip: bool = False
    image_size: PositiveInt | None = None
    workers: NonNegativeInt = 2
    regime: Annotated[tuple[DataPhase, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _normalisation_is_whole(self) -> "DataSection":
        if self.mean is None and self.std is None:
            return self
        if not self.mean or not self.std or len(self.mean) != len(self.std):
            raise ValueError("mean and std go together, with one value for each channel each")
        return self

    @model_validator(mode="after")
    def _keys_fit_the_dataset(self) -> "DataSection":
        augmented = any(section.pad_crop or section.flip for section in self.phases())
        if self.dataset == "folder" and augmented:
            raise ValueError(
                "pad_crop and flip do not apply to a folder, which is trained with"
                " random-resized crops and flips; remove them"
            )
        return self


@with_config(_CHECKS)
class LayerOverride(TypedDict, total=False):
    """What one glob of layers does differently; a key that is absent is as in [quantize]."""

    method: str
    weight_bits: WeightBits
    act_bits: ActBits
    options: dict[str, Any]


def _layer_kind(layer: object) -> str:
    return "float" if isinstance(layer, str) else "override"


Layer = Annotated[
    Annotated[Literal["float"], Tag("float")] | Annotated[LayerOverride, Tag("override")],
    Discriminator(_layer_kind),
]


class QuantizeSection(Section):
    """The method (`float`: none), its bits and its own `options`, which the method validates.

    `act_bits` None leaves the activations in float and is written "float" in TOML.
    `layers` maps a glob of layer names to "float" or to what differs there. `equalize` first gives
    the channels of each tensor one size. `leaves`: globs of modules that are kept whole and in
    float, such as those that torch.fx cannot trace.
    """

    method: str
    weight_bits: WeightBits = 8
    act_bits: ActBits = 8
    first_last_float: bool = False
    equalize: bool = False
    options: dict[str, Any] = {}
    layers: dict[str, Layer] = {}
    leaves: list[str] = []


class CalibrateSection(Section):
    """What is done where nothing is trained: keys and values of qdeploy.calibrate.

    The defaults are what lost least in tools/compare_calibration.py.
    """

    ranges: Literal["mean", "minmax", "percentile", "mse", "entropy"] = "mse"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    batch_norm: bool = False
    correct_bias: bool = True


Optimizer = Literal["sgd", "adam", "adamw"]


class TrainPhase(Phase):
    """What the optimizer becomes. Momentum is kept until another kind of optimizer starts anew."""

    optimizer: Optimizer | None = None
    lr: PositiveFloat | None = None
    momentum: Fraction | None = None
    nesterov: bool | None = None
    betas: Betas | None = None
    weight_decay: NonNegativeFloat | None = None


class TrainSection(_Phased):
    """The optimizer and its schedule; epochs are counted in passes over the training set.

    `epochs` 0 trains nothing: a trained float network is only calibrated, as [calibrate] says.
    `schedule` multiplies `lr`; None is "constant" where a regime gives learning rates and "cosine"
    elsewhere. `milestones`: epochs after which schedule "step" multiplies it by `gamma`.
    `float_epochs`: epochs of float training before quantization. `calibration_batches`: batches
    from which BatchNorm statistics and activation ranges are estimated again for what ships.
    `distill`: share of the loss that comes from the float network, as training/distillation.py
    has it. The float epochs go through the same `regime` as those that follow.
    `precision`: bits of the products of training; the quantizers, the norms, the weights and all
    evaluation stay float32. `deterministic`: the same bits each time on a GPU too, more slowly.
    """

    epochs: NonNegativeInt = 10
    seed: NonNegativeInt = 0
    optimizer: Optimizer = "sgd"
    lr: PositiveFloat = 0.01
    momentum: Fraction = 0.9
    nesterov: bool = False
    betas: Betas = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.0
    schedule: Literal["cosine", "step", "constant"] | None = None
    milestones: Milestones = ()
    gamma: PositiveFloat = 0.1
    warmup_epochs: NonNegativeInt = 0
    label_smoothing: Fraction = 0.0
    clip_norm: PositiveFloat | None = None
    float_epochs: NonNegativeInt = 0
    calibration_batches: PositiveInt = 50
    distill: Annotated[float, Field(ge=0, le=1)] = 0.0
    regime: Annotated[tuple[TrainPhase, ...], Field(strict=False)] = ()
    precision: Literal["32", "bf16", "fp16"] = "32"
    deterministic: bool = False

    @property
    def regime_gives_lr(self) -> bool:
        return any(phase.lr is not None for phase in self.regime)

    @model_validator(mode="after")
    def _steps_have_milestones(self) -> "TrainSection":
        if self.schedule == "step" and not self.milestones:
            raise ValueError('schedule = "step" needs milestones, such as milestones = [30, 60]')
        if self.schedule == "step" and self.regime_gives_lr:
            raise ValueError(
                'schedule = "step" and the lr of a regime both step the learning rate; remove one'
            )
        return self

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "TrainSection":
        if any(section.nesterov and not section.momentum for section in self.phases()):
            raise ValueError("nesterov = true needs momentum above 0")
        return self


def _known_target(name: str) -> str:
    # The targets stand above the recipe, which asks their package for names when it is validated.
    targets = import_module("qdeploy.deploy.targets").available()
    if name not in targets:
        raise PydanticCustomError("target", "{names}", {"names": ", ".join(map(repr, targets))})
    return name


class ExportSection(Section):
    """What is exported, and the gates that it must pass.

    `target`: the runtime that the file is for. `input`: the images that it takes, normalised ones
    or pixels. `max_drop`: points of top-1 accuracy lost against float. `min_agreement`: share (0..1) of
    images with the same top-1 as the integers in PyTorch. `max_size`: bytes of the file.
    """

    target: Annotated[str, AfterValidator(_known_target)] = "cpu"
    input: Literal["float32", "uint8"] = "float32"
    max_drop: NonNegativeFloat | None = None
    min_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    max_size: PositiveInt | None = None
