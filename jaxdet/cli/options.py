"""The options of the commands: fields are flags, the text below a field is its help."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import tyro

SuppressionType = Literal["hard", "linear", "gaussian", "nmw", "wbf"]


@dataclass(frozen=True, kw_only=True)
class Process:
    """Options of every command."""

    cache: bool = True
    """keep compiled programs in $JAXDET_CACHE, by default ~/.cache/jaxdet"""
    deterministic: bool = False
    """on a GPU, use only deterministic operations, without autotuning (slower)"""
    debug: bool = False
    """show the whole traceback of an error"""


@dataclass(frozen=True, kw_only=True)
class Train(Process):
    """Train a system into a run folder, or resume a run; `--seeds N` trains N runs like `sweep`."""

    out: Path = Path("runs")
    """run folder"""
    resume: bool = False
    """resume the run in --out, if there is one, with the options stored there"""
    overwrite: bool = False
    """replace the run in --out"""
    quiet: bool = False
    """print nothing but errors"""
    auto_batch: bool = False
    """replace --batch by the largest batch whose training step fits into memory, according to the
    compiler; nothing is run to find it; the learning rate stays as given"""
    memory: float = 0.0
    """--auto-batch: gigabytes (of 10^9 bytes) that a step may need on each device; 0: 90% of the
    memory that JAX may use on a GPU, or of the free memory of the machine"""
    track: Literal["none", "tensorboard"] = "none"
    """tensorboard: also write every number of metrics.jsonl for TensorBoard, into the folder
    tensorboard in --out; needs tensorboardX: pip install jaxdet[track]"""
    profile: int = 0
    """write a trace of this many training steps, by jax.profiler, into the folder profile in --out;
    0: no trace"""
    distributed: Literal["auto", "off"] = "auto"
    """auto: train in several processes, usually one per host, if Slurm or Open MPI has started more
    than one task, or with --coordinator; off: train in this process only; see docs/hosts.md"""
    coordinator: str = ""
    """HOST:PORT of process 0; needed if neither Slurm nor Open MPI has started the processes"""
    num_processes: int = 0
    """number of processes, with --coordinator"""
    process_id: int = -1
    """number of this process, from 0, with --coordinator"""
    peer_timeout: float = 300.0
    """seconds to wait for another process before this one ends; must be longer than any step,
    evaluation or checkpoint takes"""


@dataclass(frozen=True, kw_only=True)
class Sweep(Process):
    """Train every combination of options with several values, such as --lr 1e-3 3e-3 --seeds 3."""

    out: Path = Path("sweep")
    """folder of the runs, one folder per run, and of the table, sweep.md"""
    one_at_a_time: bool = False
    """change one option at a time: one run with the first value of every option, and one for each
    other value, with its gain over the first run"""
    grid: str = ""
    """named grid of options and values, defined by the system: cifar10 has arch, batch, aug, loss,
    opt and act; detect has ablation; faces has arch, loss, head, opt, schedule, dropout, squeeze,
    act, reference and reference_tenth"""
    resume: bool = False
    """resume the runs in --out"""
    overwrite: bool = False
    """replace the runs in --out"""
    vmap: Literal["auto", "yes", "no"] = "auto"
    """how to train runs that differ only in numbers that may be traced, such as learning rate,
    weight decay, loss weights, dropout and seed: in one vmapped program (yes), one after the other
    (no), or in the way that is measured to be faster (auto); the time of a vmapped program is
    divided equally among its runs"""
    track: Literal["none", "tensorboard"] = "none"
    """tensorboard: also write every number of metrics.jsonl for TensorBoard, into the folder
    tensorboard of each run; needs tensorboardX: pip install jaxdet[track]"""
    quiet: bool = False
    """print nothing but errors and the table"""
    json: bool = False
    """print JSON"""


@dataclass(frozen=True, kw_only=True)
class Restored(Process):
    """Options of commands that restore a checkpoint and read a split of the data.

    `ONLY` gives the systems of each option that does not apply to all systems.
    """

    ONLY: ClassVar[dict[str, tuple[str, ...]]] = {
        **dict.fromkeys(("score_threshold", "nms_iou", "nms_type"), ("detect",)),
        **dict.fromkeys(("tiles", "overlap"), ("detect",)),
        **dict.fromkeys(("classes", "save_txt", "save_json", "save_crop"), ("detect",)),
        **dict.fromkeys(("window_selection", "canvas"), ("digits",)),
        "tta": ("detect", "cifar10", "faces"),
        "show_all_images": ("digits", "objects", "cifar10", "faces"),
        "report": ("objects", "detect"),
        **dict.fromkeys(("per_image", "choose_threshold"), ("detect",)),
        **dict.fromkeys(("submit", "sample"), ("cifar10", "faces")),
    }

    run: tyro.conf.Positional[Path]
    """run folder"""
    checkpoint: str = "best"
    """best, last, or a step"""
    split: str = "test"
    """train, val, test, or another split of the data; val replaces a missing test split; `eval`
    also accepts all, which means train, val and test"""
    root: str = ""
    """folder with other data of the same classes; default: the data of the run; objects: unless the
    folder has the images of the run, all its images form the split test, and boxes are optional"""
    score_threshold: float | None = None
    """detect: minimum score of a detection; default: as in the run"""
    nms_iou: float | None = None
    """detect: NMS IoU threshold; default: as in the run"""
    nms_type: SuppressionType | None = None
    """detect: how overlapping boxes are suppressed (see `train`); default: as in the run"""
    tiles: str | None = None
    """detect: overlapping tiles into which images are cut: rows x columns, such as 2x2, or pixels,
    such as 640 (see `train`); default: as in the run"""
    overlap: float | None = None
    """detect: fraction of a tile's side that it shares with its neighbor; default: as in the run"""
    window_selection: Literal["class", "product", "merge"] | None = None
    """digits: how windows are combined into a prediction (see `train`); default: as in the run"""
    tta: bool | None = None
    """test-time augmentation: detect predicts from six views of an image, three sizes, each also
    mirrored; cifar10 and faces from an image and its mirror image; default: as in the run"""
    devices: int | None = None
    """number of devices; default: as in the run, or fewer if this machine has fewer"""
    eval_batch: int | None = None
    """images per evaluation step, over all devices; default: as in the run"""
    json: bool = False
    """print JSON"""


@dataclass(frozen=True, kw_only=True)
class Published:
    """Options that name a published detector in place of a run."""

    weights: str = ""
    """in place of RUN: weights of a published detector, a .pth or .safetensors file or
    hf:OWNER/REPO:FILE; needs --model"""
    model: str = ""
    """published detector to which --weights belong: yolox_nano, yolox_tiny, yolox_s, yolox_m,
    yolox_l or yolox_x"""


@dataclass(frozen=True, kw_only=True)
class RestoredOrPublished(Published, Restored):
    """Options of commands that take a published detector in place of a run."""

    ONLY: ClassVar[dict[str, tuple[str, ...]]] = {
        **Restored.ONLY,
        **dict.fromkeys(("weights", "model"), ("detect",)),
    }


@dataclass(frozen=True, kw_only=True)
class Eval(RestoredOrPublished):
    """Compute the scores of a checkpoint.

    On the split val, without changed options, the scores equal the values that training logged.
    """

    plots: Path | None = None
    """folder for plots: the confusion matrix; detect: also precision-recall curves, mAP,
    reliability, and the worst images by kind of error"""
    per_class: Path | None = None
    """CSV file to write: the scores of each class"""
    per_image: Path | None = None
    """detect: CSV file to write: the numbers of correct boxes (tp), wrong boxes (fp), missed
    objects (fn), and wrong boxes by kind of error, of each image, for scores of at least
    --score-threshold (default: .25)"""
    choose_threshold: str = ""
    """detect: choose the score threshold of each class on the validation split, store it in the run
    and print the scores at it; the rule is f1 (highest F1), recall=R (recall of at least R) or
    precision=P (precision of at least P)"""
    bootstrap: int = 0
    """number of resamples of the images, such as 1000, from which a 95% interval of each score is
    computed; 0: no intervals"""
    report: bool = False
    """objects, detect: print the report that the assignment of the system requires"""


@dataclass(frozen=True, kw_only=True)
class Predict(RestoredOrPublished):
    """Predictions for image files, or for samples of a split; boxes are in original pixels.

    Without --score-threshold, only detections with a score of at least .25 are printed, drawn,
    cropped and written to --save-txt; --save-json also has detections with lower scores, down to
    the threshold of the run, because COCO's evaluation needs them.
    """

    ONLY: ClassVar[dict[str, tuple[str, ...]]] = {
        **RestoredOrPublished.ONLY,
        **dict.fromkeys(("score_threshold", "nms_iou", "classes"), ("detect", "digits")),
        **dict.fromkeys(("save_txt", "save_json", "save_crop"), ("detect", "digits")),
        "multiple": ("digits",),
        "align_faces": ("faces",),
    }

    score_threshold: float | Literal["chosen"] | None = None
    """minimum score of a detection; chosen: the threshold of each class that `eval
    --choose-threshold` has stored in the run; default: see above"""
    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """image files, folders, patterns such as 'a/**/*.jpg', or (objects) .csv tables of images with
    labels and boxes; if none is given, samples of --split, read from the data"""
    filename: tuple[Path, ...] = ()
    """further images; with this option, on a computer with a display, each image opens in a window
    unless --figure or --save-dir is given"""
    show_all_images: bool = True
    """false: show only failures, which are images with a wrong label, or with a box whose IoU with
    the true box is below .5; no effect for detections"""
    save_dir: Path | None = None
    """folder for one picture per image, with true boxes in green and predicted boxes in red"""
    count: int = 30
    """number of samples"""
    multiple: bool = False
    """digits: predict every digit of an image, as detections, instead of one; --score-threshold,
    --nms-iou, --classes, --save-txt, --save-json and --save-crop then apply, as for detect"""
    align_faces: bool = False
    """faces: align the face in each image first, as `data align` does with the training data; an
    image without a face is used as it is"""
    canvas: int = 0
    """digits: side of the samples in pixels; 0: as in the run"""
    figure: Path | None = None
    """picture of all images, with true boxes in green and predicted boxes in red"""
    classes: tuple[str, ...] = ()
    """detect: classes to keep; default: all"""
    save_txt: Path | None = None
    """detect: folder for one YOLO text file per image, with a line `class x y width height score`
    per box"""
    save_json: Path | None = None
    """detect: file for all boxes in COCO's results format; category_id is the id in the data of the
    run or, without ids, counts classes from 1; image_id is the id in the data, else the number in
    the file name if all names are different numbers, else the position of the image from 0"""
    save_crop: Path | None = None
    """detect: folder for one image file per box, the image cropped to the box"""
    submit: Path | None = None
    """.csv table to write instead of printing: the predicted class index of each image in the given
    folder, sorted by file name"""
    sample: Path | None = None
    """.csv table whose rows --submit fills, in their order; the first column has the name or number
    of each image"""


@dataclass(frozen=True, kw_only=True)
class Assign(Restored):
    """The cells of a detector that are assigned to each true box: a picture, and counts."""

    out: Path = Path("assigned.png")
    """picture to write: the true boxes, and the centers of the cells assigned to each box in the
    color of the box"""
    count: int = 6
    """number of images"""
    epoch: int = 1_000_000
    """epoch whose assignment is shown, for runs with --tal-from; default: after the last epoch"""


@dataclass(frozen=True, kw_only=True)
class Audit(Restored):
    """Likely label errors: missing, misplaced, mislabeled and duplicate true boxes.

    Boxes are ranked by the scores of `jaxdet.metrics.label_errors`.  The network has learned the
    errors in its training images, and finds few of them there; audit other splits.
    """

    split: str = "test"
    """train, val, test, or another split of the data; all: all of them; val replaces a missing test
    split"""
    out: Path = Path("audit.csv")
    """.csv file to write, with the file, the row (number of the object in the file, from 1), the
    score and the box of each likely error, and the box that is suggested"""
    picture: Path | None = None
    """contact sheet of the first boxes of each kind: true boxes green, predictions red; default:
    --out with the ending .png"""
    top: int = 20
    """largest number of boxes of each kind; boxes with a score below .1 are left out"""


@dataclass(frozen=True, kw_only=True)
class Compare(Process):
    """Compare runs: one table of scores and costs, their validation curves, their worst failures.

    Runs that differ only in their seed get an additional row with mean and spread.  After
    `train --seeds 5 --out DIR`, `compare DIR/*/` shows scores of the test split, on which nothing
    was selected.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """run folders"""
    checkpoint: str = "best"
    """best, last, or a step"""
    split: str = "test"
    """train, val, test, or another split of the runs' data; val replaces a missing test split"""
    devices: int | None = None
    """number of devices; default: as in each run, or fewer if this machine has fewer"""
    eval_batch: int | None = None
    """images per evaluation step, over all devices; default: as in each run"""
    report: Path | None = None
    """Markdown report to write; it includes the pictures of --figure and --failures, which are
    written next to it by default"""
    figure: Path | None = None
    """picture to write: validation loss, accuracy and IoU against epochs, and accuracy against
    seconds"""
    failures: Path | None = None
    """picture to write: the six worst predictions of each run, with true boxes in green and
    predicted boxes in red"""
    bootstrap: int = 0
    """number of resamples of the images, such as 1000, from which 95% intervals are computed for
    the differences between the scores of each run and the scores of the first run; 0: no
    differences"""
    classic: bool = False
    """objects: add rows for two classical baselines, HOG features with a linear SVM and a Haar
    cascade, on the data of the first run (needs pip install jaxdet[data])"""
    verified: tuple[Path, ...] = ()
    """faces: files that `verify dev --out` and `verify test --out` wrote for these runs; the report
    shows which of the assignment's cut-offs their scores reach"""
    overwrite: bool = False
    """replace --report and its pictures"""
    json: bool = False
    """print JSON, one object per row"""


@dataclass(frozen=True, kw_only=True)
class Report(Process):
    """One HTML page on a run, or on several side by side, that needs no server and no network."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """run folders"""
    out: Path = Path("report.html")
    """.html file to write"""
    checkpoint: str = "best"
    """best, last, or a step"""
    split: str = "test"
    """train, val, test, or another split of the runs' data; val replaces a missing test split"""
    bootstrap: int = 1000
    """number of resamples of the images, from which a 95% interval of each score is computed; 0: no
    intervals"""
    devices: int | None = None
    """number of devices; default: as in each run, or fewer if this machine has fewer"""
    eval_batch: int | None = None
    """images per evaluation step, over all devices; default: as in each run"""
    overwrite: bool = False
    """replace --out"""


@dataclass(frozen=True, kw_only=True)
class Preview(Process):
    """A picture of training inputs with their true boxes."""

    out: Path = Path("preview.png")
    """picture to write"""
    count: int = 30
    """number of inputs"""
    before: bool = False
    """show each input also as it is before augmentation"""


@dataclass(frozen=True, kw_only=True)
class Inspect(Process):
    """Contents of a folder of data: counts, sizes, and images or rows that cannot be used."""

    root: str = ""
    """folder of the data, in any form that `train` reads"""
    on_invalid: Literal["error", "skip"] = "skip"
    """exit code if images or rows cannot be used: 0 (skip) or 2 (error)"""
    all: bool = False
    """print every remark, and every image and row that cannot be used, not only the first ten"""
    csv: Path | None = None
    """.csv file to write, with every remark, and every image and row that cannot be used"""
    json: bool = False
    """print JSON"""


@dataclass(frozen=True, kw_only=True)
class Convert(Process):
    """Write a detection data set in another format; splits and the order of classes are kept."""

    src: tyro.conf.Positional[str]
    """folder of the data, in any form that `train detect` reads, or tfds:NAME"""
    dst: tyro.conf.Positional[Path]
    """folder to write; it must be absent or empty"""
    to: Literal["coco", "voc", "yolo", "parquet"]
    """format to write"""
    format: Literal["auto", "coco", "voc", "yolo", "parquet", "labelme", "cvat", "csv"] = "auto"
    """format of the data in SRC; auto: recognize it by the files"""
    images: Literal["copy", "link"] = "copy"
    """copy image files, or make symbolic links to them; parquet files hold the images"""
    on_invalid: Literal["skip", "error"] = "skip"
    """what to do with unusable images and boxes: report them and leave them out (skip), or stop
    before anything is written (error)"""


@dataclass(frozen=True, kw_only=True)
class Align(Process):
    """Write a folder of images with their faces aligned: found, rotated, scaled and cut out.

    MTCNN finds the largest face of each image and its eyes, nose and mouth, which then have the
    same places in all images.  An image without a face is copied as it is.  The weights are read
    from the package facenet-pytorch.
    """

    src: tyro.conf.Positional[str]
    """folder or tar file of images, such as one folder per identity"""
    dst: tyro.conf.Positional[Path]
    """folder to write, with the images under the same names; it must be absent or empty"""
    size: int = 112
    """side of the aligned images in pixels"""
    on_invalid: Literal["skip", "error"] = "skip"
    """what to do with images that cannot be read: report them and leave them out (skip), or stop
    (error)"""


@dataclass(frozen=True, kw_only=True)
class Split(Process):
    """Split a folder of images into training, validation and test, written as three tables."""

    root: str = ""
    """folder with images/ and annotations/"""
    out: Path = Path("splits")
    """folder for training_data.csv, val_data.csv and test_data.csv"""
    overwrite: bool = False
    """replace the tables in --out"""
    val_fraction: float = 0.1
    """fraction of all images for validation"""
    test_fraction: float = 0.1
    """fraction of all images for the test"""
    train_fraction: float = 1.0
    """fraction of all images for training; limited to images that are not for validation or test"""
    split_seed: int = 0
    """seed of the shuffle before splitting"""


@dataclass(frozen=True, kw_only=True)
class Export(Published, Process):
    """Write a run for use elsewhere, without the state that only training needs.

    A program is compared with the run on 16 images, in a new process, before it replaces OUT.
    """

    run: tyro.conf.Positional[Path]
    """run folder, or a .jaxdet or .safetensors file"""
    out: tyro.conf.Positional[Path | None] = None
    """folder (checkpoint) or file to write; with --renew, the .jaxdet file itself by default"""
    format: Literal["checkpoint", "stablehlo", "onnx", "safetensors"] = "checkpoint"
    """checkpoint: a run folder for eval, predict, compare and verify, which cannot be resumed;
    stablehlo: a .jaxdet file with the whole program, from pixels to predictions, for predict;
    onnx: an .onnx file with the network and the decoding of its boxes, for images of the size of
    its input;
    safetensors: a .safetensors file for --weights of train"""
    checkpoint: str = "best"
    """best, last, or a step"""
    batch: int | Literal["dynamic"] = "dynamic"
    """stablehlo, onnx: images per call; dynamic: any number"""
    nms: bool | None = None
    """stablehlo, onnx: whether the program of a detector contains non-maximum suppression, or
    returns all boxes; default: true for stablehlo, false for onnx"""
    renew: bool = False
    """make the program of a .jaxdet file again, with this version of JAX"""
    overwrite: bool = False
    """replace OUT"""


@dataclass(frozen=True, kw_only=True)
class Describe(Process):
    """The layers of a network: outputs, weights, parameters, operations by kind, and times."""

    model: tyro.conf.Positional[str]
    """name of a model or system, or run folder"""
    input: str = ""
    """shape of the input, batch x height x width x channels, such as 1x32x32x3; default: the input
    of the model or run"""
    backward: bool = False
    """count training: forward pass with batch statistics, and the gradients of the parameters"""
    convention: Literal["flop", "mac"] = "flop"
    """count all operations (flop), or only multiply-adds, each as one (mac)"""
    padding: Literal["full", "valid"] = "full"
    """count operations on padding (full), or leave them out as XLA does (valid)"""
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
