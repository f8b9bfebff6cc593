"""What the documentation's pages show is true: examples run, programs parse, command lines are ones that d1c takes.

In a page, `>>>` examples and fenced blocks of `python` run from top to bottom in one namespace. Fenced blocks of `d1`
that are whole modules are parsed, verified and printed again. Command lines, in fenced blocks of `sh` and in indented
ones of the README, are read with the command line's own parser; they are not run. Indented lines of other pages that
start with `d1c` are synopses: their commands and options exist. What the README says that its first command prints,
that command prints.
"""

from __future__ import annotations

import doctest
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from d1c.cli.commands import app
from d1c.ir.attributes import ATTRIBUTES
from d1c.ir.text import parse_modules
from d1c.ir.verify import verify
from d1c.ops import opdef
from d1c.pipeline import PASSES

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"(?:\S*/)?(?:d1c|python3?) .*")


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(line, text) of the fenced blocks of a language."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start()) + 1, m[2]) for m in FENCE.finditer(text) if m[1] == language]


def examples(page: Path) -> list[doctest.Example]:
    """The page's `>>>` examples and `python` blocks, in order. A block with `>>>` is examples, not a block."""
    found = doctest.DocTestParser().get_examples(page.read_text(encoding="utf-8").replace("```", ""), page.name)
    for line, text in blocks(page, "python"):
        if ">>>" not in text:
            found.append(doctest.Example(f"exec({text!r}, globals())\n", "", lineno=line))
    return sorted(found, key=lambda e: e.lineno)


@pytest.fixture
def as_before() -> Iterator[None]:
    """Ops, attributes and passes that a page adds are gone after it."""
    opdef.load_all()
    saved = [(table, dict(table)) for table in (opdef.REGISTRY, ATTRIBUTES, PASSES)]
    yield
    for table, entries in saved:
        table.clear()
        table.update(entries)


@pytest.mark.parametrize("page", [p for p in PAGES if examples(p)], ids=lambda p: p.name)
def test_examples_in_the_page(page: Path, as_before: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # pages name files of the repository
    space = {"__name__": page.stem}
    test = doctest.DocTest(examples(page), space, page.name, str(page), 0, None)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    messages: list[str] = []
    result = runner.run(test, out=messages.append)
    assert result.failed == 0, "".join(messages)


PROGRAMS = [
    pytest.param(text, id=f"{p.name}:{line}")
    for p in PAGES
    for line, text in blocks(p, "d1")
    if text.startswith("d1c.module")
]


@pytest.mark.parametrize("text", PROGRAMS)
def test_programs_parse_and_print(text: str) -> None:
    modules = parse_modules(text)
    for module in modules:
        verify(module)
    printed = "".join(map(str, modules))
    assert "".join(map(str, parse_modules(printed))) == printed


def commands(page: Path) -> list[tuple[int, list[str]]]:
    """(line, words) of the command lines that start d1c or python, in fenced blocks of `sh` and the README's indented
    ones; `a && b` is two, `\\` at the end goes on."""
    text = page.read_text(encoding="utf-8")
    lines = [(start + 1 + i, line) for start, block in blocks(page, "sh") for i, line in enumerate(block.split("\n"))]
    if page.name == "README.md":
        lines += [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.startswith("    ")]
    out = []
    joined = "\n".join(f"{line.strip()}\0{number}" for number, line in lines)
    for entry in re.sub(r"\\\0\d+\n", " ", joined).split("\n"):
        line, _, number = entry.partition("\0")
        for part in line.removeprefix("$ ").split(" && "):
            if COMMAND.fullmatch(part):
                out.append((int(number), shlex.split(part, comments=True)))
    return out


SYNOPSIS = re.compile(r"^    d1c ([\w-]+)(.*\n(?:     +.*\n)*)", re.M)
SYNOPSES = [
    pytest.param(m[1], m[2], id=f"{p.name}:{m[1]}:{i}")
    for p in PAGES
    if p.name != "README.md"
    for i, m in enumerate(SYNOPSIS.finditer(p.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize(("command", "text"), SYNOPSES)
def test_synopses_name_commands_and_options(command: str, text: str) -> None:
    group: Any = typer.main.get_command(app)
    known = {o for parameter in group.commands[command].params for o in parameter.opts}
    used = re.findall(r"(?<!\S)\[?(-[a-z]\b|--[a-z][a-z-]*)", text)
    assert set(used) <= known


COMMANDS = [pytest.param(words, id=f"{p.name}:{line}") for p in PAGES for line, words in commands(p)]


@pytest.mark.parametrize("words", COMMANDS)
def test_command_lines_are_accepted(words: list[str]) -> None:
    program, *rest = words
    if Path(program).name != "d1c":
        if rest[0] == "-m":
            assert importlib.util.find_spec(rest[1]), rest[1]
        elif rest[0] != "-c":
            assert (ROOT / rest[0]).is_file(), rest[0]
        return
    group: Any = typer.main.get_command(app)
    if rest[0].startswith("-"):
        group.make_context("d1c", rest, resilient_parsing=True)
        return
    command = group.commands[rest[0]]
    try:
        command.make_context(rest[0], rest[1:])
    except typer.Exit:
        pass  # --help


def test_there_are_command_lines() -> None:
    assert any(Path(p.values[0][0]).name == "d1c" for p in COMMANDS)


def test_the_readme_shows_what_its_command_prints() -> None:
    """All but the lines with the host's times: the program and its bits are the same on every host."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = [line[4:] for line in text.split("\n## ")[0].split("\n") if line.startswith("    ")]
    words = next(words for _, words in commands(ROOT / "README.md") if words[1] == "compile")[1:]
    del words[words.index("-o") : words.index("-o") + 2]
    done = CliRunner().invoke(app, [str(ROOT / w) if w.startswith("examples/") else w for w in words])
    assert done.exit_code == 0, done.stderr
    lines = [line for line in shown if not line.startswith(("compiled in", "loaded in", "d1rt "))]
    assert len(lines) == 5 and set(lines) <= set(done.stdout.splitlines())
