"""One file a run; `python -m lus_jax.main --config configs/seg.py`."""
