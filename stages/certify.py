"""Stages certify@<role>: certify a model by randomized smoothing."""

import sys
from pathlib import Path

from common import run_on_all_devices, work_dir

from crt.certification.run import Settings, certify_store
from crt.config import Config
from crt.data.store import open_store, open_validation
from crt.models.checkpoint import load_model, model_fingerprint


def main(config: Config) -> None:
    role = sys.argv[1]
    folder = Path("models") / role
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
    out = Path("certificates") / f"{role}.tsv"
    store = (open_store if c.split == "test" else open_validation)(Path(c.images))
    certify_store(model, info, model_fingerprint(folder), store, settings, out, work_dir("certify"))


if __name__ == "__main__":
    run_on_all_devices(main)
