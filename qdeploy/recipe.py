"""The recipe: everything that a run is made from, as one validated TOML file.

A recipe is read from a file or, by name, from the zoo; single keys are changed with overrides
such as `train.lr=0.01`. Whatever is wrong with it is a `QdeployError` that names the key.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import tomli_w
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
    ValidationError,
    ValidationInfo,
    model_validator,
    with_config,
)
from pydantic_core import ErrorDetails
from typing_extensions import TypedDict

from qdeploy.errors import QdeployError
from qdeploy.validation import allowed, did_you_mean

_ZOO = "qdeploy.models.recipes"
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


class _Section(BaseModel):
    model_config = _CHECKS


class Phase(_Section):
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


class _Phased(_Section):
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


class ModelSection(_Section):
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


class QuantizeSection(_Section):
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


class CalibrateSection(_Section):
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


class ExportSection(_Section):
    """What is exported, and the gates that it must pass.

    `target`: the runtime that the file is for. `input`: the images that it takes, normalised ones
    or pixels. `max_drop`: points of top-1 accuracy lost against float. `min_agreement`: share (0..1) of
    images with the same top-1 as in training. `max_size`: bytes of the file.
    """

    target: Literal["cpu", "tensorrt", "openvino"] = "cpu"
    input: Literal["float32", "uint8"] = "float32"
    max_drop: NonNegativeFloat | None = None
    min_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    max_size: PositiveInt | None = None


class Recipe(_Section):
    """One run, entirely. Without [quantize] it is trained in float."""

    name: Annotated[str, Field(min_length=1)]
    model: ModelSection
    data: DataSection
    quantize: QuantizeSection = QuantizeSection(method="float")
    calibrate: CalibrateSection = CalibrateSection()
    train: TrainSection = TrainSection()
    export: ExportSection = ExportSection()

    @model_validator(mode="after")
    def _distillation_has_a_teacher(self) -> "Recipe":
        if self.train.distill and self.quantize.method == "float":
            raise ValueError(
                "train.distill teaches a quantized network; remove it, or give quantize.method"
            )
        if self.train.distill and self.model.weights is None and not self.train.float_epochs:
            raise ValueError(
                "train.distill needs a trained float network to learn from: give the file of its "
                "weights as model.weights, or train it first, with train.float_epochs"
            )
        return self

    @model_validator(mode="after")
    def _what_is_only_calibrated_was_trained(self) -> "Recipe":
        trained = self.model.weights is not None or self.train.float_epochs
        if self.train.epochs == 0 and not trained:
            raise ValueError(
                "train.epochs = 0 only calibrates a trained float network: give the file of its "
                "weights as model.weights, or train it first, with train.float_epochs"
            )
        if self.train.epochs and "calibrate" in self.model_fields_set:
            raise ValueError(
                "[calibrate] says what is done instead of training; remove it, or set train.epochs = 0"
            )
        return self

    @classmethod
    def load(cls, source: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        """The recipe in the file `source` (*.toml) or of that name in the zoo.

        `extends = "name or path"` takes from another recipe what this one leaves out, but not the
        options of another method; paths count from the folder of the recipe they stand in. Each
        override is `section.key=value`, the value in TOML or else plain text; a glob is quoted:
        `quantize.layers."conv*".weight_bits=2`. A recipe that does not give its `name` has the
        file's. Raises QdeployError for whatever is wrong with it.
        """
        file = _recipe_file(str(source))
        table = _with_base(_parse(file), [os.path.normpath(source)])
        for override in overrides:
            if _key_path(override) == ["quantize", "method"]:
                _set_method(table, _value(override.partition("=")[2]))
            _assign(table, override)
        table.setdefault("name", Path(file.name).stem)
        return cls._checked(table, " with ".join([str(source), *overrides]), Path(source).parent)

    def with_regimes(self, regimes: Mapping[str, object], origin: str) -> "Recipe":
        """The recipe with these in place of the regimes of the sections that they name.

        Raises QdeployError that begins with `origin` for whatever is wrong with them.
        """
        table = self._table()
        for section, regime in regimes.items():
            table[section]["regime"] = regime
        return self._checked(table, origin, Path())

    @classmethod
    def _checked(cls, table: dict[str, Any], origin: str, folder: Path) -> "Recipe":
        try:
            return cls.model_validate(table, context={"folder": folder})
        except ValidationError as error:
            problems = [f"{origin}: {_problem(details)}" for details in error.errors()]
            raise QdeployError("\n".join(problems)) from None

    def to_toml(self, defaults: bool = True) -> str:
        """TOML that loads as an equal recipe; without defaults, by the same version of qdeploy."""
        return tomli_w.dumps(_without_none(self._table(defaults)))

    def _table(self, defaults: bool = True) -> dict[str, Any]:
        unused = {"calibrate"} if self.train.epochs else None
        return self.model_dump(exclude=unused, exclude_defaults=not defaults)


def zoo_recipes() -> list[str]:
    """The names of the recipes that come with qdeploy, in alphabetical order."""
    names = (Path(file.name) for file in files(_ZOO).iterdir())
    return sorted(name.stem for name in names if name.suffix == ".toml")


def zoo_summary(name: str) -> str:
    """What a zoo recipe says of itself in its first line, a comment."""
    return _recipe_file(name).read_text("utf-8").partition("\n")[0].removeprefix("#").strip()


def _recipe_file(source: str) -> Traversable:
    if source.endswith(".toml"):
        return Path(source)
    if source in zoo_recipes():
        return files(_ZOO) / f"{source}.toml"
    raise QdeployError(
        f"no recipe {source!r} in the zoo.{did_you_mean(source, zoo_recipes())}"
        " `qdeploy models` lists the zoo; your own recipe is given as a path that ends in .toml."
    )


def _parse(file: Traversable) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise QdeployError(f"cannot read the recipe {file}: {error.strerror}") from error
    except ValueError as error:  # TOMLDecodeError, which names line and column, or not UTF-8
        raise QdeployError(f"{file} is not valid TOML: {error}") from error


def _with_base(table: dict[str, Any], chain: list[str]) -> dict[str, Any]:
    """`table` with what it leaves out taken from the recipe that it extends, and so on.

    `chain` holds the recipes on the way, the one of `table` last.
    """
    base = table.pop("extends", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise QdeployError(
            f"{chain[-1]}: extends: given {base!r}, allowed: a recipe's name or path"
        )
    source = base
    if base.endswith(".toml"):
        source = os.path.normpath(Path(chain[-1]).parent / base)
    if source in chain:
        raise QdeployError(
            f"recipes extend each other in a circle: {' -> '.join([*chain, source])}"
        )
    inherited = _with_base(_parse(_recipe_file(source)), [*chain, source])
    inherited.pop("name", None)
    if source.endswith(".toml"):
        _anchor(inherited, Path(source).parent)
    if "method" in table.get("quantize", {}):
        _set_method(inherited, table["quantize"]["method"])
    return _merged(inherited, table)


def _anchor(table: dict[str, Any], folder: Path) -> None:
    """Makes the paths of a recipe that stand beside it absolute, for one in another folder."""
    for section, key in (("model", "network"), ("model", "weights"), ("data", "root")):
        given = table.get(section, {}).get(key)
        if isinstance(given, str) and (folder / given.partition(":")[0]).exists():
            table[section][key] = str(folder.resolve() / given)


def _set_method(table: dict[str, Any], method: object) -> None:
    """Gives a recipe a method; options of another are not its own."""
    quantize = table.setdefault("quantize", {})
    if quantize.get("method") != method:
        quantize.pop("options", None)
    quantize["method"] = method


def _merged(base: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `table` over it, table by table."""
    merged = dict(base)
    for key, value in table.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _assign(table: dict[str, Any], override: str) -> None:
    """Sets the key that `override` names, making the tables on the way."""
    *parents, last = _key_path(override)
    for parent in parents:
        if not isinstance(table.get(parent), dict):
            table[parent] = {}
        table = table[parent]
    table[last] = _value(override.partition("=")[2])


def _key_path(override: str) -> list[str]:
    """The segments of an override's dotted key; quotes and dots are as TOML reads them."""
    key, equals, _ = override.partition("=")
    try:
        table = tomllib.loads(f"{key} {equals} 0")
    except tomllib.TOMLDecodeError:
        raise QdeployError(
            f"override {override!r} cannot be read; allowed: section.key=value, a glob in"
            ' quotes, such as train.lr=0.01 or quantize.layers."conv*".weight_bits=2'
        ) from None
    path = []
    while isinstance(table, dict):
        [(segment, table)] = table.items()
        path.append(segment)
    return path


def _value(text: str) -> Any:
    """`text` as a TOML value; what is none is the text itself, so that words need no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def _without_none(value: Any) -> Any:
    """`value` without None in its tables: TOML leaves out what is not set."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_without_none(inner) for inner in value]
    return value


def _problem(details: ErrorDetails) -> str:
    """One of pydantic's findings in the words of the recipe: key, given, allowed."""
    path = _path(details)
    key = _dotted(path)
    if details["type"] == "extra_forbidden":
        return _unknown_key(path)
    if details["type"] == "missing":
        return f"{key} is missing; it has no default, so the recipe must give it"
    if details["type"] == "value_error":
        return f"{key}: {details['ctx']['error']}".removeprefix(": ")
    return f"{key}: given {details['input']!r}, allowed: {allowed(details)}"


def _path(details: ErrorDetails) -> list[str]:
    """The keys that lead to the finding, without the tag of the union in `layers.<glob>`."""
    path = [str(part) for part in details["loc"]]
    return path[:3] + path[4:] if path[:2] == ["quantize", "layers"] else path


def _dotted(path: list[str]) -> str:
    return ".".join(part if re.fullmatch(r"[\w-]+", part) else f'"{part}"' for part in path)


def _unknown_key(path: list[str]) -> str:
    *table, key = path
    keys = _keys_of(table)
    place = f"in [{_dotted(table)}]" if table else "at the top"
    nearest = did_you_mean(key, keys, lambda near: _dotted([*table, near]))
    return f"unknown key {_dotted(path)}.{nearest} Allowed {place}: {', '.join(keys)}"


def _keys_of(table: list[str]) -> list[str]:
    """The keys that a table of the recipe may have; [] is the recipe itself."""
    if not table:
        return list(Recipe.model_fields)
    if table[1:2] == ["regime"]:
        return list((TrainPhase if table[0] == "train" else DataPhase).model_fields)
    if len(table) > 1:
        return list(LayerOverride.__annotations__)
    section = cast(type[BaseModel], Recipe.model_fields[table[0]].annotation)
    return list(section.model_fields)
