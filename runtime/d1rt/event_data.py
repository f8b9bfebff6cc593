"""What the event loop works on: its queue, the network's state, routes, threads; and the numbers of their fields.

The compiled loop has these numbers in it: numba looks for changes in event_loop.py alone, so touch that file too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

WINDOW = 1 << 14
# Results of run().
DONE, FULL, PAUSED = 0, 1, 2
# Fields of Queue.state.
NOW, NEAR, FAR, MADE, FREE, ROOM, LOGGED, END, EVENTS = range(9)
STATES = 9
# Kinds of events. A head comes along a row (RIGHT, LEFT) or a column (DOWN, UP). WAKE, LEAVE: the first in the queue of
# a link, of a core's port, goes.
THREAD, START, SOURCE, TAIL, RIGHT, LEFT, DOWN, UP, WAKE, LEAVE = range(10)
# Ways of a link besides right, left, down, up: from a router into its core's SRAM, out of that into the router.
INTO, OUT_OF = 4, 5
# Fields of a link, and the parts of a cycle in which its time is counted.
FREED, BUSY, PLACES, SIZE, FIRST, FINAL, CALLED, EDGE = range(8)
BITS = 20
PART = 1 << BITS
# What a message has waited for.
PORT, ROW, COLUMN, DIE_EDGE, DIP = range(5)
# Commands.
CALL, FILL, SEND, POST, WAIT, LOOP, BACK, STOP, FETCH, PAUSE = range(10)
# Fields of a command.
OP, A, B, C, SEMAPHORE, PLACE, LAYER = range(7)
FIELDS = 7
# Fields of a context: one thread of one core.
PC, CORE, LAST, WAITED, BLOCKED, NEED, SINCE, ROUND, DEPTH, LOG, FINISHED = range(11)
CONTEXT = 11
NODE = 12
LEG = 1 << 28
"""Cursors from here on are of receivers (LEG + number) to which a train goes that has left the trunk of its tree."""
ENTRY = 7


class Queue(NamedTuple):
    """Events: `state` (see above), `head` and `tail` [WINDOW] of the cycles' lists, `far` [n, 3] heap, `node` [n,
    NODE].

    An event's node: next, kind + 16 x coordinate, train, command, cursor, longest wait, time of sending in two halves.
    A copy of a train in the queue of a link has the link that it came over for coordinate, then since when it waits,
    the node that counts (in field 2) how many copies still wait (-1: this alone), and the link. A command that sends,
    in the queue of a core's port, has the train that is next, for cursor its context or -1, then the train behind its
    last, and the port."""

    state: np.ndarray
    head: np.ndarray
    tail: np.ndarray
    node: np.ndarray
    far: np.ndarray


class Net(NamedTuple):
    """The network. Links are numbered (way * rows + row) * columns + column of their router: those that leave it right,
    left, down, up, into its core's SRAM, and the one out of that. `place` [places, 2] row, column of cores and gates
    (d1rt.dips); `gate` [places] 1 for these; `links` [links, 8]: when it is free (in PARTs of a cycle), packets (SRAM:
    cycles) so far, free places for packets in the buffer behind it, all of them, first and last node that wait for it,
    whether one of them has been called, the die edge that it crosses or -1; `edges` [edges, 2] (PARTs), `dips` [dips,
    2]: when it is free, packets so far; `dip_of` [rows] a row's interface processor; `costs`: hop, crossing, inject,
    eject, HBM access, way between an interface processor and the edge; `parts`: PARTs of a packet on a link, on a die
    edge; `rates`: cycles of these and of a packet of an interface processor; `shape`: rows, columns.

    Behind the links come as many rows for the trains that go along columns first: these have the same link, but
    buffers and a queue to themselves (at a core's ports a buffer only), or the two orders could wait for each other in
    a circle. Where these leave their trunk they go on in the buffers of the others, which are never left for theirs."""

    place: np.ndarray
    gate: np.ndarray
    links: np.ndarray
    edges: np.ndarray
    dips: np.ndarray
    dip_of: np.ndarray
    costs: np.ndarray
    parts: np.ndarray
    rates: np.ndarray
    shape: np.ndarray


class Routes(NamedTuple):
    """`message` [m, 8], a row per train: sender, packets, cycles at the ports, class of receivers, root of its tree or
    -1, whether it is the last of its message, whether it goes along the column first, and if so the sender's row in its
    die. `first` [classes + 1]: a class's bands. `band` [k + 1, 4]: bands of columns with receivers, ascending in a
    class: the least and the last column in which a trunk may be, the first of the die (linkload.Bands), and the first
    receiver. `receiver` [t, 5]: row, column, core, 1 for the first of its band, 2 the last, 3 both, and the band; by
    row, then column. For a class of trains that go along the column first rows and columns have changed places;
    columns of one die without a gap are one band; for others each column is one. `branch` [b, 6]: for messages with a
    tree of their own (past dead routers) a router, row by row, the
    branches to its right, left, down, up, and the receiver here, -1 for none."""

    message: np.ndarray
    first: np.ndarray
    band: np.ndarray
    receiver: np.ndarray
    branch: np.ndarray


class Code(NamedTuple):
    """The threads. `commands` [n, FIELDS]; `values` [rows, cores] durations and counts; `sends` [rows, cores + 1]
    ranges of messages by sender; `context` [n, CONTEXT]; `rounds` [n, depth] of the loops around; contexts of core c
    are by_core[core_first[c]] to by_core[core_first[c + 1]]; `busy` [cores] when a core's kernel ends; `counts` and
    `waited` [cores, semaphores]; `done`, `begun` [places] last and first cycle; `log` [n, ENTRY]; `launch`, `gemm`."""

    commands: np.ndarray
    values: np.ndarray
    sends: np.ndarray
    context: np.ndarray
    rounds: np.ndarray
    core_first: np.ndarray
    by_core: np.ndarray
    busy: np.ndarray
    counts: np.ndarray
    waited: np.ndarray
    done: np.ndarray
    begun: np.ndarray
    log: np.ndarray
    options: np.ndarray


# Fields of Code.options.
LAUNCH, LOGS, MOST = range(3)
