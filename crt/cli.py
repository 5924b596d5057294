"""The `crt` command. Each subcommand is a function of crt/commands/, imported when it is called."""

import io
import sys
from pathlib import Path
from typing import Annotated, Literal

try:
    import typer
except ModuleNotFoundError as error:
    sys.exit(f"{error}: the command needs what `pip install '.[pipeline]'` installs, in the project's clone")

from crt.commands.remedies import explained
from crt.errors import UserError
from crt.memory import keep_freed_memory
from crt.project import Project

app = typer.Typer(
    help="Certified Robustness Transfer: get data, add drops, choose parameters, release, predict.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Root = Annotated[
    Path, typer.Option("--root", help="The repository's root.", show_default="the current folder")
]


@app.command(
    epilog="Examples: `crt compose student=convnext sigma=0.5`, `crt compose ~sigma`, `crt compose --reset`."
)
def compose(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Hydra overrides: student=convnext chooses an option of conf/, sigma=0.5 a value; "
            "~sigma takes that choice back."
        ),
    ] = None,
    reset: Annotated[
        bool,
        typer.Option(
            "--reset", help="First take back all choices but the data set, its drops and the pinned release."
        ),
    ] = False,
    root: Root = Path(),
) -> None:
    """Choose options and values: write conf/choice.yaml, and params.yaml from conf/.

    Without arguments it writes params.yaml after you edited conf/. What `dvc exp run -S ...` or `dvc exp
    apply` put into params.yaml is kept as a choice.
    """
    from crt.commands.compose import compose as run

    run(Project(root), overrides or [], reset=reset)
    print("conf/choice.yaml and params.yaml are written: `dvc repro` runs what they changed")


@app.command(epilog="Example: `crt apply puffy-daks`, with a name that `crt experiments` shows.")
def apply(
    experiment: Annotated[str, typer.Argument(help="The experiment's name, as `crt experiments` shows it")],
    root: Root = Path(),
) -> None:
    """Make an experiment the workspace, as `dvc exp apply` does, and keep its choices in conf/choice.yaml."""
    from crt.commands.compose import apply as run

    run(Project(root), experiment)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Examples: `crt experiments`, `crt experiments --sort-by acr --sort-order desc`.",
)
def experiments(context: typer.Context, root: Root = Path()) -> None:
    """Show the experiments on the last commit side by side: metrics, and the parameters in which they differ.

    Other options are passed to `dvc exp show --only-changed`.
    """
    from crt.commands.show import experiments as run

    run(Project(root), context.args)


@app.command(
    "get-data", epilog="Examples: `crt get-data cifar10`, `crt get-data folder:/mnt/photos --image-size 64`."
)
def get_data(
    source: Annotated[str, typer.Argument(help="digits, cifar10, fashion_mnist, or folder:PATH")],
    origin: Annotated[
        Path | None, typer.Option("--from", help="Files already on disk, instead of a download.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="What to call a folder's data set.", show_default="the folder's name"),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=4,
            max=2048,
            help="Height and width of a folder's images after resizing.",
            show_default="that of the images",
        ),
    ] = None,
    root: Root = Path(),
) -> None:
    """Put a data set into data/, record it with DVC, and choose the settings that belong to it."""
    from crt.commands.get_data import get_data as run

    run(Project(root), source, origin, name=name, image_size=image_size)


@app.command(epilog="Example: `crt ingest /mnt/deliveries/2025-04 --drop 2025-04`.")
def ingest(
    source: Annotated[Path, typer.Argument(help="A folder, an archive (zip, tar) or an .npz of images")],
    drop: Annotated[str, typer.Option("--drop", help="The new drop's name, e.g. 2025-04")],
    add_classes: Annotated[
        bool,
        typer.Option(
            "--add-classes",
            help="Unknown class folders become classes; a fifth of their images is for the test.",
        ),
    ] = False,
    root: Root = Path(),
) -> None:
    """Add a delivery of training data as a new drop: check, copy and record it, pin the newest release."""
    from crt.commands.ingest import ingest as run

    run(Project(root), source, drop, add_classes=add_classes)


@app.command("drop-data", epilog="Example: `crt drop-data 2025-04`.")
def drop_data(
    drop: Annotated[str, typer.Argument(help="The drop to remove")],
    root: Root = Path(),
) -> None:
    """Remove a drop and everything that was prepared from it."""
    from crt.commands.ingest import drop_data as run

    run(Project(root), drop)


@app.command(epilog="Examples: `crt relabel cat=feline`, `crt relabel corrections.csv`.")
def relabel(
    changes: Annotated[
        list[str],
        typer.Argument(
            help="OLD=NEW renames or merges a class; a table of file,label labels the images that it names"
        ),
    ],
    root: Root = Path(),
) -> None:
    """Rename, merge or split classes, or correct single labels, in the drops and the test set."""
    from crt.commands.relabel import relabel as run

    run(Project(root), changes)


@app.command(epilog="Example: `crt release --bump major`.")
def release(
    bump: Annotated[
        Literal["major", "minor", "patch"], typer.Option(help="Which part of the version to count up")
    ] = "minor",
    root: Root = Path(),
) -> None:
    """Register the student as the next version of the artifact `student`, if the gate has passed."""
    from crt.commands.release import release as run

    run(Project(root), bump)


@app.command()
def releases(
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object per line")] = False,
    root: Root = Path(),
) -> None:
    """List the releases, the newest first, with their metrics; * marks the pinned one."""
    from crt.commands.releases import show_releases

    show_releases(Project(root), json_lines=json_lines)


@app.command(epilog="Examples: `crt pin latest`, `crt pin v1.0.0`, `crt pin none`.")
def pin(
    what: Annotated[
        str, typer.Argument(help="A version (v1.0.0), latest, a model reference (docs/teachers.md), or none")
    ],
    root: Root = Path(),
) -> None:
    """Choose the release that students are compared with and that their training starts from."""
    from crt.commands.pin import pin as run

    run(Project(root), what)


@app.command(epilog="Example: `crt anchor v1.2.0 --reason 'the first one with the new camera'`.")
def anchor(
    version: Annotated[str, typer.Argument(help="A version (v1.2.0), or latest")],
    reason: Annotated[str, typer.Option(help="Why; every verdict prints it")],
    root: Root = Path(),
) -> None:
    """Choose the release that the gate holds all later ones to, so that small losses do not add up."""
    from crt.commands.anchor import anchor as run

    run(Project(root), version, reason)


@app.command(epilog="Example: `crt generations resnet convnext -S sigma=0.5`.")
def generations(
    students: Annotated[
        list[str] | None,
        typer.Argument(help="Options of conf/student/, e.g. resnet convnext", show_default="all of them"),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("-S", "--set-param", help="Hydra overrides for all of them, e.g. -S sigma=0.5"),
    ] = None,
    root: Root = Path(),
) -> None:
    """Train and certify several students as DVC experiments; go on when one fails; show one table."""
    from crt.commands.generations import generations as run

    run(Project(root), students or [], overrides or [])


def _seed(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise UserError(f"--seed is {text!r}: give a whole number, such as 17 or 0x11") from None


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files")],
    model: Annotated[Path, typer.Option(help="A model folder")] = Path("models/student"),
    n0: Annotated[int, typer.Option(help="Noise draws that select the class")] = 100,
    n: Annotated[int, typer.Option(help="Noise draws that estimate its probability")] = 10_000,
    alpha: Annotated[float, typer.Option(help="Chance of a false certificate")] = 0.001,
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N")] = "auto",
    seed: Annotated[
        str | None,
        typer.Option(
            help="The noise's seed, such as 0x1f, to check an earlier answer.",
            show_default="secret, new each time",
        ),
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16", "int8"], typer.Option(help="The one that it was certified in")
    ] = "float32",
    compile: Annotated[  # noqa: A002
        bool, typer.Option("--compile", help="If it was certified compiled")
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="The one that it was certified with, if one was set.",
            show_default="chosen by device and image",
        ),
    ] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object per line")] = False,
) -> None:
    """Classify image files: class or abstention, and the certified l2 radius."""
    from crt.commands.predict import predict as run

    run(
        images,
        model,
        n0=n0,
        n=n,
        alpha=alpha,
        device=device,
        seed=None if seed is None else _seed(seed),
        precision=precision,
        compile=compile,
        batch_size=batch_size,
        json_lines=json_lines,
    )


@app.command(epilog="Example: `crt verify ../their-release --images their-test-set --minutes 15`.")
def verify(
    release: Annotated[
        Path, typer.Argument(help="A folder with models/<role>/ and certificates/<role>.tsv and .json")
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            help="The test images: class folders, .npz archives, or a prepared test set.",
            show_default="RELEASE/prepared/test",
        ),
    ] = None,
    role: Annotated[Literal["student", "teacher", "baseline"], typer.Option(help="Which model")] = "student",
    minutes: Annotated[float, typer.Option(min=0.01, help="Time for the checks")] = 10,
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N")] = "auto",
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object")] = False,
) -> None:
    """Check the certificates of a release that somebody else made; status 1 if they do not hold.

    Rows are drawn at random and certified again on the same noise, and claims are checked on fresh noise.
    Nothing of the release is trusted or executed, and nothing is downloaded (docs/verification.md).
    """
    from crt.commands.verify import verify as run

    if not run(release, role, images, minutes, device, json_output=json_output):
        raise typer.Exit(1)


@app.command()
def upgrade(root: Root = Path()) -> None:
    """Bring a project of 0.1.0 along after `git merge`: its choices and results (docs/upgrading.md)."""
    from crt.commands.upgrade import upgrade as run

    run(Project(root))


@app.command("merge-driver", hidden=True)
def merge_driver(base: Path, ours: Path, theirs: Path, name: str) -> None:
    """Merge a file that two people change when each ingests a drop: git calls it (.gitattributes)."""
    from crt.commands.merge import merge_file

    if not merge_file(base, ours, theirs, name):
        raise typer.Exit(1)


@app.command()
def show(root: Root = Path()) -> None:
    """Show the results of the last run side by side, and where the report lies."""
    from crt.commands.show import show as run

    run(Project(root))


def main() -> None:
    """Run the command; a wrong input ends in one sentence on stderr and status 1."""
    keep_freed_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names in any script, on an ASCII terminal too
    try:
        app()
    except UserError as error:
        sys.exit(f"error: {explained(error)}")
    except OSError as error:
        sys.exit(f"error: {error}: free space or fix the path, then run again")


if __name__ == "__main__":
    main()
