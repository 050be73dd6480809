"""Behavior that the test suites of transformers check for every model, on encoders of each kind."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import default_collate
from transformers import (
    AttentionInterface,
    AutoBackbone,
    AutoConfig,
    ConvNextConfig,
    Dinov2Config,
    Dinov2Model,
    SwinConfig,
    SwinForImageClassification,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import EvalPrediction

from transformers_sem import MultiTaskMetric, SEMForMultiTaskDensePrediction, SEMImageProcessor, SEMModel
from transformers_sem import backbone as backbone_module
from transformers_sem.backbone import inspect_backbone
from transformers_sem.modeling_sem import SEMMultiTaskOutput, eager_attention_forward

from .samples import invalid_labels, random_labels
from .tiny import tiny_config


BACKBONES = {
    "swin": SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        drop_path_rate=0.0,
        out_indices=[1, 2, 3, 4],
    ),
    "dinov2": Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, patch_size=16, out_indices=[1, 2, 3, 4]
    ),
    "convnext": ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_indices=[1, 2, 3, 4]),
    "timm": {"model_name": "test_vit", "out_indices": [1, 2, 4, 6], "drop_path_rate": 0.0},
}
CLASSES = [SEMModel, SEMForMultiTaskDensePrediction]
TASK_NAMES = ["semseg", "depth", "normal", "boundary"]


def build_config(backbone, **overrides):
    return tiny_config(backbone_config=copy.deepcopy(BACKBONES[backbone]), **overrides)


def labels_of(size=64):
    return {task: random_labels(task, 2, (size, size)) for task in TASK_NAMES}


@pytest.mark.parametrize(
    "model_class", [SEMForMultiTaskDensePrediction, pytest.param(SEMModel, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_buffers_come_back_from_the_meta_device(backbone, model_class):
    expected = dict(model_class(build_config(backbone)).named_buffers())
    with torch.device("meta"):
        model = model_class(build_config(backbone))
    tensors = {*model.state_dict(keep_vars=True).values(), *model.buffers()}
    assert all(tensor.is_meta for tensor in tensors)
    model.to_empty(device="cpu").init_weights()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, expected[name]), name


@pytest.mark.parametrize("use_decoder", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_trainable_parameter_learns(backbone, use_decoder, tmp_path):
    SEMForMultiTaskDensePrediction(build_config(backbone, use_decoder=use_decoder)).save_pretrained(tmp_path)
    model = SEMForMultiTaskDensePrediction.from_pretrained(tmp_path).train()
    model(torch.randn(2, 3, 64, 64), labels=labels_of()).loss.backward()
    without = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert without == []


def test_parameters_that_no_map_depends_on():
    backbone = AutoBackbone.from_config(BACKBONES["swin"])
    strides, unused = inspect_backbone(backbone, num_maps=4)
    assert strides == [4, 8, 16, 32]
    assert unused == ["swin.layernorm.weight", "swin.layernorm.bias"]
    _, deepest_only = inspect_backbone(backbone, num_maps=1)
    assert (
        "hidden_states_norms.stage1.weight" in deepest_only and "hidden_states_norms.stage4.weight" not in deepest_only
    )


def test_an_encoder_is_run_once_for_each_configuration(monkeypatch):
    twins = [AutoBackbone.from_config(BACKBONES["convnext"]) for _ in range(2)]
    found = [inspect_backbone(twin, num_maps=4) for twin in twins]
    monkeypatch.setattr(backbone_module, "_run_without_values", None)
    assert inspect_backbone(twins[0], num_maps=4) == found[0] == found[1]
    with pytest.raises(TypeError):
        inspect_backbone(AutoBackbone.from_config(ConvNextConfig(depths=[1, 1, 1, 2])), num_maps=4)


def test_a_patch_of_any_size():
    backbone = {**BACKBONES["timm"], "model_kwargs": {"patch_size": 12}}
    model = SEMForMultiTaskDensePrediction(tiny_config(backbone_config=backbone)).eval()
    assert model(torch.randn(1, 3, 50, 70)).logits["depth"].shape == (1, 1, 17, 24)  # 50 and 70 over a stride of 3


@pytest.mark.parametrize("backbone", BACKBONES)
def test_labels_that_are_all_ignored_give_a_finite_loss(backbone):
    model = SEMForMultiTaskDensePrediction(build_config(backbone)).train()
    loss = model(
        torch.randn(2, 3, 64, 64), labels={task: invalid_labels(task, 2, (64, 64)) for task in TASK_NAMES}
    ).loss
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("backbone", BACKBONES)
def test_hidden_states_and_attentions_are_those_of_the_encoder(backbone):
    model = SEMForMultiTaskDensePrediction(build_config(backbone, attn_implementation="eager")).eval()
    images = torch.randn(1, 3, 64, 64)
    outputs = model(images, output_hidden_states=True, output_attentions=True)
    assert len(outputs.hidden_states) >= 4
    assert (outputs.attentions is None) == (backbone in ("convnext", "timm"))
    plain = model(images)
    assert plain.hidden_states is None and plain.attentions is None
    torch.testing.assert_close(outputs.logits, plain.logits)


@pytest.mark.parametrize("max_shard_size", ["20KB", "5GB"])
def test_shards_and_devices(max_shard_size, tmp_path):
    model = SEMForMultiTaskDensePrediction(build_config("swin")).eval()
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "20KB")
    loaded = SEMForMultiTaskDensePrediction.from_pretrained(
        tmp_path, device_map="auto", low_cpu_mem_usage=True, local_files_only=True
    )
    images = torch.randn(1, 3, 64, 64)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    state = loaded.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(loaded(images).logits, model(images).logits)


def test_another_head_width_starts_that_head_anew(tmp_path):
    model = SEMForMultiTaskDensePrediction(build_config("convnext"))
    model.save_pretrained(tmp_path)
    widths = {"semseg": 7, "depth": 1, "normal": 3, "boundary": 1}
    loaded, info = SEMForMultiTaskDensePrediction.from_pretrained(
        tmp_path, task_num_labels=widths, ignore_mismatched_sizes=True, output_loading_info=True
    )
    mismatched = {name for name, *_ in info["mismatched_keys"]}
    assert mismatched == {
        f"{head}.{part}"
        for head in ("heads.semseg.classifier", "auxiliary_heads.semseg")
        for part in ("weight", "bias")
    }
    expected = model.state_dict()
    for name, value in loaded.state_dict().items():
        assert name in mismatched or torch.equal(value, expected[name]), name


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_sem_states(backbone, attn_implementation):
    model = SEMForMultiTaskDensePrediction(build_config(backbone, num_bases=5, inter_task_stages=3)).eval()
    model.set_attn_implementation({"": attn_implementation})  # of SEM alone: ConvNeXt has no attention
    images = torch.randn(2, 3, 50, 100)  # padded to 64 x 128: 2 x 4 points on each of the four stages
    outputs = model(images, output_sem_states=True)
    assert model(images).sem_states is None
    states = outputs.sem_states
    assert [list(by_task) for by_task in (states.points, states.stage_weights)] == [TASK_NAMES, TASK_NAMES]
    for task in TASK_NAMES:
        assert [tuple(points.shape) for points in states.points[task]] == [(2, 8, 2)] * 4
        # the offsets start at zero: cell centers of the padded image, in coordinates of the image
        expected = torch.tensor(
            [[(row + 0.5) * 64 / 50 - 1, (column + 0.5) * 64 / 100 - 1] for row in (0, 1) for column in range(4)]
        )
        torch.testing.assert_close(states.points[task][0][0], expected)
        weights = states.stage_weights[task]
        assert weights.shape == (2, 32, 4)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 32))
        attention = states.intra_task_attentions[task]
        if attn_implementation == "eager":
            assert attention.shape == (2, 2, 8, 32)
            torch.testing.assert_close(attention.sum(-1), torch.ones(2, 2, 8))
        else:
            assert attention is None
    sizes = [(2, 4), (4, 7), (7, 13)]  # 50 x 100 over strides of 32, 16, 8
    for by_task, bases, size, width in zip(states.responsibilities, states.bases, sizes, (16, 16, 8), strict=True):
        assert bases.shape == (2, 5, width)
        for task in TASK_NAMES:
            assert by_task[task].shape == (2, 5, *size)
            torch.testing.assert_close(by_task[task].sum(1), torch.ones(2, *size))


@pytest.mark.parametrize("overrides", [{"use_intra_task": False, "inter_task_stages": 0}, {"use_decoder": False}])
def test_sem_states_without_the_modules(overrides):
    model = SEMModel(build_config("convnext", **overrides)).eval()
    states = model(torch.randn(1, 3, 64, 64), output_sem_states=True).sem_states
    assert not states.points and not states.responsibilities
    assert list(states.features) == TASK_NAMES


def test_any_attention_function_of_transformers_is_used():
    """Attention functions are selected by name and called as in other models of transformers."""
    calls = []

    def attend(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
        calls.append((query.shape[1:], key.shape[1:], attention_mask, module.is_causal))
        return eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout)

    AttentionInterface.register("counted", attend)
    model = SEMForMultiTaskDensePrediction(build_config("convnext")).eval()
    images = torch.randn(1, 3, 64, 64)
    expected = model(images).logits
    model.set_attn_implementation("counted")
    torch.testing.assert_close(model(images).logits, expected)
    num_modules = len(TASK_NAMES) * (1 + 4)  # intra-task, and four decoder stages
    assert len(calls) == num_modules
    assert all(mask is None and not is_causal for *_, mask, is_causal in calls)


def learn(model, forward, size):
    """Loss, gradients and bases of one training step."""
    torch.manual_seed(1)
    labels = {task: label for task, label in labels_of(size).items() if task in model.config.tasks}
    loss = forward(torch.randn(2, 3, size, size), labels=labels).loss
    loss.backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return loss.detach(), gradients, dict(model.named_buffers())


def check_compiled(backbone, backend, training_size, **overrides):
    torch.compiler.reset()
    torch.manual_seed(0)
    model = SEMForMultiTaskDensePrediction(build_config(backbone, **overrides)).eval()
    twin = copy.deepcopy(model).train()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(compiled(images).logits, model(images).logits, rtol=0, atol=1e-5)
    model.train()
    loss, gradients, buffers = learn(model, compiled, training_size)
    expected = learn(twin, twin, training_size)
    torch.testing.assert_close(loss, expected[0], rtol=1e-4, atol=0)  # fused operations round differently
    torch.testing.assert_close(buffers, expected[2], rtol=0, atol=1e-5)
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    torch.testing.assert_close(gradients, expected[1], rtol=1e-3, atol=1e-4 * largest)


@pytest.mark.slow
def test_there_is_one_graph_to_compile():
    check_compiled("timm", backend="eager", training_size=64, task_num_labels={"semseg": 40, "depth": 1})


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_compiled_it_predicts_and_learns_the_same(backbone):
    check_compiled(backbone, backend="inductor", training_size=50)


ENCODER_CLASSES = {"swin": SwinForImageClassification, "dinov2": Dinov2Model}


@pytest.mark.parametrize("backbone", ENCODER_CLASSES)
def test_a_pretrained_encoder_of_transformers(backbone, tmp_path, caplog):
    config = build_config(backbone)
    encoder = ENCODER_CLASSES[backbone](config.backbone_config)
    encoder.save_pretrained(tmp_path)
    with caplog.at_level("WARNING", "transformers_sem"):
        model = SEMForMultiTaskDensePrediction.from_pretrained_backbone(config, str(tmp_path))
    assert f"tensors from '{tmp_path}'" in caplog.text
    loaded, expected = model.sem.backbone.state_dict(), encoder.state_dict()
    shared = set(loaded) & set(expected)
    assert len(shared) > 20
    assert all(torch.equal(loaded[name], expected[name]) for name in shared)
    # the configuration that came with weights names them
    config.backbone_config = AutoConfig.from_pretrained(tmp_path, out_indices=[1, 2, 3, 4])
    again = SEMModel.from_pretrained_backbone(config).backbone.state_dict()
    assert all(torch.equal(again[name], expected[name]) for name in shared)


def test_a_pretrained_encoder_of_timm(tmp_path, caplog):
    config = build_config("timm")
    encoder = SEMModel(config).backbone.encoder.model
    save_file(encoder.state_dict(), tmp_path / "weights.safetensors")
    with caplog.at_level("WARNING", "transformers_sem"):
        model = SEMModel.from_pretrained_backbone(config, str(tmp_path / "weights.safetensors"))
    assert "all" in caplog.text and "weights.safetensors" in caplog.text
    expected = encoder.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.backbone.encoder.model.state_dict().items())


def test_weights_of_another_encoder_are_refused(tmp_path):
    SwinForImageClassification(BACKBONES["swin"]).save_pretrained(tmp_path)
    with pytest.raises(OSError, match="holds no weight of a dinov2 encoder"):
        SEMModel.from_pretrained_backbone(build_config("dinov2"), str(tmp_path))
    with pytest.raises(OSError, match="Could not load pretrained weights of a dinov2 encoder from"):
        SEMModel.from_pretrained_backbone(build_config("dinov2"), str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="Give `source`"):
        SEMModel.from_pretrained_backbone(build_config("dinov2"))


@pytest.mark.parametrize(
    "backbone", ["timm", *(pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES if name != "timm")]
)
def test_low_rank_adapters_of_the_encoder(backbone, tmp_path):
    """Trains adapters of peft, saves them and loads them."""
    peft = pytest.importorskip("peft")
    projections = {"timm": "qkv", "convnext": "pwconv1"}.get(backbone, "q_proj")
    trained = ["decoder", "intra_task", *(f"heads.{task}" for task in TASK_NAMES)]
    lora = peft.LoraConfig(r=2, target_modules=rf"sem\.backbone\..*\.{projections}", modules_to_save=trained)
    base = SEMForMultiTaskDensePrediction(build_config(backbone))
    state = copy.deepcopy(base.state_dict())
    model = peft.get_peft_model(base, lora).train()
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    images = torch.randn(2, 3, 64, 64)
    for _ in range(2):
        optimizer.zero_grad()
        model(pixel_values=images, labels=labels_of()).loss.backward()
        optimizer.step()
    adapters = [value for name, value in model.named_parameters() if "lora_B" in name]
    assert adapters and all(value.abs().sum() > 0 for value in adapters)
    model.eval().save_pretrained(tmp_path)
    fresh = SEMForMultiTaskDensePrediction(build_config(backbone))
    fresh.load_state_dict(state)
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path).eval()
    torch.testing.assert_close(loaded(pixel_values=images).logits, model(pixel_values=images).logits)


@pytest.mark.slow
@pytest.mark.parametrize("target_modules", ["all-linear", ["qkv", "fc1"], ["q_proj", "v_proj", "qkv"]], ids=str)
def test_adapters_of_encoder_and_decoder_are_reloaded_and_merged(target_modules, tmp_path):
    peft = pytest.importorskip("peft")
    base = SEMForMultiTaskDensePrediction(build_config("timm"))
    state = copy.deepcopy(base.state_dict())
    lora = peft.LoraConfig(r=2, target_modules=target_modules, modules_to_save=["heads", "inter_task"])
    model = peft.get_peft_model(base, lora).train()
    trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert any("backbone" in name and "lora" in name for name in trainable)
    images = torch.randn(2, 3, 64, 64)
    model(pixel_values=images, labels=labels_of()).loss.backward()
    assert [name for name, value in trainable.items() if value.grad is None] == []
    torch.optim.SGD(trainable.values(), lr=0.1).step()
    model.eval().save_pretrained(tmp_path)
    assert sum("initial_bases" in name for name in load_file(tmp_path / "adapter_model.safetensors")) == 4
    fresh = SEMForMultiTaskDensePrediction(build_config("timm"))
    fresh.load_state_dict(state)
    expected = model(pixel_values=images).logits
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path).eval()
    torch.testing.assert_close(loaded(pixel_values=images).logits, expected)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged(pixel_values=images).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trained", [["heads"], ["heads", "auxiliary_heads", "inter_task"]], ids=str)
def test_an_adapter_file_holds_all_that_has_moved(trained, tmp_path):
    """The bases move where peft saves them, with `inter_task`, and nowhere else."""
    peft = pytest.importorskip("peft")
    base = SEMForMultiTaskDensePrediction(build_config("timm"))
    state = copy.deepcopy(base.state_dict())
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=trained)
    model = peft.get_peft_model(base, lora).train()
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    images = torch.randn(2, 3, 64, 64)
    model(pixel_values=images, labels=labels_of()).loss.backward()
    optimizer.step()
    moved = [
        name
        for name, value in model.named_buffers()
        if "initial_bases" in name and not any(torch.equal(value, old) for old in state.values())
    ]
    assert bool(moved) == ("inter_task" in trained) and all("modules_to_save" in name for name in moved)
    model.eval().save_pretrained(tmp_path)
    fresh = SEMForMultiTaskDensePrediction(build_config("timm"))
    fresh.load_state_dict(state)
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path).eval()
    torch.testing.assert_close(loaded(pixel_values=images).logits, model(pixel_values=images).logits)


class Scenes(torch.utils.data.Dataset):
    """Eight images and their labels, in the format of the image processor."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(8, 3, 32, 32, generator=generator)
        self.labels = {task: random_labels(task, 8, (32, 32), invalid_share=0.0) for task in ("semseg", "depth")}

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {
            "pixel_values": self.images[index],
            "labels": {task: value[index] for task, value in self.labels.items()},
        }


@pytest.mark.slow
def test_the_trainer_of_transformers_trains_and_evaluates(tmp_path):
    widths = {"semseg": 40, "depth": 1}
    processor, metric = SEMImageProcessor(), MultiTaskMetric(widths)

    def compute_metrics(prediction: EvalPrediction, compute_result: bool) -> dict[str, float]:
        size = next(iter(prediction.label_ids.values())).shape[-2:]
        outputs = SEMMultiTaskOutput(logits=prediction.predictions)
        maps = processor.post_process_dense_prediction(outputs)
        metric.add_batch(
            predictions={task: [resize(image[task], size) for image in maps] for task in widths},
            references=prediction.label_ids,
        )
        return metric.compute() if compute_result else {}

    def resize(values, size):
        return torch.nn.functional.interpolate(values[None, None].float(), size=tuple(size))[0, 0].to(values.dtype)

    model = SEMForMultiTaskDensePrediction(tiny_config(task_num_labels=widths))
    start = [module.clone() for module in model.buffers()]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=12,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        learning_rate=5e-3,
        report_to=[],
        label_names=["labels"],
        batch_eval_metrics=True,
        use_cpu=True,
        logging_steps=1,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Scenes(),
        eval_dataset=Scenes(),
        compute_metrics=compute_metrics,
        data_collator=default_collate,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert any(not torch.equal(before, after) for before, after in zip(start, model.buffers(), strict=True))
    scores = trainer.evaluate()
    assert {"eval_loss", "eval_semseg/miou", "eval_depth/rmse"} <= set(scores)
    trainer.save_model(str(tmp_path / "model"))
    assert SEMForMultiTaskDensePrediction.from_pretrained(tmp_path / "model").config.tasks == list(widths)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16_full_eval", "fp16_full_eval"])
def test_the_trainer_evaluates_in_half_precision(precision, tmp_path):
    model = SEMForMultiTaskDensePrediction(tiny_config(task_num_labels={"semseg": 40, "depth": 1})).eval()
    scenes = Scenes()
    with torch.no_grad():
        expected = model(**default_collate(list(scenes))).loss.item()
    arguments = TrainingArguments(
        output_dir=str(tmp_path), report_to=[], label_names=["labels"], use_cpu=True, **{precision: True}
    )
    trainer = Trainer(model=model, args=arguments, eval_dataset=scenes, data_collator=default_collate)
    prediction = trainer.predict(scenes)
    assert model.dtype in (torch.bfloat16, torch.float16)
    assert {values.dtype.name for values in prediction.predictions.values()} <= {"float32", "float16"}
    assert prediction.metrics["test_loss"] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("ignore_mismatched_sizes", "message"),
    [
        (True, r"describes a model that has \d{9,} values, but the weights hold \d+ of them"),
        (False, "ignore_mismatched_sizes"),  # transformers' own message, in place of ours
    ],
)
def test_a_configuration_far_larger_than_the_weights_takes_no_memory(ignore_mismatched_sizes, message, tmp_path):
    SEMForMultiTaskDensePrediction(tiny_config()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": 2**16}))
    with pytest.raises((ValueError, RuntimeError), match=message):
        SEMForMultiTaskDensePrediction.from_pretrained(tmp_path, ignore_mismatched_sizes=ignore_mismatched_sizes)
