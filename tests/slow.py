"""Slow twins: what the vectorised operations compute, as the obvious loops, in NumPy."""

import numpy as np


def iou(a, b, eps=0.0):
    """Intersection over union of two boxes [4]; 0 where the union is empty."""
    shared, union = _shared_and_union(a, b)
    return shared / (union + eps) if union > 0 else 0.0


def giou(a, b, eps=0.0):
    """IoU of two boxes [4], less the share of the box around them that neither covers."""
    _, union = _shared_and_union(a, b)
    x0, y0, x1, y1 = hull(a, b)
    around = (x1 - x0) * (y1 - y0)
    return iou(a, b, eps) - ((around - union) / (around + eps) if around > 0 else 0.0)


def diou(a, b, eps=0.0):
    """IoU of two boxes [4], less (distance of the centres / diagonal of the box around them)^2."""
    x0, y0, x1, y1 = hull(a, b)
    diagonal = (x1 - x0) ** 2 + (y1 - y0) ** 2
    right = (a[0] + a[2]) / 2 - (b[0] + b[2]) / 2
    down = (a[1] + a[3]) / 2 - (b[1] + b[3]) / 2
    far = (right**2 + down**2) / (diagonal + eps) if diagonal > 0 else 0.0
    return iou(a, b, eps) - far


def ciou(a, b, eps=0.0):
    """DIoU of two boxes [4], less alpha times v, the squared difference of their angles."""
    angles = [np.arctan2(max(0, box[2] - box[0]), max(0, box[3] - box[1])) for box in (a, b)]
    v = 4 / np.pi**2 * (angles[0] - angles[1]) ** 2
    alpha = v / (1 - iou(a, b, eps) + v + eps) if v > 0 else 0.0
    return diou(a, b, eps) - alpha * v


def hull(a, b):
    """Smallest box [4] around the corners of two boxes [4]."""
    x, y = [*a[::2], *b[::2]], [*a[1::2], *b[1::2]]
    return min(x), min(y), max(x), max(y)


def _shared_and_union(a, b):
    """Areas of the intersection and of the union of two boxes [4]."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [max(0, box[2] - box[0]) * max(0, box[3] - box[1]) for box in (a, b)]
    return width * height, sum(areas) - width * height


def distance_box_iou_loss(predicted, true, eps=1e-7):
    """Losses [N] of boxes [N, 4], one by one, with torchvision's eps in both denominators."""
    pairs = zip(predicted.tolist(), true.tolist(), strict=True)
    return np.array([1 - diou(a, b, eps) for a, b in pairs])


def tight_box(image):
    """Box [4] around the lit pixels of an image [H, W], pixel by pixel; zeros where none is lit."""
    height, width = image.shape
    lit = [(x, y) for y in range(height) for x in range(width) if image[y, x] > 0]
    if not lit:
        return np.zeros(4)
    columns, rows = zip(*lit, strict=True)
    return np.array([min(columns), min(rows), max(columns) + 1, max(rows) + 1])


def windows_of_chain(chain, size):
    """(first pixel, one past the last) that each output of a chain reads, padding included.

    Walks the number of outputs forwards and, from each output, the set of what it reads backwards.
    """
    for _, kernel, stride, padding in chain:
        size = len(range(-padding, size + padding - kernel + 1, stride)) if size else 0
    return [_reads(chain, output) for output in range(size)]


def _reads(chain, output):
    """Hull of the pixels that one output reads."""
    pixels = {output}
    for _, kernel, stride, padding in reversed(chain):
        pixels = {p * stride - padding + tap for p in pixels for tap in range(kernel)}
    return min(pixels), max(pixels) + 1


def cut(image, window, stride):
    """Windows [rows, columns, window, window, C] of an image [H, W, C], one slice at a time."""
    height, width = image.shape[:2]
    return np.array(
        [
            [
                image[top : top + window, left : left + window]
                for left in range(0, width - window + 1, stride)
            ]
            for top in range(0, height - window + 1, stride)
        ]
    )


def encode_targets(boxes, labels, window, stride, rows, columns):
    """Targets [N, rows, columns, 6] of one box [N, 4] and label [N] an image, by three loops."""
    targets = np.zeros((len(boxes), rows, columns, 6))
    for n in range(len(boxes)):
        x0, y0, x1, y1 = boxes[n]
        for h in range(rows):
            for w in range(columns):
                top, left = h * stride, w * stride
                across = max(x0, left) < min(x1, left + window)
                down = max(y0, top) < min(y1, top + window)
                if across and down:
                    corners = np.array([x0 - left, y0 - top, x1 - left, y1 - top])
                    targets[n, h, w] = [1, labels[n], *corners / window]
    return targets


def turned(digit, angle, zoom, side):
    """Digit [h, w] turned counter-clockwise by `angle` radians about its ink's centre and scaled.

    Pixel by pixel of [side, side]: where in the digit it comes from, and the blend found there.
    """
    x0, y0, x1, y1 = tight_box(digit)
    middle = np.array([x0 + x1, y0 + y1]) / 2
    patch = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            x, y = (np.array([column, row]) + 0.5 - side // 2 - middle % 1) / zoom
            from_x = middle[0] + np.cos(angle) * x - np.sin(angle) * y - 0.5
            from_y = middle[1] + np.sin(angle) * x + np.cos(angle) * y - 0.5
            patch[row, column] = _blend(digit, from_y, from_x)
    return patch


def _blend(image, row, column):
    """Bilinear value between the four pixels around a place; those outside the image are 0."""
    height, width = image.shape
    top, left = int(np.floor(row)), int(np.floor(column))
    near = [(y, x) for y in (top, top + 1) for x in (left, left + 1)]
    inside = [(y, x) for y, x in near if 0 <= y < height and 0 <= x < width]
    return sum(image[y, x] * (1 - abs(row - y)) * (1 - abs(column - x)) for y, x in inside)


def localisation_loss(raw, target, gate="both"):
    """The three sums of seed 001's loss for raw outputs [R, C, 15] and targets [R, C, 6]."""
    detection = classification = regression = 0.0
    for out, (here, label, *box) in zip(raw.reshape(-1, 15), target.reshape(-1, 6), strict=True):
        chance = 1 / (1 + np.exp(-out[0]))
        detection -= np.log(chance if here == 1 else 1 - chance)
        if here == 1 and (chance > 0.5 or gate == "truth"):
            classification -= out[1 + int(label)] - np.log(np.exp(out[1:11]).sum())
            regression += sum((a - b) ** 2 for a, b in zip(out[11:], box, strict=True)) / 4
    return {"detection": detection, "classification": classification, "regression": regression}


def best_window(raw, corners, product=False):
    """(label, box) of the surest of the windows of raw [R, C, 15]; the first among equals."""
    best = None
    for out, window in zip(raw.reshape(-1, 15), corners.reshape(-1, 4), strict=True):
        sure = max(out[1:11]) - np.log(np.exp(out[1:11]).sum())
        if product:
            sure -= np.log1p(np.exp(-out[0]))
        if best is None or sure > best[0]:
            side = window[2] - window[0]
            box = [window[i % 2] + side * out[11 + i] for i in range(4)]
            best = sure, int(np.argmax(out[1:11])), box
    return best[1:]


def taps(sizes, windows, strides, pads, bases, dilations):
    """(taps on pixels, taps on padding) of each place of a window that slides over an image.

    Everything is a pair, rows and columns.  `bases` spread the pixels, and the padding that goes
    on with them, with holes in between, on which a tap is neither.
    """
    axes = zip(sizes, windows, strides, pads, bases, dilations, strict=True)
    rows, columns = (list(_places(*axis)) for axis in axes)
    found = []
    for down in rows:
        for across in columns:
            kinds = [_kind((y, x), sizes, bases) for y in down for x in across]
            found.append((kinds.count("pixel"), kinds.count("padding")))
    return found


def _places(size, window, stride, pads, base, dilation):
    """Where the taps of each window lie along an axis."""
    start, end = -pads[0], (size - 1) * base + 1 + pads[1]
    while start + (window - 1) * dilation < end:
        yield [start + tap * dilation for tap in range(window)]
        start += stride


def _kind(place, sizes, bases):
    """What there is at a place [2] of a spread and padded image."""
    if any(p % base for p, base in zip(place, bases, strict=True)):
        return "hole"
    last = [(size - 1) * base for size, base in zip(sizes, bases, strict=True)]
    return "pixel" if all(0 <= p <= q for p, q in zip(place, last, strict=True)) else "padding"


def max_pool_gradient(x, g, kernel, stride, padding):
    """Gradient [B, H, W, C] by the image of a max pool; the largest of a window share evenly."""
    x, out = np.asarray(x, float), np.zeros(np.shape(x))
    batch, height, width, channels = x.shape
    for b, r, c, d in np.ndindex(*np.shape(g)):
        places = [
            (b, i, j, d)
            for i in range(r * stride - padding, r * stride - padding + kernel)
            for j in range(c * stride - padding, c * stride - padding + kernel)
            if 0 <= i < height and 0 <= j < width
        ]
        largest = [place for place in places if x[place] == max(x[p] for p in places)]
        for place in largest:
            out[place] += g[b, r, c, d] / len(largest)
    return out


def adaptive_mean_pool(x, side):
    """Means [B, side, side, C] of x [B, H, W, C]: of the pixels that each part of the map meets."""
    x = np.asarray(x, float)
    rows, columns = (_met(length, side) for length in x.shape[1:3])
    return np.stack(
        [np.stack([x[:, r][:, :, c].mean((1, 2)) for c in columns], 1) for r in rows], 1
    )


def _met(length, count):
    """The pixels of a line that each of `count` equal parts of it covers, if only in part."""
    return [
        [p for p in range(length) if p * count < (i + 1) * length and (p + 1) * count > i * length]
        for i in range(count)
    ]


def labelled_box_losses(logits, label, box, true, kind, smoothing=0.0):
    """(cross entropy, box loss) of one photo: logits [K], boxes [4] in shares of the photo."""
    entropy = label_loss("cross_entropy", logits, wanted(label, len(logits), smoothing))
    apart = [abs(float(a) - float(b)) for a, b in zip(box, true, strict=True)]
    if kind == "mse":
        return entropy, sum(d**2 for d in apart) / 4
    if kind == "smooth_l1":
        return entropy, sum(d**2 / 2 if d < 1 else d - 0.5 for d in apart) / 4
    overlap = {"iou": iou, "giou": giou, "diou": diou, "ciou": ciou}[kind]
    return entropy, 1 - overlap(np.asarray(box, float), np.asarray(true, float), eps=1e-7)


def labelled_box_scores(photos):
    """Scores of a list of photos {"label", "predicted", "iou", "distance"}, one after the other."""
    right = good = better = 0
    for photo in photos:
        right += photo["label"] == photo["predicted"]
        good += photo["iou"] > 0.5
        better += photo["iou"] > 0.7
    count, ious = len(photos), sorted(float(photo["iou"]) for photo in photos)
    return {
        "count": count,
        "correct": right,
        "accuracy": right / count,
        "iou": sum(ious) / count,
        "iou_median": (ious[(count - 1) // 2] + ious[count // 2]) / 2,
        "right_iou": sum(p["iou"] for p in photos if p["label"] == p["predicted"]) / count,
        "iou50": good / count,
        "iou70": better / count,
        "distance": sum(float(photo["distance"]) for photo in photos) / count,
    }


def label_loss(kind, logits, wanted):
    """The loss of one image: logits [K], and the shares [K] of the classes that are wanted."""
    logits = [float(logit) for logit in logits]
    whole, loss = sum(np.exp(logit) for logit in logits), 0.0
    if kind == "hinge":
        pairs = list(zip(logits, wanted, strict=True))
        own = sum(out * share for out, share in pairs)
        return sum(max(out + 1 - share - own, 0) for out, share in pairs) / len(pairs)
    for logit, share in zip(logits, wanted, strict=True):
        chance, alone = np.exp(logit) / whole, 1 / (1 + np.exp(-logit))
        loss += {
            "cross_entropy": -share * np.log(chance),
            "binary": -share * np.log(alone) - (1 - share) * np.log(1 - alone),
            "squared": (chance - share) ** 2,
        }[kind]
    return loss


def wanted(label, count, smoothing=0.0):
    """What an image is to be taken for [K]: its label, less what is shared among all classes."""
    return [(1 - smoothing) * (k == label) + smoothing / count for k in range(count)]


def mixed(rows, shares):
    """Rows [B, ...], each mixed with the next one, the last with the first, by shares [B]."""
    count = len(rows)
    return [shares[i] * rows[i] + (1 - shares[i]) * rows[(i + 1) % count] for i in range(count)]


def covered(image, draw, grey, side):
    """Image [H, W, C] with rectangles in grey; draw [n, 4]: middles and sides, in [0, 1]."""
    image, (height, width, _) = np.array(image), image.shape
    for down, across, tall, wide in draw:
        for row, column in np.ndindex(height, width):
            near = abs(row + 0.5 - down * height) < tall * height * side / 2
            if near and abs(column + 0.5 - across * width) < wide * width * side / 2:
                image[row, column] = grey
    return image


def moved(image, down, across):
    """Image [H, W, C] whose pixels came from so many rows further down and columns across."""
    out, (height, width, _) = np.zeros_like(image), image.shape
    for row, column in np.ndindex(height, width):
        if 0 <= row + down < height and 0 <= column + across < width:
            out[row, column] = image[row + down, column + across]
    return out


def restarts(rate, cycle, grow, count):
    """Learning rates of `count` updates: cosines to 0, of `cycle` updates, then `grow` as many."""
    rates, done = [], 0
    for _ in range(count):
        rates.append(rate * (1 + np.cos(np.pi * done / cycle)) / 2)
        done += 1
        if done == cycle:
            done, cycle = 0, cycle * grow
    return rates


def plateau(values, drop, patience):
    """What is left of a rate after each of some values, of which less is better."""
    best, waited, scale, scales = np.inf, 0, 1.0, []
    for value in values:
        if value < (1 - 1e-4) * best:
            best, waited = value, 0
        else:
            waited += 1
        if waited == patience:
            waited, scale = 0, scale * drop
        scales.append(scale)
    return scales
