"""A graph in ONNX Runtime in the place of the model, to compare and to score it."""

from pathlib import Path

import datasets
import onnxruntime
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..configuration_sem import SEMConfig
from ..data.benchmarks import Benchmark
from ..evaluation.config import EvaluationConfig
from ..evaluation.evaluator import MODEL, Evaluation, match_classes, scored_widths
from ..image_processing_sem import SEMImageProcessor
from ..modeling_outputs import SEMMultiTaskOutput
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..utils.processes import available_cpus


class Graph(nn.Module):
    """A graph on the CPU, which is called as the model is.

    Args:
        path (`Path`): The graph.
        config ([`SEMConfig`]): Of the model.
        num_threads (`int`, *optional*, defaults to 0): Threads of ONNX Runtime; 0 is one for each core.
    """

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, path: Path, config: SEMConfig, num_threads: int = 0):
        super().__init__()
        self.config = config
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(self, pixel_values: Tensor) -> SEMMultiTaskOutput:
        """Images float32 `(B, 3, H, W)` -> logits `(B, C_t, H / 4, W / 4)` of each task.

        Raises:
            ValueError: If ONNX Runtime cannot run the graph on images of that size.
        """
        height, width = pixel_values.shape[-2:]
        try:
            logits = self.session.run(self.config.tasks, {"pixel_values": pixel_values.numpy()})
        except Exception as error:  # the classes of its errors are not public
            raise ValueError(
                f"ONNX Runtime cannot run the graph on {height} x {width} pixels. Its message: {error}"
            ) from error
        return SEMMultiTaskOutput(logits=dict(zip(self.config.tasks, map(torch.from_numpy, logits), strict=True)))


@torch.no_grad()
def largest_difference(model: SEMForMultiTaskDensePrediction, graph: Graph, size: tuple[int, int]) -> float:
    """Returns the largest absolute difference between the logits of the graph and of the model, on an image of noise."""
    images = torch.randn(1, model.config.backbone_config.num_channels, *size)
    logits, exported = model(images).logits, graph(images).logits
    # not max(): it would drop NaN
    return torch.stack([(exported[task] - logits[task]).abs().amax() for task in logits]).amax().item()


def load_scored_rows(
    model: SEMForMultiTaskDensePrediction, config: EvaluationConfig
) -> tuple[Benchmark, datasets.Dataset]:
    """Loads the labeled images to score graphs on, and brings the classes of the model to their order, before it is exported.

    Raises:
        ValueError: If the dataset has other classes than the model.
    """
    benchmark = config.get_benchmark()
    rows = benchmark.load(config.data_dir, **config.dataset_kwargs)["validation"]
    rows = rows.select(range(min(config.num_evaluation_images or len(rows), len(rows))))
    match_classes(model, benchmark, scored_widths(model, benchmark, rows))
    return benchmark, rows


def graph_scores(
    graph: Graph, image_processor: SEMImageProcessor, benchmark: Benchmark, rows: datasets.Dataset
) -> dict[str, float]:
    """Scores a graph on labeled images, as the command `evaluate` scores the model.

    Args:
        graph ([`Graph`]): The graph, with the classes in the order of the dataset.
        image_processor ([`SEMImageProcessor`]): Of its model.
        benchmark ([`Benchmark`]): Of the dataset.
        rows (`datasets.Dataset`): The labeled images.

    Returns:
        `dict[str, float]`: `{"task/score": value}` in fractions, metres and degrees.
    """
    evaluation = Evaluation(
        model=graph,
        image_processor=image_processor,
        rows=rows,
        benchmark=benchmark,
        constant=None,
        owners=(MODEL,),
        accelerator=Accelerator(cpu=True),
        batch_size=1,
        num_processes=max(1, available_cpus() // 2),
        unfinished_dir=Path(),
    )
    for statistics in evaluation.image_statistics(list(range(len(rows)))):
        evaluation.metrics[MODEL].add(statistics[MODEL])
    return evaluation.metrics[MODEL].scores()
