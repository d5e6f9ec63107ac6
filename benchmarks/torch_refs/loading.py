"""Images for PyTorch's `DataLoader`: decoded by Pillow and letterboxed, as most projects do."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

FILL = 114  # pixel value of the padding


def read_letterboxed(path: str | Path, side: int) -> np.ndarray:
    """Decode an image at its full size, and place it in [side, side, 3] uint8, resized."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    factor = side / max(image.size)
    width, height = (max(round(each * factor), 1) for each in image.size)
    left, top = (side - width) // 2, (side - height) // 2
    out = np.full((side, side, 3), FILL, np.uint8)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    out[top : top + height, left : left + width] = resized
    return out


class LetterboxedFiles:
    """A map-style data set of image files; the workers of a `DataLoader` import no jax."""

    def __init__(self, paths: Sequence[Path], side: int) -> None:
        self.paths, self.side = paths, side

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return read_letterboxed(self.paths[index], self.side)
