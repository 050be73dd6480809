"""Smaller graphs of an exported model: fp16, and int8 by ONNX Runtime's quantization."""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from ..modeling_sem import SEMForMultiTaskDensePrediction
from .onnx import FLOAT32_NODE


FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
# Their inputs have mixed types, or positions need more digits
FLOAT32_OPERATORS = ("Cast", "GridSample", "Resize")


class CalibrationImages(CalibrationDataReader):
    """Images in the form in which ONNX Runtime reads them.

    Args:
        images (`Iterable[np.ndarray]`): float32 `(1, 3, height, width)`, as the image processor returns them.
    """

    def __init__(self, images: Iterable[np.ndarray]):
        self.images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Returns the inputs of the graph for the next image, and `None` after the last."""
        image = next(self.images, None)
        return None if image is None else {"pixel_values": image}


def float32_nodes(path: Path) -> list[str]:
    """Returns the names of the nodes that stay float32."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    return [node.name for node in nodes if node.name.startswith(FLOAT32_NODE)]


def to_half(values: np.ndarray) -> np.ndarray:
    """Rounds to half precision. What would become infinite or zero becomes the nearest other number."""
    info = np.finfo(np.float16)
    smallest = np.where(values == 0, 0, np.copysign(info.smallest_subnormal, values))
    rounded = np.where(np.abs(values) < info.smallest_subnormal, smallest, values.clip(info.min, info.max))
    return rounded.astype(np.float16)


class HalfPrecision:
    """Converts the nodes of a graph to half precision one by one, in their order, and casts between them where needed.

    The converter of ONNX Runtime rounds between two nodes that both stay float32, where a sum of squares overflows.

    Args:
        graph (`ir.Graph`): With the types of all values. It is changed in place.
    """

    def __init__(self, graph: ir.Graph):
        self.graph = graph
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def convert(self) -> None:
        """Converts all nodes. Inputs and outputs of the graph stay float32."""
        for node in list(self.graph):
            floats = [index for index, value in enumerate(node.inputs) if value and value.dtype in FLOATS]
            # a node that makes numbers of other types has no half-precision input that says which it makes
            stays = not floats or node.op_type in FLOAT32_OPERATORS or node.name.startswith(FLOAT32_NODE)
            dtype = ir.DataType.FLOAT if stays else ir.DataType.FLOAT16
            for index in floats:
                node.replace_input_with(index, self.cast(node.inputs[index], dtype, node))
            for value in node.outputs:
                if value.dtype in FLOATS:
                    value.dtype = dtype
        for index, value in enumerate(self.graph.outputs):
            if value.dtype == ir.DataType.FLOAT16:
                self.graph.outputs[index] = self.cast_output(value)

    def cast(self, value: ir.Value, dtype: ir.DataType, before: ir.Node) -> ir.Value:
        """Returns the value in a type, for all nodes from `before` on."""
        if value.dtype == dtype:
            return value
        if (value, dtype) not in self.casts:
            if value.is_initializer():
                self.casts[value, dtype] = self.half_initializer(value)
            else:
                node = ir.node("Cast", [value], {"to": dtype}, name=f"Cast_{len(self.casts)}_{value.name}")
                node.outputs[0].dtype = dtype
                self.graph.insert_before(before, node)
                self.casts[value, dtype] = node.outputs[0]
        return self.casts[value, dtype]

    def half_initializer(self, value: ir.Value) -> ir.Value:
        """Adds a weight in half precision."""
        name = f"{value.name}_half"
        tensor = ir.tensor(to_half(value.const_value.numpy()), name=name)
        half = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT16), shape=value.shape, const_value=tensor)
        self.graph.register_initializer(half)
        return half

    def cast_output(self, value: ir.Value) -> ir.Value:
        """Casts an output of the graph, which keeps its name, to float32."""
        node = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"Cast_{value.name}")
        node.outputs[0].name, value.name = value.name, f"{value.name}_half"
        node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, value.shape
        self.graph.append(node)
        return node.outputs[0]


def write_fp16(source: Path, target: Path) -> None:
    """Writes a graph with half-precision weights and activations. Its inputs and outputs stay float32."""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load(source)))
    HalfPrecision(model.graph).convert()
    RemoveUnusedNodesPass()(model)  # and the float32 weights
    ir.save(model, target)


def write_int8(source: Path, target: Path, images: list[np.ndarray] | None) -> None:
    """Writes a graph whose convolutions and matrix products have 8-bit weights. Its inputs and outputs stay float32.

    Args:
        source (`Path`): The float32 graph.
        target (`Path`): File to write.
        images (`list[np.ndarray]`, *optional*): As in [`CalibrationImages`]. They give the ranges of the activations of a static
            quantization. Without them it is dynamic: each image gives its own ranges, and convolutions stay float32.
    """
    with TemporaryDirectory(dir=target.parent) as folder:
        prepared = Path(folder, "prepared.onnx")
        quant_pre_process(source, prepared, skip_symbolic_shape=True, save_as_external_data=True)
        settings = {
            "per_channel": True,
            "reduce_range": True,  # 8-bit products overflow on CPUs without VNNI
            "weight_type": QuantType.QInt8,
            "nodes_to_exclude": float32_nodes(prepared),
        }
        if images is None:
            quantize_dynamic(prepared, target, op_types_to_quantize=["MatMul", "Gemm"], **settings)
        else:
            quantize_static(
                prepared,
                target,
                CalibrationImages(images),
                op_types_to_quantize=["Conv", "MatMul", "Gemm"],
                activation_type=QuantType.QUInt8,
                **settings,
            )


def is_convolutional(model: SEMForMultiTaskDensePrediction) -> bool:
    """Whether most weights of the encoder are in convolutions, which dynamic quantization leaves as they are."""
    encoder = model.sem.backbone
    convolutions = [module for module in encoder.modules() if isinstance(module, nn.Conv2d)]
    return 2 * sum(convolution.weight.numel() for convolution in convolutions) > encoder.num_parameters()
