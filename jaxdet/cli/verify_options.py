"""The options of `jaxdet verify`: fields are flags, docstrings are help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from jaxdet.cli.options import Process


@dataclass(frozen=True, kw_only=True)
class Restored(Process):
    """A run of faces."""

    run: tyro.conf.Positional[Path]
    """run folder"""
    checkpoint: str = "best"
    """best, last, or a step"""
    json: bool = False
    """print JSON"""


@dataclass(frozen=True, kw_only=True)
class Verify(Restored):
    """A run of faces, and how its embeddings are compared."""

    kind: Literal["cosine", "euclidean"] = "cosine"
    """likeness of two embeddings: the cosine of their angle, or their distance with a minus"""


@dataclass(frozen=True, kw_only=True)
class Identify(Verify):
    """Unknown images among known identities."""

    known: Path
    """folder with a folder of images an identity"""
    unknown: Path
    """folder of images, taken in the order of their names"""
    join: Literal["max", "mean"] = "max"
    """likeness to an identity with several images: the highest, or the mean"""
    worst: Path | None = None
    """picture to write: the worst mistakes, each beside the image it was taken for"""
    count: int = 20
    """how many mistakes"""
    plots: Path | None = None
    """folder for pictures: accuracy against the threshold, ROC curve, histogram of the scores; and
    the first as a table"""
    step: float = 0.01
    """step between the thresholds of the curve, which go from -1 to 1 for cosines"""


@dataclass(frozen=True, kw_only=True)
class Dev(Identify):
    """Find the threshold from which an unknown image is taken for the identity it is most like.

    Scores are those at .4, seed 004's threshold (cosine only), and those at the best one.
    `accuracy` is the share of right decisions over the unknown images, `known_accuracy` the number
    of right identities over that of known identities, which have an unknown image each in seed
    004, whose text can mean either.
    """

    truth: Path
    """table with the label of each unknown image, n000000 for nobody known (.csv)"""
    sweep: bool = True
    """look for the best threshold; false keeps .4"""
    out: Path | None = None
    """file for the threshold, what it was found with, for `verify test` and `pair`, and its
    scores, for `compare --verified` (.json)"""


@dataclass(frozen=True, kw_only=True)
class Test(Identify):
    """Decide who is on unknown images, with a threshold that was found elsewhere."""

    threshold: str = ""
    """number, or file that `verify dev` wrote; .4 by default for cosines"""
    truth: Path | None = None
    """table with the label of each unknown image: print scores, and make --plots (.csv)"""
    submit: Path | None = None
    """table to write, index and label of each unknown image, instead of a line an image (.csv)"""
    sample: Path | None = None
    """table whose heading and first column --submit takes over, when its rows match (.csv)"""
    out: Path | None = None
    """with --truth: file for the scores, for `compare --verified` (.json)"""


@dataclass(frozen=True, kw_only=True)
class Pair(Verify):
    """Whether two images show the same person."""

    images: tyro.conf.Positional[tuple[Path, Path]]
    """two image files"""
    threshold: str = ""
    """number, or file that `verify dev` wrote; .4 by default for cosines"""


@dataclass(frozen=True, kw_only=True)
class Pairs(Verify):
    """Scores by pairs of images: the protocol of Labeled Faces in the Wild.

    Each fold is judged at the best threshold of all others.
    """

    pairs: tyro.conf.Positional[Path]
    """list of pairs like LFW's pairs.txt"""
    root: Path
    """folder with the images NAME/NAME_0001.jpg, at any depth"""
    folds: int = 0
    """number of folds; 0 is what the list says, 10 where it says none"""
    on_missing: Literal["error", "skip"] = "error"
    """what to do with a pair whose image is not there: stop, or leave it out and count it; the
    others stay in their folds"""
    worst: Path | None = None
    """picture to write: the worst mistakes"""
    count: int = 20
    """how many mistakes"""
    plots: Path | None = None
    """folder for pictures: ROC curve, histogram of the scores"""


@dataclass(frozen=True, kw_only=True)
class Probe(Restored):
    """Whether a plane tells the embeddings of people apart, learnt or not.

    A linear classifier is fitted to every second image of each person, in the order of their
    names, from the first on; `accuracy` is that of the other images, `fitted` of these.
    """

    folder: tyro.conf.Positional[Path]
    """folder with a folder of images a person"""


@dataclass(frozen=True, kw_only=True)
class Make(Process):
    """Make folders for faces and `verify` of a folder with a folder of images a person.

    classification/ has people to learn, known/ others to recognise, unknown_dev/ and unknown_test/
    more images of the latter and images of strangers, n000000, who are in none of the former.  No
    person of unknown_dev/ is in unknown_test/.
    """

    root: str = ""
    """folder or tar file with a folder of images a person"""
    out: Path = Path("verification")
    """folder to write"""
    known: int = 12
    """people to recognise"""
    strangers: int = 6
    """people who are nobody known; whoever is left is learnt"""
    each: int = 1
    """images of each of the known in known/; the others of theirs are unknown images"""
    dev: float = 0.34
    """share of the known and of the strangers for unknown_dev/"""
    seed: int = 0
    """draws people and images"""
