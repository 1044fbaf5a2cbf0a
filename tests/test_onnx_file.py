"""Files of one piece and of two, and the hash that proves them whole."""

import hashlib

import numpy as np
import onnx
import pytest
from artifact_files import logits, model
from networks import images

from qdeploy import onnx_file as storage
from qdeploy.benchmark import benchmark_files, open_session
from qdeploy.deploy.seal import content_hash, is_intact
from qdeploy.errors import QdeployError
from qdeploy.onnx_file import files_of, read, stored_bytes, write

IMAGES = images(4).numpy()


@pytest.fixture
def proto():
    return onnx.ModelProto.FromString(model())


@pytest.fixture
def low_limit(monkeypatch):
    """Anything is too large, and constants of 32 bytes lie outside."""
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
        assert is_intact(read(path), tmp_path)

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
        assert is_intact(read(path), tmp_path)

    def test_weights_that_changed_break_it(self, proto, tmp_path):
        path = write(proto, tmp_path / "m.onnx")
        data = files_of(path)[1]
        content = bytearray(data.read_bytes())
        content[7] ^= 1
        data.write_bytes(content)
        assert is_intact(read(path), tmp_path) is False

    @pytest.mark.parametrize("damage", ["absent", "short"])
    def test_weights_that_are_gone_are_named(self, proto, tmp_path, damage):
        path = write(proto, tmp_path / "m.onnx")
        data = files_of(path)[1]
        if damage == "absent":
            data.unlink()
        else:
            data.write_bytes(data.read_bytes()[:40])
        with pytest.raises(QdeployError, match=rf"{data.name}"):
            is_intact(read(path), tmp_path)


def logits_of_bytes(content):
    return open_session(content, "cpu").run(IMAGES)


class TestTheSeal:
    def test_it_is_the_documented_hash(self, proto):
        sealed = {entry.key: entry.value for entry in proto.metadata_props}["qdeploy.sha256"]
        weights = [tensor.raw_data for tensor in proto.graph.initializer]
        (entry,) = proto.metadata_props
        proto.metadata_props.remove(entry)
        for tensor in proto.graph.initializer:
            tensor.ClearField("raw_data")
        skeleton = proto.SerializeToString(deterministic=True)
        assert sealed == hashlib.sha256(skeleton + b"".join(weights)).hexdigest()

    def test_a_fresh_file_is_intact(self, proto, tmp_path):
        assert is_intact(proto, tmp_path) is True

    def test_any_change_breaks_it(self, proto, tmp_path):
        tensor = proto.graph.initializer[0]
        tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]
        assert is_intact(proto, tmp_path) is False
        for change in (
            lambda p: p.metadata_props.add(key="qdeploy.recipe", value="another"),
            lambda p: p.graph.node[0].attribute.add(name="axis", i=1, type=2),
            lambda p: p.graph.initializer.pop(),
        ):
            changed = onnx.ModelProto.FromString(model())
            change(changed)
            assert is_intact(changed, tmp_path) is False

    def test_a_file_without_one_is_neither(self, proto, tmp_path):
        del proto.metadata_props[:]
        assert is_intact(proto, tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"no network\n" * 50, None])
def test_what_is_no_onnx_file_is_refused(tmp_path, content):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(QdeployError, match=r"m\.onnx"):
        read(path)
