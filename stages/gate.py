"""Stage gate: compare the student with the baseline and the teacher, image by image."""

from pathlib import Path

from common import run

from crt.config import Config
from crt.evaluation.certificates import is_pinned, read_certificates
from crt.evaluation.gate import Margins, decide
from crt.files import write_json

CERTIFICATES = Path("certificates")


def main(config: Config) -> None:
    gate = config.gate
    baseline = CERTIFICATES / "baseline.tsv"
    result = decide(
        student=read_certificates(CERTIFICATES / "student.tsv"),
        baseline=read_certificates(baseline) if is_pinned(baseline) else None,
        teacher=read_certificates(CERTIFICATES / "teacher.tsv"),
        margins=Margins(gate.margin, gate.margins, gate.acr_margin),
        confidence=gate.confidence,
    )
    write_json(Path("results/gate.json"), result)
    print(f"{result['verdict']}: {' '.join(result['sentences'])}")


if __name__ == "__main__":
    run(main)
