"""The graph of a model with one task, and the clean-up of a traced graph."""

import numpy as np
import pytest
import torch

from transformers_sem import SEMForMultiTaskDensePrediction


pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")

import onnx_ir as ir
import onnxruntime

from transformers_sem.export.functions import Call, MapSize, Signature
from transformers_sem.export.onnx import clear_records, export_graph, mark_float32

from ..tiny import tiny_config


def test_a_call_returns_one_map_as_its_module_does():
    signature = Signature("function", [MapSize(3, 2)], [MapSize(5, 1)])
    maps = torch.zeros(2, 3, 8, 6)
    assert Call(torch.nn.Identity(), signature)(maps).shape == (2, 5, 4, 3)
    (result,) = Call(torch.nn.Identity(), signature, returns_tuple=True)(maps)
    assert result.shape == (2, 5, 4, 3)


@pytest.mark.slow
def test_a_model_of_one_task_is_exported(tmp_path):
    model = SEMForMultiTaskDensePrediction(tiny_config(task_num_labels={"depth": 1}, use_decoder=False)).eval()
    export_graph(model, tmp_path / "model.onnx", size=(64, 64))
    images = torch.randn(3, 3, 64, 64)
    (depth,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"pixel_values": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(depth, model(images).logits["depth"].numpy(), atol=1e-4)


def build(scopes):
    """A chain of nodes, each with the record of the modules that it was traced in."""
    value = graph_input = ir.Value(name="pixel_values", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    nodes = []
    for scope in scopes:
        node = ir.node("Relu", [value])
        node.metadata_props["pkg.torch.onnx.class_hierarchy"] = str(scope)
        node.metadata_props["pkg.torch.onnx.stack_trace"] = "/home/me.py"
        node.outputs[0].metadata_props["pkg.torch.onnx.original_node_name"] = "relu"
        nodes.append(node)
        (value,) = node.outputs
    graph_input.metadata_props["kind"] = "USER_INPUT"
    return ir.Model(ir.Graph([graph_input], [value], nodes=nodes, opset_imports={"": 18}), ir_version=10)


def test_nodes_of_the_em_iterations_are_marked_before_the_records_are_dropped():
    package = "transformers_sem.modeling_sem"
    model = build([[f"{package}.SEMInterTaskModule", "torch.nn.Linear"], [f"{package}.SEMTaskHead"], []])
    mark_float32(model)
    assert [node.name for node in model.graph] == ["float32_Relu_0", "Relu_1", "Relu_2"]
    clear_records(model)
    text = ir.to_proto(model).SerializeToString()
    assert b"/home/me.py" not in text and b"relu" not in text and b"USER_INPUT" not in text
