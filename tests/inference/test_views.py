from lus_jax.inference import views


def test_above_zero_is_not_at_least_zero(toy_trained):
  trained = toy_trained((1, 2, 3))
  assert [views.meaning(trained, view) for view in trained.views] == [
    "P(confidence > 0)",
    "P(confidence >= 0.5)",
    "P(confidence >= 1)",
  ]
