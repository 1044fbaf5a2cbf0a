"""MNIST: handwritten digits, 28x28, from the files of LeCun, Cortes and Burges."""

from qdeploy.datasets.dataset import Dataset
from qdeploy.datasets.idx import idx_files, read_mnist

DATASET = Dataset(
    title="MNIST",
    classes=tuple("0123456789"),
    mean=(0.1307,),
    std=(0.3081,),
    read=read_mnist,
    base_url="https://ossci-datasets.s3.amazonaws.com/mnist/",
    # SHA-256 of files whose MD5 is the published one.
    files=idx_files(
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    folders=("mnist", "MNIST/raw", "."),
)
