"""export: every number of the report, computed again by other means."""

import hashlib
import json
import math
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from command_line import RECIPE, content, digits, fails, logits, metrics, succeeds

from qdeploy.benchmark import this_machine
from qdeploy.errors import QdeployError
from qdeploy.pictures.fit import Fit
from qdeploy.pipeline.build import build, integers_of, metadata_of
from qdeploy.pipeline.export import export_run
from qdeploy.pipeline.measure import Conditions
from qdeploy.pipeline.trained_run import load_run
from qdeploy.recipe import Recipe
from qdeploy.run import RunFolder
from qdeploy.training.evaluate import as_shipped

MEAN, STD = 0.3054, 0.3247
WEIGHTS = {"conv1": 6 * 25, "conv2": 16 * 6 * 25, "fc1": 120 * 400, "fc2": 84 * 120, "fc3": 10 * 84}
CHANNELS = 6 + 16 + 120 + 84 + 10
CODES = 28**2 + 6 * 28**2 + 16 * 10**2 + 120 + 84  # of one image: it, and what the four ReLUs give
# Where no code may differ, a gate says so: on x86 from AVX2 on.
EXACT_HERE = {"AVX2"} & set(this_machine().instructions)


@pytest.fixture(scope="module")
def images():
    return digits(MEAN, STD)[0]


@pytest.fixture(scope="module")
def labels():
    return digits(MEAN, STD)[1]


@pytest.fixture(scope="module")
def loaded(exported):
    return load_run(RunFolder(exported), "last", None, "cpu")


def top(labels, scores, k):
    ranks = (scores > scores[np.arange(len(labels)), labels][:, None]).sum(1)
    return (ranks < k).mean()


@pytest.fixture
def run(exported, tmp_path):
    """A copy of the run, to change."""
    return Path(shutil.copytree(exported, tmp_path / "run"))


@pytest.mark.parametrize(("method", "bits"), [("dorefa", 1), ("lsq", 2), ("pact", 2)])
def test_what_training_measures_at_few_bits_is_what_the_file_does(method, bits, tmp_path):
    """Rounded biases tip codes of few bits over; training must not find that out too late."""
    few = [f"quantize.method={method}", f"quantize.weight_bits={bits}", f"quantize.act_bits={bits}"]
    short = ["quantize.layers={}", "train.float_epochs=0", "train.epochs=2", "quantize.check=false"]
    settings = [part for setting in (*few, *short) for part in ("--set", setting)]
    succeeds("train", RECIPE, *settings, "-o", tmp_path / "run")
    printed = json.loads(succeeds("export", tmp_path / "run", "--json"))
    assert printed["checked"] is False
    assert printed["accuracy"]["onnx"]["top1"] == metrics(tmp_path / "run")[-1]["test_top1"]
    assert printed["agreement"]["share"] == 1


class TestTheReport:
    def test_the_accuracy_of_the_file(self, exported, report, images, labels):
        scores = logits(exported / "model.onnx", images)
        assert report["accuracy"]["onnx"] == {
            "top1": top(labels, scores, 1),
            "top5": top(labels, scores, 5),
        }
        assert report["dataset"] == {"title": "scikit-learn digits", "test_samples": 360}

    def test_the_accuracy_of_the_networks_is_what_training_measured(self, exported, report):
        for name, folder in (("trained", exported), ("float", exported / "float")):
            last = metrics(folder)[-1]
            assert report["accuracy"][name]["top1"] == last["test_top1"]
            assert report["accuracy"][name]["top5"] == last["test_top5"]

    def test_the_float_file_gives_the_float_accuracy(self, exported, report, images, labels):
        scores = logits(exported / "float.onnx", images)
        assert report["accuracy"]["float"]["top1"] == top(labels, scores, 1)

    def test_the_agreement(self, exported, report, loaded):
        ((images, _),) = loaded.data.test.epoch(0)
        with torch.inference_mode():
            tested = as_shipped(loaded.network)(images).numpy()
            trained = loaded.network.eval()(images).numpy()
        scores = logits(exported / "model.onnx", images.numpy())
        difference = np.abs(scores - tested)
        found = report["agreement"]
        assert found["share"] == (scores.argmax(1) == tested.argmax(1)).mean()
        assert found["largest"] == pytest.approx(difference.max(), rel=1e-3, abs=1e-5)
        assert found["mean"] == pytest.approx(difference.mean(), rel=1e-3, abs=1e-5)
        assert (found["samples"], found["decides"], found["decided"]) == (360, "image", 360)
        assert report["agreement"]["share"] == 1
        assert (scores.argmax(1) == trained.argmax(1)).mean() >= 0.99
        # What computes the gradients differs by the rounding of biases, and by no more.
        np.testing.assert_allclose(trained, scores, rtol=0, atol=0.02 * np.abs(scores).max())

    def test_the_sizes(self, exported, report):
        size = report["size"]
        assert size["onnx"] == (exported / "model.onnx").stat().st_size
        assert size["float"] == (exported / "float.onnx").stat().st_size
        codes = sum(-(-count // 8) for name, count in WEIGHTS.items() if name != "fc3")
        (levels,) = [len(row["levels"]) for row in report["layers"] if row["name"] == "fc3"]
        eight_bits = math.ceil(WEIGHTS["fc3"] * math.log2(levels) / 8)
        assert size["bound"] == codes + eight_bits + 8 * CHANNELS
        metadata = onnx.load(exported / "model.onnx").metadata_props
        carried = sum(entry.ByteSize() for entry in metadata)
        assert size["onnx"] - carried <= 1.05 * size["bound"] + 1536 * len(WEIGHTS)
        assert size["int8"] - size["onnx"] > 0.8 * (7 / 8) * (sum(WEIGHTS.values()) - 840)

    def test_the_layers(self, report, loaded):
        layers = {layer["name"]: layer for layer in report["layers"]}
        assert {name: layer["weights"] for name, layer in layers.items()} == WEIGHTS
        for name, quantized in loaded.network.quantized_layers():
            codes = quantized.integers()[0].codes
            found = {str(code): int((codes == code).sum()) for code in np.unique(codes)}
            assert layers[name]["levels"] == found
            assert layers[name]["weight_bits"] == (7 if name == "fc3" else 1)
            assert layers[name]["act_bits"] == 8

    def test_the_work_of_one_image(self, exported, report):
        products = {"conv1": 28 * 28 * 150, "conv2": 10 * 10 * 2400}
        products |= {name: WEIGHTS[name] for name in ("fc1", "fc2", "fc3")}
        found = report["complexity"]
        assert {layer["name"]: layer["macs"] for layer in found["layers"]} == products
        assert found["macs"] == sum(products.values()) == 416_520
        assert [row["macs"] for row in found["by_bits"]] == [416_520 - 840, 840]
        assert found["bit_operations"] == 8 * (416_520 - 840) + 56 * 840
        norms = 2 * (CHANNELS - 10)
        assert found["parameters"] == sum(WEIGHTS.values()) + norms + 10
        assert "3,372,480" in (exported / "report.md").read_text()

    def test_the_files_are_timed_with_the_float_network_in_front(self, report):
        assert [row["file"] for row in report["latency"]] == ["float.onnx", "model.onnx"]
        assert report["file"] == "model.onnx"
        kernels = report["placements"][1]["operators"]
        assert kernels["com.microsoft::QLinearConv"] == 2
        assert kernels["com.microsoft::QGemm"] == 3

    def test_every_quantized_layer_ran_in_integers(self, exported, report):
        in_float, in_integers = report["placements"]
        assert in_float["coverage"] == {"integer": 0, "quantized": 0}
        assert in_integers["coverage"] == {"integer": 5, "quantized": 5}
        ran = {product["layer"]: product["kernel"] for product in in_integers["products"]}
        convolutions = dict.fromkeys(("conv1", "conv2"), "QLinearConv")
        assert ran == convolutions | dict.fromkeys(("fc1", "fc2", "fc3"), "QGemm")
        assert "5 of 5 quantized products ran in integers" in (exported / "report.md").read_text()

    def test_the_curves_are_those_of_metrics_csv(self, exported, report):
        lines = metrics(exported)
        assert [line["temperature"] for line in lines] == [math.inf] * 2  # committed at once
        no_infinity = [line | {"temperature": None} for line in lines]  # JSON has none
        assert report["training"] == no_infinity
        assert len(lines) == 2

    def test_the_recipe(self, exported, report):
        recipe = Recipe.load(exported / "recipe.toml")
        assert report["recipe"] == recipe.model_dump(mode="json")
        assert recipe.train.epochs == 2
        assert recipe.train.float_epochs == 1
        assert "conv1: slb w1a8" in report["settings"]


class TestTheFile:
    def test_packed_and_int8_are_bit_equal(self, exported, loaded, images):
        int8 = build(loaded, integers_of(loaded)).int8
        assert int8.ByteSize() > 60_000
        expected = logits(int8.SerializeToString(), images)
        np.testing.assert_array_equal(logits(exported / "model.onnx", images), expected)

    def test_recipe_classes_and_normalisation_travel_in_it(self, exported, tmp_path):
        model = onnx.load(exported / "model.onnx")
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(metadata["qdeploy.recipe"])
        assert Recipe.load(recipe) == Recipe.load(exported / "recipe.toml")
        assert "momentum" not in metadata["qdeploy.recipe"], "defaults are not written out"
        assert json.loads(metadata["qdeploy.classes"]) == list("0123456789")
        assert json.loads(metadata["qdeploy.normalisation"]) == {"mean": [MEAN], "std": [STD]}

    def test_how_pictures_are_cropped_travels_where_they_are(self, loaded):
        assert "qdeploy.crop" not in metadata_of(loaded)
        cropped = replace(loaded, data=replace(loaded.data, fit=Fit(0.875)))
        assert metadata_of(cropped)["qdeploy.crop"] == "0.875"
        whole = replace(loaded, data=replace(loaded.data, fit=Fit(None, "bicubic")))
        assert metadata_of(whole)["qdeploy.crop"] == '"whole"'
        assert metadata_of(whole)["qdeploy.interpolation"] == '"bicubic"'
        assert metadata_of(whole)["qdeploy.colours"] == '"L"'

    def test_it_is_stock_onnx_with_a_free_batch(self, exported):
        model = onnx.load(exported / "model.onnx")
        onnx.checker.check_model(model, full_check=True)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 13)]
        assert {node.domain for node in model.graph.node} == {""}
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param

    def test_any_batch_gives_the_same_logits(self, exported, images):
        whole = logits(exported / "model.onnx", images)
        one = logits(exported / "model.onnx", images[7:8])
        np.testing.assert_array_equal(one, whole[7:8])


class TestOptions:
    """Each export takes seconds, so one serves several options."""

    def test_json_samples_and_gates_that_pass(self, run):
        # A line of an epoch that ended while the checkpoint was being exported.
        (run / "metrics.csv").write_text((run / "metrics.csv").read_text() + "3\n")
        size = (run / "model.onnx").stat().st_size
        gates = ["--max-drop", 100, "--min-agreement", 0.5, "--max-size", size]
        printed = json.loads(succeeds("export", run, "--json", "--samples", 50, *gates))
        assert printed == json.loads((run / "report.json").read_text())
        assert printed["dataset"]["test_samples"] == 50
        assert printed["agreement"]["samples"] == 50
        assert printed["checked"] is True
        assert [line["epoch"] for line in printed["training"]] == [1, 2]
        assert printed["recipe"]["export"]["max_size"] is None, "the file does not know its gates"
        assert [(gate["name"], gate["limit"], gate["passed"]) for gate in printed["gates"]] == [
            ("max_drop", 100, True),
            ("min_agreement", 0.5, True),
            *(("max_differing", 0, True) for _ in EXACT_HERE),
            ("max_size", size, True),
        ]
        (tensors,) = (printed["exactness"]["tensors"],)
        assert sum(tensor["elements"] for tensor in tensors) == 50 * CODES
        assert [tensor["differing"] for tensor in tensors] == [0] * len(tensors)
        inspected = succeeds("inspect", run / "model.onnx")
        assert f"0 of {50 * CODES:,} codes differed" in " ".join(inspected.split())

    def test_a_gate_that_fails_ends_with_1_and_the_report_is_there(self, run):
        size = (run / "model.onnx").stat().st_size - 100
        gates = ["--max-size", size, "--min-agreement", 0, "--max-drop", 100]
        fails("export", run, "--samples", 10, *gates)
        found = json.loads((run / "report.json").read_text())["gates"]
        assert (found[-1]["name"], found[-1]["limit"], found[-1]["passed"]) == (
            "max_size",
            size,
            False,
        )
        assert found[-1]["value"] == (run / "model.onnx").stat().st_size
        assert [gate["passed"] for gate in found[:-1]] == [True] * (2 + len(EXACT_HERE))

    def test_a_given_gate_replaces_that_of_the_recipe_and_a_trace_is_a_table(self, run):
        add_to_recipe(run, "export", "max_size = 100\nmin_agreement = 0.1")
        printed = succeeds("export", run, "--samples", 10, "--max-size", 10**6, "--trace-layers")
        gates = json.loads((run / "report.json").read_text())["gates"]
        assert [(gate["name"], gate["limit"]) for gate in gates] == [
            ("min_agreement", 0.1),
            *(("max_differing", 0) for _ in EXACT_HERE),
            ("max_size", 10**6),
        ]
        assert "fc2, relu" in printed
        assert "at most" in printed

    def test_the_gates_of_the_recipe_and_the_best_checkpoint(self, run, exported):
        add_to_recipe(run, "export", "max_size = 100")
        # The last epoch is made worse, so that the two checkpoints are not the same.
        last = torch.load(run / "last.pt", weights_only=True)
        last["state"]["fc3.bias"][3] += 100.0
        torch.save(last, run / "last.pt")
        fails("export", run, "--checkpoint", "best")
        best = max(metrics(exported), key=lambda row: row["test_top1"])["test_top1"]
        report = json.loads((run / "report.json").read_text())
        assert report["accuracy"]["trained"]["top1"] == best
        assert [g["passed"] for g in report["gates"] if g["name"] == "max_size"] == [False]

    def test_a_trace_in_json_and_another_output(self, run, tmp_path):
        before = content(run)
        target = tmp_path / "float.onnx"  # the name that the float network has as well
        options = ["--json", "--trace-layers", "--samples", 10]
        printed = json.loads(succeeds("export", run, "-o", target, *options))
        written = onnx.load_from_string(before[run / "model.onnx"])
        assert onnx.load(target).graph == written.graph
        assert printed["file"] == printed["placements"][1]["file"] == str(target)
        trace = {row["name"].partition(",")[0]: row for row in printed["trace"]}
        assert list(trace) == ["x", "conv1", "conv2", "fc1", "fc2"]
        assert trace["x"]["elements"] == 10 * 28 * 28
        assert trace["fc1"]["elements"] == 10 * 120
        assert all(row["differing"] == 0 for row in printed["trace"])


def test_names_are_those_of_modules_and_of_the_user(run, images):
    before = logits(run / "model.onnx", images)
    changes = {"input_names": ["image"], "output_names": ["scores"], "readable": True}
    record = export_run(run, changes=changes, conditions=Conditions(samples=20))
    graph = onnx.load(run / "model.onnx").graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["image", "scores"]
    assert {"conv1", "conv1.weight.DequantizeLinear", "fc3"} <= {node.name for node in graph.node}
    assert record.exactness.differing == 0
    succeeds("export", run, "--readable", "--samples", 20)
    nodes = onnx.load(run / "model.onnx").graph.node
    assert all(node.name for node in nodes)
    np.testing.assert_array_equal(logits(run / "model.onnx", images), before)


class TestOtherTargets:
    def test_tensorrt_with_pixels_in_a_triton_repository(self, run, tmp_path, images):
        options = ["--target", "tensorrt", "--input", "uint8", "--triton", tmp_path / "models"]
        printed = json.loads(succeeds("export", run, "--json", *options))
        model = onnx.load(run / "model.onnx")
        pixels = np.round(images * 255 * STD + 255 * MEAN).astype(np.uint8)
        assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
        scores = logits(run / "model.onnx", pixels)
        assert printed["accuracy"]["onnx"]["top1"] == top(digits(MEAN, STD)[1], scores, 1)
        assert printed["agreement"]["share"] >= 0.97
        coarser = [5, 5]  # the image and what stands behind four ReLUs: 8 bits each
        assert printed["delivery"]["activations"] == coarser
        assert printed["delivery"]["input"] == "uint8, normalised in the graph"
        assert "TensorRT itself has not run the file" in (run / "report.md").read_text()
        assert printed["size"]["onnx"] == (run / "model.onnx").stat().st_size
        assert printed["recipe"]["export"]["target"] == "tensorrt"
        place = tmp_path / "models" / RECIPE
        assert (place / "1" / "model.onnx").read_bytes() == (run / "model.onnx").read_bytes()
        assert "data_type: TYPE_UINT8" in (place / "config.pbtxt").read_text()
        assert (place / "labels.txt").read_text().split() == list("0123456789")
        inspected = json.loads(succeeds("inspect", run / "model.onnx", "--json"))
        assert inspected["recipe"]["export"] == {"target": "tensorrt", "input": "uint8"}
        checkpoint = hashlib.sha256((run / "last.pt").read_bytes()).hexdigest()
        assert inspected["origin"]["checkpoint"] == f"last.pt {checkpoint[:16]}"
        assert inspected["origin"]["torch"] == version("torch")
        assert inspected["seal"] == "whole"
        accuracy = succeeds("benchmark", run / "model.onnx", "--data", "digits")
        assert f"top-1 {printed['accuracy']['onnx']['top1']:.2%} of 360 images" in accuracy

    def test_openvino_is_the_same_file_in_another_runtime(self, run, exported):
        pytest.importorskip("openvino")
        text = (run / "recipe.toml").read_text()
        text = text.replace('target = "cpu"', 'target = "openvino"')
        (run / "recipe.toml").write_text(text.replace('input = "float32"', 'input = "uint8"'))
        printed = json.loads(succeeds("export", run, "--json", "--input", "float32"))
        found = onnx.load(run / "model.onnx").graph
        assert found == onnx.load(exported / "model.onnx").graph
        assert printed["delivery"]["runtime"].startswith("OpenVINO 20")
        assert printed["delivery"]["agreement"]["samples"] == 360
        assert printed["delivery"]["agreement"]["share"] >= 0.99


def add_to_recipe(run, section, lines):
    text = (run / "recipe.toml").read_text()
    parts = text.partition(f"[{section}]\n")
    (run / "recipe.toml").write_text(f"{parts[0]}\n[{section}]\n{lines}\n{parts[2]}")


class TestExportKeysFromPython:
    """Gates, target and input are validated as the recipe's [export] is, before a file is written."""

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"max_dropp": 1}, "export: unknown key max_dropp. Did you mean max_drop?"),
            ({"min_agreement": 2}, "export: min_agreement: given 2, allowed: 1.0 or less"),
            ({"max_size": 0.5}, "export: max_size: given 0.5, allowed: a whole number"),
            (
                {"target": "tpu"},
                "target: given 'tpu', allowed: 'cpu', 'litert', 'openvino', 'tensorrt'",
            ),
            ({"input": "int4"}, "input: given 'int4', allowed: 'float32' or 'uint8'"),
        ],
    )
    def test_what_is_wrong_is_an_error(self, run, changes, message):
        before = content(run)
        with pytest.raises(QdeployError) as error:
            export_run(run, conditions=Conditions(device="cpu"), changes=changes)
        assert message in str(error.value)
        assert content(run) == before


class TestBadInput:
    """Each error names what was given; the run stays as it was."""

    @pytest.fixture(autouse=True)
    def _nothing_changes(self, exported):
        before = content(exported)
        yield
        assert content(exported) == before

    def test_a_folder_that_is_no_run(self, tmp_path):
        assert f"{tmp_path} is no run: it has no recipe.toml" in fails("export", tmp_path)
        assert content(tmp_path) == {}

    def test_a_folder_that_is_not_there(self, tmp_path):
        assert "does not exist" in fails("export", tmp_path / "none", code=2)

    def test_a_run_without_a_finished_epoch(self, run):
        (run / "last.pt").unlink()
        message = fails("export", run)
        assert f"{run} is not trained yet: it has no last.pt; `qdeploy train --resume" in message

    def test_a_checkpoint_of_another_method(self, run, exported):
        shutil.copy(exported / "float" / "last.pt", run / "last.pt")
        message = fails("export", run)
        assert "last.pt is a checkpoint of network lenet5, method float" in message
        assert "is of network lenet5, method slb" in message

    def test_a_checkpoint_that_does_not_fit(self, run):
        recipe = run / "recipe.toml"
        recipe.write_text(recipe.read_text().replace("weight_bits = 1", "weight_bits = 2"))
        assert "does not fit PreparedLeNet5" in fails("export", run)

    def test_a_truncated_checkpoint(self, run):
        whole = (run / "last.pt").read_bytes()
        (run / "last.pt").write_bytes(whole[: len(whole) // 2])
        assert f"{run / 'last.pt'} is truncated" in fails("export", run)

    def test_an_output_that_cannot_be_written(self, exported, tmp_path):
        (tmp_path / "file").touch()
        message = fails("export", exported, "-o", tmp_path / "file" / "model.onnx")
        assert f"cannot write {tmp_path / 'file' / 'model.onnx'}" in message

    def test_the_output_of_the_float_network(self, exported):
        message = fails("export", exported, "-o", exported / "float.onnx")
        assert "is where the float network goes" in message

    def test_a_provider_that_is_not_there(self, run):
        (run / "model.onnx").unlink()
        message = fails("export", run, "--provider", "tensorrt")
        assert "'tensorrt' does not work on this machine; those that do: " in message
        assert not (run / "model.onnx").exists()

    def test_a_provider_that_does_not_exist(self, exported):
        assert "'tpu' is not one of" in fails("export", exported, "--provider", "tpu", code=2)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_device_that_is_not_there(self, exported):
        assert "torch" in fails("export", exported, "--device", "cuda")

    @pytest.mark.parametrize(
        "option", [("--max-drop", -1), ("--min-agreement", 2), ("--samples", 0), ("--max-size", 0)]
    )
    def test_a_number_out_of_range(self, exported, option):
        assert "range" in fails("export", exported, *option, code=2)


def test_a_float_run_is_exported_as_its_own_baseline(exported, tmp_path, images, labels):
    run = Path(shutil.copytree(exported / "float", tmp_path / "run"))
    printed = json.loads(succeeds("export", run, "--json"))
    scores = logits(run / "model.onnx", images)
    assert printed["accuracy"]["onnx"]["top1"] == top(labels, scores, 1)
    assert printed["accuracy"]["float"] == printed["accuracy"]["trained"]
    assert printed["method"] == "float"
    # Conv and Linear weights, and a bias for each channel: four of them are left by a BatchNorm.
    assert printed["size"]["bound"] == 4 * (sum(WEIGHTS.values()) + CHANNELS)
    assert printed["size"]["bound"] < printed["size"]["onnx"]
    message = fails("export", run, "--trace-layers")
    assert "it is a float run and has no quantized tensors" in message
