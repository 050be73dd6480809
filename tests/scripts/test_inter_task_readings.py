"""Every reading of the inter-task module is another function of the same images, and can be trained."""

import json
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

from transformers_sem import SEMForMultiTaskDensePrediction
from transformers_sem.ablation.tables import MODELS
from transformers_sem.modeling_sem import SEMInterTaskModule
from transformers_sem.training import run as training_run
from transformers_sem.training.config import TrainingConfig

from ..conftest import REPOSITORY
from ..tiny import tiny_config


TASK_NUM_LABELS = {"semseg": 5, "depth": 1}
LABELS = {"semseg": torch.arange(2 * 64 * 96).reshape(2, 64, 96) % 5, "depth": torch.full((2, 1, 64, 96), 2.0)}
FOLDER = REPOSITORY / "scripts" / "inter_task_readings"
MEASURES = ["entropy", "explained", "agreement", "output", "gradient"]
IMAGES = torch.linspace(-1, 1, 2 * 3 * 64 * 96).sin().reshape(2, 3, 64, 96)


@pytest.fixture
def scripts(monkeypatch):
    """The three files of the folder."""
    monkeypatch.syspath_prepend(FOLDER)
    names = ("readings", "measures", "compare")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return SimpleNamespace(**{name: import_module(name) for name in names})


def train_two_steps(reading, monkeypatch):
    """Returns the logits of a model of a reading after two steps, and its learning rates."""
    with monkeypatch.context() as patch:
        reading.change_code(patch.setattr)
        torch.manual_seed(0)
        config = tiny_config(
            task_num_labels=TASK_NUM_LABELS, **{**MODELS["inter"], "num_em_iterations": 3, **reading.settings}
        )
        model = SEMForMultiTaskDensePrediction(config).train()
        optimizer = training_run.build_optimizer(TrainingConfig(learning_rate=1e-3), model)
        for _ in range(2):
            optimizer.zero_grad()
            model(IMAGES, LABELS).loss.backward()
            optimizer.step()
        with torch.no_grad():
            logits = model.eval()(IMAGES).logits.values()
        return torch.cat([values.flatten() for values in logits]), {group["lr"] for group in optimizer.param_groups}


def test_every_reading_trains_another_model(scripts, monkeypatch):
    results = {name: train_two_steps(reading, monkeypatch) for name, reading in scripts.readings.READINGS.items()}
    assert all(logits.isfinite().all() for logits, _ in results.values())
    expected = results.pop("inter")[0]
    same = [name for name, (logits, _) in results.items() if torch.equal(logits, expected)]
    assert same == []
    assert results["fast"][1] == {1e-3, 5e-3} and results["deep"][1] == {1e-3}


def test_gradients_of_all_iterations_are_exact(scripts):
    module = scripts.readings.GradientOfAllIterations(tiny_config(num_em_iterations=2), 16).double()
    module.initial_bases = module.initial_bases.double()
    states = torch.randn(1, 2, 5, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda states: module.interact(states)[0], states)
    others = torch.autograd.grad(module.interact(states)[0][:, 0].sum(), states)[0][:, 1]
    assert others.abs().min() > 0  # the consensus carries gradients from task to task
    (own,) = torch.autograd.grad(SEMInterTaskModule.interact(module, states)[0][:, 0].sum(), states)
    assert own[:, 1].abs().max() == 0


def test_measures_of_known_cases(scripts):
    states, other = torch.randn(2, 3, 50, 4), torch.randn(2, 3, 50, 4)
    assert scripts.measures.explained_variance(states, 3 * states[..., [1, 0, 3, 2]] + 1) == pytest.approx(1)
    assert scripts.measures.explained_variance(states, other) < 0.1
    module = SEMInterTaskModule(tiny_config(num_em_iterations=2, em_temperature=1e4), 16).eval()
    measured = scripts.measures.watch(module)
    feature_map = torch.randn(2, 16, 4, 5)
    torch.nn.init.zeros_(module.project_out.bias)
    torch.nn.init.zeros_(module.project_out.weight)
    module({"semseg": feature_map, "depth": feature_map})
    assert measured["output"] == 0
    assert measured["agreement"] == pytest.approx(1) and measured["entropy"] == pytest.approx(1)


def test_measures_of_noise(scripts):
    config = tiny_config(num_em_iterations=3, decoder_hidden_sizes=[16, 16, 16, 16], num_bases=4)
    measured = scripts.measures.measure_noise(config, (64, 96))
    assert [*measured] == ["entropy", "explained", "agreement"]
    assert all(len(values) == 4 and all(0 < value < 1 for value in values) for values in measured.values())
    assert measured == scripts.measures.measure_noise(config, (64, 96))
    # 6 tokens are nearly their 4 bases; 384 are far from them
    assert measured["entropy"][0] < measured["entropy"][3] and measured["explained"][0] > measured["explained"][3]


def test_tables(scripts, tmp_path):
    for seed, (base, other) in enumerate([(0.2, 0.22), (0.4, 0.42)]):
        for name, miou in (("baseline", base), ("deep", other)):
            write_row(tmp_path / f"seed{seed}" / f"{name}.json", miou, 1 + miou)
    write_row(tmp_path / "seed0" / "convolved.json", 0.2, 1.2)
    write_row(tmp_path / "seed2" / "baseline.json", 0.5, 1.0)
    first, several, measures, origins = scripts.compare.format_readings(tmp_path).split("\n\n")
    assert first.splitlines()[0].startswith("| inter-task module, seed 0 |")
    assert first.splitlines()[2:] == [
        "| no inter-task module | 0.2000 | 1.2000 | 0.9000 | – | – |",
        # Δm by hand: (10 - 1.67) / 2
        "| 3x3 convolution of tokens and reconstruction | +0.0000 | +0.0000 | 0.9000 | +0.00 | +0.00 |",
        "| in the two deepest stages | +0.0200 | +0.0200 | 0.9000 | +4.17 | +10.00 |",
    ]
    assert several.splitlines()[2:] == [
        # by hand: the second Δm is (5 - 1.43) / 2, and the second loss higher by 5 %
        "| in the two deepest stages | 2 | +0.0200 ± 0.0000 | +0.0200 ± 0.0000 | +2.98 ± 1.19 | +7.50 ± 2.50 | +4.17, +1.79 |"
    ]
    assert measures.splitlines()[2:4] == [
        "| 3x3 convolution of tokens and reconstruction |" + " 0.20 / 0.50 |" * 3 + " – | 0.20 / 0.50 |",
        "| in the two deepest stages |" + " 0.22 / 0.50 |" * 5,
    ]
    assert measures.splitlines()[4].startswith("| Gaussian noise | 0.")
    assert origins == (
        "Trained at abc on CPU: seed0/baseline seed1/baseline seed2/baseline seed0/convolved seed0/deep seed1/deep."
    )


def test_rows_that_do_not_belong_together_are_refused(scripts, tmp_path):
    for name in ("baseline", "deep"):
        write_row(tmp_path / "seed0" / f"{name}.json", 0.2, 1.2)
    write_row(tmp_path / "seed1" / "deep.json", 0.5, 1.0, max_steps=2)
    with pytest.raises(ValueError, match=r"seed1/deep\.json has other max_steps\."):
        scripts.compare.format_readings(tmp_path)
    write_row(tmp_path / "seed1" / "deep.json", 0.5, 1.0, model={"hidden_size": 8, "inter_task_stages": 2})
    with pytest.raises(ValueError, match=r"seed1/deep\.json has other model\.hidden_size\."):
        scripts.compare.format_readings(tmp_path)
    (tmp_path / "seed1" / "deep.json").rename(tmp_path / "seed1" / "sem.json")
    with pytest.raises(ValueError, match=r"seed1/sem\.json are not\. Move them\."):
        scripts.compare.format_readings(tmp_path)


def write_row(path, miou, rmse, **settings):
    row = {
        "scores": {"semseg/miou": miou, "depth/rmse": rmse, "depth/scale": 0.9},
        "constant_scores": {},
        "num_images": 2,
        "environment": {"commit": "abc", "hardware": "CPU"},
        "training": {"settings": {"model": {}, **settings}},
        "history": [{"step": step, "loss": 100 * step * miou} for step in range(1, 21)] + [{"step": 21, "loss": None}],
        "parameters_millions": 1.0,
        "multiply_accumulates_billions": 1.0,
        "inter_task": dict.fromkeys(MEASURES, [miou, 0.5]),
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(row))


@pytest.mark.parametrize("name", ["inter_task_readings", "inter_task_readings_2500"])
def test_the_page_has_the_printed_tables(scripts, name):
    printed = scripts.compare.format_readings(REPOSITORY / "results" / name)
    assert printed in (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")
