"""The loops of a program's threads: where they are, and that each has its counterpart in every thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from d1c.target.program import (
    Arrive,
    Barrier,
    Command,
    Fetch,
    Loop,
    Post,
    Program,
    Push,
    Send,
    Wait,
    every,
    numbered,
    place_text,
)

Place = tuple[tuple[int, ...], tuple[int, ...], Command]


def places(commands: Iterable[Command], at: tuple[int, ...] = (), path: tuple[int, ...] = ()) -> Iterator[Place]:
    """Loops and barriers of a thread: by how many loops they follow, per level of nesting; their number; themselves."""
    passed = 0
    for i, c in enumerate(commands):
        if isinstance(c, (Loop, Barrier)):
            yield (*at, passed), (*path, i), c
        if isinstance(c, Loop):
            yield from places(c.body, (*at, passed), (*path, i))
            passed += 1


def twice(commands: Iterable[Command], path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Command]]:
    """The commands of a thread with their numbers, two rounds of every loop: what meets over its border is seen."""
    for i, c in enumerate(commands):
        yield (*path, i), c
        if isinstance(c, Loop):
            for _ in range(2):
                yield from twice(c.body, (*path, i))


def broken(program: Program) -> tuple[str, str] | None:
    """(what is wrong, the rule) of the first rule about loops that a program breaks."""
    return _waits(program) or _counterparts(program)


def _threads(program: Program) -> Iterator[tuple[str, tuple[Command, ...]]]:
    for r in program.roles:
        for t, thread in enumerate(r.threads):
            yield f"role {r.name!r} thread {t}", thread


def _counts(c: Command) -> tuple[int, ...]:
    """Semaphores that a command counts, or whose counts it takes as waited for."""
    match c:
        case Barrier():
            return (*c.up, c.release)
        case Push() | Arrive() | Send() | Fetch() | Post():
            return (c.semaphore,)
        case Wait() if c.relative:
            return (c.semaphore,)
    return ()


def _waits(program: Program) -> tuple[str, str] | None:
    counted: dict[int, str] = {}
    for here, thread in _threads(program):
        for path, loop in numbered(thread):
            for c in every(loop.body) if isinstance(loop, Loop) else ():
                counted.update(dict.fromkeys(_counts(c), f"{here} command {place_text(path)} (Loop)"))
    for here, thread in _threads(program):
        for path, c in numbered(thread):
            if isinstance(c, Wait) and not c.relative and c.semaphore in counted:
                name = ", ".join(filter(None, ("Wait", c.origin)))
                return (
                    f"{here} command {place_text(path)} ({name}): waits for a count of semaphore {c.semaphore}, "
                    f"which {counted[c.semaphore]} goes on counting",
                    "every Wait on a semaphore that a loop counts is relative",
                )
    return None


def _counterparts(program: Program) -> tuple[str, str] | None:
    first: tuple[str, list[Place]] | None = None
    for here, thread in _threads(program):
        found = [x for x in places(thread) if isinstance(x[2], Loop)]
        first = first or (here, found)
        a, b = ([(at, c.trips, c.condition) for at, _, c in x if isinstance(c, Loop)] for x in (first[1], found))
        if a == b:
            continue
        k = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        mine, loops, other = (here, found, first[0]) if k < len(found) else (first[0], first[1], here)
        name = ", ".join(filter(None, ("Loop", loops[k][2].origin)))
        return (
            f"{mine} command {place_text(loops[k][1])} ({name}): has no counterpart in {other}",
            "all threads have the same loops: order, nesting, trips and condition",
        )
    return None
