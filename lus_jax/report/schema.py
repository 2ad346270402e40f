"""What the page reads of results files, checked where they are read.

A check takes a value and where it stands, and raises ValueError. Keys that no check names are free:
newer runs write more of them, older ones fewer.
"""

import pathlib

import numpy as np

from lus_jax import results
from lus_jax.data import summary
from lus_jax.errors import UserError
from lus_jax.report import paper
from lus_jax.splits import SPLITS


def _is(what, holds):
  def check(value, at):
    if not holds(value):
      text = repr(value) if len(repr(value)) < 40 else type(value).__name__
      raise ValueError(f"{at} is {text}, not {what}")

  return check


# JSON's numbers are finite (`lus_jax.results.read`); True is one of Python's integers.
_number = _is("a number", lambda x: isinstance(x, int | float) and not isinstance(x, bool))
_count = _is("an integer", lambda x: isinstance(x, int) and not isinstance(x, bool))
_text = _is("a text", lambda x: isinstance(x, str))
_flag = _is("true or false", lambda x: isinstance(x, bool))
_source = _is(
  "a threshold or a name", lambda x: isinstance(x, str | int | float) and not isinstance(x, bool)
)


def _maybe(check):
  return lambda value, at: None if value is None else check(value, at)


def _list(check, *, length=None, filled=False):
  array = _is("a list", lambda x: isinstance(x, list))

  def check_all(value, at):
    array(value, at)
    if length is not None and len(value) != length or filled and not value:
      raise ValueError(f"{at} has {len(value)} entries")
    for i, one in enumerate(value):
      check(one, f"{at}/{i}")

  return check_all


def _mapping(check, names=None):
  """An object whose values are all alike; with `names`, one for each of them."""
  table = _is("an object", lambda x: isinstance(x, dict))

  def check_all(value, at):
    table(value, at)
    if missing := [name for name in names or () if name not in value]:
      raise ValueError(f"{at} is without '{missing[0]}'")
    for name, one in value.items():
      check(one, f"{at}/{name}")

  return check_all


def _object(needed=None, optional=None):
  """An object with some keys, each with its own check."""
  table = _is("an object", lambda x: isinstance(x, dict))

  def check_all(value, at):
    table(value, at)
    for name, check in (needed or {}).items():
      if name not in value:
        raise ValueError(f"{at} is without '{name}'")
      check(value[name], f"{at}/{name}")
    for name, check in (optional or {}).items():
      if name in value:
        check(value[name], f"{at}/{name}")

  return check_all


def _named(names, check):
  return dict.fromkeys(names, check)


def _all(*checks):
  def check_all(value, at):
    for check in checks:
      check(value, at)

  return check_all


def _row(needed, *, counts=(), texts=()):
  """A row that is shown whole: numbers, null, true and false beside what is named."""
  named = _object(needed, _named(counts, _maybe(_count)) | _named(texts, _text))
  other = _is("a number, null, true or false", lambda x: x is None or isinstance(x, int | float))

  def check_all(value, at):
    named(value, at)
    for name, one in value.items():
      if name not in needed and name not in counts and name not in texts and name != "votes":
        other(one, f"{at}/{name}")

  return check_all


_score = _maybe(_number)
_ends = _maybe(_list(_number, length=2))
_commons = {
  "config": _mapping(lambda value, at: None),
  "versions": _mapping(_text),
  "dataset": _object(
    _named(("name", "version"), _text) | {"splits": _mapping(_count)},
    {"classes": _list(_text), "split_unit": _text},
  ),
}
_segmentation_run = _object(
  {
    "config": _object(
      {
        "seed": _count,
        "loss": _object({"name": _text}),
        "sweep": _object({"thresholds": _list(_number, filled=True), "seeds": _count}),
        "train": _object({"epochs": _count}),
      }
    ),
    "dataset": _object({"classes": _list(_text), "split_unit": _text}),
  }
)
_scores = ("iou", "dice", "weighted_ce", "ce", "trimap", "ece", "ece_near", "ece_pooled")
_scores += ("brier", "brier_near")


def _reliability(classes):
  bins = {"count": _list(_number)} | _named(("probability", "target"), _list(_score))
  return _mapping(_object(bins), classes)


def _score_row(classes, **more):
  """A row of segmentation.json or members.json."""
  by_class = _mapping(_score, classes)
  counts = _mapping(_count, classes)
  return _object(
    _named(_scores, _score)
    | {"iou_per_class": by_class, "empty_skipped": counts, "reliability": _reliability(classes)}
    | more,
    _named(("dice_per_class", "hd95_per_class", "predicted_share_per_class"), by_class)
    | _named(("label_images", "hd95_images"), counts)
    | _named(("weighted_ce_ref", "iou_at_best_cut", "surface_dice", "hd95"), _score)
    | {"constant_classes": _list(_text), "chosen_by": _text},
  )


def _rater_row(keys, **more):
  needed = _named(keys, _score) | {"intervals": _mapping(_ends)}
  newer = {"qubiq_leave_one_out": _score, "human_qubiq_leave_one_out": _score}
  return _object(needed | more, newer | {"constant_classes": _list(_text)})


def _run_checks(classes):
  """Checks of the files of a segmentation run, by name."""
  member = {"member": _text, "threshold": _score, "seed": _count, "best_epoch": _maybe(_count)}
  compared = {"prediction_vs_fused": _score, "fused_vs_all": _score}
  rater = ("qubiq", "dice_vs_raters", "dice_vs_consensus", "ged", "ece", "ece_pooled", "brier")
  rater += ("area_error", "area_error_abs", "human_dice_vs_raters", "human_dice_vs_consensus")
  by_class = _mapping(_score, classes)
  painted = _mapping(_list(_count, length=summary.N_BINS), classes)
  return {
    "segmentation": _object(
      {
        "rows": _list(
          _score_row(classes, threshold=_number, seed=_count, best_epoch=_maybe(_count))
        ),
        "predictors": _list(_score_row(classes, threshold=_number, predictor=_text)),
        "notes": _list(_text),
      }
    ),
    "segmentation_matrix": _object(
      {
        "rows": _list(
          _object(
            _named(("model_threshold", "evaluation_threshold"), _number)
            | {"seed": _count, "iou": _score, "dice": _score}
          ),
          filled=True,
        )
      }
    ),
    "history": _object(
      {
        "rows": _list(
          _object(
            {"member": _text, "epoch": _count, "score": _score}
            | _named(("train_loss", "loss"), _number)
          ),
          filled=True,
        )
      }
    ),
    "cases": _all(
      _object({"rows": _list(_object({"index": _count, "iou": _mapping(_score)}), filled=True)}),
      _alike("iou"),
      _of_one_kind,
    ),
    "dataset": _object(
      {
        "rows": _all(
          _list(
            _object(
              {"split": _text, "frames_with": _mapping(_count, classes)}
              | _named(("patients", "videos", "frames"), _count)
              | {"painted": _mapping(painted)},
              {"left_out": _mapping(_count)},
            ),
            filled=True,
          ),
          _has_splits,
        )
      },
      {
        "copies": _list(_object(_named(("named", "counted"), _text))),
        "annotators": _list(
          _object(
            {"annotator": _text, "painted": painted}
            | _named(("labels", "used", "consensus"), _count),
            _named(("prelabelled", "touched", "untouched", "timed"), _count)
            | _named(("seconds", "median_seconds"), _maybe(_count))
            | _named(("first", "last"), _maybe(_text)),
          )
        ),
        "tools": _list(
          _object(
            {"annotator": _text, "labels": _count}
            | _named(("tool", "protocol", "prelabel"), _maybe(_text))
          )
        ),
      },
    ),
    "raters": _object(
      {
        "rows": _list(
          _rater_row(rater, **member, ece_per_class=by_class, reliability=_reliability(classes))
        ),
        "humans": _list(
          _rater_row(
            ("dice_vs_others", "dice_vs_consensus"), rater=_text, person=_text, n_images=_count
          )
        ),
        "curve": _object(
          {
            "member": _text,
            "rows": _list(
              _object(compared | _named(("n_raters", "n_images"), _count)), filled=True
            ),
          }
        ),
        "images": _list(
          _object({"index": _count, "disagreement": _score} | _named(("image", "patient"), _text))
        ),
      }
    ),
    "members": _object(
      {
        "rows": _list(
          _score_row(
            classes,
            **member,
            iou_at_best_cut=_score,
            **_named(("target", "loss", "weights"), _text),
          )
        ),
        "cost": _object(
          {"gflop_per_network": _number, "thresholds": _count, "gflop_ordinal": _score}
        ),
      }
    ),
    "calibration": _object(
      {
        "chosen": _text,
        "rows": _list(
          _object(
            _named(("ece", "ece_pooled", "brier"), _score)
            | {"member": _text, "method": _text, "ece_per_class": by_class}
            | {"reliability": _reliability(classes)}
          ),
          filled=True,
        ),
      },
      {
        "fitted_on": _object(
          _named(("patients", "frames"), _count) | {"frames_with": _mapping(_count, classes)}
        )
      },
    ),
  }


def _alike(key):
  def check(value, at):
    rows = value["rows"]
    for i, row in enumerate(rows):
      if row[key].keys() != rows[0][key].keys():
        raise ValueError(f"{at}/rows/{i}/{key} has other names than the first row")

  return check


def _of_one_kind(value, at):
  for i, row in enumerate(value["rows"]):
    if row.keys() != value["rows"][0].keys():
      raise ValueError(f"{at}/rows/{i} has other keys than the first row")


def _has_splits(rows, at):
  splits = {row["split"] for row in rows}
  if missing := sorted({"train", "test"} - splits):
    raise ValueError(f"{at} has no row of the split '{missing[0]}'")


def _task_check(task):
  metrics = [*paper.TASKS[task].metrics, *set(paper.TASKS[task].baselines.values())]
  metrics = [name for name in metrics if name not in paper.LATER]
  metric = _object(
    _named(("mean", "sd", "estimate"), _score) | {"interval": _ends, "undefined_resamples": _count}
  )
  row = {"threshold": _source}
  needed = {
    "target": _text,
    "primary": _is("one of its metrics", metrics.__contains__),
    "rows": _list(
      _row(row | {"fold": _count}, counts=("best_epoch", "n_patients"), texts=("chosen_by",))
    ),
    "summary": _list(
      _object(
        row
        | {"n_patients": _count, "n_folds": _count, "can_decide": _flag}
        | {"metrics": _all(_mapping(metric), _object(_named(metrics, metric)))}
        | {
          "smallest_attainable_p": _number,
          "differences": _list(
            _object(
              _named(("metric", "against"), _text) | {"difference": _score, "interval": _ends}
            )
          ),
          "comparisons": _list(
            _object({"against": _source} | _named(("difference", "p", "p_holm"), _score))
          ),
        }
      ),
      filled=True,
    ),
    "patients": _list(_row(row | {"patient": _text})),
    "folds": _list(_object({"fold": _count} | _named(SPLITS, _list(_text)))),
    "left_out": _list(
      _object({"what": _text, "why": _text, "count": _count, "which": _list(_text)})
    ),
    "notes": _list(_text),
  }
  if task == "sf_ratio":
    days = _named(("measured", "mean", "median", "max"), _number)
    days |= {"patient": _text, "day": _count}
    needed["predictions"] = _list(_row(row | days, counts=("fold",)))
  else:
    needed["confusion"] = _list(
      _object(row | {"classes": _list(_text), "matrix": _list(_list(_count))}), filled=True
    )
  if task == "readmission":
    counts = ("fold", "label", "predicted")
    needed["predictions"] = _list(_row(row | {"patient": _text}, counts=counts))
  permuted = _is("patients or folds", ("patients", "folds").__contains__)
  return _object(
    needed, {"segmentation": _maybe(_object({"dataset": _text})), "permuted": permuted}
  )


_past = {"threshold": _source, "epoch": _count, "score": _score, "loss": _number}
_task_history = _object(
  {"rows": _list(_row(_past, counts=("fold",), texts=("member",)), filled=True)}
)


def _target_check():
  common = {"setting": _text, "metric": _text}
  question = common | _named(("member", "against"), _source) | {"answer": _text}
  question |= {"interval": _ends} | _named(("difference", "p", "p_holm"), _number)
  scaled = _named(("setting", "standardise", "metric"), _text) | {"member": _maybe(_source)}
  scaled |= {"interval": _ends} | _named(("mean", "none", "difference"), _score)
  return _object(
    {
      "config": _object({"study": _object({"settings": _list(_text), "seeds": _count})}),
      "rows": _list(
        _object(
          common
          | {
            "weights": _text,
            "means": _list(_object({"member": _source, "mean": _number, "interval": _ends})),
          }
        ),
        filled=True,
      ),
      "levels": _list(
        _object(common | _named(("threshold", "ordinal", "separate", "difference"), _number))
      ),
      "units": _list(_row(_named(("setting", "standardise", "member"), _text), counts=("seed",))),
      "labels": _list(_object({"setting": _text, "threshold": _number, "mean": _score})),
      "scales": _list(_object(scaled)),
      "spread": _list(_object(scaled)),
    },
    # Of older versions there are none.
    {
      "questions": _list(_object(question)),
      "null_studies": _maybe(
        _object(_named(("studies", "studies_with_answers", "questions", "below_level"), _count))
      ),
      "fit": _list(
        _object(_named(("setting", "member"), _text) | _named(("fit_train", "fit_test"), _score))
      ),
      "dose": _list(
        _object(
          {"of": _text, "metric": _text, "means": _list(_list(_number))}
          | {name: _list(_number) for name in ("doses", "thresholds", "best")}
          | {
            "overtakes": _list(
              _object(_named(("threshold", "against"), _number) | {"dose": _score})
            )
          }
        )
      ),
    },
  )


def _clinic_check():
  mixed = _object(
    _named(("mean", "se", "p"), _number)
    | _named(("sd_seed", "sd_fold", "sd_patient"), _score)
    | {"df": _count, "interval": _list(_number, length=2), "without": _list(_text)}
  )
  bootstrap = _object({"mean": _number, "p": _number, "interval": _list(_number, length=2)})
  compared = {"threshold": _source, "against": _source, "mixed": mixed, "bootstrap": bootstrap}
  compared |= {"seeds_test": bootstrap}
  compared |= _named(("n_patients", "n_left_out", "n_differ"), _count)
  compared |= {"by_seed": _list(_score)}
  row = {"seed": _count, "fold": _count, "threshold": _source}
  return _object(
    {
      "config": _object({"study": _object({"seeds": _count})}),
      "primary": _text,
      "margin": _number,
      "can_see": _flag,
      "decides": _text,
      "questions": _list(_object(compared | {"p_holm": _number, "answer": _text}), filled=True),
      "controls": _list(_object(compared)),
      "means": _list(
        _object({"threshold": _source, "n_patients": _count, "mixed": mixed}), filled=True
      ),
      "seeds": _list(
        _object(
          _named(("seed", "n_patients"), _count)
          | {"scores": _list(_object({"threshold": _source, "score": _score}))}
        ),
        filled=True,
      ),
      "others": _list(
        _object({"task": _text, "threshold": _source, "metric": _text, "mean": _number})
      ),
      "rows": _list(_object(row | {"task": _text} | _named(("n_patients", "best_epoch"), _count))),
      "patients": _list(_object(row | {"patient": _text}), filled=True),
    }
  )


_pretraining = _object(
  {
    **_named(("clips", "frames", "held_out_clips"), _count),
    **_named(("patients", "held_out", "notes"), _list(_text)),
    **_named(("loss", "loss_of_mean"), _number),
    "network": _is("a network that is pretrained", ("segmentation", "video").__contains__),
    "best_epoch": _maybe(_count),
    "left_out": _mapping(_count),
    "rows": _list(
      _object({"epoch": _count} | _named(("train_loss", "loss"), _number)), filled=True
    ),
  }
)


_curve = _object(
  {
    "task": _is("a clinical task", paper.TASKS.__contains__),
    "metric": _text,
    "notes": _list(_text),
    "rows": _list(
      _object(
        _named(("patients", "tested", "trained"), _count)
        | _named(("estimate", "blind", "difference"), _score)
        | _named(("interval", "difference_interval"), _ends)
        | {"threshold": _source, "beats": _flag}
      ),
      filled=True,
    ),
  }
)


_seconds = {"run": _text, "seconds": _number}
_timing = _object(
  {
    "rows": _list(_object(_seconds | {"part": _text}), filled=True),
    "runs": _list(_object(_seconds | {"sittings": _count}), filled=True),
  }
)


def check(name, content, *, of=None):
  """Checks the content of a results file.

  Args:
    name: of the file: one of a segmentation run, 'which_target', 'clinic', 'pretrain',
      'learning_curve' or 'timing'; of a task it may be any.
    content: of the file.
    of: a task, or 'history' for the history of one.

  Raises:
    ValueError: it does not hold what the page reads; the message says where.
  """
  _object(_commons)(content, "#")
  if of == "history":
    _task_history(content, "#")
  elif of is not None:
    _task_check(of)(content, "#")
  elif name == "timing":
    _timing(content, "#")
  elif name == "learning_curve":
    _curve(content, "#")
  elif name == "pretrain":
    _pretraining(content, "#")
  elif name == "which_target":
    _target_check()(content, "#")
  elif name == "clinic":
    _clinic_check()(content, "#")
  else:
    _segmentation_run(content, "#")
    _run_checks(content["dataset"]["classes"])[name](content, "#")


def read(workdir, name, **options):
  """Reads a results file and checks it; `options` are those of `check`.

  Raises:
    UserError: it is missing or damaged.
  """
  content = results.read(workdir, name)
  try:
    check(name, content, **options)
  except ValueError as error:
    file = pathlib.Path(workdir) / results.DIRECTORY / f"{name}.json"
    raise UserError(f"{file} is damaged ({error}); {results.MEND}") from error
  return content


def check_examples(arrays, *, classes, n_thresholds, n_cases=None):
  """Checks the arrays of examples.npz.

  Args:
    arrays: by name.
    classes: K names.
    n_thresholds: T, of the sweep.
    n_cases: of test frames, where it is known.

  Raises:
    ValueError: an array is missing or not of the right shape, type or range.
  """
  k = len(classes)

  def has(name, kind, *shape):
    if name not in arrays:
      raise ValueError(f"without '{name}'")
    found = arrays[name]
    if not isinstance(found, np.ndarray):  # NumPy hands back the bytes of what is no array
      raise ValueError(f"'{name}' is no array")
    if found.dtype.kind not in kind or len(found.shape) != len(shape):
      raise ValueError(f"'{name}' is {found.dtype} {list(found.shape)}")
    for size, wanted in zip(found.shape, shape, strict=True):
      if wanted is not None and size != wanted:
        raise ValueError(f"'{name}' is {found.dtype} {list(found.shape)}")
    if found.dtype.kind == "f" and not np.isfinite(found).all():
      raise ValueError(f"'{name}' is not finite")
    return found

  def pictures(prefix, index):
    n = len(index)
    if n_cases is not None and n and not 0 <= index.min() <= index.max() < n_cases:
      raise ValueError(f"'{prefix}index' is beyond the {n_cases} test frames")
    _, height, width, _ = has(f"{prefix}image", "u", n, None, None, 1).shape
    has(f"{prefix}role", "U", n)
    has(f"{prefix}confidence", "u", n, height, width, k)
    has(f"{prefix}valid_box", "iu", n, 4)
    return n, height, width

  n, height, width = pictures("", has("index", "iu", None))
  found = has("probability", "u", None, n, height, width, k)
  if len(found) < n_thresholds or not n:
    raise ValueError(f"'probability' is of {len(found)} models and {n} frames")
  has("labelled", "b", n, k)
  if "truth" in arrays:
    has("truth", "u", n, height, width, k)
  if "rater_index" in arrays:
    n, height, width = pictures("rater_", has("rater_index", "iu", None))
    names = has("rater_names", "U", None)
    has("rater_probability", "u", len(names), n, height, width, k)
    has("rater_disagreement", "f", n, height, width, k)
