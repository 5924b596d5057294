"""Certify a trained model as a benchmark's row."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from crt.certification.run import Settings, certify_store
from crt.config import Config
from crt.data.store import open_store
from crt.evaluation.certificates import read_certificates
from crt.evaluation.metrics import compute_metrics
from crt.models.checkpoint import load_model, model_fingerprint


def certified_metrics(folder: Path, test: Path, out: Path, config: Config, **changes: Any) -> dict[str, Any]:
    """Metrics of the model `folder` on the prepared `test` set: exact, float32, every image, unless `changes` say else.

    The certificates go to `out`, a TSV; a run that was interrupted goes on beside it.
    """
    model, info = load_model(folder)
    settings = Settings(
        sigma=info.sigma,
        mode="exact",
        n0=100,
        n=1000,
        alpha=0.001,
        radii=tuple(config.certify.radii),
        seed=0,
        stride=1,
        max_images=None,
        skip_misclassified=False,
        allow_sigma_mismatch=False,
        precision="float32",
        compile=False,
        device=config.runtime.device,
        batch_size=None,
    )
    certify_store(
        model,
        info,
        model_fingerprint(folder),
        open_store(test),
        replace(settings, **changes),
        out,
        out.with_name("certify"),
    )
    return compute_metrics(read_certificates(out))
