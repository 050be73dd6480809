"""Predict every task for photos of any size.

    python scripts/predict.py --model runs/quickstart --input photo.jpg folder_of_photos --output predictions

Writes for each photo NAME.png, a coloured panel, and NAME.npz, the raw maps: class ids, metres, unit vectors,
probabilities. With --inside also inside/NAME.png: how each task comes to its map. A photo that cannot be read is named and
left out; the exit code is then 1.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.inside import inside_panel
from transformers_sem.panels import Prediction, prediction_panel
from transformers_sem.training.configuration import plain_errors
from transformers_sem.training.evaluating import predict
from transformers_sem.training.reporting import save_picture, written_beside


def find_photos(inputs: list[Path]) -> list[Path]:
    """The files given, and the pictures in the folders given.

    Raises:
        FileNotFoundError: If an input is not there, or there is no picture in any.
        ValueError: If two photos would be written under one name.
    """
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    photos = []
    for path in inputs:
        if not path.exists():
            raise FileNotFoundError(
                f"There is no file or folder {str(path)!r}; --input takes photos and folders of them."
            )
        if path.is_dir():
            photos += sorted(child for child in path.iterdir() if child.suffix.lower() in endings)
        else:
            photos.append(path)
    if not photos:
        raise FileNotFoundError(f"There is no picture in {', '.join(map(str, inputs))}.")
    stems = [photo.stem for photo in photos]
    twins = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twins:
        raise ValueError(
            f"Several photos are called {twins}; results are named after photos. Rename them or split the call."
        )
    return photos


def read_photo(path: Path) -> torch.Tensor:
    """RGB uint8 `(3, height, width)`, upright as the camera says."""
    with Image.open(path) as photo:
        upright = ImageOps.exif_transpose(photo).convert("RGB")
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1)


def save_prediction(prediction: Prediction, path: Path) -> None:
    """Writes panel and maps, beside and renamed, so that none is ever half there."""
    with written_beside(path.with_name(path.name + ".npz")) as unfinished:
        np.savez_compressed(unfinished, **{task: values.numpy() for task, values in prediction.maps.items()})
    save_picture(path.with_name(path.name + ".png"), prediction_panel([prediction]))


def main() -> None:
    """Load, predict, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of a trained model")
    parser.add_argument("--input", required=True, type=Path, nargs="+", help="photos and folders of photos")
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder to write to")
    parser.add_argument("--inside", action="store_true", help="also draw what goes on inside the model")
    arguments = parser.parse_args()
    with plain_errors():
        photos = find_photos(arguments.input)
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        model = SEMForMultiTaskDensePrediction.from_pretrained(arguments.model).to(device).eval()
        image_processor = SEMImageProcessor.from_pretrained(arguments.model)
        arguments.output.mkdir(parents=True, exist_ok=True)
    failures = 0
    for photo in tqdm(photos, desc="predicting"):
        try:
            image = read_photo(photo)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            tqdm.write(f"error: cannot read {photo}: {error}", file=sys.stderr)
            failures += 1
            continue
        maps = predict(model, image_processor, [image])[0]
        save_prediction(Prediction(image.permute(1, 2, 0).numpy(), maps), arguments.output / photo.stem)
        if arguments.inside:
            (arguments.output / "inside").mkdir(exist_ok=True)
            panel = inside_panel(model, image_processor, image)
            save_picture(arguments.output / "inside" / f"{photo.stem}.png", panel)
    print(f"Written: {len(photos) - failures} panels and as many .npz files to {arguments.output}/.")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
