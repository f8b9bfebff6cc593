"""Records that are often keys of dicts."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

_Class = TypeVar("_Class", bound=type)


def hashed_once(cls: _Class) -> _Class:
    """A frozen dataclass (without slots) whose instances remember their hash. It stays out of pickles and copies, as
    all but the fields does: the hash of a string is another in every process."""
    names = [f.name for f in fields(cls)]
    compute: Any = cls.__hash__

    def __hash__(self: Any) -> int:
        known = self.__dict__.get("hash")
        if known is None:
            known = self.__dict__["hash"] = compute(self)
        return int(known)

    def __getstate__(self: Any) -> dict[str, Any]:
        return {k: self.__dict__[k] for k in names}

    setattr(cls, "__hash__", __hash__)  # noqa: B010
    setattr(cls, "__getstate__", __getstate__)  # noqa: B010
    return cls
