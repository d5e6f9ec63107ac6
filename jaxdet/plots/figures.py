"""Figures without a display: written as PNG, JPEG, PDF or SVG."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

SUFFIXES = (".png", ".jpg", ".pdf", ".svg")


def draw_image(axes, image):
    image = np.asarray(image)
    grey = image.shape[-1] == 1
    axes.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=1)
    axes.set_autoscale_on(False)


def save(figure, path):
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
