"""What the commands do, once their words are understood: `cli` calls these."""

import json
import signal
import sys
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import partial

import jax

from jaxdet import checkpoint, cli, configs, evaluate, fit, parallel, plots, runs
from jaxdet import train as training
from jaxdet.configs import base
from jaxdet.data import images
from jaxdet.progress import Progress
from jaxdet.types import InputError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def train(name, options, config, words):
    """`jaxdet train SYSTEM`: a new run, or the rest of one."""
    folder, show = options.out, Progress(quiet=options.quiet)
    going_on = options.resume and (folder / "config.json").exists()
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
    _, asked = cli.with_config(f"train {name}", words, (options, kept))
    for field in fields(kept):
        was, now = getattr(kept, field.name), getattr(asked, field.name)
        if was != now:
            raise InputError(
                f"--{field.name.replace('_', '-')} {now} differs from {was} of {folder}: "
                f"leave it out to resume, or start anew with another --out"
            )
    return kept


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
    changes |= {"root": str(options.root.absolute())} if options.root else {}
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
    scores = scorer(evaluate.variables(state))
    if options.json:
        print(json.dumps({"step": step, "split": options.split, **scores}))
    else:
        print("".join(f"{name} {value!r}\n" for name, value in scores.items()), end="")
    return 0


def predict(options):
    """`jaxdet predict RUN`: answers for image files, or samples of the data."""
    changes = {"canvas": options.canvas} if options.canvas else {}
    config, system, _, state = restored(options, **changes)
    names = system.about["classes"]
    answer = jax.jit(partial(system.task.predict, evaluate.variables(state)))
    if options.images:
        for path in options.images:
            _tell(options, path, names, _first(answer(images.grey(path)[None])))
        return 0
    batch = evaluate.samples(system, options.split, options.count)
    found = jax.device_get(answer(batch["image"]))
    for i, number in enumerate(batch["id"]):
        _tell(options, f"{options.split}:{number}", names, jax.tree.map(lambda v, i=i: v[i], found))
    if options.figure:
        _draw(batch, names, options.figure, found)
    return 0


def preview(name, options, config):
    """`jaxdet data preview SYSTEM`: training inputs with their true boxes."""
    system = configs.build(name, config)
    batch = evaluate.samples(system, "train", options.count, train=True, seed=config.seed)
    _draw(batch, system.about["classes"], options.out)
    return 0


def _first(found):
    return jax.tree.map(lambda v: v[0], jax.device_get(found))


def _tell(options, name, names, found):
    """One answer in one line: name, label, score, x0 y0 x1 y1 in pixels."""
    label, box = names[int(found["label"])], [round(float(v), 2) for v in found["box"]]
    score = round(float(found["score"]), 4)
    if options.json:
        print(json.dumps({"image": str(name), "label": label, "score": score, "box": box}))
    else:
        print(name, label, score, *box)


def _draw(batch, names, path, found=None):
    """The pictures of a batch, true boxes green and those of `found` red, labels in the titles."""
    titles = [f"true {names[t]}" for t in batch["label"]]
    if found is not None:
        titles = [f"{t}, predicted {names[p]}" for t, p in zip(titles, found["label"], strict=True)]
    plots.gallery(
        batch["image"],
        path,
        titles=titles,
        true=batch["boxes"][:, 0],
        predicted=None if found is None else found["box"],
    )
    print(f"wrote {path}")
