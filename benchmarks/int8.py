"""What does int8 cost in smoothed accuracy, and what does it gain in passes per second?

    python benchmarks/int8.py --images CIFAR10 --work WORK [--arch mobilenetv3_small_100 ...]

CIFAR10 holds train/<class>/ and test/<class>/ with image files. Each network is trained for a few minutes
with Gaussian noise, the first steps on images of half the size; WORK keeps its weights. Then float32 and int8
vote on the same noisy copies of the same test images. Times are of one thread's CPU time, so that they hold
on a machine that does other work. The table goes to benchmarks/results/int8.md. About an hour on one core.
"""

import argparse
import copy
import platform
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from crt.evaluation.betting import mean_interval
from crt.files import write_text
from crt.inference.fold import fold_batchnorm
from crt.inference.int8 import quantize_any
from crt.models.build import build_model
from crt.spec import ImageSpec

SIGMA, SHAPE = 0.25, torch.Size([3, 32, 32])
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
# Steps of 64 images: at half the size, at the whole size; votes for each image.
PLANS = {
    "cifar_resnet20": (900, 300, 100),
    "mobilenetv3_small_100": (900, 200, 100),
    "efficientnet_b0": (600, 120, 100),
}
COLUMNS = [
    "network", "images", "votes", "float32", "int8", "lost (points, 95 %)", "same class", "passes/s float32",
    "passes/s int8",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--arch", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--count", type=int, default=1000, help="test images")
    parser.add_argument("--votes", type=int, help="[100]")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/int8.md"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row_of(arch, args) for arch in args.arch]
    head = (
        f"# int8 beside float32\n\nSmoothed accuracy on CIFAR-10's images (saved as JPEG), sigma {SIGMA}, "
        f"from the same noise; networks trained for a few minutes by `benchmarks/int8.py`, which says how. "
        f"{platform.machine()}, "
        f"{torch.backends.cpu.get_cpu_capability()}, "
        f"VNNI: {'yes' if torch.cpu._is_vnni_supported() else 'no'}, "
        f"AMX: {'yes' if torch.cpu._is_amx_tile_supported() else 'no'}, "
        f"one thread, torch {torch.__version__}. Whether int8 makes 1.2 "
        "times bfloat16's passes per second can be measured on a CPU with AMX only.\n\n"
    )
    lines = ["| " + " | ".join(cells) + " |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows)]
    write_text(args.out, head + "\n".join(lines) + "\n")
    print("\n".join(lines))


def row_of(arch: str, args: argparse.Namespace) -> list[str]:
    """Train, quantize and compare one network."""
    votes = args.votes or PLANS[arch][2]
    model = trained(arch, args.images, args.work)
    exact = fold_batchnorm(model).to(memory_format=torch.channels_last)
    whole = quantize_any(copy.deepcopy(exact), SHAPE, SIGMA).to(memory_format=torch.channels_last)
    images, labels = read(args.images / "test", args.count)
    right, seconds = np.zeros((2, len(images)), bool), [0.0, 0.0]
    same = 0
    generator = torch.Generator().manual_seed(0)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        noisy = image + SIGMA * torch.randn(votes, *SHAPE, generator=generator)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        classes = []
        for which, network in enumerate((exact, whole)):
            began = time.process_time()
            with torch.inference_mode():
                counts = network(noisy).argmax(1).bincount()
            seconds[which] += time.process_time() - began
            classes.append(int(counts.argmax()))
            right[which, number] = classes[-1] == label
        same += classes[0] == classes[1]
    gained, lost = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
    low, high = mean_interval(right[0].astype(float) - right[1], 0.95)
    return [
        arch,
        str(len(images)),
        str(votes),
        *(f"{share:.1%}" for share in right.mean(1)),
        f"{100 * (lost - gained) / len(images):.1f} ({100 * low:.1f} to {100 * high:.1f})",
        f"{same / len(images):.1%}",
        *(f"{votes * len(images) / each:,.0f}" for each in seconds),
    ]


def trained(arch: str, images: Path, work: Path) -> nn.Module:
    """The network in eval mode, trained with Gaussian noise, or from `work`."""
    torch.manual_seed(0)
    model = build_model(arch, ImageSpec.numbered(10, SHAPE[1], 3), mean=MEAN, std=STD)
    file = work / f"{arch}.pt"
    if not file.exists():
        train(model, images, *PLANS[arch][:2])
        work.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), file)
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval()


def train(model: nn.Module, images: Path, half: int, whole: int) -> None:
    model.to(memory_format=torch.channels_last).train()
    pixels, labels = read(images / "train", None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=half + whole, pct_start=0.25)
    order = torch.cat([torch.randperm(len(labels)) for _ in range((half + whole) * 64 // len(labels) + 1)])
    for step, chosen in enumerate(order.split(64)[: half + whole]):
        x = pixels[chosen]
        flipped = torch.rand(len(x)) < 0.5
        x[flipped] = x[flipped].flip(3)
        down, right = torch.randint(0, 9, (2,)).tolist()
        x = F.pad(x, (4, 4, 4, 4))[:, :, down : down + 32, right : right + 32]
        x = F.avg_pool2d(x, 2) if step < half else x
        x = (x + SIGMA * torch.randn(x.shape)).contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(model(x), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


def read(folder: Path, count: int | None) -> tuple[Tensor, Tensor]:
    """Images float32 [N, 3, 32, 32] in [0,1] and labels [N]; `count` of them, evenly from all classes."""
    files = [(file, k) for k, c in enumerate(sorted(folder.iterdir())) for file in sorted(c.iterdir())]
    files = files[:: len(files) // count][:count] if count else files
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file, _ in files])
    labels = torch.tensor([label for _, label in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255), labels


if __name__ == "__main__":
    main()
