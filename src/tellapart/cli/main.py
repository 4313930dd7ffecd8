"""The command line: the commands and the one place where errors become messages and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import typer
import typer.core

# None of these imports Keras, pandas or SciPy: each command imports what it needs when it is run, or --help would take
# seconds.
from tellapart.cli import (
    ab,
    ablation,
    comparison,
    data,
    demo,
    ensembling,
    evaluation,
    machine,
    models,
    prediction,
    retrain,
    review,
    runs,
    serving,
    shipping,
    training,
    tuning,
    watch,
    weights,
)
from tellapart.errors import TellapartError

_GROUPS: dict[str, dict[str, Callable[..., None]]] = {
    "Start": {"demo": demo.demo, "doctor": machine.doctor},
    "Data": {"check": data.check, "draw": data.draw},
    "Train": {
        "train": training.train, "tune": tuning.tune, "ablate": ablation.ablate, "ensemble": ensembling.ensemble,
        "reproduce": training.reproduce,
    },
    "Understand": {
        "runs": runs.runs, "info": runs.info, "evaluate": evaluation.evaluate, "open": runs.open_report,
        "explain": evaluation.explain, "compare": comparison.compare,
    },
    "Ship": {
        "predict": prediction.predict, "export": shipping.export, "compress": shipping.compress,
        "benchmark": shipping.benchmark,
        "serve": serving.serve, "watch": watch.watch, "review": review.review,
    },
}  # fmt: skip
"""All commands, in the order of ``--help``."""


def _sections() -> dict[str, list[str]]:
    """Return the names of all commands, in groups."""
    names = {title: list(group) for title, group in _GROUPS.items()}
    # These are groups of commands, not functions, so `_GROUPS` cannot hold them.
    names["Train"].append("weights")
    names["Ship"] += ["models", "ab", "retrain"]
    return names


class _Commands(typer.core.TyperGroup):
    """Lists the commands in their groups."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the groups, not of the alphabet."""
        return [name for names in _sections().values() for name in names]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each group."""
        for title, names in _sections().items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(60)) for name in names])


app = typer.Typer(
    name="tellapart",
    cls=_Commands,
    help="Turn a folder of photos into a measured image classifier.",
    no_args_is_help=True,
    # typer's own tracebacks may print the values of local variables, API keys among them.
    pretty_exceptions_enable=False,
    # Help texts have brackets, which rich would read as markup.
    rich_markup_mode=None,
)
for _group in _GROUPS.values():
    for _name, _command in _group.items():
        app.command(_name)(_command)


def _add_group(name: str, help_: str, example: str, commands: dict[str, Callable[..., None]]) -> None:
    """Add a command that has commands of its own."""
    group = typer.Typer(help=f"{help_}\n\nExample: {example}", no_args_is_help=True, rich_markup_mode=None)
    for verb, function in commands.items():
        group.command(verb)(function)
    app.add_typer(group, name=name)


_add_group(
    "weights", "List, download or add pretrained weights.",
    "tellapart weights add mobilenet_v2_no_top.weights.h5 --model mobilenet_v2",
    {"list": weights.list_weights, "get": weights.get_weights, "add": weights.add_weights},
)  # fmt: skip
_add_group(
    "models", "Register versions, compare and promote them.", "tellapart models add bundle --run runs/pets",
    {
        "add": models.add, "list": models.list_models, "show": models.show, "diff": models.diff,
        "promote": models.promote, "rollback": models.rollback, "challenger": models.challenger, "get": models.get,
    },
)  # fmt: skip
_add_group(
    "ab", "Test a challenger beside the champion.", "tellapart ab start pets 4 --shadow --share 100%",
    {"start": ab.start, "status": ab.status, "stop": ab.stop},
)  # fmt: skip
_add_group(
    "retrain", "Train a model again when it is due.", "tellapart retrain run pets --store requests.db --if-needed",
    {"run": retrain.run, "history": retrain.history},
)  # fmt: skip


@app.callback(invoke_without_command=True)
def options(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    """Turn a folder of photos into a measured image classifier."""
    if version:
        from tellapart import __version__

        typer.echo(f"tellapart {__version__}")
        raise typer.Exit


# By the name that is imported, which need not be the package's: sklearn is scikit-learn.
_EXTRAS = {
    **dict.fromkeys(("keras", "pandas", "sklearn", "scipy", "matplotlib", "jinja2", "cleanlab"), "train"),
    **dict.fromkeys(("tensorflow", "numba", "tf2onnx", "onnx", "tensorboard"), "train"),
    "openvino": "openvino",
    "pyarrow": "parquet",
    "ai_edge_litert": "litert",
    "optuna": "tune",
    "mlflow": "track",
    **dict.fromkeys(("sqlalchemy", "alembic"), "store"),
    "jax": "jax",
}
"""What brings a package that tellapart itself does not need: serving is installed without training."""

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def main() -> None:
    """Run a command; an error that a user can mend is one message on stderr and no traceback."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow reads it when it is imported
    try:
        app()
    except TellapartError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer's answer to Ctrl-C
            typer.echo("Stopped. A run can be finished with --resume, a search with the same command.", err=True)
            # By hand: `os._exit` flushes nothing.
            sys.stdout.flush()
            os._exit(INTERRUPTED)  # TensorFlow's threads may be in Python code: taking it down under them crashes
        raise
    # Of an extra that is not installed; a module that no extra brings is a bug, and keeps its traceback.
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        typer.echo(
            f"error: this needs {error.name}, which is not installed: pip install 'tellapart[{extra}]'", err=True
        )
        sys.exit(2)
    # Before OSError, of which it is one.
    except BrokenPipeError:
        # The reader has closed the pipe (`| head`). Python flushes stdout once more when it exits and would fail again,
        # so stdout goes to /dev/null. 141 is the shell's code for a program that SIGPIPE ended.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        typer.echo(f"error: {error.strerror or error}: {error.filename or ''}", err=True)
        sys.exit(4)
    except Exception as error:
        # Whoever has met a database's error has imported SQLAlchemy; nobody else pays for it.
        if "sqlalchemy" not in sys.modules:
            raise
        from sqlalchemy.exc import SQLAlchemyError

        from tellapart.databases import reason_of

        if not isinstance(error, SQLAlchemyError):
            raise
        typer.echo(f"error: the database failed: {reason_of(error)}. The same command can be called again.", err=True)
        sys.exit(4)
