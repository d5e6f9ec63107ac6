"""`jaxdet verify probe RUN FOLDER`: whether a plane tells the embeddings of people apart."""

import numpy as np

from jaxdet.cli import common, embedding, verify_output
from jaxdet.data import verification_protocol
from jaxdet.errors import InputError
from jaxdet.metrics import verification as scoring
from jaxdet.ops import embeddings


def probe(options):
    """Fit a linear classifier to every second image of each person, and judge it on the others."""
    known = verification_protocol.read_gallery(options.folder)
    counts = np.bincount(known.labels, minlength=len(known.identities))
    if (counts > 1).sum() < 2:
        raise InputError(f"{options.folder}: two people with two images each are the least")
    if (counts == 1).any():
        common.warn(f"people with one image, left out: {(counts == 1).sum()}")
    order = np.concatenate([np.arange(count) for count in counts])  # of the images of each
    several = counts[known.labels] > 1
    fitted, others = ((order % 2 == part) & several for part in (0, 1))
    embedder = embedding.restored(options.run, options.checkpoint)
    found = np.asarray(embeddings.l2_normalize(embedder.embed(known.paths)))
    answers = scoring.linear_probe(found[fitted], known.labels[fitted], found)
    right = answers == known.labels
    counted = {"people": int((counts > 1).sum()), "images": int(others.sum())}
    shares = {"accuracy": float(right[others].mean()), "fitted": float(right[fitted].mean())}
    verify_output.tell(options, {**embedder.made, **counted, **shares})
    return 0
