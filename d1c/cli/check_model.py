"""`d1c check-model`: whether a model can be compiled, in seconds, and everything that stands in the way at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import d1c.api as api
from d1c.cli.shell import check_outputs, dims_of, freeze_of, shapes_of, write_json
from d1c.errors import EXIT_OK, D1Error, DoesNotFit, ShapeUnbound, UnsupportedOp, UsageError
from d1c.frontend.survey import PLACES, Survey, survey
from d1c.ir.core import Module
from d1c.target.machine import Machine, machine


def check_model(
    model: Path,
    target: str,
    precision: str,
    shapes: Sequence[str],
    dims: Sequence[str],
    freeze: Sequence[str],
    json: Path | None,
) -> int:
    """Print what there is to say about the model, write it as JSON where asked to, and give the exit code: that of the
    first thing that `d1c compile` would refuse. Raises ImportFailed, UsageError."""
    check_outputs(json, inputs=(model,))
    if precision not in api.PRECISIONS:
        raise UsageError(f"no precision {precision!r}", rule=f"precisions are {', '.join(api.PRECISIONS)}")
    chosen = machine(target)
    flags: dict[str, Any] = {"shapes": shapes_of(shapes), "dims": dims_of(dims), "freeze": freeze_of(freeze)}
    found = survey(model, **flags)
    refusal: D1Error | None = None
    module: Module | None = None
    if not (found.refused or found.strings or found.static or found.unbound):
        try:  # what only a node's rule looks at: attribute values, types and shapes
            module = api.import_onnx(model, **flags)
        except D1Error as error:
            refusal = error
    fit = estimate(found, module, chosen, precision)
    code = exit_code(found, fit, refusal)
    print(text(found, fit, refusal, model, chosen, precision, code))
    if json is not None:
        write_json(json, to_json(found, fit, refusal, chosen, precision, code))
    return code


def estimate(found: Survey, module: Module | None, chosen: Machine, precision: str) -> dict[str, Any]:
    """Bytes beside the SRAM of all cores together. A lower bound of the need: weights once, and the largest tensor.

    module  the imported model where there is one: it knows the constants that nodes give, too."""
    weights, floats = found.weight_bytes, found.weight_float_bytes
    if module is not None:
        weights = sum(a.nbytes for a in module.constants.values())
        floats = sum(a.nbytes for a in module.constants.values() if a.dtype.name == "float32")
    weights -= floats // 2 if precision == "bf16" else 0
    largest = 0
    if found.largest is not None:
        largest = found.largest[3] // (2 if precision == "bf16" and found.largest[2] == "float32" else 1)
    sram = chosen.cores * chosen.sram_bytes
    return {
        "weight_bytes": weights,
        "largest_activation_bytes": largest,
        "largest_activation": found.largest[0] if found.largest else "",
        "largest_activation_shape": list(found.largest[1]) if found.largest else [],
        "needed_bytes": weights + largest,
        "sram_bytes": sram,
        "fits": weights + largest <= sram,
        "exact": found.largest is not None and found.uninferred == 0,
    }


def exit_code(found: Survey, fit: Mapping[str, Any], refusal: D1Error | None) -> int:
    """That of the class of errors that `d1c compile` would end with; 0 where none is foreseen."""
    if found.refused or found.strings:
        return UnsupportedOp.exit_code
    if found.unbound:
        return ShapeUnbound.exit_code
    if found.static:
        return UnsupportedOp.exit_code
    if refusal is not None:
        return refusal.exit_code
    return EXIT_OK if fit["fits"] else DoesNotFit.exit_code


def to_json(
    found: Survey,
    fit: Mapping[str, Any],
    refusal: D1Error | None,
    chosen: Machine,
    precision: str,
    code: int,
) -> dict[str, Any]:
    """The findings as plain JSON values (docs/cli.md has the keys)."""
    return {
        "exit_code": code,
        "target": chosen.name,
        "precision": precision,
        "nodes": found.nodes,
        "ops": [
            {"op": u.op, "domain": u.domain, "opset": u.opset, "nodes": u.nodes, **dict(u.places)} for u in found.ops
        ],
        "refused": [{"node": r.node, "op": r.op, "reason": r.reason} for r in found.refused],
        "string_tensors": list(found.strings),
        "unbound": found.unbound,
        "flags": found.flags,
        "static": [{"node": s.node, "op": s.op, "operand": s.operand, "inputs": list(s.inputs)} for s in found.static],
        "import": refusal.to_json() if refusal is not None else None,
        "fit": dict(fit),
    }


def text(
    found: Survey,
    fit: Mapping[str, Any],
    refusal: D1Error | None,
    model: Path,
    chosen: Machine,
    precision: str,
    code: int,
) -> str:
    """The findings as printed."""
    lines = [f"{model.name}: {_count(found.nodes, 'node')} of {_count(len(found.ops), 'op')}"]
    width = max((len(_name(u.domain, u.op)) for u in found.ops), default=2)
    lines.append(f"  {'op':{width}} opset {'nodes':>6} {'cores':>6} {'function':>8} {'constant':>8} {'refused':>7}")
    for u in found.ops:
        cells = (f"{u.places[p] or '':>{max(len(p), 6)}}" for p in PLACES)
        lines.append(f"  {_name(u.domain, u.op):{width}} {u.opset:>5} {u.nodes:>6} {' '.join(cells)}")
    if found.refused or found.strings:
        lines.append(f"refused: {_count(len(found.refused), 'node')}, {_count(len(found.strings), 'string tensor')}")
        lines += [f"  {r.node}: {r.op}{f': {r.reason}' if r.reason else ''}" for r in found.refused]
        lines += [f"  {name}: a string tensor, which has no form on the machine" for name in found.strings]
    if found.unbound:
        lines += [f"dimensions to bind: {found.unbound}", f"  d1c check-model {model} {found.flags}"]
    if found.static:
        inputs = sorted({i for s in found.static for i in s.inputs})
        lines.append("operands that decide shapes and depend on values of inputs:")
        lines += [f"  {s.node}: {s.op}, operand {s.operand!r}, from {', '.join(s.inputs)}" for s in found.static]
        lines.append("  d1c check-model " + " ".join([str(model), *(f"--freeze {i}=..." for i in inputs)]))
    if refusal is not None:
        lines += ["the import refuses it:", *("  " + line for line in str(refusal).splitlines())]
    lines.append(_fit_line(fit, chosen, precision, bool(found.unbound)))
    lines.append("can be compiled, as far as can be seen without lowering" if code == 0 else f"exit code {code}")
    return "\n".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _name(domain: str, op: str) -> str:
    return f"{domain}.{op}" if domain else op


def _fit_line(fit: Mapping[str, Any], chosen: Machine, precision: str, open_: bool) -> str:
    parts = [f"weights {_size(fit['weight_bytes'])}"]
    if fit["largest_activation"]:
        shape = "x".join(map(str, fit["largest_activation_shape"])) or "scalar"
        size = _size(fit["largest_activation_bytes"])
        parts.append(f"largest activation {size} ({fit['largest_activation']}, {shape})")
    elif open_:
        parts.append("activations unknown before the dimensions are bound")
    verdict = "fits" if fit["fits"] else "DOES NOT FIT"
    least = "" if fit["exact"] else "at least "
    return (
        f"estimate for {chosen.name} in {precision}: {', '.join(parts)}; {least}{_size(fit['needed_bytes'])} of "
        f"{_size(fit['sram_bytes'])} SRAM on {chosen.cores:,} cores: {verdict}"
    )


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KB", "MB"):
        if value < 1024:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} GB"
