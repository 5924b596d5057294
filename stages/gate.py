"""Stage gate: compare the student with the baseline, the anchor and the teacher, image by image."""

from pathlib import Path
from typing import Any

from common import run

from crt.config import Anchored, Config, Pin
from crt.evaluation.anchor import Anchor, compared
from crt.evaluation.certificates import Certificates, read_certificates
from crt.evaluation.chain import candidate, continued, entry, read_model
from crt.evaluation.changed import changed_images
from crt.evaluation.gate import Margins, decide
from crt.evaluation.paired import pair
from crt.files import write_json, write_text
from crt.history import NAME, History, read_history, version_of

RESULTS, CERTIFICATES, MODELS = Path("results"), Path("certificates"), Path("models")


def main(config: Config) -> None:
    gate = config.gate
    student, model = _read("student"), read_model(MODELS / "student")
    pin = config.pinned.get("baseline")
    baseline = _read("baseline") if pin is not None else None
    result = decide(
        student=student,
        baseline=baseline,
        teacher=_read("teacher"),
        margins=Margins(
            gate.margin, gate.margins, gate.acr_margin, gate.max_lost, gate.class_margin, gate.anchor_factor
        ),
        confidence=gate.confidence,
        classes=model["classes"],
        anchor=_anchor(pin, student, model) if isinstance(pin, Anchored) else None,
    )
    changed = changed_images(pair(student, baseline) if baseline is not None else None)
    write_text(CERTIFICATES / "changed.tsv", changed.to_csv(sep="\t", index=False, lineterminator="\n"))
    write_json(RESULTS / "gate/details.json", result)
    write_json(RESULTS / "gate.json", {"verdict": result["verdict"]})
    last = candidate(student, model, config.data.drops, result, version_of(pin.ref) if pin else None)
    past = _past(pin, baseline) if pin is not None and baseline is not None else None
    write_text(RESULTS / "gate" / NAME, continued(past, last).model_dump_json(indent=2) + "\n")
    print(f"{result['verdict']}: {' '.join(result['sentences'])}")


def _past(pin: Pin, baseline: Certificates) -> History:
    """The baseline's history; where it was released without one, it begins with the baseline."""
    folder = MODELS / "baseline"
    if (folder / NAME).exists():
        return read_history(folder / NAME)
    begins = "it was released without a history"
    return continued(None, entry(baseline, read_model(folder), version=version_of(pin.ref), begins=begins))


def _anchor(pin: Anchored, student: Certificates, model: dict[str, Any]) -> Anchor:
    version, reason = version_of(pin.anchor.ref), pin.anchor.reason
    if version == version_of(pin.ref):
        return Anchor(version, reason)
    folder = MODELS / "baseline/anchor"
    certificates = read_certificates(folder / "certificates.tsv")
    return compared(version, reason, student, model, certificates, read_model(folder))


def _read(role: str) -> Certificates:
    return read_certificates(CERTIFICATES / f"{role}.tsv")


if __name__ == "__main__":
    run(main)
