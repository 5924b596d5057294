"""Certify a trained model as a benchmark's row."""

from pathlib import Path
from typing import Any

from crt.certification.run import certify_store
from crt.config import Config
from crt.data.store import open_store
from crt.evaluation.certificates import read_certificates
from crt.evaluation.metrics import compute_metrics
from crt.models.checkpoint import load_model, model_fingerprint


def certified_metrics(folder: Path, test: Path, out: Path, config: Config, **changes: Any) -> dict[str, Any]:
    """Metrics of a model on the prepared `test` set: exact, float32, all images, unless `changes` say else.

    The certificates go to `out`, a TSV; a run that was interrupted goes on beside it.
    """
    model, info = load_model(folder)
    plain = {
        "mode": "exact",
        "n0": 100,
        "n": 1000,
        "alpha": 0.001,
        "precision": "float32",
        "batch_size": None,
    }
    every = {"stride": 1, "max_images": None, "skip_misclassified": False, "allow_sigma_mismatch": False}
    certify_store(
        model,
        info,
        model_fingerprint(folder),
        open_store(test),
        config.certify.model_copy(update=plain | every | changes),
        out,
        out.with_name("certify"),
        sigma=info.sigma,
        device=config.runtime.device,
    )
    return compute_metrics(read_certificates(out))
