"""A target is one file: found by its name, and known to all that ask for targets."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import networks
import numpy as np
import onnx
import pytest
import torch
from artifact_files import logits
from exported_networks import calibrated, skip_without_runtime

import qdeploy
from qdeploy.cli.export import export as export_command
from qdeploy.deploy import targets
from qdeploy.deploy.target import Target, find_target, onnx_path, write_for
from qdeploy.deploy.triton import write_repository
from qdeploy.errors import QdeployError
from qdeploy.recipe import ExportSection
from qdeploy.record import Delivery
from qdeploy.report.advice import advice

sys.path.append(str(Path(__file__).parents[1] / "report"))
from sample_records import FULL

CHIP = """
import onnx_ir as ir

from qdeploy.deploy.passes import share_initialisers
from qdeploy.deploy.target import Target


def rewrite(model):
    (image,) = model.graph.inputs
    first = ir.node("Neg", [image])
    second = ir.node("Neg", [first.outputs[0]])
    image.replace_all_uses_with(second.outputs[0])
    first.replace_input_with(0, image)
    model.graph.insert_before(model.graph[0], [first, second])
    share_initialisers(model)


def advice(record):
    yield f"The chip read {record.file}."


TARGET = Target(
    rewrite, packs=False, advice=advice, accelerator='gpu_execution_accelerator [ { name: "chip" } ]'
)
"""


@pytest.fixture
def chip(tmp_path, monkeypatch):
    """A target whose file lies in a folder of its own, as if it lay among the others."""
    folder = tmp_path / "targets"
    folder.mkdir()
    (folder / "chip.py").write_text(CHIP)
    monkeypatch.setattr(targets, "__path__", [*targets.__path__, str(folder)])
    yield "chip"
    sys.modules.pop("qdeploy.deploy.targets.chip", None)


class TestAThrowawayTarget:
    def test_the_library_exports_for_it(self, chip, tmp_path):
        prepared = calibrated(networks.build("plain"), "slb w2a8")
        files = {
            target: qdeploy.export(
                prepared, tmp_path / f"{target}.onnx", networks.images(2), target=target
            )
            for target in ("cpu", chip)
        }
        model = onnx.load(files[chip])
        assert [node.op_type for node in model.graph.node][:2] == ["Neg", "Neg"]
        kinds = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
        assert onnx.TensorProto.UINT8 not in kinds, "nothing is packed"
        assert files[chip].stat().st_size > files["cpu"].stat().st_size
        x = networks.images(8).numpy()
        found, wanted = (logits(files[target], x) for target in (chip, "cpu"))
        np.testing.assert_allclose(found, wanted, atol=0.02 * np.abs(wanted).max())

    def test_a_recipe_may_ask_for_it(self, chip):
        assert ExportSection(target=chip).target == "chip"
        with pytest.raises(ValueError, match=r"'cpu'.*'chip'"):
            ExportSection(target="chop")

    def test_triton_hands_it_on(self, chip, tmp_path):
        path = qdeploy.export(
            networks.build("plain").eval(), tmp_path / "m.onnx", networks.images(2), target=chip
        )
        place = write_repository(path, tmp_path / "models", "net", chip)
        assert (
            (place / "config.pbtxt")
            .read_text()
            .endswith(
                'optimization { execution_accelerators { gpu_execution_accelerator [ { name: "chip" } ] } }\n'
            )
        )

    def test_the_report_gives_its_advice(self, chip):
        assert "The chip read model.onnx." in advice(replace(FULL, delivery=Delivery(target=chip)))

    def test_it_is_named_where_another_is_not_there(self, chip, tmp_path):
        with pytest.raises(QdeployError, match=r"no target 'tpu'; choose one of .*chip"):
            find_target("tpu")


def test_a_report_of_a_target_that_is_gone_is_still_a_report():
    assert advice(replace(FULL, delivery=Delivery(target="chip"))) == ()


def test_every_target_is_one_file():
    assert targets.available() == ["cpu", "litert", "openvino", "tensorrt"]
    assert all(isinstance(find_target(name), Target) for name in targets.available())


def test_the_command_line_offers_what_is_there():
    option = next(param for param in export_command.params if param.name == "target")
    assert list(option.type.choices) == targets.available()


@pytest.mark.parametrize("target", targets.available())
@pytest.mark.parametrize("shape", [(3, 8, 8), (4, 8)])
def test_export_leaves_the_network_as_it_was(target, shape, tmp_path):
    skip_without_runtime(target)
    torch.manual_seed(0)
    x = torch.randn(8, *shape)
    network = networks.build("plain") if len(shape) == 3 else torch.nn.Linear(8, 6)
    prepared = qdeploy.prepare(network.eval(), x[:2], "simqat")
    qdeploy.calibrate(prepared, [x])
    converted = qdeploy.convert(prepared)
    before = state_of(converted)
    with torch.no_grad():
        wanted = converted(x)
    qdeploy.export(converted, tmp_path / "m.onnx", x[:2], target=target)
    assert state_of(converted) == before
    with torch.no_grad():
        assert torch.equal(converted(x), wanted)


def state_of(network):
    """Everything plain that the modules hold, and their tensors, as text."""
    plain = {
        name: {k: v for k, v in vars(m).items() if isinstance(v, bool | int | str | float)}
        for name, m in network.named_modules()
    }
    tensors = {name: value.tolist() for name, value in network.state_dict().items()}
    return json.dumps([plain, tensors])


class TestFilesBesideTheModel:
    MODEL = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 13]> g (float[N] x) => (float[N] y) { y = Relu(x) }'
    )

    def test_one_of_an_earlier_export_for_another_target_goes(self, tmp_path):
        earlier = tmp_path / "m.tflite"
        earlier.write_bytes(b"....TFL3 ... qdeploy.sha256 ...")
        path = tmp_path / "m.onnx"
        assert write_for(find_target("cpu"), self.MODEL, path) == path
        assert list(tmp_path.iterdir()) == [path]

    def test_files_of_others_stay(self, tmp_path):
        others = [tmp_path / "m.tflite", tmp_path / "n.tflite"]
        others[0].write_bytes(b"....TFL3 of a converter")
        others[1].write_bytes(b"....TFL3 ... qdeploy.sha256 ... of another model")
        write_for(find_target("cpu"), self.MODEL, tmp_path / "m.onnx")
        assert all(other.exists() for other in others)

    def test_onnx_is_not_called_as_another_runtimes_file(self, tmp_path):
        with pytest.raises(
            QdeployError, match=r"m\.tflite .* call it m\.onnx, or choose the target"
        ):
            onnx_path(find_target("cpu"), tmp_path / "m.tflite")
        assert onnx_path(find_target("litert"), tmp_path / "m.tflite") == tmp_path / "m.onnx"
