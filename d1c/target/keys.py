"""Records that are often keys of dicts."""

from __future__ import annotations

from typing import Any, TypeVar

_Class = TypeVar("_Class", bound=type)


def hashed_once(cls: _Class) -> _Class:
    """A frozen dataclass (without slots) whose instances remember their hash. It stays out of pickles and copies: the
    hash of a string is another in every process."""
    compute: Any = cls.__hash__

    def __hash__(self: Any) -> int:
        known = self.__dict__.get("hash")
        if known is None:
            known = self.__dict__["hash"] = compute(self)
        return int(known)

    def __getstate__(self: Any) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "hash"}

    setattr(cls, "__hash__", __hash__)  # noqa: B010
    setattr(cls, "__getstate__", __getstate__)  # noqa: B010
    return cls
