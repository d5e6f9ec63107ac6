"""A task with its data and options: the input of training and evaluation."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from jaxdet.config import OPTIMIZER_HPARAMS, TrainConfig
from jaxdet.data import images, sampler
from jaxdet.data.sources import Source
from jaxdet.errors import InputError
from jaxdet.training import optim, parallel
from jaxdet.types import Array, Device, Task, Tree

LENGTHS = ("epoch_steps", "steps")  # fields of a plan that a step reads from the state


class Plan(NamedTuple):
    """The length of a run, and the options of its steps."""

    epoch_steps: int  # steps per epoch
    steps: int  # steps of the whole run
    accumulate: int  # steps per parameter update
    ema: float  # decay of the moving averages; 0: none


@dataclass(frozen=True)
class Experiment:
    """A task with its data and options; `configs.build` makes one from a configuration.

    No module below `configs` reads options of a particular system.
    """

    task: Task
    splits: dict[str, Source]  # by name; has "train" and, unless --monitor is test, "val"
    hparams: dict[str, float]  # traced hyper-parameters of the task
    metadata: dict[str, Any]  # class names, input shape, normalization: kept with the run
    config: TrainConfig = field(default_factory=TrainConfig)  # checked options of the run
    name: str = ""  # name of the system
    read_image: Callable | None = None  # path -> (image [H, W, C] for `predict`, (height, width))
    letterbox: images.Letterbox = images.CENTERED  # of `read_image`, if it letterboxes images
    read_table: Callable | None = None  # path -> [(image path, label, box in its own pixels)]
    read_original: Callable | None = None  # name of a sample -> the whole image [h, w, C] in [0, 1]
    files: tuple[tuple[str, str], ...] = ()  # (path in the run folder, text) of files to write
    notes: tuple[str, ...] = ()  # on unusable files and rows of the data
    load_pretrained: Callable[[Tree], Tree] | None = None  # variables -> pretrained variables
    lr_multiplier: Callable[[str], float] | None = None  # parameter path -> factor of its rate
    make_order: Callable[[Source], sampler.BatchOrder] | None = None  # default: `config.sampling`
    scales: tuple[float, ...] = (1.0,)  # relative sizes of training images; each compiles a program
    image_ids: dict[str, dict] | None = None  # split -> {image name: its id in the data's files}
    samples: dict[str, list] | None = None  # split -> annotated images as read, ordered by `id`
    subset: Callable[[Any], "Experiment"] | None = None  # configuration -> experiment on less data

    @cached_property
    def plan(self) -> Plan:
        """The length of the run."""
        config = self.config
        epoch_steps = -(-len(self.splits["train"]) // config.batch)
        return Plan(epoch_steps, config.epochs * epoch_steps, config.accumulate, config.ema)

    @cached_property
    def devices(self) -> list[Device]:
        """The devices of the run; InputError if they cannot split its batches equally."""
        return select_devices(self.config)

    def batch_order(self, source: Source) -> sampler.BatchOrder:
        """The order of the records of a source, the training set, in the batches of an epoch."""
        if self.make_order:
            return self.make_order(source)
        if self.config.sampling == "shuffled":
            return sampler.shuffled_batches
        if source.label_sets is None:
            raise InputError(
                f"--sampling {self.config.sampling} needs records with labels, got records without"
            )
        return sampler.repeat_factor_sampler(source.label_sets, self.config.balance_below)

    @property
    def scored_splits(self) -> tuple[str, ...]:
        """Splits that are evaluated during training; only "val" selects checkpoints."""
        names = ("val", "test") if self.config.monitor == "test" else ("val",)
        return tuple(name for name in names if name in self.splits)

    @property
    def initial_hparams(self) -> dict[str, Any]:
        """All traced hyper-parameters of a run, with their initial values."""
        floats = self.hparams | {name: getattr(self.config, name) for name in OPTIMIZER_HPARAMS}
        lengths = self.plan._asdict()
        return {name: np.float32(value) for name, value in floats.items()} | {
            name: np.int32(lengths[name]) for name in LENGTHS
        }

    @property
    def plateau(self) -> optax.GradientTransformationExtraArgs | None:
        """The rule that lowers the learning rate at a plateau, see `optim.plateau`.

        None for other schedules.
        """
        if self.config.schedule != "plateau":
            return None
        return optim.plateau(self.config.lr_decay, self.config.plateau_patience)

    def learning_rate(
        self, *, peak: Any = None, steps: Any = None, epoch_steps: Any = None
    ) -> Callable[[Any], Any]:
        """The schedule: a function from the number of an update to its learning rate.

        The arguments replace the peak of the configuration and the lengths of the plan.
        """
        config, plan = self.config, self.plan
        steps = plan.steps if steps is None else steps
        epoch_steps = plan.epoch_steps if epoch_steps is None else epoch_steps
        return optim.schedule(
            config.schedule,
            rate=config.lr if peak is None else peak,
            steps=jnp.maximum(-(-steps // plan.accumulate), 1),
            warmup=config.warmup,
            decay_at=config.decay_at,
            decay=config.lr_decay,
            period=config.restart_period * epoch_steps / plan.accumulate,
            growth=config.restart_factor,
        )

    @property
    def optimizer(self) -> Callable[[dict[str, Array]], optax.GradientTransformation]:
        """The function from traced hyper-parameters to the optax transformation."""
        return partial(_optimizer, self)


def select_devices(config: TrainConfig) -> list[Device]:
    """The devices of a configuration; InputError if they cannot split its batches equally."""
    devices = parallel.run_devices(config.devices)
    parallel.check_batch(config.batch, devices)
    parallel.check_batch(config.eval_batch, devices, "--eval-batch")
    return devices


def _optimizer(experiment: Experiment, hparams: dict[str, Array]) -> optax.GradientTransformation:
    lengths = {name: hparams[name] for name in LENGTHS}
    return optim.optimizer(
        experiment.config.optimizer,
        experiment.learning_rate(peak=hparams["lr"], **lengths),
        momentum=hparams["momentum"],
        beta2=hparams["beta2"],
        weight_decay=hparams["weight_decay"],
        clip=experiment.config.clip,
        accumulate=experiment.plan.accumulate,
        steps=hparams["steps"],
        lr_multiplier=experiment.lr_multiplier,
    )
