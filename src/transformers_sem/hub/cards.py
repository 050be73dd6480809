"""The folder `model_cards/`: a card for every checkpoint that was trained, a recipe for every configuration that was not."""

import shutil
from pathlib import Path

from huggingface_hub import ModelCard
from PIL import Image

from ..configuration_sem import SEMConfig
from ..data.benchmarks import get_benchmark
from ..training.config import TrainingConfig, label_fields
from ..utils.files import atomic_write
from ..visualization.panels import save_image
from .card import EVALUATION_NAME, PICTURE_NAME, card_of_folder, make_card, read_evaluation


CARD_NAME = "README.md"
RECIPES_NAME = "recipes"


def render_cards(cards_dir: Path, configs_dir: Path) -> dict[Path, str]:
    """Renders all pages, and writes none.

    Args:
        cards_dir (`Path`): Holds for each checkpoint a folder with `config.json`, `evaluation.json` and, where there is one,
            a picture.
        configs_dir (`Path`): The settings of trainings, `NAME.yaml`; the checkpoint of one is called NAME.

    Returns:
        `dict[Path, str]`: the text of each page.
    """
    trained = sorted(path.parent for path in cards_dir.glob(f"*/{EVALUATION_NAME}"))
    cards = {
        folder / CARD_NAME: card_of_folder(folder, folder.name, model_id=f"runs/{folder.name}") for folder in trained
    }
    for path in sorted(configs_dir.glob("*.yaml")):
        config = TrainingConfig.load(path)
        # for a whole benchmark; the others are for a try
        if path.stem.endswith(f"_{config.dataset}") and path.stem not in {folder.name for folder in trained}:
            cards[cards_dir / RECIPES_NAME / f"{path.stem}.md"] = make_recipe(path, config)
    return {path: f"{card}\n" for path, card in cards.items()}


def make_recipe(path: Path, config: TrainingConfig) -> ModelCard:
    """The page of a configuration without weights; what its file says at the top is on it."""
    benchmark = get_benchmark(config.dataset, config.data_dir)
    command = f"accelerate launch scripts/train.py --config scripts/configs/{path.name} data_dir=FOLDER"
    comment = " ".join(
        line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")
    )
    return make_card(
        SEMConfig(**label_fields(config, benchmark), **config.model),
        path.stem,
        data=benchmark.describe(),
        training={"settings": config.describe(), "command": command},
        note=comment,
    )


def write_pages(pages: dict[Path, str], cards_dir: Path) -> None:
    """Writes the pages, and removes recipes of configurations that are trained by now or gone."""
    for path in sorted((cards_dir / RECIPES_NAME).glob("*.md")):
        if path not in pages:
            path.unlink()
    for path, text in pages.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")


def add_checkpoint(run_dir: Path, cards_dir: Path) -> None:
    """Copies what a card needs of a finished run to `cards_dir`, under the name of the run.

    Raises:
        OSError: If the run is not finished.
        ValueError: If it was evaluated by an older program.
    """
    for name in ("config.json", EVALUATION_NAME):
        if not (run_dir / name).is_file():
            raise FileNotFoundError(
                f"A card is for a run that is finished; {run_dir} has no {name}. Train it to the end."
            )
    read_evaluation(run_dir / EVALUATION_NAME)
    folder = cards_dir / run_dir.resolve().name
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", EVALUATION_NAME):
        with atomic_write(folder / name) as unfinished:
            shutil.copyfile(run_dir / name, unfinished)
    if (run_dir / PICTURE_NAME).is_file():
        with Image.open(run_dir / PICTURE_NAME) as picture:
            save_image(folder / PICTURE_NAME, picture.convert("RGB").quantize())  # a fifth of the bytes, for git
