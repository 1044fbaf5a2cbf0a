"""The sections of a recipe, and what their keys may be."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
    with_config,
)
from typing_extensions import Self, TypedDict

from qdeploy import datasets
from qdeploy.recipe.values import (
    ActBits,
    BatchSize,
    Betas,
    DatasetName,
    Deviations,
    FilePath,
    Fraction,
    Means,
    Milestones,
    Network,
    Resize,
    Scale,
    TargetName,
    TaskKind,
    WeightBits,
)

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Section(BaseModel):
    model_config = _STRICT


class Phase(Section):
    """Part of a regime: its other keys hold from `epoch` or from `step` on, both counted from 0."""

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
        """The keys that the phase sets, without its start."""
        return self.model_dump(exclude={"epoch", "step"}, exclude_none=True)


class _PhasedSection(Section):
    """A section that changes in training: each phase of its regime changes the keys that it sets."""

    regime: Annotated[tuple[Phase, ...], Field(strict=False)] = ()

    def at(self, epoch: int, step: int) -> Self:
        """The section as it is in `step` of the run, which lies in `epoch`, both from 0.

        It depends on nothing else, so that a resumed run is in the right phase at once.
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

    network  a zoo name, `file.py:function` or `package.module:function`
    options  the keyword arguments that the function is called with
    weights  trained float weights to start from: a state_dict, or a float run's folder or checkpoint
    """

    network: Network
    options: dict[str, Any] = {}
    weights: FilePath | None = None


class TaskSection(Section):
    """What the network is for.

    kind     a task's name, `file.py:Class` or `package.module:Class`
    options  the keyword arguments that it is made with
    """

    kind: TaskKind = "classification"
    options: dict[str, Any] = {}


Augmentation = Literal["none", "light", "imagenet"]

# What decoding is told; arrays on the device know none of it.
_FOR_IMAGE_FILES = (
    "augmentation", "crop_scale", "colour_jitter", "resize", "interpolation", "scan", "on_bad_file",
)  # fmt: skip


class DataPhase(Phase):
    """Changes to [data]. A phase given by its step takes effect at the start of the next epoch."""

    batch_size: BatchSize | None = None
    image_size: PositiveInt | None = None
    pad_crop: NonNegativeInt | None = None
    flip: bool | None = None
    augmentation: Augmentation | None = None
    crop_scale: Scale | None = None
    colour_jitter: Fraction | None = None


class DataSection(_PhasedSection):
    """The data set, its batches and their augmentation.

    dataset     its name: a module of qdeploy.datasets or an entry point of another package; or a function
                that returns its parts, `file.py:function` or `package.module:function`
    options     the keyword arguments of that function
    root        the folder where the data are, else ./data; --data-root wins
    title       what reports call the data, else its usual name
    mean, std   per channel, of pixels scaled to 0..1; None: the data set's own
    batch_size  of all devices together
    val_share   share of the training images (above 0, below 1) that are kept for validation, drawn
                class by class from the run's seed; None: none, or a folder of its own
    pad_crop    black pixels added on each side, before images are cropped back at random; not for
                image files
    flip        half of the training images are mirrored; None: as `augmentation` says
    image_size  pixels of the square that images are resized to; None: their own size; of image
                files 224, or the median of their short sides if that is less
    workers     processes that look at image files and decode them
    regime      changes of the training batches; what is tested and exported keeps this image_size

    Of image files:

    augmentation   what flip and crop_scale are unless given: "none": as in testing; "light":
                   70 to 100 % of the area, mirrored; "imagenet": 8 to 100 %, mirrored
    crop_scale     least and largest share of the area that a random crop takes (0..1)
    colour_jitter  by how much brightness, contrast and saturation are raised or lowered at most (0..1)
    resize         short side in pixels before testing cuts the centre of image_size out; "whole":
                   the whole image is stretched to the square; None: 256/224 of image_size
    interpolation  of every resizing
    scan           what is read of each file before training: its "header", or the "full" image
    on_bad_file    "error", or "skip": files that the scan cannot read are left out, and named
    """

    dataset: DatasetName
    options: dict[str, Any] = {}
    root: FilePath | None = None
    title: str | None = None
    mean: Means | None = None
    std: Deviations | None = None
    batch_size: BatchSize = 128
    val_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    pad_crop: NonNegativeInt = 0
    flip: bool | None = None
    augmentation: Augmentation = "imagenet"
    crop_scale: Scale | None = None
    colour_jitter: Fraction = 0.0
    image_size: PositiveInt | None = None
    resize: Resize = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    workers: NonNegativeInt = 2
    scan: Literal["header", "full"] = "header"
    on_bad_file: Literal["error", "skip"] = "error"
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
        if ":" in self.dataset:
            return self._is_left_to_its_function()
        if self.options:
            raise ValueError(
                f"options are for a data set that is a function, and {self.dataset} is not"
            )
        if datasets.find(self.dataset).image_files:
            if any(section.pad_crop for section in self.phases()):
                raise ValueError(
                    "pad_crop does not apply to image files, which crop_scale crops at random; remove it"
                )
            return self
        if unused := self._set(_FOR_IMAGE_FILES):
            raise ValueError(
                f"{', '.join(unused)} in [data] does not apply to {self.dataset}, whose images are no "
                "files of their own; remove it"
            )
        return self

    def _set(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys that are not at their default, or change in training."""
        fields = type(self).model_fields
        return [
            key
            for key in keys
            if any(getattr(part, key) != fields[key].default for part in self.phases())
        ]

    def _is_left_to_its_function(self) -> Self:
        own = ("mean", "std", "val_share", "pad_crop", "flip", "image_size", *_FOR_IMAGE_FILES)
        if given := self._set(own):
            raise ValueError(
                f"{', '.join(given)} cannot be given for {self.dataset}, whose function returns items as the"
                " network takes them; remove them, or do it there"
            )
        return self


@with_config(_STRICT)
class LayerOverride(TypedDict, total=False):
    """What differs for the layers of one glob; an absent key is as in [quantize]."""

    method: str
    weight_bits: WeightBits
    act_bits: ActBits
    options: dict[str, Any]


# The word "float" or a table. With a tag, pydantic reports only what is wrong with the one that is meant.
LayerSetting = Annotated[
    Annotated[Literal["float"], Tag("word")] | Annotated[LayerOverride, Tag("table")],
    Discriminator(lambda setting: "word" if isinstance(setting, str) else "table"),
]


class QuantizeSection(Section):
    """The method, its bits, and the layers that differ.

    method            one of `qdeploy methods`, or "float" for none
    act_bits          None, "float" in TOML, leaves the activations in float
    first_last_float  leaves the first and the last layer in float, whatever `layers` says
    equalize          first rescales the channels of each tensor to the same range
    reduce_range      smaller weights where x86 without VNNI could not add up those of 8 bits: 7 bits,
                      or -127..127 in depthwise layers
    options           the method's own settings, which the method validates
    layers            from a glob of layer names to "float" or to what differs there
    leaves            globs of modules that stay whole and in float, such as those that torch.fx
                      cannot trace; "first -> last" for all between two modules or nodes
    check             compares the prepared network with the float one before it trains
    """

    method: str
    weight_bits: WeightBits = 8
    act_bits: ActBits = 8
    first_last_float: bool = False
    equalize: bool = False
    reduce_range: bool = True
    options: dict[str, Any] = {}
    layers: dict[str, LayerSetting] = {}
    leaves: list[str] = []
    check: bool = True


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
    """Changes to the optimizer. Its momentum carries over unless the kind of optimizer changes."""

    optimizer: Optimizer | None = None
    lr: PositiveFloat | None = None
    momentum: Fraction | None = None
    nesterov: bool | None = None
    betas: Betas | None = None
    weight_decay: NonNegativeFloat | None = None


class TrainSection(_PhasedSection):
    """The optimizer, its schedule, and what else is decided for training.

    epochs               passes over the training set; 0 only calibrates, as [calibrate] says
    float_epochs         epochs in float before those, under the same schedule and regime
    momentum, nesterov   of sgd
    betas                of adam and adamw
    weight_decay         of weights; biases, norms and scales are spared
    schedule             the factor of `lr`; None: "cosine", or "constant" under a regime that gives lr
    milestones           epochs after which schedule "step" multiplies lr by `gamma`
    warmup_epochs        epochs in which lr rises to its value
    clip_norm            the longest gradient; None: any length
    distill              share of the loss that the float network's outputs make (0..1)
    calibration_batches  training batches from which BatchNorm statistics and activation ranges are
                         re-estimated for the weights that ship
    regime               changes of the optimizer, phase by phase
    precision            of training's products; quantizers, norms, weights and evaluation stay float32
    deterministic        the same bits each time on a GPU too, more slowly
    compile              training steps run as torch.compile makes them, in one process
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
    compile: bool = False

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


class ExportSection(Section):
    """What is exported, and the gates that it must pass.

    `target`: the runtime that the file is for. `input`: the images that it takes, normalised ones
    or pixels. `max_drop`: what the task's first score may lose against float, points of a share, else in its
    unit. `min_agreement`: share (0..1) of decisions that are those of the integers in PyTorch, such as
    images in the same class. `min_sqnr`: dB of the outputs over their difference from these integers.
    `gates`: the file's own scores by name, the least of those where more is better, else the most.
    `max_differing`: codes of integer kernels that may differ from these integers. `max_size`: bytes of the
    file. `input_names`, `output_names`: in place of "input" and the task's. `readable`: names of all nodes
    and values, also of small files. `dynamic`: axes of the image, beside the batch, that the file takes in
    any size.
    """

    target: TargetName = "cpu"
    input: Literal["float32", "uint8"] = "float32"
    input_names: list[str] | None = None
    output_names: list[str] | None = None
    readable: bool = False
    dynamic: list[Literal["height", "width"]] = []
    max_drop: NonNegativeFloat | None = None
    min_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    min_sqnr: float | None = None
    gates: dict[str, float] = {}
    max_differing: NonNegativeInt | None = None
    max_size: PositiveInt | None = None
