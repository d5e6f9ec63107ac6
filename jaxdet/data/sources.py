"""Sources held in memory: one array a key, one row a record."""

from importlib.util import find_spec

import numpy as np

from jaxdet.errors import InputError


class ArraySource:
    """A source over a dict of arrays of equal length N: record `i` is row `i` of each of them.

    `arrays` is the dict itself, ready to be put on a device whole; `names`, a text a record, says
    where each comes from.  InputError when it is empty or when the lengths differ; IndexError for a
    record beyond the end.
    """

    def __init__(self, arrays, names=None):
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise InputError(f"one length is wanted for all arrays of a source, found {lengths}")
        self.arrays, self.names = arrays, names

    def __len__(self):
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index):
        return {name: array[index] for name, array in self.arrays.items()}

    def first(self, count):
        """The source of the first `count` rows, which share the memory of all."""
        if count >= len(self):
            return self
        return ArraySource(self[:count], self.names and self.names[:count])

    def batches(self, index):
        """Rows [B] of the batches at `index [S, B]`, one after the other: they are held already."""
        return iter(index)

    def take(self, indices):
        """The source of the rows at `indices [M]`, in that order; they keep their ids."""
        indices = np.asarray(indices, np.int64)
        return ArraySource(self[indices], self.names and [self.names[i] for i in indices])


def record_spec(source):
    """What a record of a source is like, as JSON has it: {name: [type, shape]}."""
    arrays = source.first(1).arrays
    return {name: [str(array.dtype), [*array.shape[1:]]] for name, array in arrays.items()}


def blank_source(like):
    """The source of one record of zeros that is `like` what `record` says."""
    return ArraySource({name: np.zeros((1, *shape), kind) for name, (kind, shape) in like.items()})


DAMAGED_WHILE_STREAMING = (
    "a stream cannot leave it out: take it away"  # of a file that turns out damaged
)
THREADS = 16  # that read; a record is a file, and reading waits for the disk


class StreamSource:
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
        return ArraySource(columns, self.names and [self.names[i] for i in indices])

    def batches(self, index):
        """Batches of the records at `index [S, B]`, one after the other, read ahead in threads."""
        import grain

        ahead = max(2 * index.shape[1], THREADS)
        options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=ahead)
        source = grain.MapDataset.source(index.reshape(-1).tolist()).map(self.read)
        yield from source.batch(index.shape[1]).to_iter_dataset(options)
