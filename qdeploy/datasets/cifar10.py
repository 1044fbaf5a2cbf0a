"""CIFAR-10: small colour photographs, 32x32, in the binary version.

Six files of records, each one label byte and 3,072 pixel bytes: the red, the green and the blue
plane of 32x32, row by row (https://www.cs.toronto.edu/~kriz/cifar.html).
"""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qdeploy.datasets.dataset import Dataset, PublishedFile
from qdeploy.datasets.labelled_images import LabelledImages, check_labels, damaged, read_bytes
from qdeploy.errors import QdeployError

_FOLDER = "cifar-10-batches-bin"
_TRAIN = [f"data_batch_{number}.bin" for number in range(1, 6)]
_TEST = "test_batch.bin"
_IMAGE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32
_CLASSES = 10


def read_cifar10(source: Path) -> tuple[LabelledImages, LabelledImages]:
    """The training and the test set from the published archive or from its unpacked folder.

    The published files hold 10,000 records each. Any other number will do if it is the
    same in all six, which reveals a file that was cut short between two records. Raises QdeployError
    naming the file that is damaged.
    """
    contents = _folder_contents(source) if source.is_dir() else _archive_contents(source)
    if len({len(content) for content in contents.values()}) > 1:
        sizes = ", ".join(f"{name}: {len(content)}" for name, content in contents.items())
        raise damaged(source, f"its files must have the same size, they have bytes {sizes}")
    parts = [_read_records(contents[name], source / name) for name in _TRAIN]
    train = LabelledImages(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    return train, _read_records(contents[_TEST], source / _TEST)


def _folder_contents(folder: Path) -> Mapping[str, bytes]:
    missing = [name for name in [*_TRAIN, _TEST] if not (folder / name).is_file()]
    if missing:
        raise QdeployError(
            f"{folder} lacks {', '.join(missing)}. Unpack cifar-10-binary.tar.gz there again,"
            " or delete the folder and use --download."
        )
    return {name: read_bytes(folder / name) for name in [*_TRAIN, _TEST]}


def _archive_contents(archive: Path) -> Mapping[str, bytes]:
    # Unpacked whole before tar sees it: only at its end does gzip's checksum vouch for it.
    stream = io.BytesIO(read_bytes(archive))
    try:
        with tarfile.open(fileobj=stream) as members:
            return {name: _member(members, f"{_FOLDER}/{name}") for name in [*_TRAIN, _TEST]}
    except (tarfile.TarError, KeyError, OSError) as error:
        raise damaged(archive, f"it is no tar archive of CIFAR-10 ({error})") from error


def _member(members: tarfile.TarFile, name: str) -> bytes:
    file = members.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is not a file")
    return file.read()


def _read_records(content: bytes, path: Path) -> LabelledImages:
    if not content or len(content) % _RECORD:
        raise damaged(path, f"it has {len(content)} bytes, not a multiple of {_RECORD}")
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    labels = records[:, 0].astype(np.int64)
    check_labels(labels, _CLASSES, path)
    return LabelledImages(records[:, 1:].reshape(-1, *_IMAGE), labels)


DATASET = Dataset(
    title="CIFAR-10",
    classes=(
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    read=read_cifar10,
    base_url="https://www.cs.toronto.edu/~kriz/",
    # SHA-256 as several public loaders give it beside the MD5 of the data set's own page.
    files=(
        PublishedFile(
            "cifar-10-binary.tar.gz",
            _FOLDER,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
    folders=("cifar10", "."),
)
