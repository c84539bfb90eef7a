"""Messages in few words, and what a renderer learns of a record."""

import numpy


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


def learned(renderer, record):
    """The runs of targets as text."""
    row = renderer.render(record)
    targets = row.streams["weights"].values != 0
    borders = numpy.flatnonzero(numpy.diff(numpy.concatenate([[False], targets, [False]])))
    decode = renderer.tokenizer.decode
    return [decode(row.ids[start:end].tolist()) for start, end in zip(borders[::2], borders[1::2], strict=True)]
