"""Reading weight files without running code: safetensors, and the formats of torch.save.

A file written by torch.save consists of a pickle and of raw storages, and unpickling can run any
code.  Here the file is read without PyTorch, by an unpickler that builds dicts, tuples, numbers,
strings and descriptions of arrays, and cannot call anything else.  Both formats of torch.save are
read: zip files, which PyTorch writes since version 1.6, and the older sequences of pickles.
"""

import io
import os
import pickle
import pickletools
import stat
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np

from jaxdet import packages
from jaxdet.errors import InputError

BFLOAT16 = np.dtype(jnp.bfloat16)  # converted to float32, which represents all of its values
TORCH_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": BFLOAT16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
SAFETENSORS_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": BFLOAT16,
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
PythonUnpickler: Any = vars(pickle)["_Unpickler"]  # unlike the one in C, its steps can be checked
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of the older format
WRAPPERS = ("state_dict", "model")  # keys under which training scripts store the arrays
EXPECTED = "must be a safetensors file, or written by torch.save(model.state_dict(), ...)"

UnpicklerType = TypeVar("UnpicklerType", bound="RestrictedUnpickler")


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of a weight file: {name: array}.

    The format is recognized by the first bytes of the file.  Arrays may share memory, may have the
    strides of the file, and may be read-only; bfloat16 is converted to float32.  If the file holds
    {"state_dict": {...}} or {"model": {...}}, the inner dict is read.  Values that are not arrays,
    such as the number of epochs, are ignored.

    Raises InputError if the file cannot be read, has an unknown format, is cut short or damaged,
    refers to anything but arrays, or holds no arrays.
    """
    with as_input_error(path):
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # reading others may never end
            raise InputError("is not a regular file")
        content = Path(path).read_bytes()
        if content[4:9] == b"\0\0\0\0{":  # safetensors: 8 bytes of length, then a JSON header
            return read_safetensors(content)
        if content.startswith(b"PK\x03\x04"):
            return _read_zip(content)
        if content.startswith(b"\x80"):
            return _read_pickles(content)
        raise InputError(f"begins with {content[:4].hex(' ') or 'nothing'}; {EXPECTED}")


def read_safetensors(content: bytes) -> dict[str, np.ndarray]:
    """The arrays in the content of a safetensors file, {name: array}; see `read_arrays`."""
    safetensors = packages.load("safetensors", "weights in safetensors")
    entries = dict(safetensors.deserialize(content))
    for name, entry in entries.items():
        if entry["dtype"] not in SAFETENSORS_DTYPES:
            known = ", ".join(SAFETENSORS_DTYPES)
            raise InputError(f"dtype of {name} must be one of {known}, got {entry['dtype']}")
    return {
        name: _decode(entry["data"], SAFETENSORS_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in entries.items()
    }


@contextmanager
def as_input_error(name: str | Path) -> Iterator[None]:
    """A context that converts any exception to an InputError of one line that starts with `name`.

    Damaged files raise many types of exceptions in pickle, zipfile, tarfile and NumPy.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:  # an error of the file system
            raise InputError(f"{name}: cannot be read: {error.strerror}") from error
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise InputError(f"{name}: is cut short or damaged ({reason}); fetch it again") from error


class RestrictedUnpickler(PythonUnpickler):
    """An unpickler that builds plain values, and that resolves only `allowed_globals`.

    A pickle can set attributes of the objects that it receives.  Therefore `allowed_globals`
    creates its functions anew on every call, and its other values are immutable.

    Tuples and frozen sets are rejected as keys, because a few bytes can describe a tuple of tuples
    whose hash takes forever to compute.
    """

    dispatch = dict(PythonUnpickler.dispatch)
    expected = "only arrays and plain values are read"

    def allowed_globals(self) -> dict[str, Any]:
        """The globals that a pickle may refer to, as {"module.name": replacement}."""
        return {}

    def load_setitem(self) -> None:
        """Set one item of a dict, after checking its key."""
        check_keys(self.stack[-2:])
        super().load_setitem()

    def load_setitems(self) -> None:
        """Set several items of a dict, after checking their keys."""
        check_keys(self.stack)
        super().load_setitems()

    def load_dict(self) -> None:
        """Make a dict of several items, after checking their keys."""
        check_keys(self.stack)
        super().load_dict()

    def load_additems(self) -> None:
        """Add values to a set, after checking them as keys."""
        check_keys(self.stack, step=1)
        super().load_additems()

    def load_frozenset(self) -> None:
        """Make a frozen set, after checking its values as keys."""
        check_keys(self.stack, step=1)
        super().load_frozenset()

    def load_reduce(self) -> None:
        """Call a function; Python 2 stored an OrderedDict as a call with (key, value) pairs."""
        function, arguments = self.stack[-2:]
        if function is OrderedDict:
            check_keys([key for pairs in arguments for key, _ in pairs], step=1)
        super().load_reduce()

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.FROZENSET[0]] = load_frozenset

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement for a global; InputError for a global that is not allowed."""
        full_name, allowed = f"{module}.{name}", self.allowed_globals()
        if full_name not in allowed:
            raise InputError(
                f"refers to {full_name!r}, which is not an array and was not run; {self.expected}"
            )
        return allowed[full_name]


def check_keys(values: Sequence[Any], *, step: int = 2) -> None:
    """Raise InputError if a key is a tuple or a frozen set.

    The keys are every `step`-th of the values, beginning with the first.
    """
    for key in values[::step]:
        if isinstance(key, tuple | frozenset):
            raise InputError(
                f"has a {type(key).__name__} as a key; keys must be strings or numbers"
            )


def next_unpickler(
    stream: io.BytesIO, unpickler: type[UnpicklerType], **options: Any
) -> UnpicklerType:
    """Make an unpickler for the next pickle in a stream, and advance the stream past that pickle.

    `unpickler` is a subclass of `RestrictedUnpickler`; it is called with a stream of the pickle
    alone and with `options`.  Raises InputError for a pickle that could reach a global without
    `find_class`, or that asks for a memo larger than the pickle itself.
    """
    start = stream.tell()
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name.startswith("EXT"):  # a global that may bypass find_class
            raise InputError(f"refers to a global by {opcode.name}; {unpickler.expected}")
        if "PUT" in opcode.name and int(argument or 0) > stream.tell():
            # The memo of an unpickler may grow to the largest index.
            raise InputError(
                f"is damaged: its pickle stores an object at index {argument}, beyond its own "
                f"length; fetch it again"
            )
    return unpickler(io.BytesIO(stream.getbuffer()[start : stream.tell()]), **options)


def _read_zip(content: bytes) -> dict[str, np.ndarray]:
    """Read the newer format of torch.save: `NAME/data.pkl`, and storages `NAME/data/KEY`."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        entries = file.infolist()
        compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if compressed or sum(entry.file_size for entry in entries) > len(content):
            raise InputError(f"is a zip file with compressed entries; {EXPECTED}")
        names = file.namelist()
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise InputError(
                f"must have one data.pkl in the zip file, got {len(roots)}; {EXPECTED}"
            )
        root = roots[0]
        if f"{root}byteorder" in names:
            _check_byte_order(file.read(f"{root}byteorder") == b"little")
        tree, kinds = _unpickle(io.BytesIO(file.read(f"{root}data.pkl")))
        raw = {key: file.read(f"{root}data/{key}") for key in kinds}
    storages = {key: _decode(raw[key], TORCH_DTYPES[kind]) for key, kind in kinds.items()}
    return _to_arrays(tree, storages)


def _read_pickles(content: bytes) -> dict[str, np.ndarray]:
    """Read the older format of torch.save: five pickles, then the storages."""
    stream = io.BytesIO(content)
    if _unpickle(stream)[0] != MAGIC:
        raise InputError(f"is a pickle that torch.save did not write; {EXPECTED}")
    version, system = _unpickle(stream)[0], _unpickle(stream)[0]
    if version != PROTOCOL:
        raise InputError(f"must have format version {PROTOCOL}, got {version!r}")
    _check_byte_order(system["little_endian"])
    tree, kinds = _unpickle(stream)
    storages = {}
    for key in _unpickle(stream)[0]:
        (count,) = struct.unpack("<Q", stream.read(8))
        dtype = TORCH_DTYPES[kinds[key]]
        storages[key] = _decode(stream.read(count * np.dtype(dtype).itemsize), dtype)
        if len(storages[key]) != count:
            raise EOFError(f"{len(storages[key])} of {count} values in storage {key}")
    return _to_arrays(tree, storages)


def _check_byte_order(little: bool) -> None:
    if not little:
        raise InputError("numbers must be little-endian, got big-endian; save the file again")


def _decode(raw: bytes, dtype: Any) -> np.ndarray:
    values = np.frombuffer(raw, dtype) if len(raw) else np.empty(0, dtype)
    return values.astype(np.float32) if dtype == BFLOAT16 else values


class _Storage(NamedTuple):
    kind: str  # a key of TORCH_DTYPES
    key: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int  # in elements, like the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Ignored:
    """Stands for a NumPy number, such as a score stored beside the arrays, which is not read."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Ignore the state."""


class _TensorUnpickler(RestrictedUnpickler):
    """Builds `_Storage` and `_Tensor` records; `kinds` is {key of a storage: its type}."""

    expected = EXPECTED

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.kinds: dict[str, str] = {}

    def allowed_globals(self) -> dict[str, Any]:
        """Replacements for the globals by which PyTorch describes arrays."""
        return {
            "collections.OrderedDict": OrderedDict,
            "torch.Size": tuple,
            "torch._utils._rebuild_tensor_v2": lambda *arguments: _Tensor(*arguments[:4]),
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            "_codecs.encode": lambda *_: b"",  # of the bytes of a NumPy number
            "numpy.dtype": lambda *_: _Ignored(),
            "numpy.core.multiarray.scalar": lambda *_: _Ignored(),
            "numpy._core.multiarray.scalar": lambda *_: _Ignored(),
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return the name of a storage type, or the replacement for another global."""
        if module not in ("torch", "torch.cuda") or not name.endswith("Storage"):
            return super().find_class(module, name)
        if name not in TORCH_DTYPES:
            known = ", ".join(TORCH_DTYPES)
            raise InputError(f"storage must be one of {known}, got '{module}.{name}'")
        return name

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the record of a storage, whose values are outside the pickle."""
        _, kind, key, *_ = pid
        check_keys([key, kind], step=1)
        if self.kinds.setdefault(key, kind) != kind:
            raise InputError(f"holds storage {key!r} as both {self.kinds[key]!r} and {kind!r}")
        return _Storage(kind, key)


def _unpickle(stream: io.BytesIO) -> tuple[Any, dict[str, str]]:
    """Read the next pickle in a stream; return (value, {key of a storage: its type})."""
    unpickler = next_unpickler(stream, _TensorUnpickler)
    return unpickler.load(), unpickler.kinds


def _to_arrays(tree: Any, storages: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    for wrapper in WRAPPERS:
        if isinstance(tree, dict) and isinstance(tree.get(wrapper), dict):
            tree = tree[wrapper]
    if not isinstance(tree, dict):
        raise InputError(f"holds no arrays by name, only a {type(tree).__name__}; {EXPECTED}")
    named = {name: value for name, value in tree.items() if isinstance(name, str)}
    tensors = {name: value for name, value in named.items() if isinstance(value, _Tensor)}
    if not tensors:
        raise InputError(f"holds no arrays by name, but keys {[*named][:5]}; {EXPECTED}")
    return {name: _view(name, tensor, storages) for name, tensor in tensors.items()}


def _view(name: str, tensor: _Tensor, storages: Mapping[str, np.ndarray]) -> np.ndarray:
    """Make the array that a record describes; InputError if it exceeds its storage."""
    values = storages[tensor.storage.key]
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    if any(type(number) is not int or number < 0 for number in numbers):
        raise InputError(
            f"{name!r}: offset, shape and strides must be integers of at least 0, got {numbers}"
        )
    steps = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((length - 1) * step for length, step in steps)
    if 0 in tensor.shape:
        return np.empty(tensor.shape, values.dtype)
    if last >= len(values):
        raise InputError(
            f"{name!r}: last element must be below {len(values)}, the size of its storage, got "
            f"{last}"
        )
    size = values.itemsize
    strides = [step * size for step in tensor.strides]
    return np.ndarray(tensor.shape, values.dtype, values, tensor.offset * size, strides)
