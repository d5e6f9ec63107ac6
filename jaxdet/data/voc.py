"""Pascal VOC: `Annotations/*.xml`, `JPEGImages/`, `ImageSets/Main/{train,val,test}.txt`.

Corners in the files count pixels from 1 and include both: 1 1 1 1 is the first pixel.  Objects
marked difficult are not asked for (`crowd`).
"""

from pathlib import Path
from xml.etree import ElementTree

from jaxdet.data import detection, images
from jaxdet.errors import InputError

SETS = ("train", "val", "test")
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def find_root(root):
    """The folder at or just below `root` that has Annotations, or None."""
    folders = [Path(root), *sorted(path for path in Path(root).glob("*/"))]
    return next((path for path in folders if (path / "Annotations").is_dir()), None)


def read(root):
    """The `Scenes` of a folder.  Classes are sorted by name; without ImageSets all is `train`."""
    root = find_root(root)
    parts, bad, found = {}, [], set()
    for name, stems in _sets(root).items():
        parts[name] = []
        for stem in stems:
            try:
                image, objects = _annotation(root, stem)
            except InputError as error:
                bad.append(str(error))
                continue
            found |= {label for _, label, _ in objects}
            parts[name].append((image, objects, stem))
    classes = tuple(sorted(found))
    made = {
        name: [
            detection.annotated_image(
                image, [(box, classes.index(c), crowd) for box, c, crowd in objects], stem
            )
            for image, objects, stem in of_part
        ]
        for name, of_part in parts.items()
    }
    kept, repeats = detection.drop_repeated_images(made)
    return detection.DetectionDataset(classes, kept, (*bad, *repeats))


def _sets(root):
    """Stems of the photos of each part."""
    folder = root / "ImageSets" / "Main"
    found = {name: folder / f"{name}.txt" for name in SETS if (folder / f"{name}.txt").is_file()}
    if not found:
        return {"train": sorted(path.stem for path in (root / "Annotations").glob("*.xml"))}
    return {
        name: [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
        for name, path in found.items()
    }


def _annotation(root, stem):
    """(image path, [(box, class, difficult)]) of one file."""
    path = detection.path_inside(root, "Annotations", f"{stem}.xml")
    try:
        text = path.read_text()
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise InputError(f"{path}: entities are not read")
        tree = ElementTree.fromstring(text)
        objects = [_object(node, path, i) for i, node in enumerate(tree.findall("object"), 1)]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, named in ImageSets") from None
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable XML ({error})") from None
    return _image(root, stem, tree.findtext("filename") or ""), objects


def _image(root, stem, named):
    """The image of an annotation: by its own name, or by the one that the file gives."""
    folder = root / "JPEGImages"
    for suffix in (".jpg", ".jpeg", ".png"):
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    path = detection.path_inside(folder, named or f"{stem}.jpg")
    return path if path.suffix.lower() in images.SUFFIXES else folder / f"{stem}.jpg"


def _object(node, path, number):
    where = f"{path} object {number}"
    name, box = node.findtext("name"), node.find("bndbox")
    if not name or box is None:
        raise InputError(f"{where}: a name and a bndbox are wanted")
    try:
        x0, y0, x1, y1 = (float(box.findtext(corner)) for corner in CORNERS)
    except (TypeError, ValueError):
        raise InputError(f"{where}: bndbox wants numbers {', '.join(CORNERS)}") from None
    return (x0 - 1, y0 - 1, x1, y1), name.strip(), node.findtext("difficult", "0").strip() == "1"
