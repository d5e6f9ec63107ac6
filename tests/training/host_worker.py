"""One of several processes that train a line: `python -m tests.training.host_worker WORDS`.

WORDS are those of `jaxdet train digits`; the line takes the place of its data and network.  $AT is
"STEP ACTION", what this process does to itself after a step.  $ROWS is a file for the ids of the
images that it reads for training, a line per batch.
"""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdet import api
from jaxdet.cli import main
from jaxdet.errors import InputError
from jaxdet.training import loop, parallel
from tests.training.test_resume import line_experiment
from tests.training.test_steps_per_call import streamed

ACTIONS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "freeze": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": lambda: time.sleep(1000),
}


def experiment(devices):
    """The noisy line without dropout, which is drawn per device, on some devices per process.

    The sum of the bits of the augmented images is a loss term, which is exact in float32.
    """
    line = line_experiment(devices=devices)
    task: Any = line.task

    def loss(variables, batch, key, context):
        without_dropout = context._replace(train=False)
        total, (stats, terms) = task.loss(variables, batch, key, without_dropout)
        bits = jax.lax.bitcast_convert_type(batch["image"], np.uint32) & 0xFFF
        return total, (stats, terms | {"bits": bits.astype(np.float32).sum()})

    metadata = {"classes": ["0"], "input": [1, 1, 1]}
    return replace(line, task=task._replace(loss=loss), name="digits", metadata=metadata)


if __name__ == "__main__":
    at, _, action = os.environ.get("AT", "0 ").partition(" ")
    train, after_call, shard = api.run_training, loop.Loop._after_call, parallel.shard

    def _after_call(self, batches):
        after_call(self, batches)
        if self.step == int(at):
            if action == "raise":
                raise InputError("image 7 is damaged")
            ACTIONS[action]()

    def noting_shard(rows, count):
        if "id" in rows:
            with Path(os.environ["ROWS"]).open("a") as file:
                print(*rows["id"], file=file)
        return shard(rows, count)

    api.run_training = lambda config, folder, **options: train(
        streamed(experiment(config.devices)), folder, **options
    )
    loop.Loop._after_call, parallel.shard = _after_call, noting_shard
    sys.exit(main.main(sys.argv[1:]))
