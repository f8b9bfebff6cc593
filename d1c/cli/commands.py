"""The commands and their options. Each one hands over to a module beside this one, imported when it runs."""

# no postponed annotations: typer would evaluate their text again for every --help
from pathlib import Path
from typing import Annotated

import typer

from d1c.cli.shell import guarded

HELP = """Compile neural networks (ONNX) for a Tesla Dojo D1 training tile, and run them on an emulator, core by core.

Exit codes: 0 done, 2 usage, 3 to 12 refusals by kind, 13 deadlock, 14 trap, 130 interrupted (docs/cli.md).
"""

app = typer.Typer(
    name="d1c",
    help=HELP,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

ErrorFormat = Annotated[
    str, typer.Option("--error-format", metavar="text|json", help="How refusals are printed, on stderr.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the summary as JSON.")]
Target = Annotated[str, typer.Option("--target", help="d1-node, d1-die, d1-tile, test, or a .toml file.")]
Inputs = Annotated[Path | None, typer.Option("--inputs", metavar="IN.npz", help="One array per input name.")]
Outputs = Annotated[Path | None, typer.Option("--outputs", metavar="OUT.npz", help="Where the outputs go, by name.")]
Engine = Annotated[
    str, typer.Option("--engine", metavar="jit|numpy", help="Native code, or the defining numpy engine.")
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Host threads [default: all].")]
Shuffle = Annotated[
    int | None, typer.Option("--shuffle", metavar="SEED", min=0, help="Order of cores, threads, messages.")
]
AllLayers = Annotated[bool, typer.Option("--all-layers", help="Show every layer of a long network.")]
Precision = Annotated[str, typer.Option("--precision", metavar="f32|bf16", help="How values are stored.")]
Shape = Annotated[
    list[str] | None, typer.Option("--shape", metavar="NAME=1,3,224,224", help="The shape of an input; may repeat.")
]
Dim = Annotated[
    list[str] | None, typer.Option("--dim", metavar="NAME=8", help="The value of a symbolic dimension; may repeat.")
]
Freeze = Annotated[
    list[str] | None,
    typer.Option("--freeze", metavar="NAME=VALUE", help="Make an input a constant (or FILE.npy); may repeat."),
]
Binary = Annotated[Path, typer.Argument(metavar="OUT.d1x", help="A compiled program.")]


def _version(asked: bool) -> None:
    if asked:
        from d1c import __version__

        print(f"d1c {__version__}")
        raise typer.Exit()


@app.callback()
def _app(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


_app.__doc__ = HELP


@app.command("compile")
@guarded
def compile_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="OUT.d1x", help="Write the program.")] = None,
    target: Target = "d1-tile",
    precision: Precision = "bf16",
    shape: Shape = None,
    dim: Dim = None,
    freeze: Freeze = None,
    json: Json = None,
    run: Annotated[bool, typer.Option("--run", help="Run the program on --inputs after compiling.")] = False,
    inputs: Inputs = None,
    outputs: Outputs = None,
    engine: Engine = "jit",
    threads: Threads = None,
    stop_after: Annotated[
        str | None, typer.Option("--stop-after", metavar="PASS", help="Stop, and print the module.")
    ] = None,
    print_after: Annotated[
        list[str] | None,
        typer.Option("--print-after", metavar="PASS", help="Print the module then (or all); may repeat."),
    ] = None,
    emit: Annotated[
        str | None, typer.Option("--emit", metavar="graph|dist|tile|kern", help="Print the module of that level.")
    ] = None,
    all_layers: AllLayers = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Print how long every pass took, and which steps of it.")
    ] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose plans and ways by events; takes minutes for large models.")
    ] = False,
    no_remedies: Annotated[
        bool, typer.Option("--no-remedies", help="Where the model does not fit, do not try what would.")
    ] = False,
    error_format: ErrorFormat = "text",
    debug: Debug = False,
) -> None:
    """Compile an ONNX model, and say what it will cost and what bounds it."""
    from d1c.cli.compile import Options, compile_model

    compile_model(
        Options(
            model=model,
            output=output,
            target=target,
            precision=precision,
            shapes=tuple(shape or ()),
            dims=tuple(dim or ()),
            freeze=tuple(freeze or ()),
            json=json,
            run=run,
            inputs=inputs,
            outputs=outputs,
            engine=engine,
            threads=threads,
            stop_after=stop_after,
            print_after=tuple(print_after or ()),
            emit=emit,
            all_layers=all_layers,
            remedies=not no_remedies,
            profile=profile,
            tune=tune,
        )
    )


@app.command("check-model")
@guarded
def check_model_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model.")],
    target: Target = "d1-tile",
    precision: Precision = "bf16",
    shape: Shape = None,
    dim: Dim = None,
    freeze: Freeze = None,
    json: Json = None,
    error_format: ErrorFormat = "text",
    debug: Debug = False,
) -> None:
    """Say whether a model can be compiled, and all that stands in the way, without compiling it."""
    from d1c.cli.check_model import check_model

    raise typer.Exit(check_model(model, target, precision, shape or (), dim or (), freeze or (), json))


@app.command("run")
@guarded
def run_command(
    program: Binary,
    inputs: Inputs = None,
    outputs: Outputs = None,
    engine: Engine = "jit",
    threads: Threads = None,
    shuffle: Shuffle = None,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="MODEL.onnx", help="Compare every layer with onnxruntime.")
    ] = None,
    json: Json = None,
    all_layers: AllLayers = False,
    error_format: ErrorFormat = "text",
    debug: Debug = False,
) -> None:
    """Execute a compiled program on the emulator."""
    from d1c.cli.run import run_program

    run_program(program, inputs, outputs, engine, threads, shuffle, check, json, all_layers)


@app.command("time")
@guarded
def time_command(
    program: Binary,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the times as JSON.")] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", metavar="FILE", help="Write a trace for Perfetto (trace-event JSON).")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep", metavar="NAME=50,100", help="The time with other launches (c0), hops, links ...; may repeat."
        ),
    ] = None,
    all_layers: AllLayers = False,
    error_format: ErrorFormat = "text",
    debug: Debug = False,
) -> None:
    """Time a compiled program event by event: every core, thread, message, and what binds."""
    from d1c.cli.time import time_program

    time_program(program, json, trace, sweep or (), all_layers)


@app.command("bench")
@guarded
def bench_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model.")],
    inputs: Inputs = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="onnxruntime", help="Run the model there too, in turns.")
    ] = None,
    threads: Threads = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Runs of each that count.")] = 9,
    program: Annotated[
        Path | None, typer.Option("--program", metavar="OUT.d1x", help="The model compiled already.")
    ] = None,
    target: Target = "d1-tile",
    precision: Precision = "bf16",
    shape: Shape = None,
    dim: Dim = None,
    freeze: Freeze = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON.")] = None,
    error_format: ErrorFormat = "text",
    debug: Debug = False,
) -> None:
    """Measure the emulator's speed on this host, and beside it onnxruntime's."""
    from d1c.cli.bench import Options, bench

    flags = tuple(shape or ()), tuple(dim or ()), tuple(freeze or ())
    bench(Options(model, inputs, program, target, precision, *flags, threads, rounds, against, json))


@app.command("dis")
@guarded
def dis_command(
    program: Binary,
    core: Annotated[
        str | None, typer.Option("--core", metavar="X,Y", help="One core: column, row of the machine's logical grid.")
    ] = None,
    role: Annotated[str | None, typer.Option("--role", metavar="R", help="One role.")] = None,
    error_format: ErrorFormat = "text",
    debug: Debug = False,
) -> None:
    """Print what a compiled program does: all of it, one role, or one core with its own numbers."""
    from d1c.cli.dis import print_program

    print_program(program, core, role)


@app.command("opt")
@guarded
def opt_command(
    file: Annotated[Path, typer.Argument(metavar="FILE.d1", help="IR text.")],
    passes: Annotated[
        str, typer.Option("-p", "--passes", metavar="PASSES", help="Names, comma-separated; in this order.")
    ],
    target: Target = "d1-tile",
    precision: Annotated[
        str, typer.Option("--precision", metavar="f32|bf16", help="For the passes that ask.")
    ] = "bf16",
    error_format: ErrorFormat = "text",
    debug: Debug = False,
) -> None:
    """Run passes over IR text and print the result."""
    from d1c.cli.text import opt

    opt(file, passes, target, precision)


@app.command("asm")
@guarded
def asm_command(
    file: Annotated[Path, typer.Argument(metavar="FILE.d1", help="A tile program with its kernels, as text.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.d1x", help="Where the program goes.")],
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", help="An .npz or .d1x with constants that the text only names."),
    ] = None,
    error_format: ErrorFormat = "text",
    debug: Debug = False,
) -> None:
    """Assemble a program written by hand."""
    from d1c.cli.text import assemble_file

    assemble_file(file, output, weights)


@app.command("targets")
@guarded
def targets_command(
    name: Annotated[str | None, typer.Argument(help="A preset or .toml: every number with its source.")] = None,
    error_format: ErrorFormat = "text",
    debug: Debug = False,
) -> None:
    """List the machines, or all numbers of one."""
    from d1c.cli.lists import print_targets

    print_targets(name)


@app.command("ops")
@guarded
def ops_command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="ONNX ops of which to show everything.")
    ] = None,
    error_format: ErrorFormat = "text",
    debug: Debug = False,
) -> None:
    """List the ONNX ops that can be compiled and the ops of every level; or tell all about some."""
    from d1c.cli.lists import print_ops

    print_ops(names or [])
