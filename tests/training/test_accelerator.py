import os
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType

from transformers_sem import SEMForMultiTaskDensePrediction
from transformers_sem.training import accelerator as devices
from transformers_sem.training.accelerator import (
    build_accelerator,
    check_compiler,
    check_launcher,
    choose_sharded_modules,
)
from transformers_sem.training.config import TrainingConfig

from ..tiny import tiny_config


def fake_accelerator(distributed_type, **state):
    state, device = SimpleNamespace(**state), torch.device("cpu")
    return SimpleNamespace(distributed_type=distributed_type, num_processes=2, state=state, device=device)


@pytest.fixture
def launched(monkeypatch):
    """Makes the engine that a launcher would."""

    def launch(distributed_type, **state):
        accelerator = fake_accelerator(distributed_type, **state)
        monkeypatch.setattr(devices, "start_accelerator", lambda **kwargs: accelerator)
        return accelerator

    return launch


def test_a_missing_tracker_is_named(monkeypatch):
    monkeypatch.setattr(devices, "find_spec", lambda name: None if name == "wandb" else name)
    with pytest.raises(ValueError, match=r"\['wandb'\].*pip install wandb"):
        build_accelerator(TrainingConfig(trackers=["tensorboard", "wandb"]))


@pytest.mark.parametrize("distributed_type", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_an_average_needs_unsharded_weights(launched, distributed_type):
    launched(distributed_type)
    with pytest.raises(ValueError, match=r"`weight_average_decay`.*0\.9 with (FSDP|DEEPSPEED).*DDP"):
        build_accelerator(TrainingConfig(weight_average_decay=0.9))


def test_deepspeed_takes_the_settings_of_the_run(launched):
    settings = {}
    launched(DistributedType.DEEPSPEED, deepspeed_plugin=SimpleNamespace(deepspeed_config=settings))
    build_accelerator(TrainingConfig(batch_size=12, gradient_accumulation_steps=3, max_grad_norm=5.0))
    assert settings == {"train_micro_batch_size_per_gpu": 2, "gradient_clipping": 5.0}


def test_the_default_of_a_launcher_does_not_replace_the_micro_batches_of_the_run(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")  # as DeepSpeed's launch files have it
    accelerator = build_accelerator(TrainingConfig(batch_size=8, gradient_accumulation_steps=4, trackers=[]))
    assert accelerator.gradient_accumulation_steps == 4
    assert os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "1"


def test_half_precision_that_a_cpu_has_not_is_refused(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ValueError, match="fp16 needs a GPU.*bf16 or no"):
        build_accelerator(TrainingConfig(mixed_precision="fp16", trackers=[]))


def test_an_old_compiler_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    with pytest.raises(ValueError, match=r"`compile` needs torch 2\.14.*got 2\.11\.0"):
        check_compiler(TrainingConfig(compile=True))
    check_compiler(TrainingConfig())
    monkeypatch.setattr(torch, "__version__", "2.14.1")
    check_compiler(TrainingConfig(compile=True))


def test_deterministic_mode_reaches_torch(monkeypatch):
    for name in ("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "ASCEND_LAUNCH_BLOCKING", "HCCL_DETERMINISTIC"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("FLASH_ATTENTION_DETERMINISTIC", "")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    try:
        build_accelerator(TrainingConfig(deterministic=True, trackers=[]))
        assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
    finally:
        torch.use_deterministic_algorithms(False)


LAUNCHES = {
    "one_gpu": (DistributedType.NO, 1, 1),
    "eight_gpus": (DistributedType.MULTI_GPU, 8, 1),
    "several_nodes": (DistributedType.MULTI_GPU, 16, 2),
    "fsdp2": (DistributedType.FSDP, 8, 1),
    "deepspeed_zero2": (DistributedType.DEEPSPEED, 8, 1),
}


def test_accelerate_reads_the_launch_configurations(repository):
    paths = (repository / "scripts" / "accelerate").glob("*.yaml")
    configs = {path.stem: load_config_from_file(str(path)) for path in paths}
    assert all(isinstance(config, ClusterConfig) for config in configs.values())
    found = {
        name: (config.distributed_type, config.num_processes, config.num_machines) for name, config in configs.items()
    }
    assert found == LAUNCHES
    assert configs["fsdp2"].fsdp_config["fsdp_version"] == 2
    assert configs["deepspeed_zero2"].deepspeed_config["zero_stage"] == 2


@pytest.mark.parametrize("overrides", [{}, {"use_decoder": False}, {"use_intra_task": False}], ids=str)
def test_fsdp_wraps_the_modules_that_the_model_has(overrides):
    model = SEMForMultiTaskDensePrediction(tiny_config(**overrides))
    plugin = SimpleNamespace(transformer_cls_names_to_wrap=None)
    choose_sharded_modules(fake_accelerator(DistributedType.FSDP, fsdp_plugin=plugin), model)
    expected = {"SEMTimmBackbone", "SEMTaskHead"}
    expected |= {"SEMDecoderStage"} if model.config.use_decoder else set()
    expected |= {"SEMIntraTaskModule"} if model.config.use_decoder and model.config.use_intra_task else set()
    assert set(plugin.transformer_cls_names_to_wrap) == expected


@pytest.mark.parametrize(
    ("variable", "value"),
    [("ACCELERATE_MIXED_PRECISION", "bf16"), ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")],
)
def test_flags_of_the_launcher_that_contradict_the_settings_are_refused(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"to {value}, the settings of the run"):
        check_launcher(TrainingConfig())
    check_launcher(TrainingConfig(mixed_precision="bf16", gradient_accumulation_steps=4))
