"""The command line: each command a few lines, its work in the module of its name.

Exit status: 0 done; 1 checked and found wanting; 2 the user's mistake; 3 more rows lost than
allowed; 4 the environment; 70 a bug; 130 and 143 interrupted. See `adapt.errors`.
"""

from __future__ import annotations

import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from adapt import __version__
from adapt.cli_convert import convert_app
from adapt.cli_models import models_app
from adapt.errors import BUG, AdaptError, MissingExtra
from adapt.stdout import outlive_readers

app = typer.Typer(
    name="adapt",
    help="From raw domain files to a fine-tuned pocket vision-language model.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"max_content_width": 100},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
recipes_app = typer.Typer(
    help="Shipped recipes. Example: adapt recipes show medical",
    no_args_is_help=True,
    rich_markup_mode=None,
)
eval_app = typer.Typer(
    help="Scores against the original annotation. Example: adapt eval drivelm --help",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(convert_app, name="convert")
app.add_typer(models_app, name="models")
app.add_typer(recipes_app, name="recipes")
app.add_typer(eval_app, name="eval")

RecipeName = Annotated[Path, typer.Argument(help="Recipe file, or a shipped recipe's name.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe field; may be repeated."),
]

_GO_ON = {
    "convert": "; run the same command again to go on",
    "predict": "; run the same command again to go on",
    "train": "; --resume goes on with it",
}


class Terminated(BaseException):
    """SIGTERM arrived; the work in hand stays resumable."""


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """From raw domain files to a fine-tuned pocket vision-language model."""
    if version:
        typer.echo(f"adapt {__version__}")
        raise typer.Exit


@app.command()
def check(
    paths: Annotated[list[Path], typer.Argument(help="Records files or dataset folders.")],
    images: Annotated[
        bool, typer.Option("--images", help="Open every picture and compare its size.")
    ] = False,
) -> None:
    """Report every problem of records with file, line and place.

    Example: adapt check data/domain/drivelm --images
    """
    from adapt.check import check_paths

    check_paths(paths, images=images)


class SeveralPaths(TyperCommand):
    """A command whose --domain and --general take several paths each: `--domain A B`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of a command line, with an option of its own for each path."""
        spelled: list[str] = []
        option = ""
        for word in args:
            if word.startswith("-"):
                name = word.partition("=")[0]
                option = name if name in ("--domain", "--general") else ""
            elif option and spelled[-1] != option:
                spelled.append(option)
            spelled.append(word)
        return list(super().parse_args(ctx, spelled))


@app.command(cls=SeveralPaths)
def mix(
    ratio: Annotated[
        str | None, typer.Option(help="general:domain, the paper's order, such as 1:4.")
    ] = None,
    fraction_of_general: Annotated[
        float | None, typer.Option(help="Share of all general rows to take, in place of --ratio.")
    ] = None,
    domain: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH...", help="Domain datasets (default: data/domain/*)."),
    ] = None,
    general: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH...", help="General datasets (default: data/general/*)."),
    ] = None,
    take: Annotated[
        list[str] | None, typer.Option(metavar="NAME=N", help="Sample N rows of a dataset.")
    ] = None,
    repeat: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=K", help="Repeat a dataset; a fraction by sampling."),
    ] = None,
    allow_repeat: Annotated[
        bool, typer.Option("--allow-repeat", help="Repeat general rows when too few.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 42,
    out: Annotated[Path, typer.Option(help="Folder of mix.json and mix.parquet.")] = Path(
        "data/mix"
    ),
) -> None:
    """Put general and domain data together as an index; nothing is copied.

    Example: adapt mix --ratio 1:4
    """
    from adapt.mix import MixOptions, run_mix

    run_mix(
        MixOptions(
            ratio=ratio,
            fraction_of_general=fraction_of_general,
            domain=tuple(domain or ()),
            general=tuple(general or ()),
            take=tuple(take or ()),
            repeat=tuple(repeat or ()),
            allow_repeat=allow_repeat,
            seed=seed,
            out=out,
        )
    )


@app.command()
def plan(
    recipe: RecipeName,
    set_: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of plan.parquet (default: plan in the run's).")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs to estimate memory and time for.")] = 8,
    tflops: Annotated[
        float, typer.Option(min=1e-6, help="TFLOP/s a GPU is assumed to sustain.")
    ] = 125.0,
) -> None:
    """Tokens, tiles, packs, steps, memory and time; loads no weights.

    Example: adapt plan recipes/drivelm.yaml --set model=tiny
    """
    _require("plan", "transformers", "train")
    from adapt.plan import run_plan

    run_plan(recipe, tuple(set_ or ()), out=out, gpus=gpus, tflops=tflops)


@app.command()
def train(
    recipe: RecipeName,
    set_: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")
    ] = False,
    nproc: Annotated[
        int | None, typer.Option(help="Processes on this machine (default: one per GPU).")
    ] = None,
) -> None:
    """Fine-tune with DeepSpeed; also runs under torchrun, deepspeed and srun.

    Example: adapt train recipes/medical.yaml --set model=tiny --set max_steps=20
    """
    _require("train", "deepspeed", "train")
    from adapt.train.launch import run_train

    run_train(recipe, tuple(set_ or ()), resume=resume, nproc=nproc)


@app.command()
def predict(
    records: Annotated[Path, typer.Argument(help="Records file, or dataset folder with one.")],
    model: Annotated[str, typer.Option(help="Checkpoint folder, run folder or preset.")],
    out: Annotated[Path, typer.Option(help="Predictions file (JSONL).")],
    batch_size: Annotated[int, typer.Option(help="Records a batch.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 200,
    max_tiles: Annotated[
        int | None, typer.Option(help="Most tiles a record (default: as trained, else 12).")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Answer the first N records only.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cuda, cuda:1 or cpu (default: a GPU if there is one).")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Discard answers already there.")
    ] = False,
) -> None:
    """Greedy answers of a model, in batches, resumable.

    Example: adapt predict data/domain/drivelm/val.jsonl --model runs/drivelm --out answers.jsonl
    """
    _require("predict", "torch", "train")
    from adapt.predict import PredictOptions, run_predict

    run_predict(
        PredictOptions(
            records=records,
            model=model,
            out=out,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            max_tiles=max_tiles,
            limit=limit,
            device=device,
            overwrite=overwrite,
        )
    )


@eval_app.command("drivelm")
def eval_drivelm(
    predictions: Annotated[Path, typer.Option(help="Answers: of adapt predict, or official.")],
    truth: Annotated[Path, typer.Option(help="Truth: official JSON, or our records.")],
    judge_scores: Annotated[Path | None, typer.Option(help="Recorded judge scores (JSON).")] = None,
    judge_url: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible endpoint, such as http://localhost:8000/v1."),
    ] = None,
    judge_model: Annotated[str, typer.Option(help="Model name sent to the judge.")] = "judge",
    judge_cache: Annotated[
        Path | None, typer.Option(help="Replies so far (default: PREDICTIONS.judge.jsonl).")
    ] = None,
    judge_workers: Annotated[int, typer.Option(help="Requests to the judge at one time.")] = 8,
    judge_timeout: Annotated[float, typer.Option(help="Seconds until a request is lost.")] = 60.0,
    judge_retries: Annotated[int, typer.Option(help="Further tries of a lost request.")] = 4,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report here as JSON.")
    ] = None,
) -> None:
    """The DriveLM challenge score: judge, language, match, accuracy.

    The judge's key, where it wants one, is taken from the environment: ADAPT_JUDGE_KEY.

    Example: adapt eval drivelm --predictions answers.jsonl --truth test_eval.json
    """
    _require("eval", "pycocoevalcap", "eval")
    from adapt.eval.drivelm import EvalOptions, run_eval

    run_eval(
        EvalOptions(
            predictions=predictions,
            truth=truth,
            judge_scores=judge_scores,
            judge_url=judge_url,
            judge_model=judge_model,
            judge_cache=judge_cache,
            judge_workers=judge_workers,
            judge_timeout_s=judge_timeout,
            judge_retries=judge_retries,
            json_file=json_file,
        )
    )


@recipes_app.command("list")
def recipes_list() -> None:
    """Every shipped recipe with its domain and one line of what it is.

    Example: adapt recipes list
    """
    from adapt.recipe_view import print_recipes

    print_recipes()


@recipes_app.command("show")
def recipes_show(name: Annotated[str, typer.Argument(help="Recipe name or file.")]) -> None:
    """A recipe with every default filled in.

    Example: adapt recipes show medical
    """
    from adapt.recipe_view import print_recipe

    print_recipe(name)


@recipes_app.command("copy")
def recipes_copy(
    name: Annotated[str, typer.Argument(help="Shipped recipe.")],
    out: Annotated[Path, typer.Argument(help="File or folder to copy it to.")] = Path("recipes"),
) -> None:
    """Copy a shipped recipe to edit it.

    Example: adapt recipes copy medical my.yaml
    """
    from adapt.recipe_view import copy_recipe

    copy_recipe(name, out)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of the synthetic data.")] = 0,
) -> None:
    """The whole loop offline on two cores: convert, check, mix, plan, train, predict, eval.

    Example: adapt demo --out demo
    """
    _require("demo", "deepspeed", "train")
    _require("demo", "pycocoevalcap", "eval")
    from adapt.demo import run_demo

    run_demo(out, run, seed=seed)


@app.command()
def doctor() -> None:
    """The environment, and what is missing for what.

    Example: adapt doctor
    """
    from adapt.doctor import run_doctor

    run_doctor()


def _require(command: str, module: str, extra: str) -> None:
    """Stop with the install line when an extra is missing, without importing it."""
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise MissingExtra(command, extra)


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated


def _deliver_again(lost: sys.UnraisableHookArgs) -> None:
    """Repeat a signal that came while a `__del__` ran, which swallows what is raised in it."""
    handlers = {Terminated: _terminate, KeyboardInterrupt: signal.default_int_handler}
    if lost.exc_type in handlers:
        signal.signal(signal.SIGALRM, handlers[lost.exc_type])
        signal.setitimer(signal.ITIMER_REAL, 0.05)
    else:
        sys.__unraisablehook__(lost)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and leave with its exit status; see the module docstring."""
    sys.unraisablehook = _deliver_again
    outlive_readers()
    status = run(sys.argv[1:] if arguments is None else arguments)
    sys.stdout.flush()
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Run a command and return its exit status."""
    signal.signal(signal.SIGTERM, _terminate)
    go_on = _GO_ON.get(arguments[0], "") if arguments else ""
    try:
        command = typer.main.get_command(app)
        status = int(command.main(arguments, prog_name="adapt", standalone_mode=False) or 0)
        # typer turns Ctrl-C into this status without a word.
        return _fail(f"interrupted{go_on}", status) if status == 130 else status
    except AdaptError as error:
        return _fail(str(error), error.exit_status)
    except typer.TyperException as error:
        return _fail(_usage(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(f"interrupted{go_on}", 130)
    except Terminated:
        return _fail(f"terminated{go_on}", 143)
    except OSError as error:
        # Reading and writing name their errors; what is left is a disk or a right.
        return _fail(f"{error.filename or 'a file'}: {error.strerror or error}", 4)
    except Exception:  # noqa: BLE001  the one place where a bug is told from a user's mistake
        traceback.print_exc()
        return BUG


def _usage(error: typer.TyperException) -> str:
    """Return what is wrong with a command line, and where its help is."""
    message, context = error.format_message(), getattr(error, "ctx", None)
    if context is None or message.startswith("Usage:"):
        return message
    return f"{message.rstrip('.')} (see {context.command_path} --help)"


def _fail(message: str, status: int) -> int:
    # Without arguments a command answers with its help, which is no message.
    print(message if message.startswith("Usage:") else f"adapt: {message}", file=sys.stderr)
    return status
