"""The command `benchmark`: two loaders that do the same work, and training steps on one batch."""

import importlib
import json
import re
import signal
import time

import pytest
import torch
from accelerate import Accelerator

from transformers_sem import SEMForMultiTaskDensePrediction
from transformers_sem.cli.arguments import RECIPES_DIR, find_recipe
from transformers_sem.cli.benchmark import latency, loading, modes, training_step
from transformers_sem.training.config import TrainingConfig, network_size
from transformers_sem.training.data_order import build_train_loader
from transformers_sem.training.plan import random_batch

from ..data.nyud_v2_forms import write_tiny_folder
from ..export.graphs import export_biases
from ..tiny import TINY_BACKBONE, tiny_config
from .commands import SETTINGS, run


RECIPES = sorted(path.stem for path in RECIPES_DIR.glob("*.yaml"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write_rendered_frames(root):
    return loading.write_frames(root, num_frames=4, height=32, width=48)


def write_frames_with_unknown_pixels(root):
    return write_tiny_folder(root, {"train": ["0001", "0002", "0003", "0004"], "val": ["0010"]})


def assert_equal_samples(prepared, raw):
    torch.testing.assert_close(raw["pixel_values"], prepared["pixel_values"], rtol=0, atol=0)
    assert list(raw["labels"]) == list(prepared["labels"]) == ["semseg", "depth", "normal", "boundary"]
    torch.testing.assert_close(raw["labels"], prepared["labels"], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("write", [write_rendered_frames, write_frames_with_unknown_pixels])
def test_both_sides_do_the_same_work(cache, tmp_path, write):
    config = TrainingConfig(input_size=[32, 48], batch_size=2)
    rows = loading.both_rows(write(tmp_path / "NYUDv2"), tmp_path / "prepared")
    loaders = [
        build_train_loader(
            loading.transform_rows(side, config), batch_size=2, first_sample=0, num_samples=8, seed=0, num_workers=0
        )
        for side in rows
    ]
    batches = list(zip(*loaders, strict=True))
    assert len(batches) == 4
    for prepared, raw in batches:
        assert prepared["pixel_values"].shape == (2, 3, 32, 48)
        assert_equal_samples(prepared, raw)
    # augmented, and each draw its own: the second epoch shows the same frames, not the same samples
    assert not torch.equal(batches[0][0]["pixel_values"], batches[2][0]["pixel_values"])


@pytest.mark.slow
def test_it_prints_three_ratios_and_the_share_of_a_training_step(cache, tmp_path, monkeypatch, capsys):
    write_frames = loading.write_frames
    monkeypatch.setattr(
        loading, "write_frames", lambda root, num_frames: write_frames(root, num_frames, height=32, width=48)
    )
    for name, value in (("NUM_FRAMES", 2), ("NUM_ROWS", 4), ("NUM_ROUNDS", 2)):
        monkeypatch.setattr(loading, name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = TrainingConfig.load(find_recipe("vit_base_nyud_v2"), ["input_size=[64, 96]"])
    loading.measure_loading(config)
    printed = capsys.readouterr().out
    assert len(re.findall(r"(?:decoding alone|workers \d) +[\d.]+ +[\d.]+ +[\d.]+ ", printed)) == 3
    operations, teraflops = map(float, re.search(r"3 x 2 x ([\d.]+) GMAC = ([\d.]+) TFLOP", printed).groups())
    assert teraflops == pytest.approx(6 * operations / 1e3, abs=1e-3)
    assert re.search(r"needs \d+ rows/s; 2 workers give [\d.]+, [\d.]+% of it; \d+ workers", printed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_it_prints_the_rates_of_three_training_steps(cache, monkeypatch, capsys):
    monkeypatch.setattr(training_step, "NUM_ROUNDS", 2)
    model = {key: value for key, value in tiny_config().to_dict().items() if key in ("hidden_size", "num_bases")}
    model |= {"backbone_config": TINY_BACKBONE, "num_attention_heads": 2, "decoder_hidden_sizes": [16, 16, 8, 8]}
    model |= {"decoder_num_attention_heads": [2, 2, 1, 1]}
    training_step.measure_training_step(TrainingConfig(model=model, input_size=[32, 64], batch_size=2))
    printed = capsys.readouterr().out
    assert "batches of 2 at 32 x 64, precision no" in printed
    rates = dict(re.findall(r"^(\w+) +([\d.]+) +[\d.]+ times as long", printed, flags=re.MULTILINE))
    assert list(rates) == ["SEM", "MTL", "encoder"]
    assert all(float(rate) > 0 for rate in rates.values())


def test_a_training_step_changes_the_weights(cache):
    model = SEMForMultiTaskDensePrediction(tiny_config())
    before = {name: value.clone() for name, value in model.named_parameters()}
    config = TrainingConfig(input_size=[32, 64], batch_size=2)
    accelerator = Accelerator(cpu=True)
    batch = random_batch(config, model.config, config.batch_size)
    losses = [
        training_step.build_step(config, model, training_step.model_loss, batch, accelerator)() for _ in range(2)
    ]
    assert losses[0] > 0
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters() if value.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_cost_of_every_recipe(cache, recipe):
    result = run("benchmark", "cost", "--config", recipe)
    assert "all  " in result.output
    config = TrainingConfig.load(find_recipe(recipe))
    assert f"one image of {' x '.join(map(str, network_size(config)))}, tasks " in result.output


def test_cost_counts_the_tasks_of_the_dataset_at_the_size_of_the_network(cache):
    result = run("benchmark", "cost", "--config", "ablation_small", "tasks=[semseg, normal]")
    assert "one image of 96 x 128, tasks semseg, normal" in result.output


@pytest.mark.slow
def test_cost_of_the_paper_model():
    result = run("benchmark", "cost")
    table = dict(line.split(maxsplit=1) for line in result.output.splitlines() if line.startswith(("encoder", "all")))
    # figures of the bare ViT-L/16 counted elsewhere: 304.1 M parameters with its last norm, 355.5 GMAC
    assert table["encoder"].split() == ["303.7", "355.5"]
    assert float(table["all"].split()[0]) <= 360


def test_every_mode_is_timed_and_written(monkeypatch, tmp_path):
    plan = [
        ("SEM", "eager", "fp32", False),
        ("MTL", "channels last", "fp32", True),
        ("encoder", "eager", "bf16", True),
    ]
    monkeypatch.setattr(modes, "plan_modes", lambda has_cuda: plan)
    result = run("benchmark", "modes", "--config", "quickstart", *SETTINGS, f"output_dir={tmp_path}")
    assert result.code == 0, result.errors
    entries = [json.loads(line) for line in (tmp_path / "modes.jsonl").read_text().splitlines()]
    assert [(entry["model"], entry["mode"], entry["precision"], entry["pass"]) for entry in entries] == [
        ("SEM", "eager", "fp32", "forward"),
        ("MTL", "channels last", "fp32", "training step"),
        ("encoder", "eager", "bf16", "training step"),
    ]
    for entry in entries:
        assert entry["images_per_second"] == pytest.approx(2 * 1e3 / entry["milliseconds"])
        assert (entry["memory_gigabytes"] is None) == (not torch.cuda.is_available())
        assert entry["input"] == [32, 64] and "commit" in entry["environment"]


def test_a_mode_that_the_device_lacks_is_noted(monkeypatch, tmp_path):
    monkeypatch.setattr(modes, "plan_modes", lambda has_cuda: [("SEM", "eager", "fp32", False)])
    monkeypatch.setattr(modes, "measure_mode", lambda *_, **__: torch.empty(1).view(2))
    assert run("benchmark", "modes", "--config", "quickstart", *SETTINGS, f"output_dir={tmp_path}").code == 0
    (entry,) = [json.loads(line) for line in (tmp_path / "modes.jsonl").read_text().splitlines()]
    assert "invalid for input" in entry["error"] and "milliseconds" not in entry


def test_all_modes_without_a_gpu_and_with_one():
    without, having = ([*modes.plan_modes(has_cuda)] for has_cuda in (False, True))
    assert {mode for _, mode, *_ in without} == {"eager", "channels last", "compiled"}
    assert {precision for *_, precision, _ in without} == {"fp32"}
    assert {mode for _, mode, *_ in having} == set(modes.MODES)
    assert {precision for *_, precision, _ in having} == {"bf16", "fp32"}
    assert ("SEM", "CUDA graph", "bf16", True) not in having
    passes = [(mode == "compiled", is_training) for _, mode, _, is_training in having]
    assert passes == sorted(passes)  # what is most asked for first, what takes long last


@pytest.mark.parametrize("compiles", [True, False])
def test_training_steps_are_compiled_only_where_their_gradients_are_right(monkeypatch, compiles):
    monkeypatch.setattr(modes, "compiles_training", lambda: compiles)
    assert (("SEM", "compiled", "bf16", True) in modes.plan_modes(has_cuda=True)) == compiles


def test_latency_of_torch_and_of_every_graph(cache, monkeypatch):
    pytest.importorskip("onnx")
    folder = importlib.import_module("transformers_sem.export.folder")
    monkeypatch.setattr(folder, "export_graph", export_biases)
    monkeypatch.setattr(torch, "compile", lambda module: module)
    monkeypatch.setattr(latency, "NUM_ROUNDS", 2)
    result = run("benchmark", "export", "--config", "quickstart", *SETTINGS)
    assert result.code == 0, result.errors
    assert "one image of 32 x 64, 6 tasks" in result.output
    rows = re.findall(r"^(.+?) +([\d.]+) ms +([\d.]+) times as fast", result.output, flags=re.MULTILINE)
    graphs = [f"ONNX Runtime {precision}" for precision in ("fp32", "fp16", "int8")]
    assert [name for name, *_ in rows] == ["torch eager", "torch compiled", *graphs]
    assert float(rows[0][2]) == 1 and all(float(milliseconds) > 0 for _, milliseconds, _ in rows)


def test_a_compiler_that_does_not_end_is_left_out(monkeypatch, capsys):
    def compile_forever(_):
        return lambda image: time.sleep(30)

    monkeypatch.setattr(torch, "compile", compile_forever)
    monkeypatch.setattr(latency, "COMPILE_SECONDS", 1)
    before = signal.getsignal(signal.SIGALRM)
    assert latency.compile_model(None, torch.zeros(1)) == {}
    assert capsys.readouterr().out == "torch compiled is left out: it takes more than 1 s\n"
    assert signal.getsignal(signal.SIGALRM) == before
