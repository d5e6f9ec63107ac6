"""Sources of records: held in memory as arrays, or read from files when needed.

A record is a dict of NumPy arrays or numbers.  Records can be read in any order, and a record has
the same values whenever it is read (see `StreamSource` for files that become unreadable);
`len(source)` is the number of records.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from jaxdet.errors import InputError

READ_THREADS = 16  # a record is a file, and reading mostly waits for the disk
SUBSTITUTES = 16  # largest number of records that are tried in place of an unreadable one
LOG = logging.getLogger(__name__)


class UnreadableError(InputError):
    """Raised for a record that can no longer be read, and that no other record replaces."""


class ArraySource:
    """A source in memory: arrays of equal length N, where record i is row i of each array.

    Args:
        arrays: name -> array [N, ...]; `source.arrays` can be put on a device as it is.
        names: where each record comes from, such as a file name; None if unknown.

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

    @property
    def label_sets(self) -> list[np.ndarray] | None:
        """Labels of the objects of each record, N arrays; None where records have no labels."""
        if "true_labels" in self.arrays:
            pairs = zip(self.arrays["true_labels"], self.arrays["true_valid"], strict=True)
            return [labels[valid] for labels, valid in pairs]
        return None if self.labels is None else [*self.labels[:, None]]

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
        """Yield the indices [B] of each batch, the rows of `index` [S, B].

        The indices suffice, because the arrays themselves are on the device.
        """
        return iter(index)

    def masked_batches(
        self, index: np.ndarray, real: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (indices [B], mask [B]) for each row of `index` [S, B] and `real` [S, B]."""
        return zip(index, real, strict=True)


class StreamSource:
    """A source that reads a record from its file each time it is needed.

    A record that cannot be read any more, because its file is damaged or has vanished, is named in
    one warning.  In training, another record takes its place, if possible one with the same label;
    the choice depends only on the indices and on which files can be read.  In evaluation, its row
    is masked.  With `on_invalid="error"`, `UnreadableError` is raised instead.

    Args:
        read: number of a record, 0..count - 1 -> the record, a dict of arrays; InputError if it
            cannot be read.
        count: number of records, including the numbers in `left_out`.
        names: where each of the records comes from, such as a file name; None if unknown.
        labels: label [count] of each record; None if unknown until a record is read.
        label_sets: labels of the objects of each record, `count` arrays; None if unknown.
        left_out: numbers of the records that are not in the source; an index counts only the
            records in it.
        on_invalid: "skip" or "error".

    `arrays` is empty.  Raises InputError unless the package `grain`, which reads ahead, is
    installed.
    """

    def __init__(
        self,
        read: Callable[[int], dict[str, Any]],
        count: int,
        names: list[str] | None = None,
        labels: np.ndarray | None = None,
        *,
        label_sets: Sequence[np.ndarray] | None = None,
        left_out: Sequence[int] = (),
        on_invalid: str = "skip",
    ) -> None:
        if find_spec("grain") is None:
            raise InputError("--stream needs the package grain: pip install jaxdet[data]")
        self.read, self.count, self.left_out, self.on_invalid = read, count, left_out, on_invalid
        self.numbers = np.setdiff1d(np.arange(count), left_out)
        self.every_name, self.every_label, self.every_set = names, labels, label_sets
        self.names = names and [names[number] for number in self.numbers]
        self.labels = None if labels is None else labels[self.numbers]
        self.arrays: dict[str, np.ndarray] = {}
        self.unreadable: dict[int, object] = {}  # indices of the records that a warning has named

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def label_sets(self) -> list[np.ndarray] | None:
        """Labels of the objects of each record, N arrays; None if unknown."""
        if self.every_set is not None:
            return [self.every_set[number] for number in self.numbers]
        return None if self.labels is None else [*self.labels[:, None]]

    def leaving_out(self, left_out: Sequence[int]) -> "StreamSource":
        """The source of all records except the numbers `left_out`."""
        return StreamSource(
            self.read,
            self.count,
            self.every_name,
            self.every_label,
            label_sets=self.every_set,
            left_out=left_out,
            on_invalid=self.on_invalid,
        )

    def first(self, count: int) -> ArraySource:
        """Read the first `count` records now, and return them as an `ArraySource`."""
        return self.take(range(min(count, len(self))))

    def take(self, indices: Sequence[int] | np.ndarray) -> ArraySource:
        """Read the records at `indices` now, and return them as an `ArraySource` in that order.

        An unreadable record is replaced, together with its name.
        """
        rows, found = zip(*(self._read_usable(int(i)) for i in indices), strict=True)
        columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return ArraySource(columns, self.names and [self.names[i] for i in found])

    def batches(self, index: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Yield a batch of B records for each row of `index` [S, B], reading ahead in threads."""
        return (batch for batch, _ in self._batches(index))

    def masked_batches(
        self, index: np.ndarray, real: np.ndarray
    ) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """Yield (batch, mask [B]) for each row of `index` [S, B] and `real` [S, B].

        The mask is also 0 where a record cannot be read.
        """
        for (batch, found), row, mask in zip(self._batches(index), index, real, strict=True):
            yield batch, mask * (found == row)

    def _batches(self, index: np.ndarray) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """Yield (batch, index [B] of the records read) for each row of `index [S, B]`."""
        import grain

        size = index.shape[1]
        options = grain.ReadOptions(
            num_threads=READ_THREADS, prefetch_buffer_size=max(2 * size, READ_THREADS)
        )
        records = grain.MapDataset.source(index.reshape(-1).tolist()).map(self._read_usable)
        batches: Any = iter(records.to_iter_dataset(options).batch(size))
        try:
            yield from batches
        except UnreadableError as error:
            raise UnreadableError(str(error)) from None  # without the notes that grain adds
        finally:
            batches.close()

    def _read_usable(self, index: int) -> tuple[dict[str, Any], int]:
        """(record, its index): the record at `index` or, if it is unreadable, another one."""
        for found in self._candidates(index):
            try:
                return self.read(int(self.numbers[found])), found
            except InputError as error:
                text = str(error)
            if self.on_invalid == "error":
                raise UnreadableError(f"{text}; leave unusable data out with --on-invalid skip")
            token = object()
            if self.unreadable.setdefault(found, token) is token:  # once, by one of the threads
                LOG.warning("%s; left out", text)
        raise UnreadableError(f"{text}; no image can be read in its place either")

    def _candidates(self, index: int) -> Iterator[int]:
        """Yield `index`, then the indices of records that may take its place, in order."""
        yield index
        others = np.delete(np.arange(len(self)), index)
        order = np.random.default_rng(index).permutation(others)
        if self.labels is not None:
            same = self.labels[order] == self.labels[index]
            yield from order[same][:SUBSTITUTES].tolist()
            order = order[~same]
        yield from order[:SUBSTITUTES].tolist()


Source = ArraySource | StreamSource


def record_spec(source: Source) -> dict[str, list]:
    """Data type and shape of each array of a record, as JSON: {name: [dtype, shape]}."""
    arrays = source.first(1).arrays
    return {name: [str(array.dtype), [*array.shape[1:]]] for name, array in arrays.items()}


def blank_source(spec: dict[str, list]) -> ArraySource:
    """Make a source of one record of zeros, with the types and shapes that `record_spec` gave."""
    return ArraySource(
        {name: np.zeros((1, *shape), dtype) for name, (dtype, shape) in spec.items()}
    )
