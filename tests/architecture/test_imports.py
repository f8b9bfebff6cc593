"""Who may import whom, how long a file may be, and what `import d1c` may cost: the rules of docs/architecture.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
D1C = ROOT / "d1c"
D1RT = ROOT / "runtime" / "d1rt"

# part of d1c -> parts that it may import; a part is a subpackage or a top-level module
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "target": {"errors"},
    "ir": {"target", "errors"},
    "ops": {"ir", "target", "errors"},
    "analysis": {"ops", "ir", "target", "errors"},
    "interp": {"ops", "ir", "target", "errors"},
    "interp_dist": {"analysis", "ops", "ir", "target", "errors"},
    "frontend": {"ops", "ir", "target", "errors"},
    "emit": {"analysis", "ops", "ir", "target", "errors"},
    "passes": {"analysis", "interp", "interp_dist", "emit", "ops", "ir", "target", "errors"},
}
LOW = set(ALLOWED)
ALLOWED["pipeline"] = LOW
ALLOWED["report"] = LOW
ALLOWED["docgen"] = LOW | {"pipeline"}
ALLOWED["api"] = LOW | {"pipeline", "report", "remedies"}
ALLOWED["remedies"] = LOW | {"pipeline", "api"}
ALLOWED["check"] = LOW | {"pipeline", "api"}
ALLOWED["backend"] = LOW | {"pipeline", "api"}
ALLOWED["cli"] = LOW | {"pipeline", "api", "report", "check"}

# the printer and parser look rows up in the registry when they are called: the one import against the stream
AGAINST_THE_STREAM = {("ir", "d1c.ops.opdef")}

# third-party package -> the only places (relative to the root) that may import it
ONLY_IN = {
    "onnx": ("d1c/frontend/", "d1c/backend.py", "d1c/check.py"),
    "lark": ("d1c/ir/text.py",),
    "llvmlite": ("runtime/d1rt/", "d1c/analysis/native.py"),
    "typer": ("d1c/cli",),
}
MOST_LINES = 500


def sources() -> list[Path]:
    return sorted(p for top in (D1C, D1RT) for p in top.rglob("*.py"))


def name_of(path: Path) -> str:
    """`runtime/d1rt/loader.py` -> `runtime/d1rt/loader.py`, always with slashes."""
    return path.relative_to(ROOT).as_posix()


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Absolute names of the modules that a file imports at run time, `from a import b` as both `a` and `a.b`.

    Blocks under `if TYPE_CHECKING:` do not count: they never run.
    """
    found: set[str] = set()

    def visit(node: ast.AST, inside_function: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.orelse:
                visit(child, inside_function)
            return
        if not (top_level_only and inside_function):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    package = list(module_name(path).split("."))
                    keep = len(package) - node.level + (path.name == "__init__.py")
                    base = ".".join([*package[:keep], *filter(None, [base])])
                found.add(base)
                found.update(f"{base}.{alias.name}" for alias in node.names)
        inside = inside_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(path.read_text(), filename=str(path)), False)
    return found


def module_name(path: Path) -> str:
    top = D1RT.parent if D1RT in path.parents else ROOT
    parts = path.relative_to(top).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part(module: str) -> str:
    """`d1c.ir.core` -> `ir`; `d1c` -> the empty string."""
    return (module.split(".") + [""])[1]


def test_there_is_something_to_check() -> None:
    assert any(p.name == "core.py" for p in sources())


def test_every_part_of_d1c_is_known() -> None:
    parts = {part(module_name(p)) for p in D1C.rglob("*.py")} - {"", "__main__"}
    assert parts <= set(ALLOWED), f"give a place in the order to {sorted(parts - set(ALLOWED))}"


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_imports_follow_the_order(path: Path) -> None:
    module = module_name(path)
    own = part(module)
    wrong = []
    for imported in sorted(imports(path)):
        if module.startswith("d1rt"):
            if imported.startswith("d1c.") and part(imported) not in {"target", "errors"}:
                wrong.append(f"{imported}: of d1c, the runtime may import d1c.target and d1c.errors only")
            continue
        if own in {"", "__main__"}:
            continue  # d1c/__init__.py: its imports are lazy, see test_importing_d1c_is_cheap
        if imported.split(".")[0] == "d1rt" and own not in {"api", "cli", "backend", "check"}:
            wrong.append(f"{imported}: only api, check, backend and cli start the runtime")
        if not imported.startswith("d1c."):
            continue
        target = part(imported)
        against = any(own == a and (imported == b or imported.startswith(b + ".")) for a, b in AGAINST_THE_STREAM)
        if target in ALLOWED and target != own and target not in ALLOWED[own] and not against:
            # `from d1c.ops import opdef` also reports `d1c.ops`; the exception covers its full name
            if any(own == a and b.startswith(imported + ".") and b in imports(path) for a, b in AGAINST_THE_STREAM):
                continue
            wrong.append(f"{imported}: {own} may import {', '.join(sorted(ALLOWED[own])) or 'nothing of d1c'}")
    assert not wrong, f"{name_of(path)} imports\n  " + "\n  ".join(wrong)


@pytest.mark.parametrize("package", sorted(ONLY_IN))
def test_libraries_are_imported_in_their_place_only(package: str) -> None:
    wrong = [
        name_of(p)
        for p in sources()
        if any(m.split(".")[0] == package for m in imports(p)) and not name_of(p).startswith(ONLY_IN[package])
    ]
    assert not wrong, f"{package} belongs to {', '.join(ONLY_IN[package])}"


def test_ir_reaches_the_registry_lazily() -> None:
    for path in (D1C / "ir").rglob("*.py"):
        assert not any(m.startswith("d1c.ops") for m in imports(path, top_level_only=True)), name_of(path)


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_files_are_short(path: Path) -> None:
    """At most 500 lines, unless the module's docstring or head comment says why (a line with `Long because`)."""
    lines = path.read_text().splitlines()
    assert len(lines) <= MOST_LINES or any("Long because" in line for line in lines[:30]), f"{len(lines)} lines"


def loaded_by(code: str) -> set[str]:
    """Top-level packages in sys.modules after `code` in a fresh interpreter."""
    script = f"{code}\nimport sys\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HEAVY = {"numpy", "onnx", "lark", "llvmlite", "ml_dtypes", "safetensors", "rich", "onnxruntime"}


def test_importing_d1c_is_cheap() -> None:
    assert not loaded_by("import d1c") & (HEAVY | {"typer"})


@pytest.mark.skipif(not (D1C / "cli.py").exists() and not (D1C / "cli").exists(), reason="there is no command line yet")
def test_importing_the_command_line_is_cheap() -> None:
    """typer brings rich; everything else loads when a command runs."""
    assert not loaded_by("import d1c.cli") & (HEAVY - {"rich"})
