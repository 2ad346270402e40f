from tfds_builders.lus_phantom.lus_phantom import LusPhantom, PhantomConfig, phantom_config

__all__ = ["LusPhantom", "PhantomConfig", "phantom_config"]
