"""The recipe: everything that a run is made from, as one validated TOML file.

A recipe is read from a file or, by name, from the zoo; single keys are changed with overrides
such as `train.lr=0.01`. Whatever is wrong with it is a `QdeployError` that names the key.
"""

import os
import re
import tomllib
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, cast

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
    if type(bits) is int and 2 <= bits <= 8:
        return bits
    raise ValueError(f'given {bits!r}, allowed: 2 to 8, or "float"')


FilePath = Annotated[str, AfterValidator(_absolute)]
Network = Annotated[str, AfterValidator(_absolute_network)]
WeightBits = Annotated[int, Field(ge=1, le=8)]
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
Betas = Annotated[tuple[Fraction, Fraction], Field(strict=False)]


class _Section(BaseModel):
    model_config = _CHECKS


class ModelSection(_Section):
    """The float network.

    `network`: a zoo name, `file.py:function` or `package.module:function`; the function is called
    with `options`. `weights`: file of trained float weights to start from.
    """

    network: Network
    options: dict[str, Any] = {}
    weights: FilePath | None = None


class DataSection(_Section):
    """The data set, its batches and their augmentation.

    `mean` and `std` per channel normalise pixels scaled to 0..1; None takes the data set's own.
    `title` is what reports call the data, if not by its usual name.
    `pad_crop` pads by so many black pixels and crops back at random; with `flip` it serves the
    small data sets. `image_size` (None: 224) and `workers` (processes that decode) serve `folder`.
    """

    dataset: Literal["digits", "mnist", "fashion-mnist", "cifar10", "folder"]
    root: FilePath | None = None
    title: str | None = None
    mean: Means | None = None
    std: Deviations | None = None
    batch_size: Annotated[int, Field(ge=2)] = 128  # BatchNorm cannot train on a single image
    pad_crop: NonNegativeInt = 0
    flip: bool = False
    image_size: PositiveInt | None = None
    workers: NonNegativeInt = 2

    @model_validator(mode="after")
    def _normalisation_is_whole(self) -> "DataSection":
        if self.mean is None and self.std is None:
            return self
        if not self.mean or not self.std or len(self.mean) != len(self.std):
            raise ValueError("mean and std go together, with one value for each channel each")
        return self

    @model_validator(mode="after")
    def _keys_fit_the_dataset(self) -> "DataSection":
        if self.dataset == "folder" and (self.pad_crop or self.flip):
            raise ValueError(
                "pad_crop and flip do not apply to a folder, which is trained with"
                " random-resized crops and flips; remove them"
            )
        if self.dataset != "folder" and self.image_size is not None:
            raise ValueError('image_size applies to dataset = "folder" only; remove it')
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
    `layers` maps a glob of layer names to "float" or to what differs there.
    """

    method: str
    weight_bits: WeightBits = 8
    act_bits: ActBits = 8
    first_last_float: bool = False
    options: dict[str, Any] = {}
    layers: dict[str, Layer] = {}


class TrainSection(_Section):
    """The optimizer and its schedule; epochs are counted in passes over the training set.

    `milestones`: epochs after which schedule "step" multiplies the learning rate by `gamma`.
    `float_epochs`: epochs of float training before quantization. `calibration_batches`: batches
    from which BatchNorm statistics and activation ranges are estimated again for what ships.
    `precision`: bits of the products of training; the quantizers, the norms, the weights and all
    evaluation stay float32. `deterministic`: the same bits each time on a GPU too, more slowly.
    """

    epochs: PositiveInt = 10
    seed: NonNegativeInt = 0
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: PositiveFloat = 0.01
    momentum: Fraction = 0.9
    nesterov: bool = False
    betas: Betas = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.0
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: Milestones = ()
    gamma: PositiveFloat = 0.1
    warmup_epochs: NonNegativeInt = 0
    label_smoothing: Fraction = 0.0
    clip_norm: PositiveFloat | None = None
    float_epochs: NonNegativeInt = 0
    calibration_batches: PositiveInt = 50
    precision: Literal["32", "bf16", "fp16"] = "32"
    deterministic: bool = False

    @model_validator(mode="after")
    def _steps_have_milestones(self) -> "TrainSection":
        if self.schedule == "step" and not self.milestones:
            raise ValueError('schedule = "step" needs milestones, such as milestones = [30, 60]')
        return self

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "TrainSection":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov = true needs momentum above 0")
        return self


class ExportSection(_Section):
    """Gates that an export must pass.

    `max_drop`: points of top-1 accuracy lost against float. `min_agreement`: share (0..1) of
    images with the same top-1 as in training. `max_size`: bytes of the file.
    """

    max_drop: NonNegativeFloat | None = None
    min_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    max_size: PositiveInt | None = None


class Recipe(_Section):
    """One run, entirely. Without [quantize] it is trained in float."""

    name: Annotated[str, Field(min_length=1)]
    model: ModelSection
    data: DataSection
    quantize: QuantizeSection = QuantizeSection(method="float")
    train: TrainSection = TrainSection()
    export: ExportSection = ExportSection()

    @classmethod
    def load(cls, source: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        """The recipe in the file `source` (*.toml) or of that name in the zoo.

        Each override is `section.key=value`, the value in TOML or else plain text; a glob is
        quoted: `quantize.layers."conv*".weight_bits=2`. A recipe that does not give its `name`
        has the file's. Raises QdeployError for whatever is wrong with the recipe.
        """
        file = _recipe_file(str(source))
        table = _parse(file)
        for override in overrides:
            _assign(table, override)
        table.setdefault("name", Path(file.name).stem)
        try:
            return cls.model_validate(table, context={"folder": Path(source).parent})
        except ValidationError as error:
            origin = " with ".join([str(source), *overrides])
            problems = [f"{origin}: {_problem(details)}" for details in error.errors()]
            raise QdeployError("\n".join(problems)) from None

    def to_toml(self) -> str:
        """TOML that loads as an equal recipe, defaults written out."""
        return tomli_w.dumps(_without_none(self.model_dump()))


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


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    """`table` without its None: TOML leaves out what is not set."""
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }


def _problem(details: ErrorDetails) -> str:
    """One of pydantic's findings in the words of the recipe: key, given, allowed."""
    path = _path(details)
    key = _dotted(path)
    if details["type"] == "extra_forbidden":
        return _unknown_key(path)
    if details["type"] == "missing":
        return f"{key} is missing; it has no default, so the recipe must give it"
    if details["type"] == "value_error":
        return f"{key}: {details['ctx']['error']}"
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
    if len(table) > 1:
        return list(LayerOverride.__annotations__)
    section = cast(type[BaseModel], Recipe.model_fields[table[0]].annotation)
    return list(section.model_fields)
