"""Random logits and labels of any task in the table, and damaged files."""

from pathlib import Path

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from transformers_sem import TASKS


def random_logits(task: str, num_images: int, size: tuple[int, int], num_labels: int | None = None) -> Tensor:
    return torch.randn(num_images, num_labels or TASKS[task].num_labels, *size)


def random_labels(
    task: str, num_images: int, size: tuple[int, int], invalid_share: float = 0.2, num_labels: int | None = None
) -> Tensor:
    """Labels `(num_images, height, width)` or `(num_images, channels, height, width)` with some invalid pixels."""
    spec = TASKS[task]
    if spec.dtype == torch.int64:
        labels = torch.randint(num_labels or TASKS[task].num_labels, (num_images, *size))
    else:
        channels = (spec.kind.num_channels,) if spec.kind.num_channels else ()
        labels = torch.rand(num_images, *channels, *size)
    if spec.kind.num_channels == 3:
        labels = torch.nn.functional.normalize(labels - 0.5, dim=1)
    invalid = torch.rand(num_images, *size) < invalid_share
    invalid = invalid.unsqueeze(1) if spec.kind.num_channels else invalid
    return labels.masked_fill(invalid, spec.kind.invalid_value)


def invalid_labels(task: str, num_images: int, size: tuple[int, int]) -> Tensor:
    return random_labels(task, num_images, size, invalid_share=1.1)


def save_damaged_png(path: Path, image: Image.Image, chunk: bytes) -> Path:
    """Saves a PNG file with a text, a profile and EXIF data, of which the `chunk` of this name is damaged."""
    texts, exif = PngImagePlugin.PngInfo(), Image.Exif()
    texts.add_text("comment", "text" * 1000, zip=True)
    exif[0x010F] = "camera"
    image.save(path, pnginfo=texts, exif=exif, icc_profile=b"x" * 500)
    content = bytearray(path.read_bytes())
    content[content.index(chunk) + 12] ^= 255
    path.write_bytes(content)
    return path
