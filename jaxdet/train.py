"""The only training loop: `create` a state, `train_step` it, `fit` a run folder."""

import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdet import checkpoint, evaluate, optim, parallel, plots, progress, runs
from jaxdet.data import batches
from jaxdet.ops import keys
from jaxdet.types import At, TrainState


class DivergedError(RuntimeError):
    """The loss or its gradient is no longer a number; the last good checkpoint stands."""


class StopRequested(BaseException):
    """A signal asked the run to save and end; raised between two batches."""


class Plan(NamedTuple):
    """The static numbers of a run: how long it is, and what a step does besides the gradient."""

    epoch_steps: int
    steps: int
    accumulate: int
    ema: float


def plan(config, count):
    """The plan of `config` for a training set of `count` rows."""
    epoch_steps = -(-count // config.batch)
    return Plan(epoch_steps, config.epochs * epoch_steps, config.accumulate, config.ema)


def learning_rate(config, plan):
    """The schedule of `config`: update number -> learning rate."""
    return optim.schedule(
        config.schedule,
        rate=config.lr,
        steps=max(plan.steps // plan.accumulate, 1),
        warmup=config.warmup,
        drops=config.drops,
        drop=config.drop,
    )


def optimizer(config, plan):
    """The optax transformation of `config`."""
    return optim.optimizer(
        config.optimizer,
        learning_rate(config, plan),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        clip=config.clip,
        accumulate=plan.accumulate,
    )


def maker(system, config):
    """The function of no arguments that makes the state before the first step.

    Trace it with `eval_shape` to know what a checkpoint of the run holds.
    """
    arrays = system.splits["train"].arrays
    chosen = optimizer(config, plan(config, len(system.splits["train"])))
    return partial(
        create,
        {name: column[:1] for name, column in arrays.items()},
        {name: np.float32(value) for name, value in system.hyper.items()},
        task=system.task,
        optimizer=chosen,
        seed=config.seed,
        ema=config.ema,
    )


def create(data, hyper, *, task, optimizer, seed, ema):
    """The state before the first step; `data` gives the shapes of a batch.

    Traceable: `jit` it to make the state, `eval_shape` it to know what a checkpoint holds.
    """
    root = jax.random.key(seed)
    at = At(True, jnp.int32(0), jnp.int32(0), hyper)
    batch = _blank_batch(data, task, at)
    made = task.init(keys.chain(root, keys.INIT), batch)
    params, stats = made["params"], made.get("batch_stats", {})
    _, (_, terms) = jax.eval_shape(lambda v, b: task.loss(v, b, root, at), made, batch)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        stats=stats,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, {"params": params, "stats": stats}) if ema else {},
        hyper=hyper,
        key=root,
        book=_fresh_book(terms),
    )


def _blank_batch(data, task, at):
    """One row of zeros, as the network will see rows."""

    def draw(data):
        rows = jnp.zeros(1, jnp.int32)
        drawn = keys.per_row(jax.random.key(0), rows)
        return task.augment(drawn, {**batches.gather(data, rows), "real": jnp.ones(1)}, at)

    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(draw, data))


def _fresh_book(terms):
    return {
        "sums": {name: jnp.float32(0) for name in terms},
        "count": jnp.int32(0),  # steps in `sums`
        "bad_step": jnp.int32(-1),
        "bad_term": jnp.int32(-1),
        "evaluated": jnp.int32(-1),  # step of the last evaluation
        "best_score": jnp.float32(-jnp.inf),
        "best_loss": jnp.float32(jnp.inf),
        "best_step": jnp.int32(-1),
        "waited": jnp.int32(0),  # evaluations since the best one
    }


def train_step(state, data, rows, *, task, optimizer, plan, axis):
    """One step: gather, augment, share of the loss, summed gradient, update, averages.

    `data` is the whole set on the device and `rows [B]` indices into it; without `data`, `rows`
    is the batch itself.  Pure; `axis` names the device axis under pmap.  A step whose loss or
    gradient is not finite changes nothing but `book`.
    """
    at = At(True, state.step // plan.accumulate, state.step // plan.epoch_steps, state.hyper, axis)
    batch = _batch(state, data, rows, task, at)
    dropout = keys.chain(state.key, keys.DROPOUT, state.step, parallel.rank(axis))

    def share(params):
        return task.loss(evaluate.join(params, state.stats), batch, dropout, at)

    (_, (stats, terms)), grads = jax.value_and_grad(share, has_aux=True)(state.params)
    terms, grads = parallel.total((terms, grads), axis)
    bad = _not_finite(terms, grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    moved = state.replace(
        params=optax.apply_updates(state.params, updates), stats=stats, opt_state=opt_state
    )
    moved = moved.replace(ema=_averaged(moved, plan))
    kept = jax.tree.map(partial(jnp.where, bad.any()), state, moved)
    return kept.replace(step=state.step + 1, book=_noted(state, terms, bad))


def _batch(state, data, rows, task, at):
    batch = batches.gather(data, rows)
    count = len(jax.tree.leaves(rows)[0])
    places = parallel.places(count, at.axis)
    drawn = keys.per_row(keys.chain(state.key, keys.AUGMENT, state.step), places)
    return task.augment(drawn, {"real": jnp.ones(count), **batch}, at)


def _not_finite(terms, grads):
    """Whether each term (in sorted order), and at the end the gradient, is not a number."""
    values = [terms[name] for name in sorted(terms)] + [optax.tree.norm(grads)]
    return ~jnp.isfinite(jnp.stack(values))


def _noted(state, terms, bad):
    """The book after a step: sums of the terms, and the first bad step and term."""
    book = state.book
    first = bad.any() & (book["bad_step"] < 0)
    return book | {
        "sums": {name: book["sums"][name] + terms[name] for name in terms},
        "count": book["count"] + 1,
        "bad_step": jnp.where(first, state.step, book["bad_step"]),
        "bad_term": jnp.where(first, jnp.argmax(bad), book["bad_term"]),
    }


def _averaged(state, plan):
    """Moving averages of parameters and statistics; the decay grows from .1 to `plan.ema`."""
    if not state.ema:
        return state.ema
    updates = (state.step + 1) // plan.accumulate
    decay = jnp.minimum(plan.ema, (1 + updates) / (10 + updates))
    decay = jnp.where((state.step + 1) % plan.accumulate == 0, decay, 1.0)
    now = {"params": state.params, "stats": state.stats}
    return jax.tree.map(lambda old, new: old * decay + new * (1 - decay), state.ema, now)


def fit(system, config, folder, *, show, stop=lambda: False):
    """Train `system` as `config` says in the run `folder`, from its last checkpoint if it has one.

    `show` is a `progress.Progress`; `stop()` turning true saves and ends.  Returns True when the
    run is complete.  Raises `DivergedError` when the loss stops being finite.
    """
    loop = Loop(system, config, folder, show, stop)
    try:
        while not loop.complete():
            loop.epoch()
    except StopRequested:
        loop.save(None)
        show.line(f"stopped at step {loop.at} of {loop.plan.steps}; continue with --resume")
        return False
    finally:
        show.close()
    plots.convergence(runs.read_metrics(folder), loop.folder / "plots" / "convergence.png")
    return True


class Loop:
    """A run on its way: the compiled step, the evaluator, and where the run stands."""

    def __init__(self, system, config, folder, show, stop):
        self.config, self.folder, self.show, self.stop = config, folder, show, stop
        self.among = parallel.devices(config.devices)
        parallel.check(config.batch, self.among)
        train = system.splits["train"]
        self.count = len(train)
        self.plan = plan(config, self.count)
        self.data = parallel.put(train.arrays, self.among)
        self.evaluator = evaluate.Evaluator(system, "val", config.eval_batch, self.among)
        step = partial(
            train_step, task=system.task, optimizer=optimizer(config, self.plan), plan=self.plan
        )
        self.step = parallel.compiled(step, self.among, whole=2, donate=(0,))
        self._start(maker(system, config))
        self.stepped, self.drawn = False, 0.0
        self.saved = self.began = time.monotonic()

    def _start(self, make):
        """The state to go on from, on the devices; metrics of later steps are forgotten."""
        if checkpoint.steps(self.folder):
            _, state = checkpoint.restore(self.folder, jax.eval_shape(make), warn=self.show.line)
        else:
            state = jax.jit(make)()
        runs.drop_metrics(self.folder, int(state.book["evaluated"]))
        self.at = int(state.step)
        self.state = parallel.put(state, self.among)
        self.show.begin(self.at * self.config.batch, self.plan.steps * self.config.batch)

    def complete(self):
        """Whether the last step, or patience, is at its end and evaluated."""
        book = jax.device_get(self.state.book)
        if book["evaluated"] != self.at:
            return False
        patience = self.config.patience
        return self.at >= self.plan.steps or bool(patience and book["waited"] >= patience)

    def epoch(self):
        """Evaluate what is due, then train to the end of the epoch and evaluate again."""
        if self.at % self.plan.epoch_steps == 0 and self._due():
            self.evaluate()
        elif self.at < self.plan.steps:
            self._train()

    def _due(self):
        first = self.config.eval_first or self.at > 0
        return first and int(self.state.book["evaluated"]) != self.at

    def _train(self):
        """Steps to the end of the epoch, from wherever in it the run stands."""
        number, start = divmod(self.at, self.plan.epoch_steps)
        self.began = time.monotonic()
        rows = batches.order(self.config.seed, number, self.count, self.config.batch)
        for row in rows[start:]:
            self._pause()
            self.state = self.step(self.state, self.data, row)
            self.at += 1
            if not self.stepped:
                self._first_step()
            self.show.advance(self.config.batch)
            if self.show.due():
                self._look(number)
        self._look(number)

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
        """Read the book: show the running means, stop when the loss is no longer a number."""
        book = jax.device_get(self.state.book)
        if book["bad_step"] >= 0:
            self._diverged(book)
        self.show.terms(epoch + 1, self.config.epochs, _means(book))

    def _diverged(self, book):
        names = [*sorted(book["sums"]), "gradient"]
        last = checkpoint.steps(self.folder)
        good = f"checkpoint {last[-1]}" if last else "none: no epoch was completed"
        raise DivergedError(
            f"step {book['bad_step']}: {names[int(book['bad_term'])]} is not finite; last good "
            f"state: {good} of {self.folder}; try a lower --lr, or --clip 1"
        )

    def evaluate(self):
        """Score the state, note it in the book and in `metrics.jsonl`, and save it."""
        trained = time.monotonic() - self.began
        book = jax.device_get(self.state.book)
        scores = self.evaluator(evaluate.variables(self.state), self._pause)
        seconds = {"train": trained, "eval": time.monotonic() - self.began - trained}
        score = (float(np.float32(scores[self.config.best])), float(np.float32(scores["loss"])))
        line = {
            "step": self.at,
            "epoch": self.at // self.plan.epoch_steps,
            "lr": float(learning_rate(self.config, self.plan)(self.at // self.plan.accumulate)),
            "train": _means(book) if book["count"] else None,
            "val": scores,
            "time": seconds,
        }
        runs.append_metrics(self.folder, line)
        book = _scored(book, self.at, score)
        self.state = self.state.replace(book=parallel.put(book, self.among))
        self.save(score)
        self.show.line(_sentence(line, self.config, book))
        self._draw()

    def _draw(self):
        """Redraw the curves, at most twice a minute."""
        if time.monotonic() - self.drawn > 30:
            metrics = runs.read_metrics(self.folder)
            plots.convergence(metrics, self.folder / "plots" / "convergence.png")
            self.drawn = time.monotonic()
        self.began = time.monotonic()

    def save(self, score):
        """Write a checkpoint of the state; without a score, only if this step has none yet."""
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


def _sentence(line, config, book):
    """One evaluation in one line."""
    parts = [f"epoch {line['epoch']}/{config.epochs}"]
    for split in ("train", "val"):
        if line[split]:
            parts.append(split + "".join(f" {k} {v:.4g}" for k, v in line[split].items()))
    if int(book["best_step"]) == line["step"]:
        parts.append(f"best {config.best}")
    parts.append(f"{line['time']['train']:.1f} + {line['time']['eval']:.1f} s")
    return " | ".join(parts)
