"""The cascade of MTCNN in plain loops, after Zhang et al. 2016 and the code of facenet-pytorch.

Boxes are the pixels from x0 to x1, both included and counted from 1, as in the original.
"""

import numpy as np


def detect(nets, image, min_face=20, thresholds=(0.6, 0.7, 0.7)):
    """The faces of an image [H, W, 3]: a list of (score, box [4], landmarks [5, 2]), best first.

    nets: three functions from images [N, h, w, 3] to (scores, offsets, landmarks).
    """
    pnet, rnet, onet = nets
    image = np.float64(image)
    candidates = []
    for scale in scales(*image.shape[:2], min_face):
        found = propose(pnet, image, scale, thresholds[0])
        candidates += [found[i] for i in suppress(found, 0.5, iou)]
    candidates = [candidates[i] for i in suppress(candidates, 0.7, iou)]
    boxes = [square(move(box, offsets, 0)) for _, box, offsets in candidates]
    found = []
    for box in boxes:
        score, offsets, _ = [x[0] for x in rnet(window(image, box, 24)[None])]
        if score > thresholds[1]:
            found.append((score, box, offsets))
    found = [found[i] for i in suppress(found, 0.7, iou)]
    faces = []
    for _, box, offsets in found:
        box = square(move(box, offsets, 1))
        score, offsets, points = [x[0] for x in onet(window(image, box, 48)[None])]
        if score > thresholds[2]:
            side = box[2:] - box[:2] + 1
            landmarks = np.stack([points[:5], points[5:]], 1) * side + box[:2] - 1
            faces.append((score, move(box, offsets, 1), landmarks))
    return [faces[i] for i in suppress(faces, 0.7, inclusive_iom)]


def scales(height, width, min_face):
    """The factors of the image pyramid."""
    found, scale = [], 12 / min_face
    while min(height, width) * scale >= 12:
        found.append(scale)
        scale *= 0.709
    return found


def propose(pnet, image, scale, threshold):
    """The windows of a level of the pyramid, row by row: a list of (score, box, offsets)."""
    height, width = image.shape[:2]
    level = resize(image, int(height * scale + 1), int(width * scale + 1))
    scores, offsets, _ = [x[0] for x in pnet((level[None] - 127.5) / 128)]
    found = []
    for row in range(scores.shape[0]):
        for column in range(scores.shape[1]):
            if scores[row, column] >= threshold:
                corner = 2 * np.array([column, row])
                box = np.floor(np.concatenate([corner + 1, corner + 12]) / scale)
                found.append((scores[row, column], box, offsets[row, column]))
    return found


def window(image, box, side):
    """The pixels in a box, cut at the border of the image, as normalized input of a network."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = np.trunc(box).astype(int)
    cut = image[max(y0, 1) - 1 : min(y1, height), max(x0, 1) - 1 : min(x1, width)]
    return (resize(cut, side, side) - 127.5) / 128


def resize(image, rows, columns):
    """An image in which each pixel is the mean of the pixels that it covers."""
    height, width = image.shape[:2]
    out = np.zeros((rows, columns, 3))
    for i in range(rows):
        for j in range(columns):
            top, bottom = i * height // rows, -(-(i + 1) * height // rows)
            left, right = j * width // columns, -(-(j + 1) * width // columns)
            out[i, j] = image[top:bottom, left:right].mean((0, 1))
    return out


def suppress(found, threshold, overlap):
    """Indices that remain, best first, of a list of (score, box, ...)."""
    order, kept = sorted(range(len(found)), key=lambda i: -found[i][0]), []
    for i in order:
        if all(overlap(found[i][1], found[j][1]) <= threshold for j in kept):
            kept.append(i)
    return kept


def iou(a, b):
    """Overlap of two boxes, whose sides are taken as x1 - x0."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    inter = np.maximum(sides, 0).prod()
    return inter / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inter)


def inclusive_iom(a, b):
    """Intersection over the smaller area of two boxes, whose sides are x1 - x0 + 1."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]) + 1
    areas = [(box[2:] - box[:2] + 1).prod() for box in (a, b)]
    return np.maximum(sides, 0).prod() / min(areas)


def move(box, offsets, more):
    """A box with its corners moved by fractions of its sides, which are x1 - x0 + more."""
    return box + offsets * np.tile(box[2:] - box[:2] + more, 2)


def square(box):
    """A box extended to a square."""
    sides = box[2:] - box[:2]
    low = box[:2] + sides / 2 - sides.max() / 2
    return np.concatenate([low, low + sides.max()])
