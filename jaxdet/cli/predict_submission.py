"""Tables of labels of images that nobody has told the labels of, in the rows of a sample."""

from functools import partial

import jax

from jaxdet.cli import common
from jaxdet.data import verification_protocol
from jaxdet.errors import InputError
from jaxdet.training import evaluator


def read_sample(path, files):
    """The table of a sample submission; InputError, with the first, for rows that do not match."""
    table = verification_protocol.read_table(path)
    wrong = verification_protocol.mismatches(table, files)
    if wrong:
        raise InputError(f"{path}: {len(wrong)} rows do not match the images; first: {wrong[0]}")
    return table


def write(path, labels, table=None, files=None):
    """A file of labels [N]: `identities.submission`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, verification_protocol.submission_csv(labels, table, files))


def listed(options):
    """(image files of the one folder that the options name, sample or None)."""
    paths = [*options.images, *options.filename]
    if len(paths) != 1 or not paths[0].is_dir():
        raise InputError("--submit: one folder of images is wanted: jaxdet predict RUN FOLDER")
    files = verification_protocol.list_probes(paths[0])
    return files, read_sample(options.sample, files) if options.sample else None


def classified(options, config, system, state, files, table):
    """Write the number of the label of each image, its place among the classes of the run."""
    if system.many:
        raise InputError("--submit is for runs that give an image one label")
    answer = jax.jit(lambda kept, images: system.task.predict(kept, images)["label"])
    answer = partial(answer, evaluator.eval_variables(state))
    labels = common.answered(answer, system.read, config.eval_batch, files)
    write(options.submit, labels.tolist(), table, files)
    if not options.json:
        print(f"wrote {options.submit}")
    return 0
