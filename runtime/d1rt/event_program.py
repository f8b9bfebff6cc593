"""A program as the event loop runs it: commands of all threads in one list, their numbers per core, their messages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from d1c.target import barrier
from d1c.target.dtypes import dtype
from d1c.target.machine import Machine
from d1c.target.movement import turns
from d1c.target.program import Arrive, Barrier, Call, Command, Fetch, Fill, Loop, Post, Program, Push, Send, Wait
from d1c.target.program_check import role_cores
from d1rt import event_data as ev
from d1rt.command_cycles import PIPES, Work, call_work, fill_work
from d1rt.dips import asked, fetches, gated, gates, rate
from d1rt.engine_schedule import reached
from d1rt.engine_states import Movement, movements
from d1rt.launches import counted, posted_semaphores
from d1rt.linkload import Fabric
from d1rt.network import routes

ROUNDS = (8, 4)
"""Rounds of a loop that are simulated, at most: of outer loops, of loops in loops."""
Key = tuple[tuple[int, ...], int, int]
"""Where a command counts: the loops around it by number, how many loops came before it there, its layer."""


@dataclass(slots=True)
class Bodies:
    """The loops of all threads, which are alike: per level the stretches between loops, and the loops' own levels.
    `rounds`: how many are simulated; `trips`: how many there are."""

    rounds: int = 1
    trips: int = 1
    stretches: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    loops: dict[int, Bodies] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Thread:
    """One thread of a role: its cores, its commands `first` to `last` in the list, and of contexts those from `base`
    on, core after core."""

    role: int
    number: int
    cores: np.ndarray
    first: int
    last: int
    base: int


@dataclass(frozen=True)
class Prepared:
    """`code` and `routes` for the event loop, over the places of `fabric`. Per command of the list: `of` (the
    program's), `thread` (index into `threads`), `layer` (to which its time belongs), `pipe` [cores] of calls: the
    binding one, -1 without work.
    `places`: where keys begin in Code.done. `busy` [pipes, cores]: cycles of all simulated rounds."""

    fabric: Fabric
    code: ev.Code
    routes: ev.Routes
    of: list[Command | None]
    thread: np.ndarray
    layer: list[int]
    threads: list[Thread]
    bodies: Bodies
    places: dict[Key, int]
    busy: np.ndarray
    pipe: dict[int, np.ndarray]


class Expanded:
    """What does not depend on rates: the movements of a program multiplied out, kept between runs."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.moves: list[Movement] = movements(program.exchanges)


def prepare(expanded: Expanded, machine: Machine, fabric: Fabric, logs: bool) -> Prepared:
    """Translate for the event loop."""
    return _Translation(expanded, machine, fabric).made(logs)


def outgoing(move: Movement, width: int, machine: Machine) -> tuple[np.ndarray, ...]:
    """The messages of a movement of elements of `width` bytes by ascending sender: sender, class of receivers, packets,
    accesses of ports; class c is targets[first[c] : first[c + 1]], then `first` and `targets`."""
    m = move.messages
    packets, accesses = (np.maximum(x, 1) for x in m.packets(width, machine))
    inside = np.flatnonzero(move.class_of >= 0)
    targets = inside[np.argsort(move.class_of[inside], kind="stable")]
    order = np.argsort(m.src, kind="stable")
    return m.src[order], m.cls[order], packets[order], accesses[order], np.append(0, np.cumsum(move.size)), targets


class _Translation:
    def __init__(self, expanded: Expanded, machine: Machine, fabric: Fabric) -> None:
        self.program, self.moves = expanded.program, expanded.moves
        self.machine, self.mesh = machine, expanded.program.mesh
        self.fabric = gated(fabric) if fetches(expanded.program) else fabric
        self.commands: list[list[int]] = []
        self.of: list[Command | None] = []
        self.keys: list[Key | None] = []
        self.values: list[np.ndarray] = []
        self.value_rows: dict[bytes, int] = {}
        self.sends: list[np.ndarray] = []
        self.send_rows: dict[object, int] = {}
        self.parts: list[ev.Routes] = []
        self.sizes = [0, 0, 0, 0, 0]  # messages, classes, columns, receivers, branches
        self.bodies = Bodies()
        self.busy = np.zeros((len(PIPES), self.mesh.cores))
        self.pipe: dict[int, np.ndarray] = {}
        self.work: dict[object, Work] = {}
        self.posted = posted_semaphores(self.program)
        self.behind = -1, 0  # the number of the command behind the last Push, and that one's spread

    def made(self, logs: bool) -> Prepared:
        threads: list[Thread] = []
        owner: list[int] = []
        base = depth = 0
        for r, role in enumerate(self.program.roles):
            cores = role_cores(role, self.mesh)
            self.mask = np.zeros(self.mesh.cores, bool)
            self.mask[cores] = True
            for t, thread in enumerate(role.threads):
                first = len(self.commands)
                self.level(thread, (), self.bodies, 1, -1)
                self.emit(None, None, ev.STOP)
                owner += [len(threads)] * (len(self.commands) - first)
                threads.append(Thread(r, t, cores, first, len(self.commands), base))
                base += len(cores)
                depth = max(depth, _depth(thread))
        context = np.zeros((base, ev.CONTEXT), np.int64)
        for x in threads:
            mine = context[x.base : x.base + len(x.cores)]
            mine[:, ev.PC], mine[:, ev.CORE] = x.first, x.cores
        context[:, [ev.LAST, ev.BLOCKED, ev.LOG]] = -1, -1, -1
        order = np.argsort(context[:, ev.CORE], kind="stable")
        places, count = self.places()
        # A layer is done when it is computed; what else is done for it may go on beside the next. One that computes
        # nothing is done with its last message.
        works = (ev.CALL, ev.FILL)
        computed = {k for c, k in zip(self.commands, self.keys, strict=True) if c[ev.OP] in works}
        for command, of, key in zip(self.commands, self.of, self.keys, strict=True):
            counts = command[ev.OP] in works or (key not in computed and not isinstance(of, Barrier))
            command[ev.PLACE] = places[key] if key is not None and counts else -1
        every_core, semaphores = self.mesh.cores, int(self.machine.semaphores)
        most = int(np.bincount(context[:, ev.CORE]).max(initial=0))
        options = np.array([self.machine.launch_cycles, int(logs), most], np.int64)
        code = ev.Code(
            np.array(self.commands, np.int64).reshape(-1, ev.FIELDS), _stack(self.values, every_core),
            _stack(self.sends, every_core + 1), context, np.zeros((base, max(depth, 1)), np.int64),
            np.searchsorted(context[order, ev.CORE], np.arange(every_core + 1)), order, np.zeros(every_core, np.int64),
            np.zeros((every_core, semaphores), np.int64), np.zeros((every_core, semaphores), np.int64),
            np.full(max(count, 1), -1), np.full(max(count, 1), 2**62),
            np.zeros((4096 if logs else 1, ev.ENTRY), np.int64), options,
        )  # fmt: skip
        return Prepared(
            self.fabric,
            code,
            self.joined(),
            self.of,
            np.array(owner),
            [-1 if k is None else k[2] for k in self.keys],
            threads,
            self.bodies,
            places,
            self.busy,
            self.pipe,
        )

    # ---- commands ---------------------------------------------------------------------------------------------------

    def emit(self, command: Command | None, key: Key | None, op: int, a: int = 0, b: int = 0, c: int = 0) -> None:
        semaphore = getattr(command, "semaphore", 0)
        layer = command.layer if command is not None else -1
        self.commands.append([op, a, b, c, semaphore, -1, layer])
        self.of.append(command)
        self.keys.append(key)

    def level(
        self, commands: Sequence[Command], path: tuple[int, ...], bodies: Bodies, rounds: int, layer: int
    ) -> None:
        """A thread's commands or a loop's. What names no layer belongs to the next command's that does, or the last."""
        of = [c.layer for c in commands]
        for i in reversed(range(len(of) - 1)):
            of[i] = of[i] if of[i] >= 0 else of[i + 1]
        passed = 0
        for i, c in enumerate(commands):
            layer = of[i] if of[i] >= 0 else layer
            if isinstance(c, Loop):
                inner = bodies.loops.setdefault(passed, Bodies())
                inner.trips = counted(c)
                inner.rounds = min(inner.trips, ROUNDS[min(len(path), 1)])
                at = len(self.commands)
                self.emit(c, None, ev.LOOP, inner.rounds)
                self.level(c.body, (*path, passed), inner, rounds * inner.rounds, layer)
                if inner.rounds:
                    self.emit(c, None, ev.BACK, inner.rounds, at + 1)
                self.commands[at][ev.B] = len(self.commands)
                passed += 1
                continue
            bodies.stretches[passed].add(layer)
            self.command(c, (path, passed, layer), rounds)

    def command(self, c: Command, key: Key, rounds: int) -> None:
        match c:
            case Call() | Fill():
                work = self.cycles(c)
                values = np.zeros(self.mesh.cores, np.int64)
                values[work.active] = work.cycles
                for k in range(len(PIPES)):
                    self.busy[k, work.active] += rounds * work.busy[k]
                if isinstance(c, Call):
                    names = np.full(self.mesh.cores, -1, np.int8)
                    names[work.active] = work.busy.argmax(0)
                    self.pipe[len(self.commands)] = names
                    gemm = self.program.kernels[c.kernel][1].kind in ("mac", "fma")
                    self.emit(c, key, ev.CALL, self.row(values), gemm)
                else:
                    self.emit(c, key, ev.FILL, self.row(values))
            case Push():
                number = self.pushed(c)
                pause = self.pause(c) * (np.diff(self.sends[number]) > 0)
                if pause.any():
                    self.emit(c, key, ev.PAUSE, self.row(pause))
                self.emit(c, key, ev.SEND, number)
                self.behind = len(self.commands), c.spread
            case Send():
                self.emit(c, key, ev.SEND, self.sent(c))
            case Fetch():
                self.emit(c, key, ev.FETCH, *self.fetched(c))
            case Post():
                who, to = reached(c.to, np.arange(self.mesh.cores), self.mesh)
                own = np.bincount(to[who == to], minlength=self.mesh.cores)
                far = who != to
                self.emit(c, key, ev.POST, self.posts(who[far], to[far]), self.row(own) if own.any() else -1)
            case Arrive():
                self.emit(c, key, ev.WAIT, self.row(self.moves[c.exchange].expected), 1, 1)
            case Wait():
                remote = int(c.semaphore in self.posted)
                self.emit(c, key, ev.WAIT, self.row(c.count.of(self.mesh)), 2 if c.relative else 0, remote)
            case Barrier():
                self.barrier(c, key)

    def pause(self, c: Push) -> np.ndarray:
        """[cores] cycles before they send: what is left of the spread of a Push right before, then their turn."""
        number, before = self.behind
        left = before if number == len(self.commands) else 0
        return np.asarray(left - turns(left, self.mesh.cores) + turns(c.spread, self.mesh.cores))

    def barrier(self, c: Barrier, key: Key) -> None:
        """Its posts and waits. Who has posted takes no part in the levels that follow."""
        mesh = self.mesh
        axes = barrier.barrier_axes(mesh)
        waiting = np.arange(mesh.cores)
        for axis, cores, to in barrier.levels(mesh):
            semaphore = c.up[axis]
            stays = cores == to
            count = np.zeros(mesh.cores, np.int64)
            count[cores[stays]] = mesh.parts(axes[axis]) - 1
            self.emit(c, key, ev.POST, self.posts(cores[~stays], to[~stays]), -1)
            self.commands[-1][ev.SEMAPHORE] = semaphore
            self.emit(c, key, ev.WAIT, self.row(count), 1, 1)
            self.commands[-1][ev.SEMAPHORE] = semaphore
        root = barrier.root(mesh)
        own = np.zeros(mesh.cores, np.int64)
        own[root] = 1
        others = waiting[waiting != root]
        self.emit(c, key, ev.POST, self.posts(np.full(len(others), root), others), self.row(own))
        self.commands[-1][ev.SEMAPHORE] = c.release
        self.emit(c, key, ev.WAIT, self.row(np.ones(mesh.cores, np.int64)), 1, 1)
        self.commands[-1][ev.SEMAPHORE] = c.release

    def cycles(self, c: Call | Fill) -> Work:
        everyone = np.ones(self.mesh.cores, bool)
        if isinstance(c, Fill):
            return fill_work(self.program, c, everyone, self.machine)
        key = c.kernel, c.trips, c.held
        if key not in self.work:
            self.work[key] = call_work(self.program, c, everyone, self.machine)
        return self.work[key]

    def row(self, values: np.ndarray) -> int:
        """The number of a row of integers per core."""
        data = np.ascontiguousarray(values, np.int64).tobytes()
        if data not in self.value_rows:
            self.value_rows[data] = len(self.values)
            self.values.append(np.frombuffer(data, np.int64))
        return self.value_rows[data]

    # ---- messages ---------------------------------------------------------------------------------------------------

    def pushed(self, c: Push) -> int:
        move, width = self.moves[c.exchange], dtype(self.program.buffers[c.source].dtype).bytes
        key = id(move), width, c.by_columns
        if key not in self.send_rows:
            src, cls, packets, accesses, first, targets = outgoing(move, width, self.machine)
            self.send_rows[key] = self.messages(src, cls, packets, accesses, first, targets, c.by_columns)
        return self.send_rows[key]

    def sent(self, c: Send) -> int:
        who, to = reached(c.to, np.arange(self.mesh.cores), self.mesh)
        size = c.elements.of(self.mesh) * dtype(self.program.buffers[c.source].dtype).bytes
        return self.multicasts(who, to, np.maximum(-(-size // self.machine.packet_bytes), 1))

    def fetched(self, c: Fetch) -> tuple[int, int]:
        """What cores get from their gates; how far these are."""
        cores, size = asked(self.program, c, self.mesh)
        packets = np.full(len(cores), max(1, -(-size // self.machine.packet_bytes)))
        cycles = np.maximum(packets, np.ceil(packets * self.machine.packet_bytes / rate(self.machine))).astype(np.int64)
        src, each = gates(self.fabric, cores), np.arange(len(cores))
        way = np.zeros(self.mesh.cores, np.int64)
        way[cores] = self.fabric.distance(cores, src)
        number = self.messages(src, each, packets, cycles, np.arange(len(cores) + 1), cores)
        begin, trains = self.sends[number][0], self.parts[-1].message  # by gates; here by who asks
        self.sends[number] = begin + len(trains) // max(len(cores), 1) * np.searchsorted(
            cores, np.arange(self.mesh.cores + 1)
        )
        return number, self.row(way)

    def posts(self, who: np.ndarray, to: np.ndarray) -> int:
        if not len(who):
            return -1
        key = who.tobytes(), to.tobytes()
        if key not in self.send_rows:
            self.send_rows[key] = self.multicasts(who, to, np.ones(self.mesh.cores, np.int64))
        return self.send_rows[key]

    def multicasts(self, who: np.ndarray, to: np.ndarray, packets: np.ndarray) -> int:
        """One message from each core in `who` to all that it reaches."""
        order = np.argsort(who, kind="stable")
        src, count = np.unique(who, return_counts=True)
        first = np.concatenate([[0], np.cumsum(count)])
        return self.messages(src, np.arange(len(src)), packets[src], packets[src], first, to[order])

    def messages(
        self, src: np.ndarray, cls: np.ndarray, packets: np.ndarray, accesses: np.ndarray, first: np.ndarray,
        targets: np.ndarray, by_columns: bool = False,
    ) -> int:  # fmt: skip
        """Add messages, by ascending sender; their row of Code.sends."""
        made, _, _ = routes(self.fabric, src, cls, packets, accesses, first, targets, by_columns)
        n, classes, bands, receivers, branches = self.sizes
        begin = np.searchsorted(made.message[:, 0], np.arange(self.mesh.cores + 1)) + n
        message, branch = made.message.copy(), made.branch.copy()
        message[:, 3] += classes
        message[message[:, 4] >= 0, 4] += branches
        branch[:, 1:5] += np.where(branch[:, 1:5] >= 0, branches, 0)
        branch[:, 5] += np.where(branch[:, 5] >= 0, receivers, 0)
        band = made.band[:-1] + np.array([0, 0, 0, receivers], np.int32)
        receiver = made.receiver + np.array([0, 0, 0, 0, bands], np.int32)
        self.parts.append(ev.Routes(message, made.first[:-1] + bands, band, receiver, branch))
        added = len(message), len(made.first) - 1, len(band), len(receiver), len(branch)
        self.sizes = [a + b for a, b in zip(self.sizes, added, strict=True)]
        self.sends.append(begin)
        return len(self.sends) - 1

    def joined(self) -> ev.Routes:
        """The routes of all messages."""
        _, _, bands, receivers, _ = self.sizes
        end = np.array([[0, 0, 0, receivers]], np.int32)

        def all_of(name: str, *more: np.ndarray) -> np.ndarray:
            return np.concatenate([*(getattr(p, name) for p in self.parts), *more])

        return ev.Routes(
            all_of("message", np.zeros((0, 8), np.int32)), all_of("first", np.array([bands], np.int64)),
            all_of("band", end), all_of("receiver", np.zeros((0, 5), np.int32)),
            all_of("branch", np.zeros((0, 6), np.int32)),
        )  # fmt: skip

    # ---- places -----------------------------------------------------------------------------------------------------

    def places(self) -> tuple[dict[Key, int], int]:
        """Where each key's cycles stand, a cell for every simulated round; how many cells there are."""
        out: dict[Key, int] = {}
        count = 0

        def walk(bodies: Bodies, path: tuple[int, ...], rounds: int) -> None:
            nonlocal count
            for stretch, keys in bodies.stretches.items():
                for layer in keys:
                    out[path, stretch, layer] = count
                    count += rounds
            for number, inner in bodies.loops.items():
                walk(inner, (*path, number), rounds * max(inner.rounds, 1))

        walk(self.bodies, (), 1)
        return out, count


def _stack(rows: list[np.ndarray], width: int) -> np.ndarray:
    return np.stack(rows).astype(np.int64) if rows else np.zeros((1, width), np.int64)


def _depth(commands: Iterable[Command]) -> int:
    return max((1 + _depth(c.body) for c in commands if isinstance(c, Loop)), default=0)
