"""What a file of predictions says of itself, whatever its format."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Head:
  """Of one clip's maps of one member.

  Attributes:
    name: of the member, as 'threshold_0.6'.
    classes: K names.
    colours: K colours, (red, green, blue) in 0..255.
    meaning: what a value is, in words, as 'P(confidence >= 0.6)'.
    frames: numbers of the frames that will come, counted from 0, rising.
    cut: the probability from which on a pixel is shown or counted as of a class, in (0, 1].
    box: the scan area (top, left, bottom, right), half-open; outside of it all maps are 0.
    software: what made the maps, as 'lus_jax 0.1.0'.
    shown: the part of the frame that videos and pages show, likewise, as what is burned into the
      rest may name a person; by default `box`.
  """

  name: str
  classes: tuple[str, ...]
  colours: tuple[tuple[int, int, int], ...]
  meaning: str
  frames: tuple[int, ...]
  cut: float
  box: tuple[int, int, int, int]
  software: str
  shown: tuple[int, int, int, int] | None = None

  def __post_init__(self):
    object.__setattr__(self, "shown", self.shown or self.box)
