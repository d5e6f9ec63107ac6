"""Sources whose records are read when they are needed, for data that memory does not hold."""

from importlib.util import find_spec

import numpy as np

from jaxdet.data import arrays
from jaxdet.errors import InputError

STAYS = "a stream cannot leave it out: take it away"  # of a file that turns out damaged
THREADS = 16  # that read; a record is a file, and reading waits for the disk


class Stream:
    """A source of `count` records, of which `read(index)` reads one: a dict of arrays.

    What `Arrays` of the same records gives, a batch at a time; `arrays` is empty, for nothing is
    held, but for `labels` [count], if they are known without reading.  InputError where the
    package that reads ahead is not installed.
    """

    def __init__(self, read, count, names=None, labels=None):
        if find_spec("grain") is None:
            raise InputError("--stream wants the package grain: pip install jaxdet[data]")
        self.read, self.count, self.names, self.arrays = read, count, names, {}
        self.labels = labels

    def __len__(self):
        return self.count

    def first(self, count):
        """`Arrays` of the first `count` records, read now."""
        return self.take(range(min(count, self.count)))

    def take(self, indices):
        """`Arrays` of the records at `indices`, in that order, read now."""
        rows = [self.read(int(i)) for i in indices]
        columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return arrays.Arrays(columns, self.names and [self.names[i] for i in indices])

    def batches(self, index):
        """Batches of the records at `index [S, B]`, one after the other, read ahead in threads."""
        import grain

        ahead = max(2 * index.shape[1], THREADS)
        options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=ahead)
        source = grain.MapDataset.source(index.reshape(-1).tolist()).map(self.read)
        yield from source.batch(index.shape[1]).to_iter_dataset(options)
