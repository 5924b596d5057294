"""Stages certify@<role>: certify a model by randomized smoothing."""

import sys
from pathlib import Path

from common import resume_root, run_on_all_devices

from crt.certification.run import certify_store
from crt.config import Config
from crt.data.store import open_split
from crt.models.checkpoint import load_model, model_fingerprint


def main(config: Config) -> None:
    role = sys.argv[1]
    folder = Path("models") / role
    model, info = load_model(folder)
    certify_store(
        model,
        info,
        model_fingerprint(folder),
        open_split(Path(config.certify.images), config.certify.split),
        config.certify,
        Path("certificates") / f"{role}.tsv",
        resume_root() / "certificates",
        sigma=config.sigma,
        device=config.runtime.device,
        compile=config.runtime.compile,
    )


if __name__ == "__main__":
    run_on_all_devices(main)
