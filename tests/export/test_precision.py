"""Smaller graphs: what they convert, and what stays float32."""

import numpy as np
import pytest


pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")

import onnx
import onnxruntime
from onnx import TensorProto, helper

from transformers_sem import SEMForMultiTaskDensePrediction
from transformers_sem.export.precision import is_convolutional, write_fp16, write_int8

from ..tiny import tiny_config
from .graphs import save_graph


def predict(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixel_values": images})[0]


@pytest.fixture
def images():
    return np.random.default_rng(0).standard_normal((1, 3, 8, 12)).astype(np.float32)


@pytest.fixture
def graph(tmp_path):
    """A convolution, and two matrix products of its columns, the second of which stays float32."""
    random = np.random.default_rng(1)
    shapes = {"kernel": (8, 3, 3, 3), "first": (12, 12), "second": (12, 12)}
    weights = {name: random.standard_normal(shape) / 4 for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["pixel_values", "kernel"], ["a"], name="Conv_0", pads=[1, 1, 1, 1]),
        helper.make_node("MatMul", ["a", "first"], ["b"], name="MatMul_1"),
        helper.make_node("MatMul", ["b", "second"], ["out"], name="float32_MatMul_2"),
    ]
    return save_graph(tmp_path / "model.onnx", nodes, weights, {"out": 8})


def test_fp16_keeps_what_overflows_in_float32(tmp_path, images):
    nodes = [
        helper.make_node("Mul", ["pixel_values", "scale"], ["scaled"], name="Mul_0"),
        helper.make_node("Mul", ["scaled", "scaled"], ["square"], name="float32_Mul_1"),
        helper.make_node("Sqrt", ["square"], ["length"], name="float32_Sqrt_2"),
        helper.make_node("Mul", ["length", "other_scale"], ["out"], name="Mul_3"),
    ]
    scales = {"scale": np.full((1, 3, 1, 1), 500.0), "other_scale": np.full((1, 3, 1, 1), 0.002)}
    source = save_graph(tmp_path / "model.onnx", nodes, scales, {"out": 3})
    write_fp16(source, tmp_path / "model_fp16.onnx")
    assert np.square(500 * images).max() > 65504
    half = predict(tmp_path / "model_fp16.onnx", images)
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, np.abs(images), rtol=2e-3, atol=1e-3)
    weights = {weight.name: weight.data_type for weight in onnx.load(tmp_path / "model_fp16.onnx").graph.initializer}
    assert set(weights.values()) == {TensorProto.FLOAT16}


def test_int8_without_images_is_dynamic_and_leaves_convolutions(graph, tmp_path, images):
    write_int8(graph, tmp_path / "model_int8.onnx", None)
    types = {node.op_type for node in onnx.load(tmp_path / "model_int8.onnx").graph.node}
    assert {"Conv", "MatMul", "MatMulInteger"} <= types and "QuantizeLinear" not in types
    expected = predict(graph, images)
    np.testing.assert_allclose(predict(tmp_path / "model_int8.onnx", images), expected, atol=0.05)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model_int8.onnx"]


def test_int8_with_images_is_static_and_keeps_what_is_named_float32(graph, tmp_path, images):
    write_int8(graph, tmp_path / "model_int8.onnx", [images, images / 2])
    quantized = onnx.load(tmp_path / "model_int8.onnx").graph
    weights = {weight.name: weight.data_type for weight in quantized.initializer}
    assert weights["second"] == TensorProto.FLOAT and "kernel" not in weights and "first" not in weights
    assert {TensorProto.INT8} <= set(weights.values())
    np.testing.assert_allclose(predict(tmp_path / "model_int8.onnx", images), predict(graph, images), atol=0.1)


def test_convolutional_encoders_are_told_from_transformers():
    kinds = {}
    for name in ("test_vit", "test_convnext", "test_resnet"):
        config = tiny_config(backbone_config={"model_name": name, "out_indices": [1, 2, 3, 4]}, use_decoder=False)
        kinds[name] = is_convolutional(SEMForMultiTaskDensePrediction(config))
    assert kinds == {"test_vit": False, "test_convnext": False, "test_resnet": True}
