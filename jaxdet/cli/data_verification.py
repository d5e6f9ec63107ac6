"""`jaxdet data verification`: seed 004's folders for verification from a folder a person."""

import numpy as np

from jaxdet.data import image_folder, verification_protocol
from jaxdet.errors import InputError
from jaxdet.training import run_dir

PARTS = ("dev", "test")


def run(options):
    """Write classification/, known/, unknown_dev/, unknown_test/ and their tables."""
    people = _people(options)
    random = np.random.default_rng(options.seed)
    names = [list(people)[i] for i in random.permutation(len(people))]
    ends = np.cumsum([options.known, options.strangers])
    known, strangers, learnt = (part.tolist() for part in np.split(np.array(names), ends))
    for name in learnt:
        for row in people[name]:
            _copy(row, options.out / "classification" / name / row.file)
    probes = {part: [] for part in PARTS}
    for group, label, each in (
        (known, None, options.each),
        (strangers, verification_protocol.UNKNOWN_LABEL, 0),
    ):
        first = max(1, round(options.dev * len(group))) if len(group) > 1 else 0
        for number, name in enumerate(group):
            rows = [people[name][i] for i in random.permutation(len(people[name]))]
            for row in rows[:each]:
                _copy(row, options.out / "known" / name / row.file)
            part = PARTS[number >= first]
            probes[part] += [(row, label or name) for row in rows[each:]]
    for part, pairs in probes.items():
        _write(options.out, part, [pairs[i] for i in random.permutation(len(pairs))])
    counts = {"learnt": len(learnt), "known": len(known), "strangers": len(strangers)}
    counts |= {f"unknown_{part}": len(pairs) for part, pairs in probes.items()}
    print("".join(f"{name} {count}\n" for name, count in counts.items()), end="")
    return 0


def _people(options):
    """{name: rows} of all people, when they are enough and have images enough."""
    if not options.root:
        raise InputError("--root: the folder with a folder of images a person is wanted")
    if run_dir.is_occupied(options.out):
        raise InputError(f"{options.out} is not empty; choose another --out")
    if options.known < 2 or options.strangers < 2 or options.each < 1 or not 0 < options.dev < 1:
        raise InputError(
            f"--known {options.known} --strangers {options.strangers} --each {options.each} --dev "
            f"{options.dev}: at least 2, 2 and 1 are wanted, and a share between 0 and 1"
        )
    found = image_folder.read(options.root)
    people = {name: [] for name in found.classes}
    for rows in found.splits.values():
        for row in rows:
            people[row.label].append(row)
    wanted = options.known + options.strangers + 2
    if len(people) < wanted:
        raise InputError(
            f"{options.root}: {len(people)} people; --known {options.known} and --strangers "
            f"{options.strangers} want {wanted}, two of them to learn"
        )
    few = [name for name, rows in people.items() if len(rows) <= options.each]
    if few or verification_protocol.UNKNOWN_LABEL in people:
        name = few[0] if few else verification_protocol.UNKNOWN_LABEL
        why = f"{len(people[name])} images, more than {options.each} are wanted"
        why = why if few else "this name is for strangers"
        raise InputError(f"{options.root}: {name}: {why}")
    return people


def _write(out, part, probes):
    """The images of a part, named by their places, their truth, and a table to fill in."""
    for i, (row, _) in enumerate(probes):
        _copy(row, out / f"unknown_{part}" / f"{i:05d}.{row.file.rpartition('.')[2]}")
    labels = [label for _, label in probes]
    run_dir.write_file(
        out, f"verification_{part}.csv", verification_protocol.submission_csv(labels)
    )
    if part == "test":
        blank = verification_protocol.submission_csv(
            [verification_protocol.UNKNOWN_LABEL] * len(probes)
        )
        run_dir.write_file(out, "verification_sample_submission.csv", blank)


def _copy(row, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_folder.file_bytes(row.image))
