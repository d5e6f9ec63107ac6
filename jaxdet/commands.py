"""What the commands do, once their words are understood: `cli` calls these."""

import json
import signal
import sys
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

import jax

from jaxdet import checkpoint, configs, evaluate, fit, flags, parallel, roofline, runs, timing
from jaxdet import describe as describing
from jaxdet import train as training
from jaxdet.configs import base, networks
from jaxdet.data import images
from jaxdet.progress import Progress
from jaxdet.types import InputError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def train(name, options, config, words):
    """`jaxdet train SYSTEM`: a new run, or the rest of one."""
    folder, show = options.out, Progress(quiet=options.quiet)
    going_on = options.resume and runs.holds_something(folder)
    config = _absolute(config)
    if going_on:
        config = _same_config(folder, name, options, words)
    else:
        runs.vacant(folder, overwrite=options.overwrite)
    among = training.devices(config)
    system = configs.build(name, config)
    if not going_on:
        runs.start(folder)
        runs.write_config(folder, name, asdict(config), system.about)
    runs.write_environment(folder, among)
    with _signals() as caught:
        complete = fit.fit(system, config, folder, show=show, stop=lambda: bool(caught))
    if complete:
        show.line(f"{folder} is complete; see jaxdet eval {folder}, jaxdet predict {folder}")
    return 130 if signal.SIGINT in caught else 0


def _same_config(folder, name, options, words):
    """The configuration of the run; a flag that says otherwise is an error."""
    kept = _config(folder, name)
    _, asked = flags.with_config(f"train {name}", words, (options, kept))
    for field in fields(kept):
        was, now = getattr(kept, field.name), getattr(_absolute(asked), field.name)
        if was != now:
            raise InputError(
                f"--{field.name.replace('_', '-')} {now} differs from {was} of {folder}: "
                f"leave it out to resume, or start anew with another --out"
            )
    return kept


def _absolute(config):
    """A configuration that means the same data from any working directory."""
    return replace(config, root=str(Path(config.root).absolute())) if config.root else config


def _config(folder, name=None):
    """The configuration that a run was made with, of system `name` if that is given."""
    system, kept = runs.read_config(folder)
    if system not in configs.SYSTEMS or (name and system != name):
        raise InputError(f"{folder} is a run of {system!r}, wanted: {name or configs.SYSTEMS}")
    try:
        return base.from_json(configs.config(system), kept)
    except ValueError as error:
        raise InputError(
            f"{folder}/config.json: {error}; it was written by another version of jaxdet: "
            f"install that one, or train again"
        ) from None


@contextmanager
def _signals():
    """A list that collects the signals that ask for an end; a second SIGINT ends at once."""
    caught = []

    def note(number, frame):
        if number == signal.SIGINT and number in caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def restored(options, **changes):
    """(configuration, system, step, state) of a run; `changes` replace fields of the former."""
    name, _ = runs.read_config(options.run)
    config = _config(options.run)
    changes |= {"root": str(Path(options.root).absolute())} if options.root else {}
    config = replace(config, **changes)
    system = configs.build(name, config)
    if options.split not in system.splits:
        raise InputError(f"--split {options.split}: {name} has {', '.join(system.splits)}")
    like = jax.eval_shape(training.maker(system, config))
    step, state = checkpoint.restore(options.run, like, options.checkpoint, _warn)
    return config, system, step, state


def _warn(line):
    print(f"jaxdet: warning: {line}", file=sys.stderr)


def eval(options):  # named after the command
    """`jaxdet eval RUN`: scores, one `name value` a line."""
    config, system, step, state = restored(options)
    among = parallel.devices(config.devices)
    scorer = evaluate.Evaluator(system, options.split, config.eval_batch, among)
    kept = evaluate.variables(state)
    scorer.prepare(kept)
    scores, seconds = timing.clock(lambda: scorer(kept))
    scores |= evaluate.summary(scores, scorer.operations(kept), seconds)
    if options.json:
        print(json.dumps({"step": step, "split": options.split, **scores}))
    else:
        print("".join(f"{name} {value!r}\n" for name, value in scores.items()), end="")
    return 0


def predict(options):
    """`jaxdet predict RUN`: answers for image files, or samples of the data."""
    _check_picture(options.figure, options.count)
    changes = {"canvas": options.canvas} if options.canvas else {}
    _, system, _, state = restored(options, **changes)
    names = system.about["classes"]
    answer = jax.jit(partial(system.task.predict, evaluate.variables(state)))
    if options.images:
        shown = {"image": [images.grey(path) for path in options.images]}
        found = [_row(answer(image[None]), 0) for image in shown["image"]]
        titles = [str(path) for path in options.images]
    else:
        shown = evaluate.samples(system, options.split, options.count)
        answers = answer(shown["image"])
        found = [_row(answers, i) for i in range(len(shown["image"]))]
        titles = [f"{options.split}:{number}" for number in shown["id"]]
    for title, row in zip(titles, found, strict=True):
        _tell(options.json, title, names, row)
    if options.figure:
        _draw(shown, names, options.figure, found, quiet=options.json)
    return 0


def preview(name, options, config):
    """`jaxdet data preview SYSTEM`: training inputs with their true boxes."""
    _check_picture(options.out, options.count)
    system = configs.build(name, config)
    shown = evaluate.samples(system, "train", options.count, train=True, seed=config.seed)
    _draw(shown, system.about["classes"], options.out)
    return 0


def describe(options):
    """`jaxdet describe MODEL|RUN`: the layers of a network, their operations and times."""
    if options.markdown + options.json + options.csv > 1:
        raise InputError("--markdown, --json, --csv: one at a time")
    if options.time:
        _check_picture(options.figure)
        if options.convention != "flop":
            raise InputError("--time takes all operations together: leave out --convention mac")
    net, images, variables = _network(options)
    found = describing.network(
        net,
        images,
        variables,
        backward=options.backward,
        convention=options.convention,
        padding=options.padding,
    )
    rows, notes = describing.rows(found, backward=options.backward), []
    if options.time:
        notes += roofline.add(rows, found, options.figure)
    notes += describing.remarks(found.counted)
    form = next((name for name in ("json", "csv") if getattr(options, name)), "markdown")
    print(describing.text(rows, notes, form))
    if form == "csv" and notes:
        print("\n".join(notes), file=sys.stderr)
    return 0


def _network(options):
    """(network, input, shapes of its variables if it has been trained) of `jaxdet describe`."""
    if runs.is_run(options.model):
        system, _ = runs.read_config(options.model)
        named = networks.of_config(system, _config(options.model))
        made_for = jax.ShapeDtypeStruct(named.input, "float32")
        variables = jax.eval_shape(named.net.init, jax.random.key(0), made_for)
    else:
        named, variables = networks.named(options.model), None
    shape = _shape(options.input) if options.input else named.input
    return named.net, jax.ShapeDtypeStruct(shape, "float32"), variables


def _shape(text):
    """The four numbers of 1x32x32x3."""
    words = text.split("x")
    if len(words) != 4 or not all(word.isdecimal() and int(word) for word in words):
        raise InputError(f"--input {text}: images x height x width x channels, such as 1x32x32x3")
    return tuple(map(int, words))


def _check_picture(path, count=1):
    """Refuse, before anything is computed, a picture that could not be drawn."""
    from jaxdet import plots

    if count < 1:
        raise InputError(f"--count {count}: a number of at least 1 is wanted")
    if path is not None and path.suffix not in plots.SUFFIXES:
        raise InputError(f"{path}: a picture is one of {', '.join(plots.SUFFIXES)}")


def _row(answers, i):
    """Answer `i` of a batch of them, on the host."""
    return jax.tree.map(lambda leaf: leaf[i], jax.device_get(answers))


def _tell(as_json, title, names, found):
    """One answer in one line: name, label, score, x0 y0 x1 y1 in pixels."""
    label, box = names[int(found["label"])], [round(float(v), 2) for v in found["box"]]
    score = round(float(found["score"]), 4)
    if as_json:
        print(json.dumps({"image": title, "label": label, "score": score, "box": box}))
    else:
        print(title, label, score, *box)


def _draw(shown, names, path, found=None, quiet=False):
    """Pictures with what is known of them: true boxes green, those of `found` red, and labels."""
    from jaxdet import plots

    said = [[] for _ in shown["image"]]
    for i, label in enumerate(shown.get("label", ())):
        said[i].append(f"true {names[label]}")
    for i, row in enumerate(found or ()):
        said[i].append(f"predicted {names[row['label']]}")
    plots.gallery(
        shown["image"],
        path,
        titles=[", ".join(words) for words in said],
        true=shown["boxes"][:, 0] if "boxes" in shown else None,
        predicted=[row["box"] for row in found] if found else None,
    )
    if not quiet:
        print(f"wrote {path}")
