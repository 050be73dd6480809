"""The folder model_cards/."""

import json
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from transformers_sem.hub.cards import add_checkpoint, render_cards, write_pages

from ..conftest import REPOSITORY
from ..tiny import tiny_config
from .test_card import EVALUATION


CARDS, CONFIGS = REPOSITORY / "model_cards", REPOSITORY / "scripts" / "configs"


@pytest.fixture(scope="module")
def pages():
    return render_cards(CARDS, CONFIGS)


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "runs" / "quickstart"
    tiny_config().save_pretrained(folder)
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    Image.new("RGB", (8, 6)).save(folder / "predictions.png")
    return folder


def test_pages_are_what_their_files_say(pages):
    """Where this fails, `make cards` renders them anew."""
    written = {path for path in CARDS.rglob("*.md") if path.name != "template.md"}
    assert written == set(pages)
    assert [path for path, text in pages.items() if path.read_text(encoding="utf-8") != text] == []


def test_numbers_of_the_cards_are_those_of_the_evaluation():
    folders = [path.parent for path in CARDS.glob("*/evaluation.json")]
    assert CARDS / "quickstart" in folders
    for folder in folders:
        evaluation = json.loads((folder / "evaluation.json").read_text())
        results = ModelCard.load(folder / "README.md").data.eval_results
        assert {f"{one.dataset_config}/{one.metric_type}": one.metric_value for one in results} == evaluation["scores"]


def test_every_benchmark_configuration_without_weights_has_a_recipe(pages):
    recipes = {path.stem: text for path, text in pages.items() if path.parent.name == "recipes"}
    configs = {path.stem: yaml.safe_load(path.read_text()) for path in CONFIGS.glob("*_*_*.yaml")}
    assert set(recipes) == set(configs) and len(recipes) == 18
    for name, text in recipes.items():
        assert "model-index" not in text and "## Results" not in text
        assert f"scripts/configs/{name}.yaml" in text
        assert (
            configs[name].get("model", {}).get("backbone_config", {}).get("model_name", "vit_large_patch16_384")
            in text
        )


def test_a_changed_number_is_seen(run_dir, tmp_path):
    cards_dir = tmp_path / "cards"
    add_checkpoint(run_dir, cards_dir)
    write_pages(render_cards(cards_dir, tmp_path), cards_dir)
    path = cards_dir / "quickstart" / "evaluation.json"
    evaluation = json.loads(path.read_text())
    evaluation["scores"]["semseg/miou"] += 0.001
    path.write_text(json.dumps(evaluation))
    (page,) = render_cards(cards_dir, tmp_path).items()
    assert page[0].read_text(encoding="utf-8") != page[1]


def test_a_trained_configuration_is_no_recipe_any_more(run_dir, tmp_path):
    cards_dir, configs_dir = tmp_path / "cards", tmp_path / "configs"
    configs_dir.mkdir()
    shutil.copy(CONFIGS / "swin_tiny_nyud_v2.yaml", configs_dir)
    write_pages(render_cards(cards_dir, configs_dir), cards_dir)
    assert [path.name for path in cards_dir.rglob("*.md")] == ["swin_tiny_nyud_v2.md"]
    run_dir = run_dir.rename(run_dir.with_name("swin_tiny_nyud_v2"))
    add_checkpoint(run_dir, cards_dir)
    write_pages(render_cards(cards_dir, configs_dir), cards_dir)
    assert sorted(str(path.relative_to(cards_dir)) for path in cards_dir.rglob("*.*")) == [
        f"swin_tiny_nyud_v2/{name}" for name in ("README.md", "config.json", "evaluation.json", "predictions.png")
    ]


def test_an_unfinished_run_has_no_card(run_dir, tmp_path):
    (run_dir / "evaluation.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no evaluation.json. Train it to the end"):
        add_checkpoint(run_dir, tmp_path / "cards")
    assert not (tmp_path / "cards").exists()
