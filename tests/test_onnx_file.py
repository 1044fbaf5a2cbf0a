"""Files of one piece and of two, and the hash that proves them whole."""

import hashlib

import numpy as np
import onnx
import onnxruntime
import pytest
from artifact_files import logits, model
from networks import images

from qdeploy import onnx_file as storage
from qdeploy.benchmark import benchmark_files, open_session
from qdeploy.deploy.seal import Seal, added_entries, content_hash, seal, stamp, state
from qdeploy.errors import QdeployError
from qdeploy.onnx_file import files_of, read, stored_bytes, write

IMAGES = images(4).numpy()


@pytest.fixture
def proto():
    return onnx.ModelProto.FromString(model())


@pytest.fixture
def low_limit(proto, monkeypatch):
    """Anything is too large from now on, and constants of 32 bytes lie outside."""
    monkeypatch.setattr(storage, "FILE_LIMIT", 100)
    monkeypatch.setattr(storage, "SMALLEST_OUTSIDE", 32)


def test_a_small_model_is_one_file(proto, tmp_path):
    path = write(proto, tmp_path / "m.onnx")
    assert path.read_bytes() == proto.SerializeToString()
    assert list(tmp_path.iterdir()) == files_of(path) == [path]
    assert stored_bytes(path) == proto.ByteSize()


class TestWeightsBesideTheFile:
    @pytest.fixture(autouse=True)
    def _low(self, low_limit):
        pass

    def test_they_compute_the_same(self, proto, tmp_path):
        path = write(proto, tmp_path / "m.onnx")
        weights = [tensor.raw_data for tensor in proto.graph.initializer]
        outside = [data for data in weights if len(data) >= 32]
        model_file, data_file = files_of(path)
        assert data_file.read_bytes() == b"".join(outside)
        assert model_file.stat().st_size < proto.ByteSize() - sum(map(len, outside)) + 150 * 6
        np.testing.assert_array_equal(
            logits(path, IMAGES), logits_of_bytes(proto.SerializeToString())
        )

    def test_their_file_is_named_after_its_bytes(self, proto, tmp_path):
        _, data_file = files_of(write(proto, tmp_path / "m.onnx"))
        digest = hashlib.sha256(data_file.read_bytes()).hexdigest()
        assert data_file.name == f"m.onnx.{digest[:8]}.data"

    def test_a_later_model_takes_its_own_and_removes_those(self, proto, tmp_path, monkeypatch):
        path = write(proto, tmp_path / "m.onnx")
        before = files_of(path)[1]
        tensor = max(proto.graph.initializer, key=lambda t: len(t.raw_data))
        tensor.raw_data = bytes(len(tensor.raw_data))
        after = files_of(write(proto, path))[1]
        assert before != after
        assert sorted(tmp_path.iterdir()) == sorted([path, after])
        monkeypatch.setattr(storage, "FILE_LIMIT", 10**9)
        write(proto, path)
        assert list(tmp_path.iterdir()) == [path]

    def test_a_cut_in_between_leaves_the_old_model_whole(self, proto, tmp_path, monkeypatch):
        path = write(proto, tmp_path / "m.onnx")
        expected = logits(path, IMAGES)
        other = onnx.ModelProto.FromString(model())
        tensor = max(other.graph.initializer, key=lambda t: len(t.raw_data))
        tensor.raw_data = bytes(len(tensor.raw_data))

        def cut_off(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(storage, "_write_model", cut_off)
        with pytest.raises(KeyboardInterrupt):
            write(other, path)
        np.testing.assert_array_equal(logits(path, IMAGES), expected)
        assert state(read(path), tmp_path) is Seal.WHOLE

    def test_the_benchmark_reads_both_and_counts_both(self, proto, tmp_path):
        path = write(proto, tmp_path / "m.onnx")
        both = sum(file.stat().st_size for file in tmp_path.iterdir())
        session = open_session(path, "cpu")
        assert session.file_bytes == both == stored_bytes(path)
        np.testing.assert_array_equal(session.run(IMAGES), logits(path, IMAGES))
        result = benchmark_files([path], "cpu", rounds=1)
        assert result.placements[0].integer_kernels["QGemm"] == 2

    def test_the_seal_is_that_of_one_file(self, proto, tmp_path):
        path = write(proto, tmp_path / "m.onnx")
        assert content_hash(read(path), tmp_path) == content_hash(proto, tmp_path)
        assert state(read(path), tmp_path) is Seal.WHOLE

    def test_weights_that_changed_break_it(self, proto, tmp_path):
        path = write(proto, tmp_path / "m.onnx")
        data = files_of(path)[1]
        content = bytearray(data.read_bytes())
        content[7] ^= 1
        data.write_bytes(content)
        assert state(read(path), tmp_path) is Seal.CHANGED

    @pytest.mark.parametrize("damage", ["absent", "short"])
    def test_weights_that_are_gone_are_named(self, proto, tmp_path, damage):
        path = write(proto, tmp_path / "m.onnx")
        data = files_of(path)[1]
        if damage == "absent":
            data.unlink()
        else:
            data.write_bytes(data.read_bytes()[:40])
        with pytest.raises(QdeployError, match=rf"{data.name}"):
            state(read(path), tmp_path)


def logits_of_bytes(content):
    return open_session(content, "cpu").run(IMAGES)


def entries(proto):
    return {entry.key: entry.value for entry in proto.metadata_props}


class TestTheSeal:
    def test_it_is_the_documented_hash(self, proto):
        weights = b"".join(tensor.raw_data for tensor in proto.graph.initializer)
        sealed = entries(proto)
        assert list(sealed)[-2:] == ["qdeploy.network", "qdeploy.sha256"]
        del proto.metadata_props[-1]
        for tensor in proto.graph.initializer:
            tensor.ClearField("raw_data")
        network = onnx.ModelProto(graph=proto.graph, opset_import=proto.opset_import)
        for skeleton, found in [(proto, "qdeploy.sha256"), (network, "qdeploy.network")]:
            content = skeleton.SerializeToString(deterministic=True) + weights
            assert hashlib.sha256(content).hexdigest().startswith(sealed[found])
        assert len(sealed["qdeploy.network"]) == 32

    def test_a_fresh_file_is_whole(self, proto, tmp_path):
        assert state(proto, tmp_path) is Seal.WHOLE

    @pytest.mark.parametrize(
        "change",
        [
            lambda p: setattr(p.graph.initializer[0], "raw_data", bytes(9)),
            lambda p: p.graph.node[0].attribute.add(name="axis", i=1, type=2),
            lambda p: p.graph.initializer.pop(),
            lambda p: setattr(p.opset_import[0], "version", 20),
        ],
        ids=["weights", "node", "initialiser", "opset"],
    )
    def test_a_change_of_the_network_breaks_it(self, proto, tmp_path, change):
        change(proto)
        assert state(proto, tmp_path) is Seal.CHANGED
        stamp(proto, "qdeploy.proof", "none")
        assert state(proto, tmp_path) is Seal.WHOLE

    def test_metadata_that_were_added_are_named(self, proto, tmp_path):
        proto.metadata_props.add(key="onnx.infer", value="onnxruntime.quant")
        proto.metadata_props.add(key="owner", value="they")
        assert state(proto, tmp_path) is Seal.METADATA
        assert added_entries(proto, tmp_path) == ["onnx.infer", "owner"]

    @pytest.mark.parametrize(
        "change",
        [
            lambda p: setattr(p, "producer_name", "they"),
            lambda p: p.metadata_props.insert(0, onnx.StringStringEntryProto(key="a", value="b")),
            lambda p: setattr(p.metadata_props[0], "value", "another"),
        ],
        ids=["producer", "entry before", "value"],
    )
    def test_other_changes_of_metadata_have_no_name(self, proto, tmp_path, change):
        recipe = onnx.StringStringEntryProto(key="qdeploy.recipe", value="one")
        proto.metadata_props.insert(0, recipe)
        seal(proto)
        proto.metadata_props.add(key="owner", value="they")
        change(proto)
        assert state(proto, tmp_path) is Seal.METADATA
        assert added_entries(proto, tmp_path) == []

    def test_a_file_sealed_before_there_were_two_hashes(self, proto, tmp_path):
        del proto.metadata_props[:]
        proto.metadata_props.add(key="qdeploy.sha256", value=content_hash(proto, tmp_path))
        assert state(proto, tmp_path) is Seal.WHOLE
        proto.metadata_props.add(key="owner", value="they")
        assert state(proto, tmp_path) is Seal.CHANGED

    def test_without_a_hash_what_is_ours_has_lost_it(self, proto, tmp_path):
        del proto.metadata_props[:]
        assert state(proto, tmp_path) is Seal.LOST
        proto.producer_name = proto.graph.name = "another tool"
        assert state(proto, tmp_path) is Seal.NONE
        proto.metadata_props.add(key="qdeploy.recipe", value="mine")
        assert state(proto, tmp_path) is Seal.LOST


def test_the_format_of_onnx_runtime_is_named(proto, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    with pytest.raises(QdeployError, match=r"m\.ort is no ONNX file, but of ONNX Runtime's own"):
        read(tmp_path / "m.ort")


@pytest.mark.parametrize("content", [b"", b"no network\n" * 50, None])
def test_what_is_no_onnx_file_is_refused(tmp_path, content):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(QdeployError, match=r"m\.onnx"):
        read(path)
