"""Sessions against onnx's reference evaluator, and their errors."""

import numpy as np
import pytest
from graphs import IMAGES, float_network, network, write
from onnx import helper
from onnx.reference import ReferenceEvaluator

from qdeploy.benchmark import open_session
from qdeploy.errors import QdeployError


@pytest.mark.parametrize("threads", [1, 2])
def test_logits_are_those_of_the_reference_evaluator(threads):
    model = float_network()
    session = open_session(model.SerializeToString(), "cpu", threads)
    expected = ReferenceEvaluator(model).run(None, {"x": IMAGES})[0]
    np.testing.assert_allclose(session.run(IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_a_session_tells_what_the_file_declares(tmp_path):
    path = write(float_network(), tmp_path / "model.onnx")
    session = open_session(path, "cpu")
    assert session.input_shape == ("n", 3, 8, 8)
    assert session.providers == ("CPUExecutionProvider",)
    assert session.metadata == {"qdeploy.recipe": "hand-made"}
    assert session.file_bytes == path.stat().st_size
    assert session.load_ms > 0


def test_bytes_and_file_are_the_same_network(tmp_path):
    model = float_network()
    from_file = open_session(write(model, tmp_path / "model.onnx"), "cpu")
    from_bytes = open_session(model.SerializeToString(), "cpu")
    assert from_bytes.file_bytes == from_file.file_bytes
    np.testing.assert_array_equal(from_bytes.run(IMAGES), from_file.run(IMAGES))


@pytest.mark.parametrize(
    ("images", "given"),
    [
        (IMAGES[:, :, :, :7], r"float32 \[4, 3, 8, 7\]"),
        (IMAGES[:, :1], r"float32 \[4, 1, 8, 8\]"),
        (IMAGES[0], r"float32 \[3, 8, 8\]"),
        (IMAGES.astype(np.float64), r"float64 \[4, 3, 8, 8\]"),
    ],
)
def test_images_of_another_shape_or_type_are_refused(images, given):
    session = open_session(float_network().SerializeToString(), "cpu")
    with pytest.raises(QdeployError, match=rf"takes float32 \[n, 3, 8, 8\].*given {given}"):
        session.run(images)


def test_a_fixed_batch_is_kept():
    session = open_session(float_network(images=(2, 3, 8, 8)).SerializeToString(), "cpu")
    assert session.run(IMAGES[:2]).shape == (2, 10)
    with pytest.raises(QdeployError, match=r"\[2, 3, 8, 8\]"):
        session.run(IMAGES)


@pytest.mark.parametrize("kept", [0, 40, 0.5, -1])
def test_a_file_cut_short_is_refused(tmp_path, kept):
    data = float_network().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(QdeployError, match=r"cannot load .*cut\.onnx.*complete ONNX file"):
        open_session(path, "cpu")


def test_text_is_no_network(tmp_path):
    path = tmp_path / "notes.onnx"
    path.write_text("no network\n" * 100)
    with pytest.raises(QdeployError, match=r"cannot load .*notes\.onnx"):
        open_session(path, "cpu")


def test_a_folder_or_an_absent_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent.onnx"):
        with pytest.raises(QdeployError, match=f"{path.name} is no file"):
            open_session(path, "cpu")


def test_images_alone_are_refused_by_a_network_that_takes_more():
    model = network([helper.make_node("Add", ["x", "z"], ["y"])], {}, images=("n", 7))
    model.graph.input.append(helper.make_tensor_value_info("z", 1, ("n", 7)))
    session = open_session(model.SerializeToString(), "cpu")
    with pytest.raises(QdeployError, match=r"x tensor\(float\) \[n, 7\], z .*one input"):
        session.run(np.zeros((1, 7), np.float32))
    one, other = np.ones((2, 2, 7), np.float32)
    np.testing.assert_array_equal(session.run_on({"x": one, "z": other}), [one + other])


def test_a_network_that_fails_as_it_runs_is_refused():
    model = network([helper.make_node("Gather", ["x", "i"], ["y"])], {"i": np.array([5])}, ("n",))
    session = open_session(model.SerializeToString(), "cpu")
    with pytest.raises(QdeployError, match=r"ONNX Runtime \S+ cannot run the network: .*Gather"):
        session.run(np.zeros(3, np.float32))
