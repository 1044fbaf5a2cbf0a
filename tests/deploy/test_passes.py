"""Each rewrite alone, on the smallest graph that shows it, run before and after."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exported_networks import operators, optimized, session

from qdeploy.deploy import integer_passes, passes
from qdeploy.deploy.names import short_names


def graph(text, output="float[N, C] y"):
    """A model from ONNX's text form; x is float[N, 3, 4, 4]."""
    return onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 21]> g (float[N, 3, 4, 4] x) => ({output}) {text}'
    )


def rewritten(proto, *rewrites):
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    for rewrite in rewrites:
        rewrite(model)
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    return after


def values(proto, scale=3.0, **options):
    x = np.random.default_rng(0).normal(0, scale, (5, 3, 4, 4)).astype(np.float32)
    return session(proto, **options).run(None, {"x": x})[0]


def kinds(proto):
    return [node.op_type for node in proto.graph.node]


def same_values(before, after, **tolerance):
    np.testing.assert_allclose(values(after, plain=True), values(before, plain=True), **tolerance)


@pytest.mark.parametrize("axes", ["2, 3", "-1, -2", "3, 2"])
@pytest.mark.parametrize("keep", [0, 1])
def test_the_mean_over_height_and_width_becomes_a_pooling(axes, keep):
    output = "float[N, 3, 1, 1] y" if keep else "float[N, 3] y"
    before = graph(
        f"<int64[2] axes = {{{axes}}}> {{ y = ReduceMean <keepdims = {keep}> (x, axes) }}", output
    )
    after = rewritten(before, integer_passes.global_average_pools)
    assert kinds(after) == ["GlobalAveragePool"] + ["Flatten"] * (not keep)
    assert [o.name for o in after.graph.output] == ["y"]
    same_values(before, after, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("axes", "output"), [("1, 2", "float[N, 4] y"), ("0, 1", "float[4, 4] y")])
def test_other_means_stay(axes, output):
    before = graph(
        f"<int64[2] axes = {{{axes}}}> {{ y = ReduceMean <keepdims = 0> (x, axes) }}", output
    )
    assert kinds(rewritten(before, integer_passes.global_average_pools)) == ["ReduceMean"]


QUANTIZED_MEAN = """<int64[2] axes = {2, 3}, float s = {0.1}, uint8 z = {100}, float t = {0.02},
    uint8 w = {90}> {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    m = ReduceMean <keepdims = 0> (d, axes)
    r = QuantizeLinear(m, t, w)
    y = DequantizeLinear(r, t, w) }"""


def test_a_quantized_mean_is_flattened_behind_its_quantizer(tmp_path):
    before = graph(QUANTIZED_MEAN, "float[N, 3] y")
    after = rewritten(before, integer_passes.global_average_pools)
    assert kinds(after)[2:] == [
        "GlobalAveragePool",
        "QuantizeLinear",
        "Flatten",
        "DequantizeLinear",
    ]
    same_values(before, after, atol=1e-6)
    assert operators(optimized(after, tmp_path))["QLinearGlobalAveragePool"] == 1


def clipped(operator, zero, integer_clip=""):
    text = f"""<float s = {{0.25}}, uint8 z = {{{zero}}}, float lo = {{-0.9}}, float hi = {{6}},
        uint8 first = {{2}}, uint8 last = {{15}}> {{
        c = {operator}
        q = QuantizeLinear(c, s, z)
        {integer_clip}
        y = DequantizeLinear({"k" if integer_clip else "q"}, s, z) }}"""
    return graph(text, "float[N, 3, 4, 4] y")


CLIP = "k = Clip(q, first, last)"


@pytest.mark.parametrize(
    ("operator", "zero", "integer_clip", "bounds"),
    [
        ("Relu(x)", 0, "", None),
        ("Relu(x)", 128, "", (128, 255)),
        ("Relu(x)", 0, CLIP, (2, 15)),
        ("Relu(x)", 8, CLIP, (8, 15)),
        ("Clip(x, lo, hi)", 0, "", (0, 24)),
        ("Clip(x, lo, hi)", 0, CLIP, (2, 15)),
        ("Clip(x, lo, hi)", 7, CLIP, (3, 15)),
        ("Clip(x, lo, hi)", 240, "", (236, 255)),
    ],
)
def test_a_clip_of_floats_becomes_a_clip_of_codes(operator, zero, integer_clip, bounds):
    before = clipped(operator, zero, integer_clip)
    after = rewritten(before, integer_passes.clip_on_integers)
    same_values(before, after, atol=0)
    codes = [node for node in after.graph.node if node.op_type == "Clip"]
    assert kinds(after)[0] == "QuantizeLinear"
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
    found = [tuple(int(constants[name]) for name in node.input[1:]) for node in codes]
    assert found == ([] if bounds is None else [bounds])


def test_a_relu_that_others_read_stays():
    text = """<float s = {0.25}, uint8 z = {3}> {
        c = Relu(x)
        q = QuantizeLinear(c, s, z)
        d = DequantizeLinear(q, s, z)
        y = Add(c, d) }"""
    before = graph(text, "float[N, 3, 4, 4] y")
    assert kinds(rewritten(before, integer_passes.clip_on_integers))[0] == "Relu"


def test_other_operators_before_a_quantizer_stay():
    assert kinds(rewritten(clipped("Neg(x)", 3), integer_passes.clip_on_integers))[0] == "Neg"


def float_conv(source):
    return graph(
        f"""<float s = {{0.1}}, uint8 z = {{100}}, float t = {{0.05}}, uint8 w = {{90}},
        float[2, 3, 1, 1] weight = {{40, 0.1, 0.2, -40, 0.3, 0.15}}> {{
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        c = Conv({source}, weight)
        r = QuantizeLinear(c, t, w)
        y = DequantizeLinear(r, t, w) }}""",
        "float[N, 2, 4, 4] y",
    )


def test_a_float_conv_between_quantized_tensors_is_guarded():
    before = float_conv("d")
    after = rewritten(before, passes.guard_float_layers)
    assert kinds(after)[1:4] == ["DequantizeLinear", "Max", "Conv"]
    same_values(before, after, atol=0)
    right = values(before, plain=True)
    np.testing.assert_allclose(values(after), right, atol=1e-6)
    assert np.abs(values(before) - right).max() > 0.5  # ten steps


def test_a_conv_on_floats_needs_no_guard():
    assert "Max" not in kinds(rewritten(float_conv("x"), passes.guard_float_layers))


def wide_conv():
    return graph(
        """<float s = {0.1}, uint8 z = {100}, float t = {0.05}, uint8 w = {90},
        int16[2, 3, 1, 1] codes = {400, 1, 2, -32767, 3, 150}, float[2] u = {0.1, 0.0003},
        int16[2] v = {0, 0}> {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        weight = DequantizeLinear <axis = 0> (codes, u, v)
        c = Conv(d, weight)
        r = QuantizeLinear(c, t, w)
        y = DequantizeLinear(r, t, w) }""",
        "float[N, 2, 4, 4] y",
    )


def test_a_weight_of_16_bits_is_computed_once_and_stays_exact(tmp_path):
    before = wide_conv()
    rewrites = passes.unfold_float_weights, passes.guard_float_layers, passes.share_initialisers
    after = rewritten(before, *rewrites)
    same_values(before, after, atol=0)
    np.testing.assert_array_equal(values(after), values(before, plain=True))
    assert [t.data_type for t in after.graph.initializer].count(onnx.TensorProto.INT16) == 1
    kernels = operators(optimized(after, tmp_path))
    assert kernels["Conv"] + kernels["FusedConv"] == 1
    assert kernels["Cast"] == kernels["Mul"] == 0


@pytest.mark.parametrize(("source", "unfolded"), [("d", False), ("x", True)])
def test_a_weight_is_unfolded_where_no_codes_meet_it_also_if_it_is_turned(source, unfolded):
    text = f"""<float s = {{0.1}}, uint8 z = {{100}}, int8[2, 4] codes = {{1, 2, 3, 4, 5, 6, 7, 8}},
        float[2] t = {{0.1, 0.2}}, int8[2] w = {{0, 0}}> {{
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        weight = DequantizeLinear <axis = 0> (codes, t, w)
        turned = Transpose <perm = [1, 0]> (weight)
        a = MatMul({source}, turned)
        b = MatMul(d, turned)
        y = {"Add(a, b)" if unfolded else "Identity(b)"} }}"""
    before = graph(text, "float[N, 3, 4, 2] y")
    after = rewritten(before, passes.unfold_float_weights)
    assert ("Cast" in kinds(after)) == unfolded
    same_values(before, after, atol=1e-5)


def test_an_integer_weight_needs_no_guard():
    text = """<float s = {0.1}, uint8 z = {100}, int8[2, 3, 1, 1] codes = {1, 2, 3, 4, 5, 6},
        float[2] t = {0.1, 0.2}, int8[2] w = {0, 0}> {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        weight = DequantizeLinear <axis = 0> (codes, t, w)
        y = Conv(d, weight) }"""
    before = graph(text, "float[N, 2, 4, 4] y")
    assert "Max" not in kinds(rewritten(before, passes.guard_float_layers))


SHARED = """<float[1] a = {2.0}, float[1] b = {2.0}, float c = {2.0}, int64[1] d = {2},
    float[1] e = {3.0}> {
    p = Mul(x, a)
    q = Mul(p, b)
    r = Add(q, c)
    i = Cast <to = 1> (d)
    s = Add(r, i)
    y = Add(s, e) }"""


def test_equal_constants_are_stored_once():
    before = graph(SHARED, "float[N, 3, 4, 4] y")
    after = rewritten(before, passes.share_initialisers)
    assert [t.name for t in before.graph.initializer] == ["a", "b", "c", "d", "e"]
    assert [t.name for t in after.graph.initializer] == ["a", "c", "d", "e"]  # shape and type count
    same_values(before, after, atol=0)


def test_unused_initialisers_go():
    before = graph(SHARED, "float[N, 3, 4, 4] y")
    twin = onnx.numpy_helper.to_array(before.graph.initializer[0])  # of a constant that is used
    before.graph.initializer.insert(0, onnx.numpy_helper.from_array(twin, "unused"))
    after = rewritten(before, passes.share_initialisers)
    assert [t.name for t in after.graph.initializer] == ["a", "c", "d", "e"]
    same_values(before, after, atol=0)


def test_names_become_short_and_the_ends_keep_theirs():
    text = SHARED.replace("p =", "a_very_long_name =").replace("(p,", "(a_very_long_name,")
    before = graph(text, "float[N, 3, 4, 4] y")
    after = rewritten(before, short_names)
    names = [t.name for t in after.graph.initializer] + [n.output[0] for n in after.graph.node]
    assert len(set(names)) == len(names)
    assert names[-1] == "y"
    assert all(len(name) == 1 for name in names)
    assert "x" in after.graph.node[0].input
    assert "x" not in names
    same_values(before, after, atol=0)


def test_what_the_exporter_noted_is_dropped():
    proto = graph(SHARED, "float[N, 3, 4, 4] y")
    proto.doc_string = "long"
    for holder in (proto, proto.graph, *proto.graph.node):
        holder.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="long " * 100)
    after = rewritten(proto, passes.strip_metadata)
    assert "long" not in str(after)
    same_values(proto, after, atol=0)


def test_attributes_that_repeat_the_default_are_dropped():
    text = """<float s = {0.1}, uint8 z = {100}, float[2, 3, 1, 1] weight = {1, 2, 3, 4, 5, 6}> {
        q = QuantizeLinear <axis = 1, block_size = 0, saturate = 1> (x, s, z)
        d = DequantizeLinear <axis = 0, block_size = 0> (q, s, z)
        y = Conv <group = 1, pads = [0, 0, 0, 0]> (d, weight) }"""
    before = graph(text, "float[N, 2, 4, 4] y")
    after = rewritten(before, passes.drop_default_attributes)
    assert [[a.name for a in node.attribute] for node in after.graph.node] == [
        [],
        ["axis"],
        ["pads"],
    ]
    same_values(before, after, atol=0)


def quantized(body, scale, zero, output="float[N, C, H, W] y"):
    """x as codes of `scale` and `zero`, the operators `body` from q to r, and r as codes again."""
    return graph(
        f"<float s = {{{scale}}}, uint8 z = {{{zero}}}, float t = {{0.05}}, uint8 w = {{30}},"
        " float n = {0.3}> {"
        "c = QuantizeLinear (x, s, z) q = DequantizeLinear (c, s, z) "
        f"{body} d = QuantizeLinear (r, t, w) y = DequantizeLinear (d, t, w) }}",
        output,
    )


@pytest.mark.parametrize("product", ["Mul (q, n)", "Mul (n, q)", "Div (q, n)"])
def test_a_number_that_multiplies_joins_the_quantizer(product):
    before = quantized(f"r = {product}", 0.02, 100)
    after = rewritten(before, integer_passes.scales_into_quantizers)
    assert not {"Mul", "Div"} & set(kinds(after))
    same_values(before, after, atol=0.0501)
    assert (np.abs(values(before, plain=True) - values(after, plain=True)) > 1e-6).mean() < 0.01


def test_a_negative_number_stays():
    before = quantized("m = Neg (n) r = Mul (q, m)", 0.02, 100)
    assert "Mul" in kinds(rewritten(before, integer_passes.scales_into_quantizers))


@pytest.mark.parametrize(("scale", "zero", "on_codes"), [
    (3 / 40, 60, True), (3 / 100, 128, True), (3 / 40.5, 60, False), (3 / 40, 30, False),
])  # fmt: skip
def test_the_gate_of_a_hardswish_becomes_a_clip_of_codes_where_3_is_on_the_grid(
    scale, zero, on_codes
):
    body = "g = HardSigmoid <alpha = 0.16666667, beta = 0.5> (q) r = Mul (q, g)"
    before = quantized(body, scale, zero)
    after = rewritten(before, integer_passes.gates_on_integers)
    assert ("Clip" in kinds(after)) == on_codes
    assert ("HardSigmoid" in kinds(after)) != on_codes
    same_values(before, after, atol=0.0501)
    assert (np.abs(values(before, plain=True) - values(after, plain=True)) > 1e-6).mean() < 0.01


@pytest.mark.parametrize(("mode", "value", "on_codes"), [
    ("constant", 0.0, True), ("constant", 1.5, False), ("reflect", 0.0, True), ("edge", 0.0, True),
])  # fmt: skip
def test_padding_pads_codes_where_it_makes_no_value_of_its_own(mode, value, on_codes):
    text = (
        f"<float s = {{0.05}}, uint8 z = {{30}}, float v = {{{value}}},"
        " int64[8] p = {0, 0, 1, 2, 0, 0, 3, 1}> {"
        "c = QuantizeLinear (x, s, z) q = DequantizeLinear (c, s, z) "
        f'r = Pad <mode = "{mode}"> (q, p, v) '
        "d = QuantizeLinear (r, s, z) y = DequantizeLinear (d, s, z) }"
    )
    before = graph(text, "float[N, C, H, W] y")
    after = rewritten(before, integer_passes.pads_on_integers)
    assert kinds(after).count("QuantizeLinear") == (1 if on_codes else 2)
    same_values(before, after)


def test_rounding_moves_before_the_layout_in_squares():
    text = (
        "<float s = {0.05}, uint8 z = {30}, float[8, 3, 1, 1] w> {"
        "k = Conv (x, w) r = DepthToSpace <blocksize = 2, mode = \"CRD\"> (k) "
        "d = QuantizeLinear (r, s, z) y = DequantizeLinear (d, s, z) }"
    )  # fmt: skip
    before = graph(text, "float[N, C, H, W] y")
    weight = np.random.default_rng(1).normal(size=(8, 3, 1, 1)).astype(np.float32)
    for initializer in before.graph.initializer:
        if initializer.name == "w":
            initializer.CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
    if not any(i.name == "w" for i in before.graph.initializer):
        before.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    after = rewritten(before, integer_passes.quantizers_behind_products)
    assert kinds(after) == ["Conv", "QuantizeLinear", "DepthToSpace", "DequantizeLinear"]
    same_values(before, after)


@pytest.mark.parametrize(("scale", "clips"), [(0.021, 1), (0.03, 0)])
def test_two_roundings_on_different_grids_stay_two(scale, clips):
    before = graph(
        f"""
        <float s = {{0.03}}, uint8 z = {{128}}, float t = {{{scale}}}, uint8 w = {{128}}>
        {{ a = QuantizeLinear (x, s, z)  b = DequantizeLinear (a, s, z)
          c = QuantizeLinear (b, t, w)  y = DequantizeLinear (c, t, w) }}""",
        "float[N, C, H, W] y",
    )
    after = rewritten(before, integer_passes.keep_both_roundings)
    assert kinds(after).count("Clip") == clips
    np.testing.assert_array_equal(values(after), values(before, plain=True))
    if clips:
        assert (values(before) != values(before, plain=True)).any()  # what ONNX Runtime makes of it
