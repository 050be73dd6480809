"""The clean-up of a traced graph."""

import pytest


pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")

import onnx_ir as ir

from transformers_sem.export.onnx import clear_records, mark_float32


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
