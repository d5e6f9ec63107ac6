"""The options of every command: fields are flags, docstrings are help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Process:
    """Options of every command."""

    cache: bool = True
    """keep compiled programs in $JAXDET_CACHE, or ~/.cache/jaxdet"""
    deterministic: bool = False
    """on a GPU, use only operations that give the same bits every time (slower; no max pools)"""
    debug: bool = False
    """show the whole traceback of an error"""


@dataclass(frozen=True, kw_only=True)
class Train(Process):
    """Train a system into a run folder, or continue one; with --seeds N, N runs, as by sweep."""

    out: Path = Path("runs")
    """run folder"""
    resume: bool = False
    """continue the run in --out if there is one, with its own configuration"""
    overwrite: bool = False
    """replace the run in --out"""
    quiet: bool = False
    """print nothing but errors"""


@dataclass(frozen=True, kw_only=True)
class Sweep(Process):
    """Train every combination of options that have several values: --lr 1e-3 3e-3 --seeds 3."""

    out: Path = Path("sweep")
    """folder of the runs, one folder each, and of sweep.md"""
    one_at_a_time: bool = False
    """not every combination: the first values of all options, and then each other value of one,
    with what it gains"""
    grid: str = ""
    """options and values by name; cifar10: arch, batch, aug, loss, opt, act; detect: ablation;
    faces: arch, loss, head, opt, schedule, dropout, squeeze, act, and seed, the rows of seed 004"""
    resume: bool = False
    """continue the runs in --out"""
    overwrite: bool = False
    """replace the runs in --out"""
    together: Literal["auto", "yes", "no"] = "auto"
    """runs that differ in learning rate, weight decay, weights of the loss, dropout or seed: train
    them in one program, or one after the other; auto measures both; seconds of a run are its share
    of those of the program, and less than it needs alone where together is quicker"""
    quiet: bool = False
    """print nothing but errors and the table"""
    json: bool = False
    """print JSON"""


@dataclass(frozen=True, kw_only=True)
class Restored(Process):
    """What `eval` and `predict` restore."""

    run: tyro.conf.Positional[Path]
    """run folder"""
    checkpoint: str = "best"
    """best, last, or a step"""
    split: str = "test"
    """part of the data: train, val, test, or what else the system has; all for these three"""
    root: str = ""
    """folder of other data of the same kind"""
    score: float | None = None
    """detect: least score of a box, instead of the run's; seed 002 has .1, COCO .001"""
    nms: float | None = None
    """detect: overlap from which boxes are one, instead of the run's; seed 002 has .5"""
    nms_kind: Literal["hard", "linear", "gaussian", "nmw", "wbf"] | None = None
    """detect: drop what overlaps, lower its score, or merge it"""
    tta: bool | None = None
    """detect: answer by six views of a photo, three sizes, each mirrored as well; cifar10: by the
    image and its mirror image"""
    json: bool = False
    """print JSON"""


@dataclass(frozen=True, kw_only=True)
class Eval(Restored):
    """Scores of a checkpoint: exactly those that training logged for it."""

    plots: Path | None = None
    """folder for pictures: what was taken for what; detect: precision against recall, mAP"""


@dataclass(frozen=True, kw_only=True)
class Predict(Restored):
    """Answers for image files, one a line; or samples of the data, true and predicted boxes."""

    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """image files, folders of them, patterns such as 'a/**/*.jpg', or tables of photos with labels
    and boxes (.csv); without any, samples of --split, for which alone the data are read"""
    filename: tuple[Path, ...] = ()
    """more of them; where there is a display and no --save-dir, each is shown in a window"""
    show_all_images: bool = True
    """false leaves only the failures: a wrong label, or an IoU under .5"""
    save_dir: Path | None = None
    """folder for one picture an image: true boxes green, predicted boxes red"""
    count: int = 30
    """how many samples"""
    canvas: int = 0
    """side of the samples in pixels; 0 is the run's own"""
    figure: Path | None = None
    """picture to write: true boxes green, predicted boxes red"""
    classes: tuple[str, ...] = ()
    """detect: only these"""
    save_txt: Path | None = None
    """detect: folder for a text file an image, YOLO's `class x y width height score`"""
    save_json: Path | None = None
    """detect: file for all boxes, as COCO's results.  category_id is that of the data (COCO,
    parquet) of the run, or else counts classes from 1.  image_id of samples of --split is that of
    the data; of image files, which are not looked for in the data, it is the number that each is
    called, or, where one is not called a number, its place from 0"""
    save_crop: Path | None = None
    """detect: folder for what is inside of each box"""
    submit: Path | None = None
    """table to write instead of a line an image: the files of one folder of images, in the order
    of their names, and the number of the label of each, counted from 0 (.csv)"""
    sample: Path | None = None
    """table whose heading and first column --submit takes over, when its rows match (.csv)"""


@dataclass(frozen=True, kw_only=True)
class Assign(Restored):
    """Which cells of the network learn which true box: a picture, and counts."""

    out: Path = Path("assigned.png")
    """picture to write: true boxes, and in their colours the centres of their cells"""
    count: int = 6
    """how many photos"""
    epoch: int = 1_000_000
    """epoch whose assigner is asked, where that changes"""


@dataclass(frozen=True, kw_only=True)
class Compare(Process):
    """Several runs side by side: one table, their validation curves, their worst failures.

    Runs that differ in their seed only get a row of mean and spread as well: after `train --seeds 5
    --out DIR`, `compare DIR/*/` has test scores, which have chosen nothing.
    For cifar10 the report is that of seed 003: limits, best network, accuracy of every epoch; for
    faces that of seed 004: its table of what the runs are, its cut-offs.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """run folders"""
    checkpoint: str = "best"
    """best, last, or a step"""
    split: str = "test"
    """part of the data: train, val, test, or what else the systems have"""
    report: Path | None = None
    """Markdown file to write: the table and, beside it, both pictures"""
    figure: Path | None = None
    """picture to write: validation loss, accuracy and IoU against the epoch, and accuracy against
    seconds"""
    failures: Path | None = None
    """picture to write: the worst six answers of each run, true boxes green, predicted boxes red"""
    classic: bool = False
    """rows for HOG features with a linear SVM and for a Haar cascade, on the data of the first run
    (objects only; pip install jaxdet[data])"""
    verified: tuple[Path, ...] = ()
    """faces: files that `verify dev` and `verify test` wrote with --out, of these runs: the report
    says which cut-offs of seed 004 they reach"""
    overwrite: bool = False
    """replace --report and its pictures"""
    json: bool = False
    """print JSON, one line a row"""


@dataclass(frozen=True, kw_only=True)
class Preview(Process):
    """A picture of training inputs with their true boxes."""

    out: Path = Path("preview.png")
    """picture to write"""
    count: int = 30
    """how many inputs"""
    before: bool = False
    """beside each, the same input before it is changed"""


@dataclass(frozen=True, kw_only=True)
class Inspect(Process):
    """What a folder of data holds: counts, sizes, boxes, rows or files that cannot be used."""

    root: str = ""
    """folder of the data: objects: images/ and annotations/; faces: a folder a person; cifar10: any
    of its forms"""
    on_bad_row: Literal["error", "skip"] = "error"
    """what a row or file that cannot be used makes of the exit code: 2, or 0"""
    json: bool = False
    """print JSON"""


@dataclass(frozen=True, kw_only=True)
class Split(Process):
    """Cut a folder of photos into training, validation and test: three tables."""

    root: str = ""
    """folder with images/ and annotations/"""
    out: Path = Path("splits")
    """folder for training_data.csv, val_data.csv and test_data.csv"""
    overwrite: bool = False
    """replace the tables in --out"""
    cut_val: float = 0.1
    """share of all photos for validation"""
    cut_test: float = 0.1
    """share of all photos for the test"""
    train_frac: float = 1.0
    """share of all photos for training, or what the others leave of them"""
    split_seed: int = 0
    """seed of the shuffle; 0 with the shares above is the split of seed 000"""


@dataclass(frozen=True, kw_only=True)
class Describe(Process):
    """Every layer of a network: type, output, weights, parameters, operations by kind, and time.

    Additions and multiplications of a convolution, maxima of pools and ReLU: the table of seed 003.
    """

    model: tyro.conf.Positional[str]
    """name of a model, or run folder"""
    input: str = ""
    """input as 1x32x32x3: images, height, width, channels; what the model is made for by default"""
    backward: bool = False
    """count a training pass: batch statistics, and the gradient by the parameters"""
    convention: Literal["flop", "mac"] = "flop"
    """total of all operations, or of multiply-adds alone, one for each pair"""
    padding: Literal["full", "valid"] = "full"
    """whether taps on padding count, as on paper, or not, as XLA counts"""
    time: bool = False
    """measure each layer, and draw the roofline plot"""
    figure: Path = Path("roofline.png")
    """roofline plot to write"""
    markdown: bool = False
    """print a Markdown table instead of aligned text"""
    json: bool = False
    """print JSON"""
    csv: bool = False
    """print comma-separated values"""
