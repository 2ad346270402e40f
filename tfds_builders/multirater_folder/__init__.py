"""Images that several raters drew, in a folder (see `manifest`)."""

from tfds_builders.multirater_folder.multirater_folder import (
  MultiraterConfig,
  MultiraterFolder,
  multirater_config,
)

__all__ = ["MultiraterConfig", "MultiraterFolder", "multirater_config"]
