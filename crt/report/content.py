"""What the page and the model card say and draw, from the results."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from crt.history import Change
from crt.report import formats
from crt.report.figures import Difference, Estimate, Series, bars, difference_chart, line_chart
from crt.report.load import Results, Role

Legend = list[tuple[str, str]]  # kind of line, its name

SHOWN = 8  # images in a group of the gallery

SETTING_NAMES = {
    "sigma": "σ",
    "mode": "certification mode",
    "n": "n",
    "alpha": "α",
    "stride": "stride",
    "max_images": "largest number of images",
    "skip_misclassified": "skip misclassified",
    "device": "device",
    "precision": "precision",
    "compile": "compiled",
    "model_fingerprint": "model",
    "data_fingerprint": "test set",
}


def meaning(results: Results) -> list[str]:
    """What a certificate says and what not, in paragraphs."""
    student = results.role("student")
    settings, metrics, radius = student.settings, student.metrics, middle_radius(student)
    different = metrics["images"] - metrics["repeated_images"]
    return [
        f"For each certified image, with probability at least 1 − α = {1 - settings['alpha']:.12g} over the "
        "noise that was drawn, the smoothed classifier gives the same class for every change of the image "
        "with an l2 norm below the radius, whatever the attack. Nothing is said of larger changes, of other "
        "kinds of change (rotation, blur, a sticker, another camera), nor that the class is right: certified "
        "accuracy counts only certificates of the right class.",
        "On average a share of up to α of the certificates may be wrong. Allowing for that, with "
        "probability 0.999 at least "
        f"{formats.at_least(metrics['certified_accuracy_lower_bound'][radius])} of these "
        f"{formats.count(different)} different images are truly classified right within radius {radius}. The "
        "intervals are for another matter: the test set is a sample of the images that will be met.",
        "The certificate is of the classifier as it was run. Network, σ, numeric precision and compilation "
        "are parts of it: deploy it with the settings of its certificates. Its noise is whole multiples of a "
        "gray level's fraction, and bounds are rounded down, so that rounding on the computer is covered. "
        "Images are whole gray levels.",
        "ACR alone misleads. It pays for ever larger radii on easy images, where a p_A close to 1 goes very "
        "far, pays nothing on hard ones, and grows with n. Judge by the certified accuracy at the radii that "
        "matter, and by the distribution of p_A.",
    ]


def legend(results: Results) -> Legend:
    """The roles and their lines."""
    return [(role.name, role.name) for role in results.roles]


def largest_radius(role: Role) -> float:
    """What n draws can certify at most."""
    return role.curve["radius"][-1]


def middle_radius(role: Role) -> str:
    """The metrics' key of the radius in the middle of those that n draws can certify."""
    keys = list(role.metrics["certified_accuracy"])
    reached = [key for key in keys if float(key) <= largest_radius(role)] or keys[:1]
    return reached[len(reached) // 2]


def formatted(roles: Sequence[Role], part: str, key: str, form: str) -> list[str]:
    """One figure of every role; a dash where a role has none."""
    return [getattr(formats, form)(getattr(role, part).get(key)) for role in roles]


def accuracy_chart(results: Results) -> Markup:
    """Certified accuracy over the radius, with intervals at the reported radii."""
    series, said = [], []
    for role in results.roles:
        accuracy, interval = (
            role.metrics["certified_accuracy"],
            role.metrics["interval"]["certified_accuracy"],
        )
        marks = [Estimate(float(key), share, *interval[key]) for key, share in accuracy.items()]
        end = largest_radius(role)  # beyond it nothing is certified
        x, y = [*role.curve["radius"], end], [*role.curve["certified_accuracy"], 0.0]
        series.append(Series(role.name, x, y, marks))
        said.append(
            f"{role.name}: "
            + ", ".join(f"{formats.percent(share)} at {key}" for key, share in accuracy.items())
        )
    return line_chart(
        "accuracy",
        "Certified accuracy over the l2 radius",
        "; ".join(said),
        series,
        x_label="l2 radius, [0,1] pixel units",
        y_label="certified accuracy",
        y_top=1.0,
        y_unit="%",
    )


def ecdf_chart(results: Results) -> Markup:
    """The distribution of the lower bound of p_A, from 1/2, below which nothing is certified."""
    series = []
    for role in results.roles:
        pairs = zip(role.ecdf["p_lower"], role.ecdf["share"], strict=True)
        above = [(p, share) for p, share in pairs if p >= 0.5]
        series.append(Series(role.name, [p for p, _ in above], [share for _, share in above]))
    return line_chart(
        "ecdf",
        "Distribution of the lower bound of p_A",
        "; ".join(
            f"{line.kind}: {formats.percent(line.y[0])} of the images at 1/2 or below" for line in series
        ),
        series,
        x_label="lower bound of p_A",
        y_label="share of images at or below",
        y_top=1.0,
        y_unit="%",
    )


def comparisons(results: Results, against: str) -> list[dict[str, Any]]:
    """The gate's rows that compare the student with `against`."""
    return [row for row in results.gate["comparisons"] if row["against"] == against]


def keeps(results: Results) -> bool:
    """Whether the gate bounds the share of lost certificates."""
    return any(row["quantity"] == "certificates_kept" for row in results.gate["comparisons"])


def difference_chart_against(results: Results, against: str) -> Markup:
    """Certified accuracy of the student minus that of another role, per radius."""
    rows = [
        Difference(
            label=f"at {row['radius']}",
            value=row["difference"],
            low=row["interval"][0],
            high=row["interval"][1],
            margin=row.get("margin"),
        )
        for row in comparisons(results, against)
        if row["quantity"] == "certified_accuracy"
    ]
    title = f"Certified accuracy, student minus {against}, percentage points"
    said = [
        f"{row.label}: {formats.points(row.value)} ({formats.points_range((row.low, row.high))})"
        for row in rows
    ]
    return difference_chart(f"against-{against}", title, "; ".join(said), rows)


def gallery(results: Results) -> list[dict[str, Any]]:
    """Test images by what the student's certificate says.

    Each part has a title, and of each image its number, class and certificate.
    """
    classes = results.role("student").model["classes"]
    certified = [row for row in results.certificates if row["status"] == "certified"]
    right = sorted((row for row in certified if row["correct"] == "1"), key=_radius)
    others = [row for row in results.certificates if row["status"] != "abstained" and row["correct"] != "1"]
    groups = {
        "Most robust": right[: -SHOWN - 1 : -1],
        "Least robust of those that are right": right[:SHOWN],
        "Taken for another class, largest radius first": sorted(others, key=_radius, reverse=True)[:SHOWN],
        "Abstained": [row for row in results.certificates if row["status"] == "abstained"][:SHOWN],
    }
    return [
        {"title": title, "shown": [_shown(row, classes) for row in rows]} for title, rows in groups.items()
    ]


def _radius(row: Mapping[str, str]) -> float:
    """Of an image's certificate; 0: none was drawn for."""
    return float(row["radius"] or 0)


def _shown(row: Mapping[str, str], classes: Sequence[str]) -> dict[str, Any]:
    said = (
        []
        if row["correct"] == "1" or row["status"] == "abstained"
        else [f"as {classes[int(row['predict'])]}"]
    )
    said += [f"radius {formats.radius(_radius(row))}"] if row["status"] == "certified" else []
    label = int(row["label"])
    return {"number": int(row["idx"]), "name": classes[label], "said": ", ".join(said)}


def changed_gallery(
    lost: Sequence[Mapping[str, str]], gained: Sequence[Mapping[str, str]], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """The images that lost and gained most, as `gallery`: the baseline's radius and the student's."""
    return [
        {"title": title, "shown": [_shown_change(row, classes) for row in rows[:SHOWN]]}
        for title, rows in (("Lost most", lost), ("Gained most", gained))
    ]


def _shown_change(row: Mapping[str, str], classes: Sequence[str]) -> dict[str, Any]:
    radii = (formats.radius(float(row[whose])) for whose in ("other_radius", "student_radius"))
    return {"number": int(row["image"]), "name": classes[int(row["label"])], "said": " → ".join(radii)}


def history_rows(results: Results) -> list[dict[str, str]]:
    """The releases before the student and itself, the newest first: what each changed, alone and together."""
    radius = middle_radius(results.role("student"))
    return [
        {
            "version": entry.version or "this student",
            "date": entry.date or formats.MISSING,
            "begins": entry.begins or "",
            "drops": _drops(entry.drops),
            "arch": entry.arch,
            "acr": formats.radius(entry.acr),
            "accuracy": formats.percent(entry.certified_accuracy.get(radius)),
            "baseline": entry.baseline or "",
            "change": _change(entry.change, radius),
            "anchor": entry.anchor or "",
            "since_anchor": _change(entry.since_anchor, radius),
            "verdict": entry.verdict or formats.MISSING,
            "candidates": "" if entry.candidates is None else str(entry.candidates),
        }
        for entry in reversed(results.history.releases)
    ]


def withdrawn_drops(results: Results) -> dict[str, list[str]]:
    """The drops that are no longer in use, with the releases that were trained on them."""
    found: dict[str, list[str]] = {}
    for entry in results.history.releases[:-1]:
        for drop in entry.drops or []:
            if drop not in results.data:
                found.setdefault(drop, []).append(entry.version or formats.MISSING)
    return found


def _change(change: Change | None, radius: str) -> str:
    """Of ACR and, in points, of certified accuracy at a radius."""
    if change is None:
        return formats.MISSING
    points = change.certified_accuracy.get(radius)
    told = "" if points is None else f", {formats.points(points)}"
    return formats.radius_difference(change.acr) + told


def _drops(names: Sequence[str] | None) -> str:
    if not names:
        return formats.MISSING
    return names[0] if len(names) == 1 else f"{len(names)}, to {names[-1]}"


def training_charts(results: Results) -> list[tuple[str, Legend, Markup]]:
    """Caption, legend and chart: what both networks get right under noise, then the loss of each."""
    trained = [role for role in results.roles if role.history.get("epoch")]
    entries: Legend = []
    shares: list[Series] = []
    for role in trained:
        for column, dashes in (("noisy_accuracy", ""), ("agreement", " part")):
            if column in role.history:
                entries.append((role.name + dashes, f"{role.name}: {column.replace('_', ' ')}"))
                shares.append(Series(role.name + dashes, role.history["epoch"], role.history[column]))
    charts = []
    if shares:
        said = "; ".join(
            f"{label} ends at {formats.percent(line.y[-1])}"
            for (_, label), line in zip(entries, shares, strict=True)
        )
        title = "Accuracy and agreement on noisy training images"
        chart = line_chart(
            "noisy", title, said, shares, x_label="epoch", y_label="share of images", y_top=1.0, y_unit="%"
        )
        charts.append((title, entries, chart))
    for role in trained:
        title, loss = f"Training loss of the {role.name} ({role.model['method']})", role.history["loss"]
        line = Series(role.name, role.history["epoch"], loss)
        said = f"from {loss[0]:.3g} to {loss[-1]:.3g} in {len(loss)} epochs"
        chart = line_chart(f"loss-{role.name}", title, said, [line], x_label="epoch", y_label="loss")
        charts.append((title, [], chart))
    return charts


def metric_rows(results: Results) -> list[tuple[str, list[str]]]:
    """The model card's table: a label, one value per role."""
    metrics = [role.metrics for role in results.roles]
    rows = [
        (
            "smoothed accuracy",
            [_with_interval(m["smoothed_accuracy"], m["interval"]["smoothed_accuracy"]) for m in metrics],
        )
    ]
    for key in metrics[0]["certified_accuracy"]:
        values = [
            _with_interval(m["certified_accuracy"][key], m["interval"]["certified_accuracy"][key])
            for m in metrics
        ]
        rows.append((f"certified accuracy at {key}", values))
    bound = ", a lower bound" if metrics[0]["acr_is_lower_bound"] else ""
    rows.append((f"average certified radius{bound}", [formats.radius(m["acr"]) for m in metrics]))
    rows.append(("median certified radius", [formats.radius(m["median_radius"]) for m in metrics]))
    rows.append(("abstention rate", [formats.percent(m["abstention_rate"]) for m in metrics]))
    return rows


def class_bars(counts: dict[str, int]) -> Markup:
    """Images per class as bars."""
    least, most = min(counts.values(), default=0), max(counts.values(), default=0)
    return bars(list(counts.values()), f"{len(counts)} classes, {least} to {most} images each")


def size_rule(model: dict[str, Any]) -> str:
    """The network's input, in words."""
    size = model["image_size"]
    others = {
        "none": "other sizes are refused",
        "crop": "other sizes are resized and cropped",
        "squash": "other sizes are resized",
    }
    return f"{model['channels']} × {size} × {size} pixels in [0,1]; {others[model['resize']]}"


def selection_draws(settings: Mapping[str, Any]) -> str:
    """n0, which adaptive mode does not use."""
    return formats.count(settings["n0"]) if settings["mode"] == "exact" else "as few as make the class clear"


def setting_rows(results: Results) -> list[tuple[str, list[str]]]:
    """How every role was made and certified: a label, one value per role."""
    roles = results.roles
    rows = [
        (label, [_plain(role.settings.get(key)) for role in roles]) for key, label in SETTING_NAMES.items()
    ]
    rows.append(("n0", [selection_draws(role.settings) for role in roles]))
    rows.append(("noise", [_noise(role.settings.get("noise")) for role in roles]))
    rows.append(("batch", [_batch(role.settings) for role in roles]))
    rows.append(("training data", [_plain(role.model["data_fingerprint"]) for role in roles]))
    rows.append(("teacher of it", [_plain(role.model["teacher_fingerprint"]) for role in roles]))
    rows.append(("started from", [_plain(role.model.get("init_fingerprint")) for role in roles]))
    rows.append(("trained with", [_versions(role.model["versions"]) for role in roles]))
    rows.append(("certified with", [_versions(role.settings["versions"]) for role in roles]))
    return rows


def _with_interval(share: float, interval: Sequence[float]) -> str:
    return f"{formats.percent(share)} ({formats.percent_range(interval)})"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return formats.MISSING if value is None else str(value)


def _noise(noise: Mapping[str, Any] | None) -> str:
    """What noise certificates are of, and what fixed it; those of version 0.1.0 do not say."""
    if noise is None:
        return formats.MISSING
    seed = "" if noise["seed"] is None else f"; seed {noise['seed']}"
    return f"{noise['kind']}, from {noise['bits']}, fixed by {', '.join(noise['depends_on'])}{seed}"


def _batch(settings: Mapping[str, Any]) -> str:
    """The rows of each forward pass, and whether classes hang on their number."""
    said, check = _plain(settings.get("batch_size")), settings.get("other_batch_size")
    if not check:
        return said
    changed = f"{check['differing']} of {check['rows']} made-up images change their class"
    return f"{said}; with {check['batch_size']}, {changed}"


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
