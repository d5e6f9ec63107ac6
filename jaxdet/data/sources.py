"""Sources of records: held in memory as arrays, or read from files when needed.

A source is random access: `len(source)` counts its records, and record i is a dict of NumPy values,
the same on every access.
"""

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from jaxdet.errors import InputError

DAMAGED_WHILE_STREAMING = "--stream cannot leave out this image: remove it from the data"
READ_THREADS = 16  # a record is a file, and reading mostly waits for the disk


class ArraySource:
    """A source of arrays of equal length N: record i is row i of each array.

    Args:
        arrays: name -> array [N, ...]; `source.arrays` can be put on a device as it is.
        names: where each record comes from, such as a file name.

    InputError if there are no arrays, or if their lengths differ.
    """

    def __init__(self, arrays: dict[str, np.ndarray], names: list[str] | None = None) -> None:
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise InputError(f"arrays of a source must have the same length, got {lengths}")
        self.arrays, self.names = arrays, names

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:
        return {name: array[index] for name, array in self.arrays.items()}

    @property
    def labels(self) -> np.ndarray | None:
        """Label [N] of each record; None where records have no single label."""
        return self.arrays.get("label")

    def first(self, count: int) -> "ArraySource":
        """The source of the first `count` records, sharing the memory of this one."""
        if count >= len(self):
            return self
        return ArraySource(self[:count], self.names and self.names[:count])

    def take(self, indices: Sequence[int] | np.ndarray) -> "ArraySource":
        """The source of the records at `indices [M]`, in that order; they keep their ids."""
        indices = np.asarray(indices, np.int64)
        return ArraySource(self[indices], self.names and [self.names[i] for i in indices])

    def batches(self, index: np.ndarray) -> Iterator[np.ndarray]:
        """The rows of `index [S, B]`, one by one; the arrays themselves are on the device."""
        return iter(index)


class StreamSource:
    """A source that reads a record from its file each time it is needed.

    Args:
        read: index of a record -> the record, a dict of arrays.
        count: number of records.
        names: where each record comes from.
        labels: label [count] of each record, where known without reading it.

    `arrays` is empty.  InputError where the package `grain`, which reads ahead, is not installed.
    """

    def __init__(
        self,
        read: Callable[[int], dict[str, Any]],
        count: int,
        names: list[str] | None = None,
        labels: np.ndarray | None = None,
    ) -> None:
        if find_spec("grain") is None:
            raise InputError("--stream needs the package grain: pip install jaxdet[data]")
        self.read, self.count, self.names, self.labels = read, count, names, labels
        self.arrays: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return self.count

    def first(self, count: int) -> ArraySource:
        """The first `count` records, read now."""
        return self.take(range(min(count, self.count)))

    def take(self, indices: Sequence[int] | np.ndarray) -> ArraySource:
        """The records at `indices`, in that order, read now."""
        rows = [self.read(int(i)) for i in indices]
        columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return ArraySource(columns, self.names and [self.names[i] for i in indices])

    def batches(self, index: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """The batches of records at `index [S, B]`, one by one, read ahead in threads."""
        import grain

        ahead = max(2 * index.shape[1], READ_THREADS)
        options = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=ahead)
        source = grain.MapDataset.source(index.reshape(-1).tolist()).map(self.read)
        yield from source.batch(index.shape[1]).to_iter_dataset(options)


Source = ArraySource | StreamSource


def record_spec(source: Source) -> dict[str, list]:
    """Data type and shape of each array of a record, as JSON: {name: [dtype, shape]}."""
    arrays = source.first(1).arrays
    return {name: [str(array.dtype), [*array.shape[1:]]] for name, array in arrays.items()}


def blank_source(spec: dict[str, list]) -> ArraySource:
    """A source of one record of zeros with the types and shapes of `record_spec`."""
    return ArraySource(
        {name: np.zeros((1, *shape), dtype) for name, (dtype, shape) in spec.items()}
    )
