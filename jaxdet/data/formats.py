"""Detection sets by what is in their folder: the reader of its format, found or named."""

from pathlib import Path

from jaxdet.data import coco, parquet, voc, yolo
from jaxdet.data import tfds as tfds_data
from jaxdet.errors import InputError

READERS = {"yolo": yolo, "coco": coco, "voc": voc, "parquet": parquet}


def read(root, kind="auto"):
    """The `scenes.Scenes` of a folder, or of a set of tensorflow-datasets, `tfds:NAME`.

    InputError where it is none, or has nothing of that kind.
    """
    if str(root).startswith(tfds_data.PREFIX):
        return tfds_data.read_detection(str(root).removeprefix(tfds_data.PREFIX))
    if not root or not Path(root).is_dir():
        raise InputError(f"--root {root or '(none)'}: a folder of data is wanted")
    root = Path(root)
    looks = {
        "yolo": (root / "data.yaml").is_file(),
        "coco": bool(coco.annotation_files(root)),
        "voc": voc.find_root(root) is not None,
        "parquet": bool(parquet.parquet_files(root)),
    }
    kinds = [name for name, there in looks.items() if there]
    found = (kinds[0] if kinds else "") if kind == "auto" else kind
    if not looks.get(found):
        raise InputError(
            f"--root {root}: no {found or 'known'} data; data.yaml (YOLO), annotations/*.json or "
            "PART/_annotations.coco.json (COCO), Annotations/*.xml (VOC) or *.parquet is wanted"
        )
    return READERS[found].read(root)
