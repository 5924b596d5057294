"""Stage gate: compare the student with the baseline and the teacher, image by image."""

import json
from pathlib import Path

from common import run

from crt.config import Config
from crt.evaluation.certificates import Certificates, read_certificates
from crt.evaluation.changed import changed_images
from crt.evaluation.gate import Margins, decide
from crt.evaluation.paired import pair
from crt.files import write_json, write_text

RESULTS, CERTIFICATES = Path("results"), Path("certificates")


def main(config: Config) -> None:
    gate = config.gate
    student = _read("student")
    baseline = _read("baseline") if gate.against == "baseline" else None
    model = json.loads(Path("models/student/model.json").read_text(encoding="utf-8"))
    result = decide(
        student=student,
        baseline=baseline,
        teacher=_read("teacher"),
        margins=Margins(gate.margin, gate.margins, gate.acr_margin, gate.max_lost, gate.class_margin),
        confidence=gate.confidence,
        classes=model["classes"],
    )
    changed = changed_images(pair(student, baseline) if baseline is not None else None)
    write_text(CERTIFICATES / "changed.tsv", changed.to_csv(sep="\t", index=False, lineterminator="\n"))
    write_json(RESULTS / "gate/details.json", result)
    write_json(RESULTS / "gate.json", {"verdict": result["verdict"]})
    print(f"{result['verdict']}: {' '.join(result['sentences'])}")


def _read(role: str) -> Certificates:
    return read_certificates(CERTIFICATES / f"{role}.tsv")


if __name__ == "__main__":
    run(main)
