"""Figures from results files, each a matplotlib `Figure` and its bytes as PNG and SVG.

Text is large for the figures' width, so that they can be read at half their size. No pyplot: it
keeps state of its own.
"""

import io
import itertools
import math
import re

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lus_jax import palette
from lus_jax.report import cells, paper, text

WIDTH = 6.4  # inches
_STYLE = {
  "font.family": "sans-serif",
  "font.size": 13,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "grid.color": "#dddddd",
  "axes.axisbelow": True,
  "legend.frameon": False,
  "legend.fontsize": 12,
  "lines.linewidth": 2,
  "lines.markersize": 7,
  "text.parse_math": False,  # names of classes and annotators are text
  # The same figure gives the same bytes.
  "svg.hashsalt": "lus_jax",
  "svg.fonttype": "none",
}
_GREY = "#eeeeee"
FEWEST_PIXELS = 20  # of a bin in the reliability curves


def render(draw, *args):
  """Draws one figure.

  Args:
    draw: a function of this module.
    *args: its arguments.

  Returns:
    `{"png": bytes, "svg": bytes}`, the same for the same arguments.
  """
  with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE, "backend": "agg"}):
    figure = draw(*args)
    # The layout takes as long as the drawing; both formats share one.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    files = {}
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
      buffer = io.BytesIO()
      figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
      files[kind] = buffer.getvalue()
  return files


def new_figure(height, width=WIDTH):
  """An empty figure of so many inches."""
  return Figure(figsize=(width, height), layout="constrained")


def _floats(values):
  return np.array([np.nan if value is None else value for value in values], float)


def _threshold_axis(axis, thresholds):
  """Ticks at the thresholds themselves, unless they are too many to be read."""
  thresholds = sorted(set(thresholds))
  if len(thresholds) <= 9:
    axis.set_ticks([100 * t for t in thresholds])
    axis.set_ticklabels([cells.percent(t).rstrip("%") for t in thresholds])


def _shades(names):
  """A colour for each name, dark to light in their order."""
  colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.88, len(names)))
  return dict(zip(names, colours, strict=True))


def _legend(figure, handles, labels, ncols):
  figure.legend(handles, labels, loc="outside lower center", ncols=min(ncols, len(labels)))


def per_class(rows, classes):
  """IoU of each class by threshold; a line a seed.

  Args:
    rows: of segmentation.json.
    classes: K names.
  """
  figure = new_figure(5.2)
  axes = figure.subplots()
  handles = {}
  for seed in sorted({row["seed"] for row in rows}):
    mine = sorted((row for row in rows if row["seed"] == seed), key=lambda row: row["threshold"])
    x = [100 * row["threshold"] for row in mine]
    for k, name in enumerate(classes):
      y = _floats(row["iou_per_class"][name] for row in mine)
      style = {"color": palette.css(k), "marker": palette.marker(k), "markeredgecolor": "#333333"}
      (handles[name],) = axes.plot(x, y, **style)
  _threshold_axis(axes.xaxis, [row["threshold"] for row in rows])
  axes.set(xlabel="confidence threshold, %", ylabel="IoU on the test split", ylim=(0, None))
  _legend(figure, handles.values(), handles, 3)
  return figure


def matrix(rows):
  """Heat map of IoU: model threshold by evaluation threshold; a panel a seed.

  Args:
    rows: of segmentation_matrix.json.
  """
  seeds = sorted({row["seed"] for row in rows})
  models = sorted({row["model_threshold"] for row in rows})
  evaluations = sorted({row["evaluation_threshold"] for row in rows})
  top = max((row["iou"] for row in rows if row["iou"] is not None), default=0) or 1
  figure = new_figure((1.2 + 0.62 * max(3, len(models))) * len(seeds))
  panels = figure.subplots(len(seeds), squeeze=False)[:, 0]
  for seed, axes in zip(seeds, panels, strict=True):
    iou_at = {
      (row["model_threshold"], row["evaluation_threshold"]): row["iou"]
      for row in rows
      if row["seed"] == seed
    }
    grid = np.array([_floats(iou_at.get((m, e)) for e in evaluations) for m in models])
    axes.set_facecolor(_GREY)
    image = axes.imshow(grid, cmap="cividis", vmin=0, vmax=top, aspect="auto")
    if grid.shape[1] <= 9:
      for (i, j), iou in np.ndenumerate(grid):
        shown = "-" if math.isnan(iou) else f"{iou:.2f}"
        colour = "black" if math.isnan(iou) or iou > 0.55 * top else "white"
        axes.text(j, i, shown, ha="center", va="center", color=colour)
    axes.set_xticks(range(len(evaluations)), [cells.percent(t).rstrip("%") for t in evaluations])
    axes.set_yticks(range(len(models)), [cells.percent(t).rstrip("%") for t in models])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="evaluated at threshold, %", ylabel="model of threshold, %")
    if len(seeds) > 1:
      axes.set_title(f"seed {seed}")
  figure.colorbar(image, ax=list(panels), label="IoU", shrink=0.9)
  return figure


def reliability(rows, classes):
  """Mean of the target by predicted probability; a panel a class, a line a member.

  Bins of fewer than `FEWEST_PIXELS` are left out: their means are noise.

  Args:
    rows: of segmentation.json.
    classes: K names.
  """
  ordered = sorted(rows, key=lambda row: row["threshold"])
  return _reliability([(cells.percent(row["threshold"]), row) for row in ordered], classes, ".")


def member_reliability(rows, classes):
  """`reliability` of members by their names; seeds of one share its colour.

  Args:
    rows: of raters.json.
    classes: K names.
  """
  # Names have no order that shades could show.
  named = [(text.unseeded(row["member"]), row) for row in rows]
  return _reliability(named, classes, palette.MARKERS)


def method_reliability(rows, classes):
  """`reliability` of one member with each calibration method.

  Args:
    rows: of calibration.json.
    classes: K names.
  """
  return _reliability([(row["method"], row) for row in rows], classes, palette.MARKERS)


def _reliability(rows, classes, markers):
  """Reliability curves of rows, each with its label; markers repeat in their order."""
  columns = min(2, len(classes))
  lines = math.ceil(len(classes) / columns)
  figure = new_figure(1.5 + 2.4 * lines)
  panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
  shades = _shades(list(dict.fromkeys(label for label, _ in rows)))
  marked = dict(zip(shades, itertools.cycle(markers)))
  handles = {}
  for k, (name, axes) in enumerate(zip(classes, panels.flat, strict=False)):
    axes.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1.5)
    for label, row in rows:
      curve = row["reliability"][name]
      filled = [i for i, n in enumerate(curve["count"]) if n >= FEWEST_PIXELS]
      (handles[label],) = axes.plot(
        [curve["probability"][i] for i in filled],
        [curve["target"][i] for i in filled],
        color=shades[label],
        marker=marked[label],
        markersize=7 if marked[label] == "." else 5,
        linewidth=1.5,
      )
    axes.set_title(name, fontsize=13)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
    axes.spines["left"].set(color=palette.css(k), linewidth=4)
  for axes in list(panels.flat)[len(classes) :]:
    axes.set_visible(False)
  for axes in panels[-1]:
    axes.set_xlabel("predicted probability")
  for axes in panels[:, 0]:
    axes.set_ylabel("mean target")
  _legend(figure, handles.values(), handles, 4)
  return figure


def curves(rows):
  """Training loss, validation loss and validation IoU by epoch; a line a member.

  Args:
    rows: of history.json.
  """
  members = list(dict.fromkeys(row["member"] for row in rows))
  # Seeds of one member share its colour.
  labels = {name: text.unseeded(name) for name in members}
  first = sorted({row["member"] for row in rows}, key=_order)
  shades = _shades(list(dict.fromkeys(labels[name] for name in first)))
  quantities = {
    "train_loss": "training loss",
    "loss": "validation loss",
    "score": "validation IoU",
  }
  figure = new_figure(8.5)
  panels = figure.subplots(len(quantities), sharex=True)
  handles = {}
  for (key, title), axes in zip(quantities.items(), panels, strict=True):
    for name in first:
      mine = sorted((row for row in rows if row["member"] == name), key=lambda row: row["epoch"])
      (handles[labels[name]],) = axes.plot(
        [row["epoch"] for row in mine],
        _floats(row[key] for row in mine),
        color=shades[labels[name]],
        marker="." if len(mine) < 30 else None,
      )
    found = _floats(row[key] for row in rows)
    positive = found[found > 0]
    if positive.size and positive.max() > 100 * np.median(positive):
      # A loss that is a sum would press those that are means onto the axis.
      axes.set(ylabel=title, yscale="log")
    else:
      axes.set(ylabel=title, ylim=(0, None))
  panels[-1].set_xlabel("epoch")
  panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
  _legend(figure, handles.values(), handles, 4)
  return figure


def _order(member):
  match = re.match(r"threshold_([\d.e-]+)", member)
  return (float(match[1]) if match else math.inf, member)


def raters_fused(rows):
  """QUBIQ score by the number of raters fused: the prediction's, and that of all raters together.

  Args:
    rows: of the curve in raters.json.
  """
  figure = new_figure(4.4)
  axes = figure.subplots()
  x = [row["n_raters"] for row in rows]
  lines = {
    "fused_vs_all": ("mean of all raters", {"color": "#444444", "marker": "s", "linestyle": "--"}),
    "prediction_vs_fused": ("prediction", {"color": palette.css(4), "marker": "o"}),
  }
  for key, (label, style) in lines.items():
    axes.plot(x, _floats(row[key] for row in rows), label=label, **style)
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  axes.set(xlabel="raters fused", ylabel="QUBIQ against them", ylim=(0, 1.03))
  _legend(figure, *axes.get_legend_handles_labels(), 2)
  return figure


def _ordinal_style(i):
  return {"color": palette.css(5), "marker": "sD^v"[i % 4], "linestyle": "--"}


_SEPARATE_STYLE = {"color": palette.css(4), "marker": "o"}


def ordinal(pairs):
  """IoU by threshold: separate networks, and one ordinal network for all; a line a seed.

  Args:
    pairs: (name of the ordinal member, row of segmentation.json, row of members.json) of the same
      threshold and seed.
  """
  figure = new_figure(4.4)
  axes = figure.subplots()
  handles = {}
  names = list(dict.fromkeys(name for name, _, _ in pairs))
  for i, name in enumerate(names):
    for seed in sorted({row["seed"] for _, row, _ in pairs}):
      mine = [(a, b) for other, a, b in pairs if other == name and a["seed"] == seed]
      mine.sort(key=lambda pair: pair[0]["threshold"])
      x = [100 * a["threshold"] for a, _ in mine]
      lines = {"separate networks": (0, _SEPARATE_STYLE), name: (1, _ordinal_style(i))}
      for label, (k, style) in lines.items():
        (handles[label],) = axes.plot(x, _floats(pair[k]["iou"] for pair in mine), **style)
  _threshold_axis(axes.xaxis, [row["threshold"] for _, row, _ in pairs])
  axes.set(xlabel="confidence threshold, %", ylabel="IoU on the test split", ylim=(0, None))
  _legend(figure, handles.values(), handles, 2)
  return figure


def cost(pairs, gflop):
  """Mean IoU over thresholds by the work of one image at all of them; a point a seed.

  Args:
    pairs: as `ordinal` takes them.
    gflop: the `cost` of members.json.
  """
  figure = new_figure(4.4)
  axes = figure.subplots()
  handles = {}
  names = list(dict.fromkeys(name for name, _, _ in pairs))
  separate = gflop["thresholds"] * gflop["gflop_per_network"]
  for i, name in enumerate(names):
    for seed in sorted({row["seed"] for _, row, _ in pairs}):
      mine = [(a["iou"], b["iou"]) for other, a, b in pairs if (other, a["seed"]) == (name, seed)]
      # Both means are over the same thresholds.
      mine = [pair for pair in mine if None not in pair]
      if not mine:
        continue
      points = {
        f"{gflop['thresholds']} separate networks": (separate, _SEPARATE_STYLE),
        name: (gflop["gflop_ordinal"], _ordinal_style(i)),
      }
      for (label, (x, style)), y in zip(points.items(), np.mean(mine, axis=0), strict=True):
        (handles[label],) = axes.plot(x, y, **style | {"linestyle": "none", "markersize": 10})
  axes.set(xlabel="GFLOP for one image at all thresholds", ylabel="mean IoU over thresholds")
  # No point lies on the frame.
  axes.set_xlim(0, 1.1 * max(separate, gflop["gflop_ordinal"]))
  axes.set_ylim(0, 1.1 * axes.dataLim.y1 or 1)
  _legend(figure, handles.values(), handles, 2)
  return figure


def _places(thresholds):
  """Where each source of channels stands on an axis of thresholds; video only and truth beyond."""
  numbers = sorted({t for t in thresholds if not isinstance(t, str)})
  places = {t: 100 * t for t in numbers}
  end = 100 * numbers[-1] if numbers else 0
  for name in ("none", "true"):
    if name in thresholds:
      end += 17
      places[name] = end
  return places


def _style(threshold):
  k, marker = {"none": (5, "D"), "true": (2, "s")}.get(threshold, (4, "o"))
  return {"color": palette.css(k), "marker": marker}


def by_source(content):
  """The table's metrics by source of channels: intervals, or every patient where there are none.

  Args:
    content: of a clinical task's results file.
  """
  task, summary = paper.TASKS[content["task"]], content["summary"]
  places = _places([row["threshold"] for row in summary])
  with_interval = any(
    metric["interval"] is not None for row in summary for metric in row["metrics"].values()
  )
  metrics = {key: name for key, name in text.shown_metrics(content).items() if key in task.metrics}
  figure = new_figure(1.7 + 2.5 * len(metrics))
  panels = figure.subplots(len(metrics), sharex=True, squeeze=False)[:, 0]
  handles = {}
  for (key, name), axes in zip(metrics.items(), panels, strict=True):
    baseline = text.baselines(content).get(key)
    if baseline is not None:
      # Every source is compared with the same predictor.
      level = summary[0]["metrics"][baseline]["estimate"]
      if level is not None:
        style = {"color": "#444444", "linestyle": "--", "linewidth": 1.5}
        handles[task.baseline] = axes.axhline(level, **style)
    for row in summary:
      threshold, found = row["threshold"], row["metrics"][key]
      x, style = places[threshold], _style(threshold)
      if not with_interval:
        mine = [one.get(key) for one in content["patients"] if one["threshold"] == threshold]
        mine = sorted(y for y in mine if y is not None)
        # Patients of equal values stand side by side.
        spread = np.linspace(-3, 3, len(mine)) if len(mine) > 1 else [0] * len(mine)
        dots = {"color": "#888888", "s": 26, "linewidths": 0}
        handles["one patient"] = axes.scatter(x + np.asarray(spread), mine, **dots)
      if found["estimate"] is None:
        continue
      low, high = found["interval"] or (found["estimate"],) * 2
      errors = [[max(0, found["estimate"] - low)], [max(0, high - found["estimate"])]]
      bars = axes.errorbar(x, found["estimate"], errors, capsize=4, linestyle="none", **style)
      words = "all patients, 95% interval" if with_interval else "all patients"
      handles[words if not isinstance(threshold, str) else cells.source(threshold)] = bars
    axes.set_ylabel(name)
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(0, bottom) if bottom < 0.05 else bottom, top)
  _source_axis(panels[-1], places)
  _legend(figure, handles.values(), handles, 2)
  return figure


def _source_axis(axes, places):
  numbers = [t for t in places if not isinstance(t, str)]
  if len(numbers) > 9:
    numbers = [numbers[0], numbers[-1]]
  words = [t for t in places if isinstance(t, str)]
  axes.set_xticks(
    [places[t] for t in [*numbers, *words]],
    [cells.percent(t).rstrip("%") for t in numbers]
    + [cells.source(t).replace(" ", "\n") for t in words],
  )
  axes.set_xlabel("confidence threshold, %" if numbers else "")
  low, high = min(places.values()), max(places.values())
  axes.set_xlim(low - 8, high + 8)


def _grid(n, height):
  """Panels in rows of three, those beyond the nth hidden: the figure and an array of axes."""
  columns = min(3, n)
  lines = math.ceil(n / columns)
  figure = new_figure(1.1 + height * lines, width=max(3.2, WIDTH * columns / 3))
  panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
  for axes in panels.flat[n:]:
    axes.set_visible(False)
  return figure, panels


def confusion(content):
  """Confusion matrices, a panel a source: counts, shaded by share of the true class.

  Args:
    content: of a clinical task's results file.
  """
  matrices = [content["confusion"][i] for i in text.in_order(content["confusion"])]
  figure, panels = _grid(len(matrices), 2.2)
  for one, axes in zip(matrices, panels.flat, strict=False):
    counts = np.array(one["matrix"])
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(share, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    # Counts of many pairs need smaller letters.
    size = min(13, 42 / len(str(counts.max())))
    for (i, j), n in np.ndenumerate(counts):
      colour = "black" if share[i, j] > 0.45 else "white"
      axes.text(j, i, str(n), ha="center", va="center", color=colour, fontsize=size)
    ticks = range(len(one["classes"]))
    turned = {"rotation": 90} if max(map(len, one["classes"])) > 3 else {}
    axes.set_xticks(ticks, one["classes"], **turned)
    axes.set_yticks(ticks, one["classes"])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_title(cells.source(one["threshold"]), fontsize=13)
  figure.supxlabel("predicted", fontsize=13)
  figure.supylabel("true", fontsize=13)
  return figure


def predicted(content):
  """Predicted against measured values of patient-days, a panel a source, mean over folds.

  Args:
    content: of the results file of a task that estimates a value.
  """
  days = {}
  for row in content["predictions"]:
    mine = days.setdefault(row["threshold"], {})
    mine.setdefault((row["patient"], row["day"]), []).append((row["measured"], row["mean"]))
  thresholds = list(days)
  every = [x for mine in days.values() for pairs in mine.values() for pair in pairs for x in pair]
  low, high = min(every), max(every)
  margin = 0.05 * (high - low) or 0.05
  scale = content["config"].get("target_scale", 1)
  low, high = low - margin, high + margin
  figure, panels = _grid(len(thresholds), 2.1)
  for k, i in enumerate(text.in_order([{"threshold": t} for t in thresholds])):
    axes = panels.flat[k]
    points = [np.mean(pairs, axis=0) for pairs in days[thresholds[i]].values()]
    x, y = zip(*points, strict=True)
    axes.plot([low, high], [low, high], color="#666666", linestyle=":", linewidth=1.5)
    style = _style(thresholds[i])
    axes.scatter(x, y, s=22, alpha=0.7, linewidths=0, **style)
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.set_aspect("equal")
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    if k < panels.shape[1] and scale != 1:
      raw = axes.secondary_xaxis("top", functions=(lambda x: x * scale, lambda x: x / scale))
      raw.xaxis.set_major_locator(MaxNLocator(3))
      raw.tick_params(labelsize=11, colors="#555555")
    axes.set_title(cells.source(thresholds[i]), fontsize=13)
  name = text.target(content)
  unit = name if scale == 1 else f"{name} / {scale:g} (on top: not divided)"
  figure.supxlabel(f"measured {unit}", fontsize=13)
  figure.supylabel("predicted, mean of the views", fontsize=13)
  return figure


def source_curves(rows, score):
  """Losses and validation score by epoch, mean over folds; a line a source of channels.

  Args:
    rows: of a clinical task's history file.
    score: what the score is called.
  """
  found = list(dict.fromkeys(row["threshold"] for row in rows))
  found = [found[i] for i in text.in_order([{"threshold": t} for t in found])]
  shades = _shades(sorted(t for t in found if not isinstance(t, str)))
  quantities = {
    "train_loss": "training loss",
    "loss": "validation loss",
    "score": f"validation\n{score}",
  }
  figure = new_figure(8.5)
  panels = figure.subplots(len(quantities), sharex=True)
  handles = {}
  for (key, title), axes in zip(quantities.items(), panels, strict=True):
    for threshold in found:
      by_epoch = {}
      for row in rows:
        if row["threshold"] == threshold and row[key] is not None:
          by_epoch.setdefault(row["epoch"], []).append(row[key])
      epochs = sorted(by_epoch)
      style = {
        "none": {"color": palette.css(5), "linestyle": "--"},
        "true": {"color": "black", "linestyle": "-."},
      }.get(threshold) or {"color": shades[threshold]}
      (handles[cells.source(threshold)],) = axes.plot(
        epochs,
        [np.mean(by_epoch[epoch]) for epoch in epochs],
        marker="." if len(epochs) < 15 else None,
        **style,
      )
    axes.set_ylabel(title)
  panels[-1].set_xlabel("epoch")
  panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
  _legend(figure, handles.values(), handles, 3)
  return figure


def painted(rows, classes):
  """Histogram of painted confidences, classes stacked; a panel an annotator.

  Args:
    rows: of dataset.json; all splits together.
    classes: K names.
  """
  counts = {}
  for row in rows:
    for annotator, by_class in row["painted"].items():
      for name, bins in by_class.items():
        mine = counts.setdefault(annotator, {})
        mine[name] = mine.get(name, 0) + np.array(bins)
  figure = new_figure(1.4 + 2.1 * max(1, len(counts)))
  panels = figure.subplots(max(1, len(counts)), sharex=True, squeeze=False)[:, 0]
  handles = {}
  for (annotator, by_class), axes in zip(sorted(counts.items()), panels, strict=False):
    bottom = 0
    for k, name in enumerate(classes):
      bins = by_class[name] / 1000
      centres = 100 * (np.arange(len(bins)) + 0.5) / len(bins)
      handles[name] = axes.bar(
        centres, bins, 90 / len(bins), bottom, color=palette.css(k), edgecolor="#333333", lw=0.4
      )
      bottom = bottom + bins
    axes.set_title(f"annotator {annotator}" if annotator else "annotator not named", fontsize=13)
    axes.set_ylabel("pixels, thousands")
    axes.grid(axis="x", visible=False)
  panels[-1].set(xlabel="painted confidence, %", xlim=(0, 100))
  if handles:
    _legend(figure, handles.values(), handles, 3)
  return figure


def confidences(people, classes):
  """Share of the painted pixels by confidence; a panel a class, a line an annotator.

  Args:
    people: pairs of a name and, by class, pixels per equal bin of (0, 1].
    classes: K names.
  """
  columns = min(2, len(classes))
  lines = math.ceil(len(classes) / columns)
  figure = new_figure(1.5 + 2.1 * lines)
  panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
  shades, handles = _shades([name for name, _ in people]), {}
  for k, (one, axes) in enumerate(zip(classes, panels.flat, strict=False)):
    for i, (name, by_class) in enumerate(people):
      bins = np.array(by_class[one])
      centres = 100 * (np.arange(len(bins)) + 0.5) / len(bins)
      # A class that somebody never painted has no shares.
      shares = 100 * bins / bins.sum() if bins.any() else np.full(len(bins), np.nan)
      style = {"color": shades[name], "marker": palette.marker(i), "markersize": 5}
      (handles[name],) = axes.plot(centres, shares, linewidth=1.5, **style)
    axes.set_title(one, fontsize=13)
    axes.spines["left"].set(color=palette.css(k), linewidth=4)
  # Both axes are shared, and so only now are all lines within.
  panels[0, 0].set(xlim=(0, 100), ylim=(0, None))
  panels[0, 0].set_xticks([0, 20, 40, 60, 80])
  for axes in list(panels.flat)[len(classes) :]:
    axes.set_visible(False)
  for axes in panels[-1]:
    axes.set_xlabel("confidence, %")
  for axes in panels[:, 0]:
    axes.set_ylabel("pixels, %")
  _legend(figure, handles.values(), handles, 3)
  return figure


def times(runs, parts, seconds):
  """A bar a run, divided into its parts.

  Args:
    runs: R names.
    parts: P names.
    seconds: [P, R].
  """
  figure = new_figure(2 + 0.5 * len(runs) + 0.3 * -(-len(parts) // 3))
  axes = figure.subplots()
  left = np.zeros(len(runs))
  for k, (part, width) in enumerate(zip(parts, seconds, strict=True)):
    # Where colours start over, hatched.
    style = {"color": palette.css(k), "hatch": "//" * (k // len(palette.PALETTE))}
    axes.barh(range(len(runs)), width, left=left, label=part, edgecolor="white", **style)
    left = left + width
  axes.set_yticks(range(len(runs)), runs)
  axes.invert_yaxis()
  axes.grid(axis="y", visible=False)
  axes.set(xlabel="seconds")
  _legend(figure, *axes.get_legend_handles_labels(), 3)
  return figure


def pictures(columns):
  """Labels above, predictions below, a column a threshold.

  Args:
    columns: dicts of `title`, `label` and `prediction`, both [H, W, 3] uint8.
  """
  figure = new_figure(3.6, width=max(4.0, 1.65 * len(columns)))
  panels = figure.subplots(2, len(columns), squeeze=False)
  for i, column in enumerate(columns):
    for row, key in enumerate(("label", "prediction")):
      panels[row, i].imshow(column[key], interpolation="nearest")
      panels[row, i].set(xticks=[], yticks=[])
      panels[row, i].spines[:].set_visible(False)
    panels[0, i].set_title(column["title"], fontsize=15)
  panels[0, 0].set_ylabel("label", fontsize=15)
  panels[1, 0].set_ylabel("prediction", fontsize=15)
  return figure
