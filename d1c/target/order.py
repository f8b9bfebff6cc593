"""What must happen before what on one core: the order that its threads' own posts and waits make.

Only semaphores that nobody but one thread of the core counts tell anything: the n-th count that the waiter needs is
then the n-th post. Barriers order cores: what precedes a barrier on one core precedes what follows it on any other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from d1c.target.loops import twice
from d1c.target.program import Arrive, Barrier, Command, Fetch, Loop, Post, Push, Role, Send, Wait, every


@dataclass(frozen=True, slots=True)
class Event:
    """A command of a thread, two rounds of every loop. `after`: so many barriers are over before it begins; `before`:
    the number of the first barrier that begins when it is over, a number that no barrier has if none is known. It is
    the `number`-th event of its thread, and begins when the first `clock[t]` of every thread t are over."""

    thread: int
    path: tuple[int, ...]
    command: Command
    after: int
    before: int
    number: int
    clock: tuple[int, ...]

    def over(self, later: Event) -> bool:
        """Whether it is known to be over when `later` begins, of the same core."""
        return later.clock[self.thread] > self.number


def _local(threads: Sequence[Sequence[Command]], foreign: set[int]) -> set[int]:
    """Semaphores that one thread posts to its own core, and that one thread waits for."""
    posts, waits = defaultdict(set), defaultdict(set)
    odd = set(foreign)
    for t, thread in enumerate(threads):
        for c in every(thread):
            match c:
                case Post():
                    posts[c.semaphore].add(t)
                    odd |= {c.semaphore} if c.to else set()
                case Wait():
                    waits[c.semaphore].add(t)
                case Push() | Send() | Fetch() | Arrive():
                    odd.add(c.semaphore)
                case Barrier():
                    odd |= {*c.up, c.release}
    return {s for s in posts if len(posts[s]) == 1 == len(waits[s]) and s not in odd}


def events(role: Role, others: Sequence[Role]) -> Iterator[Event]:
    """All commands of a role but loops; `others`: the program's other roles, which may count its semaphores too."""
    foreign = {
        c.semaphore for r in others for t in r.threads for c in every(t) if isinstance(c, Post | Send | Push) 
    }  # fmt: skip
    local = _local(role.threads, foreign)
    lists: list[list[tuple[tuple[int, ...], Command]]] = [
        [(p, c) for p, c in twice(t) if not isinstance(c, Loop)] for t in role.threads
    ]
    clocks = _clocks(lists, local)
    meets = next((t for t, x in enumerate(lists) if any(isinstance(c, Barrier) for _, c in x)), 0)
    barriers = [i for i, (_, c) in enumerate(lists[meets]) if isinstance(c, Barrier)] if lists else []
    passed = [0]
    for _, c in lists[meets] if lists else ():
        passed.append(passed[-1] + isinstance(c, Barrier))
    for t, commands in enumerate(lists):
        k = 0
        for i, (path, c) in enumerate(commands):
            while k < len(barriers) and clocks[meets][barriers[k]][t] <= i:
                k += 1
            yield Event(t, path, c, passed[clocks[t][i][meets]], k, i, clocks[t][i])


def _clocks(lists: list[list[tuple[tuple[int, ...], Command]]], local: set[int]) -> list[list[tuple[int, ...]]]:
    """Per thread and command: how many commands of every thread are over before it begins."""
    n = len(lists)
    now = [[0] * n for _ in range(n)]
    out: list[list[tuple[int, ...]]] = [[] for _ in range(n)]
    posts: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    waited: dict[int, int] = defaultdict(int)

    def run(t: int, blind: bool) -> bool:
        """Advance a thread as far as it gets; `blind`: past a wait of which nothing is known. Whether it moved."""
        moved = False
        while len(out[t]) < len(lists[t]):
            c = lists[t][len(out[t])][1]
            if isinstance(c, Wait) and c.semaphore in local:
                need = min(c.count.values) + (waited[c.semaphore] if c.relative else 0)
                known = posts[c.semaphore]
                if need > len(known) and not blind:
                    break
                blind = blind and need <= len(known)
                if 0 < need <= len(known):
                    now[t] = [max(a, b) for a, b in zip(now[t], known[need - 1], strict=True)]
                if c.relative:
                    waited[c.semaphore] = need
            out[t].append(tuple(now[t]))
            now[t][t] = len(out[t])
            if isinstance(c, Post) and c.semaphore in local:
                posts[c.semaphore].append(tuple(now[t]))
            moved = True
        return moved

    while any(len(out[t]) < len(lists[t]) for t in range(n)):
        if not any([run(t, False) for t in range(n)]):
            run(next(t for t in range(n) if len(out[t]) < len(lists[t])), True)
    return out
