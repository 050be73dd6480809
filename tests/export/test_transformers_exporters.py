"""The model in OpenVINO and ExecuTorch, through the exporters of transformers, as docs/export.md says."""

import pytest
import torch

from transformers_sem import SEMForMultiTaskDensePrediction
from transformers_sem.modeling_outputs import SEMMultiTaskOutput

from ..tiny import tiny_config


exporters = pytest.importorskip("transformers.exporters", reason="transformers has no exporters yet")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "exporter", "config"),
    [("openvino", "OpenVINOExporter", "OpenVINOConfig"), ("executorch", "ExecutorchExporter", "ExecutorchConfig")],
)
@torch.no_grad()
def test_transformers_exports_a_fixed_size(tmp_path, package, exporter, config):
    pytest.importorskip(package, reason=f"{package} is not installed")
    model = SEMForMultiTaskDensePrediction(tiny_config(task_num_labels={"semseg": 3, "depth": 1})).eval()
    images = torch.randn(1, 3, 64, 96)
    exporter, config = getattr(exporters, exporter)(), getattr(exporters, config)()
    exporter.export(model, {"pixel_values": images}, config=config).save_pretrained(tmp_path)
    outputs = exporters.ExportedModel.from_pretrained(tmp_path)(pixel_values=images)
    assert isinstance(outputs, SEMMultiTaskOutput)
    torch.testing.assert_close(dict(outputs.logits), dict(model(images).logits), rtol=0, atol=1e-4)
