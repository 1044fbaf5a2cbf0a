"""Fashion-MNIST: articles of clothing in the format of MNIST (Xiao et al., arXiv 1708.07747)."""

from qdeploy.datasets.dataset import Dataset
from qdeploy.datasets.idx import idx_files, read_mnist

DATASET = Dataset(
    title="Fashion-MNIST",
    classes=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    mean=(0.2860,),
    std=(0.3530,),
    read=read_mnist,
    base_url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    # SHA-256 as several public loaders give it beside the MD5 of the data set's own page.
    files=idx_files(
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
    folders=("fashion-mnist", "FashionMNIST/raw", "."),
)
