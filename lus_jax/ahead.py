"""What is begun before its turn, so that the host and the device do not wait for each other."""

from concurrent import futures


def in_thread(items):
  """Goes through an iterable in a thread of its own, one item ahead of the caller.

  For what reads and decodes. Its exceptions reach the caller in their place; where the caller
  leaves, the item under way is waited for.
  """
  items, end = iter(items), object()
  with futures.ThreadPoolExecutor(1) as pool:
    made = pool.submit(next, items, end)
    while (item := made.result()) is not end:
      made = pool.submit(next, items, end)
      yield item


def dispatched(items):
  """Goes through an iterable of what a device computes, one item ahead of the caller.

  The caller waits for an item's numbers when the next one is already being computed. Where the next
  one cannot be begun, the caller has what there is before the exception reaches it.
  """
  items, end, held = iter(items), object(), []
  while True:
    try:
      item = next(items, end)
    except BaseException:
      yield from held
      raise
    yield from held
    if item is end:
      return
    held = [item]
