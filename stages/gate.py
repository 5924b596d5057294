"""Stage gate: compare the student with the baseline and the teacher, image by image."""

from pathlib import Path

from common import run

from crt.config import Config
from crt.evaluation.certificates import Certificates, read_certificates
from crt.evaluation.gate import Margins, decide
from crt.files import write_json

RESULTS = Path("results")


def main(config: Config) -> None:
    gate = config.gate
    result = decide(
        student=_read("student"),
        baseline=_read("baseline") if gate.against == "baseline" else None,
        teacher=_read("teacher"),
        margins=Margins(gate.margin, gate.margins, gate.acr_margin),
        confidence=gate.confidence,
    )
    write_json(RESULTS / "gate/details.json", result)
    write_json(RESULTS / "gate.json", {"verdict": result["verdict"]})
    print(f"{result['verdict']}: {' '.join(result['sentences'])}")


def _read(role: str) -> Certificates:
    return read_certificates(Path("certificates") / f"{role}.tsv")


if __name__ == "__main__":
    run(main)
