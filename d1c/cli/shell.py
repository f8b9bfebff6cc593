"""What all commands share: refusals as one block and an exit code, files that are whole or absent, flags, progress."""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ParamSpec

import typer

from d1c.errors import EXIT_INTERRUPTED, D1Error, InputError, UsageError

if TYPE_CHECKING:
    import numpy as np

P = ParamSpec("P")
PROGRESS_AFTER = 1.0
"""Seconds before anything moves on the screen."""


def fail(error: D1Error, error_format: str) -> int:
    """Print a refusal on stderr; its exit code."""
    import json  # at the cost of every --help otherwise

    print(json.dumps(error.to_json(), default=str) if error_format == "json" else str(error), file=sys.stderr)
    return error.exit_code


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """A command whose refusals, interruptions and bugs end as the user should see them."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        error_format = str(kwargs.get("error_format") or "text")
        try:
            if error_format not in ("text", "json"):
                error_format = "text"
                raise UsageError(f"no error format {kwargs['error_format']!r}", rule="formats are text, json")
            command(*args, **kwargs)
        except D1Error as error:
            raise typer.Exit(fail(error, error_format)) from None
        except KeyboardInterrupt:
            print("interrupted; nothing half-written is left", file=sys.stderr)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except typer.Exit:
            raise
        except BrokenPipeError:  # the reader of our output went away, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except Exception as error:
            if kwargs.get("debug"):
                raise
            kind = type(error).__name__
            bug = D1Error(
                f"this is a bug of d1c: {kind}: {error}",
                remedy="run again with --debug and report the traceback with the command and the model",
            )
            raise typer.Exit(fail(bug, error_format)) from None

    return run


# ---- files ---------------------------------------------------------------------------------------------------------


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """`write` a file beside `path`, then rename it: whatever happens, `path` is whole or as it was. UsageError."""
    import tempfile

    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}", remedy="choose another place") from None
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(name)
        if isinstance(error, OSError):
            raise UsageError(f"cannot write {path}: {error.strerror or error}", remedy="choose another place") from None
        raise


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON; infinities and NaN, which JSON does not have, become null."""
    import json

    text = json.dumps(_finite(value), indent=2, default=_plain) + "\n"
    write_file(path, lambda file: file.write(text.encode()))


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and value - value != 0 else value


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """The arrays under their names; types that numpy itself does not have as f32 or i8 (u4, u2: u8), exactly."""
    import numpy as np

    from d1c.target.dtypes import from_numpy

    def plain(v: np.ndarray) -> np.ndarray:
        if v.dtype.type.__module__ == "numpy":
            return v
        t = from_numpy(v.dtype)
        return v.astype({"int": np.int8, "uint": np.uint8}.get(t.kind, np.float32))

    known = {k: plain(v) for k, v in arrays.items()}
    write_file(path, lambda file: np.savez(file, **known))  # type: ignore[arg-type]


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name. InputError: missing, not an .npz, damaged, pickled objects."""
    import zipfile

    import numpy as np

    try:
        with path.open("rb") as raw:
            if not zipfile.is_zipfile(raw):
                npy = raw.seek(0) == 0 and raw.read(6) == b"\x93NUMPY"
                raise ValueError("it is an .npy, one array without a name" if npy else "it is no archive, or truncated")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise InputError(f"there is no file {path}", where=str(path), remedy="check the path") from None
    except Exception as error:  # zipfile, zlib, numpy and OS each have their own class for a damaged file
        raise InputError(
            f"cannot read {path} as .npz: {getattr(error, 'strerror', None) or error}",
            where=str(path),
            rule="inputs come as an .npz, one array per input name",
            remedy="write it with numpy.savez(path, NAME=array)",
        ) from None


def check_outputs(*outputs: Path | None, inputs: Sequence[Path | None] = ()) -> None:
    """Refuse, before any work is done, outputs that cannot be files, and those that would replace an input or another
    output."""
    taken = {path.resolve(): "this command reads it" for path in inputs if path is not None}
    for path in outputs:
        if path is None:
            continue
        if not path.parent.is_dir():
            raise UsageError(f"cannot write {path}: there is no folder {path.parent}", remedy="make the folder first")
        if path.is_dir():
            raise UsageError(f"cannot write {path}: it is a folder", remedy="name a file")
        if path.exists() and not path.is_file():
            raise UsageError(f"cannot write {path}: it is a device or a pipe", remedy="name a file")
        if path.resolve() in taken:
            raise UsageError(f"cannot write {path}: {taken[path.resolve()]}", remedy="name another file")
        taken[path.resolve()] = "another output goes there"


# ---- flags ---------------------------------------------------------------------------------------------------------


def shapes_of(flags: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`NAME=1,3,224,224` of every --shape; the name may hold = and :."""
    out = {}
    for flag in flags:
        name, equals, numbers = flag.rpartition("=")
        try:
            out[name] = tuple(int(n) for n in numbers.split(",") if n.strip())
        except ValueError:
            equals = ""
        if not equals or not name:
            raise UsageError(f"--shape {flag!r} is not NAME=NUMBERS", remedy="for example --shape image=1,3,224,224")
    return out


def dims_of(flags: Sequence[str]) -> dict[str, int]:
    """`batch=8` of every --dim."""
    out = {}
    for flag in flags:
        name, _, number = flag.rpartition("=")
        if not name or not number.strip().isdigit():
            raise UsageError(f"--dim {flag!r} is not NAME=NUMBER", remedy="for example --dim batch=8")
        out[name] = int(number)
    return out


def freeze_of(flags: Sequence[str]) -> dict[str, Any]:
    """`NAME=FILE.npy`, `NAME=3`, `NAME=1,2` or `NAME=[[1,2]]` of every --freeze: arrays, or plain numbers and lists."""
    import json

    out: dict[str, Any] = {}
    for flag in flags:
        name, _, text = flag.rpartition("=")
        try:
            if not name:
                raise ValueError("no name")
            if text.endswith(".npy"):
                import numpy as np

                out[name] = np.load(text, allow_pickle=False)
            else:
                out[name] = json.loads(f"[{text}]" if "," in text and not text.startswith("[") else text)
        except (OSError, EOFError, ValueError) as error:
            raise UsageError(
                f"--freeze {flag!r} is not NAME=FILE.npy or NAME=NUMBERS: {error}",
                remedy="for example --freeze axes=0,1 or --freeze k=[3] or --freeze table=table.npy",
            ) from None
    return out


# ---- progress --------------------------------------------------------------------------------------------------------


class _Bar:
    """A spinner with the running step and the elapsed time; silent until PROGRESS_AFTER seconds have passed."""

    def __init__(self, title: str, steps: int) -> None:
        self.title, self.steps, self.done, self.step = title, steps, -1, ""
        self.lock = threading.Lock()
        self.live: Any = None
        self.timer = threading.Timer(PROGRESS_AFTER, self.start)
        self.timer.daemon = True
        self.closed = False
        self.timer.start()

    def start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        with self.lock:
            if self.closed:
                return
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            self.live = Progress(*columns, console=Console(stderr=True), transient=True)
            self.task = self.live.add_task(self.text, total=self.steps or None, completed=max(self.done, 0))
            self.live.start()

    @property
    def text(self) -> str:
        return f"{self.title} {self.step}".rstrip()

    def __call__(self, step: str) -> None:
        with self.lock:
            self.done, self.step = self.done + 1, step
            if self.live is not None:
                self.live.update(self.task, description=self.text, completed=self.done)

    def close(self) -> None:
        self.timer.cancel()
        with self.lock:
            self.closed = True
            if self.live is not None:
                self.live.stop()


@contextmanager
def progress(title: str, steps: int = 0) -> Iterator[Callable[[str], None]]:
    """Show on stderr what is going on, once it has taken a second; nothing where stderr is no terminal.

    Yields a function that is told the name of each step as it starts."""
    if not sys.stderr.isatty():
        yield lambda step: None
        return
    bar = _Bar(title, steps)
    try:
        yield bar
    finally:
        bar.close()


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """The wall time of the block, as `seconds[name]`."""
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def peak_memory() -> int:
    """The largest resident size of this process so far, bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says starts with the parent's
        return next(int(x.split()[1]) for x in status.read_text().splitlines() if x.startswith("VmHWM")) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
