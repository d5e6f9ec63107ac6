"""The options of `jaxdet verify` and `jaxdet data verification`: fields are flags."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from jaxdet.cli.options import Process


@dataclass(frozen=True, kw_only=True)
class Embedding(Process):
    """Options of commands that embed images by a run of faces."""

    run: tyro.conf.Positional[Path]
    """run folder"""
    checkpoint: str = "best"
    """best, last, or a step"""
    json: bool = False
    """print JSON"""


@dataclass(frozen=True, kw_only=True)
class Verify(Embedding):
    """Options of commands that compare embeddings."""

    metric: Literal["cosine", "euclidean"] = "cosine"
    """similarity of two embeddings: their cosine, or their negative Euclidean distance"""


@dataclass(frozen=True, kw_only=True)
class Identify(Verify):
    """Options of commands that identify unknown images among known identities."""

    known: Path
    """folder of the gallery: a folder of images per identity"""
    unknown: Path
    """folder of the probes: images in the order of their names"""
    reduce: Literal["max", "mean"] = "max"
    """similarity to an identity with several images: the highest, or the mean"""
    worst: Path | None = None
    """picture to write: the worst mistakes, each beside the most similar image of the predicted
    identity"""
    count: int = 20
    """number of mistakes in --worst"""
    plots: Path | None = None
    """folder for plots: accuracy against the threshold, also as a table, ROC curve, and histogram
    of the scores"""
    step: float = 0.01
    """distance between thresholds in --plots; cosines range from -1 to 1"""


@dataclass(frozen=True, kw_only=True)
class Dev(Identify):
    """Find the threshold that decides best whether an unknown image is its most similar identity.

    Prints scores at the default threshold .4 (cosine only) and at the best one.  `accuracy` is the
    fraction of correct decisions; `known_accuracy` is the number of correctly identified images per
    known identity.
    """

    truth: Path
    """table with the label of each unknown image, n000000 for no known identity (.csv)"""
    sweep: bool = True
    """find the best threshold; false keeps .4"""
    out: Path | None = None
    """file to write: the threshold for `verify test` and `verify pair`, with its scores for
    `compare --verified` (.json)"""


@dataclass(frozen=True, kw_only=True)
class Test(Identify):
    """Identify unknown images by a threshold that was found on other images."""

    threshold: str = ""
    """number, or file of `verify dev --out`; .4 by default for cosines"""
    truth: Path | None = None
    """table with the label of each unknown image: print scores, and allow --plots, --worst and
    --out (.csv)"""
    submit: Path | None = None
    """table to write instead of printing: index and label of each unknown image (.csv)"""
    sample: Path | None = None
    """table whose header and first column --submit keeps; its rows must match (.csv)"""
    out: Path | None = None
    """with --truth: file to write: the scores, for `compare --verified` (.json)"""


@dataclass(frozen=True, kw_only=True)
class Pair(Verify):
    """Decide whether two images show the same identity."""

    images: tyro.conf.Positional[tuple[Path, Path]]
    """two image files"""
    threshold: str = ""
    """number, or file of `verify dev --out`; .4 by default for cosines"""


@dataclass(frozen=True, kw_only=True)
class Pairs(Verify):
    """Evaluate a list of image pairs by the protocol of Labeled Faces in the Wild.

    Each fold is evaluated at the best threshold of the other folds.
    """

    pairs: tyro.conf.Positional[Path]
    """list of pairs in the format of pairs.txt"""
    root: Path
    """folder with the images NAME/NAME_0001.jpg, at any depth"""
    folds: int = 0
    """number of folds; 0: that of the list, or 10 if it has none"""
    on_missing: Literal["error", "skip"] = "error"
    """pairs with a missing image: stop, or leave them out and count them; the other pairs keep
    their folds"""
    worst: Path | None = None
    """picture to write: the worst mistakes"""
    count: int = 20
    """number of mistakes in --worst"""
    plots: Path | None = None
    """folder for plots: ROC curve, histogram of the scores"""


@dataclass(frozen=True, kw_only=True)
class Probe(Embedding):
    """Measure how well a linear classifier separates identities by their embeddings.

    It is fitted to every second image of each identity, in the order of their names from the first
    on; `accuracy` is that on the other images, `fitted_accuracy` that on the fitted ones.
    """

    folder: tyro.conf.Positional[Path]
    """folder with a folder of images per identity"""


@dataclass(frozen=True, kw_only=True)
class VerificationFolders(Process):
    """Make the folders of a verification protocol from a folder of images per identity.

    classification/ has identities to train on, known/ has gallery images of others; unknown_dev/
    and unknown_test/ have further images of these, and images of unknown identities, labelled
    n000000, which are in neither.  unknown_dev/ and unknown_test/ share no identity.
    """

    root: str = ""
    """folder or tar file with a folder of images per identity"""
    out: Path = Path("verification")
    """folder to write"""
    known: int = 12
    """number of known identities"""
    unknown_identities: int = 6
    """number of unknown identities; all others are for training"""
    gallery_images: int = 1
    """images of each known identity in known/; its other images are probes"""
    dev: float = 0.34
    """fraction of the known and of the unknown identities in unknown_dev/"""
    seed: int = 0
    """seed of the random choice of identities and images"""
