"""The folder model_cards/, and the command `cards`."""

import json

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from transformers_sem.cli.cards import main
from transformers_sem.hub.card import add_checkpoint, render_cards

from ..conftest import REPOSITORY
from ..tiny import tiny_config
from .test_card import EVALUATION


CARDS = REPOSITORY / "model_cards"


@pytest.fixture(scope="module")
def pages():
    return render_cards(CARDS)


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "runs" / "quickstart"
    tiny_config().save_pretrained(folder)
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    Image.new("RGB", (8, 6)).save(folder / "predictions.png")
    return folder


def test_pages_are_what_their_files_say(pages):
    """If this fails, run `make cards`."""
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


def test_a_changed_number_is_seen(run_dir, tmp_path):
    cards_dir = tmp_path / "cards"
    main(["--folder", str(cards_dir), "--add", str(run_dir)])
    path = cards_dir / "quickstart" / "evaluation.json"
    evaluation = json.loads(path.read_text())
    evaluation["scores"]["semseg/miou"] += 0.001
    path.write_text(json.dumps(evaluation))
    (page,) = render_cards(cards_dir).items()
    assert page[0].read_text(encoding="utf-8") != page[1]


def test_a_finished_run_is_added_and_rendered(run_dir, tmp_path, capsys):
    cards_dir = tmp_path / "cards"
    main(["--folder", str(cards_dir), "--add", str(run_dir)])
    assert capsys.readouterr().out == f"{cards_dir}/quickstart/README.md\n"
    assert sorted(str(path.relative_to(cards_dir)) for path in cards_dir.rglob("*.*")) == [
        f"quickstart/{name}" for name in ("README.md", "config.json", "evaluation.json", "predictions.png")
    ]
    ((path, text),) = render_cards(cards_dir).items()
    assert path.read_text(encoding="utf-8") == text


def test_a_run_of_the_same_name_replaces_all_files_of_the_earlier_one(run_dir, tmp_path):
    cards_dir = tmp_path / "cards"
    add_checkpoint(run_dir, cards_dir)
    for name in ("evaluation", "predictions"):
        for path in run_dir.glob(f"{name}.*"):
            path.rename(path.with_stem(f"{name}_rooms"))
    (run_dir / "predictions_rooms.png").unlink()
    for folder in (run_dir, cards_dir / "quickstart"):  # the second is there already
        add_checkpoint(folder, cards_dir)
        names = sorted(path.name for path in (cards_dir / "quickstart").iterdir())
        assert names == ["config.json", "evaluation_rooms.json"]


def test_a_folder_without_checkpoints_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="^error: There is no checkpoint in .*--add"):
        main(["--folder", str(tmp_path)])


def test_an_unfinished_run_has_no_card(run_dir, tmp_path):
    (run_dir / "evaluation.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no evaluation.json. Train it to the end"):
        add_checkpoint(run_dir, tmp_path / "cards")
    assert not (tmp_path / "cards").exists()
