"""benchmark: files that an export wrote, and what is none."""

import json
import shutil

import onnx
import pytest
from command_line import content, digits, fails, logits, succeeds
from published import cifar_files, write_cifar_folder


@pytest.fixture(scope="module")
def both(exported):
    return [exported / "float.onnx", exported / "model.onnx"]


def test_json_has_sizes_accuracy_and_a_row_for_each_file_and_batch(both, tmp_path):
    options = ["--batch-size", 1, "--batch-size", 3, "--data", "digits", "--json"]
    printed = json.loads(succeeds("benchmark", *both, *options, "-o", tmp_path / "new" / "folder"))
    assert printed == json.loads((tmp_path / "new" / "folder" / "benchmark.json").read_text())
    rows = {(row["file"], row["batch"]): row for row in printed["latency"]}
    assert set(rows) == {(file.name, batch) for file in both for batch in (1, 3)}
    for file in both:
        assert rows[file.name, 1]["file_bytes"] == file.stat().st_size
    images, labels = digits(0.3054, 0.3247)
    for row, file in zip(printed["accuracy"], both, strict=True):
        top1 = (logits(file, images).argmax(1) == labels).mean()
        assert row == {
            "file": file.name, "title": "scikit-learn digits", "samples": 360, "top1": top1,
        }  # fmt: skip


def test_it_prints_a_table_and_the_accuracy(both, report, tmp_path):
    printed = succeeds("benchmark", *both, "--data", "digits", "-o", tmp_path)
    top1 = report["accuracy"]["onnx"]["top1"]
    assert f"model.onnx: top-1 {top1:.2%} of 360 images of scikit-learn digits" in printed
    assert f"written: {tmp_path / 'benchmark.json'}" in printed


def test_layers_are_listed_with_their_kernels(both):
    printed = " ".join(succeeds("benchmark", both[1], "--layers").split())
    assert "model.onnx: 5 of 5 quantized products ran in integers" in printed
    for layer, kernel in {"conv2": "QLinearConv", "fc3": "QGemm"}.items():
        assert f"{layer} {kernel} CPU uint8" in printed
    assert "conv2 QLinearConv" not in " ".join(succeeds("benchmark", both[1]).split())


def test_files_of_one_name_are_told_apart(both, tmp_path):
    other = tmp_path / "model.onnx"
    shutil.copy(both[0], other)
    printed = json.loads(succeeds("benchmark", both[1], other, "--data", "digits", "--json"))
    assert [row["file"] for row in printed["accuracy"]] == [str(both[1]), str(other)]


class TestBadInput:
    def test_a_file_that_is_no_network(self, both, tmp_path):
        (tmp_path / "model.onnx").write_bytes(both[1].read_bytes()[:5000])
        message = fails("benchmark", tmp_path / "model.onnx", "-o", tmp_path / "out")
        assert f"cannot load {tmp_path / 'model.onnx'}" in message
        assert "Give a complete ONNX file" in message
        assert not (tmp_path / "out").exists()

    def test_a_file_that_is_not_there(self, tmp_path):
        assert "none.onnx is no file" in fails("benchmark", tmp_path / "none.onnx")

    def test_no_file(self):
        assert "Missing argument" in fails("benchmark", code=2)

    def test_a_file_twice(self, both):
        assert "none more than once" in fails("benchmark", both[0], both[0])

    def test_a_provider_that_is_not_there(self, both):
        message = fails("benchmark", both[1], "--provider", "tensorrt")
        assert "'tensorrt' does not work on this machine; those that do: " in message

    @pytest.mark.parametrize("option", ["--batch-size", "--threads"])
    def test_a_number_below_one(self, both, option):
        assert "range x>=1" in fails("benchmark", both[1], option, 0, code=2)

    def test_an_unknown_data_set(self, both):
        message = fails("benchmark", both[1], "--data", "imagenet")
        assert "--data: dataset: given 'imagenet', allowed: 'cifar10', 'digits', 'fash" in message

    def test_data_that_are_missing(self, both, tmp_path):
        message = fails("benchmark", both[1], "--data", "mnist", "--data-root", tmp_path)
        assert "the files of MNIST are missing" in message

    def test_data_of_another_shape(self, both, tmp_path):
        write_cifar_folder(tmp_path / "cifar10" / "cifar-10-batches-bin", cifar_files(records=1))
        message = fails("benchmark", both[1], "--data", "cifar10", "--data-root", tmp_path)
        assert "given 1 values, allowed: 3" in message

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (None, "bare.onnx does not say how its images are normalised"),
            ("mean 0.5", "bare.onnx does not say how its images are normalised"),
            ("[0.5]", "bare.onnx does not say how its images are normalised"),
            ('{"mean": [0.5]}', "bare.onnx does not say how its images are normalised"),
            ('{"mean": ["a"], "std": [1.0]}', "mean.0: given 'a', allowed: a number"),
        ],
    )
    def test_a_file_without_its_normalisation(self, both, tmp_path, text, expected):
        model = onnx.load(both[1])
        del model.metadata_props[:]
        if text is not None:
            model.metadata_props.add(key="qdeploy.normalisation", value=text)
        onnx.save(model, tmp_path / "bare.onnx")
        assert expected in fails("benchmark", tmp_path / "bare.onnx", "--data", "digits")

    def test_a_folder_that_cannot_be_made(self, both, tmp_path):
        (tmp_path / "file").touch()
        message = fails("benchmark", both[1], "-o", tmp_path / "file" / "out")
        assert f"cannot make the folder {tmp_path / 'file' / 'out'}" in message
        assert content(tmp_path) == {tmp_path / "file": b""}
