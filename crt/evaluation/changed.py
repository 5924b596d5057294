"""Which images lost or gained a certificate."""

import pandas as pd

from crt.evaluation.paired import Pair

COLUMNS = ["image", "name", "label", "lost_at", "gained_at", "student_radius", "other_radius"]


def changed_images(both: Pair | None) -> pd.DataFrame:
    """The images that only one of two classifiers certifies right at a reported radius, worst losses first.

    Args:
        both: The student's and the other's certificates; None: there is no other, and no row.

    Returns:
        The columns `COLUMNS`: the place in the test set, the file, its label, the radii at which the
        student lost and gained the certificate (`0.0 0.25`), and the radius of each classifier's right
        certificate, 0 where it has none.
    """
    if both is None:
        return pd.DataFrame(columns=COLUMNS)
    right = {radius: both.right_at(radius) for radius in both.radii}
    lost, gained = (
        [
            " ".join(str(radius) for radius, pairs in right.items() if pairs[a][row] and not pairs[b][row])
            for row in range(len(both))
        ]
        for a, b in ((1, 0), (0, 1))
    )
    table = pd.DataFrame(
        dict(
            zip(
                COLUMNS,
                (
                    both.first.idx,
                    both.first.name,
                    both.first.label,
                    lost,
                    gained,
                    both.first.right_radius,
                    both.second.right_radius,
                ),
                strict=True,
            )
        )
    )
    order = (table.student_radius - table.other_radius).sort_values(kind="stable").index
    table = table.loc[order]
    return table[(table.lost_at != "") | (table.gained_at != "")]
