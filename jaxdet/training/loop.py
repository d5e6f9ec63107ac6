"""The only training loop: a run folder, from its last checkpoint to its end."""

import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

from jaxdet.data import sampler
from jaxdet.training import checkpoint, evaluator, host_init, parallel, progress, run_dir
from jaxdet.training import state as training_state
from jaxdet.training.step import train_step


class DivergedError(RuntimeError):
    """The loss or its gradient is no longer a number; the last good checkpoint stands."""


class StopRequested(BaseException):
    """A signal asked the run to save and end; raised between two batches."""


def fit(system, config, folder, *, show, stop=lambda: False, programs=None):
    """Train `system` as `config` says in the run `folder`, from its last checkpoint if it has one.

    `show` is a `progress.Progress`; `stop()` turning true saves and ends; `programs` are those of
    the system if they are made already.  Returns True when the run is complete.  Raises
    `DivergedError` when the loss stops being finite.
    """
    loop = Loop(programs or Programs(system, config), system, config, folder, show, stop)
    show.begin(loop.at * config.batch, loop.plan.steps * config.batch)
    try:
        while not loop.complete():
            loop.epoch()
    except StopRequested:
        loop.save(None)
        show.line(f"stopped at step {loop.at} of {loop.plan.steps}")
        return False
    finally:
        show.close()
    draw(folder)
    return True


def draw(folder):
    """The curves of a run, from its metrics if it has any, in `plots/convergence.png`."""
    # Imported here: the first step need not wait half a second for matplotlib.
    from jaxdet.plots import training as training_plots

    if metrics := run_dir.read_metrics(folder):
        training_plots.learning_curves(metrics, Path(folder) / "plots" / "convergence.png")


class Programs:
    """What runs share that differ in `train.numbers` and seeds only: data, step, evaluator.

    `before` are other programs: data that they have on the same devices are not put there again.
    """

    def __init__(self, system, config, before=None):
        self.among = training_state.devices(config)
        self.plan = training_state.plan(config, len(system.splits["train"]))
        sources = [system.splits[part].arrays for part in ("train", "val")]
        self.placed = [(arrays, self._put(arrays, before)) for arrays in sources]
        (_, self.data), (_, held_out) = self.placed
        batch = config.eval_batch
        self.evaluator = evaluator.Evaluator(system, "val", batch, self.among, held_out)
        self.pure = partial(
            train_step,
            task=system.task,
            optimizer=training_state.optimizer(config, self.plan, system.learns),
            plan=self.plan,
        )
        self.steps = [
            parallel.compiled(partial(self.pure, scale=scale), self.among, whole=2, donate=(0,))
            for scale in system.scales
        ]

    def _put(self, arrays, before):
        """The arrays of a source on the devices."""
        known = before.placed if before and before.among == self.among else ()
        found = [placed for same, placed in known if same is arrays]
        return found[0] if found else parallel.put(arrays, self.among)


class Loop:
    """A run on its way: its programs, and where it stands."""

    def __init__(self, programs, system, config, folder, show, stop):
        self.config, self.folder, self.show, self.stop = config, folder, show, stop
        self.programs, self.among = programs, programs.among
        self.source, self.order = system.splits["train"], system.order or sampler.shuffled_batches
        self.plan = training_state.plan(config, len(self.source))
        self.hparams = parallel.put(system.hparams, self.among)
        self.rate = training_state.learning_rate(config, self.plan)
        self._start(training_state.maker(system, config), system.weights)
        self.stepped, self.operations = False, None
        self.together = 1  # runs in the program that trained it, whose seconds they share
        self.saved = self.began = self.drawn = time.monotonic()

    def _start(self, make, weights):
        """The state to go on from, on the devices; metrics of later steps are forgotten."""
        if checkpoint.steps(self.folder):
            _, state = checkpoint.restore(self.folder, jax.eval_shape(make), warn=self.show.line)
        else:
            state = host_init.evaluate(make)
            state = training_state.begun_from(state, weights) if weights else state
        run_dir.drop_metrics(self.folder, int(state.bookkeeping["evaluated"]))
        self.at = int(state.step)
        self.state = parallel.put(state, self.among)

    def complete(self):
        """Whether the last step, or patience, is at its end and evaluated."""
        book = jax.device_get(self.state.bookkeeping)
        if book["evaluated"] != self.at:
            return False
        patience = self.config.patience
        return self.at >= self.plan.steps or bool(patience and book["waited"] >= patience)

    def epoch(self):
        """Evaluate what is due, then train to the end of the epoch and evaluate again."""
        if self.due():
            self.evaluate()
        elif self.at < self.plan.steps:
            self._train()

    def due(self):
        """Whether the state is to be evaluated before the next step: between epochs, once."""
        between = self.at % self.plan.epoch_steps == 0 and (self.config.eval_first or self.at > 0)
        return between and int(self.state.bookkeeping["evaluated"]) != self.at

    def _train(self):
        """Steps to the end of the epoch, from wherever in it the run stands."""
        number = self.at // self.plan.epoch_steps
        self.began = time.monotonic()
        for row in self.source.batches(self.rows()):
            self._pause()
            step = self.programs.steps[self._size()]
            self.state = step(self.state, self.programs.data, row)
            self.at += 1
            if not self.stepped:
                self._first_step()
            self.show.advance(self.config.batch)
            if self.show.due():
                self._look(number)
        self._look(number)

    def rows(self):
        """Indices of the batches from here to the end of the epoch, [steps, B]."""
        number, start = divmod(self.at, self.plan.epoch_steps)
        count, batch = len(self.source), self.config.batch
        return self.order(self.config.seed, number, count, batch)[start:]

    def _size(self):
        """Which of the sizes of training images the next step has."""
        return sampler.draw_size(self.config.seed, self.at, len(self.programs.steps))

    def _first_step(self):
        """Say how long the start took: imports, data, compilation."""
        jax.block_until_ready(self.state.step)
        self.stepped, seconds = True, progress.since_start()
        if seconds is not None:
            self.show.line(f"first step done {seconds:.1f} s after the start of the program")

    def _pause(self):
        if self.stop():
            raise StopRequested
        if time.monotonic() - self.saved > 60 * self.config.save_minutes:
            self.save(None)

    def _look(self, epoch):
        """Show the running means of the loss terms."""
        self.show.terms(epoch + 1, self.config.epochs, _means(self._book()))

    def _book(self):
        """The book on the host; `DivergedError` when the loss is no longer a number."""
        book = jax.device_get(self.state.bookkeeping)
        if book["bad_step"] < 0:
            return book
        names = [*sorted(book["sums"]), "gradient"]
        last = checkpoint.steps(self.folder)
        good = f"checkpoint {last[-1]}" if last else "none: no epoch was completed"
        raise DivergedError(
            f"step {book['bad_step']}: {names[int(book['bad_term'])]} is not finite; last good "
            f"state: {good} of {self.folder}; try a lower --lr, or --clip 1"
        )

    def evaluate(self):
        """Score the state, note it in the book and in `metrics.jsonl`, and save it."""
        book = self._book()
        trained = time.monotonic() - self.began if book["count"] else 0.0
        kept = evaluator.variables(self.state)
        if self.operations is None:
            self.operations = self.programs.evaluator.operations(kept)
        begun = time.monotonic()
        epoch = evaluator.epoch(self.state)
        scores = self.programs.evaluator(kept, epoch, self._pause, self.hparams)
        seconds = {"train": trained, "eval": time.monotonic() - begun}
        score = (float(np.float32(scores[self.config.best])), float(np.float32(scores["loss"])))
        means = _means(book) if book["count"] else None
        book = self._dropped(_scored(book, self.at, score), score)
        line = {
            "step": self.at,
            "epoch": self.at // self.plan.epoch_steps,
            "lr": float(self.rate(self.at // self.plan.accumulate) * training_state.scale_of(book)),
            "train": means,
            "val": scores,
            "time": seconds,
            **({"together": self.together} if self.together > 1 else {}),
        }
        run_dir.append_metrics(self.folder, line)
        self.state = self.state.replace(bookkeeping=parallel.put(book, self.among))
        self.save(score)
        summary = evaluator.summary(scores, self.operations, seconds["eval"])
        self.show.line(_sentence(line, self.config, book, summary))
        self._draw()

    def _dropped(self, book, score):
        """The book after an evaluation, with the learning rate that a plateau leaves."""
        if "plateau" not in book:
            return book
        value = {"loss": score[1], "score": 1 - score[0]}[self.config.plateau_metric]
        rule = training_state.plateau(self.config)
        _, after = rule.update(training_state.ZERO, book["plateau"], value=np.float32(value))
        return book | {"plateau": jax.device_get(after)}

    def _draw(self):
        """Redraw the curves, at most twice a minute, and not before the first step."""
        if time.monotonic() - self.drawn > 30:
            draw(self.folder)
            self.drawn = time.monotonic()
        self.began = time.monotonic()

    def save(self, score):
        """Write a checkpoint of the state; without a score, only if this step has none yet."""
        self._book()
        if score is not None or self.at not in checkpoint.steps(self.folder):
            checkpoint.save(self.folder, self.at, self.state, score=score)
        self.saved = time.monotonic()


def _scored(book, step, score):
    """The book after an evaluation: sums begin again, the best is kept, patience counted."""
    better = (score[0], -score[1]) > (float(book["best_score"]), -float(book["best_loss"]))
    book = book | {
        "sums": {name: np.float32(0) for name in book["sums"]},
        "count": np.int32(0),
        "evaluated": np.int32(step),
        "waited": np.int32(0 if better else book["waited"] + 1),
    }
    if better:
        book |= {"best_score": np.float32(score[0]), "best_loss": np.float32(score[1])}
        book |= {"best_step": np.int32(step)}
    return book


def _means(book):
    """Means of the loss terms over the steps since the last evaluation."""
    return {name: float(total) / max(int(book["count"]), 1) for name, total in book["sums"].items()}


def _sentence(line, config, book, summary):
    """One evaluation in one line."""
    parts = [f"epoch {line['epoch']}/{config.epochs}"]
    for split in ("train", "val"):
        if line[split]:
            numbers = {k: v for k, v in line[split].items() if isinstance(v, float)}
            parts.append(split + "".join(f" {k} {v:.4g}" for k, v in numbers.items()))
    if int(book["best_step"]) == line["step"]:
        parts.append(f"best {config.best}")
    parts.append(f"{line['time']['train']:.1f} + {line['time']['eval']:.1f} s")
    wrong = f"error {summary['error_rate']:.4g}, " if "error_rate" in summary else ""
    speed = summary["operations_per_second"] / 1e9
    parts.append(f"{wrong}{summary['operations'] / 1e9:.4g} Gop, {speed:.4g} Gop/s")
    return " | ".join(parts)
