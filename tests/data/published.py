"""Writes small files in the formats of the published data sets, from their descriptions."""

import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np

MNIST_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CIFAR_NAMES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")


def idx_images(images: np.ndarray) -> bytes:
    return struct.pack(">IIII", 2051, *images.shape) + images.tobytes()


def idx_labels(labels: np.ndarray) -> bytes:
    return struct.pack(">II", 2049, len(labels)) + bytes(labels.tolist())


def cifar_records(images: np.ndarray, labels: np.ndarray) -> bytes:
    pairs = zip(labels, images, strict=True)
    return b"".join(bytes([label]) + image.tobytes() for label, image in pairs)


def random_images(count: int, *shape: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, *shape), np.uint8), random.integers(0, 10, count)


def write_mnist(folder: Path, zipped: bool = True) -> list[tuple[np.ndarray, np.ndarray]]:
    """Twelve images for training, five for testing; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test = random_images(12, 28, 28, seed=1), random_images(5, 28, 28, seed=2)
    contents = [
        idx_images(train[0]),
        idx_labels(train[1]),
        idx_images(test[0]),
        idx_labels(test[1]),
    ]
    for name, content in zip(MNIST_NAMES, contents, strict=True):
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return [train, test]


def cifar_files(records: int) -> dict[str, bytes]:
    """The six files, each with so many random records."""
    return {
        name: cifar_records(*random_images(records, 3, 32, 32, seed=seed))
        for seed, name in enumerate(CIFAR_NAMES)
    }


def write_cifar_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def cifar_archive(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()
