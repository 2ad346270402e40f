"""From results files to what people read."""


def build(workdir):
  """Writes `<workdir>/report/`: index.html, one self-contained page, figures and tables.

  Args:
    workdir: a run's directory; only its `results/` and what says whose run it is are read.

  Returns:
    The path of index.html.

  Raises:
    UserError: there is no readable results file at all.
  """
  # Training imports this package for its text tables and needs no plots for that.
  from lus_jax.report import page

  return page.write(workdir)
