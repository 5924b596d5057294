"""The recipe that comes nearest to a long schedule's ACR in few epochs.

One change at a time, then the best together.

    python benchmarks/epochs.py --teacher models/teacher --drops prepared/train/<drop> --test prepared/test
        [--rows 'as it was*']

CRT of the option `resnet` at its smallest (conf/network/tiny), on CIFAR-10 or another set of 32-pixel images.
Every row sees the same views of the images, one per epoch, from a bank of the teacher's logits. An
interrupted run continues where it was; --rows takes the rows that match, so that several processes can share
the work; the table (--out) has all that are done.
"""

import argparse
import fnmatch
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from certified import certified_metrics
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from crt.bank import Replayed, record
from crt.config import Config
from crt.data.statistics import mean_and_std
from crt.data.store import open_store
from crt.devices import choose_device
from crt.files import write_text
from crt.methods.base import Batch, Loss, Method, Teacher
from crt.methods.crt import crt
from crt.models.build import build_model
from crt.models.checkpoint import ModelInfo, load_info, model_fingerprint, save_model
from crt.project import Project
from crt.training.batches import Batches
from crt.training.fit import load_teacher
from crt.training.loop import train
from crt.training.numerics import choose_precision, start_fabric
from crt.training.seeds import derive_seed

ROOT = Path(__file__).resolve().parents[1]
SHORT, LONG = 4, (8, 16, 32, 64)  # epochs
N0, N, IMAGES = 50, 400, 300
SETTINGS = [
    "student=resnet",
    "scale=tiny",
    "bank=logits",
    "data.augment.crop_padding=4",
    "data.augment.flip=true",
    "student.batch_size=128",
    "student.lr=0.1",
    f"bank.views={LONG[-1]}",
]


@dataclass(frozen=True)
class Row:
    """One trained student.

    Changes of the recipe, noise draws per image and step, decay of the weights' average (0: none).
    """

    label: str
    epochs: int
    changes: tuple[str, ...] = ()
    draws: int = 1
    average: float = 0.0

    @property
    def key(self) -> str:
        return f"{self.label}, {self.epochs}"


ADAMW = ("optimizer=adamw", "lr=4e-3", "weight_decay=0.02", "warmup_epochs=1")
ROWS = [
    *(Row("as it was", epochs) for epochs in (SHORT, *LONG)),
    Row("lr 0.2", SHORT, ("lr=0.2",)),
    Row("lr 0.4", SHORT, ("lr=0.4",)),
    Row("lr 0.4, warm-up of an epoch", SHORT, ("lr=0.4", "warmup_epochs=1")),
    Row("batch 64", SHORT, ("batch_size=64",)),
    Row("batch 32", SHORT, ("batch_size=32",)),
    *(Row("batch 64, lr 0.2", epochs, ("batch_size=64", "lr=0.2")) for epochs in (SHORT, *LONG)),
    Row("batch 64, lr 0.4", SHORT, ("batch_size=64", "lr=0.4")),
    Row("batch 32, lr 0.2", SHORT, ("batch_size=32", "lr=0.2")),
    Row("weight decay 5e-4", SHORT, ("weight_decay=5e-4",)),
    Row("steps instead of cosine", SHORT, ("scheduler=multistep",)),
    Row("AdamW, lr 0.004", SHORT, ADAMW),
    Row("AdamW, lr 0.004, batch 64", SHORT, (*ADAMW, "batch_size=64")),
    Row("average of the weights, 0.99", SHORT, average=0.99),
    # Twice the noise for half the images: as many passes.
    Row("two noise draws per image, half the epochs", SHORT, draws=2),
]


class Averaging:
    """A method that keeps the exponential average of the model's weights and BatchNorm statistics."""

    def __init__(self, method: Method, model: nn.Module, decay: float) -> None:
        self._method, self._model = method, model
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

    def __call__(self, model: nn.Module, batch: Batch, sigma: float, generator: torch.Generator) -> Loss:
        self.average.update_parameters(self._model)  # as the step before left them
        return self._method(model, batch, sigma, generator)


def drawing(method: Method, draws: int) -> Method:
    """The method on `draws` noisy copies of each image."""

    def repeated(value: Tensor) -> Tensor:
        return value.repeat(draws, *[1] * (value.dim() - 1))

    def several(model: nn.Module, batch: Batch, sigma: float, generator: torch.Generator) -> Loss:
        copies = Batch(repeated(batch.images), repeated(batch.labels), batch.epoch)
        return method(model, copies, sigma, generator)

    return several


def learn(row: Row, drops: list[Path], banks: list[Path], teacher: Path, folder: Path) -> dict[str, float]:
    """Train the row's student into `folder`/model."""
    epochs = max(1, row.epochs // row.draws)
    changes = [f"student.{change}" for change in (*row.changes, f"epochs={epochs}")]
    config = Project(ROOT).composed([*SETTINGS, "student.warmup_epochs=0", *changes])[1]
    recipe, stores = config.student, [open_store(drop) for drop in drops]
    info, (mean, std) = load_info(teacher), mean_and_std(stores)
    torch.manual_seed(derive_seed(config.seed, "weights"))
    model = build_model(recipe.arch, stores[0].spec, recipe.arch_args, mean, std)
    device, how = choose_device(config.runtime.device), config.data.augment
    fabric = start_fabric(
        device, choose_precision(config.runtime.precision, model, stores[0].spec.shape, device)
    )
    frozen = load_teacher(teacher, stores[0], config.sigma, fabric.device)
    if row.draws > 1:
        method, moves = drawing(crt(teacher=Teacher(frozen), alpha=1.0), row.draws), None
    else:
        replayed = Replayed(frozen, stores, banks, seed=config.seed, how=how)
        method, moves = crt(teacher=replayed, alpha=1.0), replayed.moves
    batches = Batches(
        stores,
        recipe.batch_size // row.draws,
        **how.model_dump(),
        seed=config.seed,
        device=fabric.device,
        moves=moves,
    )
    averaging = Averaging(method, model, row.average) if row.average else None
    if averaging:
        shutil.rmtree(folder / "work", ignore_errors=True)  # the average is in no checkpoint
    progress = train(
        model, averaging or method, batches, recipe, name=row.key, sigma=info.sigma, seed=config.seed,
        fabric=fabric, compile_model=False, work=folder / "work", log=folder / "training.tsv",
    )  # fmt: skip
    if averaging:
        model.load_state_dict(averaging.average.module.state_dict())
    made = info.__dict__ | {
        "arch": recipe.arch, "arch_args": recipe.arch_args, "mean": mean, "std": std, "method": "crt",
        "teacher_fingerprint": model_fingerprint(teacher), "source": None,
    }  # fmt: skip
    save_model(folder / "model", model, ModelInfo(**made))
    return {"steps": float(recipe.epochs * batches.steps), "loss": progress.rows[-1]["loss"]}


def run(row: Row, drops: list[Path], banks: list[Path], teacher: Path, test: Path, work: Path) -> None:
    """Train and certify one row, unless an earlier run did."""
    folder = work / row.key
    found = folder / "found.json"
    if found.is_file():
        return
    outcome = learn(row, drops, banks, teacher, folder)
    write_text(found, json.dumps({**outcome, **certify(folder / "model", test, folder / "certificates.tsv")}))


def certify(model: Path, test: Path, out: Path) -> dict[str, float]:
    config = Project(ROOT).composed(SETTINGS)[1]
    stride = max(1, len(open_store(test)) // IMAGES)
    metrics = certified_metrics(
        model, test, out, config, n0=N0, n=N, stride=stride, max_images=IMAGES, skip_misclassified=True,
        precision="int8",
    )  # fmt: skip
    return {"acr": metrics["acr"], "at 0": metrics["certified_accuracy"]["0.0"]}


def banks_of(drops: list[Path], teacher: Path, work: Path) -> list[Path]:
    config: Config = Project(ROOT).composed(SETTINGS)[1]
    banks = [work / f"bank-{drop.name}" for drop in drops]
    for drop, bank in zip(drops, banks, strict=True):
        if not bank.is_dir():
            record(config, drop, teacher, bank, work)
    return banks


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", type=Path, default=Path("models/teacher"))
    parser.add_argument("--drops", type=Path, nargs="+", required=True)
    parser.add_argument("--test", type=Path, default=Path("prepared/test"))
    parser.add_argument("--work", type=Path, default=Path(".work/epochs"))
    parser.add_argument("--rows", default="*")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "epochs.md")
    args = parser.parse_args()
    banks = banks_of(args.drops, args.teacher, args.work)
    known = args.work / "teacher.json"
    if not known.is_file():
        write_text(
            known, json.dumps(certify(args.teacher, args.test, args.work / "teacher" / "certificates.tsv"))
        )
    for row in ROWS:
        if fnmatch.fnmatch(row.key, args.rows):
            run(row, args.drops, banks, args.teacher, args.test, args.work)
    top = json.loads(known.read_text())["acr"]
    images = sum(len(open_store(drop)) for drop in args.drops)
    lines = [
        "# Recipes for few epochs",
        "",
        f"{images:,} training images, CRT of a narrow ResNet-18 (4 blocks) from a "
        f"{load_info(args.teacher).arch} with ACR {top:.4f}; as it was in the paper: SGD at 0.1, batch 128, "
        f"weight decay 1e-4, cosine. {IMAGES} test images, exact certification in int8 with n = {N}, alpha = "
        "0.001. One seed.",
        "",
        "| recipe | epochs | steps | training loss | ACR | share of the teacher's | certified at 0 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        found = args.work / row.key / "found.json"
        if not found.is_file():
            continue
        one = json.loads(found.read_text())
        lines.append(
            f"| {row.label} | {row.epochs} | {one['steps']:,.0f} | {one['loss']:.3f} | {one['acr']:.4f} | "
            f"{one['acr'] / top:.3f} | {one['at 0']:.3f} |"
        )
    text = "\n".join(lines) + "\n"
    write_text(args.out, text)
    print(text)


if __name__ == "__main__":
    main()
