"""Finding and downloading files; the server is on this machine."""

import gzip
import hashlib
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from published import MNIST_NAMES, write_mnist

from qdeploy.data import open_data
from qdeploy.datasets import find, mnist
from qdeploy.datasets.downloads import find_files
from qdeploy.errors import QdeployError
from qdeploy.recipe import DataSection


@pytest.fixture
def published(tmp_path):
    """The folder that the server serves, with small MNIST files in it."""
    folder = tmp_path / "published"
    write_mnist(folder)
    return folder


@pytest.fixture
def spec(published):
    """MNIST as published by a server on this machine."""
    serve = partial(SimpleHTTPRequestHandler, directory=published)
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield replace(
            mnist.DATASET,
            base_url=f"http://127.0.0.1:{server.server_port}/",
            files=tuple(
                replace(
                    file, sha256=hashlib.sha256((published / file.name).read_bytes()).hexdigest()
                )
                for file in mnist.DATASET.files
            ),
        )
        server.shutdown()


@pytest.mark.parametrize("place", ["mnist", "MNIST/raw", "."])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_are_found_in_each_place_packed_or_not(tmp_path, place, zipped):
    write_mnist(tmp_path / place, zipped)
    found = find_files(mnist.DATASET, tmp_path, download=False)
    assert [path.name.removesuffix(".gz") for path in found] == list(MNIST_NAMES)
    assert {path.parent for path in found} == {tmp_path / place}


def test_files_of_two_folders_are_not_mixed(tmp_path):
    write_mnist(tmp_path / "mnist")
    write_mnist(tmp_path)
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    found = find_files(mnist.DATASET, tmp_path, download=False)
    assert {path.parent for path in found} == {tmp_path}


def test_digits_have_no_files(tmp_path):
    assert find_files(find("digits"), tmp_path / "nowhere", download=False) == []


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_missing_files_say_what_to_put_where(tmp_path, name):
    spec = find(name)
    with pytest.raises(QdeployError) as caught:
        find_files(spec, tmp_path, download=False)
    message = str(caught.value)
    for text in [*(file.name for file in spec.files), str(tmp_path / name), "--download"]:
        assert text in message
    assert "--data-root" in message


def test_download_ends_as_a_readable_data_set(tmp_path, spec, monkeypatch):
    monkeypatch.setattr(mnist, "DATASET", spec)
    section = DataSection(dataset="mnist", mean=[0.0], std=[1.0])
    data = open_data(section, tmp_path / "root", download=True, device="cpu", seed=0)
    [(images, labels)] = data.test.epoch(0)
    written, written_labels = write_mnist(tmp_path / "again")[1]
    np.testing.assert_allclose(images[:, 0], written / 255, atol=1e-6)
    np.testing.assert_array_equal(labels, written_labels)


def test_downloaded_files_are_found_afterwards_without_the_server(tmp_path, spec):
    downloaded = find_files(spec, tmp_path / "root", download=True)
    offline = replace(spec, base_url="http://127.0.0.1:9/")
    assert find_files(offline, tmp_path / "root", download=True) == downloaded


def test_another_file_of_the_same_name_is_refused_and_not_kept(tmp_path, spec, published):
    (published / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(QdeployError, match=r"t10k-images-idx3-ubyte\.gz could not be.*SHA256"):
        find_files(spec, tmp_path / "root", download=True)
    assert not names_with("t10k-images", tmp_path / "root")


def test_a_download_cut_short_is_not_kept(tmp_path, spec, monkeypatch):
    def send_half(self, source, destination):
        destination.write(source.read()[:20])

    monkeypatch.setattr(SimpleHTTPRequestHandler, "copyfile", send_half)
    with pytest.raises(QdeployError, match=r"train-images-idx3-ubyte\.gz could not be downloaded"):
        find_files(spec, tmp_path / "root", download=True)
    assert not names_with("train-images", tmp_path / "root")


def test_a_file_that_the_server_lacks(tmp_path, spec, published):
    (published / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(QdeployError, match=r"train-labels.*404.*put train-labels.* there yourself"):
        find_files(spec, tmp_path / "root", download=True)


def test_no_server(tmp_path, spec):
    gone = replace(spec, base_url="http://127.0.0.1:9/")
    with pytest.raises(QdeployError, match="could not be downloaded"):
        find_files(gone, tmp_path / "root", download=True)


def names_with(prefix: str, folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(f"*{prefix}*")]
