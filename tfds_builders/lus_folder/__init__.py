"""Users' own data: videos, stills and confidence masks in a folder (see `manifest`)."""

from tfds_builders.lus_folder.lus_folder import FolderConfig, LusFolder, folder_config

__all__ = ["FolderConfig", "LusFolder", "folder_config"]
