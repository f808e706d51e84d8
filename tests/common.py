"""What several test files need: pictures, tensors that agree, and errors that say something."""

import pytest
import torch


def pictures(*shape):
    """Noise, as the pixels of photographs: the same each time."""
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def close(a, b, tolerance=1e-4):
    assert a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance), (a.shape, b.shape, (a - b).abs().max())


def one_sentence(caught, *words):
    """The text of an error that `pytest.raises` caught: of readable length, on one line, with these words in it."""
    text = str(caught.value)
    assert 30 < len(text) < 600 and "\n" not in text, text
    assert all(word in text for word in words), text
    return text


def refusal(kind, mistake):
    """What is said when `mistake()` is refused with an error of exactly this kind: one sentence, without a full stop."""
    with pytest.raises(kind) as caught:
        mistake()
    said = one_sentence(caught)
    assert type(caught.value) is kind and len(said) < 400 and ". " not in said and not said.endswith("."), said
    return said
