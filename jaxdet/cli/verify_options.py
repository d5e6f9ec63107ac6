"""The options of `jaxdet verify` and `jaxdet data verification`: fields are flags."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from jaxdet.cli.options import Process


@dataclass(frozen=True, kw_only=True)
class Embedding(Process):
    """Options of commands that embed images with a run of faces."""

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
    """folder of the gallery, with one folder of images per identity"""
    unknown: Path
    """folder of the probes, images that are read in the order of their names"""
    reduce: Literal["max", "mean"] = "max"
    """similarity to an identity: maximum or mean over its gallery images"""
    worst: Path | None = None
    """picture to write: the worst mistakes, each beside the most similar image of the predicted
    identity"""
    count: int = 20
    """number of mistakes in --worst"""
    plots: Path | None = None
    """folder for plots: accuracy against the threshold (also as a table), ROC curve, and histogram
    of the scores"""
    step: float = 0.01
    """distance between the thresholds in --plots, which range from -1 to 1; for euclidean, the same
    number of thresholds covers the range of the scores"""


@dataclass(frozen=True, kw_only=True)
class Dev(Identify):
    """Find the best similarity threshold for accepting the most similar identity.

    Prints scores at the default threshold .4 (cosine only) and at the threshold with the best
    accuracy.  `accuracy` is the fraction of correct decisions; `known_accuracy` is the fraction of
    known identities that are identified in at least one of their images.  The best threshold is
    found with these images; for `held_out_accuracy`, each tenth of the images is evaluated at the
    threshold that is best for the other nine tenths.
    """

    truth: Path
    """.csv table with the label of each unknown image, either alone or with the image's name or
    number in another column; n000000 means no known identity"""
    sweep: bool = True
    """whether to find the best threshold; false keeps .4"""
    out: Path | None = None
    """.json file to write: the threshold for `verify test` and `verify pair`, with its scores for
    `compare --verified`"""


@dataclass(frozen=True, kw_only=True)
class Test(Identify):
    """Identify unknown images by a threshold that was found on other images."""

    threshold: str = ""
    """a number, or the file that `verify dev --out` wrote; default for cosines: .4"""
    truth: Path | None = None
    """.csv table with the label of each unknown image; if given, scores are printed, and --plots,
    --worst and --out are allowed"""
    submit: Path | None = None
    """.csv table to write instead of printing: the number or name of each unknown image, and its
    label"""
    sample: Path | None = None
    """.csv table whose rows --submit fills, in their order; the first column has the name or number
    of each image"""
    out: Path | None = None
    """with --truth: .json file to write, with the scores for `compare --verified`"""


@dataclass(frozen=True, kw_only=True)
class Pair(Verify):
    """Decide whether two images show the same identity."""

    images: tyro.conf.Positional[tuple[Path, Path]]
    """two image files"""
    threshold: str = ""
    """a number, or the file that `verify dev --out` wrote; default for cosines: .4"""


@dataclass(frozen=True, kw_only=True)
class Pairs(Verify):
    """Evaluate a list of image pairs by the protocol of Labeled Faces in the Wild.

    Each fold is evaluated at the threshold that is best for the other folds.
    """

    pairs: tyro.conf.Positional[Path]
    """list of pairs in the format of pairs.txt"""
    root: Path
    """folder with the images NAME/NAME_0001.jpg, at any depth"""
    folds: int = 0
    """number of folds; 0: the number given in the list, or 10 if it gives none"""
    on_missing: Literal["error", "skip"] = "error"
    """what to do with pairs that lack an image: stop (error), or count them and leave them out
    (skip); the other pairs keep their folds"""
    worst: Path | None = None
    """picture to write: the worst mistakes"""
    count: int = 20
    """number of mistakes in --worst"""
    plots: Path | None = None
    """folder for plots: ROC curve, histogram of the scores"""


@dataclass(frozen=True, kw_only=True)
class Probe(Embedding):
    """Measure how well a linear classifier separates identities by their embeddings.

    The classifier is fitted to every second image of each identity, in the order of their names;
    `fitted_accuracy` is measured on these images, `accuracy` on the other images.
    """

    folder: tyro.conf.Positional[Path]
    """folder with one folder of images per identity"""


@dataclass(frozen=True, kw_only=True)
class VerificationFolders(Process):
    """Make the folders of a verification protocol from one folder of images per identity.

    classification/ has the identities to train on; known/ has gallery images of other identities.
    unknown_dev/ and unknown_test/ have further images of the gallery identities, and images of
    unknown identities, labeled n000000; no identity is in both unknown_dev/ and unknown_test/.
    """

    root: str = ""
    """folder or tar file with one folder of images per identity"""
    out: Path = Path("verification")
    """folder to write"""
    known: int = 12
    """number of known identities"""
    unknown_identities: int = 6
    """number of unknown identities; the remaining identities are for training"""
    gallery_images: int = 1
    """number of images of each known identity in known/; its other images are probes"""
    dev: float = 0.34
    """fraction of the known identities, and of the unknown identities, whose probes are in
    unknown_dev/; the probes of the others are in unknown_test/"""
    seed: int = 0
    """seed of the random choice of identities and images"""
