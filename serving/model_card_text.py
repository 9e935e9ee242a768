"""The model card as Markdown, from the content of its JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dlrm.formats.quantities import size_text

_NARROWEST = 4  # a column's rule is at least ---:
_NAMES = {
    "dot": "DLRM",
    "dcnv2": "DCNv2",
    "sum": "model of summed vectors",
    "concat": "model of concatenated vectors",
}


def markdown(card: Mapping[str, Any]) -> str:
    """The text of `model_card.md`.

    Args:
        card: The content of `model_card.json`.
    """
    sections = (_summary, _parts, _quality, _vocabulary, _origin, _limits)
    return "\n".join(line for section in sections for line in (*section(card), "")).rstrip() + "\n"


def _summary(card: Mapping[str, Any]) -> Iterator[str]:
    model, stored = card["model"], card["stored"]
    yield "# Model card"
    yield ""
    yield (
        f"A {_NAMES[model['interaction']]} that predicts whether a user clicks, from "
        f"{model['num_dense']} dense features and {model['tables']} ids, "
        f"after {card['training']['step']:,} steps of training. Its tables "
        f"are stored as {stored['tables']}, with rows in order of {stored['row_order']}, and its "
        f"MLPs as {stored['dense']}."
    )


def _parts(card: Mapping[str, Any]) -> Iterator[str]:
    model, stored = card["model"], card["stored"]
    yield "## Model"
    yield ""
    parameters = model["parameters"]
    lines = [
        (
            "tables",
            f"{model['rows']:,} rows of {model['embedding_dim']}",
            f"{parameters['tables']:,}",
            stored["tables"],
            size_text(stored["row_bytes_by_type"][stored["tables"]]),
        )
    ]
    for part, size in stored["mlp_bytes"].items():
        count = f"{parameters[part]:,}"
        if part == "cross":
            shape = f"{model['cross_layers']} of rank {model['cross_rank']}"
            lines.append(("cross layers", shape, count, "float32", size_text(size)))
            continue
        shape = "-".join(map(str, model[f"{part}_mlp"]))
        lines.append((f"{part} MLP", shape, count, stored["dense"], size_text(size)))
    yield from _table(("part", "shape", "parameters", "stored as", "size"), "ttntn", lines)
    yield ""
    sizes = stored["row_bytes_by_type"]
    yield "The rows of all tables take:"
    yield ""
    yield from _table(tuple(sizes), "n" * len(sizes), [tuple(map(size_text, sizes.values()))])


def _quality(card: Mapping[str, Any]) -> Iterator[str]:
    evaluation, cost = card["training"]["evaluation"], card["cost"]
    yield "## Quality"
    yield ""
    lines = []
    if evaluation:
        lines.append(("training's own evaluation", *_figures(evaluation)))
    quality = cost["quality"]
    if quality:
        if quality["reference"]:
            lines.append(("float32 model", *_figures(quality["reference"])))
        lines.append(("this artifact", *_figures(quality["artifact"])))
    heading = ("measured", "AUC", "log loss", "normalised entropy", "samples")
    if lines:
        yield from _table(heading, "tnnnn", lines)
        yield ""
    if quality and quality["reference"]:
        yield from _kept(quality["artifact"]["auc"], quality["reference"]["auc"])
    elif not quality:
        yield "This artifact itself was not measured: the export had no --data."
    yield ""
    tables = cost["tables"]
    if tables["largest_error"]:
        yield (
            f"Storing the tables as {card['stored']['tables']} changed their values by at most "
            f"{tables['largest_error']:.2g} and by {tables['mean_error']:.2g} on average; the "
            f"largest magnitude of a value is {tables['largest_magnitude']:.2g}."
        )
    else:
        yield "The tables are stored without loss."
    if cost["calibration"]:
        yield (
            "The MLPs' weights and inputs take 8 bits; the ranges of the inputs were seen on "
            f"{cost['calibration']['samples']:,} samples ({cost['calibration']['method']})."
        )


def _kept(auc: float | None, reference: float | None) -> Iterator[str]:
    """Which share of the float32 model's AUC the artifact has."""
    if auc and reference:
        yield f"This artifact has {auc / reference:.4%} of the float32 model's AUC."


def _figures(figures: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of one evaluation."""
    names = ("auc", "log_loss", "normalised_entropy")
    values = ("-" if figures[name] is None else f"{figures[name]:.6f}" for name in names)
    return (*values, f"{figures['samples']:,}")


def _vocabulary(card: Mapping[str, Any]) -> Iterator[str]:
    yield "## Vocabulary"
    yield ""
    row_bytes = card["stored"]["bytes_per_row"]
    lines = [
        (
            str(table),
            f"{rows:,}",
            size_text(rows * row_bytes),
            f"{errors['magnitude']:.3g}",
            f"{errors['largest']:.2g}",
            f"{errors['mean']:.2g}",
        )
        for table, (rows, errors) in enumerate(
            zip(card["model"]["rows_of_tables"], card["cost"]["tables"]["by_table"])
        )
    ]
    heading = ("table", "rows", "stored", "largest magnitude", "largest error", "mean error")
    yield from _table(heading, "nnnnnn", lines)


def _origin(card: Mapping[str, Any]) -> Iterator[str]:
    training = card["training"]
    yield "## Training"
    yield ""
    yield (
        f"Step {training['step']:,}, epoch {training['epoch']}, next sample "
        f"{training['next_sample']:,}."
    )
    for title, entries in (("Data", training["data"]), ("Settings", training["settings"])):
        yield ""
        yield f"{title}:"
        yield ""
        yield from (f"- `{name}`: `{_text(value)}`" for name, value in entries.items())


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _limits(card: Mapping[str, Any]) -> Iterator[str]:
    limits = card["limits"]
    yield "## What it accepts"
    yield ""
    yield f"- ids: {limits['ids']}"
    yield f"- dense features: {limits['dense']}"
    if limits["raw_values"]:
        rules = limits["dictionary"]
        yield f"- raw values: {limits['raw_values']}; rules `{rules['rules']}`"
    yield f"- result: {limits['output']}"
    yield ""
    yield (
        "It has learned from the clicks of its training data alone: what was rare there, or has "
        "changed since, it predicts badly."
    )


def _table(heading: Sequence[str], kinds: str, lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table whose columns line up as plain text too; `kinds` has n for numbers."""
    widths = [max(map(len, column)) for column in zip(heading, *lines)]
    widths = [max(width, _NARROWEST) for width in widths]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if kind == "n" else cell.ljust(width)
            for cell, width, kind in zip(cells, widths, kinds)
        )
        return f"| {' | '.join(padded)} |"

    yield line(heading)
    rules = ("-" * (width - 1) for width in widths)
    yield line([f"{rule}:" if kind == "n" else f":{rule}" for kind, rule in zip(kinds, rules)])
    yield from map(line, lines)
