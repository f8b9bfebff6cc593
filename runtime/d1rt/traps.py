"""What an engine says when the emulated machine stops: core, address, buffer, command, origin; or who waits on whom."""

from __future__ import annotations

from d1c.errors import Deadlock, Trap
from d1c.target.barrier import barrier_axes
from d1c.target.mesh import Mesh
from d1c.target.program import Arrive, Call, Command, Fetch, Fill, Free, Loop, Post, Program, Push, Send, Wait

FREE_BYTES = "a message, a fill or a result is written into free bytes only; Free is the credit for the next writer"
WRITTEN_BYTES = "bytes are read only after they have been written"
INSIDE = "every access stays inside its buffer"


class Fault(Exception):
    """An access that the machine refuses, as memory sees it; the engine adds core, command and origin."""

    def __init__(self, message: str, address: int, buffer: str, rule: str) -> None:
        super().__init__(message)
        self.message, self.address, self.buffer, self.rule = message, address, buffer, rule


def core_text(mesh: Mesh, core: int) -> str:
    """A core's coordinates, one per axis of the mesh: `dr 0 dc 1 nr 3 nc 5`."""
    words = []
    for factors in barrier_axes(mesh):
        position = 0
        for f in factors:
            position = position * mesh.sizes[mesh.index[f]] + int(mesh.coords[core, mesh.index[f]])
        words.append(f"{factors[0].partition('.')[0]} {position}")
    return " ".join(words) or "0"


def command_text(program: Program, command: Command) -> str:
    """A command in a few words, with the names of what it works on."""
    name = type(command).__name__
    buffers = program.buffers
    match command:
        case Call():
            return f"{name} {program.kernels[command.kernel][0]} -> {buffers[command.out].name}"
        case Push():
            moved = f"{buffers[command.source].name} -> {buffers[command.target].name}"
            return f"{name} exchange {command.exchange}, {moved}"
        case Send():
            return f"{name} {buffers[command.source].name} -> {buffers[command.target].name}"
        case Fetch():
            return f"{name} {command.array} -> {buffers[command.target].name}"
        case Arrive():
            return f"{name} exchange {command.exchange}, semaphore {command.semaphore}"
        case Wait() | Post():
            return f"{name} semaphore {command.semaphore}"
        case Free():
            return f"{name} {', '.join(buffers[b].name for b in command.buffers)}"
        case Fill():
            return f"{name} {buffers[command.buffer].name}"
        case Loop() if command.condition >= 0:
            return f"{name} while {buffers[command.condition].name}"
    return name


def rounds_text(rounds: tuple[int, ...]) -> str:
    """` (round 3)`; of nested loops ` (rounds 3, 1)`, outermost first; nothing outside of loops."""
    if not rounds:
        return ""
    return f" (round{'s' if len(rounds) > 1 else ''} {', '.join(map(str, rounds))})"


def trap(program: Program, core: int, command: Command, fault: Fault) -> Trap:
    """The fault of `command`, in the memory of `core`, as users see it."""
    return Trap(
        fault.message,
        core=core_text(program.mesh, core),
        address=fault.address,
        buffer=fault.buffer,
        op=command_text(program, command),
        where=command.origin,
        rule=fault.rule,
        remedy="the program is wrong: if d1c compiled it, report this text as a bug of d1c",
    )


def deadlock(waits: tuple[str, ...], blocked: int) -> Deadlock:
    """`waits`: one line for each of the first waiting threads; `blocked`: how many there are."""
    return Deadlock(
        f"{blocked} threads wait for ever",
        waits=waits,
        rule="some thread can always go on until all have ended",
        amounts={"waiting_threads": blocked},
        remedy="see who should have posted; if d1c compiled the program, report this text as a bug of d1c",
    )
