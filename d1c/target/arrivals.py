"""What a program's messages and those who wait for them must keep: who counts which arrivals on which semaphore."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

from d1c.target import order
from d1c.target.program import (
    Arrive,
    Barrier,
    Command,
    Fetch,
    Fill,
    Loop,
    Program,
    Push,
    Role,
    Send,
    Wait,
    numbered,
    place_text,
)

Fault = tuple[str, str]
"""What is wrong, with its place; the rule."""
_Use = tuple[int, int, frozenset[int], order.Event]
"""From which barrier to which one, of which buffers, told of which command."""


def broken(program: Program) -> Fault | None:
    """The first rule about arrivals that a program breaks. Its references must be in order."""
    targets: dict[int, int] = {}
    return next(_pairs(program, targets), None) or next(_shared(program, targets), None)


def _commands(program: Program, kind: Callable[[Command], bool]) -> Iterator[tuple[str, Command]]:
    for r in program.roles:
        for t, thread in enumerate(r.threads):
            for path, c in numbered(thread):
                if kind(c):
                    yield f"role {r.name!r} thread {t} command {place_text(path)} ({type(c).__name__}): ", c


def _pairs(program: Program, targets: dict[int, int]) -> Iterator[Fault]:
    """What one command waits for another one of the program must send, to the same buffer by the same semaphore.
    `targets` gets the buffer of every exchange, modulo how many there are."""
    pushed: dict[int, tuple[int, int]] = {}
    for at, c in _commands(program, lambda c: isinstance(c, Push)):
        assert isinstance(c, Push)
        if pushed.setdefault(c.exchange, (c.target, c.semaphore)) != (c.target, c.semaphore):
            yield f"{at}exchange {c.exchange} is pushed to two targets or by two semaphores", ""
    for at, c in _commands(program, lambda c: isinstance(c, (Arrive, Fill))):
        if isinstance(c, Arrive) and pushed.get(c.exchange, (-1, -1))[1] != c.semaphore:
            yield f"{at}nobody pushes exchange {c.exchange} by semaphore {c.semaphore}", ""
        if isinstance(c, Fill) and c.exchange >= 0 and pushed.get(c.exchange, (c.buffer, 0))[0] != c.buffer:
            yield f"{at}exchange {c.exchange} goes to another buffer than {program.buffers[c.buffer].name}", ""
    # Parts of a window are told apart: behind the Arrives of one of them the others need not have come.
    alike: dict[tuple[int, int], set[int]] = defaultdict(set)
    for x, (target, semaphore) in pushed.items():
        cut = program.exchanges[x].cut
        targets[x] = target if cut is None else (1 + cut.window[0]) * len(program.buffers) + target
        if cut is not None:
            alike[targets[x], semaphore].add(x)
    for r in program.roles:
        for t, thread in enumerate(r.threads):
            yield from _apart(f"role {r.name!r} thread {t}: ", thread, targets, alike)


def _apart(
    at: str, commands: tuple[Command, ...], targets: dict[int, int], alike: dict[tuple[int, int], set[int]]
) -> Iterator[Fault]:
    """Messages for the same rows of a window, if one semaphore counts them, are waited for together."""
    for arrives, run in groupby(commands, lambda c: isinstance(c, Arrive)):
        stand = list(run)
        if arrives:
            here = {c.exchange for c in stand if isinstance(c, Arrive)}
            for c in stand:
                if isinstance(c, Arrive) and not alike.get((targets[c.exchange], c.semaphore), here) <= here:
                    yield (
                        f"{at}Arrive of exchange {c.exchange} stands apart from those for the same rows",
                        "what one semaphore counts for the same rows of a window is waited for together",
                    )
            continue
        for c in stand:
            if isinstance(c, Loop):
                yield from _apart(at, c.body, targets, alike)


def _shared(program: Program, targets: dict[int, int]) -> Iterator[Fault]:
    """At any time a semaphore counts the arrivals of one buffer: what one movement brings has come on all cores before
    a barrier, behind which the next one is sent. Rounds of a loop follow each other in the same way. In a program
    without barriers a thread names one buffer only."""
    barriers = any(True for _ in _commands(program, lambda c: isinstance(c, Barrier)))
    for k, r in enumerate(program.roles):
        found = list(order.events(r, [*program.roles[:k], *program.roles[k + 1 :]]))
        groups = [found] if barriers else [[e for e in found if e.thread == t] for t in range(len(r.threads))]
        together = _together(found, targets)
        uses = [_uses(group, targets, together) for group in groups]
        for x in uses:
            yield from _spans(program, r, x)
        yield from _fetches(program, r, _fetched(found), uses)


def _together(events: list[order.Event], targets: dict[int, int]) -> dict[int, frozenset[int]]:
    """Per exchange the buffers for which its Arrives stand together with others on the same semaphore, if they always
    do so."""
    out: dict[int, frozenset[int]] = {}
    for arrives, run in groupby(events, lambda e: (e.thread, isinstance(e.command, Arrive))):
        stand = [e.command for e in run if isinstance(e.command, Arrive)] if arrives[1] else []
        for c in stand:
            same = frozenset(targets[x.exchange] for x in stand if x.semaphore == c.semaphore)
            out[c.exchange] = same if out.get(c.exchange, same) == same else frozenset((targets[c.exchange],))
    return out


def _uses(
    events: list[order.Event], targets: dict[int, int], together: dict[int, frozenset[int]]
) -> dict[int, list[_Use]]:
    """Per semaphore its uses by messages of cores. A use lasts from a push to the Arrive that waits for it where the
    role has both, equally often; otherwise every command is a use. Buffers whose Arrives stand together count as one:
    behind them all messages have come, whatever each of them has waited for."""
    sent: dict[int, list[order.Event]] = defaultdict(list)
    come: dict[int, list[order.Event]] = defaultdict(list)
    uses: dict[int, list[_Use]] = defaultdict(list)
    for e in events:
        match e.command:
            case Push():
                sent[e.command.exchange].append(e)
            case Arrive():
                come[e.command.exchange].append(e)
            case Send():
                uses[e.command.semaphore].append((e.after, e.before, frozenset((e.command.target,)), e))
    for x in {*sent, *come}:
        pairs = list(zip(sent[x], come[x], strict=False)) if len(sent[x]) == len(come[x]) else []
        for first, last in pairs or ((e, e) for e in (*sent[x], *come[x])):
            assert isinstance(last.command, Push | Arrive)
            buffers = together.get(x, frozenset((targets[x],)))
            uses[last.command.semaphore].append((first.after, last.before, buffers, last))
    return uses


def _spans(program: Program, r: Role, uses: dict[int, list[_Use]]) -> Iterator[Fault]:
    """The uses of a semaphore for different buffers must not overlap."""
    for semaphore, spans in uses.items():
        ends: dict[frozenset[int], int] = {}  # when their last use is over
        for start, end, target, e in sorted(spans, key=lambda s: (s[0], s[1])):
            for other, over in ends.items():
                if other != target and over >= start:
                    a, b = (_name(program, x) for x in (other - target or other, target))
                    yield (
                        f"role {r.name!r} thread {e.thread} command {place_text(e.path)} ({type(e.command).__name__}): "
                        f"semaphore shared: {semaphore} counts arrivals for buffers {a} and {b}",
                        "between two barriers, an arrival semaphore belongs to one target buffer",
                    )
            ends = {k: v for k, v in ends.items() if v >= start}
            ends[target] = max(ends.get(target, -1), end)


def _name(program: Program, targets: frozenset[int]) -> str:
    return program.buffers[min(targets) % len(program.buffers)].name


@dataclass(frozen=True, slots=True)
class _Asked:
    """A use of a semaphore by Fetches: the first of them, the relative Wait that takes their counts (None: there is
    none), their buffers."""

    first: order.Event
    wait: order.Event | None
    buffers: frozenset[int]

    def over(self, later: order.Event) -> bool:
        return self.wait is not None and self.wait.over(later)


def _fetched(events: list[order.Event]) -> dict[int, list[_Asked]]:
    """Per semaphore its uses by Fetches. Buffers that one Wait waits for count as one."""
    asked: dict[int, deque[order.Event]] = defaultdict(deque)
    waits: dict[int, list[tuple[order.Event, int]]] = defaultdict(list)
    for e in events:
        if isinstance(e.command, Fetch):
            asked[e.command.semaphore].append(e)
        elif isinstance(e.command, Wait) and e.command.relative:
            waits[e.command.semaphore].append((e, max(e.command.count.values)))
    out: dict[int, list[_Asked]] = defaultdict(list)
    for semaphore, left in asked.items():
        for wait, count in waits[semaphore]:
            taken = [left.popleft() for _ in range(min(count, len(left)))]
            if taken:
                out[semaphore].append(_Asked(taken[0], wait, frozenset(map(_target, taken))))
        out[semaphore] += (_Asked(e, None, frozenset((_target(e),))) for e in left)
    return out


def _target(e: order.Event) -> int:
    assert isinstance(e.command, Fetch)
    return e.command.target


def _fetches(
    program: Program, r: Role, fetched: dict[int, list[_Asked]], others: list[dict[int, list[_Use]]]
) -> Iterator[Fault]:
    """What Fetches bring comes to the core that asks, so that its own threads' order is enough: a semaphore that counts
    one for a buffer counts nothing for another from there to the wait for it."""
    for semaphore, asked in fetched.items():
        clashes: list[tuple[order.Event, frozenset[int], frozenset[int]]] = []
        for k, x in enumerate(asked):
            clashes += (
                (y.first, x.buffers, y.buffers) for y in asked[k + 1 :]
                if y.buffers != x.buffers and not x.over(y.first) and not y.over(x.first)
            )  # fmt: skip
            for start, end, buffers, e in (u for uses in others for u in uses.get(semaphore, ())):
                before = isinstance(e.command, Arrive) and e.over(x.first)
                behind = x.wait is not None and x.wait.before < start
                if not (before or behind or end < x.first.after):
                    clashes.append((x.first, buffers, x.buffers))
        for e, one, other in clashes:
            a, b = (_name(program, x) for x in (one, other))
            yield (
                f"role {r.name!r} thread {e.thread} command {place_text(e.path)} ({type(e.command).__name__}): "
                f"semaphore shared: {semaphore} counts arrivals for buffers {a} and {b}",
                "a semaphore that counts a Fetch counts nothing for other buffers until it has been waited for",
            )
