"""What a user's mistakes and warnings say, alone and in a part of a study."""

import logging
import pickle

from absl import logging as absl_logging

from lus_jax import errors
from lus_jax.errors import UserError

OWN = ("train", "model", "sweep")
ADVICE = "--config.train.epochs=9 or config.model.width; --config.data.dir, --config.trains stay"
IN_PART = (
  "--config.segmentation.train.epochs=9 or config.segmentation.model.width; --config.data.dir, "
  "--config.trains stay"
)


def test_fields_of_a_part_of_a_study_are_named_as_the_studys_config_takes_them():
  assert errors.as_set(ADVICE) == ADVICE
  with errors.in_part("segmentation", OWN):
    assert errors.as_set(ADVICE) == IN_PART
    assert errors.as_set(IN_PART) == IN_PART
    with errors.in_part("sf_ratio", ["train"]):
      assert errors.as_set("config.train.epochs") == "config.sf_ratio.train.epochs"
    assert errors.as_set(ADVICE) == IN_PART
  assert errors.as_set(ADVICE) == ADVICE


def test_an_error_keeps_the_name_it_was_raised_with():
  with errors.in_part("segmentation", OWN):
    error = UserError(ADVICE)
  assert str(error) == IN_PART
  # As it comes back from a worker.
  assert str(pickle.loads(pickle.dumps(error))) == IN_PART
  assert str(UserError(error)) == IN_PART


def test_a_warning_names_what_can_be_set():
  handler = absl_logging.get_absl_handler()
  before, level = handler.formatter, absl_logging.get_verbosity()
  try:
    errors.say_warnings_plainly()
    record = logging.LogRecord(
      "absl", logging.WARNING, "file", 1, "more (--config.train.epochs=%d)", (8,), None
    )
    assert handler.format(record) == "warning: more (--config.train.epochs=8)"
    with errors.in_part("segmentation", OWN):
      assert handler.format(record) == "warning: more (--config.segmentation.train.epochs=8)"
  finally:
    handler.setFormatter(before)
    absl_logging.set_verbosity(level)
