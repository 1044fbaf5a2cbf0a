"""The data sets that qdeploy knows by name, as published."""

from collections.abc import Callable
from dataclasses import dataclass

from qdeploy.data.cifar import read_cifar10
from qdeploy.data.digits import read_digits
from qdeploy.data.idx import read_mnist
from qdeploy.data.labelled_images import LabelledImages


@dataclass(frozen=True)
class PublishedFile:
    """A file to download, and the name that it (or its folder) has once unpacked."""

    name: str
    unpacked: str
    sha256: str


@dataclass(frozen=True)
class DatasetSpec:
    """One data set.

    `mean`, `std`: per channel, of the training pixels scaled to 0..1. `folders`: where its files
    may lie below the data root; a download goes to the first. `read` gets the path of each of
    `files`, in their order.
    """

    title: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    read: Callable[..., tuple[LabelledImages, LabelledImages]]
    base_url: str = ""
    files: tuple[PublishedFile, ...] = ()
    folders: tuple[str, ...] = (".",)


def _idx_files(*sha256: str) -> tuple[PublishedFile, ...]:
    names = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    return tuple(
        PublishedFile(f"{name}.gz", name, digest)
        for name, digest in zip(names, sha256, strict=True)
    )


DIGITS = DatasetSpec(
    title="scikit-learn digits",
    classes=tuple("0123456789"),
    mean=(0.3054,),
    std=(0.3247,),
    read=read_digits,
)

# SHA-256 of files whose MD5 is the published one.
MNIST = DatasetSpec(
    title="MNIST",
    classes=tuple("0123456789"),
    mean=(0.1307,),
    std=(0.3081,),
    read=read_mnist,
    base_url="https://ossci-datasets.s3.amazonaws.com/mnist/",
    files=_idx_files(
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    folders=("mnist", "MNIST/raw", "."),
)

# SHA-256 as several public loaders give it beside the MD5 of the data set's own page.
FASHION_MNIST = DatasetSpec(
    title="Fashion-MNIST",
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    mean=(0.2860,),
    std=(0.3530,),
    read=read_mnist,
    base_url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    files=_idx_files(
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
    folders=("fashion-mnist", "FashionMNIST/raw", "."),
)

# SHA-256 as several public loaders give it beside the MD5 of the data set's own page.
CIFAR10 = DatasetSpec(
    title="CIFAR-10",
    classes=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    read=read_cifar10,
    base_url="https://www.cs.toronto.edu/~kriz/",
    files=(
        PublishedFile(
            "cifar-10-binary.tar.gz",
            "cifar-10-batches-bin",
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
    folders=("cifar10", "."),
)

DATASETS = {
    "digits": DIGITS,
    "mnist": MNIST,
    "fashion-mnist": FASHION_MNIST,
    "cifar10": CIFAR10,
}
