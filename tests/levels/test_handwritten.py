"""The example written by hand runs, and every way to break it is refused with the line and the reason."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import d1rt
from d1c.emit.assemble import assemble
from d1c.errors import D1Error, Deadlock, DoesNotFit, ParseError, Trap, VerifyError
from d1c.target.machine import PRESETS
from d1c.target.program import Program, Send, Wait


@pytest.fixture(scope="module")
def text(examples: Path) -> str:
    return (examples / "handwritten" / "double_buffer.d1").read_text()


def change(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


def line_of(text: str, part: str, which: int = 0) -> str:
    """`mine.d1:LINE` of the `which`-th line that contains `part`."""
    lines = [n for n, line in enumerate(text.split("\n"), 1) if part in line]
    return f"mine.d1:{lines[which]}"


def refusal(text: str) -> D1Error:
    with pytest.raises(D1Error) as caught:
        assemble(text, "mine.d1")
    return caught.value


def run(program: Program, **options: object) -> dict[str, np.ndarray]:
    x = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)
    return d1rt.load(program).run({"x": x}, engine="numpy", **options)  # type: ignore[arg-type]


def stopped(text: str) -> D1Error:
    program = assemble(text, "mine.d1")
    with pytest.raises(D1Error) as caught:
        run(program)
    return caught.value


def test_the_example_runs(examples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("handwritten_run", examples / "handwritten" / "run.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()
    assert "the same bits as numpy" in capsys.readouterr().out


def test_the_order_of_events_does_not_matter(text: str) -> None:
    program = assemble(text)
    first = run(program)["sum"]
    assert all(np.array_equal(run(program, shuffle=seed)["sum"], first) for seed in range(4))


def test_commands_know_their_lines(text: str) -> None:
    program = assemble(text, "mine.d1")
    sends = [c for c in program.roles[0].threads[0] if isinstance(c, Send)]
    assert sends[0].origin == line_of(text, "tile.send(%y.a, %slot.a)")
    waits = [c for c in program.roles[1].threads[0] if isinstance(c, Wait)]
    assert waits[2].origin == line_of(text, "tile.wait {semaphore = 0, count = 2}")


# ---- refused by the assembler ---------------------------------------------------------------------------------------


def test_syntax_error(text: str) -> None:
    wrong = change(text, ("tile.wait {semaphore = 2, count = 1} ", "tile.wait {semaphore = 2 count = 1} "))
    error = refusal(wrong)
    assert isinstance(error, ParseError)
    assert f"mine.d1:{error.line}" == line_of(wrong, "semaphore = 2 count")
    assert wrong.split("\n")[error.line - 1][error.column - 1 :].startswith("count")
    shown = str(error).split("\n")
    assert shown[2].index("^") == shown[1].index("count"), "the caret stands under the word"
    assert "expected" in error.remedy and "','" in error.remedy


def test_unknown_names_are_parse_errors_with_a_suggestion(text: str) -> None:
    error = refusal(change(text, ("tile.free(%sum)", "tile.free(%sun)")))
    assert isinstance(error, ParseError) and "%sun" in error.message and "%sum" in error.remedy
    error = refusal(change(text, ("tile.free(%sum)", "tile.fre(%sum)")))
    assert isinstance(error, ParseError) and "tile.free" in error.remedy
    error = refusal(change(text, ("tile.free(%slot.b, %part)", "tile.free(%slot.b, %part) {name = 1}")))
    assert isinstance(error, ParseError) and "no attribute name" in error.message
    error = refusal(change(text, ('{kernel = "add"}', '{kernel = "ad"}')))
    assert isinstance(error, VerifyError) and "no kernel 'ad'" in error.message and "add" in error.remedy


@pytest.mark.parametrize(
    ("old", "new", "words", "line"),
    [
        ("buffer<16xf32 @ 448>", "buffer<16xbf16 @ 448>", ("one element type", "f32", "bf16"), "tile.send("),
        ("buffer<16xf32 @ 640>", "buffer<16xi32 @ 640>", ("%part holds i32", "@add takes f32"), "tile.call(%part"),
        ("buffer<64xf32 @ 0>", "buffer<64xf16 @ 0>", ("%x holds f16", "@scale_add_1 takes f32"), "tile.call(%y.a"),
        ("16, semaphore = 1", "17, semaphore = 1", ("0 to 16 of %y.b", "has 16"), "elements = 17"),
        ("shape = [8, 16]", "shape = [8, 17]", ("output 'sum'", "does not fit buffer sum"), "tile.output"),
        ("bases = [48, 0]", "bases = [49, 0]", ("49 to 64 of %x", "has 64"), "bases = [49, 0]"),
        ("bases = [48, 0]", "bases = [48]", ("1 bases for 2 operands",), "bases = [48]"),
        ("(%sum, %part, %slot.b)", "(%sum, %part)", ("passes 1 operands", "takes 2"), "(%sum, %part)"),
        ('to = "nc.1-1"', 'to = "nc.3-1"', ("no factor nc.3", "dc nr nc.0 nc.1"), 'to = "nc.3-1"'),
        ('to = "nc.1+1"', 'to = "nc.1>1"', ("cannot read 'nc.1>1'",), 'to = "nc.1>1"'),
        ("semaphore = 3", "semaphore = 16", ("no semaphore 16", "a core has 16"), "semaphore = 16"),
        ("nc.0: 0 1", "nc.0: 0 1 1", ("index has 3 values for 2 positions",), None),
        ("nc.1 1..2", "nc.1 1..3", ("nc.1",), None),
        ("nc.1 1..2", "nc.1 2..2", ("empty range",), "nc.1 2..2"),
        ('cores = "nc.1 0..1"', 'cores = "nc.0 0..1"', ("shares cores with role 'producer'",), '"consumer"'),
        ('"scale" = dense', '"scales" = dense', ("no constant 'scale'", "scales"), "tile.place(%scale)"),
    ],
)  # fmt: skip
def test_type_errors(text: str, old: str, new: str, words: tuple[str, ...], line: str | None) -> None:
    wrong = change(text, (old, new))
    error = refusal(wrong)
    assert isinstance(error, VerifyError) and error.remedy
    for word in words:
        assert word in str(error)
    if line is not None:
        assert error.where == line_of(wrong, line)


def test_sram_overflow(text: str) -> None:
    wrong = change(text, ("@ 704>", "@ 65504>"))
    error = refusal(wrong)
    assert isinstance(error, DoesNotFit)
    assert error.where == line_of(wrong, "@ 65504>") and "%sum" in error.message
    assert error.amounts["sram_bytes"] == 65_536
    beyond = error.amounts["address"] + error.amounts["bytes"] + error.amounts["code_bytes"] - 65_536
    assert f" {beyond:,} B" in error.message and beyond > 32


def test_overlapping_buffers(text: str) -> None:
    wrong = change(text, ("@ 256>", "@ 252>"))  # the input's last element
    error = refusal(wrong)
    assert isinstance(error, DoesNotFit)
    assert error.where == line_of(wrong, "@ 252>")
    assert "%x and %scale overlap" in error.message and error.amounts["shared_bytes"] == 4
    assemble(change(text, ("@ 640>", "@ 320>")), "mine.d1")  # %part on %y.a, which a tile.free orders


def test_a_semaphore_shared_by_two_slots(text: str) -> None:
    wrong = change(text, ("elements = 16, semaphore = 1", "elements = 16, semaphore = 0"))
    error = refusal(wrong)
    assert isinstance(error, VerifyError)
    assert "semaphore 0 is shared" in error.message and "%slot.a" in error.message and "%slot.b" in error.message
    assert error.where == line_of(wrong, "tile.send(%y.b")
    assert line_of(wrong, "tile.send(%y.a") in error.message, "both senders are named"


def test_a_semaphore_of_arrivals_and_posts(text: str) -> None:
    wrong = change(text, ("tile.post {semaphore = 3,", "tile.post {semaphore = 1,"))
    error = refusal(wrong)
    assert isinstance(error, VerifyError)
    assert "semaphore 1" in error.message and error.where == line_of(wrong, "tile.post {semaphore = 1")


def test_another_machine(text: str) -> None:
    assert assemble(text, "mine.d1", PRESETS["test"]).mesh.cores == 16
    with pytest.raises(VerifyError, match=r"no factor nc\.1|mesh"):
        assemble(text, "mine.d1", PRESETS["d1-node"])
    with pytest.raises(VerifyError, match="no machine"):
        assemble(change(text, ('{machine = "test"} ', "")), "mine.d1")


def test_one_tile_module(text: str) -> None:
    kern = text[text.index("d1c.module kern") :]
    assert "level kern" in refusal(kern).message
    assert "modules of level tile, kern, kern" in refusal(text + kern).message


# ---- stopped by the emulator ----------------------------------------------------------------------------------------


def test_deadlock_says_who_waits_on_whom(text: str) -> None:
    credit = 'tile.post {semaphore = 2, to = "nc.1+1"}          // then the producer hears of it'
    wrong = change(text, (credit, ""))
    error = stopped(wrong)
    assert isinstance(error, Deadlock)
    producer = next(w for w in error.waits if "role producer" in w)
    assert "semaphore 2 has 0, needs 1" in producer and "nobody will post it" in producer
    assert line_of(wrong, "tile.wait {semaphore = 2") in producer
    consumer = next(w for w in error.waits if "role consumer" in w)
    assert "semaphore 0 has 1, needs 2" in consumer and "could be posted by core" in consumer
    assert "Send y.a -> slot.a" in consumer
    assert producer in str(error)


def test_missing_credit(text: str) -> None:
    """The producer does not wait, and the consumer takes its time: the third chunk finds slot a full."""
    wrong = change(
        text, ("tile.wait {semaphore = 2, count = 1} ", ""), ("tile.wait {semaphore = 0, count = 1}",
                                                              "tile.wait {semaphore = 0, count = 2}"),
    )  # fmt: skip
    error = stopped(wrong)
    assert isinstance(error, Trap)
    assert "missing credit" in error.message and error.buffer == "slot.a"
    assert error.where == line_of(wrong, "tile.send(%y.a", 1)
    assert error.address == 448 and "Send" in error.op and "nc 0" in error.core


def test_a_credit_for_bytes_that_are_not_free(text: str) -> None:
    error = stopped(change(text, ("tile.free(%slot.a) ", "")))
    assert isinstance(error, Trap) and "missing credit" in error.message and error.buffer == "slot.a"


def test_uninitialised_read(text: str) -> None:
    wrong = change(text, ('tile.place(%zero) {array = "zero"}', ""))
    error = stopped(wrong)
    assert isinstance(error, Trap)
    assert "uninitialised read" in error.message and error.buffer == "zero" and error.address == 576
    assert error.where == line_of(wrong, "tile.call(%part, %zero")
