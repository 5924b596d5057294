"""Stage: certify a model on the test set by randomized smoothing."""

import sys
from pathlib import Path

from common import is_pinned, run_on_all_devices, work_dir

from crt.config import Config


def main(config: Config) -> None:
    role = sys.argv[1]
    folder, out = Path("models") / role, Path("certificates") / f"{role}.tsv"
    if not is_pinned(folder):
        from crt.certification.table import write_unpinned

        write_unpinned(out)
    else:
        certify(config, folder, out)
    from crt.processes import rank

    if rank() == 0:
        from crt.evaluation.metrics import write_metrics

        results = Path("results/certify")
        write_metrics(
            out,
            results / f"{role}.json",
            results / "curves" / f"{role}.csv",
            results / "ecdf" / f"{role}.csv",
        )


def certify(config: Config, folder: Path, out: Path) -> None:
    from crt.certification.run import Settings, certify_store
    from crt.data.store import open_store
    from crt.models.checkpoint import load_model, model_fingerprint

    model, info = load_model(folder)
    c = config.certify
    settings = Settings(
        sigma=config.sigma,
        mode=c.mode,
        n0=c.n0,
        n=c.n,
        alpha=c.alpha,
        radii=tuple(c.radii),
        seed=config.seed,
        stride=c.stride,
        max_images=c.max_images,
        skip_misclassified=c.skip_misclassified,
        allow_sigma_mismatch=c.allow_sigma_mismatch,
        precision=c.precision,
        compile=config.runtime.compile,
        device=config.runtime.device,
        batch_size=c.batch_size,
    )
    store = open_store(Path("prepared/test"))
    certify_store(model, info, model_fingerprint(folder), store, settings, out, work_dir("certify"))


if __name__ == "__main__":
    run_on_all_devices(main)
