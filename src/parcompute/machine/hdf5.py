"""Open what lies in an HDF5 file that anybody may have written, and nothing that lies elsewhere.

A name in a group may stand for an object of any other file: by an external link, or as a dataset whose content lies
in other files. A dataset may claim any size, though nothing of it is stored.
"""

from __future__ import annotations

import math
from typing import Any

# What the compression of HDF5 can at most make of a byte (zlib's limit).
_MOST_OF_A_BYTE = 1032


def has(parent: Any, name: str) -> bool:
    """Return whether a group has a member of that name, without opening it."""
    return bool(parent.id.links.exists(name.encode()))


def group(parent: Any, name: str) -> Any:
    """Return the group `name` of a group.

    Raises
    ------
    KeyError
        If there is none.
    RuntimeError
        If it is something else, or lies in another file.
    """
    import h5py

    return _member(parent, name, h5py.Group)


def dataset(parent: Any, name: str, most_bytes: float = math.inf) -> Any:
    """Return the dataset `name` of a group.

    Parameters
    ----------
    parent : h5py.Group
        The group.
    name : str
        Of its member.
    most_bytes : float
        The most that reading it may take.

    Raises
    ------
    KeyError
        If there is none.
    RuntimeError
        If it is something else, lies in another file, or claims more bytes than `most_bytes` or than it can have.
    """
    import h5py

    found = _member(parent, name, h5py.Dataset)
    how = found.id.get_create_plist()
    if how.get_layout() == h5py.h5d.VIRTUAL or how.get_external_count():
        raise RuntimeError(f"{found.name} has its content in other files")
    n_bytes = max(found.nbytes, math.prod(found.chunks) * found.dtype.itemsize if found.chunks else 0)
    if found.size and n_bytes > min(most_bytes, _MOST_OF_A_BYTE * found.id.get_storage_size()):
        raise RuntimeError(f"{found.name} claims {n_bytes} bytes, more than it can have")
    return found


def attribute(holder: Any, name: str) -> Any:
    """Return the attribute `name` of a group or dataset: a string, or a number of NumPy.

    Raises
    ------
    KeyError
        If there is none.
    RuntimeError
        If it is no single text or number.
    """
    import h5py

    if name not in holder.attrs:
        raise KeyError(f"there is no attribute {name} in {holder.name}")
    kind = holder.attrs.get_id(name)
    if kind.shape != () or not (kind.dtype.kind in "biufS" or h5py.check_string_dtype(kind.dtype)):
        raise RuntimeError(f"attribute {name} of {holder.name} is no single text or number")
    return holder.attrs[name]


def _member(parent: Any, name: str, kind: Any) -> Any:
    import h5py

    if not has(parent, name):
        raise KeyError(f"there is no {name} in {parent.name}")
    if parent.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise RuntimeError(f"{name} in {parent.name} is a link")
    found = parent[name]
    if not isinstance(found, kind):
        raise RuntimeError(f"{found.name} is no {kind.__name__.lower()}")
    return found
